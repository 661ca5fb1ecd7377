"""Gradual model restoration (docs/method.md#restoration and its deviations, 19 to 25)."""

from __future__ import annotations

import pytest

from fedgmr_hpc.config.axes import RestorationConfig
from fedgmr_hpc.fl.restoration import Plateau, Restoration

RUNGS = (1.0, 0.5, 0.2, 0.1, 0.05)


class Driven:
    """A restoration that is refreshed at 1 s, 2 s, ... and whose clients deliver when told."""

    def __init__(self, densities=RUNGS, **choices):
        choices = {"trigger": "plateau", "patience": 2, **choices}
        self.rules = Restoration(RestorationConfig(**choices), list(densities))
        self.now_s = 0.0
        self.server = 0.0

    def refresh(self, server=None, clients=None, now_s=None, times=None, pacing=(0,)):
        """`server` None: a score better than ever."""
        self.now_s = self.now_s + 1 if now_s is None else now_s
        self.server += 0.001
        server = self.server if server is None else server
        times = times or [None] * len(self.rules.densities)
        return self.rules.refresh(self.now_s, server, clients or {}, times, frozenset(pacing))

    def series(self, servers, clients=()):
        """Densities after each refresh; client scores are constant, everybody has delivered."""
        found = []
        for score in servers:
            self.deliver_all()
            found.append(self.refresh(score, dict(clients)))
        return found

    def deliver_all(self):
        for client, density in enumerate(self.rules.densities):
            self.rules.deliver(client, density)


def lifted(floor: float) -> list[float]:
    return [max(rung, floor) for rung in RUNGS]


# --- the counter (docs/method.md#stagnation)


def test_the_first_score_is_the_best():
    plateau = Plateau()
    plateau.add(0.3)
    assert (plateau.best, plateau.count) == (0.3, 0)


def test_scores_not_above_the_best_count_and_a_new_best_starts_again():
    plateau, counts = Plateau(), []
    for score in (0.5, 0.4, 0.5, 0.45, 0.51, 0.51):
        plateau.add(score)
        counts.append(plateau.count)
    assert counts == [0, 1, 2, 3, 0, 1]
    assert plateau.best == 0.51


def test_after_a_reset_any_score_is_the_best():
    plateau = Plateau(0.9, 4)
    plateau.reset()
    plateau.add(0.1)
    assert (plateau.best, plateau.count) == (0.1, 0)


# --- the server (docs/method.md#rules-at-a-refresh, rules 1, 2, 3, 5)


def test_nothing_is_restored_without_a_trigger():
    driven = Driven(trigger="none", patience=1)
    assert driven.series([0.5] * 9, {1: 0.1, 4: 0.1}) == [list(RUNGS)] * 9


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_scores_without_a_new_best_lift_the_floor(patience):
    found = Driven(patience=patience).series([0.5] * (patience + 1))
    assert found == [list(RUNGS)] * patience + [lifted(0.1)]


def test_a_new_best_in_time_restores_nothing():
    assert Driven().series([0.5, 0.5, 0.6, 0.6, 0.7, 0.7])[-1] == list(RUNGS)


def test_the_floor_starts_at_the_lowest_density():
    assert Driven((1.0, 0.5)).rules.floor == 0.5
    assert Driven((1.0, 0.5)).series([0.5] * 3)[-1] == [1.0, 1.0]


@pytest.mark.parametrize(("patience", "silent"), [(1, 0), (2, 1), (3, 2)])
def test_a_server_restoration_silences_the_next_patience_less_one_refreshes(patience, silent):
    first = patience + 1  # refresh of the first restoration
    # then `silent` refreshes that do not count, a first best, and `patience` stagnations
    second = first + silent + 1 + patience
    found = Driven(patience=patience).series([0.5] * second)
    assert found[first - 1 : second - 1] == [lifted(0.1)] * (second - first)
    assert found[second - 1] == lifted(0.2)


def test_scores_in_a_silent_refresh_do_not_count():
    driven = Driven()
    driven.series([0.5] * 3)
    driven.series([0.9], {1: 0.9})  # silent: neither becomes a best
    assert driven.rules.server.best is None
    assert driven.rules.clients[1].best is None


def test_a_server_restoration_resets_every_score():
    driven = Driven()
    driven.series([0.5] * 2, {0: 0.3, 1: 0.3})
    driven.series([0.5])
    assert [p.best for p in (driven.rules.server, *driven.rules.clients)] == [None] * 6


def test_the_floor_climbs_all_rungs_to_one_and_stays():
    found = Driven(patience=1).series([0.5] * 20)
    climbed = [found[0], *(new for old, new in zip(found, found[1:], strict=False) if new != old)]
    assert climbed == [list(RUNGS), lifted(0.1), lifted(0.2), lifted(0.5), [1.0] * 5]


def test_lifted_clients_start_their_score_anew():
    driven = Driven((1.0, 0.5, 0.1), patience=3)
    driven.refresh(0.5, {2: 0.4})
    driven.refresh(0.5, {2: 0.4})
    driven.refresh(0.5)
    driven.refresh(0.5)
    assert driven.rules.densities == [1.0, 0.5, 0.5]
    assert (driven.rules.clients[2].best, driven.rules.clients[2].count) == (None, 0)


def test_arming_lets_the_first_plateau_only_open_the_gate():
    driven = Driven(arm_after_first_plateau=True)
    # best, 1, 2: armed and counting from zero; 1, 2: restored
    assert driven.series([0.5] * 4)[-1] == list(RUNGS)
    assert driven.series([0.5])[-1] == lifted(0.1)
    # armed once only: silent, best, 1, 2
    assert driven.series([0.5] * 4)[-1] == lifted(0.2)


def test_arming_does_not_hold_clients_back():
    driven = Driven(arm_after_first_plateau=True)
    assert driven.series([None] * 3, {2: 0.3})[-1] == [1.0, 0.5, 0.5, 0.1, 0.05]


# --- a client (docs/method.md#rules-at-a-refresh, rules 1, 4, 5)


def test_a_stagnating_client_climbs_one_rung_alone():
    found = Driven().series([None] * 3, {3: 0.3})
    assert found == [list(RUNGS), list(RUNGS), [1.0, 0.5, 0.2, 0.2, 0.05]]


def test_a_full_client_stays_full():
    assert Driven(patience=1).series([None] * 4, {0: 0.3})[-1] == list(RUNGS)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_a_restored_client_rests_for_twice_the_patience(patience):
    first = patience + 1
    second = first + 2 * patience  # its counter is full before, and waits
    found = Driven(patience=patience).series([None] * second, {4: 0.3})
    assert [row[4] for row in found] == ([0.05] * (first - 1) + [0.1] * (second - first) + [0.2])


def test_cool_downs_of_clients_fall_in_silent_refreshes_too():
    driven = Driven(patience=3)
    driven.series([None] * 4, {1: 0.3})
    assert driven.rules.cooldowns[1] == 6
    driven.rules.server_cooldown = 2
    driven.series([0.5] * 2)
    assert driven.rules.cooldowns[1] == 4


def test_a_client_restoration_resets_the_server_and_itself_only():
    driven = Driven()
    driven.series([0.8], {2: 0.3, 3: 0.1})
    driven.series([0.8], {2: 0.3, 3: 0.2})
    driven.series([0.9], {2: 0.3, 3: 0.3})  # client 2 restores
    assert driven.rules.server.best is None
    assert driven.rules.clients[2].best is None
    assert driven.rules.clients[3].best == 0.3


def test_a_client_stagnating_with_the_server_climbs_from_its_own_density():
    """Rule 5 follows rule 4; rule 4 forgets best scores, not who has stagnated just now."""
    found = Driven().series([0.5] * 3, {2: 0.3})
    assert found[-1] == [1.0, 0.5, 0.5, 0.1, 0.1]


def test_a_client_that_is_not_measured_does_not_stagnate():
    driven = Driven()
    driven.refresh(None, {3: 0.3})
    for _ in range(10):
        assert driven.refresh(None, {}) == list(RUNGS)
    driven.refresh(None, {3: 0.3})
    assert driven.refresh(None, {3: 0.3})[3] == 0.2


def test_a_client_cannot_restore_again_before_it_delivers_at_its_new_density():
    driven = Driven(patience=1)
    for _ in range(2):
        driven.refresh(None, {4: 0.3})
    assert driven.rules.densities[4] == 0.1
    for _ in range(6):  # past its cool-down
        driven.rules.deliver(4, 0.05)  # what was under way still has the old density
        assert driven.refresh(None, {4: 0.3})[4] == 0.1
    driven.rules.deliver(4, 0.1)
    assert driven.refresh(None, {4: 0.3})[4] == 0.2


def test_a_client_lifted_to_the_floor_must_deliver_before_it_restores_itself():
    driven = Driven((1.0, 0.5, 0.2, 0.1), patience=1)
    driven.refresh(0.5)
    driven.refresh(0.5)
    assert driven.rules.densities == [1.0, 0.5, 0.2, 0.2]
    for _ in range(4):
        assert driven.refresh(None, {3: 0.3})[3] == 0.2
    driven.rules.deliver(3, 0.2)
    assert driven.refresh(None, {3: 0.3})[3] == 0.5


def test_the_floor_follows_clients_that_restored_themselves():
    driven = Driven((1.0, 0.5, 0.2), patience=1)
    for _ in range(2):
        driven.refresh(None, {2: 0.3})
    assert driven.rules.floor == 0.5
    driven.refresh(0.9)
    assert driven.refresh(0.9) == [1.0, 1.0, 1.0]


# --- next(P)


@pytest.mark.parametrize(
    ("density", "following"),
    [(0.05, 0.1), (0.1, 0.2), (0.2, 0.5), (0.5, 1.0), (1.0, 1.0), (0.095, 0.2), (0.085, 0.1)],
)
def test_ladder_is_the_smallest_rung_more_than_a_hundredth_above(density, following):
    assert Driven().rules.next_density(density) == following


def test_the_ladder_of_a_population_without_a_full_client_ends_at_one():
    rules = Driven((0.2, 0.1)).rules
    assert [rules.next_density(d) for d in (0.1, 0.2, 1.0)] == [0.2, 1.0, 1.0]


@pytest.mark.parametrize(
    ("choices", "density", "following"),
    [
        ({"step": "fixed", "fixed_step": 0.1}, 0.05, 0.15),
        ({"step": "fixed", "fixed_step": 0.3}, 0.5, 0.8),
        ({"step": "fixed", "fixed_step": 0.3}, 0.8, 1.0),
        ({"step": "factor", "factor": 2.0}, 0.05, 0.1),
        ({"step": "factor", "factor": 3.0}, 0.2, 0.6),
        ({"step": "factor", "factor": 3.0}, 0.5, 1.0),
    ],
)
def test_fixed_and_factor_steps_end_at_one(choices, density, following):
    assert Driven(**choices).rules.next_density(density) == pytest.approx(following, rel=1e-12)


def test_nine_fixed_steps_of_a_tenth_lead_from_a_tenth_to_exactly_one():
    rules, density = Driven(step="fixed", fixed_step=0.1).rules, 0.1
    for _ in range(9):
        density = rules.next_density(density)
    assert density == 1.0


# --- time


@pytest.mark.parametrize(
    ("now_s", "floor"),
    [(19.9, 0.05), (20, 0.1), (39.9, 0.1), (40, 0.2), (60, 0.5), (80, 1.0), (500, 1.0)],
)
def test_the_floor_climbs_a_rung_at_each_fifth_of_the_total_time(now_s, floor):
    driven = Driven(trigger="time", total_time_s=100)
    assert driven.refresh(0.5, now_s=now_s) == lifted(floor)


@pytest.mark.parametrize(
    ("step", "floors"),
    [
        ({"step": "fixed", "fixed_step": 0.1}, [0.15, 0.25, 0.35, 0.45, 0.55, 0.55]),
        ({"step": "factor", "factor": 1.5}, [0.075, 0.1125, 0.16875, 0.253125, 0.379688, 0.379688]),
    ],
)
def test_the_whole_time_is_the_fifth_step(step, floors):
    driven = Driven(trigger="time", total_time_s=100, **step)
    found = [min(driven.refresh(now_s=now_s)) for now_s in (20, 40, 60, 80, 100, 120)]
    assert found == pytest.approx(floors, rel=1e-5)


def test_each_time_fires_once():
    driven = Driven(trigger="time", total_time_s=100)
    found = [driven.refresh(0.5, now_s=t) for t in (10, 21, 30, 39, 41, 55)]
    assert found == [lifted(f) for f in (0.05, 0.1, 0.1, 0.1, 0.2, 0.2)]


def test_the_time_trigger_ignores_scores():
    driven = Driven(trigger="time", patience=1, total_time_s=1000)
    assert driven.series([0.5] * 9, {4: 0.3})[-1] == list(RUNGS)
    assert not driven.rules.watches_scores


def test_both_triggers_restore():
    driven = Driven(trigger="both", total_time_s=100)
    assert driven.rules.watches_scores
    assert driven.series([0.5] * 3)[-1] == lifted(0.1)
    assert driven.refresh(0.9, now_s=20) == lifted(0.2)
    assert driven.refresh(0.9, now_s=40) == lifted(0.5)


# --- balance, formula (4)


@pytest.mark.parametrize(
    ("density", "time_s", "balanced"),
    [
        (0.5, 20, 0.375),  # .5 (1 + .5 (10 - 20) / 20)
        (0.5, 8, 0.5625),  # .5 (1 + .5 x 2 / 8)
        (0.2, 10, 0.2),
        (0.1, 7, 0.1214),  # .1 (1 + 1.5 / 7) = .12142857
        (0.9, 2, 1.0),  # 2.7
        (0.03, 1000, 0.02),  # .01515
    ],
)
def test_balance_is_formula_4(density, time_s, balanced):
    driven = Driven((1.0, density), trigger="none", balance=True)
    found = driven.refresh(times=[10, time_s])
    assert found == [1.0, balanced]


def test_the_balance_rate_and_the_lowest_density_are_choices():
    driven = Driven((1.0, 0.5, 0.1), balance=True, balance_rate=0.9, min_density=0.06)
    # .5 (1 - .9 / 2) = .275; .1 (1 - .9 x .9) = .019
    assert driven.refresh(times=[10, 20, 100]) == [1.0, 0.275, 0.06]


def test_balance_waits_for_measured_times():
    driven = Driven((1.0, 0.5, 0.2), balance=True)
    assert driven.refresh(times=[None, 20, 20]) == [1.0, 0.5, 0.2]
    assert driven.refresh(times=[10, None, 20]) == [1.0, 0.5, 0.15]


def test_balance_goes_on_until_the_first_restoration_and_ends_there():
    driven = Driven((1.0, 0.5), balance=True)
    times = [10, 12.5]  # a tenth less each time
    assert driven.refresh(0.5, times=times) == [1.0, 0.45]
    assert driven.refresh(0.5, times=times) == [1.0, 0.405]
    assert driven.refresh(0.5, times=times) == [1.0, 0.5]  # restored: the next rung, unbalanced
    assert driven.refresh(None, times=times) == [1.0, 0.5]


def test_a_time_step_ends_the_balance():
    driven = Driven((1.0, 0.5), trigger="time", total_time_s=100, balance=True)
    assert driven.refresh(now_s=20, times=[10, 20]) == [1.0, 1.0]
    assert driven.refresh(now_s=21, times=[10, 20]) == [1.0, 1.0]


def test_the_floor_follows_the_balance():
    driven = Driven((1.0, 0.5), balance=True)
    driven.refresh(times=[10, 20])
    assert driven.rules.floor == 0.375


# --- clients that are gone


def test_a_lost_client_does_not_hold_the_floor_down():
    driven = Driven()
    driven.rules.lose(4)
    assert driven.series([0.5] * 3)[-1] == [1.0, 0.5, 0.2, 0.2, 0.05]  # from .1, not from .05


def test_a_lost_client_keeps_its_density_and_is_never_restored():
    driven = Driven(patience=1)
    driven.refresh(None, {3: 0.3})
    driven.rules.clients[3].count = 9  # stagnated, waiting for its next delivery
    driven.rules.lose(3)
    assert [driven.refresh(None) for _ in range(5)] == [list(RUNGS)] * 5
    assert driven.rules.server.best is not None  # nothing of it resets the server's count
    assert driven.rules.active_densities() == {0: 1.0, 1: 0.5, 2: 0.2, 4: 0.05}


def test_the_balance_takes_no_floor_from_a_lost_client():
    driven = Driven((1.0, 0.5, 0.1), trigger="none", balance=True)
    driven.rules.lose(2)
    assert driven.refresh(times=[10, 20, None]) == [1.0, 0.375, 0.1]
    assert driven.rules.floor == 0.375


def test_the_time_trigger_goes_on_without_a_lost_client():
    driven = Driven((1.0, 0.5, 0.1), trigger="time", total_time_s=100)
    driven.rules.lose(2)
    assert driven.refresh(now_s=20) == [1.0, 0.5, 0.1]  # the floor, .1, climbs to .5
    assert driven.refresh(now_s=40) == [1.0, 1.0, 0.1]


# --- clients short of memory or speed


def limited(ceilings, densities=RUNGS, **choices) -> Driven:
    driven = Driven(densities, **choices)
    driven.rules = Restoration(driven.rules.config, list(densities), tuple(ceilings))
    return driven


def test_a_client_begins_at_its_ceiling_if_that_is_lower():
    rules = limited((0.7, 1.0, 0.1, 0.1, 1.0)).rules
    assert rules.densities == [0.7, 0.5, 0.1, 0.1, 0.05]
    assert rules.rungs == (0.05, 0.1, 0.2, 0.5, 1.0)  # of the shares, whatever the ceilings
    assert rules.floor == 0.05


def test_a_client_climbs_to_its_ceiling_between_two_rungs_and_stays():
    found = limited((1.0, 1.0, 0.3, 1.0, 1.0), patience=1).series([None] * 12, {2: 0.3})
    climbed = [found[0][2], *(new[2] for old, new in zip(found, found[1:], strict=False)
                              if new != old)]  # fmt: skip
    assert climbed == [0.2, 0.3]


def test_the_floor_lifts_everybody_up_to_their_ceilings():
    driven = limited((1.0, 0.6, 1.0, 0.15, 0.05), patience=1)
    found = driven.series([0.5] * 20)
    assert found[1] == [1.0, 0.5, 0.2, 0.1, 0.05]  # the floor, .1, is above the last's ceiling
    assert found[-1] == [1.0, 0.6, 1.0, 0.15, 0.05]
    assert driven.rules.floor == 1.0


def test_a_client_at_its_ceiling_does_not_reset_the_server():
    driven = limited((1.0, 1.0, 0.2, 1.0, 1.0), patience=1)
    driven.refresh(0.5, {2: 0.3})
    driven.refresh(0.6, {2: 0.3})
    assert driven.rules.densities == list(RUNGS)
    assert driven.rules.server.best == 0.6


def test_the_balance_ends_at_the_ceiling_even_below_the_lowest_density():
    driven = limited((1.0, 0.52, 0.01), (1.0, 0.5, 0.1), balance=True)
    assert driven.rules.densities == [1.0, 0.5, 0.01]
    # .5 (1 + .5 x 2 / 8) = .5625; .01 (1 + .5 x 9 / 1) = .055
    assert driven.refresh(times=[10, 8, 1]) == [1.0, 0.52, 0.01]


@pytest.mark.parametrize("trigger", ["plateau", "time", "both"])
@pytest.mark.parametrize("step", [{"step": "ladder"}, {"step": "fixed", "fixed_step": 0.3},
                                  {"step": "factor", "factor": 3.0}])  # fmt: skip
def test_ceilings_are_never_exceeded(trigger, step):
    ceilings = (0.9, 0.5, 0.35, 0.1, 0.61)
    driven = limited(ceilings, trigger=trigger, patience=1, total_time_s=20, balance=True, **step)
    for _ in range(40):
        driven.deliver_all()
        found = driven.refresh(0.5, dict.fromkeys(range(5), 0.3), times=[9, 8, 7, 6, 5])
        assert all(d <= c for d, c in zip(found, ceilings, strict=True))
    assert found == list(ceilings)
