"""What `results verify` checks in a result file: each finding is one line.

Structure first (every dataset of the schema, columns as long as `/committed` says), then what the
tables say of each other: a configuration that holds, the event log's chain of hashes (replay.py),
versions without gaps, as many updates as every merge counts, bytes that add up and never shrink,
finite weights, and a final model with the hash that its last evaluation has.

Shapes: N rows of a table, C clients, P model weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fedgmr_hpc.configfile import make_config
from fedgmr_hpc.hdf5file import UNREADABLE, describe_error, open_for_reading
from fedgmr_hpc.replay import EventLog
from fedgmr_hpc.result import Result
from fedgmr_hpc.resultfiles import read_runs
from fedgmr_hpc.schema import FORMAT, TABLES, RankRow, columns_of

SCORED = ("evaluations", "looks", "submodels")  # tables of evaluations
NEVER_SHRINK = ("now_s", "round", "server_up_bytes", "server_down_bytes", "up_bytes", "down_bytes")


def verify(path: str | os.PathLike[str]) -> list[str]:
    """All findings in a result file or merged file, one line each; empty where it is sound.

    Raises:
        ValueError: there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"results {path}: no such file")
    try:
        runs = read_runs(path)
        return [finding for name in runs for finding in _verify_run(Path(path), name, runs)]
    except ValueError as error:
        return str(error).splitlines()


def _verify_run(path: Path, name: str, runs: dict[str, Result]) -> list[str]:
    result = runs[name]
    with open_for_reading(path) as file:
        group = file[name] if "status" not in file else file
        findings = list(_structure(group, result.status))
    if not findings:  # the checks count on it
        findings = [line for check in CHECKS for line in check(result)]
    prefix = f"results {path}" + (f" run {name}" if len(runs) > 1 else "")
    return [f"{prefix}: {line}" for line in findings]


def _structure(group: Any, status: str) -> Iterator[str]:
    if group.attrs.get("format") != FORMAT.encode():
        yield f"@format: got {group.attrs.get('format')!r}, allowed: {FORMAT.encode()!r}"
    committed = dict(zip(TABLES, group["committed"][...].tolist(), strict=False))
    for table, row_type in {**TABLES, "ranks": RankRow}.items():
        if table in group:
            yield from _table_structure(group[table], table, row_type, committed.get(table), status)


def _table_structure(
    group: Any, table: str, row_type: type[Any], committed: int | None, status: str
) -> Iterator[str]:
    """A run that goes on, or was killed, may have begun rows behind the committed ones."""
    names = {column.name for column in columns_of(row_type)}
    for name in sorted(names ^ group.keys()):
        yield f"{table}/{name}: {'missing' if name in names else 'not in the schema'}"
    try:
        sizes = {name: len(group[name]) for name in group}
    except UNREADABLE as error:
        yield f"{table}: unreadable ({describe_error(error)})"
        return
    wanted = max(sizes.values()) if committed is None else committed
    for name, size in sizes.items():
        if size < wanted or (size > wanted and status == "finished"):
            yield f"{table}/{name}: {size} rows, {wanted} are committed"


def _config(result: Result) -> Iterator[str]:
    try:
        make_config(result.config)
    except ValueError as error:
        yield from (f"config: {line}" for line in str(error).splitlines())


def _event_log(result: Result) -> Iterator[str]:
    try:
        log = EventLog(make_config(result.config))
    except ValueError:
        return  # said by `_config`
    events = result.events
    names = ("kind", "now_s", "ready_s", "client")
    rows = zip(*(events[name].tolist() for name in names), strict=True)
    for index, (row, chain) in enumerate(zip(rows, events["chain_xxh3"].tolist(), strict=True)):
        if log.link(*row).chain_xxh3 == chain:
            continue
        if index:
            yield f"events: row {index} of {len(events['kind'])} breaks the chain of hashes"
            return
        yield (
            "events: the chain of hashes does not begin with this configuration, which was changed "
            "or written by another version of fedgmr_hpc"
        )
        log.restore({"chain": chain})


def _merges(result: Result) -> Iterator[str]:
    merges = result.merges
    versions = merges["version"]
    if not np.array_equal(versions, np.arange(1, len(versions) + 1)):
        yield f"merges/version: not 1 to {len(versions)} without a gap"
    for name in NEVER_SHRINK:
        falls = np.diff(merges[name], axis=0) < 0
        if falls.any():
            yield f"merges/{name}: falls in row {np.argwhere(falls)[0][0] + 1}"
    received = merges["up_bytes"].sum(axis=1)
    yield from _first_unequal("merges/up_bytes: sum", received, merges["server_down_bytes"])
    for name in ("weight", "density"):
        if not np.isfinite(merges[name]).all():
            yield f"merges/{name}: not finite in row {_first(~np.isfinite(merges[name]))}"


def _first_unequal(what: str, found: Any, wanted: Any) -> Iterator[str]:
    if (unequal := found != wanted).any():
        row = _first(unequal)
        yield f"{what} is {found[row]} in row {row}, allowed: {wanted[row]}"


def _first(wrong: Any) -> int:
    return int(np.argwhere(wrong)[0][0])


def _updates(result: Result) -> Iterator[str]:
    merges, updates = result.merges, result.updates
    versions = merges["version"]
    counts = np.array([np.count_nonzero(updates["version"] == v) for v in versions], np.int64)
    yield from _first_unequal("updates: count of a merge", counts, merges["num_merged"])
    num_clients = merges["up_bytes"].shape[1]
    if ((updates["client"] < 0) | (updates["client"] >= num_clients)).any():
        yield f"updates/client: beyond 0 to {num_clients - 1}"
    if (updates["version"] * (updates["base_version"] >= updates["version"])).any():
        yield "updates/base_version: not before the version of its merge"


def _evaluations(result: Result) -> Iterator[str]:
    known = {0, *result.merges["version"].tolist()}
    for table in SCORED:
        columns = getattr(result, table)
        versions = columns["version"].tolist()
        if result.status == "finished" and not known.issuperset(versions):
            yield f"{table}/version: {max(set(versions) - known)} is no merge's"
        for name in ("version", "now_s"):
            if (np.diff(columns[name]) < 0).any():
                yield f"{table}/{name}: falls in row {_first(np.diff(columns[name]) < 0) + 1}"
        for name in ("val_accuracy", "test_accuracy"):
            if ((columns[name] < 0) | (columns[name] > 1)).any():
                yield f"{table}/{name}: beyond 0 to 1"


def _model(result: Result) -> Iterator[str]:
    weights, versions = result.weights, result.evaluations["version"]
    if result.status == "finished" and not len(weights):
        yield "model/weights: missing from a finished run"
    if not np.isfinite(weights).all():
        yield f"model/weights: {np.count_nonzero(~np.isfinite(weights))} are not finite"
    try:
        json.loads(result.layout_json)
    except ValueError:
        yield "model/layout: no JSON"
    last = result.merges["version"][-1:].tolist() or [0]
    if len(weights) and versions[-1:].tolist() == last:
        if xxhash.xxh3_64_intdigest(weights.tobytes()) != result.evaluations["model_xxh3"][-1]:
            yield f"model/weights: not those of version {last[0]}, by evaluations/model_xxh3"


CHECKS: tuple[Callable[[Result], Iterator[str]], ...] = (
    _config,
    _event_log,
    _merges,
    _updates,
    _evaluations,
    _model,
)
