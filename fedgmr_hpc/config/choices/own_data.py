"""Data sets of a user's own, from arrays that a function returns.

    @register_dataset("mine", mean=(0.5,), std=(0.25,))
    def mine(root: Path | None) -> Arrays:
        return Arrays(x_train, y_train, x_test, y_test)

They are made once and kept in the data cache. This module is light: what the arrays must be like
is said and checked where they are used (data/own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from fedgmr_hpc.config.choices.registry import DATASETS
from fedgmr_hpc.config.messages import must_be, unknown_choice

Augment = Literal["none", "crop_flip", "resized_crop"]
_WHOLE, _TUPLES = ("num_classes", "max_value", "top_k"), ("input_shape", "mean", "std")


class Arrays(NamedTuple):
    """The arrays of a data set, NumPy's or what NumPy makes arrays of.

    Attributes:
        x_train: training images [N,H,W], [N,H,W,C] or [N,C,H,W], uint8 or floats from 0 to 1.
        y_train: [N] their classes, integers from 0 on.
        x_test: test images of the same shape.
        y_test: their classes.
        group_train: [N] writer or user of each training sample; None where it is not known.
    """

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    group_train: Any = None


Load = Callable[[Path | None], tuple[Any, ...]]
AnyLoad = TypeVar("AnyLoad", bound=Load)


@dataclass(frozen=True)
class OwnData:
    """A registered function, and what it says of its data set.

    Attributes:
        load: the function.
        num_classes: see `register_dataset`, and so all others.
    """

    load: Load
    num_classes: int | None = None
    input_shape: tuple[int, int, int] | None = None
    max_value: int = 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Augment = "none"
    top_k: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be said of a data set."""
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value > 0):
                raise ValueError(must_be(name, "a whole number more than 0", value))
        for name in _TUPLES:
            value = getattr(self, name)
            if value is not None and not _are_numbers(value):
                raise ValueError(must_be(name, "a tuple of numbers", value))
        if self.input_shape is not None and len(self.input_shape) != 3:
            need = "channels, height and width"
            raise ValueError(must_be("input_shape", need, self.input_shape))
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            need = "one number more than 0 for each of mean"
            raise ValueError(must_be("std", need, self.std))
        if self.augment not in get_args(Augment):
            raise ValueError(unknown_choice("augment", self.augment, get_args(Augment)))

    @property
    def __wrapped__(self) -> Load:
        """The function, for who looks for the source of what is registered."""
        return self.load

    def facts(self) -> list[object]:
        """Return what the data set is said to be, for its cache."""
        return [getattr(self, field.name) for field in fields(self)[1:]]


def _are_numbers(values: Any) -> bool:
    return (
        isinstance(values, tuple) and all(type(v) in (int, float) for v in values) and values > ()
    )


def register_dataset(
    name: str,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    max_value: int = 255,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    augment: Augment = "none",
    top_k: int = 1,
) -> Callable[[AnyLoad], AnyLoad]:
    """Return a decorator that registers a function as the data set `name`.

    The function is called with `data.root`, a path or None, and returns `Arrays`, or a tuple of
    them. It is called again whenever its file, the root or its traits have changed.

    Args:
        name: value of `data.name`.
        num_classes: of its labels; without it one more than the largest label.
        input_shape: channels, height and width; without it those of the arrays.
        max_value: value of a pixel that is scaled to 1.
        mean: subtracted from the scaled pixels, one number or one a channel.
        std: by which the difference is divided.
        augment: how training images are changed at random.
        top_k: how many guesses the accuracy allows.

    Raises:
        ValueError: a trait cannot be, or the name cannot be one.

    Example:
        @register_dataset("mine", num_classes=10, mean=(0.5,), std=(0.25,))
        def mine(root: Path | None) -> Arrays:
            ...
    """

    def add(load: AnyLoad) -> AnyLoad:
        own = OwnData(load, num_classes, input_shape, max_value, mean, std, augment, top_k)
        DATASETS.add(name, own, load.__module__)
        return load

    return add
