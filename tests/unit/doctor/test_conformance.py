"""The conformance kit on every row and every built-in choice, and what rows promise beside.

A new row is tested by being there. That the kit can fail is shown in test_conformance_fails.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedgmr_hpc.config.choices.registry import (
    ADMISSIONS,
    AGGREGATIONS,
    RESTORATIONS,
    SCORES,
    SELECTIONS,
)
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.methods import load_method, method_names
from fedgmr_hpc.doctor.conformance.doors import (
    check_admission,
    check_schedule,
    check_score,
    check_selection,
)
from fedgmr_hpc.doctor.conformance.merges import check_merges, check_merging
from fedgmr_hpc.doctor.conformance.small_run import SIZE, SmallRun, initial_weights, shifted
from fedgmr_hpc.fl.aggregation import MeanRule

WRAPPED = [f"{row}{tail}" for row in ("heterofl", "fedrolex", "fjord", "fiarse")
           for tail in ("+aux", "+aux+gmr")]  # fmt: skip
METHODS = [*method_names(), *WRAPPED]
ALL_FULL = (1.0,) * 5


def rule_of(method: str) -> type:
    return AGGREGATIONS[make_config({"method": method}).aggregation.rule]


# The rules that have no memory and take the mean: what they make can be said at any time.
MEANS = [m for m in METHODS if issubclass(rule_of(m), MeanRule) and not rule_of(m).vectors]


def failures(checks) -> list:
    found = list(checks)
    assert found
    return [check for check in found if check.state not in ("ok", "-")]


@pytest.mark.parametrize("method", METHODS)
def test_rows_conform(method):
    assert failures(check_merging(method, {"method": method})) == []


@pytest.mark.parametrize("rule", AGGREGATIONS.names)
def test_rules_conform_on_sub_models_too(rule):
    values = {"method": "ga", "aggregation": {"rule": rule}}
    checks = {check.name: check for check in check_merges(rule, values)}
    assert failures(checks.values()) == []
    assert checks["closed form"].state == "ok"
    assert checks["uncovered"].state == ("-" if rule == "average" else "ok")
    assert checks["state"].state == ("ok" if rule in ("momentum", "adam") else "-")


@pytest.mark.parametrize("score", SCORES.names)
def test_scores_conform(score):
    values = {"method": "fedgmr", "submodel": {"score": score}}
    assert failures(check_score(score, values)) == []


@pytest.mark.parametrize("trigger", [name for name in RESTORATIONS if name != "none"])
def test_schedules_conform(trigger):
    values = {"method": "fedgmr", "restoration": {"trigger": trigger, "total_time_s": 20.0}}
    assert failures(check_schedule(trigger, values)) == []


@pytest.mark.parametrize("kind", ADMISSIONS.names)
def test_admission_conforms(kind):
    count = {"count": 3} if kind == "count" else {}
    values = {"method": "fedgmr", "admission": {"kind": kind, **count}}
    assert failures(check_admission(kind, values)) == []


@pytest.mark.parametrize("name", SELECTIONS.names)
def test_selection_conforms(name):
    values = {"method": "fedgmr", "clients": {"selection": name, "sampled": 2}}
    assert failures(check_selection(name, values)) == []


def start(method, shares=None, **sections) -> SmallRun:
    return SmallRun({"method": method}, *([] if shares is None else [shares]), **sections)


@pytest.mark.parametrize("method", MEANS)
def test_full_models_of_the_current_version_give_their_mean(method):
    """FedAvg; with a fixed alpha, that far towards it."""
    run = start(method, (1.0, 1.0, 1.0, 1.0))
    before = run.model()
    group = run.merge(shifted)
    alpha = run.config.aggregation.mix_share or 1.0
    np.testing.assert_allclose(run.model(), before + alpha * np.mean(group), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_is_merged(method):
    """Biases, norms and running statistics too."""
    run = start(method)
    is_eroding = run.config.aggregation.rule == "average" and run.config.submodel.kind != "full"
    before, group = run.model(), run.group()
    is_held = np.any([run.held(client) for client in group], axis=0)
    run.merge(lambda client: shifted(0.5))
    if not is_eroding and method != "krum":
        assert np.array_equal(run.model() != before, is_held)
    sizes = sum(layer.stop - layer.start for layer in run.core.masking.layers)
    assert sizes + len(run.core.dense) == SIZE


@pytest.mark.parametrize("method", MEANS)
def test_a_stale_update_counts_as_its_rule_says(method):
    """Client 4 trains on version 0 while the others' merges move the model by 1.

    What it then delivers is what it was sent. Deltas are against the version sent, so `fedbuff`
    leaves the model alone; rules on values draw it back, by the weight of the update's age.
    """
    each = {"kind": "each", "count": None}
    run = start(method, ALL_FULL, admission=each, train={"objective": "plain"})
    for client in (0, 1, 2):
        run.deliver(client, shifted(1.0))
        run.close()
    before = run.model()
    run.deliver(4)
    run.close()
    choices = run.config.aggregation
    if run.wants_changes:
        assert run.model().tobytes() == before.tobytes()
        return
    assert run.merges[-1].staleness[4] == 4
    moved = run.model() - before
    assert (moved < 0).all()
    first = initial_weights()
    if choices.rule in ("mask_aware", "average", "gradient") and not choices.buffered:
        np.testing.assert_allclose(run.model(), first, rtol=1e-4, atol=1e-5)
    elif choices.mix_share is not None:  # alpha sigma(4) of the way back
        way = choices.mix_share * 4**-choices.exponent
        np.testing.assert_allclose(moved, way * (first - before), rtol=1e-3, atol=1e-5)


def test_a_buffer_of_one_is_fed_async():
    """FedBuff with K = 1 and eta = alpha steps as FedAsync does on the version it was sent."""
    alpha, weight = 0.6, {"staleness": "constant"}
    buff = start("fedbuff", (1.0, 1.0), admission={"kind": "count", "count": 1},
                 aggregation=weight | {"server_learning_rate": alpha})  # fmt: skip
    asynchronous = start("fedasync_seq", (1.0, 1.0), aggregation=weight | {"mix_share": alpha})
    for run in (buff, asynchronous):
        for step in (1.0, -3.0, 0.25):
            run.deliver(0, shifted(step))
            run.close()
    np.testing.assert_allclose(buff.model(), asynchronous.model(), rtol=1e-5, atol=1e-6)


def test_the_rows_of_optimisers_step_as_they_say():
    """All clients go 1 up: FedAvgM then goes 1, 1.9, ...; FedAdam by eta m / (sqrt(v) + tau)."""
    momentum, adam = start("fedavgm"), start("fedadam")
    for run, steps in ((momentum, (1.0, 1.9)), (adam, (0.03 * 0.1 / (0.1 + 1e-3),))):
        for step in steps:
            before = run.model()
            run.merge(lambda client: shifted(1.0))
            np.testing.assert_allclose(run.model() - before, step, rtol=1e-3)


def test_wrapped_rows_share_one_aggregation():
    """+Aux is one wrapper: all that differs between wrapped rows is what clients do."""
    axes = [load_method(f"{row}+aux+gmr").axes for row in ("heterofl", "fedrolex", "fjord")]
    rows = [{axis: row[axis] for axis in row if axis not in ("submodel", "train")} for row in axes]
    assert rows[0] == rows[1] == rows[2]
    reset = {"mix_share": None, "server_learning_rate": 1.0}
    assert rows[0]["aggregation"] == load_method("fedgmr").axes["aggregation"] | reset
    assert load_method("fedgmr+aux+gmr").axes["admission"]["kind"] == "window"
