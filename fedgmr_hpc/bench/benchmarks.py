"""Run a benchmark by name, and print its table and one JSON line.

Each benchmark warms up, checks its answer, repeats and states the ceiling it is measured against in
the same run. Absolute times depend on the machine; the ratios are what to compare.

    codec    codec.py    encode + decode per density and type    against a copy of the dense model
    merge    merging.py  one buffered mask-aware merge           against a copy of as many bytes
    mask     masks.py    one refresh                             against one sort of as many keys
    data     samples.py  training batches from bytes             against a copy of as many bytes
    compact  compact/    a local step over densities             against the same of dense layers
    round    round.py    FedGMR rounds over real ranks           against the same local steps alone
    overhead overhead.py rounds of a small and a large model     against the same local steps alone
    links    links.py    real transfers, ten links at once       against the rates asked for
    server   server.py   small updates a second                  against a bare request and reply
    fanout   fanout.py   one frame to all ranks                  against one send a node
    clients  clients.py  many clients, few of which take part    against only those that take part
    memory   memory.py   rank 0 over many rounds                 against a flat line
    peers    peers/      FedAvg rounds, full models              against pfl-research and Flower
    gpu      gpu/        local steps on a GPU, ranks that share  against the goals for an H100
"""

from __future__ import annotations

import json
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgmr_hpc.bench.baseline import compare, measurements, read_baseline, words_of
from fedgmr_hpc.bench.case import Benchmark, Row, Shape
from fedgmr_hpc.bench.clients import measure_clients
from fedgmr_hpc.bench.codec import measure_codec
from fedgmr_hpc.bench.compact.steps import measure_compact
from fedgmr_hpc.bench.gpu.table import measure_gpu
from fedgmr_hpc.bench.masks import measure_refresh
from fedgmr_hpc.bench.memory import measure_memory
from fedgmr_hpc.bench.merging import measure_merge
from fedgmr_hpc.bench.overhead import measure_overhead
from fedgmr_hpc.bench.peers.comparison import measure_peers
from fedgmr_hpc.bench.peers.environment import DEFAULT as PEERS_VENV
from fedgmr_hpc.bench.samples import measure_samples
from fedgmr_hpc.bench.system import describe_system
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.results.gate.perf_log import append_lines
from fedgmr_hpc.transport.launchers import run_ranks

HERE = {
    "codec": measure_codec,
    "merge": measure_merge,
    "mask": measure_refresh,
    "data": measure_samples,
    "compact": measure_compact,
}
ON_RANKS = ("round", "links", "fanout", "server")
SHAPES = {
    "codec": Shape(("density", "dtype", "positions"), {"of copy": "higher"}),
    "merge": Shape(("buffer", "threads"), {"of copy": "higher"}),
    "mask": Shape(("entries",), {"sorts": "lower"}),
    "data": Shape(("samples", "made"), {"of a copy": "higher"}),
    "compact": Shape(("model", "density"), {"of dense": "lower"}),
    "round": Shape(("densities",), {"efficiency": "higher"}, takes_ranks=True),
    "overhead": Shape(("model", "where"), {"efficiency": "higher"}, takes_ranks=True),
    "links": Shape(takes_ranks=True),
    "fanout": Shape(("way",), takes_ranks=True),
    "server": Shape(("ranks",), {"of bare": "higher", "fairness": "higher"}, takes_ranks=True),
    "clients": Shape(("clients",), {"of ceiling": "higher"}, takes_ranks=True),
    "memory": Shape(takes_ranks=True),
    "peers": Shape(
        ("contender",), dict.fromkeys(("of steps alone", "of pfl", "of Flower"), "lower")
    ),
    "gpu": Shape(("trained", "ranks", "clients at a time", "graphs", "precision")),
}


@dataclass(frozen=True)
class Request:
    """What to measure, and what to compare it with.

    Attributes:
        what: the benchmark, as the module docstring has it.
        quick: few repeats, as a smoke test.
        ranks: of those that need several, the server included.
        venv: the environment of the peers.
        baseline: a file with an earlier measurement, if any.
        tolerance: by how much of its earlier value a ratio may be worse.
        perf_log: a file to which a line for each figure is appended, if any.
        device: of those that need a GPU: `cuda`, or with `quick` `cpu`.
    """

    what: str
    quick: bool = False
    ranks: int = 3
    venv: Path = Path(PEERS_VENV)
    baseline: Path | None = None
    tolerance: float = 0.1
    perf_log: Path | None = None
    device: str = "cuda"


def run_bench(request: Request, aside: AbstractContextManager[object] | None = None) -> int:
    """Run one benchmark and print its table, then one JSON line.

    Args:
        aside: is entered while it runs, and leaves the JSON line alone on stdout.

    Returns:
        The exit code: 1 where a row is outside its bound, or worse than the baseline.

    Raises:
        ValueError: as `measure`, or the baseline is none, or the log cannot be written.
    """
    before, shape = None, SHAPES[request.what]
    if request.baseline is not None:
        before = read_baseline(request.baseline, _asked(request), shape)
    if request.perf_log is not None:
        append_lines(request.perf_log, ())  # what cannot be written is told before minutes pass
    with aside or nullcontext():
        found = measure(request)
    compared = [] if before is None else compare(before, found, shape, request.tolerance)
    if aside is None:
        for rows in filter(None, (found.rows, compared)):
            print(_as_table(rows))
    record = as_record(request, found)
    print(json.dumps(record | {"compared": compared} if before else record))
    if request.perf_log is not None:
        told = measurements(words_of(record), found, shape, compared, request.tolerance)
        append_lines(request.perf_log, ((record["system"], each) for each in told))
    return 1 if found.num_outside or any(not row["within"] for row in compared) else 0


def measure(request: Request) -> Benchmark:
    """Run one benchmark.

    Raises:
        ValueError: There are fewer than two ranks, no peers, or no GPU.
        AssertionError: What is measured does not give the right answer.
    """
    what, quick, ranks = request.what, request.quick, request.ranks
    if ranks < 2:
        raise ValueError(must_be("--ranks", "at least 2, one of them the server", ranks))
    if what in HERE:
        return HERE[what](3 if quick else 15)
    if what in ON_RANKS:
        return _on_ranks(what, quick, ranks)
    if what == "clients":
        return measure_clients(quick, ranks)
    if what == "overhead":
        return measure_overhead(quick, ranks)
    if what == "peers":
        return measure_peers(quick, request.venv.expanduser())
    if what == "gpu":
        return measure_gpu(quick, request.device)
    return measure_memory(200 if quick else 2000, ranks)


def as_record(request: Request, found: Benchmark) -> dict[str, Any]:
    """Return the content of the final JSON line."""
    told = _asked(request) | {"outside": found.num_outside} | found.summary
    return told | {"rows": found.rows, "system": describe_system()}


def _asked(request: Request) -> dict[str, Any]:
    """Return what a record says of what was asked for."""
    asked = {"bench": request.what, "quick": request.quick}
    return asked | ({"ranks": request.ranks} if SHAPES[request.what].takes_ranks else {})


def _as_table(rows: list[Row]) -> str:
    columns = list(rows[0])
    return as_text(columns, [[_cell(row[column]) for column in columns] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _on_ranks(what: str, quick: bool, ranks: int) -> Benchmark:
    """Run a benchmark's module on every rank; the first leaves the rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        flags = ["--quick"] if quick else []
        run_ranks(ranks, f"fedgmr_hpc.bench.{what}", str(out), *flags)
        return Benchmark(json.loads(out.read_text()))
