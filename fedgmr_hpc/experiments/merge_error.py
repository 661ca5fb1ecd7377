"""Aggregation error against mean density, and of masks that change in flight (`probe error`).

The measure itself is in merge_error_measure.py. It starts from models of short runs, one for each
seed and number of rounds, or from finished runs. Densities are those of a ladder of assignments:
the same for all clients, and the levels of docs/method.md#levels, raised rung by rung until every
client holds the full model.

Shapes: A assignments, S seeds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.overrides import parse_values
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.sections import LEVELS, RUNGS, ClientsConfig
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.experiments.merge_error_measure import (
    RULES,
    UploadMeasurement,
    Uploads,
    bound_term,
    raise_rungs,
    relative_error,
    slowest,
)
from fedgmr_hpc.experiments.merge_error_plots import plot_errors, plot_mismatches
from fedgmr_hpc.experiments.merge_error_tables import ErrorRow, MismatchRow, make_tables, verdicts
from fedgmr_hpc.reporting.figures import save
from fedgmr_hpc.reporting.pages import Page, Picture, write_page
from fedgmr_hpc.reporting.tables import as_text, write_tables
from fedgmr_hpc.results.runs import run
from fedgmr_hpc.runtime.replay import keep_recorded
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.training.numeric_settings import settled

UNIFORM = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
IN_FLIGHT_FRACS = (0.2, 0.5, 0.8)
DEFAULT_SEEDS = (0, 1, 2)
DEFAULT_ROUNDS = (10, 100)


@dataclass(frozen=True)
class Start:
    """A model to measure on: `weights` [P + D] after so many rounds of a run."""

    config: Config
    round: int
    weights: Floats


def assignments(num_clients: int) -> dict[str, tuple[float, ...]]:
    """Return the densities [C] of every assignment, by its name."""
    found = {f"uniform {density:g}": (density,) * num_clients for density in UNIFORM}
    for level in LEVELS:
        shares = ClientsConfig(count=num_clients, level=level).bandwidth_shares()
        for num in range(len(RUNGS)):
            densities = raise_rungs(shares, RUNGS, num)
            if densities not in found.values():
                found[f"{level} +{num}"] = densities
    return found


def error_rows(uploads: Uploads, seed: int, round_: int) -> list[ErrorRow]:
    """Return a row for every assignment and rule."""
    rows = []
    for name, densities in assignments(len(uploads.values)).items():
        mean, bound = sum(densities) / len(densities), bound_term(uploads, densities)
        entries = uploads.masked(densities)
        for rule in RULES:
            error = relative_error(uploads, entries, rule)
            rows.append(ErrorRow(seed, round_, rule, name, mean, error, bound))
    return rows


def ladder_steps(shares: Sequence[float]) -> list[tuple[int, int]]:
    """Return (rungs raised before, rungs raised now) of every refresh that the ladder allows.

    A refresh that raises nothing changes masks alone.
    """
    rungs = sorted({*shares, 1.0})
    most = len(rungs) - 1 - rungs.index(min(shares))
    return [(start, num) for start in range(most) for num in range(most - start + 1)]


def mismatch_rows(
    uploads: Uploads, shares: Sequence[float], seed: int, round_: int
) -> list[MismatchRow]:
    """Return what uploads in flight add to the error, for every step of the shares' ladder."""
    rows = []
    for start, num in ladder_steps(shares):
        rungs = sorted({*shares, 1.0})
        before, now = raise_rungs(shares, rungs, start), raise_rungs(shares, rungs, start + num)
        increase = (sum(now) - sum(before)) / len(now)
        news = {rule: relative_error(uploads, uploads.masked(now), rule) for rule in RULES}
        for frac in IN_FLIGHT_FRACS:
            mixed = uploads.mixed(now, before, slowest(shares, frac))
            for rule in RULES:
                errors = (news[rule], relative_error(uploads, mixed, rule))
                rows.append(MismatchRow(seed, round_, rule, start, num, frac, increase, *errors))
    return rows


def measure(starts: Iterator[Start]) -> tuple[list[ErrorRow], list[MismatchRow]]:
    """Return all rows of all starts; report progress on stderr."""
    errors: list[ErrorRow] = []
    mismatches: list[MismatchRow] = []
    for start in starts:
        began_s = time.perf_counter()
        config, shares = start.config, start.config.clients.bandwidth_shares()
        wanted = {d for each in assignments(len(shares)).values() for d in each}
        measurement = UploadMeasurement(config, FederatedData(config))
        uploads = measurement.uploads(start.weights, start.round, shares, sorted(wanted))
        errors += error_rows(uploads, config.seed, start.round)
        mismatches += mismatch_rows(uploads, shares, config.seed, start.round)
        spent_s = time.perf_counter() - began_s
        print(f"seed {config.seed}, round {start.round}: {spent_s:.1f} s", file=sys.stderr)
    return errors, mismatches


def _starts(sources: Sequence[str], overrides: Sequence[str]) -> Iterator[Start]:
    """Return finished runs, or the ends of new ones; `seed` and `run.max_rounds` may be lists.

    All files and configurations are read at once, new runs begin when their turn comes.

    Raises:
        ValueError: a wrong word, a file that cannot be read, or a run that has not finished.
    """
    if sources and all(source.endswith(".h5") for source in sources):
        keep_recorded("probe error of a result file", (), overrides)
        return iter([_read_start(source, overrides) for source in sources])
    if len(sources) > 1:
        raise ValueError(
            must("probe", "have one configuration, or results", found=" ".join(sources))
        )
    seeds, others = _take_list(overrides, "seed", DEFAULT_SEEDS)
    rounds, others = _take_list(others, "run.max_rounds", DEFAULT_ROUNDS)
    cells = [(seed, num) for seed in seeds for num in rounds]
    words = [[*others, f"seed={seed}", f"run.max_rounds={num}"] for seed, num in cells]
    return map(_run_start, [load_config(sources[0] if sources else None, each) for each in words])


def _take_list(
    words: Sequence[str], key: str, default: Sequence[int]
) -> tuple[list[Any], list[str]]:
    """Return the values of a key that may take a list, and the other words."""
    own = [word for word in words if word.partition("=")[0] == key]
    others = [word for word in words if word not in own]
    if len(own) > 1:
        raise ValueError(must_be(key, "set only once", found=" and ".join(own)))
    return (parse_values(key, own[0].partition("=")[2]) if own else list(default)), others


def _read_start(path: str, overrides: Sequence[str]) -> Start:
    result = read_result(path)
    if not len(result.weights):
        raise ValueError(must_be(f"{path}: status", "'finished'", result.status))
    config = load_config(result.config, overrides)
    return Start(config, _last_round(result), result.weights)


def _run_start(config: Config) -> Start:
    with tempfile.TemporaryDirectory() as folder:
        results = config.results.model_copy(update={"path": f"{folder}/run.h5"})
        ran = run(config.model_copy(update={"results": results, "progress": "quiet"}))
    return Start(config, _last_round(ran), ran.weights)


def _last_round(result: Result) -> int:
    """Return how many rounds a run had: none where no client was available in time."""
    return int(result.merges["round"].max(initial=0))


def _make_folder(out: str) -> Path:
    """Make a folder, and check that files can be made in it.

    Raises:
        ValueError: they cannot.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        need, because = "a folder to write in", str(error.strerror)
        raise ValueError(must_be("--out", need, out, because=because)) from None
    return folder


def probe_error(words: Sequence[str], out: str) -> str:
    """Write error.html and .md, error.csv, mismatch.csv and two pictures.

    Args:
        words: a configuration or result files, and `key=value`.

    Returns:
        Tables and verdicts as text.

    Raises:
        ValueError: a wrong word, runs that cannot be measured, or `out` cannot be written.
    """
    overrides = [word for word in words if "=" in word]
    with settled():
        starts = _starts([w for w in words if "=" not in w], overrides)
        folder = _make_folder(out)  # what cannot be written is told before minutes pass
        rows = measure(starts)
    command = " ".join(["python -m fedgmr_hpc probe error", *words, "--out", out])
    tables, lines = make_tables(*rows, command), verdicts(*rows)
    write_tables([table for table in tables if table.records], folder, latex=False)
    pictures = [
        Picture("Error against mean density", save(plot_errors(rows[0]), folder / "error.png")),
        Picture(
            "Error added by uploads in flight",
            save(plot_mismatches(rows[1]), folder / "mismatch.png"),
        ),
    ]
    page = Page("Aggregation error of masked uploads", lines, parts=[*tables, *pictures])
    path = write_page(page, folder, "error")
    shown = [f"{table.title}\n{as_text(table.heads, table.rows)}\n" for table in tables]
    return "\n".join([*shown, *lines, f"report: {path}"])
