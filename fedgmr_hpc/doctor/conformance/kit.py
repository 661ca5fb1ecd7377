"""The conformance kit as a user runs it: what a plug-in registers, or a row, line by line."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.choices.plugins import absolute, is_plugin, load_plugins
from fedgmr_hpc.config.choices.registry import REGISTRIES
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.methods import merged
from fedgmr_hpc.doctor.conformance.check import Check
from fedgmr_hpc.doctor.conformance.doors import (
    check_admission,
    check_schedule,
    check_score,
    check_selection,
)
from fedgmr_hpc.doctor.conformance.merges import check_merges
from fedgmr_hpc.doctor.conformance.runs import check_runs
from fedgmr_hpc.reporting.console import say
from fedgmr_hpc.runtime.roles import EXIT_FAILED

Values = dict[str, Any]
# The row on which a choice of each key is tried, and the checks of the choice by itself.
TRIED: dict[str, tuple[str, Callable[[str, Values], Iterable[Check]] | None]] = {
    "aggregation.rule": ("ga", check_merges),
    "submodel.score": ("fedgmr", check_score),
    "restoration.trigger": ("fedgmr", check_schedule),
    "admission.kind": ("fedgmr", check_admission),
    "clients.selection": ("fedgmr", check_selection),
    "train.objective": ("wo_gmr", None),  # whole models and compact ones
    "data.name": ("fedavg", None),
    "model.name": ("fedavg", None),
}
BESIDE: dict[str, Values] = {"clients.selection": {"clients": {"sampled": 2}}}  # what it needs


def check_target(target: str, words: Sequence[str] = ()) -> Iterator[Check]:
    """Yield what holds of a plug-in's choices, or of a row.

    Args:
        target: a plug-in as `plugins` names one, or a row as `method` does.
        words: overrides of the short runs.

    Raises:
        ValueError: there is no such thing, or it registers nothing that can be checked.
    """
    if is_plugin(target):
        yield from _check_plugin(absolute(target, Path()), words)
        return
    yield from check_merges(target, {"method": target})
    yield from check_runs(target, ["digits", {"method": target}], words)


def _check_plugin(target: str, words: Sequence[str]) -> Iterator[Check]:
    origin = load_plugins([target])[0].name
    found = [
        (registry.key, name)
        for registry in REGISTRIES
        for name, owner in registry.origins.items()
        if owner == origin and registry.key in TRIED
    ]
    if not found:
        need = f"a plug-in that registers a choice of {', '.join(TRIED)}"
        raise ValueError(must_be("the plug-in", need, target))
    data_and_model = _nested((key, name) for key, name in found if key in _TOGETHER)
    for key, name in found:
        row, check = TRIED[key]
        values = merged({"method": row, **_nested([(key, name)])}, BESIDE.get(key, {}))
        if check is not None:
            yield from check(f"{key}={name}", values)
        if key in _TOGETHER:
            values |= data_and_model
        source = {**values, "plugins": [target]}
        unchosen = _unchosen(key, [*dict(found), *(word.partition("=")[0] for word in words)])
        yield from check_runs(f"{key}={name}", ["digits", source], words, unchosen)


_TOGETHER = ("data.name", "model.name")  # what a plug-in registers of both is tried together


def _unchosen(key: str, chosen: Container[str]) -> str:
    """Return the model's key for a data set, the data set's for a model, "" if it is chosen."""
    other = {"data.name": "model.name", "model.name": "data.name"}.get(key, "")
    return "" if other in chosen else other


def _nested(choices: Iterable[tuple[str, str]]) -> Values:
    return {axis: {key: name} for (axis, key), name in ((k.split("."), n) for k, n in choices)}


def run_kit(targets: Sequence[str], words: Sequence[str], *, as_json: bool = False) -> int:
    """Check targets and print a line for each check as it ends; return the exit code.

    Args:
        as_json: print one JSON object instead.
    """
    done: list[Check] = []
    for target in targets:
        for check in _told_once(check_target(target, words)):
            done.append(check)
            if not as_json:
                say(render(check))
    failed = [check for check in done if check.has_failed]
    if as_json:
        records = [
            {"subject": c.subject, "name": c.name, "state": c.state, "text": c.text} for c in done
        ]
        say(json.dumps({"failed": bool(failed), "checks": records}))
    else:
        say(f"{len(done)} checks, {len(failed)} failed")
    return EXIT_FAILED if failed else 0


def _told_once(checks: Iterable[Check]) -> Iterator[Check]:
    """Yield checks; what one has failed by is not told again of the same subject."""
    told: list[Check] = []
    for check in checks:
        same = [each for each in told if each.subject == check.subject and each.text in check.text]
        if check.has_failed and not same:
            told.append(check)
        is_again = check.has_failed and same
        yield replace(check, text=f"the same error as {same[0].name}") if is_again else check


def render(check: Check) -> str:
    """Return a check as one line."""
    return f"{check.state:<4}  {check.subject}  {check.name}: {check.text}"
