"""Models that a user's factory makes: any `torch.nn.Module` (docs/extending.md#a-model).

Shapes: B batch, T tokens, P prunable entries, D dense entries, S statistics of static batch norms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from fedgmr_hpc.config.messages import must_be, shown
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.models.layout import (
    WIDTH_KINDS,
    BatchNorm,
    Entry,
    Kind,
    Layout,
    arrange,
    check_kind,
)
from fedgmr_hpc.models.modules.net import ModuleNet, named_tensors
from fedgmr_hpc.models.modules.streams import seeded
from fedgmr_hpc.models.modules.tensors import (
    STATISTICS,
    Prunable,
    batch_norms,
    dotted,
    embeddings,
    read_tensors,
)
from fedgmr_hpc.models.modules.trial import Trial, failure, try_module

Shape = tuple[int | None, ...]


class _Facts(NamedTuple):
    """What is known of a module once it is made: its tensors, and the names of two kinds of them.

    Attributes:
        entries: in the order of registration.
        norms: batch norms with running statistics.
        embeddings: weights of embeddings.
    """

    entries: tuple[Entry, ...]
    norms: tuple[str, ...]
    embeddings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ModuleModel:
    """A model whose module a factory makes.

    Attributes:
        name: of the model.
        make: makes the module.
        input_shape: of a sample; None where any size fits; of one number the most tokens of a text.
        prunable: see `tensors.read_tensors`.
        costs: likewise.
        num_classes: what the factory was told; None if it was not.
    """

    name: str
    make: Callable[[], nn.Module]
    input_shape: Shape
    prunable: Prunable = None
    costs: Mapping[str, float] | None = None
    num_classes: int | None = None

    def build(self, seed: int) -> nn.Module:
        """Make the module; what it draws from the global streams follows from the seed alone.

        Raises:
            ValueError: the factory fails, or makes something else.
        """
        try:
            with seeded(seed):
                module = self.make()
        except Exception as error:
            raise ValueError(f"model {self.name}: its factory fails: {failure(error)}") from error
        if not isinstance(module, nn.Module):
            found = type(module).__name__
            raise ValueError(must_be(f"what model {self.name} makes", "an nn.Module", found=found))
        if module in self._built:
            reason = "several networks of a run are laid into memory of their own"
            raise ValueError(
                must_be(f"what model {self.name} makes", "new each time", because=reason)
            )
        self._built.add(module)
        return module

    @cached_property
    def _built(self) -> WeakSet[nn.Module]:
        return WeakSet()

    @cached_property
    def _facts(self) -> _Facts:
        module = self.build(0)
        try:
            entries = read_tensors(module, self.prunable, self.costs)
        except ValueError as error:
            raise ValueError(f"model {self.name}: {error}") from None
        return _Facts(entries, tuple(batch_norms(module)), tuple(embeddings(module)))

    @property
    def has_batch_norms(self) -> bool:
        """Whether it has norms with running statistics."""
        return bool(self._facts.norms)

    @property
    def has_norms(self) -> bool:
        """Whether outputs of layers are divided by what of them is kept: only in narrower ones."""
        return False

    @property
    def has_relative_scores(self) -> bool:
        """Whether importance is relative to a layer's mean: torch's embeddings start far larger
        than other layers."""
        cut = {entry.name for entry in self._facts.entries if entry.prunable}
        return not cut.isdisjoint(self._facts.embeddings)

    def layout(self, kind: Kind, density: float, batch_norm: BatchNorm) -> Layout:
        """Return the flat layout.

        Raises:
            ValueError: the kind is unknown, or asks for narrower networks.
        """
        if kind in WIDTH_KINDS:
            raise ValueError(
                must_be(
                    "submodel.kind",
                    "'importance', 'magnitude' or 'full'",
                    kind,
                    when={"model.name": self.name},
                    because="a module does not say along which axes it can become narrower",
                )
            )
        check_kind(kind, density)
        entries, norms, _ = self._facts
        statistics = {dotted(norm, part) for norm in norms for part in STATISTICS}
        layout = arrange(entries, statistics if batch_norm == "static" else ())
        return replace(layout, num_classes=self.num_classes)

    def initial_weights(self, seed: int, kind: Kind, batch_norm: BatchNorm) -> Floats:
        """Return the flat vector [P + D] of the module that the factory makes under the seed."""
        layout = self.layout(kind, 1.0, batch_norm)
        tensors = named_tensors(self.build(seed))
        flat = np.empty(layout.num_weights, np.float32)
        for entry in layout.entries:
            flat[entry.span] = tensors[entry.name].detach().flatten().numpy()
        return flat

    def make_net(
        self,
        device: torch.device | str,
        kind: Kind,
        density: float,
        scaler: bool,
        batch_norm: BatchNorm,
        seed: int,
    ) -> ModuleNet:
        """Build what computes the model; tensors that do not travel are those of the seed."""
        layout = self.layout(kind, density, batch_norm)
        return ModuleNet(self.build(seed), layout, device, batch_norm)

    def count_outputs(self, input_shape: tuple[int, ...], is_text: bool = False) -> int:
        """Return how many classes or tokens it tells apart.

        Raises:
            ValueError: it fails on such samples.
        """
        trial = self._try(input_shape, is_text)
        if trial.wrong is not None:
            raise ValueError(f"model {self.name} {trial.wrong}")
        return trial.num_outputs

    def misfit(
        self, input_shape: tuple[int, ...], num_classes: int, is_text: bool = False
    ) -> str | None:
        """Say why a data set does not fit; None if it does: one batch of zeros is tried."""
        if not self._takes(input_shape, is_text):
            return f"takes {_described(self.input_shape)}, not {input_shape}"
        _ = self._facts  # refuses what cannot be trained
        trial = self._try(input_shape, is_text)
        if trial.wrong is None and num_classes > trial.num_outputs:
            return f"has {trial.num_outputs} outputs, not {num_classes}"
        return trial.wrong

    def _takes(self, input_shape: tuple[int, ...], is_text: bool) -> bool:
        if len(input_shape) != len(self.input_shape):
            return False
        if is_text:
            most = self.input_shape[0]
            return most is None or input_shape[0] <= most
        pairs = zip(self.input_shape, input_shape, strict=True)
        return all(own is None or own == given for own, given in pairs)

    def _try(self, input_shape: tuple[int, ...], is_text: bool) -> Trial:
        key = (input_shape, is_text)
        if key not in self._trials:
            self._trials[key] = try_module(self.build(0), input_shape, is_text)
        return self._trials[key]

    @cached_property
    def _trials(self) -> dict[tuple[tuple[int, ...], bool], Trial]:
        return {}


class ModuleFactory:
    """What `register_model` registers: a factory, and what is said of its modules.

    Args:
        name: of the model.
        factory: makes the module; it may take `num_classes`. If it is a class of options
            (`Section`), its method `build` does.
        input_shape, prunable, costs: see `ModuleModel`.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[..., Any],
        input_shape: Shape,
        prunable: Prunable = None,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.factory, self.input_shape = name, factory, input_shape
        self.prunable, self.costs = prunable, costs
        self.__wrapped__ = factory
        self.__module__ = getattr(factory, "__module__", "__main__")
        self._bound: dict[str, ModuleModel] = {}

    @property
    def model_fields(self) -> dict[str, Any]:
        """The options of the model, which are keys of `model`."""
        fields: dict[str, Any] = getattr(self.factory, "model_fields", {})
        return fields

    def bound(self, num_classes: int | None, options: Mapping[str, Any]) -> ModuleModel:
        """Return the model for so many classes and with these options."""
        takes_classes = "num_classes" in inspect.signature(self._maker(options)).parameters
        classes = num_classes if takes_classes else None
        key = repr((classes, sorted(options.items())))
        if key not in self._bound:
            self._bound[key] = ModuleModel(
                self.name,
                lambda: self._make(classes, options),
                self.input_shape,
                self.prunable,
                self.costs,
                classes,
            )
        return self._bound[key]

    def _make(self, num_classes: int | None, options: Mapping[str, Any]) -> Any:
        make = self._maker(options)
        return make() if num_classes is None else make(num_classes=num_classes)

    def _maker(self, options: Mapping[str, Any]) -> Callable[..., Any]:
        maker: Callable[..., Any] = self.factory
        return maker(**options).build if hasattr(maker, "model_fields") else maker


def _described(shape: Shape) -> str:
    if len(shape) == 1:
        return f"up to {shown(shape[0])} tokens or as many features"
    return f"images ({', '.join('any' if size is None else str(size) for size in shape)})"
