"""What a run will need, before it is run: link rates, disk, memory and time. Pure functions.

Estimates lean to the high side: every client delivers in every round, and densities are those to
which restoration may take them. W weights of a model, C clients, M dense models of 4 W bytes:

    server's memory    6 M and the buffer                  (docs/performance.md: 7.7 M measured with
                                                           a buffer of 2.1 M, 13 to 15 M with 10 M)
    worker's memory    20 bytes a weight beside what training has taken: the packed values and
                       their positions, a frame that comes and one that goes
    clients' memory    where they keep anything between dispatches (fl/client_memory.py): vectors
                       over their entries, and positions; on their ranks, in checkpoints and, while
                       one is written, on the server
    a checkpoint       the version, its order and, for each client, values and positions; three
                       files may exist at a time
    results            every row of every table, and the final weights
    time               training, on no more ranks than clients train at a time, and evaluation, on
                       all client ranks, at 0.75 of what they measured alone (docs/performance.md)

Times are wall seconds where the name does not say virtual.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedgmr_hpc.config.choices.registry import ADMISSIONS, AGGREGATIONS
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.admission import AdmissionRule
from fedgmr_hpc.runtime.rank_state import keeps_memories, num_kept_vectors, place_clients
from fedgmr_hpc.storage.rows import EvaluationRow, EventRow, MergeRow, TransferRow, UpdateRow
from fedgmr_hpc.storage.schema import columns_of
from fedgmr_hpc.wire.frames import frame_bytes

EFFICIENCY = 0.75
SERVER_MODELS = 6
CUT_MODELS = 2  # more where versions are cut to levels: masks, and their ranking once more
WORKER_BYTES_PER_WEIGHT = 20
FILE_BYTES = 1 << 20  # of a result file without rows: chunks are written whole
NUM_DRAWS = 64  # of clients that take part, over which a round is averaged


@dataclass(frozen=True)
class RankSpeed:
    """What a rank measured alone. `train_s`: a client's local training at `densities`."""

    densities: tuple[float, float]  # lowest, highest
    train_s: tuple[float, float]
    sample_s: float  # one sample of an evaluation

    def at(self, density: float) -> float:
        """Return the seconds of a client's local training, on the line between the two measured."""
        (low, high), (low_s, high_s) = self.densities, self.train_s
        part = (density - low) / (high - low) if high > low else 1.0
        return low_s + part * (high_s - low_s)


def first_densities(config: Config) -> list[float]:
    """Return [C] the densities with which clients begin."""
    shares = config.clients.bandwidth_shares()
    if config.submodel.kind == "full":
        return [1.0] * len(shares)
    return [min(pair) for pair in zip(shares, _ceilings(config), strict=True)]


def highest_densities(config: Config) -> list[float]:
    """Return [C] the densities that clients may reach."""
    grows = config.restoration.trigger != "none" or config.restoration.balance
    return list(_ceilings(config)) if grows else first_densities(config)


def _ceilings(config: Config) -> Sequence[float]:
    return config.clients.max_densities or (1.0,) * config.clients.count


def num_active(config: Config) -> int:
    """Return how many clients take part at a time."""
    return config.clients.sampled or config.clients.count


def _active_sum(config: Config, values: Sequence[float]) -> float:
    """Return the sum over the clients that take part at a time, on average."""
    return sum(values) * num_active(config) / config.clients.count


def needed_rates(config: Config, num_ranks: int) -> dict[int, tuple[float, float]]:
    """Return bytes per second (to, from) that each rank's clients may need on the wall clock.

    Nominal rates of their tiers, `links.trace` aside; a client is no faster than the server's link.
    """
    links, rates = config.links, dict[int, tuple[float, float]]()
    rank_of = place_clients(config.clients.count, num_ranks)
    for client, share in enumerate(config.clients.bandwidth_shares()):
        down, up = rates.get(rank_of[client], (0.0, 0.0))
        down += min(links.client_down_bytes_per_s * share, links.server_up_bytes_per_s)
        up += min(links.client_up_bytes_per_s * share, links.server_down_bytes_per_s)
        rates[rank_of[client]] = (down, up)
    cap_down = links.rank_down_bytes_per_s or math.inf
    cap_up = min(links.rank_up_bytes_per_s or math.inf, links.server_down_bytes_per_s)
    return {
        rank: (min(down, cap_down) / config.time_scale, min(up, cap_up) / config.time_scale)
        for rank, (down, up) in rates.items()
    }


def round_s(config: Config, num_prunable: int, num_dense: int) -> float:
    """Return the least virtual seconds of a round: the fastest client's cycle, and what of a merge
    clients wait for.
    """
    links, shares = config.links, config.clients.bandwidth_shares()
    density, share = max(zip(first_densities(config), shares, strict=True), key=lambda p: p[1])
    size = float(frame_bytes(int(density * num_prunable), num_dense, dtype=config.wire.dtype))
    if links.size == "nominal":
        size = links.nominal_mb * 1e6 * density
    down_s = size / min(links.client_down_bytes_per_s * share, links.server_up_bytes_per_s)
    up_s = size / min(links.client_up_bytes_per_s * share, links.server_down_bytes_per_s)
    return 2 * links.latency_s + down_s + links.compute_s + up_s + _merge_wait_s(config)


def _merge_wait_s(config: Config) -> float:
    """Return the least that a client waits for a merge, a mean over its updates."""
    if not _rule(config).sends_at_once or config.aggregation.buffered:
        return config.links.merge_s
    if config.admission.kind != "count":
        return 0.0
    return config.links.merge_s / (config.admission.count or 1)  # who brings the last of so many


def _rule(config: Config) -> AdmissionRule:
    rule: AdmissionRule = ADMISSIONS.make(config.admission.kind, config.admission)
    return rule


def num_rounds(config: Config, least_round_s: float) -> int:
    """Return how many rounds a run has at most."""
    limit_s = config.run.max_time_s
    rounds = config.run.max_rounds
    return rounds if limit_s is None else min(rounds, math.ceil(limit_s / least_round_s))


def num_levels(config: Config) -> int:
    """Return how many sub-models of a version are scored beside the whole model."""
    return len({*first_densities(config)} - {1.0}) if config.eval.submodels else 0


def num_looks(config: Config, rounds: int, least_round_s: float) -> int:
    """Return how many looks at equal times there are at most; none sees the version of another."""
    every_s = config.eval.every_s
    return 0 if every_s is None else min(rounds, math.ceil(rounds * least_round_s / every_s)) + 1


def compute_s(
    config: Config,
    paces: Sequence[RankSpeed],
    rounds: int,
    num_samples: int,
    num_scored: int,
    num_tested: int,
    looks: int = 0,
) -> float:
    """Return the seconds for the training and evaluation of a whole run.

    Args:
        paces: of the ranks that train.
        num_samples: of an evaluation, in the validation and test sets.
        num_scored: that score each client at a refresh.
        num_tested: those of an evaluation without the validation set, as a sub-model has it.
        looks: evaluations beside those of refreshes.
    """
    densities = highest_densities(config)
    train_s = training_s(
        config, [fmean(pace.at(d) for pace in paces) for d in densities], len(paces)
    )
    refreshes = rounds // config.run.interval_rounds + 1
    samples = (refreshes + looks) * num_samples + refreshes * num_active(config) * num_scored
    samples += (looks or refreshes) * num_levels(config) * num_tested
    evaluate_s = samples * fmean(pace.sample_s for pace in paces)
    return (rounds * train_s + evaluate_s / len(paces)) / EFFICIENCY


def training_s(config: Config, times_s: Sequence[float], num_ranks: int) -> float:
    """Return the seconds of a round's training: of busy ranks, or where a merge is a round at least
    those of the rank that has most to do for it.

    Args:
        times_s: [C] of each client's training.
        num_ranks: that train.
    """
    busy_s = _active_sum(config, times_s) / min(num_ranks, num_active(config))
    rule, shares = _rule(config), config.clients.bandwidth_shares()
    if rule.counts != "merges":
        return busy_s
    awaited = [rule.pacing(shares, taking) for taking in _draw_rounds(config)]
    return max(busy_s, fmean(_longest_s(config, times_s, each, num_ranks) for each in awaited))


def _draw_rounds(config: Config) -> list[Collection[int]]:
    """Return who takes part in a round: all, or as many as do so, drawn several times."""
    clients = range(config.clients.count)
    if config.clients.sampled is None:
        return [clients]
    draw = random.Random(0)
    return [draw.sample(clients, config.clients.sampled) for _ in range(NUM_DRAWS)]


def _longest_s(
    config: Config, times_s: Sequence[float], clients: Collection[int], num_ranks: int
) -> float:
    """Return how long the rank trains that has most to do: ranks train the clients that they host,
    or where nothing holds a client to its rank, the next one that waits.
    """
    loads = [0.0] * num_ranks
    if config.clock == "wall" or keeps_memories(config):
        rank_of = place_clients(config.clients.count, num_ranks + 1)
        for client in clients:
            loads[rank_of[client] - 1] += times_s[client]
    else:
        for train_s in sorted((times_s[client] for client in clients), reverse=True):
            heapq.heapreplace(loads, loads[0] + train_s)
    return max(loads)


def whole_run_s(config: Config, computing_s: float, rounds: int, least_round_s: float) -> float:
    """Return the seconds of a run: on the wall clock links take their time, too."""
    if config.clock == "virtual":
        return computing_s
    return max(computing_s, rounds * least_round_s * config.time_scale)


def least_time_scale(config: Config, paces: Mapping[int, RankSpeed], num_ranks: int) -> float:
    """Below it client-steps overrun on the wall clock: a rank trains its clients in turn."""
    if not config.links.compute_s:
        return math.inf
    rank_of, sums = (
        place_clients(config.clients.count, max(2, num_ranks)),
        dict.fromkeys(paces, 0.0),
    )
    for client, density in enumerate(highest_densities(config)):
        rank = rank_of[client] if num_ranks > 1 else 0
        if rank in paces:
            sums[rank] += paces[rank].at(density)
    return max(sums.values()) / config.links.compute_s


def result_bytes(config: Config, num_weights: int, rounds: int) -> int:
    """Return the length of the result file."""
    active, admission = num_active(config), config.admission
    merges_of = {"count": math.ceil(active / (admission.count or 1)), "each": active}
    merges = rounds * merges_of.get(admission.kind, 1)
    updates = rounds * active
    counts: dict[type, int] = {
        MergeRow: merges,
        UpdateRow: updates,
        EventRow: updates + merges,
        EvaluationRow: rounds // config.run.interval_rounds + 1,
        TransferRow: 2 * updates * (config.clock == "wall"),
    }
    rows = sum(num * row_bytes(row, config.clients.count) for row, num in counts.items())
    return FILE_BYTES + 4 * num_weights + rows


def row_bytes(row: type, num_clients: int) -> int:
    """Return the bytes of a row of a table."""
    return sum(c.dtype.itemsize * (num_clients if c.per_client else 1) for c in columns_of(row))


def buffer_models(config: Config) -> float:
    """Return how many dense models the server's buffer may hold."""
    sizes = sorted(highest_densities(config), reverse=True)
    most = config.aggregation.max_entries or config.clients.sampled
    second = sizes[0] * (config.admission.count or 0)  # of clients that have gone on at once
    return sum(sizes[:most]) + (0 if config.aggregation.buffered else second)


def rule_bytes(config: Config, num_weights: int) -> int:
    """Return what the aggregation rule keeps from merge to merge."""
    return 4 * num_weights * len(AGGREGATIONS[config.aggregation.rule].vectors)


def checkpoint_bytes(config: Config, num_weights: int) -> int:
    """Return the length of a checkpoint."""
    models = buffer_models(config)
    versions = int(4 * num_weights * (2 + min(2 * models, max(models, num_active(config)))))
    kept = rule_bytes(config, num_weights) + saved_memory_bytes(config, num_weights)
    return versions + kept


def memory_bytes(config: Config, num_weights: int) -> int:
    """Return what all clients together keep between dispatches."""
    vectors = num_kept_vectors(config)
    entries = num_weights * sum(highest_densities(config))
    return int(4 * (vectors + 1) * entries) if vectors else 0


def saved_memory_bytes(config: Config, num_weights: int) -> int:
    """Return how much of that a checkpoint holds: on the wall clock it is not saved."""
    return memory_bytes(config, num_weights) if config.clock == "virtual" else 0


def disk_bytes(config: Config, num_weights: int, rounds: int) -> int:
    """Return the bytes of results and checkpoints."""
    num = 1 if config.checkpoint.every_s is None else 3
    results = result_bytes(config, num_weights, rounds)
    return results + num * checkpoint_bytes(config, num_weights)


def server_bytes(config: Config, num_weights: int) -> int:
    """Return the server's memory beside the program itself."""
    models = SERVER_MODELS + CUT_MODELS * bool(num_levels(config)) + buffer_models(config)
    kept = rule_bytes(config, num_weights) + saved_memory_bytes(config, num_weights)
    return int(4 * num_weights * models) + kept


def worker_bytes(config: Config, num_weights: int, num_workers: int = 1) -> int:
    """Return a worker's memory beside the program, the data and training: version, positions,
    network and mask, as much again to cut versions to levels, and its share of what clients keep.
    """
    own = WORKER_BYTES_PER_WEIGHT * num_weights * (1 + bool(num_levels(config)))
    return own + math.ceil(memory_bytes(config, num_weights) / num_workers)
