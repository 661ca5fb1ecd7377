"""Deal samples to clients, by the kind of partition that a configuration names.

Shapes: C clients, N samples, G writers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.messages import unknown_choice
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.data.partition.listed import read_partition
from fedgmr_hpc.data.partition.sizes import (
    MIN_SAMPLES,
    Longs,
    check_count,
    check_sizes,
    split_by_owner,
)
from fedgmr_hpc.data.partition.skew import (
    deal_classes,
    deal_shards,
    draw_shares_of_classes,
    draw_sizes,
)

KINDS = ("iid", "group", "dirichlet", "shards", "pathological", "quantity", "file")
LABELLED_KINDS = ("dirichlet", "shards", "pathological")  # these need a class of every sample
_DRAWS = {"dirichlet": draw_shares_of_classes, "quantity": draw_sizes}


def make_partition(
    kind: str,
    y: Longs,
    group: NDArray[np.int32],
    *,
    num_clients: int,
    alpha: float,
    shards_per_client: int,
    speeds: Sequence[float] | None,
    seed: int,
    classes_per_client: int = 2,
    file: str | None = None,
) -> list[Longs]:
    """Deal samples to clients.

    With very many clients no Dirichlet draw gives everybody two samples; clients that lack some
    then take them from those with the most, up to 2 % of all samples.

    Args:
        kind: `data.partition`.
        y: [N] classes.
        group: [N] writers or users; used by `group` only.
        num_clients: C.
        alpha: concentration of the Dirichlet draws; used by `dirichlet` and `quantity` only.
        shards_per_client: used by `shards` only.
        speeds: [C] what the clients' speeds are proportional to where the fastest gets the smallest
            part, else None; used with the Dirichlet draws only.
        seed: of the run.
        classes_per_client: used by `pathological` only.
        file: used by `file` only.

    Returns:
        [C] disjoint arrays of sample numbers, at least two in each.

    Raises:
        ValueError: there are too few samples, classes or writers for so many clients, or the file
            is wrong.
    """
    if kind not in KINDS:
        raise ValueError(unknown_choice("data.partition", kind, KINDS))
    if kind == "group":
        num_writers = len(np.unique(group))
        check_count(num_clients, num_writers, kind, f"one of the {num_writers} writers")
        return check_sizes(_cut_groups(group, num_clients), kind)
    need = f"{MIN_SAMPLES} of the {len(y)} samples"
    check_count(num_clients, len(y) // MIN_SAMPLES, kind, need)
    if kind == "iid":
        return _cut_iid(len(y), num_clients, seed)
    if kind == "shards":
        return deal_shards(y, num_clients, shards_per_client, seed)
    if kind == "pathological":
        return deal_classes(y, num_clients, classes_per_client, seed)
    if kind == "file":
        return read_partition(file, num_clients, len(y))
    draw = partial(_DRAWS[kind], alpha=alpha, speeds=speeds, seed=seed)
    return draw(y, num_clients)


def _cut_iid(num_samples: int, num_clients: int, seed: int) -> list[Longs]:
    order = make_rng(seed, "partition").permutation(num_samples)
    size = num_samples // num_clients  # the remainder stays unused, as in the paper
    return [order[client * size : (client + 1) * size] for client in range(num_clients)]


def _cut_groups(group: NDArray[np.int32], num_clients: int) -> list[Longs]:
    """Give floor(G / C) consecutive writers to each client, and the remainder to the last one."""
    writers, rank = np.unique(group, return_inverse=True)
    owner = np.minimum(rank // (len(writers) // num_clients), num_clients - 1)
    return split_by_owner(np.arange(len(group)), owner, num_clients)
