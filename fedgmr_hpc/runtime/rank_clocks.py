"""How the ranks' clocks differ from rank 0's, and their spans in rank 0's time."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Mapping

from fedgmr_hpc.runtime.timeline import ClockOffset, RankTrace, Tracer, align, estimate_offset

ROUND_TRIPS = 8  # of which the shortest says how two clocks differ
RoundTrip = tuple[float, float, float]  # (sent_s, the rank's time, received_s)


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
            hosts: name of each other rank's host.
        """
        mine = RankTrace(0, socket.gethostname(), own.spans())
        return [mine] + [
            RankTrace(
                rank,
                hosts[rank],
                align(trace.spans(), *self.offsets[rank]),
                tuple(self.offsets[rank]),
                trace.num_dropped,
            )
            for rank, trace in sorted(self.traces.items())
        ]
