"""How long a run trains, and how many rounds it has at most, before it is run."""

from __future__ import annotations

import pytest

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.doctor import estimate
from fedgmr_hpc.doctor.estimate import RankSpeed

SECOND = RankSpeed((0.05, 1.0), (1.0, 1.0), 0.0)  # a training takes 1 s, an evaluation nothing


def total_s(words: list[str], num_ranks: int) -> float:
    """Return the seconds of 100 rounds of training, beside what an evaluation takes."""
    config = load_config("digits", words)
    computing_s = estimate.compute_s(config, [SECOND] * num_ranks, 100, 0, 0, 0)
    return computing_s * estimate.EFFICIENCY


@pytest.mark.parametrize("method", ["fedgmr", "fedavg", "fedbuff", "fedasync_seq"])
def test_no_more_ranks_train_than_clients_take_part(method: str) -> None:
    count = ["admission.count=2"] * (method == "fedbuff")
    words = [f"method={method}", "clients.count=100", "clients.sampled=2", *count]
    assert total_s(words, 32) == pytest.approx(100)
    assert total_s(words, 1) == pytest.approx(200)


@pytest.mark.parametrize(
    ("method", "num_ranks", "turns"),
    [
        ("fedavg", 4, 3),  # ten clients: 3 + 3 + 2 + 2
        ("fedavg", 9, 2),
        ("fedavg", 10, 1),
        ("fedavg", 32, 1),
        ("fedbuff", 4, 2.5),  # nobody waits for the ranks that have more to do
    ],
)
def test_a_barrier_takes_whole_turns(method: str, num_ranks: int, turns: float) -> None:
    words = [f"method={method}", "clients.count=10", f"clients.shares=[{','.join(['1'] * 10)}]"]
    assert total_s(words, num_ranks) == pytest.approx(100 * turns)


def test_a_round_is_no_shorter_than_the_longest_training_that_it_waits_for() -> None:
    shares = ["clients.count=4", "clients.shares=[1,0.2,0.2,0.2]"]
    times_s = [1.0, 0.2, 0.2, 0.2]
    for method in ("heterofl", "wo_gmr"):  # of the widest model; a window's best link has it, too
        config = load_config("digits", [f"method={method}", *shares])
        assert estimate.training_s(config, times_s, 4) == 1.0
        assert estimate.training_s(config, times_s, 1) == pytest.approx(1.6)


def test_clients_that_stay_on_a_rank_may_meet_there() -> None:
    words = ["method=fedavg", "clients.count=4", "clients.sampled=2"]
    free = load_config("digits", words)
    held = load_config("digits", [*words, "wire.dtype=int8"])  # with errors fed back
    assert estimate.training_s(free, [1.0] * 4, 2) == 1.0
    # two of four, on two ranks: a third of the pairs share one, 4 s of 3 rounds
    assert estimate.training_s(held, [1.0] * 4, 2) == pytest.approx(4 / 3, abs=0.15)


@pytest.mark.parametrize(
    ("words", "waits_s"),
    [
        (["method=fedavg"], 0.5),
        (["method=fedasync_seq"], 0.5),
        (["method=fedbuff", "admission.count=4"], 0.125),  # one of four waits for the merge
        (["method=fedbuff", "admission.count=1"], 0.5),
        (["method=fedgmr", "admission.kind=count", "admission.count=4"], 0.5),  # buffered
    ],
)
def test_a_round_holds_what_clients_wait_for_a_merge(words: list[str], waits_s: float) -> None:
    shares = ["clients.count=4", "clients.shares=[1,1,1,1]"]
    links = ["links.size=nominal", "links.nominal_mb=10", "links.merge_s=0.5"]
    config = load_config("digits", [*words, *shares, *links])
    cycle_s = 10 / 10 + 0.5 + 10 / 5  # down, training, up
    assert estimate.round_s(config, 1000, 10) == pytest.approx(cycle_s + waits_s)
