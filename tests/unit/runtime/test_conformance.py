"""The aggregation conformance kit: what every row of the method table must hold.

A coordinator is driven by events on a small network: one hidden layer of 8 units between 5 inputs
and 3 outputs, with a batch norm. Its tensors are laid out as the row's kind of sub-model has them,
so weights, biases and running statistics are all covered. A new row is tested by being there.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.methods import load_method, method_names
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import CloseAt, Closed, Delivered, Dispatch, Evaluated, Merged, Started
from fedgmr_hpc.fl.submodels import PrunableLayer
from fedgmr_hpc.fl.updates import Update
from fedgmr_hpc.fl.widths import Axis
from fedgmr_hpc.models import WIDTH_KINDS

HIGH = (1.0, 0.5, 0.2, 0.1, 0.1)
WRAPPED = [f"{row}{tail}" for row in ("heterofl", "fedrolex", "fjord", "fiarse")
           for tail in ("+aux", "+aux+gmr")]  # fmt: skip
METHODS = [*method_names(), *WRAPPED]
WHOLE = {"cut": "whole"}
TENSORS = {  # name: axes, prunable without widths
    "fc1.weight": ((Axis(8), Axis(5, **WHOLE)), True),
    "fc1.bias": ((Axis(8),), False),
    "bn.weight": ((Axis(8),), False),
    "bn.running_mean": ((Axis(8),), False),
    "fc2.weight": ((Axis(3, **WHOLE), Axis(8)), True),
    "fc2.bias": ((Axis(3, **WHOLE),), False),
}
SIZE = 40 + 8 + 8 + 8 + 24 + 3


def prunable_layers(kind: str) -> list[PrunableLayer]:
    layers, start = [], 0
    for name, (axes, is_prunable) in TENSORS.items():
        if kind in WIDTH_KINDS:
            is_prunable = any(axis.cut != "whole" for axis in axes)
        if is_prunable:
            stop = start + int(np.prod([axis.units for axis in axes]))
            layers.append(PrunableLayer(name, start, stop, 1.0, axes))
            start = stop
    return layers


class Run:
    """One row's coordinator; clients answer with what `train` makes of what they were sent."""

    def __init__(self, method: str, shares=HIGH, **sections):
        values = {
            "method": method,
            "clients": {"count": len(shares), "shares": list(shares)},
            "run": {"interval_rounds": 1000, "max_rounds": 10_000},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        self.config = make_config(values)
        layers = prunable_layers(self.config.submodel.kind)
        weights = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
        self.core = Coordinator(self.config, shares, weights, layers)
        self.sends_changes = self.config.aggregation.rule == "fedbuff"
        self.sent, self.close_s, self.now_s = {}, None, 0.0
        self.dispatches, self.merges = [], []
        self.send(Started(0.0))
        self.send(Evaluated(0.0, 0.0))

    def send(self, event) -> None:
        for command in self.core.handle(event):
            if isinstance(command, Dispatch):
                self.dispatches.append(command)
                self.sent.update({a.client: (a, command) for a in command.assignments})
            elif isinstance(command, CloseAt):
                self.close_s = command.at_s
            elif isinstance(command, Merged):
                self.merges.append(command)

    def deliver(self, client: int, train=lambda values, dense: (values, dense)) -> None:
        task, sent = self.sent.pop(client)
        held, dense = sent.packed[: task.num_kept].copy(), sent.dense.copy()
        values, new_dense = train(held.copy(), dense.copy())
        if self.sends_changes:
            values, new_dense = values - held, new_dense - dense
        update = Update(
            client=client,
            base_version=task.base_version,
            mask_id=task.mask_id,
            level=task.level,
            density=task.density,
            values=values.astype(np.float32),
            dense=new_dense.astype(np.float32),
            grad_squares=None,
            train_loss=0.0,
            score=float("nan"),
            num_samples=20,
        )
        self.now_s += 1.0
        self.send(Delivered(self.now_s, update))

    def close(self) -> None:
        assert self.close_s is not None
        at_s, self.close_s = max(self.close_s, self.now_s), None
        self.send(Closed(at_s, at_s))

    def group(self) -> list[int]:
        """Clients of the next merge, the pacing one last: all, or as many as admission counts."""
        quota = {"count": self.config.admission.count, "each": 1}.get(self.config.admission.kind)
        return sorted(self.sent, reverse=True)[: quota or len(self.sent)]

    def model(self) -> np.ndarray:
        """All weights, prunable ones in natural order."""
        return np.concatenate([self.core.masks.unpack(self.core.packed), self.core.dense])

    def held(self, client: int) -> np.ndarray:
        """Which weights a client that is training was sent."""
        task, sent = self.sent[client]
        packed = (np.arange(sent.masks.size) < task.num_kept).astype(np.float32)
        return np.concatenate([sent.masks.unpack(packed), np.ones(len(sent.dense))]) == 1


def is_eroding(run: Run) -> bool:
    """FA counts entries that a client does not hold as zero, which is its known fault."""
    is_partial = run.config.submodel.kind != "full"
    return run.config.aggregation.rule == "average" and is_partial


def shifted(step: float):
    return lambda values, dense: (values + np.float32(step), dense + np.float32(step))


@pytest.fixture(params=METHODS)
def method(request) -> str:
    return request.param


def test_clients_that_change_nothing_change_nothing(method):
    run = Run(method)
    before = run.model()
    for _ in range(6):
        for client in run.group():
            run.deliver(client)
        run.close()
    assert run.core.version == 6
    assert (run.model().tobytes() == before.tobytes()) != is_eroding(run)


def test_entries_that_nobody_holds_keep_their_value(method):
    run = Run(method, (0.2, 0.2, 0.2))
    group, before = run.group(), run.model()
    is_held = np.any([run.held(client) for client in group], axis=0)
    assert is_held.all() == (run.config.submodel.kind == "full")
    for client in group:
        run.deliver(client, shifted(1.0))
    run.close()
    after = run.model()
    if is_eroding(run):
        assert (after[~is_held] == 0).all()
    else:
        assert after[~is_held].tobytes() == before[~is_held].tobytes()
    assert (after[is_held] != before[is_held]).all()


def test_weights_sum_to_one(method):
    run = Run(method)
    for client in run.group():
        run.deliver(client)
    run.close()
    assert run.merges[-1].weight.sum() == pytest.approx(1.0)
    assert (run.merges[-1].weight >= 0).all()


def test_full_models_of_the_current_version_give_their_mean(method):
    """FedAvg; with a fixed alpha, that far towards it."""
    run = Run(method, (1.0, 1.0, 1.0, 1.0))
    before, group = run.model(), run.group()
    for client in group:
        run.deliver(client, shifted(client))
    run.close()
    alpha = run.config.aggregation.mix_share or 1.0
    expected = before + alpha * np.mean(group)
    np.testing.assert_allclose(run.model(), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_is_over_the_holders_of_each_entry(method):
    """Client c returns c everywhere: what an entry becomes follows from who holds it."""
    run = Run(method)
    before, group = run.model().astype(np.float64), sorted(run.group())
    held = np.array([run.held(client) for client in group], float)
    total, weighted = held.sum(0), (held * np.array(group)[:, None]).sum(0)
    for client in reversed(group):
        base = float(client)
        run.deliver(client, lambda v, d, base=base: (np.full_like(v, base), np.full_like(d, base)))
    run.close()
    mean = np.divide(weighted, total, out=before.copy(), where=total > 0)
    rule, num = run.config.aggregation.rule, len(group)
    expected = {
        "mask_aware": mean,
        "mix": before + (run.config.aggregation.mix_share or 1.0) * (mean - before),
        "average": weighted / num,
        "gradient": before + total / num * (mean - before),
        "fedbuff": before + total / num * (mean - before),
    }[rule]
    np.testing.assert_allclose(run.model(), expected, rtol=1e-5, atol=1e-6)


def test_the_order_of_arrivals_within_a_merge_changes_no_bit(method):
    models = []
    rng = np.random.default_rng(1)
    steps = {client: rng.standard_normal() for client in range(5)}
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        run = Run(method)
        group = run.group()
        for client in [client for client in order if client in group]:
            run.deliver(client, shifted(steps[client]))
        run.close()
        models.append(run.model().tobytes())
    assert len(set(models)) == 1


def test_every_tensor_is_merged(method):
    """Biases, norms and running statistics too."""
    run = Run(method)
    before, group = run.model(), run.group()
    is_held = np.any([run.held(client) for client in group], axis=0)
    for client in group:
        run.deliver(client, shifted(0.5))
    run.close()
    if not is_eroding(run):
        assert np.array_equal(run.model() != before, is_held)
    sizes = sum(layer.stop - layer.start for layer in run.core.masking.layers)
    assert sizes + len(run.core.dense) == SIZE


def test_a_stale_update_counts_as_its_rule_says(method):
    """Client 4 trains on version 0 while the others' merges move the model by 1.

    What it then delivers is what it was sent. Deltas are against the version sent, so `fedbuff`
    leaves the model alone; rules on values draw it back, by the weight of the update's age.
    """
    each = {"kind": "each", "count": None}
    run = Run(method, (1.0,) * 5, admission=each, train={"objective": "plain"})
    for client in (0, 1, 2):
        run.deliver(client, shifted(1.0))
        run.close()
    before = run.model()
    run.deliver(4)
    run.close()
    choices = run.config.aggregation
    if choices.rule == "fedbuff":
        assert run.model().tobytes() == before.tobytes()
        return
    assert run.merges[-1].staleness[4] == 4
    moved = run.model() - before
    assert (moved < 0).all()
    if choices.rule in ("mask_aware", "average", "gradient") and not choices.buffered:
        np.testing.assert_allclose(run.model(), initial(run), rtol=1e-4, atol=1e-5)
    elif choices.mix_share is not None:  # alpha sigma(4) of the way back
        way = choices.mix_share * 4**-choices.exponent
        np.testing.assert_allclose(moved, way * (initial(run) - before), rtol=1e-3, atol=1e-5)


def initial(run: Run) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)


def test_a_buffer_of_one_is_fed_async():
    """FedBuff with K = 1 and eta = alpha steps as FedAsync does on the version it was sent."""
    alpha, weight = 0.6, {"staleness": "constant"}
    one = {"kind": "count", "count": 1}
    buff = Run("fedbuff", (1.0, 1.0), admission=one,
               aggregation=weight | {"server_learning_rate": alpha})  # fmt: skip
    asynchronous = Run("fedasync_seq", (1.0, 1.0), aggregation=weight | {"mix_share": alpha})
    for run in (buff, asynchronous):
        for step in (1.0, -3.0, 0.25):
            run.deliver(0, shifted(step))
            run.close()
    np.testing.assert_allclose(buff.model(), asynchronous.model(), rtol=1e-5, atol=1e-6)


def test_wrapped_rows_share_one_aggregation():
    """+Aux is one wrapper: all that differs between wrapped rows is what clients do."""
    axes = [load_method(f"{row}+aux+gmr").axes for row in ("heterofl", "fedrolex", "fjord")]
    rows = [{axis: row[axis] for axis in row if axis not in ("submodel", "train")} for row in axes]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["aggregation"] == load_method("fedgmr").axes["aggregation"] | {"mix_share": None}
    assert load_method("fedgmr+aux+gmr").axes["admission"]["kind"] == "window"
