"""What the server knows of each client rank: its clients, what it holds and owes, its clock.

Shapes: S statistics of static batch norms.
"""

from __future__ import annotations

import socket
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.runtime.timeline import ClockOffset, RankTrace, Tracer, align, estimate_offset
from fedgmr_hpc.training.chunks import Chunk, Evaluation
from fedgmr_hpc.training.objectives.contract import make_objective

ROUND_TRIPS = 8  # of which the shortest says how two clocks differ
RoundTrip = tuple[float, float, float]  # (sent_s, the rank's time, received_s)


def num_kept_vectors(config: Config) -> int:
    """Return how many vectors over its entries a client keeps from one dispatch to the next."""
    objective = make_objective(config.train)
    num_own = 0 if objective is None else len(objective.keeps)
    return num_own + (config.wire.dtype == "int8")


def keeps_memories(config: Config) -> bool:
    """Return whether clients keep anything between dispatches, so that each must stay on one
    rank.
    """
    return num_kept_vectors(config) > 0


def host_rank(client: int, num_ranks: int) -> int:
    """Return the rank of a client that must stay on one: dealt out in turn."""
    return 1 + client % (num_ranks - 1)


def place_clients(num_clients: int, num_ranks: int) -> dict[int, int]:
    """Return the rank that hosts each client, so that every rank has fast and slow ones."""
    return {client: host_rank(client, num_ranks) for client in range(num_clients)}


@dataclass
class RankState:
    """What a client rank holds and owes.

    Attributes:
        owes: answers that are still to come from it.
        chunks: of these, the parts of evaluations, in the order in which they were sent.
        version: of the model that it trains on.
        levels: increments of that version that it has.
        mask_id: of the masks whose positions it has, up to `num_known` levels.
        eval_version: of the model that it evaluates.
        ladder_id: mask id of the ladder that it evaluates sub-models with.
        norm_levels: levels of that model whose statistics it has, None for the whole.
    """

    owes: int = 0
    chunks: deque[Chunk] = field(default_factory=deque)
    version: int = -1
    levels: set[int] = field(default_factory=set)
    mask_id: int = -1
    num_known: int = 0
    eval_version: int = -1
    ladder_id: int = -1
    norm_levels: set[int | None] = field(default_factory=set)

    def levels_to_send(self, task: Assignment, *, whole: bool) -> range:
        """Return the increments that the rank lacks for a task, and take them as sent.

        Args:
            whole: whether sub-models travel whole, as `transmission=whole` charges them: then each
                level is sent anew from the first increment on.
        """
        if whole:
            is_new = task.level not in self.levels
            self.levels.add(task.level)
            return range(task.level + 1 if is_new else 0)
        missing = range(len(self.levels), task.level + 1)
        self.levels.update(missing)
        return missing

    def missing_norms(self, evaluation: Evaluation, level: int | None) -> list[float] | None:
        """Return the statistics [S] that the rank lacks, and take them as sent; None without."""
        if level not in evaluation.statistics or level in self.norm_levels:
            return None
        self.norm_levels.add(level)
        return [float(value) for value in evaluation.statistics[level]]


class RankClocks:
    """Offsets of the ranks' clocks at the start and the end of a run, and what the ranks traced.

    Attributes:
        offsets: by rank.
        traces: by rank, once the run has ended.
    """

    def __init__(self) -> None:
        self.offsets: defaultdict[int, list[ClockOffset]] = defaultdict(list)
        self.traces: dict[int, Tracer] = {}

    def measure(self, rank: int, ask_time: Callable[[int], RoundTrip]) -> None:
        """Compare a rank's clock with this one's.

        Args:
            ask_time: makes one round trip to the rank, which must be idle.
        """
        self.offsets[rank].append(estimate_offset([ask_time(rank) for _ in range(ROUND_TRIPS)]))

    def aligned(self, own: Tracer, hosts: Mapping[int, str]) -> list[RankTrace]:
        """Return what every rank did, in this rank's time.

        Args:
            own: the spans of this rank.
            hosts: name of the host of each other rank that has said goodbye.
        """
        mine = RankTrace(0, socket.gethostname(), own.spans(), num_dropped=own.num_dropped)
        return [mine] + [
            RankTrace(
                rank,
                hosts[rank],
                align(trace.spans(), *self.offsets[rank]),
                tuple(self.offsets[rank]),
                trace.num_dropped,
            )
            for rank, trace in sorted(self.traces.items())
            if rank in hosts
        ]
