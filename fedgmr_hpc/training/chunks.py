"""The evaluation of a version, in chunks of samples that any rank may take.

A model with static batch norms is scored after its statistics were measured on the pool `norms`;
they are the mean over the chunks in a fixed order, so they have the same bits on any ranks.

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
from fedgmr_hpc.wire.parcels import Parcel

Found = tuple[int, float] | list[float]  # (correct, summed loss), or of `norms` statistics [S]


class Part(NamedTuple):
    """One pool of samples, on which the whole model or one level of the ladder is scored.

    Attributes:
        pool: the samples.
        level: of the ladder; None for the whole model.
    """

    pool: Pool
    level: int | None = None


@dataclass
class Evaluation:
    """A version's evaluation under way.

    Attributes:
        version: its number.
        parcel: the version's frame; None once every rank has it.
        chunks: result of each chunk by part and first sample, None while it is missing.
        ladder: masks of the levels; None if only the whole model is scored.
        statistics: [S] by level, once they are measured.
        waiting: by level, parts (and whether they are awaited) until its statistics are measured.
    """

    version: int
    parcel: Parcel | None
    chunks: dict[Part, dict[int, Found | None]]
    ladder: MaskSet | None = None
    statistics: dict[int | None, Floats] = field(default_factory=dict)
    waiting: dict[int | None, list[tuple[Part, bool]]] = field(default_factory=dict)

    def is_done(self, part: Part) -> bool:
        """Tell whether every chunk of the part has its result."""
        return all(result is not None for result in self.chunks[part].values())

    def sums(self, part: Part) -> tuple[int, float]:
        """Return correct answers and summed loss of a finished part, added in chunk order."""
        correct, loss_sum = 0, 0.0
        for result in self.chunks[part].values():
            assert isinstance(result, tuple)
            correct, loss_sum = correct + result[0], loss_sum + result[1]
        return correct, loss_sum

    def finish_norms(self, level: int | None) -> list[tuple[Part, bool]]:
        """Average the statistics of a level, all of whose chunks are in.

        Returns:
            The parts that waited for them, and whether each is awaited.
        """
        found = self.chunks[Part("norms", level)].values()
        self.statistics[level] = mean_statistics([torch.tensor(each) for each in found]).numpy()
        return self.waiting.pop(level)


class Chunk(NamedTuple):
    """One piece of evaluation work."""

    evaluation: Evaluation
    part: Part
    start: int
