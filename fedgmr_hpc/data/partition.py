"""Which client holds which sample, which samples validate, and in what order batches come.

Everything here is a pure function of the configuration and the seed (docs/method.md#partitions):
`iid` cuts one permutation into equal slices; `group` deals consecutive writers; `dirichlet` cuts
every class by its own Dirichlet draw and can then sort the clients by size; `shards` cuts the
samples, sorted by label, into equal shards and deals them out (McMahan et al., 2017). The paper has
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
MAX_MOVED_FRAC = 0.02  # of all samples, moved to clients that the last draw left short
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
    """Deal samples to clients.

    With very many clients no Dirichlet draw gives everybody two samples; clients that lack some
    then take them from those with the most, up to 2 % of all samples.

    Args:
        kind: `data.partition`.
        y: [N] classes.
        group: [N] writers or users; used by `group` only.
        num_clients: C.
        alpha: concentration of the Dirichlet draws; used by `dirichlet` only.
        shards_per_client: used by `shards` only.
        sort_by_size: whether client 0 gets the smallest part; used by `dirichlet` only.
        seed: of the run.

    Returns:
        [C] disjoint arrays of sample numbers, at least two in each.

    Raises:
        ValueError: there are too few samples or writers for so many clients.
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
    """Deal shards of the samples in label order; their sizes differ by one sample at most."""
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
    """Give floor(G / C) consecutive writers to each client, and the remainder to the last one."""
    writers, rank = np.unique(group, return_inverse=True)
    owner = np.minimum(rank // (len(writers) // num_clients), num_clients - 1)
    return _split_by_owner(np.arange(len(group)), owner, num_clients)


def _split_by_owner(samples: Longs, owner: Longs, num_clients: int) -> list[Longs]:
    """Return the samples of each owner [C], in the order given."""
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
    """Count each client's samples of each class [classes, C].

    Classes are cut at the rounded-down cumulative shares, so that no sample is lost.
    """
    counts = np.empty((len(class_sizes), num_clients), np.int64)
    for row, size in zip(counts, class_sizes, strict=True):
        share = rng.dirichlet(np.full(num_clients, alpha))
        cuts = np.floor(share.cumsum()[:-1] * size).astype(np.int64)
        row[:] = np.diff(cuts, prepend=0, append=size)
    return counts


def _fill_up(counts: Longs, *, most: int) -> Longs:
    """Move single samples from the largest clients to those below two.

    Args:
        counts: [classes, C] samples of each class.
        most: samples that may move; if more had to, `counts` is returned as it is.
    """
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
    """Hold some of each client's samples back for validation.

    Args:
        parts: [C] samples of each client.
        frac: share of each part, rounded up; one sample always remains for training.
        seed: of the run.

    Returns:
        The training samples [C] and the validation samples [C] of each client, ascending.
    """
    if not 0 <= frac < 1:
        raise ValueError(must_be("data.validation_frac", "at least 0 and less than 1", frac))
    train, val = [], []
    for client, part in enumerate(parts):
        # rounded first, because 0.1 * 70 is a little above 7
        num_val = min(math.ceil(round(frac * len(part), 9)), len(part) - 1)
        order = make_rng(seed, "validation", client).permutation(len(part))
        val.append(part[np.sort(order[:num_val])])
        train.append(part[np.sort(order[num_val:])])
    return train, val


def batch_indices(num_samples: int, *, batch: int, step: int, seed: int, client: int) -> Longs:
    """Return the positions [B] of one local step in an endless sequence of permutations.

    There is one permutation per local epoch. Nothing is remembered between calls, so that any rank
    can take any step of any client.

    Args:
        num_samples: training samples of the client.
        batch: B.
        step: number of the local step since the run began.
        seed: of the run.
        client: whose samples they are.
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
    """Count the samples of each class that each client holds [C, classes]."""
    return np.stack([np.bincount(y[part], minlength=num_classes) for part in parts])
