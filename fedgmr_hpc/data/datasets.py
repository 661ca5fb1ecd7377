"""Open data sets: decoded once, memory-mapped, normalised one batch at a time.

Pixels are bytes on disk and become float32 only in a batch. FEMNIST and digits are scaled
to 0..1; CIFAR-10 and ImageNet-100 are also normalised by channel and augmented in training
(docs/method.md#data-sets).

Shapes: N samples, B batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.config.choices.own_data import Augment
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.batches import on_device, on_host
from fedgmr_hpc.data.batches.draws import draw_changes
from fedgmr_hpc.data.cache import Reader
from fedgmr_hpc.data.registry import describe_missing, find_source, plan_dataset
from fedgmr_hpc.data.source import Traits, complete
from fedgmr_hpc.data.splits import Longs, Split, fingerprint
from fedgmr_hpc.data.stackoverflow import FIRST_WORD, first_target

SUBSET_SEED = 0  # one subset, and one stand-in, for every seed of a study
SUBSET_STEP = 1000  # a stream of its own, apart from the attempts of make_partition
Batch = tuple[Tensor, Tensor]  # images and classes, or inputs and targets


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set ready for training.

    Its methods take one of its splits and positions of samples within that split.

    Attributes:
        name: value of `data.name`.
        train: training split, from which validation samples are cut later.
        test: test split.
        traits: shape, classes, normalisation.
        first_target: smallest token that is scored.
    """

    name: str
    train: Split
    test: Split
    traits: Traits
    first_target: int = FIRST_WORD

    @cached_property
    def fingerprint(self) -> str:
        """The xxh3 of all samples, labels and groups, as 16 hex digits."""
        return fingerprint(self.train, self.test)

    @property
    def num_classes(self) -> int:
        """Classes, or entries of the vocabulary."""
        return self.traits.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """C,H,W of an image, or the most tokens of a sentence."""
        return self.traits.input_shape

    @property
    def augment(self) -> Augment:
        """How training images are changed at random."""
        return self.traits.augment

    @property
    def is_text(self) -> bool:
        """Whether samples are sentences."""
        return self.traits.is_text

    @property
    def top_k(self) -> int:
        """How many guesses the data set's accuracy allows."""
        return self.traits.top_k

    def draw_changes(self, num: int, rng: np.random.Generator) -> Longs | None:
        """Draw how training images are changed: [B, n] as `batch` takes them; None for not."""
        if self.augment == "none":
            return None
        height, width = self.input_shape[1:]
        return draw_changes(self.augment, num, height, width, rng)

    def batch(self, split: Split, index: Longs, draws: Longs | None = None) -> Batch:
        """Return one batch, made in host memory.

        Args:
            split: `train` or `test` of this data set.
            index: [B] positions in the split.
            draws: [B, n] how each image is changed; None for images as they are.

        Returns:
            Normalised images float32 [B, C, H, W] and classes int64 [B]; of a data set of text
            inputs and targets int64 [B, T] each. Inputs are tokens 1..T, targets are tokens
            2..T+1, where T+1 is the length of the longest sentence. Targets that are not scored
            (pads, and unknown words unless configured) are -1.
        """
        x = split.take(index)
        if self.is_text:
            length = int(np.flatnonzero(x.any(axis=0))[-1]) + 1
            return self.sentences(torch.from_numpy(x.view(np.int16)), length)
        if draws is not None:
            x = on_host.CHANGES[self.augment](x, draws)
        return self.images(torch.from_numpy(x)), torch.from_numpy(self.labels(split, index))

    def images(self, x: Tensor) -> Tensor:
        """Return bytes [B, C, H, W] on any device as normalised images float32."""
        return on_device.normalise(x, *_scale_shift(self.traits, x.device))

    def sentences(self, x: Tensor, length: int) -> Batch:
        """Return inputs and targets of tokens [B, L] on any device; the longest has `length`."""
        return on_device.inputs_and_targets(x, length, self.first_target)

    def labels(self, split: Split, index: Longs) -> Longs:
        """Return the classes int64 [B] of images."""
        return split.y[index]

    def num_scored(self, split: Split, index: Longs) -> int:
        """Count what loss and accuracy average over: samples, or scored target tokens."""
        return int(split.y[index].sum()) if self.is_text else len(index)


@lru_cache
def _scale_shift(traits: Traits, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Factor and summand [C, 1, 1] by which pixels become (x / max - mean) / std."""
    mean, std = (np.array(values)[:, None, None] for values in (traits.mean, traits.std))
    factor, summand = (1 / (traits.max_value * std)).astype(np.float32), -mean / std
    scale, shift = torch.tensor(factor, device=device), None
    if summand.any():
        shift = torch.tensor(summand.astype(np.float32), device=device)
    return scale, shift


def load_dataset(data: DataConfig, *, seed: int, checks_all: bool = True) -> Dataset:
    """Open a configuration's data set, decoding its files into the cache first where necessary.

    `data.max_train` and `data.max_test` keep a random subset fixed by the seed, in the original
    order; a stand-in is drawn, and ImageNet-100 decoded, at that size.

    Args:
        data: the configuration's section.
        seed: of subsets and stand-ins.
        checks_all: check every row of the cache now, not only the rows that are read later.

    Raises:
        ValueError: files are missing or damaged, or the cache cannot be written or trusted.
    """
    plan, reader = plan_dataset(data, seed=seed), Reader(data.cache_owner, checks_all)
    train, test = plan.open(Path(data.cache).expanduser() / plan.folder, reader=reader)
    return Dataset(
        name=data.name,
        train=_keep_some(train, data.max_train, client=0, seed=seed),
        test=_keep_some(test, data.max_test, client=1, seed=seed),
        traits=_change(complete(plan.traits, train, test), data),
        first_target=first_target(data.unknown_words),
    )


def _change(traits: Traits, data: DataConfig) -> Traits:
    """Return traits with the configuration's choice in place of the data set's own."""
    if data.augment is None:
        return traits
    if traits.is_text:
        reason = "sentences are not augmented"
        when = {"data.name": data.name}
        raise ValueError(must_be("data.augment", "null", data.augment, when=when, because=reason))
    return replace(traits, augment=data.augment)


def _keep_some(split: Split, limit: int | None, *, client: int, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    rng = make_rng(seed, "partition", client=client, step=SUBSET_STEP)
    kept = np.sort(rng.choice(len(split), limit, replace=False))
    y, group = split.y[kept], split.group[kept]
    for array in (y, group, kept):
        array.flags.writeable = False
    return replace(split, y=y, group=group, rows=kept)


def prepare(data: DataConfig) -> str:
    """Fill the cache of a data set and describe it, or say which files are missing.

    Returns:
        Lines for a person: what is missing and where it goes, or what the cache now holds.
    """
    missing = describe_missing(data.name, data.root)
    if missing:
        lines = [f"{data.name}: not complete, missing:", *(f"  {path}" for path in missing)]
        return "\n".join([*lines, find_source(data.name).instructions])
    plan = plan_dataset(data, seed=SUBSET_SEED)
    folder = Path(data.cache).expanduser() / plan.folder
    reader = Reader(data.cache_owner)
    splits = dict(zip(("train", "test"), plan.open(folder, reader=reader), strict=True))
    traits = complete(plan.traits, **splits)
    size = sum(path.stat().st_size for path in folder.iterdir())
    describe = _describe_sentences if traits.is_text else _describe_images
    lines = [
        f"{data.name}: ready, {_describe_traits(traits)}",
        *(describe(part, split) for part, split in splits.items()),
        f"  xxh3 of all of it: {fingerprint(*splits.values())}",
        f"  cache: {folder}, {size / 1e6:.1f} MB",
    ]
    return "\n".join(lines)


def _describe_traits(traits: Traits) -> str:
    if traits.is_text:
        most = traits.input_shape[0]
        return f"vocabulary of {traits.num_classes:,}, sentences of up to {most} tokens"
    return f"{traits.num_classes} classes, images {'x'.join(map(str, traits.input_shape))}"


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
