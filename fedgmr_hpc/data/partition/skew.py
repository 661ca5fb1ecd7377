"""Uneven partitions: by the labels of samples, or by the sizes of parts.

Shapes: C clients, N samples, L classes, K classes of a client, S shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.data.partition.sizes import MIN_SAMPLES, Longs, check_sizes, split_by_owner

MAX_DRAWS = 100
MAX_MOVED_FRAC = 0.02  # of all samples, moved to clients that the last draw left short
ORDER_STEP = 1004  # a stream of its own, apart from the attempts at a draw


def deal_shards(y: Longs, num_clients: int, shards_per_client: int, seed: int) -> list[Longs]:
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
    return split_by_owner(np.argsort(y, kind="stable"), client[shard], num_clients)


def deal_classes(y: Longs, num_clients: int, classes_per_client: int, seed: int) -> list[Longs]:
    """Give each client K classes, and the clients of a class equal random parts of it.

    Each class has as many clients as any other, or one more, so that no sample is left.
    """
    labels, class_of, sizes = np.unique(y, return_inverse=True, return_counts=True)
    least = -(-len(labels) // num_clients)
    if not least <= classes_per_client <= len(labels):
        raise ValueError(
            must_be(
                "data.classes_per_client",
                f"between {least} and {len(labels)}",
                classes_per_client,
                when=f"clients.count is {num_clients} and there are {len(labels)} classes",
                because="each class needs a client, and no client has a class twice",
            )
        )
    rng = make_rng(seed, "partition")
    held = _draw_classes(len(labels), num_clients, classes_per_client, rng)
    # at random, so that what cannot be cut evenly does not always go to the same clients
    holders = [
        rng.permutation(np.flatnonzero((held == label).any(axis=1))) for label in range(len(labels))
    ]
    _check_holders(labels, sizes, holders)
    shuffled = rng.permutation(len(y))
    samples = shuffled[np.argsort(class_of[shuffled], kind="stable")]
    pairs = zip(sizes, holders, strict=True)
    owner = np.concatenate([own[np.arange(size) * len(own) // size] for size, own in pairs])
    return check_sizes(split_by_owner(samples, owner, num_clients), "pathological")


def _draw_classes(
    num_classes: int, num_clients: int, classes_per_client: int, rng: np.random.Generator
) -> Longs:
    """Draw the classes of each client [C, K] from one permutation of all classes after another.

    A client between two permutations gets none twice: what it has comes last in the second one.
    """
    held = np.empty((num_clients, classes_per_client), np.int64)
    queue = np.empty(0, np.int64)
    for row in held:
        if len(queue) < classes_per_client:
            fresh = rng.permutation(num_classes)
            again = np.isin(fresh, queue)
            queue = np.concatenate([queue, fresh[~again], fresh[again]])
        row[:], queue = queue[:classes_per_client], queue[classes_per_client:]
    return held


def _check_holders(labels: Longs, sizes: Longs, holders: list[Longs]) -> None:
    """Refuse a class with fewer samples than clients that should hold some."""
    for label, size, own in zip(labels, sizes, holders, strict=True):
        if size < len(own):
            when = f"class {label} has {size} {'sample' if size == 1 else 'samples'}"
            reason = f"{len(own)} clients would share them"
            need = "lower (or clients.count)"
            raise ValueError(must_be("data.classes_per_client", need, when=when, because=reason))


def draw_shares_of_classes(
    y: Longs, num_clients: int, *, alpha: float, speeds: Sequence[float] | None, seed: int
) -> list[Longs]:
    """Cut each class by a Dirichlet draw of its own over the clients."""
    _, class_sizes = np.unique(y, return_counts=True)
    counts = _draw_until_enough(class_sizes, num_clients, alpha, seed)
    parts = _hand_out(np.argsort(y, kind="stable"), counts)
    return _finish(parts, "dirichlet", alpha, speeds)


def draw_sizes(
    y: Longs, num_clients: int, *, alpha: float, speeds: Sequence[float] | None, seed: int
) -> list[Longs]:
    """Cut all samples, in a random order, by one Dirichlet draw over the clients."""
    counts = _draw_until_enough(np.array([len(y)]), num_clients, alpha, seed)
    order = make_rng(seed, "partition", step=ORDER_STEP).permutation(len(y))
    return _finish(_hand_out(order, counts), "quantity", alpha, speeds)


def _draw_until_enough(class_sizes: Longs, num_clients: int, alpha: float, seed: int) -> Longs:
    """Draw the samples of each class and client [L, C] until every client has two.

    After the last draw, the clients that lack some take them from those with the most.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(must_be("data.alpha", "a finite number more than 0", alpha))
    for attempt in range(MAX_DRAWS):
        rng = make_rng(seed, "partition", step=attempt)
        counts = _draw_counts(class_sizes, num_clients, alpha, rng)
        if counts.sum(axis=0).min() >= MIN_SAMPLES:
            break
    return _fill_up(counts, most=int(MAX_MOVED_FRAC * class_sizes.sum()))


def _draw_counts(
    class_sizes: Longs, num_clients: int, alpha: float, rng: np.random.Generator
) -> Longs:
    """Count each client's samples of each class [L, C].

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
        counts: [L, C] samples of each class.
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


def _hand_out(samples: Longs, counts: Longs) -> list[Longs]:
    """Hand out the samples, in class order, by counts [L, C]."""
    num_clients = counts.shape[1]
    owner = np.concatenate([np.repeat(np.arange(num_clients), row) for row in counts])
    return split_by_owner(samples, owner, num_clients)


def _finish(
    parts: list[Longs], kind: str, alpha: float, speeds: Sequence[float] | None
) -> list[Longs]:
    parts = check_sizes(parts, kind, f"data.alpha={alpha:g} ({MAX_DRAWS} draws)")
    if speeds is None:
        return parts
    places = np.argsort(np.argsort(-np.asarray(speeds), kind="stable"))
    by_size = sorted(parts, key=len)
    return [by_size[place] for place in places]
