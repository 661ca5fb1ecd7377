"""Scores: how important an entry of the model is (docs/method.md#scores).

A score is a function of some of `weights`, `last_weights` and `grad_squares`, or a class with
options whose method `score` is one; its parameters say what it needs. Squared gradients are
measured and sent only where a score needs them. The first masks, and those of a refresh before
which no client has delivered any, rank by |W| wherever a score needs more than the weights.

Shapes: P prunable entries, natural order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fedgmr_hpc.config.axes import SubmodelConfig
from fedgmr_hpc.config.choices.registry import SCORES, register_score
from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.records import Floats

SOURCES = ("weights", "last_weights", "grad_squares")


class ScoreError(RunError):
    """A score that is another's has returned what cannot be ranked."""


class Score(Section):
    """The base of a score with options: its fields.

    Its method `score` takes some of these by name and returns one number >= 0 an entry [P]; a
    larger one is kept first. What it is given is not to be written to.

        weights: [P] the server's model.
        last_weights: [P] the same at the last refresh.
        grad_squares: [P] sums of the clients' squared gradients since the last refresh.
    """


@register_score("w")
def size(weights: Floats) -> Floats:
    """Return the weights as they are, which ranks by |W|."""
    return weights


@register_score("wg")
def moving_size(weights: Floats, last_weights: Floats) -> Floats:
    """Return |W| times how far it has moved."""
    change: Floats = weights - last_weights
    return np.abs(np.multiply(change, weights, out=change), out=change)


@register_score("g")
def squared_gradients(grad_squares: Floats) -> Floats:
    """Return the sum of squared gradients, as it is."""
    return grad_squares


def _function(name: str, choices: SubmodelConfig) -> Callable[..., Floats]:
    entry: Any = SCORES[name]
    if isinstance(entry, type):
        entry = SCORES.make(name, choices).score
    return entry  # type: ignore[no-any-return]


def check_parameters(name: str, entry: Any) -> None:
    """Refuse a score that asks for anything but `SOURCES`.

    Args:
        entry: a function, or a class with the method `score`.

    Raises:
        ValueError: it does, or is neither.
    """
    what, function = f"submodel.score {name!r}", entry
    if isinstance(entry, type):
        score = inspect.getattr_static(entry, "score", None)
        function = score.__get__(object(), entry) if hasattr(score, "__get__") else None
    if not callable(function):
        raise ValueError(must_be(what, "a function, or a class with a method `score`"))
    parameters = inspect.signature(function).parameters
    if unknown := [each for each in parameters if each not in SOURCES]:
        raise ValueError(must(what, f"have no parameters but {', '.join(SOURCES)}", unknown))


class Scorer:
    """The score that a configuration chooses.

    Attributes:
        needs: what it is computed from, of `SOURCES`.
    """

    def __init__(self, choices: SubmodelConfig) -> None:
        self.name, self._function = choices.score, _function(choices.score, choices)
        self.needs = frozenset(inspect.signature(self._function).parameters)

    def score(
        self, weights: Floats, last_weights: Floats | None, grad_squares: Floats | None
    ) -> Floats:
        """Return the scores [P], or `weights` itself to rank by |W|.

        Args:
            last_weights: None at the first refresh.
            grad_squares: None if no client has delivered any.

        Raises:
            ScoreError: a plug-in's are not one finite number >= 0 an entry.
        """
        found = dict(zip(SOURCES, (weights, last_weights, grad_squares), strict=True))
        given = {name: found[name] for name in found if name in self.needs}
        if any(value is None for value in given.values()):
            return weights
        scores = self._function(**given)
        is_given = any(scores is each for each in (weights, grad_squares) if each is not None)
        if is_given or self.name not in SCORES.origins:
            return scores
        self._check(scores, len(weights))
        # -0.0 becomes 0, since its sign bit would rank it before all others
        positive: Floats = np.asarray(scores, np.float32) + np.float32(0)
        return positive

    def _check(self, scores: Any, size: int) -> None:
        """Refuse scores of a plug-in that cannot be ranked."""
        found = np.asarray(scores)
        if found.dtype.kind not in "biuf":
            self._refuse("return an array of numbers", f"a {type(scores).__name__}")
        if found.shape != (size,):
            self._refuse(f"return one number for each of {size} entries", f"shape {found.shape}")
        with np.errstate(over="ignore"):
            least, most = np.float32(found.min()), np.float32(found.max())
        if not np.isfinite([least, most]).all():
            self._refuse("return finite numbers of float32", f"{least:g} to {most:g}")
        if least < 0:
            self._refuse("return no number below 0", f"{least:g}")

    def _refuse(self, need: str, found: str) -> NoReturn:
        raise ScoreError(must(f"submodel.score {self.name!r}", need, found=found), stage="merge")


def needs_grad_squares(choices: SubmodelConfig) -> bool:
    """Return whether clients send squared gradients."""
    is_scored = choices.kind == "importance"
    return is_scored and "grad_squares" in Scorer(choices).needs
