"""What an objective is asked, and what it sees of a client's local steps.

Shapes: P prunable entries, D dense entries, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgmr_hpc.config.axes import LocalConfig
from fedgmr_hpc.config.choices.registry import OBJECTIVES
from fedgmr_hpc.config.choices.section import Section, check_names
from fedgmr_hpc.config.messages import must

Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> loss of each item


@dataclass(eq=False, slots=True)
class LocalSteps:
    """The local steps of one dispatch, as an objective sees them.

    Flat vectors are [P + D], on the device that trains: all weights of the network that trains (the
    whole one, or the narrower one of a width method), with zeros outside the mask. Where layers
    train compact they have fewer entries, and the parameter of such a layer is the vector of its
    kept weights, whose number changes with the mask: hooks must work entry by entry, or over all
    entries of a parameter, and must not look at its shape.

    Attributes:
        weights: the present weights, flat.
        received: the weights that the client was sent, flat. Not to be changed.
        mask: flat, 1 where entries move and 0 elsewhere; None where all do.
        parameters: the tensors of `weights` that train.
        split: makes such tensors, in the same order, of any flat vector.
        client: whose steps they are.
        version: of the model that the client was sent.
        same_since: version from which on all clients have had the masks that they have now, and
            none has gone or lost what it kept; 0 for always.
        learning_rate: of all steps.
        num_done: steps taken so far.
        kept: flat vectors by name, what the client keeps: empty at its first dispatch, later what
            it has left there at the last one; 0 at entries that it did not hold then.
        numbers: what it keeps besides.
        own: whatever the objective needs until `end`.
    """

    weights: Tensor
    received: Tensor
    mask: Tensor | None
    parameters: Sequence[Tensor]
    split: Callable[[Tensor], list[Tensor]]
    client: int
    version: int
    same_since: int
    learning_rate: float
    num_done: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    own: Any = None


class Objective(Section):
    """What clients minimise: the run's loss, unless a hook is overridden.

    The fields of a subclass are its options. One instance serves all clients of a rank, so what
    belongs to a client lies in its `LocalSteps`. Hooks must not draw random numbers, nor depend on
    the order in which clients train.

    Attributes:
        keeps: names of the flat vectors that a client keeps from one dispatch to the next, and
            `numbers` with them. With any, a client stays on one rank, and what it keeps is part of
            every checkpoint; without, nothing is kept.
    """

    keeps: ClassVar[tuple[str, ...]] = ()

    def begin(self, steps: LocalSteps) -> None:
        """Look at the dispatch before the first step."""

    def loss(self, logits: Tensor, labels: Tensor, plain: Loss) -> Tensor:
        """Return the loss of each item, of the shape of `plain`'s: they are averaged later.

        Args:
            logits: of a batch [B, ...].
            labels: likewise; -1 is a pad, whose loss does not count.
            plain: the run's loss (`train.loss`), of the same arguments.
        """
        return plain(logits, labels)

    def gradients(self, steps: LocalSteps, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the gradients to step along, one per parameter, out of those of the loss.

        They come masked. Afterwards they are masked again and clipped, and weight decay and
        momentum act on them.
        """
        return gradients

    def end(self, steps: LocalSteps) -> None:
        """Leave in `steps.kept` and `steps.numbers` what the client keeps after its last step."""


def check_keeps(name: str, entry: type[Objective]) -> None:
    """Refuse an objective that does not say by name what it keeps.

    Raises:
        ValueError: `keeps` is no tuple of names.
    """
    check_names(f"train.objective {name!r}: keeps", entry.keeps)


def make_objective(train: LocalConfig) -> Objective | None:
    """Return what clients minimise besides the run's loss; None for nothing."""
    if train.objective == "plain":
        return None
    objective: Objective = OBJECTIVES.make(train.objective, train)
    return objective


def loss_of(objective: Objective | None, plain: Loss) -> Loss:
    """Return the loss to minimise in one dispatch: the run's, or what an objective makes of it."""
    if objective is None or type(objective).loss is Objective.loss:
        return plain
    is_checked = False

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal is_checked
        losses = objective.loss(logits, labels, plain)
        if not is_checked:
            with torch.no_grad():
                _check_losses(objective, losses, plain(logits, labels))
            is_checked = True
        return losses

    return loss


def _check_losses(objective: Objective, losses: Any, plain: Tensor) -> None:
    """Refuse the sum over a batch, for one: its mean is too large by as many items as there are."""
    found = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
    if found != (wanted := f"shape {tuple(plain.shape)}"):
        who = type(objective).__name__
        raise ValueError(
            must(who, f"return the loss of each item, a tensor of {wanted}", found=found)
        )


class BoundObjective:
    """An objective at work on one dispatch, and what it returns looked at.

    Args:
        objective: whose hooks are called.
        steps: what it sees.
    """

    def __init__(self, objective: Objective, steps: LocalSteps) -> None:
        self.objective, self.steps = objective, steps
        with torch.no_grad():
            objective.begin(steps)

    def change(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the gradients to step along in place of those of the loss.

        Raises:
            ValueError: there is not one per parameter, of its shape.
        """
        changed = tuple(self.objective.gradients(self.steps, gradients))
        if not self.steps.num_done:
            self._check_gradients(changed)
        self.steps.num_done += 1
        return changed

    def _check_gradients(self, changed: Sequence[Tensor]) -> None:
        """Check a first step's; a wrong shape might be broadcast without a word."""
        expected = [tuple(each.shape) for each in self.steps.parameters]
        found = [tuple(each.shape) for each in changed]
        if found == expected:
            return
        if len(found) != len(expected):
            raise self._refusal(f"return {len(expected)} gradients", len(found))
        index = next(i for i, shape in enumerate(found) if shape != expected[i])
        raise self._refusal(f"return gradient {index} of shape {expected[index]}", found[index])

    @torch.no_grad()
    def end(self) -> LocalSteps:
        """Return the steps with what the client keeps.

        Raises:
            ValueError: the objective has not left what it keeps, or something else.
        """
        self.objective.end(self.steps)
        self._check_kept()
        self.steps.numbers = {name: self._number(name) for name in self.steps.numbers}
        return self.steps

    def _check_kept(self) -> None:
        """Check that there is a flat vector for each name, and nothing where nothing is kept."""
        keeps, kept = self.objective.keeps, self.steps.kept
        if missing := [name for name in keeps if name not in kept]:
            reason = "it keeps that"
            raise self._refusal(f"leave {', '.join(missing)} in steps.kept", because=reason)
        if others := [name for name in kept if name not in keeps]:
            raise self._refusal(f"name in keeps what it leaves in steps.kept ({others[0]!r})")
        if self.steps.numbers and not keeps:
            reason = "numbers are kept with vectors only"
            raise self._refusal("name a vector in keeps or leave no numbers", because=reason)
        weights = self.steps.weights
        for name in keeps:
            like = f"leave a vector like steps.weights in steps.kept[{name!r}]"
            if not isinstance(kept[name], Tensor):
                raise self._refusal(like, type(kept[name]).__name__)
            if kept[name].shape != weights.shape or kept[name].dtype != weights.dtype:
                found = f"{kept[name].dtype} of shape {tuple(kept[name].shape)}"
                raise self._refusal(like, found.removeprefix("torch."))

    def _number(self, name: str) -> float:
        """Return what was left under a name as a plain number, which a checkpoint can hold."""
        value = self.steps.numbers[name]
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # the last of a tensor with many entries
            need = f"leave a number in steps.numbers[{name!r}]"
            raise self._refusal(need, type(value).__name__) from None

    def _refusal(self, need: str, found: Any = "", because: str = "") -> ValueError:
        who = type(self.objective).__name__
        return ValueError(must(who, need, found=str(found), because=because))
