"""Tables with one value a client and row, as plain columns of one value a row.

Shapes: N rows of a table, C clients.
"""

from __future__ import annotations

import numpy as np

from fedgmr_hpc.storage.schema import Columns


def wide(columns: Columns) -> Columns:
    """Return [N] columns: each of [N, C] becomes `NAME_0` to `NAME_C-1`."""
    plain: Columns = {}
    for name, values in columns.items():
        if values.ndim == 1:
            plain[name] = values
        else:
            plain |= {f"{name}_{client}": values[:, client] for client in range(len(values.T))}
    return plain


def long(columns: Columns) -> Columns:
    """Return [N C] columns: each row once for each client, with its number in `client`.

    A table without columns [N, C] is returned as it is.
    """
    counts = {len(values.T) for values in columns.values() if values.ndim == 2}
    if not counts:
        return columns
    num_clients = counts.pop()
    plain = {
        name: np.repeat(values, num_clients) if values.ndim == 1 else values.reshape(-1)
        for name, values in columns.items()
    }
    num_rows = len(next(iter(columns.values())))
    return {"client": np.tile(np.arange(num_clients), num_rows), **plain}
