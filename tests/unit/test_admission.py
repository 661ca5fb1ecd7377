"""Who paces a window, and how long it stays open after them (spec section 2.3)."""

from __future__ import annotations

import pytest

from fedgmr_hpc.fl.admission import closing_slack_s, pacing_clients

HIGH = (1.0, 0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05)
LOW = (1.0, 1.0, 0.5, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05)


@pytest.mark.parametrize(
    ("shares", "pacing"),
    [
        (HIGH, {0}),
        (LOW, {0, 1}),
        ((0.05,), {0}),  # never fewer than one
        ((0.1, 0.5, 0.2, 0.5), {1, 3}),  # the greatest share, whatever it is and whoever has it
        ((0.05,) * 7, set(range(7))),
    ],
)
def test_a_window_is_paced_by_the_greatest_share(shares, pacing):
    assert pacing_clients("window", shares) == pacing


def test_a_barrier_is_paced_by_everybody():
    assert pacing_clients("barrier", HIGH) == set(range(10))


def test_only_a_window_has_slack():
    assert closing_slack_s("window", 0.5) == 0.5
    assert closing_slack_s("barrier", 0.5) == 0.0
