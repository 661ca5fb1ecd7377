"""A user's rules in the server: what each is given, and what it may do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from registering import registered

from fedgmr_hpc.config.axes import AdmissionConfig, AggregationConfig, RestorationConfig
from fedgmr_hpc.config.choices.open_section import with_option_defaults
from fedgmr_hpc.config.choices.registry import (
    ADMISSIONS,
    AGGREGATIONS,
    RESTORATIONS,
)
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.fl.admission import Admission, AdmissionRule
from fedgmr_hpc.fl.aggregation import MeanRule, ServerRule
from fedgmr_hpc.fl.buffer import UpdateBuffer
from fedgmr_hpc.fl.restoration import Restoration, Schedule
from fedgmr_hpc.fl.submodels import full_masks
from fedgmr_hpc.fl.updates import Update


class Raising(Schedule):
    """Every density by `step`, counting the refreshes."""

    watches_scores = True
    raise_step: float = 0.25

    def densities(self, refresh):
        refresh.state["seen"] = [*refresh.state.get("seen", []), refresh.server_score]
        return [density + self.raise_step for density in refresh.densities]


def restoration(entry, densities=(0.5, 0.25), ceilings=(), **options) -> Restoration:
    given = with_option_defaults(RestorationConfig, {"trigger": "mine", **options})
    config = RestorationConfig.model_validate(given)
    return Restoration(config, list(densities), tuple(ceilings))


def refreshed(rules, score=0.5):
    return rules.refresh(1.0, score, {}, [None] * len(rules.densities), frozenset({0}))


def test_a_schedule_sets_densities_up_to_the_ceilings():
    with registered(RESTORATIONS, Raising):
        rules = restoration(Raising, ceilings=(0.6, 1.0))
        assert rules.watches_scores
        assert refreshed(rules) == [0.6, 0.5]


def test_none_is_raised_again_before_its_client_has_delivered():
    with registered(RESTORATIONS, Raising):
        rules = restoration(Raising, raise_step=0.125)
        assert refreshed(rules) == [0.625, 0.375]
        rules.deliver(0, 0.625)
        rules.deliver(1, 0.25)  # still trained at its old density
        assert refreshed(rules) == [0.75, 0.375]


def test_clients_that_are_gone_keep_their_density():
    with registered(RESTORATIONS, Raising):
        rules = restoration(Raising)
        rules.lose(1)
        assert refreshed(rules) == [0.75, 0.25]


def test_the_state_of_a_schedule_is_saved():
    with registered(RESTORATIONS, Raising):
        rules, again = restoration(Raising), restoration(Raising)
        refreshed(rules, 0.5)
        again.restore(json.loads(json.dumps(rules.state())))
        refreshed(again, 0.75)
        assert again.own == {"seen": [0.5, 0.75]}
        assert rules.own == {"seen": [0.5]}


class Lowering(Schedule):
    def densities(self, refresh):
        return [density / 2 for density in refresh.densities]


def test_densities_may_fall_and_scores_need_not_be_watched():
    with registered(RESTORATIONS, Lowering):
        rules = restoration(Lowering)
        assert not rules.watches_scores
        assert refreshed(rules) == [0.25, 0.125]


@pytest.mark.parametrize("wrong", [[0.5], [0.5, 0.0], [0.5, float("nan")], [0.5, -1.0]])
def test_a_schedule_gives_every_client_a_density(wrong):
    class Wrong(Schedule):
        def densities(self, refresh):
            return wrong

    with registered(RESTORATIONS, Wrong), pytest.raises(RunError) as caught:
        refreshed(restoration(Wrong))
    assert "schedule Wrong must give each of 2 clients a density > 0" in str(caught.value)


class Share(AdmissionRule):
    """Waits for a share of the clients, one more every time."""

    share: float = 0.5

    def close_s(self, window):
        need = int(self.share * len(window.taking)) + window.state.get("more", 0)
        if len(window.arrived) < need:
            return None
        window.state["more"] = window.state.get("more", 0) + 1
        return window.now_s + 2.0


def admission(**options) -> Admission:
    given = with_option_defaults(AdmissionConfig, {"kind": "mine", **options})
    return Admission(AdmissionConfig.model_validate(given), (1.0,) * 4)


def test_an_admission_rule_says_when_a_window_closes():
    with registered(ADMISSIONS, Share):
        window = admission()
        assert window.close_s(1.0, {0}) is None
        assert window.close_s(2.0, {0, 3}) == 4.0
        assert window.close_s(3.0, {0, 2, 3}) is None  # it has been said
        window.merge(3)
        assert window.round == 1
        assert window.close_s(5.0, {0, 1}) is None
        assert window.close_s(6.0, {0, 1, 2}) == 8.0


def test_its_state_is_saved():
    with registered(ADMISSIONS, Share):
        window, again = admission(), admission()
        window.close_s(1.0, {0, 1})
        window.merge(2)
        again.restore(json.loads(json.dumps(window.state())))
        assert again.close_s(2.0, {0, 1}) is None
        assert again.close_s(3.0, {0, 1, 2}) == 5.0


def test_a_window_closes_when_everybody_has_arrived():
    class Never(AdmissionRule):
        def close_s(self, window):
            return None

    with registered(ADMISSIONS, Never):
        window = admission()
        assert window.close_s(1.0, {0, 1, 2}) is None
        assert window.close_s(2.0, {0, 1, 2, 3}) == 2.0


@pytest.mark.parametrize(("said", "close_s"), [(0.5, 3.0), (float("inf"), None)])
def test_no_window_closes_in_the_past_or_at_no_time(said, close_s):
    class Odd(AdmissionRule):
        def close_s(self, window):
            return said

    with registered(ADMISSIONS, Odd):
        assert admission().close_s(3.0, {1}) == close_s
        assert admission().close_s(3.0, set()) is None
        assert admission().close_s(3.0, {0, 1, 2, 3}) == 3.0  # with nothing left to wait for


class Deadline(AdmissionRule):
    """Closes 10 seconds after the opening."""

    def close_s(self, window):
        return window.opened_s + 10.0


def test_a_deadline_counts_from_the_opening_of_the_window():
    with registered(ADMISSIONS, Deadline):
        window, again = admission(), admission()
        assert window.close_s(4.0, {0}) == 10.0
        window.merge(1)
        window.open({1, 2}, 10.5)
        again.restore(json.loads(json.dumps(window.state())))
        for each in (window, again):
            assert each.close_s(12.0, {1}) == 20.5
            each.open({1, 2}, 21.0)
            assert each.close_s(33.0, {1}) == 33.0  # the first arrival is after the deadline
        old = window.state()
        del old["opened_s"]  # as in a checkpoint of before
        again.restore(old)


FLOATS = np.array([1, 2, 3], np.float32)


class Looking(MeanRule):
    """Notes what it is told of the updates."""

    numbers = {"seen": None}

    def prepare(self, merge, numbers):
        told = [[each.client, each.density, each.train_loss] for each in merge.entries]
        numbers["seen"] = [merge.version, merge.ages, told]

    def step(self, old, mean, part): ...


def update(client, base_version, density, train_loss) -> Update:
    return Update(client, base_version, 0, 0, density, train_loss, 0.5, 20,
                  values=FLOATS, dense=FLOATS[:1], grad_squares=None)  # fmt: skip


def test_an_aggregation_rule_sees_ages_losses_and_densities():
    masks, buffer = full_masks(3), UpdateBuffer(AggregationConfig(buffered=True))
    buffer.add(update(1, 4, 1.0, 0.75), masks)
    buffer.add(update(0, 2, 0.5, 0.25), masks)
    state = buffer.state()
    for fields in state["arrived"][:1]:
        del fields["density"], fields["train_loss"]  # as in a checkpoint of before
    buffer.restore(state, {0: masks})
    with registered(AGGREGATIONS, Looking):
        rule = ServerRule(AggregationConfig(rule="mine"), (3, 1), (3, 1))
        held = FLOATS, FLOATS[:1]
        rule.merge(held, buffer.take(masks), buffer.waiting(), masks, np.array([2, 4]), 4)
    (version, ages, told) = rule.state.numbers["seen"]
    assert (version, ages) == (4, [3, 1])
    np.testing.assert_equal(told, [[0, 0.5, 0.25], [1, 1.0, np.nan]])
