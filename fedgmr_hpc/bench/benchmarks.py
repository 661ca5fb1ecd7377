"""Run a benchmark by name, and print its table and one JSON line.

Each benchmark warms up, checks its answer, repeats and states the ceiling it is measured against in
the same run. Absolute times depend on the machine; the ratios are what to compare.

    codec    codec.py    encode + decode per density and type    against a copy of the dense model
    merge    merging.py  one buffered mask-aware merge           against a copy of as many bytes
    mask     masks.py    one refresh                             against one sort of as many keys
    round    round.py    FedGMR rounds over real ranks           against the same local steps alone
    links    links.py    real transfers, ten links at once       against the rates asked for
    server   server.py   small updates a second                  against a bare request and reply
    clients  clients.py  many clients, few of which take part    against only those that take part
    memory   memory.py   rank 0 over many rounds                 against a flat line
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fedgmr_hpc.bench.case import Benchmark
from fedgmr_hpc.bench.clients import measure_clients
from fedgmr_hpc.bench.codec import measure_codec
from fedgmr_hpc.bench.masks import measure_refresh
from fedgmr_hpc.bench.memory import measure_memory
from fedgmr_hpc.bench.merging import measure_merge
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.transport.launchers import run_ranks

HERE = {"codec": measure_codec, "merge": measure_merge, "mask": measure_refresh}
ON_RANKS = ("round", "links", "server")


def run_bench(what: str, *, quick: bool, ranks: int, as_json: bool = False) -> int:
    """Run one benchmark and print its table, then one JSON line.

    Args:
        as_json: Print the JSON line alone.

    Returns:
        The exit code: 1 where a row is outside its bound.
    """
    found = measure(what, quick=quick, ranks=ranks)
    columns = list(found.rows[0])
    if not as_json:
        print(as_text(columns, [[_cell(row[column]) for column in columns] for row in found.rows]))
    print(json.dumps(as_record(what, quick, found)))
    return 1 if found.num_outside else 0


def measure(what: str, *, quick: bool, ranks: int) -> Benchmark:
    """Run one benchmark.

    Args:
        what: Its name, as the module docstring has it.
        quick: Few repeats, as a smoke test.
        ranks: Of those that need several, the server included.

    Raises:
        ValueError: There are fewer than two ranks.
        AssertionError: What is measured does not give the right answer.
    """
    if ranks < 2:
        raise ValueError(must_be("--ranks", "at least 2, one of them the server", ranks))
    if what in HERE:
        return HERE[what](3 if quick else 15)
    if what in ON_RANKS:
        return _on_ranks(what, quick, ranks)
    if what == "clients":
        return measure_clients(quick, ranks)
    return measure_memory(200 if quick else 2000, ranks)


def as_record(what: str, quick: bool, found: Benchmark) -> dict[str, Any]:
    """Return the content of the final JSON line."""
    return {"bench": what, "quick": quick, "outside": found.num_outside, **found.summary}


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _on_ranks(what: str, quick: bool, ranks: int) -> Benchmark:
    """Run a benchmark's module on every rank; the first leaves the rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        flags = ["--quick"] if quick else []
        run_ranks(ranks, f"fedgmr_hpc.bench.{what}", str(out), *flags)
        rows = json.loads(out.read_text())
    return Benchmark(rows, {"ranks": ranks, "rows": rows})
