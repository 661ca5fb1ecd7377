"""The tables of a result file: which there are, their columns, and what each dataset means.

Up and down are seen from the one whose link it is: up is what it sends, down what it receives. So
`up_bytes` and `down_bytes` are a client's, `server_up_bytes` is what the server sends to clients.

Shapes: C clients, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_args, get_type_hints

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.storage.hdf5_file import fixed_text
from fedgmr_hpc.storage.rows import (
    CheckpointRow,
    EvaluationRow,
    EventRow,
    LookRow,
    MergeRow,
    SubmodelRow,
    TransferRow,
    UpdateRow,
)

FORMAT = "fedgmr_hpc results 3"
UNGUARDED_FORMAT = "fedgmr_hpc results 2"  # without checksums
NAME_BYTES = 256  # host and device names of /ranks
LONG_TEXTS, LONG_BYTES = ("modules", "versions"), 2048

Row = MergeRow | EvaluationRow | UpdateRow | EventRow | TransferRow | CheckpointRow | SubmodelRow
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RankRow:
    """What one rank did in the whole run, and with what. `overhead_bytes`: moved less
    charged. That is what only placement and evaluation caused, without the positions that several
    clients of a rank are charged for, but that are sent once. The texts at the end:
    provenance.rank_software."""

    rank: int
    host: str
    device: str
    sent_bytes: int
    received_bytes: int
    overhead_bytes: int
    num_tasks: int
    train_s: float
    wait_s: float
    rss_bytes: int
    transport: str = ""
    mpi_library: str = ""
    modules: str = ""
    gpu: str = ""
    gpu_driver: str = ""
    cuda_graphs: str = ""
    versions: str = ""
    kernels: str = ""


TABLES: dict[str, type[Any]] = {
    "merges": MergeRow,
    "evaluations": EvaluationRow,
    "updates": UpdateRow,
    "events": EventRow,
    "transfers": TransferRow,
    "checkpoints": CheckpointRow,
    "looks": LookRow,
    "submodels": SubmodelRow,
}
PARTS = (*TABLES, "ranks", "model")  # all that comes in rows under checksums
OTHER_COLUMNS = {  # that older files lack, or have besides
    "submodels": {"val_accuracy", "val_loss"},
    "ranks": {
        *("transport", "mpi_library", "modules", "gpu", "gpu_driver", "cuda_graphs", "versions"),
        "kernels",
    },
}
TABLE_OF = {row_type: table for table, row_type in TABLES.items()}
_LATER_TABLES = {"checkpoints", "looks", "submodels"}  # that older files lack
REQUIRED = (
    *("status", "committed", "config", "provenance"),
    *(table for table in TABLES if table not in _LATER_TABLES),
    *("ranks", "model/weights"),
)

# What the datasets mean: by column, or by path where a table means something of its own.
MEANINGS = {
    "status": "running, finished, failed: reason, or checkpointed: when and by what",
    "committed": "rows of each table that count, in the order of the schema",
    "config": "resolved configuration, YAML",
    "model/weights": "final weights in natural order; empty before the end",
    "model/layout": "names, shapes and offsets of the weights, JSON",
    "checksums": "a row a block: the row behind its last one, xxh3 of its rows",
    "checksums/texts": "xxh3 of configuration, layout and provenance",
    "checksums/status": "xxh3 of the status that the run has ended with",
    "version": "model version, the number of merges so far",
    "round": "rounds completed: merges, or updates merged over active clients",
    "now_s": "time of the run's clock, unscaled, since its start",
    "wall_s": "wall time since this process began the run",
    "num_merged": "updates merged into this version",
    "server_up_bytes": "what the server has sent since the start, a broadcast counted once",
    "server_down_bytes": "what the server has received since the start",
    "staleness": "age of each client's last merged update, which goes on to grow until its next; "
    "0 for none yet. An update's age when it was first merged is its version - base_version in "
    "`updates`",
    "density": "density of the update's sub-model",
    "weight": "normalised aggregation weight of each client's updates together",
    "up_bytes": "what the client sent for this update",
    "down_bytes": "what the client received for this update",
    "merges/density": "density with which each client is dispatched next",
    "merges/up_bytes": "what each client has sent since the start",
    "merges/down_bytes": "what each client has received since the start",
    "wall_rss_bytes": "resident memory of the server's process",
    "val_accuracy": "share of the validation samples that the server's model gets right",
    "val_loss": "mean loss on the validation samples",
    "test_accuracy": "share of the test samples that the server's model gets right",
    "test_loss": "mean loss on the test samples",
    "mean_density": "mean density over the clients",
    "model_xxh3": "xxh3 of the flat float32 weights in natural order",
    "looks/now_s": "time of the look, the same for every method",
    "looks/version": "newest version merged at or before the look, whose scores these are",
    "submodels/density": "density to which the version is cut, that of a class of clients",
    "submodels/now_s": "time of the look, or of the refresh, for which the version is cut",
    "submodels/test_accuracy": "share of the test samples that the sub-model gets right",
    "num_kept": "prunable weights that the sub-model keeps",
    "num_clients": "clients of the class, which begin with this density",
    "client": "client number from 0 on; in events -1 for none",
    "base_version": "version that the client trained from",
    "updates/version": "version that the update was first merged into, 0 for none",
    "mask_id": "number of the mask set",
    "train_loss": "mean training loss of the local steps",
    "score": "validation accuracy of the local model, NaN where not measured",
    "num_samples": "training samples of the local steps",
    "wall_overrun": "1 where training took longer than the wall clock allows it, else 0",
    "wall_rank": "rank that trained it",
    "kind": "0 delivered, 1 closed, 2 evaluated, 3 lost, 4 resumed",
    "ready_s": "when the merge of a closed window is done, else now_s",
    "chain_xxh3": "xxh3 over the configuration and all rows up to this one",
    "transfers/now_s": "when the last byte was there, unscaled",
    "is_upload": "1 for an upload, 0 for a download",
    "bytes": "length of the transfer",
    "requested_bytes_per_s": "rate that its links allowed, unscaled",
    "achieved_bytes_per_s": "rate that was measured, unscaled",
    "queue_wait_s": "from being ready to go until its links took it up, unscaled",
    "num_resent": "times it was sent before and came damaged",
    "checkpoints/version": "newest version that the checkpoint holds",
    "checkpoints/now_s": "when that version existed",
    "is_resume": "1 where the run went on from it, 0 where it was written",
    "checkpoints/bytes": "size of the checkpoint's file",
    "wall_wait_s": "wall time until the ranks had done what they were given",
    "wall_write_s": "wall time of writing, or of reading where the run went on",
    "rank": "rank; 0 is the server",
    "transport": "how the rank talks",
    "mpi_library": "MPI library and version that it has loaded, empty without one",
    "modules": "environment modules loaded, as LOADEDMODULES has them",
    "gpu": "model of its CUDA device, empty on the CPU",
    "gpu_driver": "version of the device's driver",
    "cuda_graphs": "whether local steps were replayed, or why not; empty without a GPU",
    "versions": "versions of the packages that compute and talk",
    "kernels": "what computes compact layers, empty where none can be",
    "host": "name of the rank's host",
    "device": "what the rank computed on",
    "sent_bytes": "bytes that the rank sent, uncharged ones included",
    "received_bytes": "bytes that the rank received, uncharged ones included",
    "overhead_bytes": "moved by rank 0, less what clients were charged",
    "num_tasks": "tasks done; of the server, versions made",
    "train_s": "wall time spent training",
    "wait_s": "wall time spent waiting",
    "rss_bytes": "resident memory of the process",
}
_UNITS = {  # by the end of the name, the first that fits; 1 for shares, numbers and words
    "bytes_per_s": "bytes/s",
    "bytes": "bytes",
    "_s": "s",
    "staleness": "versions",
    "_loss": "nats",
}


class Column(NamedTuple):
    """One dataset: its type, and whether a row holds one value a client."""

    name: str
    dtype: np.dtype[Any]
    per_client: bool


def columns_of(row_type: type[Any]) -> list[Column]:
    """Return the columns of a row dataclass, from its annotations, in field order."""
    hints = get_type_hints(row_type)
    return [_column(field.name, hints[field.name]) for field in fields(row_type)]


def _column(name: str, hint: Any) -> Column:
    if get_args(hint):
        return Column(name, np.dtype(_innermost(hint)), True)
    if name.endswith("_xxh3"):
        return Column(name, np.dtype(np.uint64), False)
    name_type = h5py.string_dtype("utf-8", LONG_BYTES if name in LONG_TEXTS else NAME_BYTES)
    kinds = {int: np.dtype(np.int64), float: np.dtype(np.float64), str: name_type}
    return Column(name, kinds[hint], False)


def _innermost(hint: Any) -> Any:
    """Return the scalar of NDArray[scalar], which is ndarray[shape, dtype[scalar]] or, since
    numpy 2.5, an alias of it.
    """
    while arguments := get_args(hint):
        hint = arguments[-1]
    return hint


def describe_datasets(group: h5py.Group) -> None:
    """Give every dataset of a run's group its unit and its meaning."""

    def describe(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            item.attrs["unit"] = fixed_text(unit_of(path))
            item.attrs["meaning"] = fixed_text(meaning_of(path))

    group.visititems(describe)


def unit_of(path: str) -> str:
    """Return the unit of a dataset, from the end of its name."""
    return next((unit for end, unit in _UNITS.items() if path.endswith(end)), "1")


def meaning_of(path: str) -> str:
    """Return what a dataset holds: as its path, its name or its group has it; "" where nothing
    does.
    """
    group, _, name = path.rpartition("/")
    return next((MEANINGS[key] for key in (path, name, group) if key in MEANINGS), "")
