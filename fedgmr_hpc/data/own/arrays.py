"""What arrays of a data set must be like, and how they become its splits.

Images are uint8, or floats from 0 to 1, which are stored as round(255 x). Channels may come first
or last; the axis with 1 to 4 entries is theirs. Labels are whole numbers from 0 on. Groups, which
only training samples need, are numbers or texts.

Shapes: N samples, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.choices.own_data import Arrays
from fedgmr_hpc.data.source import check_labels
from fedgmr_hpc.data.splits import Bytes, Longs, Split, Splits
from fedgmr_hpc.data.untrusted import brief, refuse

MAX_CHANNELS = 4
MAX_EDGE = 4096
MAX_CLASSES = 1 << 16
WHITE = 255  # what a float of 1 is stored as
EXPECTED = f"images [N,H,W], [N,H,W,C] or [N,C,H,W] of 1 to {MAX_CHANNELS} channels"
PIXELS = "bytes (uint8), or floats from 0 to 1"


@dataclass(frozen=True)
class ImageLayout:
    """How images lie in an array.

    Attributes:
        shape: [C, H, W] of one as it is stored.
        has_channels_last: whether an image is [H, W, C] in the array.
        is_float: whether pixels are floats from 0 to 1.
    """

    shape: tuple[int, int, int]
    has_channels_last: bool
    is_float: bool

    def as_bytes(self, x: NDArray[Any], where: str, name: str, first: int = 0) -> Bytes:
        """Return rows of the array as bytes [N, C, H, W].

        Args:
            x: some rows.
            where: the file, or what else made the array.
            name: of the array.
            first: number of the first row, for messages.

        Raises:
            BadFile: a float is not from 0 to 1.
        """
        if self.is_float:
            flat = x.reshape(len(x), -1)
            wrong = np.argwhere(~((flat >= 0) & (flat <= 1)))  # so that NaN is wrong, too
            if len(wrong):
                row, pixel = wrong[0]
                found = f"{name}: sample {first + row} has a pixel of {flat[row, pixel]:g}"
                refuse(where, found, "floats from 0 to 1, or uint8")
            x = np.rint(WHITE * x.astype(np.float32)).astype(np.uint8)
        channels, height, width = self.shape
        if self.has_channels_last:
            x = x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        images: Bytes = x.reshape(-1, *self.shape)
        return images


def find_layout(where: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ImageLayout:
    """Return how images lie in an array of this shape and type.

    Raises:
        BadFile: it is not one of images; tells what is wrong with it.
    """
    if len(shape) == 2 and dtype.kind in "iu":
        found = f"{name} has shape {list(shape)}; sequences of tokens are not supported"
        refuse(where, found, EXPECTED)
    if dtype != np.uint8 and dtype.kind != "f":
        refuse(where, f"{name} is of type {dtype}", PIXELS)
    if len(shape) not in (3, 4):
        refuse(where, f"{name} has shape {list(shape)}", EXPECTED)
    if not shape[0]:
        refuse(where, f"{name} is empty", "at least one sample")
    at = _channel_axis(where, name, shape)
    rest = tuple(size for axis, size in enumerate(shape) if axis not in (0, at))
    if not 1 <= min(rest) <= max(rest) <= MAX_EDGE:
        found = f"{name} has images of {rest[0]}x{rest[1]}"
        refuse(where, found, f"1 to {MAX_EDGE} pixels a side")
    channels = 1 if at is None else shape[at]
    return ImageLayout((channels, rest[0], rest[1]), at == 3, dtype.kind == "f")


def _channel_axis(where: str, name: str, shape: tuple[int, ...]) -> int | None:
    """Return which axis is that of the channels; None if there is none."""
    if len(shape) == 3:
        return None
    able = [axis for axis in (1, 3) if 1 <= shape[axis] <= MAX_CHANNELS]
    if len(able) == 1:
        return able[0]
    reason = "both could be" if able else "neither can be"
    found = f"{name} has shape {list(shape)}, where {reason} the channels, axis 1 or axis 3"
    refuse(where, found, EXPECTED)


def check_classes(where: str, name: str, y: NDArray[Any], num_samples: int) -> Longs:
    """Return labels as int64 [N].

    Args:
        where: the file, or what else made the array.
        name: of the array.
        y: [N] or [N, 1].
        num_samples: N.
    """
    if y.dtype.kind not in "iu":
        refuse(where, f"{name} is of type {y.dtype}", "integers, the classes from 0 on")
    if y.shape not in ((num_samples,), (num_samples, 1)):
        found = f"{name} has shape {list(y.shape)}"
        refuse(where, found, f"[{num_samples}], a label for each sample")
    labels = y.reshape(-1)
    outside = labels[(labels < 0) | (labels >= MAX_CLASSES)]
    if len(outside):
        refuse(where, f"{name} has label {outside[0]}", f"0..{MAX_CLASSES - 1}")
    return labels.astype(np.int64)


def number_groups(where: str, group: NDArray[Any] | None, num_samples: int) -> NDArray[np.int32]:
    """Return groups numbered in ascending order [N]; all 0 where there are none."""
    if group is None:
        return np.zeros(num_samples, np.int32)
    if group.dtype.kind not in "iuU":
        refuse(where, f"group_train is of type {group.dtype}", "integers or text")
    if group.shape != (num_samples,):
        found = f"group_train has shape {list(group.shape)}"
        refuse(where, found, f"[{num_samples}], a group for each sample")
    return np.unique(group, return_inverse=True)[1].reshape(-1).astype(np.int32)


def check_tests(where: str, y_train: Longs, y_test: Longs) -> None:
    """Refuse a test sample of a class beyond those that are trained."""
    num_classes = int(y_train.max()) + 1
    check_labels(where, y_test, num_classes=num_classes, where="y_test: sample")


def same_shape(where: str, train: ImageLayout, test: ImageLayout) -> None:
    """Refuse test images of another shape than the training images."""
    if train.shape != test.shape:
        found = f"x_test has images of {_sized(test)}"
        refuse(where, found, f"{_sized(train)}, as x_train")


def _sized(layout: ImageLayout) -> str:
    return "x".join(map(str, layout.shape))


def make_splits(where: str, arrays: Arrays) -> Splits:
    """Return the splits of arrays that lie in memory.

    Args:
        where: what made the arrays, for messages.
        arrays: anything that NumPy makes arrays of.

    Raises:
        BadFile: an array is not as it must be.
    """
    layouts, images, labels = {}, {}, {}
    for part in ("train", "test"):
        x, y = (_as_array(where, arrays, f"{letter}_{part}") for letter in "xy")
        layouts[part] = find_layout(where, f"x_{part}", x.shape, x.dtype)
        labels[part] = check_classes(where, f"y_{part}", y, len(x))
        images[part] = layouts[part].as_bytes(x, where, f"x_{part}")
    same_shape(where, layouts["train"], layouts["test"])
    check_tests(where, labels["train"], labels["test"])
    given = arrays.group_train is not None
    group = _as_array(where, arrays, "group_train") if given else None
    groups = number_groups(where, group, len(labels["train"]))
    train = Split(images["train"], labels["train"], groups)
    return train, Split(images["test"], labels["test"], np.zeros(len(labels["test"]), np.int32))


def _as_array(where: str, arrays: Arrays, name: str) -> NDArray[Any]:
    try:
        return np.asarray(getattr(arrays, name))
    except (TypeError, ValueError) as error:
        refuse(where, f"{name} is no array ({brief(error)})", "numbers of one length")
