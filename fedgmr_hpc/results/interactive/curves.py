"""Runs as curves of an interactive page, and what tells them apart.

Shapes: E evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.config.yaml_file import parse
from fedgmr_hpc.reporting.interactive import Chart, Column, Curve
from fedgmr_hpc.results.labels import names_of
from fedgmr_hpc.results.series import (
    client_steps,
    own_accuracies,
    scored,
    time_name,
    traffic_bytes,
)
from fedgmr_hpc.storage.hdf5_file import describe_error, open_for_reading
from fedgmr_hpc.storage.liveness import age_s, shown_status
from fedgmr_hpc.storage.reader import DAMAGE, Result
from fedgmr_hpc.storage.schema import TABLES, Columns, columns_of

SCORES = ("version", "now_s", "test_accuracy", "val_accuracy", "mean_density")
READ = {  # all that a curve is made of
    "merges": ("version", "wall_s", "server_up_bytes", "server_down_bytes"),
    "evaluations": SCORES,
    "looks": SCORES,
    "submodels": ("version", "num_clients", "test_accuracy"),
    "updates": ("version", "num_samples"),
}
NOTE = (
    "Traffic: on the server's links, both directions, in MB of 10^6 bytes; client steps: local "
    "steps of the updates that were merged so far; own sub-models: test accuracy of the server's "
    "model cut as for each client (eval.submodels), mean over clients, and of those with the least."
)


def chart_of(results: Sequence[Result], names: Sequence[str]) -> Chart:
    """Return the chart of runs, each under a name of its own."""
    configs = [result.config for result in results]
    return Chart("Runs", columns(configs), curves(results, names), [NOTE])


def columns(configs: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return what can be drawn of runs."""
    return [
        Column("time_s", time_name(*configs), "s", "x"),
        Column("traffic_mb", "traffic", "MB", "x"),
        Column("client_steps", "client steps", "", "x", decimals=0),
        Column("test", "test accuracy", "%", "y", is_accuracy=True),
        Column("test_error", "test error", "%", "y", is_log=True, is_read=False),
        Column("val", "validation accuracy", "%", "y", is_accuracy=True),
        Column("density", "mean density", "", "y", decimals=3, is_step=True),
        Column("own_mean", "own sub-models, mean", "%", "y", is_accuracy=True),
        Column("own_worst", "own sub-models, worst", "%", "y", is_accuracy=True),
    ]


def curve(
    result: Result, *, name: str, method: str, condition: str = "", seed: object = "-"
) -> Curve:
    """Return the curve of a run; accuracies in percent."""
    rows = scored(result)
    own_mean, own_worst = own_accuracies(result, rows["version"])
    test = 100 * rows["test_accuracy"]
    values = {
        "time_s": rows["now_s"],
        "traffic_mb": traffic_bytes(result, rows["version"]) / 1e6,
        "client_steps": client_steps(result, rows["version"]),
        "test": test,
        "test_error": 100 - test,
        "val": 100 * rows["val_accuracy"],
        "density": rows["mean_density"],
        "own_mean": 100 * own_mean,
        "own_worst": 100 * own_worst,
    }
    return Curve(name, method, condition, str(seed), state_of(result), values)


def state_of(result: Result) -> str:
    """Return the status that is shown; a file that was deleted since is as old as can be."""
    age = math.inf
    with suppress(OSError):
        age = age_s(result.path)
    return shown_status(result.status, age, result.merges["wall_s"], result.config)


def curves(results: Sequence[Result], names: Sequence[str]) -> list[Curve]:
    """Return the curves of runs, called as in figures."""
    methods = names_of(results)
    return [
        curve(result, name=name, method=method, seed=result.config.get("seed", "-"))
        for result, name, method in zip(results, names, methods, strict=True)
    ]


def read_light(path: Path) -> Result:
    """Read of a run only what curves are made of, in milliseconds; checksums are not compared.

    Raises:
        ValueError: it cannot be read just now; says why.
    """
    try:
        with open_for_reading(path) as file:
            return _read_open(path, file)
    except DAMAGE as error:
        raise ValueError(f"results {path}: cannot be read ({describe_error(error)})") from error


def _read_open(path: Path, file: Any) -> Result:
    if "committed" not in file:
        raise ValueError(f"results {path}: not the result file of one run")
    num_rows = dict(zip(TABLES, file["committed"][...].tolist(), strict=False))
    tables: dict[str, Any] = {t: _columns(file, t, num_rows.get(t, 0)) for t in TABLES}
    text = file["config"][()].decode()
    return Result(
        path=path,
        status=file["status"][()].decode(),
        config_yaml=text,
        config=parse(text) or {},
        provenance={},
        ranks={},
        weights=np.zeros(0, np.float32),
        layout_json="",
        **tables,
    )


def _columns(file: Any, table: str, num_rows: int) -> Columns:
    """Return the columns of `READ`; those that an older file lacks are empty."""
    types = {column.name: column.dtype for column in columns_of(TABLES[table])}
    return {
        name: file[table][name][:num_rows] if table in file else np.zeros(0, types[name])
        for name in READ.get(table, ())
    }
