"""A run that ends at chance with a huge loss says so in its summary; any other does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_summary import CONFIG, evaluation, write

from fedgmr_hpc.results.summary import render_summary
from fedgmr_hpc.storage.reader import Result, read_result

NAN = float("nan")


def ended(path: Path, val: float, loss: float, config: str = CONFIG, first: float = 0.1) -> Result:
    start = replace(evaluation(0, first, first, 1.0), val_loss=2.3)
    last = replace(evaluation(4, val, val, 1.0), val_loss=loss)
    return read_result(write(path / "run.h5", evaluations=[start, last], config=config))


@pytest.mark.parametrize(
    ("val", "loss", "first", "is_lost"),
    [
        (0.1, 4.7, 0.1, True),  # a guess has 0.1 and ln 10 = 2.30
        (0.1, NAN, 0.1, True),
        (0.1, 4.5, 0.1, False),  # at chance, as at the beginning of any run
        (0.2, 1e4, 0.1, True),  # classes are of unequal size
        (0.21, 1e4, 0.1, False),
        (0.21, 1e4, 0.25, True),  # no better than untrained
        (NAN, NAN, 0.1, False),  # the last evaluation that is known is the first
        (0.9, 50.0, 0.1, False),
    ],
)
def test_only_a_guess_that_is_sure_of_itself_is_warned_of(
    val: float, loss: float, first: float, is_lost: bool, tmp_path: Path
) -> None:
    text = render_summary(ended(tmp_path, val, loss, first=first))
    assert ("  warning        val accuracy" in text) == is_lost


def test_the_warning_has_both_numbers_and_the_key_to_look_at(tmp_path: Path) -> None:
    config = f"{CONFIG}train: {{learning_rate: 10.0}}\n"
    assert (
        "  warning        val accuracy 9.80 %, a guess has 10.00 %, at val loss 512, a guess has "
        "2.3: it has diverged; look at train.learning_rate = 10.0"
    ) in render_summary(ended(tmp_path, 0.098, 512.0, config)).splitlines()


@pytest.mark.parametrize(
    ("layout", "norms", "kind", "is_named"),
    [
        ("bn1.running_mean", "tracked", "importance", True),
        ("bn1.running_mean", "static", "importance", False),
        ("bn1.running_mean", "tracked", "full", False),
        ("fc.weight", "tracked", "importance", False),
    ],
)
def test_statistics_merged_from_sub_models_are_named(
    layout: str, norms: str, kind: str, is_named: bool, tmp_path: Path
) -> None:
    config = f"{CONFIG}train: {{batch_norm: {norms}}}\nsubmodel: {{kind: {kind}}}\n"
    result = replace(ended(tmp_path, 0.1, 512.0, config), layout_json=layout)
    assert ("train.batch_norm = tracked" in render_summary(result)) == is_named


def test_a_guess_is_measured_by_the_loss_and_the_data_of_the_run(tmp_path: Path) -> None:
    bce = f"{CONFIG}train: {{loss: bce}}\n"  # ln 2 where all classes are equally likely
    assert "a guess has 0.693" in render_summary(ended(tmp_path, 0.1, 1.5, bce))
    words = CONFIG.replace("digits", "stackoverflow")  # 5 guesses of 10,004 words
    (tmp_path / "words").mkdir()
    assert "a guess has 0.05 %" in render_summary(ended(tmp_path / "words", 0.0004, 50.0, words, 0))
