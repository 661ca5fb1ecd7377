"""`bench clients`: thousands of clients of which a hundred take part at a time.

Memory and speed must follow those who take part, not those who exist. The run with as many clients
as take part is the ceiling; the others do the same training, so only what the server does for each
client that exists can make a difference. Rates are the best of repeats taken in turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fedgmr_hpc.bench.case import Benchmark
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.transport.launchers import run_ranks

SAMPLED = 100
CASE = (
    "data.name=synthetic_cifar10",
    "data.partition=iid",
    "model.name=cifar_cnn",
    "method=wo_gmr",
    "admission.kind=barrier",
    f"aggregation.max_entries={SAMPLED}",
    f"clients.sampled={SAMPLED}",
    "train.steps=1",
    "train.batch=2",
    "data.max_test=200",
    "run.interval_rounds=100000",
    "progress=quiet",
)


def measure_clients(quick: bool, ranks: int) -> Benchmark:
    """Return a row for each number of clients that exist."""
    counts = (100, 1_000) if quick else (100, 1_000, 10_000)
    rounds, repeats = (4, 1) if quick else (20, 3)
    best: dict[int, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats * len(counts)):
            count = counts[number % len(counts)]
            result = _run(Path(folder) / f"{number}.h5", count, rounds, ranks)
            if count not in best or rounds_per_s(result) > rounds_per_s(best[count]):
                best[count] = result
        rows = [_row(count, best[count], rounds_per_s(best[counts[0]])) for count in counts]
    return Benchmark(rows, {"sampled": SAMPLED})


def _run(path: Path, count: int, rounds: int, ranks: int) -> Result:
    words = (f"clients.count={count}", f"run.max_rounds={rounds}", f"results.path={path}")
    run_ranks(ranks, "fedgmr_hpc.launch", *CASE, *words)
    result = read_result(path)
    assert (result.merges["num_merged"] == SAMPLED).all(), "not every sampled client delivered"
    return result


def rounds_per_s(result: Result) -> float:
    """Return the rate without the first round and the last.

    The first pays for first calls, the last waits for the final validation, whose samples grow with
    the clients, as each keeps at least one.
    """
    wall_s = result.merges["wall_s"][:-1]
    return float((len(wall_s) - 1) / (wall_s[-1] - wall_s[0]))


def _row(count: int, result: Result, ceiling: float) -> dict[str, Any]:
    merges, ranks = result.merges, result.ranks
    rate = rounds_per_s(result)
    return {
        "clients": count,
        "rounds/s": rate,
        "of ceiling": rate / ceiling,
        "server MB": float(merges["wall_rss_bytes"].max()) / 1e6,
        "largest worker MB": float(ranks["rss_bytes"][1:].max()) / 1e6,
        "file kB a merge": result.path.stat().st_size / len(merges["version"]) / 1e3,
    }
