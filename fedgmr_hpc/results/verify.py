"""What `results verify` checks in a result file: each finding is one line.

Structure first (a whole file, every dataset of the schema, columns as long as `/committed` says),
then the checksums, then what the tables say of each other: a configuration that holds, the event
log's chain of hashes (replay.py), versions without gaps, as many updates as every merge counts,
bytes that add up and never shrink, finite weights, and a final model with the hash that its last
evaluation has. Plug-ins are not imported: what only they know, whether a configuration that names
some holds and the chain of its events begins with it, is left out.

Shapes: N rows of a table, C clients, P model weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.runtime.replay import EventLog
from fedgmr_hpc.storage.hdf5_file import UNREADABLE, describe_error, open_for_reading
from fedgmr_hpc.storage.reader import Result, doubt, read_result, refuse_cut
from fedgmr_hpc.storage.schema import (
    FORMAT,
    OTHER_COLUMNS,
    TABLES,
    UNGUARDED_FORMAT,
    RankRow,
    columns_of,
)

SCORED = ("evaluations", "looks", "submodels")  # tables of evaluations
NEVER_SHRINK = ("now_s", "round", "server_up_bytes", "server_down_bytes", "up_bytes", "down_bytes")


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Return all findings in a result file, one line each; empty where it is sound.

    Raises:
        ValueError: there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"results {path}: no such file")
    try:
        return _structure(Path(path)) or _contents(Path(path))
    except ValueError as error:
        return str(error).splitlines()
    except OSError as error:
        return [f"results {path}: cannot be read ({describe_error(error)})"]


def remark(path: str | os.PathLike[str]) -> str:
    """Return what is to be said of a sound file: that it is of the time before there were
    checksums, and that its configuration needs plug-ins.
    """
    result = read_result(path)
    text = "" if result.is_guarded else ", but without checksums, which its format lacks"
    if _needs_plugins(result):
        text += "; its configuration was not checked, since verify imports no plug-ins"
    return text


def _structure(path: Path) -> list[str]:
    """Find which datasets there are, and how long."""
    refuse_cut(path)
    try:
        with open_for_reading(path) as file:
            return [f"results {path}: {line}" for line in _group_structure(file)]
    except UNREADABLE as error:
        return [f"results {path}: cannot be read ({describe_error(error)})"]


def _contents(path: Path) -> list[str]:
    """Find faults in what the datasets hold."""
    result = read_result(path)
    return [f"results {path}: {line}" for check in CHECKS for line in check(result)]


def _group_structure(group: Any) -> Iterator[str]:
    if "committed" not in group:
        return  # no result file, as the reader says
    formats = [name.encode() for name in (FORMAT, UNGUARDED_FORMAT)]
    if group.attrs.get("format") not in formats:
        yield must_be("@format", repr(FORMAT.encode()), group.attrs.get("format"))
    status = group["status"][()].decode()
    committed = dict(zip(TABLES, group["committed"][...].tolist(), strict=False))
    for table, row_type in {**TABLES, "ranks": RankRow}.items():
        if table in group:
            yield from _table_structure(group[table], table, row_type, committed.get(table), status)
    if "checksums" in group:
        yield from _lost_blocks(group, committed)


def _lost_blocks(group: Any, committed: dict[str, int]) -> Iterator[str]:
    """Note that a block is committed before the next one is written, whenever a run is killed."""
    for table, num_rows in committed.items():
        stops = group["checksums"][table][:, 0] if table in group["checksums"] else []
        if len(stops) > 1 and num_rows < stops[-2]:
            yield f"{table}: {num_rows} rows are committed, checksums are there for {stops[-1]}"


def _table_structure(
    group: Any, table: str, row_type: type[Any], committed: int | None, status: str
) -> Iterator[str]:
    """Check a run that continues or was killed, which may have begun rows behind the committed
    ones.
    """
    names = {column.name for column in columns_of(row_type)}
    for name in sorted((names ^ group.keys()) - OTHER_COLUMNS.get(table, set())):
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


def _needs_plugins(result: Result) -> bool:
    return any(result.config.get(key) for key in ("plugins", "plugin_digests"))


def _config(result: Result) -> Iterator[str]:
    if _needs_plugins(result):
        return
    try:
        make_config(result.config)
    except ValueError as error:
        yield from (f"config: {line}" for line in str(error).splitlines())


def _event_log(result: Result) -> Iterator[str]:
    needs_plugins, events = _needs_plugins(result), result.events
    try:
        config = Config() if needs_plugins else make_config(result.config)
    except ValueError:
        return  # said by `_config`
    names = ("kind", "now_s", "ready_s", "client")
    rows = list(zip(*(events[name].tolist() for name in names), strict=True))
    chains = events["chain_xxh3"].tolist()
    log = EventLog(config)
    if rows and EventLog(config).link(*rows[0]).chain_xxh3 != chains[0]:
        log = EventLog(config, counts_unused=True)  # of when keys without effect still counted
    for index, (row, chain) in enumerate(zip(rows, chains, strict=True)):
        if log.link(*row).chain_xxh3 == chain:
            continue
        if index:
            yield f"events: row {index} of {len(events['kind'])} breaks the chain of hashes"
            return
        if not needs_plugins:
            yield (
                "events: the chain of hashes does not begin with this configuration, which was "
                "changed or written by another version of fedgmr_hpc"
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
        yield must_be(f"{what} in row {row}", str(wanted[row]), found[row])


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
        for name in columns.keys() & {"val_accuracy", "test_accuracy"}:
            if ((columns[name] < 0) | (columns[name] > 1)).any():
                yield f"{table}/{name}: beyond 0 to 1"


def _model(result: Result) -> Iterator[str]:
    weights = result.weights
    if result.status == "finished" and not len(weights):
        yield "model/weights: missing from a finished run"
    if not np.isfinite(weights).all():
        yield f"model/weights: {np.count_nonzero(~np.isfinite(weights))} are not finite"
    try:
        json.loads(result.layout_json)
    except ValueError:
        yield "model/layout: no JSON"
    if len(weights) and (fault := doubt(result)):
        yield f"model/weights: {fault}"


CHECKS: tuple[Callable[[Result], Iterator[str]], ...] = (
    _config,
    _event_log,
    _merges,
    _updates,
    _evaluations,
    _model,
)
