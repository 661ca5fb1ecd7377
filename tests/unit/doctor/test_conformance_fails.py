"""The conformance kit can fail: plug-ins that break one promise each, and are told so."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fedgmr_hpc.config.choices.registry import REGISTRIES, registering
from fedgmr_hpc.doctor.conformance.doors import (
    check_admission,
    check_schedule,
    check_score,
    check_selection,
)
from fedgmr_hpc.doctor.conformance.merges import check_merges
from fedgmr_hpc.fl.admission import AdmissionRule
from fedgmr_hpc.fl.aggregation import MeanRule, WholeRule
from fedgmr_hpc.fl.restoration.schedule import Schedule
from fedgmr_hpc.fl.selection import SelectionRule


@contextmanager
def registered(key, entry):
    registry = next(each for each in REGISTRIES if each.key == key)
    with registering("broken"):
        registry.add("broken", entry)
    try:
        yield
    finally:
        registry.forget("broken")


def failed(check, key, entry, method="fedgmr", **more) -> set[str]:
    """Names of the checks that fail."""
    axis, _, name = key.partition(".")
    with registered(key, entry):
        found = list(check("broken", {"method": method, axis: {name: "broken", **more}}))
    return {each.name for each in found if each.has_failed}


def failed_rule(entry, method="ga") -> set[str]:
    return failed(check_merges, "aggregation.rule", entry, method)


class AbsentIsZero(MeanRule):
    def step(self, old, mean, part):
        mean.mul_(part.share(part.merge.total))


class AbsentIsZeroEverywhere(AbsentIsZero):
    keeps_missing = False


class FirstClient(WholeRule):
    def combine(self, old, values, is_held, part):
        return torch.where(is_held[0], values[0], old)


class Drifting(MeanRule):
    def step(self, old, mean, part):
        mean.add_(1e-6)


calls = itertools.count()


class Hiding(MeanRule):
    def step(self, old, mean, part):
        mean.sub_(old).mul_(1 / (1 + next(calls))).add_(old)


class ByPlace(MeanRule):
    def step(self, old, mean, part):
        mean.lerp_(old, torch.linspace(0, 1, len(old)))


class Overweight(MeanRule):
    def step(self, old, mean, part): ...

    def shares(self, merge, prepared):
        return [1.0 for _ in merge.weights]


class OtherThanSaid(MeanRule):
    def step(self, old, mean, part):
        mean.lerp_(old, 0.5)

    def expected(self, old, values, is_held, merge):
        return old


class Sticking(MeanRule):
    """Does nothing for the first entries of a part."""

    def step(self, old, mean, part):
        mean[:3] = old[:3]


class Returning(MeanRule):
    def step(self, old, mean, part):
        return old.lerp(mean, 0.5)


class Forgetful(MeanRule):
    """Takes its sum to a tensor of its own, which is lost."""

    vectors = ("sum",)

    def step(self, old, mean, part):
        total = part.vectors["sum"]
        total = total + mean - old
        mean.copy_(old + total)


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (AbsentIsZero, {"no-ops"}),
        (AbsentIsZeroEverywhere, {"no-ops", "uncovered"}),
        (FirstClient, {"clients"}),
        (Drifting, {"no-ops"}),
        (Hiding, {"repeat", "checkpoint"}),
        (ByPlace, {"entries"}),
        (Overweight, {"shares"}),
        (OtherThanSaid, {"closed form"}),
        (Sticking, {"uncovered"}),
        (Returning, {"uncovered", "repeat", "state"}),
        (Forgetful, {"state"}),
    ],
)
def test_a_broken_rule_is_told_so(entry, names):
    assert names <= failed_rule(entry)


def test_a_rule_that_only_takes_the_mean_is_not():
    class Plain(MeanRule):
        def step(self, old, mean, part): ...

    assert failed_rule(Plain) == set()


def failed_score(entry) -> set[str]:
    return failed(check_score, "submodel.score", entry)


def test_a_score_of_random_numbers_is_told_so():
    assert "scores" in failed_score(lambda weights: np.random.random(len(weights)))


def test_a_score_that_is_negative_or_no_number_is_told_so():
    assert "scores" in failed_score(lambda weights: -np.abs(weights))
    assert "scores" in failed_score(lambda weights: weights[:-1])


def test_a_score_with_a_memory_is_told_so():
    seen = []

    def score(weights):
        seen.append(1)
        return np.roll(np.abs(weights), len(seen))

    assert {"scores", "checkpoint"} <= failed_score(score)


def failed_schedule(entry) -> set[str]:
    return failed(check_schedule, "restoration.trigger", entry)


class Everything(Schedule):
    def densities(self, refresh):
        return [1.0 for _ in refresh.densities]


class Chancy(Schedule):
    def densities(self, refresh):
        return [top * (0.5 + np.random.random() / 2) for top in refresh.ceilings]


class Counting(Schedule):
    def densities(self, refresh):
        step = next(calls)
        return [min(top, 0.1 + step % 7 / 10) for top in refresh.ceilings]


class OddState(Schedule):
    def densities(self, refresh):
        refresh.state[1] = {2, 3}
        return refresh.densities


class TooFew(Schedule):
    def densities(self, refresh):
        return refresh.densities[1:]


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (Everything, {"densities"}),
        (Chancy, {"densities", "repeat"}),
        (Counting, {"densities", "checkpoint"}),
        (OddState, {"densities"}),
        (TooFew, {"densities"}),
    ],
)
def test_a_broken_schedule_is_told_so(entry, names):
    assert names <= failed_schedule(entry)


def test_a_schedule_within_its_limits_is_not():
    class Slow(Schedule):
        def densities(self, refresh):
            refresh.state["num"] = refresh.state.get("num", 0) + 1
            step = refresh.state["num"] / 100
            return [
                min(top, d + step)
                for d, top in zip(refresh.densities, refresh.ceilings, strict=True)
            ]

    assert failed_schedule(Slow) == set()


def failed_admission(entry, method="fedgmr", **more) -> set[str]:
    return failed(check_admission, "admission.kind", entry, method, **more)


class Never(AdmissionRule):
    def close_s(self, window):
        return None


class Past(AdmissionRule):
    def close_s(self, window):
        return window.now_s - 1


class Moody(AdmissionRule):
    def close_s(self, window):
        return window.now_s if next(calls) % 3 else None


def test_broken_admission_is_told_so():
    assert "closes" in failed_admission(Never)
    assert "closes" in failed_admission(Past)
    assert "closes" in failed_admission(Moody)


def test_admission_that_waits_for_more_updates_than_clients_is_not():
    class Ten(AdmissionRule):
        """Waits for ten updates of clients that go on."""

        counts = "updates"
        sends_at_once = True

        def close_s(self, window):
            return window.now_s if window.num_updates >= 10 else None

    class Endless(Ten):
        def close_s(self, window):
            return None

    assert failed_admission(Ten, "fedbuff", count=None) == set()
    assert "closes" in failed_admission(Endless, "fedbuff", count=None)


def test_admission_by_its_own_count_is_not():
    class Half(AdmissionRule):
        """Half of those who take part, and one more each time up to all."""

        def close_s(self, window):
            need = min(len(window.taking) // 2 + window.state.get("more", 0), len(window.taking))
            if len(window.arrived) < need:
                return None
            window.state["more"] = window.state.get("more", 0) + 1
            return window.now_s + 0.5

    assert failed_admission(Half) == set()


def failed_selection(entry) -> set[str]:
    return failed(check_selection, "clients.selection", entry, sampled=2)


class OneTooFew(SelectionRule):
    def choose(self, draw):
        return draw.available[1 : draw.num_wanted]


class Away(SelectionRule):
    def choose(self, draw):
        return draw.idle[: draw.num_wanted]


class Dicing(SelectionRule):
    def choose(self, draw):
        return np.random.default_rng().permutation(draw.available)[: draw.num_wanted]


class Taking(SelectionRule):
    """Goes round the clients by a count of its own."""

    def choose(self, draw):
        start = next(calls) % len(draw.available)
        return [*draw.available[start:], *draw.available][: draw.num_wanted]


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (OneTooFew, {"chooses", "repeat"}),
        (Away, {"chooses"}),
        (Dicing, {"chooses", "repeat"}),
        (Taking, {"chooses", "checkpoint"}),
    ],
)
def test_a_broken_selection_is_told_so(entry, names):
    assert names <= failed_selection(entry)


def test_a_selection_that_counts_in_its_state_is_not():
    class Round(SelectionRule):
        """Goes round the clients."""

        def choose(self, draw):
            draw.state["turn"] = draw.state.get("turn", 0) + 1
            start = draw.state["turn"] % len(draw.available)
            return [*draw.available[start:], *draw.available][: draw.num_wanted]

    assert failed_selection(Round) == set()
