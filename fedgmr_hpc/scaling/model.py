"""Scaling laws and the capacity model behind the predicted curves: pure functions.

Speed-ups are relative to the smallest run: q is how many times its client ranks a run has, S how
many times its client-rounds per second. A client-round is one download, local training, upload and
service at the server.

The model is a closed queueing network. A client-round visits these stations, and the bounds of
Denning and Buzen hold for any order of service: with M clients X <= M / (cycle without queues), and
X <= 1 / D of the busiest station, D its seconds per client-round over its number of copies.

    station              copies    seconds per client-round
    client cores         ranks     core_s (or the machine's cores, where it has fewer)
    rank download        ranks     down_bytes / rank_down
    rank upload          ranks     up_bytes / rank_up
    server upload        1         server_up_bytes / server_up    (one broadcast serves many),
                                   or down_bytes / sharing / network if that is longer
    server download      1         server_down_bytes / server_down, or up_bytes / network
    server core          1         service_s - merge_s + merge_s / threads

Modelled compute time and the clients' own links are delays without a queue. Clients are equal, with
the means of the measured ones. All times are wall seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SERVER_STATIONS = ("server upload", "server download", "server core")

BY_BYTES = (
    "own_down_s", "own_up_s", "down_bytes", "up_bytes", "server_up_bytes", "server_down_bytes"
)  # fmt: skip


def karp_flatt(speedup: float, q: float) -> float:
    """Serial fraction that a speed-up S at q means: (1/S - 1/q) / (1 - 1/q); NaN for q = 1."""
    return math.nan if q == 1 else (1 / speedup - 1 / q) / (1 - 1 / q)


def amdahl(serial_frac: float, q: float) -> float:
    """Return the speed-up of a fixed problem of which a part is serial."""
    return 1 / (serial_frac + (1 - serial_frac) / q)


def gustafson(serial_frac: float, q: float) -> float:
    """Return the scaled speed-up of a problem that grows with q."""
    return q - serial_frac * (q - 1)


def fit_amdahl(qs: Sequence[float], speedups: Sequence[float]) -> float:
    """Serial fraction by least squares of 1/S - 1/q = f (1 - 1/q); NaN without any q above 1.
    Below 0 where the speed-up is more than q.
    """
    inverse, measured = 1 / np.asarray(qs, float), 1 / np.asarray(speedups, float)
    return _slope(1 - inverse, measured - inverse)


def fit_gustafson(qs: Sequence[float], speedups: Sequence[float]) -> float:
    """Return the serial fraction by least squares of q - S = s (q - 1); NaN if no q exceeds 1."""
    many = np.asarray(qs, float)
    return _slope(many - 1, many - np.asarray(speedups, float))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    square = float(x @ x)
    return float(x @ y) / square if square else math.nan


@dataclass(frozen=True)
class Demand:
    """What one client-round takes, as a mean.

    Attributes:
        core_s: of a client rank's core.
        service_s: of the server's core, merging and masks included.
        merge_s: the part of `service_s` that threads of the server can share.
        train_s: the part of `core_s` that is local training.
        delay_s: least time from the model's arrival to the update's departure.
        own_down_s, own_up_s: least time on the client's own link.
        down_bytes, up_bytes: on the rank's link.
        server_up_bytes, server_down_bytes: on the server's link.
        round_s: modelled merge time and slack of a window, once a synchronous round.
    """

    core_s: float
    service_s: float
    merge_s: float = 0.0
    train_s: float = 0.0
    delay_s: float = 0.0
    own_down_s: float = 0.0
    own_up_s: float = 0.0
    down_bytes: float = 0.0
    up_bytes: float = 0.0
    server_up_bytes: float = 0.0
    server_down_bytes: float = 0.0
    round_s: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Bytes per wall second; infinite where bytes take no time. `network` is what really joins the
    server to the other nodes; the others are links that a run models.
    """

    rank_down: float = math.inf
    rank_up: float = math.inf
    server_up: float = math.inf
    server_down: float = math.inf
    network: float = math.inf


@dataclass(frozen=True)
class System:
    """A job to predict.

    Attributes:
        is_synchronous: whether a round waits for all its clients.
        is_placed: whether a client stays on its rank, else any free rank takes it.
        num_cores: of the machine that all ranks share; None for a core of its own for each.
        threads: of the server, each on a core of its own.
        sharing: client-rounds that a frame serves which has crossed the network once: those of a
            rank's clients, or with one copy a node those of a node's.
    """

    demand: Demand
    rates: Rates = Rates()
    is_synchronous: bool = True
    is_placed: bool = False
    num_cores: int | None = None
    threads: int = 1
    sharing: float = 1.0


def service_s(system: System) -> float:
    """Return seconds of the server's core for each client-round."""
    d = system.demand
    return d.service_s - d.merge_s * (1 - 1 / system.threads)


def server_link_s(system: System) -> tuple[float, float]:
    """Return seconds of the server's link for each client-round, up and down: the longer of the
    modelled one and the real one.
    """
    d, r = system.demand, system.rates
    up_s = max(d.server_up_bytes / r.server_up, d.down_bytes / system.sharing / r.network)
    return up_s, max(d.server_down_bytes / r.server_down, d.up_bytes / r.network)


def stations(system: System, num_workers: int) -> dict[str, float]:
    """Return D of each station of the module's table: seconds per client-round over its copies."""
    d, r = system.demand, system.rates
    cores = num_workers if system.num_cores is None else min(num_workers, system.num_cores)
    return {
        "client cores": d.core_s / cores,
        "rank download": d.down_bytes / r.rank_down / num_workers,
        "rank upload": d.up_bytes / r.rank_up / num_workers,
        "server upload": server_link_s(system)[0],
        "server download": server_link_s(system)[1],
        "server core": service_s(system),
    }


def cycle_s(system: System) -> float:
    """Return time of a client-round that meets no queue; the links of a transfer work side by
    side.
    """
    d, r = system.demand, system.rates
    server_up_s, server_down_s = server_link_s(system)
    down_s = max(d.own_down_s, d.down_bytes / r.rank_down, server_up_s)
    up_s = max(d.own_up_s, d.up_bytes / r.rank_up, server_down_s)
    round_s = d.round_s if system.is_synchronous else 0.0
    return down_s + max(d.core_s, d.delay_s) + up_s + service_s(system) + round_s


@dataclass(frozen=True)
class Bound:
    """The most client-rounds per second, and what sets it."""

    rounds_per_s: float
    by: str


def throughput_bound(system: System, num_workers: int, num_clients: int) -> Bound:
    """Return the asymptotic bound of the closed network; `cycle` means that clients are too few."""
    name, demand_s = max(stations(system, num_workers).items(), key=lambda item: item[1])
    limits = [(1 / demand_s if demand_s else math.inf, name)]
    limits.append((num_clients / cycle_s(system), "cycle"))
    return Bound(*min(limits))


@dataclass(frozen=True)
class Saturation:
    """Where the server's busiest station is busy all the time.

    Attributes:
        num_workers: client ranks from which on it is: its seconds per client-round times the
            client-rounds per second that so many ranks can ask for is 1.
        rounds_per_s: what it can take at most.
        station: which it is.
    """

    num_workers: float
    rounds_per_s: float
    station: str


def saturation(system: System, clients_per_rank: float) -> Saturation:
    """Return the server's limit for ranks with cores and links of their own."""
    alone = stations(replace(system, num_cores=None), 1)
    station = max(SERVER_STATIONS, key=lambda name: alone[name])
    busiest_s = max(alone[name] for name in alone if name not in SERVER_STATIONS)
    asked_per_s = clients_per_rank / max(cycle_s(system), clients_per_rank * busiest_s)
    if not alone[station]:
        return Saturation(math.inf, math.inf, station)
    return Saturation(1 / (alone[station] * asked_per_s), 1 / alone[station], station)


def with_aggregators(system: System, fan_in: int) -> System:
    """Return the system with aggregators before the server, which gets one update in `fan_in`."""
    d = system.demand
    return replace(
        system,
        demand=replace(
            d,
            service_s=d.service_s / fan_in,
            merge_s=d.merge_s / fan_in,
            server_up_bytes=d.server_up_bytes / fan_in,
            server_down_bytes=d.server_down_bytes / fan_in,
        ),
    )


def with_smaller_frames(system: System, factor: float) -> System:
    """Return the system with frames of `factor` times the bytes, served in the same time."""
    d = system.demand
    return replace(system, demand=replace(d, **{n: factor * getattr(d, n) for n in BY_BYTES}))


def with_more_steps(system: System, factor: float) -> System:
    """Return the system with `factor` times the local steps E of a client-round."""
    d = system.demand
    more_s = (factor - 1) * d.train_s
    return replace(system, demand=replace(d, core_s=d.core_s + more_s, delay_s=factor * d.delay_s))


def with_threads(system: System, num: int) -> System:
    """Return the system with `num` threads that share the server's merging."""
    return replace(system, threads=num)


def with_one_copy(system: System, ranks_per_node: int) -> System:
    """Return the system with frames that cross to a node once instead of to each rank of it."""
    return replace(system, sharing=system.sharing * ranks_per_node)


def variants(system: System) -> dict[str, System]:
    """Return what would move the server's limit, by name; the system itself first."""
    return {
        "as measured": system,
        "aggregators, 8 ranks each": with_aggregators(system, 8),
        "two levels, 8 x 8": with_aggregators(system, 64),
        "4 threads of the server": with_threads(system, 4),
        "frames of half the size": with_smaller_frames(system, 0.5),
        "4 times the local steps": with_more_steps(system, 4.0),
    }
