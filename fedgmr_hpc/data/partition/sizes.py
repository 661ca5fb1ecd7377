"""How many samples a client needs, and how samples with an owner each become parts.

Shapes: C clients, N samples.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.messages import must_be

Longs = NDArray[np.int64]

MIN_SAMPLES = 2  # one to train on, one to validate with


def split_by_owner(samples: Longs, owner: Longs, num_clients: int) -> list[Longs]:
    """Return the samples of each owner [C], in the order given."""
    ends = np.bincount(owner, minlength=num_clients).cumsum()
    return np.split(samples[np.argsort(owner, kind="stable")], ends[:-1])


def check_count(num_clients: int, most: int, kind: str, need: str) -> None:
    """Refuse more clients than can have what each of them needs."""
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


def check_sizes(parts: list[Longs], kind: str, drawn: str = "") -> list[Longs]:
    """Return the parts if each has two samples or more.

    Args:
        parts: [C] samples of each client.
        kind: `data.partition`.
        drawn: what else decided the sizes, for the message; empty where nothing did.
    """
    sizes = [len(part) for part in parts]
    if min(sizes) < MIN_SAMPLES:
        _refuse(sizes, kind, drawn)
    return parts


def _refuse(sizes: list[int], kind: str, drawn: str) -> NoReturn:
    poorest = int(np.argmin(sizes))
    raise ValueError(
        f"clients.count={len(sizes)} with data.partition={kind}{drawn and f', {drawn}'} leaves "
        f"client {poorest} with {sizes[poorest]} of {sum(sizes)} samples, but must leave everybody "
        f"{MIN_SAMPLES} or more (one to train, one to validate): lower clients.count, or raise "
        + ("data.alpha, or " if drawn else "")
        + "data.max_train where it is set"
    )
