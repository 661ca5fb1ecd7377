"""Which client holds which sample, which of them validate, and in what order batches come.

Everything here is a pure function of the configuration and the seed (FedGMR experiments, data
section): IID cuts one permutation in equal slices; `group` deals consecutive writers; `dirichlet`
cuts every class by its own Dirichlet draw, then gives the smallest share to client 0; `shards` cuts
the samples sorted by label in equal shards and deals them out (McMahan et al., 2017). The paper has
no validation split; here each client holds some of its samples back.
Shapes: C clients, N samples, G writers, S shards, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.messages import must_be, unknown_choice
from fedgmr_hpc.config.randomness import make_rng

Longs = NDArray[np.int64]

KINDS = ("iid", "group", "dirichlet", "shards")
LABELLED_KINDS = ("dirichlet", "shards")  # these need a class of every sample
MIN_SAMPLES = 2  # one to train on, one to validate with
MAX_DRAWS = 100
MAX_MOVED_FRAC = 0.02  # of all samples, to fill up clients that the last draw left too poor
CACHED_EPOCHS = 256  # of all clients a rank hosts


def make_partition(
    kind: str,
    y: Longs,
    group: NDArray[np.int32],
    *,
    num_clients: int,
    alpha: float,
    shards_per_client: int,
    sort_by_size: bool,
    seed: int,
) -> list[Longs]:
    """[C] disjoint arrays of sample numbers, at least two each; only `dirichlet` uses `alpha`.

    With very many clients no Dirichlet draw gives everybody two samples; then those who lack some
    take them from the richest, up to 2 % of all samples.
    """
    if kind not in KINDS:
        raise ValueError(unknown_choice("data.partition", kind, KINDS))
    if kind == "group":
        num_writers = len(np.unique(group))
        _check_count(num_clients, num_writers, kind, f"one of the {num_writers} writers")
        return _check_sizes(_cut_groups(group, num_clients), kind, alpha)
    need = f"{MIN_SAMPLES} of the {len(y)} samples"
    _check_count(num_clients, len(y) // MIN_SAMPLES, kind, need)
    if kind == "iid":
        return _cut_iid(len(y), num_clients, seed)
    if kind == "shards":
        return _deal_shards(y, num_clients, shards_per_client, seed)
    return _draw_dirichlet(y, num_clients, alpha=alpha, sort_by_size=sort_by_size, seed=seed)


def _check_count(num_clients: int, most: int, kind: str, need: str) -> None:
    if not 1 <= num_clients <= most:
        raise ValueError(
            must_be(
                "clients.count",
                f"between 1 and {most}",
                num_clients,
                when={"data.partition": kind},
                because=f"each client needs {need} (data.max_train, where set, limits them)",
            )
        )


def _check_sizes(parts: list[Longs], kind: str, alpha: float) -> list[Longs]:
    sizes = [len(part) for part in parts]
    if min(sizes) >= MIN_SAMPLES:
        return parts
    poorest = int(np.argmin(sizes))
    drawn = f", data.alpha={alpha:g} ({MAX_DRAWS} draws)" if kind == "dirichlet" else ""
    raise ValueError(
        f"clients.count={len(parts)} with data.partition={kind}{drawn} leaves client {poorest} "
        f"with {sizes[poorest]} of {sum(sizes)} samples, but must leave everybody {MIN_SAMPLES} "
        "or more (one to train, one to validate): lower clients.count, or raise "
        + ("data.alpha, or " if kind == "dirichlet" else "")
        + "data.max_train where it is set"
    )


def _cut_iid(num_samples: int, num_clients: int, seed: int) -> list[Longs]:
    order = make_rng(seed, "partition").permutation(num_samples)
    size = num_samples // num_clients  # the remainder stays unused, as in the paper
    return [order[client * size : (client + 1) * size] for client in range(num_clients)]


def _deal_shards(y: Longs, num_clients: int, shards_per_client: int, seed: int) -> list[Longs]:
    """Shards of the samples in label order; they are equal, or differ by one sample."""
    num_shards, most = num_clients * shards_per_client, len(y) // num_clients
    if num_shards > len(y):
        raise ValueError(
            must_be(
                "data.shards_per_client",
                f"between 1 and {most}",
                shards_per_client,
                when=f"clients.count is {num_clients} and there are {len(y)} samples",
                because="every shard needs a sample (data.max_train, where set, limits them)",
            )
        )
    client = np.empty(num_shards, np.int64)
    dealt = make_rng(seed, "partition").permutation(num_shards)
    client[dealt] = np.arange(num_shards) // shards_per_client
    shard = (np.arange(len(y)) * num_shards + num_shards - 1) // len(y)
    return _split_by_owner(np.argsort(y, kind="stable"), client[shard], num_clients)


def _cut_groups(group: NDArray[np.int32], num_clients: int) -> list[Longs]:
    """floor(G/C) consecutive writers each; the last client also takes the remaining ones."""
    writers, rank = np.unique(group, return_inverse=True)
    owner = np.minimum(rank // (len(writers) // num_clients), num_clients - 1)
    return _split_by_owner(np.arange(len(group)), owner, num_clients)


def _split_by_owner(samples: Longs, owner: Longs, num_clients: int) -> list[Longs]:
    """[C] the samples of each owner, in the order given."""
    ends = np.bincount(owner, minlength=num_clients).cumsum()
    return np.split(samples[np.argsort(owner, kind="stable")], ends[:-1])


def _draw_dirichlet(
    y: Longs, num_clients: int, *, alpha: float, sort_by_size: bool, seed: int
) -> list[Longs]:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(must_be("data.alpha", "a finite number more than 0", alpha))
    labels, class_sizes = np.unique(y, return_counts=True)
    for attempt in range(MAX_DRAWS):
        rng = make_rng(seed, "partition", step=attempt)
        counts = _draw_counts(class_sizes, num_clients, alpha, rng)
        if counts.sum(axis=0).min() >= MIN_SAMPLES:
            break
    counts = _fill_up(counts, most=int(MAX_MOVED_FRAC * len(y)))
    owner = np.concatenate([np.repeat(np.arange(num_clients), row) for row in counts])
    parts = _split_by_owner(np.argsort(y, kind="stable"), owner, num_clients)
    parts = _check_sizes(parts, "dirichlet", alpha)
    return sorted(parts, key=len) if sort_by_size else parts


def _draw_counts(
    class_sizes: Longs, num_clients: int, alpha: float, rng: np.random.Generator
) -> Longs:
    """[classes, C] samples of each class, cut at the rounded-down cumulative shares."""
    counts = np.empty((len(class_sizes), num_clients), np.int64)
    for row, size in zip(counts, class_sizes, strict=True):
        share = rng.dirichlet(np.full(num_clients, alpha))
        cuts = np.floor(share.cumsum()[:-1] * size).astype(np.int64)
        row[:] = np.diff(cuts, prepend=0, append=size)
    return counts


def _fill_up(counts: Longs, *, most: int) -> Longs:
    """Moves single samples from the richest clients to those below two, unless over `most` move."""
    sizes = counts.sum(axis=0)
    poor = np.repeat(np.arange(len(sizes)), np.maximum(MIN_SAMPLES - sizes, 0))
    if len(poor) > most:
        return counts
    counts, move = counts.copy(), np.array([-1, 1])
    for client in poor:
        richest = int(sizes.argmax())
        label = int(counts[:, richest].argmax())
        counts[label, np.array([richest, client])] += move
        sizes[[richest, client]] += move
    return counts


def cut_validation(
    parts: Sequence[Longs], *, frac: float, seed: int
) -> tuple[list[Longs], list[Longs]]:
    """(train, validation) of each client: ceil(frac n) validate, but one sample always trains."""
    if not 0 <= frac < 1:
        raise ValueError(must_be("data.validation_frac", "at least 0 and less than 1", frac))
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
        found = f"{num_samples} and {batch}"
        raise ValueError(must_be("samples and batch", "at least 1", found=found))
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
