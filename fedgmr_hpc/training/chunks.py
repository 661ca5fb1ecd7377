"""What of a version is to be scored, in pieces of samples that any rank may take.

A model with static batch norms is scored once a part of the pool `norms` has given it their
statistics, the mean over that part's chunks in their order: the same bits on any ranks.

Shapes: S statistics of static batch norms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.data.federated import Pool
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.training.sgd import mean_statistics

Found = tuple[int, float] | list[float]  # (correct, summed loss), or of `norms` statistics [S]


class Part(NamedTuple):
    """What of a version is scored, the whole of it or a level of the ladder, on which samples."""

    pool: Pool
    level: int | None = None


@dataclass
class Evaluation:
    """One version's evaluation under way, in chunks that any rank may take.

    `chunks[part][start]` is what was found in the chunk at `start`, None while it is missing.
    `ladder` has the masks of its levels.

    Attributes:
        statistics: [S] by level, once they are measured.
        waiting: by level, parts (and whether they are awaited) until its statistics are measured.
    """

    version: int
    payload: tuple[memoryview, ...]  # the version's frame, until every rank has it
    chunks: dict[Part, dict[int, Found | None]]
    ladder: MaskSet | None = None
    statistics: dict[int | None, Floats] = field(default_factory=dict)
    waiting: dict[int | None, list[tuple[Part, bool]]] = field(default_factory=dict)

    def is_done(self, part: Part) -> bool:
        """Whether every chunk of the part is in."""
        return all(result is not None for result in self.chunks[part].values())

    def sums(self, part: Part) -> tuple[int, float]:
        """(correct, summed loss) over a finished part, in chunk order."""
        correct, loss_sum = 0, 0.0
        for result in self.chunks[part].values():
            assert isinstance(result, tuple)
            correct, loss_sum = correct + result[0], loss_sum + result[1]
        return correct, loss_sum

    def finish_norms(self, level: int | None) -> list[tuple[Part, bool]]:
        """Keeps the statistics of a level, all of whose chunks are in; the parts that waited."""
        found = self.chunks[Part("norms", level)].values()
        self.statistics[level] = mean_statistics([torch.tensor(each) for each in found]).numpy()
        return self.waiting.pop(level)


class Chunk(NamedTuple):
    """One piece of evaluation work."""

    evaluation: Evaluation
    part: Part
    start: int
