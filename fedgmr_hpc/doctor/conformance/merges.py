"""What a merge promises, checked on the coordinator of a small network and on the rule alone.

Shapes: U updates, n entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.doctor.conformance.check import Check, NotPromised, demand, look
from fedgmr_hpc.doctor.conformance.repeats import goes_on, repeats
from fedgmr_hpc.doctor.conformance.small_run import SHARES, SmallRun, shifted, trained, unchanged
from fedgmr_hpc.fl.aggregation import AggregationRule, BufferEntry, Merge, RuleState, merge
from fedgmr_hpc.fl.submodels import full_masks

MERGES = 6
SIZE = 70_000  # more than a chunk of either kind of rule
COUNTS = (SIZE, 40_000, 40_000, 9_000, 300)  # what the updates hold
ERODING = {"average": "an entry that an update does not hold counts as 0 there, by its definition"}
ROUNDING = 1e-6  # of float32, relative
HINT = ": rounding; add a difference to `old`, such as `mean - old`, which is then exactly 0"
Values = dict[str, Any]


def check_merges(subject: str, values: Values) -> Iterator[Check]:
    """Yield what holds of a configuration's merges, and of its rule by itself.

    Args:
        values: of the configuration, by section.
    """
    yield from check_merging(subject, values)
    yield from check_rule(subject, values)


def check_merging(subject: str, values: Values) -> Iterator[Check]:
    """Yield what holds of a configuration's merges."""
    tests = {
        "no-ops": _keeps_no_ops,
        "uncovered": _keeps_uncovered,
        "shares": _sums_to_one,
        "arrivals": _ignores_arrivals,
        "dense": _equals_dense,
        "repeat": repeats,
        "checkpoint": goes_on,
    }
    for name, test in tests.items():
        yield look(subject, name, partial(test, values))


def check_rule(subject: str, values: Values) -> Iterator[Check]:
    """Yield what holds of a configuration's rule by itself."""
    config = make_config(values)
    rule = AGGREGATIONS.make(config.aggregation.rule, config.aggregation)
    for name, check in {
        "closed form": _has_closed_form,
        "clients": _ignores_client_numbers,
        "entries": _ignores_places,
        "state": _moves_its_state,
    }.items():
        yield look(subject, name, partial(check, rule))


def _promised(values: Values) -> None:
    rule = make_config(values).aggregation.rule
    if rule in ERODING and SmallRun(values).config.submodel.kind != "full":
        raise NotPromised(ERODING[rule])


def _keeps_no_ops(values: Values) -> str:
    _promised(values)
    run = SmallRun(values)
    before = run.model()
    for _ in range(MERGES):
        run.merge(lambda client: unchanged)
    after = run.model()
    num, most = int((after != before).sum()), float(np.abs(after - before).max())
    what = f"{MERGES} merges of clients that train nothing change {num} entries by up to {most:.2g}"
    is_rounding = most < ROUNDING * np.abs(before).max()
    demand(num == 0, what + (HINT if is_rounding else ""))
    return f"{MERGES} merges of clients that train nothing change nothing"


def _keeps_uncovered(values: Values) -> str:
    _promised(values)
    run = SmallRun(values, (0.2, 0.2, 0.2))
    before, group = run.model(), run.group()
    is_held = np.any([run.held(client) for client in group], axis=0)
    run.merge(lambda client: shifted(1.0))
    after = run.model()
    num = int((after[~is_held] != before[~is_held]).sum())
    demand(num == 0, f"{num} of {(~is_held).sum()} entries that no client holds have changed")
    stuck = int((after[is_held] == before[is_held]).sum())
    demand(stuck == 0, f"{stuck} of {is_held.sum()} entries stay, although all clients raise them")
    if is_held.all():
        raise NotPromised("full models: every entry is held")
    return f"{(~is_held).sum()} entries that no client holds keep their value"


def _sums_to_one(values: Values) -> str:
    run = SmallRun(values)
    run.merge(trained)
    shares = run.merges[-1].weight
    demand(bool((shares >= 0).all()), f"a share is negative: {shares.min():g}")
    total = float(shares.sum())
    demand(abs(total - 1) < ROUNDING, f"the shares of the updates sum to {total:.9g}")
    return "the shares of the updates sum to 1"


def _ignores_arrivals(values: Values) -> str:
    models = set()
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3), (3, 4, 0, 2, 1)):
        run = SmallRun(values)
        group = run.group()
        for client in [client for client in order if client in group]:
            run.deliver(client, trained(client))
        run.close()
        models.add(run.model().tobytes())
    demand(len(models) == 1, "another order of arrivals within a merge gives another model")
    return "four orders of arrivals within a merge give the same bits"


def _equals_dense(values: Values) -> str:
    ones = (1.0,) * len(SHARES)
    if make_config(values).submodel.kind not in ("importance", "magnitude"):
        raise NotPromised("no masks of single weights")
    dense = values | {
        "submodel": {"kind": "full", "refresh": "interval", "score": "w", "gate_biases": False},
        "restoration": {"trigger": "none", "balance": False},
    }
    masked, whole = SmallRun(values, ones), SmallRun(dense, ones)
    for run in (masked, whole):
        for _ in range(3):
            run.merge(trained)
    num = int((masked.model() != whole.model()).sum())
    demand(num == 0, f"at density 1, {num} entries are not those of full models")
    return "density 1 equals full models bit for bit"


def _entries(order: Sequence[int] | None = None) -> tuple[Floats, Floats, list[BufferEntry]]:
    """Return a model and updates of it, each of which holds other entries."""
    rng = np.random.default_rng(7)
    packed, dense = (rng.standard_normal(size).astype(np.float32) for size in (SIZE, 9))
    found = []
    for client, count in enumerate(COUNTS):
        index = np.sort(rng.permutation(SIZE)[:count]).astype(np.int32) if client % 2 else None
        values = rng.standard_normal(count).astype(np.float32)
        own = rng.standard_normal(9).astype(np.float32)
        update = BufferEntry(client, VERSION - client % 3, values, index, own, SAMPLES_OF[client])
        found.append(replace(update, density=count / SIZE, train_loss=1 / (1 + client)))
    return packed, dense, found


SAMPLES_OF, VERSION = (20, 12, 20, 7, 20), 2


def _what(packed: Floats, dense: Floats, entries: Sequence[BufferEntry]) -> Merge:
    weights = [float(entry.num_samples) / (1 + entry.client % 3) for entry in entries]
    arrived = [1.0, 0.5]
    return Merge(packed, dense, entries, weights, arrived, all_staleness=2.5, version=VERSION)


def _has_closed_form(rule: AggregationRule) -> str:
    packed, dense, entries = _entries()
    what = _what(packed, dense, entries)
    values = np.full((len(entries), SIZE + 9), np.nan)
    for row, entry in zip(values, entries, strict=True):
        row[np.arange(len(entry.values)) if entry.index is None else entry.index] = entry.values
        row[SIZE:] = entry.dense
    old = np.concatenate([packed, dense]).astype(np.float64)
    expected = rule.expected(old, values, ~np.isnan(values), what)
    if expected is None:
        raise NotPromised("the rule gives none: `expected`")
    made = merge(rule, what)
    found = np.concatenate([made.packed, made.dense])
    demand(expected.shape == found.shape, f"`expected` returns {expected.shape}")
    wrong = ~np.isclose(found, expected, rtol=1e-4, atol=1e-5)
    demand(not wrong.any(), f"{wrong.sum()} of {len(found)} entries are not as `expected` says")
    return "the first merge is as `expected` says"


def _ignores_client_numbers(rule: AggregationRule) -> str:
    packed, dense, entries = _entries()
    what = _what(packed, dense, entries)
    order = (3, 1, 4, 0, 2)
    other = replace(
        what,
        entries=[entries[index] for index in order],
        weights=[what.weights[index] for index in order],
    )
    _demand_close(merge(rule, what).packed, merge(rule, other).packed, "with clients renumbered")
    return "whoever sends an update, it counts the same, but for rounding"


def _demand_close(one: Floats, two: Floats, when: str) -> None:
    wrong = ~np.isclose(one, two, rtol=1e-4, atol=1e-5)
    demand(not wrong.any(), f"{wrong.sum()} of {len(one)} entries differ {when}")


def _moved(entry: BufferEntry, places: np.ndarray[Any, Any]) -> BufferEntry:
    """Return an update of a model in which entry x stands at `places[x]`."""
    at = np.arange(len(entry.values)) if entry.index is None else entry.index
    order = np.argsort(places[at])
    values, index = entry.values[order], places[at][order].astype(np.int32)
    return replace(entry, values=values, index=index)


def _ignores_places(rule: AggregationRule) -> str:
    packed, dense, entries = _entries()
    places = np.random.default_rng(8).permutation(SIZE)
    there = np.empty_like(packed)
    there[places] = packed
    one = merge(rule, _what(packed, dense, entries)).packed
    two = merge(rule, _what(there, dense, [_moved(entry, places) for entry in entries])).packed
    _demand_close(one, two[places], "where they stand in another order")
    return "an entry becomes the same wherever it stands"


def _moves_its_state(rule: AggregationRule) -> str:
    """Merge three times, with and without masks cut anew between the merges."""
    packed, dense, given = _entries()
    entries = [_moved(entry, np.arange(SIZE)) for entry in given]  # all sums in the same order
    still, moving = (RuleState(rule, SIZE, 9) for _ in range(2))
    own, masks = packed, full_masks(SIZE)
    rng = np.random.default_rng(9)
    for step in range(3):
        made = merge(rule, _what(packed, dense, entries), still)
        new = type(masks)(step + 1, (1.0,), (SIZE,), rng.permutation(SIZE).astype(np.int32), SIZE)
        own = new.pack(masks.unpack(own))
        moving.repack(masks, new)
        masks = new
        places = np.argsort(new.perm) if new.perm is not None else np.arange(SIZE)
        there = merge(rule, _what(own, dense, [_moved(e, places) for e in entries]), moving)
        packed, own, dense = made.packed, there.packed, made.dense
    _demand_close(packed, masks.unpack(own), "where masks are cut anew between merges")
    if not rule.vectors and not rule.numbers:
        raise NotPromised("the rule keeps nothing from merge to merge")
    for name in rule.vectors:
        is_used = still.packed[name].any() or still.dense[name].any()
        demand(bool(is_used), f"{name!r} is 0 everywhere after 3 merges: change it in place")
        _demand_close(still.packed[name], moving.natural(name, masks)[:SIZE], f"in {name!r}")
    demand(still.numbers == moving.numbers, f"numbers: {still.numbers}, {moving.numbers}")
    return f"{', '.join([*rule.vectors, *rule.numbers])}: moved along as masks are cut anew"
