"""Which client holds which sample, which of them validate, and in what order batches come.

Everything here is a pure function of the configuration and the seed (FedGMR experiments, data
section): IID cuts one permutation in equal slices; `group` deals consecutive writers; `dirichlet`
cuts every class by its own Dirichlet draw, then gives the smallest share to client 0. The paper has
no validation split; here each client holds some of its samples back.
Shapes: C clients, N samples, G writers, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.records import make_rng

Longs = NDArray[np.int64]

KINDS = ("iid", "group", "dirichlet")
MIN_SAMPLES = 2  # one to train on, one to validate with
MAX_DRAWS = 100
CACHED_EPOCHS = 256  # of all clients a rank hosts


def make_partition(
    kind: str,
    y: Longs,
    group: NDArray[np.int32],
    *,
    num_clients: int,
    alpha: float,
    sort_by_size: bool,
    seed: int,
) -> list[Longs]:
    """[C] disjoint arrays of sample numbers, at least two each; only `dirichlet` uses `alpha`."""
    if kind not in KINDS:
        raise ValueError(f"data.partition: got {kind!r}, allowed: {', '.join(KINDS)}")
    if kind == "group":
        num_writers = len(np.unique(group))
        _check_count(num_clients, num_writers, kind, f"one of the {num_writers} writers")
        return _check_sizes(_cut_groups(group, num_clients), kind, alpha)
    need = f"{MIN_SAMPLES} of the {len(y)} samples"
    _check_count(num_clients, len(y) // MIN_SAMPLES, kind, need)
    if kind == "iid":
        return _cut_iid(len(y), num_clients, seed)
    return _draw_dirichlet(y, num_clients, alpha=alpha, sort_by_size=sort_by_size, seed=seed)


def _check_count(num_clients: int, most: int, kind: str, need: str) -> None:
    if not 1 <= num_clients <= most:
        raise ValueError(
            f"clients.count: got {num_clients}, allowed: 1 to {most}; with data.partition={kind} "
            f"each client needs {need} that data.max_train admits"
        )


def _check_sizes(parts: list[Longs], kind: str, alpha: float) -> list[Longs]:
    sizes = [len(part) for part in parts]
    if min(sizes) >= MIN_SAMPLES:
        return parts
    poorest = int(np.argmin(sizes))
    drawn = f", data.alpha={alpha:g} ({MAX_DRAWS} draws)" if kind == "dirichlet" else ""
    raise ValueError(
        f"clients.count={len(parts)} with data.partition={kind}{drawn} leaves client {poorest} "
        f"with {sizes[poorest]} of the samples that data.max_train admits, needed: {MIN_SAMPLES} "
        "or more (one to train, one to validate); lower clients.count, or raise data.max_train"
        + (" or data.alpha" if kind == "dirichlet" else "")
    )


def _cut_iid(num_samples: int, num_clients: int, seed: int) -> list[Longs]:
    order = make_rng(seed, "partition").permutation(num_samples)
    size = num_samples // num_clients  # the remainder stays unused, as in the paper
    return [order[client * size : (client + 1) * size] for client in range(num_clients)]


def _cut_groups(group: NDArray[np.int32], num_clients: int) -> list[Longs]:
    """floor(G/C) consecutive writers each; the last client also takes the remaining ones."""
    writers, rank = np.unique(group, return_inverse=True)
    owner = np.minimum(rank // (len(writers) // num_clients), num_clients - 1)
    return [np.flatnonzero(owner == client) for client in range(num_clients)]


def _draw_dirichlet(
    y: Longs, num_clients: int, *, alpha: float, sort_by_size: bool, seed: int
) -> list[Longs]:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"data.alpha: got {alpha}, allowed: a finite number above 0")
    for attempt in range(MAX_DRAWS):
        parts = _cut_dirichlet(y, num_clients, alpha, make_rng(seed, "partition", step=attempt))
        if min(map(len, parts)) >= MIN_SAMPLES:
            break
    parts = _check_sizes(parts, "dirichlet", alpha)
    return sorted(parts, key=len) if sort_by_size else parts


def _cut_dirichlet(
    y: Longs, num_clients: int, alpha: float, rng: np.random.Generator
) -> list[Longs]:
    pieces: list[list[Longs]] = [[] for _ in range(num_clients)]
    for label in np.unique(y):
        own = np.flatnonzero(y == label)
        share = rng.dirichlet(np.full(num_clients, alpha))
        cuts = np.floor(share.cumsum()[:-1] * len(own)).astype(np.int64)
        for client, piece in enumerate(np.split(own, cuts)):
            pieces[client].append(piece)
    return [np.concatenate(own) for own in pieces]


def cut_validation(
    parts: Sequence[Longs], *, frac: float, seed: int
) -> tuple[list[Longs], list[Longs]]:
    """(train, validation) of each client: ceil(frac n) validate, but one sample always trains."""
    if not 0 <= frac < 1:
        raise ValueError(f"data.validation_frac: got {frac}, allowed: 0 to less than 1")
    train, val = [], []
    for client, part in enumerate(parts):
        # rounded first: 0.1 * 70 is a little above 7
        num_val = min(math.ceil(round(frac * len(part), 9)), len(part) - 1)
        order = make_rng(seed, "validation", client).permutation(len(part))
        val.append(part[np.sort(order[:num_val])])
        train.append(part[np.sort(order[num_val:])])
    return train, val


def batch_indices(num_samples: int, *, batch: int, step: int, seed: int, client: int) -> Longs:
    """[B] positions of local step `step`: an endless row of permutations, one per local epoch.

    Nothing is remembered between calls, so any rank can make any step of any client.
    """
    if num_samples < 1 or batch < 1:
        raise ValueError(f"samples and batch: got {num_samples} and {batch}, allowed: at least 1")
    start, stop = step * batch, (step + 1) * batch
    pieces = []
    for epoch in range(start // num_samples, (stop - 1) // num_samples + 1):
        first = epoch * num_samples
        order = _epoch_order(num_samples, seed, client, epoch)
        pieces.append(order[max(start - first, 0) : stop - first])
    return np.concatenate(pieces)


@lru_cache(maxsize=CACHED_EPOCHS)
def _epoch_order(num_samples: int, seed: int, client: int, epoch: int) -> Longs:
    order = make_rng(seed, "batch", client, epoch).permutation(num_samples)
    order.flags.writeable = False  # shared by every later call
    return order


def class_counts(parts: Sequence[Longs], y: Longs, num_classes: int) -> Longs:
    """[C, classes] samples of each class a client holds."""
    return np.stack([np.bincount(y[part], minlength=num_classes) for part in parts])
