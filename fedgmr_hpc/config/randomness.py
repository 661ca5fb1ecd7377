"""Random streams: each is a function of (seed, role, client, step) alone."""

from __future__ import annotations

import numpy as np

ROLES = (
    "partition",
    "validation",
    "init",
    "batch",
    "augment",
    "speed",
    "score_subset",
    "synthetic",
    "fault",
    "sample",
    "width",
    "dropout",
    "norm_samples",
)


def make_rng(seed: int, role: str, client: int = 0, step: int = 0) -> np.random.Generator:
    """Return the random stream of one (seed, role, client, step).

    No state is carried from one stream to another, so neither order nor ranks change anything.
    """
    key = np.random.SeedSequence([seed, ROLES.index(role), client, step])
    return np.random.Generator(np.random.Philox(key))
