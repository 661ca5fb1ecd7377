"""What scores, schedules, admission and selection rules promise, checked by themselves.

Shapes: P prunable entries, C clients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fedgmr_hpc.config.choices.failures import check_state
from fedgmr_hpc.config.choices.registry import ADMISSIONS, RESTORATIONS, SELECTIONS
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.doctor.conformance.check import Check, NotPromised, demand, look
from fedgmr_hpc.doctor.conformance.repeats import goes_on, repeats
from fedgmr_hpc.doctor.conformance.small_run import NUM_TURNS
from fedgmr_hpc.fl.admission import Window
from fedgmr_hpc.fl.restoration.schedule import BuiltIn, Refresh
from fedgmr_hpc.fl.scores import Scorer
from fedgmr_hpc.fl.selection import Draw, SelectionRule

NUM_ENTRIES = 1000
SHARES, CEILINGS = (1.0, 0.5, 0.2, 0.1), (1.0, 0.5, 0.4, 1.0)
NUM_REFRESHES, NUM_CLIENTS = 60, 8
Values = dict[str, Any]


def check_score(subject: str, values: Values) -> Iterator[Check]:
    """Yield what holds of a configuration's score."""
    yield look(subject, "scores", partial(_scores, values))
    yield look(subject, "repeat", partial(repeats, values))
    yield look(subject, "checkpoint", partial(goes_on, values))


def _scores(values: Values) -> str:
    scorer = Scorer(make_config(values).submodel)
    rng = np.random.default_rng(3)
    weights, last, squares = rng.standard_normal((3, NUM_ENTRIES)).astype(np.float32)
    given = [weights, last, squares**2]
    found = [scorer.score(*(each.copy() for each in given)).tobytes() for _ in range(2)]
    demand(found[0] == found[1], "the same weights get other scores the second time")
    return f"one number >= 0 an entry, from {', '.join(sorted(scorer.needs))}"


def _checks(
    subject: str, values: Values, name: str, promise: Callable[[Values], str]
) -> Iterator[Check]:
    """Yield whether a promise of its own holds, and those that all with a state make."""
    yield look(subject, name, partial(promise, values))
    yield look(subject, "repeat", partial(repeats, values))
    yield look(subject, "checkpoint", partial(goes_on, values))


def check_schedule(subject: str, values: Values) -> Iterator[Check]:
    """Return what holds of a configuration's density schedule."""
    return _checks(subject, values, "densities", _densities)


def _densities(values: Values) -> str:
    section = make_config(values).restoration
    schedule = RESTORATIONS.make(section.trigger, section)
    if isinstance(schedule, BuiltIn):
        raise NotPromised("built in: the server itself sets the densities")
    state: dict[str, Any] = {}
    now: tuple[float, ...] = tuple(map(min, SHARES, CEILINGS))
    for step in range(NUM_REFRESHES):
        refresh = _refresh(step, now, state)
        again = _refresh(step, now, copy.deepcopy(state))
        asked = list(schedule.densities(refresh))
        demand(asked == list(schedule.densities(again)), "the same refresh gives other densities")
        above = [(d, top) for d, top in zip(asked, CEILINGS, strict=False) if d > top]
        demand(not above, f"asks for {above[:1]} (density, ceiling); the server lowers it")
        now = tuple(schedule.allowed(_refresh(step, now, copy.deepcopy(state))))
        _demand_kept(state)
    return f"within the ceilings over {NUM_REFRESHES} refreshes, the last {_shown(now)}"


def _refresh(step: int, now: tuple[float, ...], state: dict[str, Any]) -> Refresh:
    """Return a refresh of clients and a server whose scores rise slowly and then stand still."""
    score = min(step, NUM_REFRESHES // 2) / NUM_REFRESHES
    return Refresh(
        now_s=100.0 * step,
        round=10 * step,
        densities=now,
        ceilings=CEILINGS,
        rungs=tuple(sorted(SHARES)),
        server_score=score,
        client_scores={client: score for client in range(len(now)) if (step + client) % 2},
        cycle_times_s=[None if step == 0 else 1.0 + client for client in range(len(now))],
        waiting=frozenset(),
        gone=frozenset(),
        state=state,
    )


def _demand_kept(state: dict[str, Any]) -> None:
    try:
        check_state("its state", state)
    except RunError as error:
        demand(False, error.message)


def _shown(densities: tuple[float, ...]) -> str:
    return " ".join(f"{density:g}" for density in densities)


def check_admission(subject: str, values: Values) -> Iterator[Check]:
    """Return what holds of a configuration's admission."""
    return _checks(subject, values, "closes", _closes)


def _closes(values: Values) -> str:
    config = make_config(values)
    rule = ADMISSIONS.make(config.admission.kind, config.admission)
    state: dict[str, Any] = {}
    everybody = frozenset(range(len(SHARES)))
    waited, now_s = [], 0.0
    for round_ in range(NUM_REFRESHES):
        opened_s = now_s
        order = np.random.default_rng(round_).permutation(len(SHARES)).tolist()
        most = NUM_TURNS * len(order) if rule.sends_at_once else len(order)
        for num in range(1, most + 1):
            now_s += 1.0
            window = (now_s, frozenset(order[:num]), everybody, rule.pacing(SHARES, everybody))
            other = copy.deepcopy(state)
            at_s = rule.close_s(Window(*window, round_, state, num, opened_s))
            same = rule.close_s(Window(*window, round_, other, num, opened_s))
            demand(at_s == same, "the same window closes at another time when asked again")
            _demand_kept(state)
            if at_s is not None:
                demand(at_s >= now_s, f"closes at {at_s:g} s, which is past at {now_s:g} s")
                waited.append(num)
                break
        else:
            turns = f" {NUM_TURNS} times" if rule.sends_at_once else ""
            demand(False, f"goes on waiting although everybody has arrived{turns}")
    return f"after {min(waited)} to {max(waited)} arrivals of {len(SHARES)} clients"


def check_selection(subject: str, values: Values) -> Iterator[Check]:
    """Return what holds of a configuration's selection."""
    return _checks(subject, values, "chooses", _chooses)


def _chooses(values: Values) -> str:
    clients = make_config(values).clients
    rule: SelectionRule = SELECTIONS.make(clients.selection, clients)
    state: dict[str, Any] = {}
    counts = np.zeros(NUM_CLIENTS, int)
    for step in range(NUM_REFRESHES):
        other = copy.deepcopy(state)
        chosen = rule.chosen(_draw(step, counts, state))
        is_same = chosen == rule.chosen(_draw(step, counts, other))
        demand(is_same, "the same draw gives other clients when asked again")
        _demand_kept(state)
        counts[chosen] += 1
    return f"{NUM_REFRESHES} times; each of {NUM_CLIENTS} {counts.min()} to {counts.max()} times"


def _draw(step: int, counts: np.ndarray[Any, Any], state: dict[str, Any]) -> Draw:
    """Return a draw of clients of which one is away, after they have been chosen so often."""
    known = np.where(counts > 0, np.arange(1.0, 1 + NUM_CLIENTS), np.nan)
    return Draw(
        num_wanted=1 + step % (NUM_CLIENTS - 2),
        available=[client for client in range(NUM_CLIENTS) if client != step % NUM_CLIENTS],
        idle=range(NUM_CLIENTS),
        now_s=10.0 * step,
        round=step,
        shares=np.array(SHARES * 2),
        densities=np.array(SHARES * 2),
        num_samples=np.arange(10, 10 + NUM_CLIENTS),
        num_updates=counts.copy(),
        train_losses=known / (1 + step),
        scores=known / (1 + NUM_CLIENTS),
        cycle_times_s=known,
        rng=np.random.default_rng(step),
        state=state,
    )
