"""What of a version is to be scored, in pieces of samples that any rank may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fedgmr_hpc.data.federated import Pool
from fedgmr_hpc.fl.submodels import MaskSet


class Part(NamedTuple):
    """What of a version is scored, the whole of it or a level of the ladder, on which samples."""

    pool: Pool
    level: int | None = None


@dataclass
class Evaluation:
    """One version's evaluation under way, in chunks that any rank may take.

    `chunks[part][start]` is (correct, summed loss) of the chunk at `start`, None while it is
    missing. `ladder` has the masks of its levels.
    """

    version: int
    payload: tuple[memoryview, ...]  # the version's frame, until every rank has it
    chunks: dict[Part, dict[int, tuple[int, float] | None]]
    ladder: MaskSet | None = None

    def is_done(self, part: Part) -> bool:
        """Whether every chunk of the part is in."""
        return all(result is not None for result in self.chunks[part].values())

    def sums(self, part: Part) -> tuple[int, float]:
        """(correct, summed loss) over a finished part, in chunk order."""
        correct, loss_sum = 0, 0.0
        for result in self.chunks[part].values():
            assert result is not None
            correct, loss_sum = correct + result[0], loss_sum + result[1]
        return correct, loss_sum


class Chunk(NamedTuple):
    """One piece of evaluation work."""

    evaluation: Evaluation
    part: Part
    start: int
