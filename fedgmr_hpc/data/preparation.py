"""What a person is told of a data set: what is missing and where it goes, or what the cache has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import Reader
from fedgmr_hpc.data.datasets import SUBSET_SEED, Kind, plan_dataset
from fedgmr_hpc.data.digests import fingerprint
from fedgmr_hpc.data.formats import Split
from fedgmr_hpc.data.layouts import LAYOUTS, describe_missing


def prepare(data: DataConfig) -> str:
    """Text for a person: what is missing and where it goes, or what the now filled cache holds."""
    missing = describe_missing(data.name, data.root)
    if missing:
        lines = [f"{data.name}: not complete, missing:", *(f"  {path}" for path in missing)]
        return "\n".join([*lines, LAYOUTS[data.name]])
    plan = plan_dataset(data, seed=SUBSET_SEED)
    folder = Path(data.cache).expanduser() / plan.folder
    reader = Reader(data.cache_owner)
    splits = dict(zip(("train", "test"), plan.open(folder, reader=reader), strict=True))
    size = sum(path.stat().st_size for path in folder.iterdir())
    describe = _describe_sentences if plan.kind.is_text else _describe_images
    lines = [
        f"{data.name}: ready, {_describe_kind(plan.kind)}",
        *(describe(part, split) for part, split in splits.items()),
        f"  xxh3 of all of it: {fingerprint(*splits.values())}",
        f"  cache: {folder}, {size / 1e6:.1f} MB",
    ]
    return "\n".join(lines)


def _describe_kind(kind: Kind) -> str:
    if kind.is_text:
        return (
            f"vocabulary of {kind.num_classes:,}, sentences of up to {kind.input_shape[0]} tokens"
        )
    return f"{kind.num_classes} classes, images {'x'.join(map(str, kind.input_shape))}"


def _describe_images(part: str, split: Split) -> str:
    text = f"  {part}: {len(split):,} samples of {len(np.unique(split.y))} classes"
    return text + _describe_groups(split, "writers", "samples")


def _describe_sentences(part: str, split: Split) -> str:
    num_targets = int((split.x[:, 1:] > 0).sum())
    num_scored = int(split.y.sum())
    unknown = 100 * (1 - num_scored / num_targets)
    text = (
        f"  {part}: {len(split):,} sentences, {num_targets:,} target words, "
        f"{unknown:.1f} % of them unknown and not scored"
    )
    return text + _describe_groups(split, "users", "sentences")


def _describe_groups(split: Split, groups: str, samples: str) -> str:
    _, sizes = np.unique(split.group, return_counts=True)
    if len(sizes) == 1:
        return ""
    spread = f"{sizes.min()} / {np.median(sizes):g} / {sizes.max()}"
    return f", {len(sizes)} {groups} with {spread} {samples} each (min / median / max)"
