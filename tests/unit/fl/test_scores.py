"""Scores: the built-in ones by hand, and what the server asks of any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from registering import registered

from fedgmr_hpc.config.axes import SubmodelConfig
from fedgmr_hpc.config.choices.plugins import load_plugins
from fedgmr_hpc.config.choices.registry import SCORES
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.fl.masking import Masking
from fedgmr_hpc.fl.scores import Score, Scorer, needs_grad_squares
from fedgmr_hpc.fl.submodels import PrunableLayer, full_masks, rank_entries


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


W, PREVIOUS, SQUARES = floats(2, -3, 0.5), floats(1, -3, -0.5), floats(7, 8, 9)
LAYERS = [PrunableLayer("only", 0, 3, 1.0)]


def scorer(kind) -> Scorer:
    return Scorer(SubmodelConfig(score=kind))


def ranking(kind, previous, squares) -> list[int]:
    """As a refresh does it: the scores may be the very weights, which rank by size."""
    weights = W.copy()
    scores = scorer(kind).score(weights, previous, squares)
    keys = rank_entries(weights, scores, LAYERS, floor_frac=0.0)
    return np.argsort(keys, kind="stable").tolist()


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("w", [1, 0, 2]),
        ("wg", [0, 2, 1]),  # 2, 0, .5
        ("g", [2, 1, 0]),
    ],
)
def test_entries_rank_by_the_score_that_was_chosen(kind, order):
    assert ranking(kind, PREVIOUS, SQUARES) == order


def test_score_wg_is_the_size_of_weight_times_change():
    assert scorer("wg").score(W, PREVIOUS, None).tolist() == [2, 0, 0.5]


@pytest.mark.parametrize("kind", ["w", "wg", "g"])
def test_the_first_masks_use_the_weights(kind):
    assert ranking(kind, None, None) == [1, 0, 2]


@pytest.mark.parametrize("kind", ["w", "wg", "g"])
def test_ranking_leaves_what_scores_were_made_from(kind):
    previous, squares = PREVIOUS.copy(), SQUARES.copy()
    ranking(kind, previous, squares)
    assert np.array_equal(previous, PREVIOUS) and np.array_equal(squares, SQUARES)


def test_parameters_say_what_a_score_needs():
    needs = {kind: set(scorer(kind).needs) for kind in ("w", "wg", "g")}
    assert needs == {
        "w": {"weights"}, "wg": {"weights", "last_weights"}, "g": {"grad_squares"},
    }  # fmt: skip
    assert [needs_grad_squares(SubmodelConfig(score=k)) for k in needs] == [False, False, True]
    assert not needs_grad_squares(SubmodelConfig(kind="magnitude", score="g"))


class Power(Score):
    """Squared gradients to a power."""

    power: float = 0.5

    def score(self, grad_squares):
        return grad_squares**self.power


def test_a_class_has_options():
    with registered(SCORES, Power, "power"):
        section = SubmodelConfig.model_validate({"score": "power", "power": 2.0})
        assert Scorer(section).score(W, None, SQUARES).tolist() == [49, 64, 81]
        assert needs_grad_squares(section)


def test_a_score_sees_the_model_of_the_last_refresh():
    seen = []

    def change(weights, last_weights):
        seen.append((weights.tolist(), last_weights.tolist()))
        return np.abs(weights - last_weights)

    with registered(SCORES, change, "change"):
        masking = Masking(SubmodelConfig(score="change"), LAYERS)
        masking.newest = full_masks(3)
        for packed in (floats(1, 2, 3), floats(4, 2, 1)):
            masking.newest = full_masks(3)
            masking.cut(packed, [0.5], 0)
    assert seen == [([4, 2, 1], [1, 2, 3])]


@pytest.mark.parametrize(
    ("bad", "need"),
    [
        ([1.0, 2.0], "return one number for each of 3 entries (got shape (2,))"),
        ([[1.0, 2, 3]], "return one number for each of 3 entries (got shape (1, 3))"),
        (None, "return an array of numbers (got a NoneType)"),
        (["1", "2", "3"], "return an array of numbers (got a list)"),
        ([np.nan, 0, 0], "return finite numbers of float32 (got nan to nan)"),
        ([1.0, 2e300, 0], "return finite numbers of float32 (got 0 to inf)"),
        ([-1.5, 0, 0], "return no number below 0 (got -1.5)"),
    ],
)
def test_a_score_is_told_what_is_wrong_with_its_numbers(bad, need):
    with registered(SCORES, lambda weights: bad, "bad"), pytest.raises(RunError) as caught:
        scorer("bad").score(W, None, None)
    assert f"submodel.score 'bad' must {need}" in str(caught.value)


class Asking(Score):
    def score(self, weights, loss):
        return weights


class Static(Score):
    @staticmethod
    def score(loss):
        return loss


@pytest.mark.parametrize("entry", [lambda weights, loss: weights, Asking, Static])
def test_a_score_can_only_ask_for_what_there_is(entry):
    need = "must have no parameters but weights, last_weights, grad_squares .got ..loss'.."
    with pytest.raises(ValueError, match=need), registered(SCORES, entry, "odd"):
        pass
    assert "odd" not in SCORES


def test_a_score_without_a_function_is_refused():
    class Mute(Score):
        power: float = 1.0

    for entry in (Mute, 3):
        with pytest.raises(ValueError, match="a class with a method `score`"):
            with registered(SCORES, entry, "mute"):
                pass


def test_a_score_of_minus_0_ranks_as_0():
    with registered(SCORES, lambda weights: weights * 0, "signed"):
        scores = scorer("signed").score(W, None, None)
    assert scores.tolist() == [0, 0, 0] and not np.signbit(scores).any()


def test_a_score_may_be_a_tensor():
    with registered(SCORES, lambda weights: torch.from_numpy(weights).abs().double(), "tensor"):
        scores = scorer("tensor").score(W, None, None)
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float32


def test_the_parameters_of_a_score_are_refused_with_their_line(tmp_path):
    path = tmp_path / "odd_score.py"
    path.write_text(
        "import fedgmr_hpc\n\n@fedgmr_hpc.register_score('odd')\ndef odd(w, loss):\n    return w\n"
    )
    with pytest.raises(ValueError, match=r"odd_score.py:3: ValueError: submodel.score 'odd' must"):
        load_plugins([str(path)])
