"""The server's state machine, driven by events only (docs/concepts.md#the-coordinator).

The model has 6 prunable weights in one layer, 6 5 4 3 2 1, and 2 dense ones, 10 20. Without a
floor the first ranking is 0..5, so a client of density .5 holds the first three.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.choices.registry import SCORES, registering
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import (
    CloseAt,
    Closed,
    Delivered,
    Dispatch,
    Evaluate,
    Evaluated,
    Finish,
    Lost,
    Merged,
    Quarantined,
    Started,
)
from fedgmr_hpc.fl.submodels import PrunableLayer
from fedgmr_hpc.fl.updates import Update
from fedgmr_hpc.fl.widths import Axis

NAN = float("nan")
WEIGHTS = np.array([6, 5, 4, 3, 2, 1, 10, 20], np.float32)
POLY_2, POLY_3 = 0.659753955386447, 0.517281857971786  # 2^-.6, 3^-.6


def make_update(assignment, values, dense=(10, 20), **changed) -> Update:
    """What a client returns; `values` is a number for all entries or one value for each."""
    values = np.broadcast_to(np.float32(values), assignment.num_kept).copy()
    return Update(
        **{
            **dict(
                client=assignment.client,
                base_version=assignment.base_version,
                mask_id=assignment.mask_id,
                level=assignment.level,
                density=assignment.density,
                values=values,
                dense=np.array(dense, np.float32),
                grad_squares=None,
                train_loss=1.0,
                score=NAN,
                num_samples=1,
            ),
            **changed,
        }
    )


class Driven:
    """A coordinator with what is in flight; windows close .5 s after the pace, merges take .5 s."""

    def __init__(self, shares=(1.0, 0.5), layers=None, num_samples=None, **sections):
        values = {
            "method": "wo_gmr",
            "clients": {"count": len(shares), "shares": list(shares)},
            "run": {"interval_rounds": 100, "max_rounds": 1000},
            "submodel": {"floor_frac": 0.0},
            "aggregation": {"staleness": "constant"},
        }
        for name, section in sections.items():
            is_section = isinstance(section, dict)
            values[name] = {**values.get(name, {}), **section} if is_section else section
        self.core = Coordinator(
            make_config(values),
            shares,
            WEIGHTS,
            layers or [PrunableLayer("a", 0, 6, 1.0)],
            num_samples=num_samples,
        )
        self.in_flight, self.log = {}, []
        self.accuracy = 0.0

    def send(self, event) -> list:
        self.log.append(event)
        commands = self.core.handle(event)
        for command in commands:
            if isinstance(command, Dispatch):
                self.dispatch = command
                self.in_flight.update({a.client: a for a in command.assignments})
            elif isinstance(command, Merged):
                self.merged = command
        return commands

    def start(self, accuracy=0.0):
        self.send(Started(0.0))
        self.send(Evaluated(0.0, accuracy))
        return self

    def deliver(self, client, values=0.0, dense=(10, 20), now_s=1.0, **changed) -> list:
        update = make_update(self.in_flight.pop(client), values, dense, **changed)
        return self.send(Delivered(now_s, update))

    def close(self, now_s=2.0) -> list:
        return self.send(Closed(now_s, now_s + 0.5))

    def evaluated(self, accuracy=None, now_s=2.5) -> list:
        self.accuracy += 0.001
        return self.send(Evaluated(now_s, self.accuracy if accuracy is None else accuracy))

    def round(self, *clients, values=0.0, accuracy=None, **changed) -> list:
        for client in clients:
            self.deliver(client, values, **changed)
        commands = self.close()
        return self.evaluated(accuracy) if isinstance(commands[-1], Evaluate) else commands

    def weights(self) -> list[float]:
        """Prunable weights in natural order."""
        return self.dispatch.masks.unpack(self.dispatch.packed).tolist()


def natural(command) -> list[float]:
    """All weights of an `Evaluate` in natural order."""
    return [*command.masks.unpack(command.packed).tolist(), *command.dense.tolist()]


def kinds(commands) -> list[type]:
    return [type(command) for command in commands]


# --- the first round


def test_the_run_begins_with_a_validation_of_the_initial_model():
    (command,) = Driven().send(Started(0.0))
    assert (type(command), command.version, command.round) == (Evaluate, 0, 0)
    assert natural(command) == WEIGHTS.tolist()


def test_the_first_dispatch_goes_to_everybody_with_masks_of_the_initial_model():
    driven = Driven((1.0, 0.5, 0.5))
    driven.send(Started(0.0))
    merged, dispatch = driven.send(Evaluated(0.0, 0.1))
    assert (merged.version, merged.clients) == (0, ())
    assert merged.density.tolist() == [1, 0.5, 0.5]
    assert merged.staleness.tolist() == [0, 0, 0]
    assert [(a.client, a.density, a.num_kept) for a in dispatch.assignments] == [
        (0, 1.0, 6),
        (1, 0.5, 3),
        (2, 0.5, 3),
    ]
    assert [a.level for a in dispatch.assignments] == [1, 0, 0]
    assert {a.mask_id for a in dispatch.assignments} == {dispatch.masks.mask_id}
    assert dispatch.masks.positions(0).tolist() == [0, 1, 2]
    assert dispatch.dense.tolist() == [10, 20]


def test_the_first_masks_weigh_layers_by_their_cost_unless_told_not_to():
    layers = [PrunableLayer("dear", 0, 4, 10.0), PrunableLayer("cheap", 4, 6, 1.0)]
    weighed = Driven(layers=layers).start().dispatch.masks
    assert weighed.positions(0).tolist() == [0, 4, 5]  # .6 .5 .4 .3 and 2 1
    plain = Driven(layers=layers, submodel={"use_costs": False}).start().dispatch.masks
    assert plain.positions(0).tolist() == [0, 1, 2]


def test_local_steps_are_numbered_on():
    driven = Driven(train={"steps": 5}).start()
    assert [a.first_step for a in driven.dispatch.assignments] == [0, 0]
    driven.round(0)
    driven.round(0, 1)
    assert [(a.client, a.first_step) for a in driven.dispatch.assignments] == [(0, 10), (1, 5)]


def test_full_models_are_dispatched_in_natural_order():
    driven = Driven((1.0, 0.5), method="fedavg").start()
    assert [(a.density, a.num_kept) for a in driven.dispatch.assignments] == [(1.0, 6)] * 2
    assert driven.dispatch.packed.tolist() == [6, 5, 4, 3, 2, 1]


# --- admission


def test_a_window_closes_the_slack_after_the_last_pacing_arrival():
    driven = Driven((1.0, 0.5, 1.0)).start()
    assert driven.deliver(0, now_s=6.0) == []
    assert driven.deliver(1, now_s=6.5) == []
    assert driven.deliver(2, now_s=7.0) == [CloseAt(7.5)]


def test_arrivals_between_the_pace_and_the_close_merge_without_a_second_close():
    driven = Driven().start()
    assert driven.deliver(0, now_s=7.0) == [CloseAt(7.5)]
    assert driven.deliver(1, now_s=7.5) == []
    assert driven.close(7.5)[0].clients == (0, 1)


def test_a_barrier_closes_at_the_last_arrival():
    driven = Driven((1.0, 0.5, 0.5), admission={"kind": "barrier"}).start()
    assert driven.deliver(0, now_s=1.0) == []
    assert driven.deliver(2, now_s=2.0) == []
    assert driven.deliver(1, now_s=9.0) == [CloseAt(9.0)]


def test_arrivals_after_the_close_join_the_next_window():
    driven = Driven().start()
    driven.deliver(0, 1.0)
    merged, dispatch = driven.close()
    assert (merged.version, merged.round, merged.clients) == (1, 1, (0,))
    assert [a.client for a in dispatch.assignments] == [0]
    assert driven.deliver(1, 9.0) == []  # does not pace
    assert driven.weights()[:3] == [1, 1, 1]  # the version that is out stays what it was
    assert driven.deliver(0, 3.0) == [CloseAt(1.5)]
    merged, dispatch = driven.close()
    assert (merged.version, merged.clients) == (2, (0, 1))
    assert driven.weights() == [6, 6, 6, 3, 3, 3]
    assert [a.client for a in dispatch.assignments] == [0, 1]


# --- merging


def test_holders_are_averaged_and_the_rest_kept():
    driven = Driven((0.5, 0.5)).start()
    driven.deliver(0, [1, 2, 3], (0, 0))
    driven.deliver(1, [3, 2, 5], (4, 8))
    merged = driven.close()[0]
    assert driven.weights() == [2, 2, 4, 3, 2, 1]
    assert driven.dispatch.dense.tolist() == [2, 4]
    assert merged.weight.tolist() == [0.5, 0.5]


def test_samples_weigh_updates():
    driven = Driven((1.0, 1.0)).start()
    driven.deliver(0, 4.0, num_samples=3)
    driven.deliver(1, 0.0, num_samples=1)
    assert driven.close()[0].weight.tolist() == [0.75, 0.25]
    assert driven.weights() == [3.0] * 6


def test_clients_that_return_what_they_got_change_nothing():
    driven = Driven((1.0, 0.5, 0.5), aggregation={"staleness": "poly"}).start()
    for step in range(10):
        for client in (0, 1, 2)[: 1 + step % 3]:
            if client in driven.in_flight:
                kept = driven.in_flight[client].num_kept
                driven.deliver(client, driven.dispatch.packed[:kept])
        driven.close()
        assert driven.weights() == [6, 5, 4, 3, 2, 1]
        assert driven.merged.weight.sum() == pytest.approx(1, abs=1e-12)


def test_an_absent_client_stays_in_the_buffer_with_its_aged_weight():
    driven = Driven(aggregation={"staleness": "poly"}).start()
    driven.deliver(0, 0.0)
    driven.deliver(1, 6.0)
    merged = driven.close()[0]
    assert merged.staleness.tolist() == [1, 1] and driven.weights() == [3, 3, 3, 0, 0, 0]
    for age, weight in ((2, POLY_2), (3, POLY_3)):
        driven.round(0, values=1.0)
        merged = driven.merged
        assert merged.clients == (0,)
        assert merged.staleness.tolist() == [1, age]
        share = weight / (1 + weight)
        assert merged.weight.tolist() == pytest.approx([1 - share, share], rel=1e-12)
        mean = (1 + weight * 6) / (1 + weight)
        assert driven.weights() == pytest.approx([mean] * 3 + [1] * 3, rel=1e-6)


def test_without_the_buffer_only_arrivals_count():
    driven = Driven(aggregation={"buffered": False}).start()
    driven.round(0, 1, values=4.0)
    driven.round(0, values=1.0)
    assert driven.weights() == [1] * 6
    assert driven.merged.weight.tolist() == [1, 0]


def test_an_upload_is_merged_in_place_of_the_clients_last():
    driven = Driven((1.0, 1.0)).start()
    driven.round(0, 1, values=8.0)
    driven.deliver(1, 2.0)
    driven.deliver(0, 0.0)
    driven.close()
    assert driven.weights() == [1] * 6


def test_staleness_counts_versions_since_the_dispatch():
    driven = Driven(aggregation={"staleness": "poly"}).start()
    for _ in range(2):
        driven.round(0, values=0.0)
    assert driven.merged.staleness.tolist() == [1, 0]  # none yet
    driven.deliver(1, 1.0)  # trained on version 0, arrives when version 2 is out
    driven.round(0, values=0.0)
    assert driven.merged.staleness.tolist() == [1, 3]
    assert driven.merged.weight[1] == pytest.approx(POLY_3 / (1 + POLY_3), rel=1e-12)
    assert {a.client: a.base_version for a in driven.dispatch.assignments} == {0: 3, 1: 3}


def test_mix_takes_the_arrivals_share_of_all_staleness_weights():
    driven = Driven((1.0, 0.5), method="fedasync", aggregation={"staleness": "poly"}).start()
    driven.round(0, 1, values=4.0)  # rho 1
    assert driven.weights() == [4] * 6
    driven.round(0, values=0.0)  # rho = 1 / (1 + 2^-.6): the absent client is aged
    assert driven.weights() == pytest.approx([4 * POLY_2 / (1 + POLY_2)] * 6, rel=1e-6)


def test_mix_knows_nothing_of_clients_never_seen():
    driven = Driven((1.0, 0.5), method="fedasync").start()
    driven.round(0, values=3.0)
    assert driven.weights() == [3] * 6


def test_the_fedavg_row_is_the_plain_mean():
    driven = Driven((1.0, 0.5, 0.1, 0.1), method="fedavg").start()
    for client, value in enumerate((1.0, 2.0, 3.0, 6.0)):
        driven.deliver(client, value, (value, 2 * value), num_samples=100)
    driven.close()
    assert driven.weights() == [3] * 6
    assert driven.dispatch.dense.tolist() == [3, 6]


def test_the_oldest_buffered_update_is_evicted():
    driven = Driven((1.0, 0.5, 0.5), aggregation={"max_entries": 2}).start()
    driven.round(0, 1, values=9.0)
    driven.round(0, values=0.0)
    assert driven.merged.weight.tolist() == [0.5, 0.5, 0]
    driven.deliver(0, 0.0)
    driven.deliver(2, 1.0)  # as old as client 1's, of which the buffer gets rid
    driven.close()
    assert driven.merged.weight.tolist() == [0.5, 0, 0.5]


def test_an_upload_is_merged_once_before_it_can_be_evicted():
    driven = Driven((1.0, 0.5, 0.5), aggregation={"max_entries": 2}).start()
    driven.round(0, 2, values=9.0)
    driven.deliver(0, 0.0)
    driven.deliver(1, 1.0)
    driven.close()
    assert driven.merged.clients == (0, 1)
    assert driven.merged.weight[1] > 0


# --- what does not matter


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)), st.sampled_from(["wo_gmr", "fedasync", "fedavg"]))
def test_the_order_of_arrival_changes_no_byte(order, method):
    results = []
    for arrival in (range(5), order):
        driven = Driven((1.0, 0.5, 0.5, 0.4, 0.2), method=method).start()
        for client in arrival:
            kept = driven.in_flight[client].num_kept
            values = np.random.default_rng(client).standard_normal(kept)
            driven.deliver(client, values, values[:2] if kept > 1 else (client, 0.1))
        driven.close()
        results.append((driven.dispatch.packed.tobytes(), driven.dispatch.dense.tobytes()))
    assert results[0] == results[1]


def scenario() -> Driven:
    driven = Driven(
        (1.0, 0.5, 0.2),
        method="fedgmr",
        run={"interval_rounds": 2},
        restoration={"patience": 1},
        aggregation={"staleness": "poly"},
    ).start()
    rng = np.random.default_rng(0)
    for step in range(12):
        for client in (0, 1, 2)[: 1 + step % 3]:
            if client in driven.in_flight:
                values = rng.standard_normal(driven.in_flight[client].num_kept)
                driven.deliver(client, values, rng.standard_normal(2), score=0.3)
        if isinstance(driven.close()[-1], Evaluate):
            driven.evaluated(0.5)
    return driven


def test_replaying_the_events_replays_the_bytes():
    driven = scenario()
    again = Coordinator(driven.core.config, (1.0, 0.5, 0.2), WEIGHTS, driven.core.masking.layers)
    for event in driven.log:
        commands = again.handle(event)
    assert driven.core.restoration.restored
    assert commands[-1].packed.tobytes() == driven.dispatch.packed.tobytes()
    assert commands[-1].dense.tobytes() == driven.dispatch.dense.tobytes()
    assert np.array_equal(commands[-1].masks.perm, driven.dispatch.masks.perm)
    assert commands[-1].assignments == driven.dispatch.assignments


def test_a_window_opens_when_the_version_is_sent():
    driven = Driven().start()
    assert driven.core.admission.opened_s == 0.0
    driven.round(0, 1)
    assert driven.core.admission.opened_s == 2.5


def test_a_dispatched_version_is_never_written_again():
    driven = Driven(run={"interval_rounds": 1}).start()
    first = driven.dispatch
    packed, dense = first.packed.tobytes(), first.dense.tobytes()
    perm = first.masks.perm.tobytes()
    for _ in range(3):
        driven.round(0, 1, values=-1.0, dense=(0, 0))
    assert (first.packed.tobytes(), first.dense.tobytes()) == (packed, dense)
    assert first.masks.perm.tobytes() == perm


def test_the_initial_weights_of_the_caller_are_left_alone():
    before = WEIGHTS.tobytes()
    Driven().start().round(0, 1, values=-3.0, dense=(0, 0))
    assert WEIGHTS.tobytes() == before


def test_delivered_arrays_are_never_written():
    driven = Driven(run={"interval_rounds": 1}).start()
    for _ in range(3):
        update = make_update(driven.in_flight.pop(0), [1, 2, 3, 4, 5, 6])
        values, dense = update.values.tobytes(), update.dense.tobytes()
        driven.send(Delivered(1.0, update))
        driven.close()
        driven.evaluated()
        assert (update.values.tobytes(), update.dense.tobytes()) == (values, dense)


# --- updates that were not asked for


def test_an_update_is_taken_once():
    driven = Driven().start()
    assignment = driven.in_flight[1]
    driven.deliver(1)
    with pytest.raises(RunError, match="version 0 arrived, expected none") as error:
        driven.send(Delivered(1.0, make_update(assignment, 0.0)))
    assert "client 1" in str(error.value) and error.value.stage == "receive"


@pytest.mark.parametrize(
    "changed",
    [
        {"base_version": 3},
        {"base_version": -1},
        {"mask_id": 77},
        {"values": np.zeros(2, np.float32)},
        {"values": np.zeros(6, np.float32)},
        {"dense": np.zeros(1, np.float32)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_update_of_something_else_raises_naming_client_and_version(changed):
    driven = Driven().start()
    update = dataclasses.replace(make_update(driven.in_flight[1], 0.0), **changed)
    with pytest.raises(RunError, match="client 1, version ") as error:
        driven.send(Delivered(1.0, update))
    assert error.value.client == 1


# --- a refresh


def test_a_refresh_merges_validates_restores_cuts_and_dispatches_in_this_order():
    driven = Driven(
        (1.0, 0.5), method="fedgmr", run={"interval_rounds": 1}, restoration={"patience": 1}
    ).start(accuracy=0.5)
    first_mask = driven.dispatch.masks.mask_id
    driven.deliver(0, [1, 2, 3, 4, 5, 6])
    driven.deliver(1, [1, 2, 3])
    (evaluate,) = driven.close()
    assert isinstance(evaluate, Evaluate) and (evaluate.version, evaluate.round) == (1, 1)
    assert natural(evaluate) == [1, 2, 3, 4, 5, 6, 10, 20]
    merged, dispatch = driven.evaluated(0.5)  # stagnates: .5 -> 1
    assert kinds([merged, dispatch]) == [Merged, Dispatch]
    assert merged.density.tolist() == [1, 1]
    assert dispatch.masks.mask_id > first_mask
    assert [(a.density, a.num_kept) for a in dispatch.assignments] == [(1.0, 6)] * 2
    assert dispatch.masks.densities == (1.0,)


def test_masks_are_cut_from_the_merged_weights():
    driven = Driven(run={"interval_rounds": 1}).start()
    driven.deliver(0, [1, 2, 3, 4, 5, 6])
    driven.deliver(1, [1, 2, 3])
    driven.close()
    driven.evaluated()
    assert driven.dispatch.masks.positions(0).tolist() == [3, 4, 5]
    assert driven.weights() == [1, 2, 3, 4, 5, 6]
    assert driven.dispatch.packed.tolist() == [4, 5, 6, 1, 2, 3]


def test_between_refreshes_masks_stay_and_nothing_is_validated():
    driven = Driven(run={"interval_rounds": 3}).start()
    mask_id = driven.dispatch.masks.mask_id
    for _ in range(2):
        assert kinds(driven.round(0, values=-1.0)) == [Merged, Dispatch]
        assert driven.dispatch.masks.mask_id == mask_id
    driven.deliver(0, -1.0)
    assert kinds(driven.close()) == [Evaluate]


def test_an_update_of_an_older_mask_is_merged_where_it_belongs():
    driven = Driven(run={"interval_rounds": 1}).start()
    driven.round(0, values=[1, 2, 3, 4, 5, 6])  # client 1 is still training entries 0 1 2
    assert driven.dispatch.masks.positions(0).tolist() == [3, 4, 5]
    driven.deliver(1, [30, 20, 10])
    driven.round(0, values=0.0)
    assert driven.weights() == [15, 10, 5, 0, 0, 0]
    assert driven.merged.clients == (0, 1)


def test_a_buffered_update_follows_the_masks_of_later_refreshes():
    driven = Driven(run={"interval_rounds": 1}).start()
    driven.deliver(1, [30, 20, 10])
    driven.round(0, values=[0, 0, 0, 50, 60, 70])
    assert driven.weights() == [15, 10, 5, 50, 60, 70]
    driven.round(0, values=-2.0)  # packed now 3 4 5 0 1 2
    assert driven.weights() == [14, 9, 4, -2, -2, -2]
    driven.round(0, values=0.0)
    assert driven.weights() == [15, 10, 5, 0, 0, 0]


def test_densities_change_at_the_next_dispatch_only():
    driven = Driven(
        (1.0, 0.5, 0.2), method="fedgmr", run={"interval_rounds": 1}, restoration={"patience": 1}
    ).start(accuracy=0.5)
    held = driven.in_flight[2]
    driven.round(0, values=1.0, accuracy=0.5)
    assert driven.merged.density.tolist() == [1, 0.5, 0.5]
    assert driven.in_flight[2] is held and held.num_kept == 1
    driven.deliver(2, 7.0)
    driven.round(0, values=1.0)
    assert driven.in_flight[2].density == 0.5 and driven.in_flight[2].num_kept == 3


def test_a_diverged_model_raises_naming_the_version():
    driven = Driven((1.0, 1.0), run={"interval_rounds": 1}).start()
    driven.deliver(0, 3e38)
    driven.deliver(1, -3e38)  # both are finite, their difference is not
    driven.close()
    with pytest.raises(RunError, match="version 1.*diverged"):
        driven.evaluated()


@pytest.mark.parametrize(("value", "told"), [(1.0, "below 0"), (3e38, "has diverged")])
def test_a_score_below_0_is_blamed_unless_the_weights_are_not_finite(value, told):
    with registering("test"):
        SCORES.add("minus", lambda weights, last_weights: -np.abs(weights))
    try:
        more = {"run": {"interval_rounds": 1}, "submodel": {"score": "minus"}}
        driven = Driven((1.0, 1.0), **more).start()
        driven.deliver(0, value)
        driven.deliver(1, -value / 2)  # the difference of the larger ones is not finite
        driven.close()
        with pytest.raises(RunError, match=told):
            driven.evaluated()
    finally:
        SCORES.forget("test")


def test_score_wg_ranks_by_weight_times_change_since_the_last_refresh():
    driven = Driven(run={"interval_rounds": 1}, submodel={"score": "wg"}).start()
    driven.round(0, values=[6, 5, 5, 1, 0, 3])  # changes 0 0 1 -2 -2 2, times weight 0 0 5 2 0 6
    assert driven.dispatch.masks.positions(0).tolist() == [2, 3, 5]


def test_score_g_sums_squared_gradients_of_the_interval_at_their_positions():
    driven = Driven((1.0, 0.5, 0.5), run={"interval_rounds": 2}, submodel={"score": "g"}).start()
    squares = np.array([0, 0, 0, 1, 2, 1], np.float32)
    driven.deliver(1, 1.0, grad_squares=np.array([0, 4, 0], np.float32))
    driven.round(0, values=1.0, grad_squares=squares)
    driven.deliver(1, 1.0, grad_squares=np.array([0, 0, 1.5], np.float32))
    driven.round(0, values=1.0, grad_squares=squares)
    # sums 0 4 1.5 2 4 2
    assert driven.dispatch.masks.positions(0).tolist() == [1, 3, 4]
    # packed 1 3 4 0 2 5; client 2's of the first masks, entries 0 1 2; sums start anew
    driven.deliver(2, 1.0, grad_squares=np.array([3, 0, 2], np.float32))
    driven.round(0, values=1.0, grad_squares=np.array([0, 0, 0, 0, 0, 2.5], np.float32))
    driven.round(0, values=1.0, grad_squares=np.zeros(6, np.float32))
    assert driven.dispatch.masks.positions(0).tolist() == [0, 2, 5]


@pytest.mark.parametrize("score", ["w", "wg", "g"])
def test_ranking_while_the_validation_runs_changes_nothing(score):
    results = []
    for is_early in (False, True):
        submodel = {"score": score}
        driven = Driven((1.0, 0.5), submodel=submodel, run={"interval_rounds": 1}).start()
        rng = np.random.default_rng(0)
        for _ in range(4):
            values, squares = rng.standard_normal((2, 6)).astype(np.float32)
            driven.deliver(0, values, grad_squares=squares**2 if score == "g" else None)
            driven.close()
            if is_early:
                driven.core.rank()
            driven.evaluated()
        results.append((driven.dispatch.packed.tobytes(), driven.dispatch.masks.perm.tobytes()))
    assert results[0] == results[1]


# --- scores of clients


def test_each_client_is_measured_once_an_interval():
    driven = Driven((1.0, 0.5), method="fedgmr", run={"interval_rounds": 3}).start()
    measured = [[a.measure for a in driven.dispatch.assignments]]
    for _ in range(6):
        driven.round(0, 1)
        measured.append([a.measure for a in driven.dispatch.assignments])
    assert [all(row) for row in measured] == [True, False, False, True, False, False, True]
    assert [any(row) for row in measured] == [True, False, False, True, False, False, True]


def test_a_client_measured_across_a_refresh_is_not_measured_twice():
    driven = Driven((1.0, 0.5), method="fedgmr", run={"interval_rounds": 2}).start()
    driven.round(0)
    driven.round(0)  # a refresh; client 1 still trains what is to be measured
    driven.deliver(1, score=0.4)
    driven.round(0)
    assert {a.client: a.measure for a in driven.dispatch.assignments} == {0: False, 1: False}
    driven.round(0, 1)
    assert {a.client: a.measure for a in driven.dispatch.assignments} == {0: True, 1: True}


def test_a_client_restored_in_flight_is_measured_at_its_new_density():
    timed = {"trigger": "both", "total_time_s": 100}
    driven = Driven(
        (1.0, 0.5), method="fedgmr", run={"interval_rounds": 2}, restoration=timed
    ).start()
    driven.round(0)
    driven.deliver(0)
    driven.close(25.0)
    driven.evaluated(now_s=25.5)  # lifts client 1, which still trains what is to be measured
    driven.deliver(1, score=0.4, now_s=26.0)  # at a density that it no longer has
    assert driven.core.scores == {}
    driven.round(0)
    assert {a.client: (a.density, a.measure) for a in driven.dispatch.assignments} == {
        0: (1.0, False),
        1: (1.0, True),
    }


@pytest.mark.parametrize(
    "restoration", [{"trigger": "none"}, {"trigger": "time"}, {"trigger": "none", "balance": True}]
)
def test_nobody_is_measured_where_no_score_is_watched(restoration):
    driven = Driven((1.0, 0.5), method="fedgmr", restoration=restoration).start()
    assert not any(a.measure for a in driven.dispatch.assignments)


def test_a_delivered_score_counts_at_one_refresh_only():
    driven = Driven(
        (1.0, 0.5, 0.2), method="fedgmr", run={"interval_rounds": 1}, restoration={"patience": 1}
    ).start()
    driven.deliver(2, score=0.4)
    driven.round(0)
    for _ in range(3):
        driven.round(0)  # client 2 has delivered no new score
    assert driven.merged.density.tolist() == [1, 0.5, 0.2]
    driven.deliver(2, score=0.4)
    driven.round(0)
    assert driven.merged.density.tolist() == [1, 0.5, 0.5]


def test_cycle_times_from_dispatch_to_delivery_drive_the_balance():
    driven = Driven(restoration={"balance": True}, run={"interval_rounds": 1}).start()
    driven.deliver(1, now_s=20.0)
    driven.deliver(0, now_s=10.0)
    driven.close(10.5)
    driven.evaluated(now_s=11.0)
    assert driven.merged.density.tolist() == [1, 0.375]
    driven.deliver(0, now_s=19.0)  # 8 s after its dispatch
    driven.deliver(1, now_s=21.0)  # 10 s
    driven.close(21.5)
    driven.evaluated(now_s=22.0)
    assert driven.merged.density.tolist() == [1, 0.3375]


# --- admission by number of updates


def test_each_merges_every_arrival_by_itself():
    driven = Driven((1.0, 0.5), method="fedasync", admission={"kind": "each"}).start()
    assert driven.deliver(1, 4.0, now_s=3.0) == [CloseAt(3.0)]
    merged, dispatch = driven.close(3.0)
    assert (merged.version, merged.round, merged.clients) == (1, 0, (1,))
    assert [(a.client, a.base_version) for a in dispatch.assignments] == [(1, 1)]
    assert driven.deliver(0, 0.0, now_s=5.0) == [CloseAt(5.0)]
    merged, dispatch = driven.close(5.0)
    assert (merged.version, merged.round, merged.clients) == (2, 1, (0,))
    assert merged.staleness.tolist() == [2, 2]  # both trained version 0
    assert driven.weights() == [2] * 6  # half the staleness weights are the arrival's
    assert [(a.client, a.base_version) for a in dispatch.assignments] == [(0, 2)]


def test_an_arrival_during_a_merge_is_merged_by_itself_too():
    driven = Driven((1.0, 0.5), admission={"kind": "each"}).start()
    driven.deliver(1, now_s=3.0)
    driven.close(3.0)  # ready at 3.5
    assert driven.deliver(0, now_s=3.2) == [CloseAt(3.2)]
    merged, dispatch = driven.close(3.2)
    assert (merged.version, merged.clients, dispatch.version) == (2, (0,), 2)


def test_arrivals_at_one_time_share_a_merge():
    driven = Driven((1.0, 0.5), admission={"kind": "each"}).start()
    assert driven.deliver(0, now_s=3.0) == [CloseAt(3.0)]
    assert driven.deliver(1, now_s=3.0) == []
    assert driven.close(3.0)[0].clients == (0, 1)


def test_count_merges_so_many_updates():
    driven = Driven((1.0, 0.5, 0.5), admission={"kind": "count", "count": 2}).start()
    assert driven.deliver(2, now_s=3.0) == []
    assert driven.deliver(1, now_s=4.0) == [CloseAt(4.0)]
    assert driven.deliver(0, now_s=4.0) == []  # an arrival comes before a close at the same time
    merged = driven.close(4.0)[0]
    assert (merged.version, merged.round, merged.clients) == (1, 1, (0, 1, 2))


def buff(count: int, shares=(1.0, 1.0, 1.0), **sections) -> Driven:
    admission = {"kind": "count", "count": count}
    return Driven(shares, method="fedbuff", admission=admission,
                  aggregation={"staleness": "poly"}, **sections).start()  # fmt: skip


def test_clients_that_are_counted_go_on_at_once_from_the_version_there_is():
    driven = buff(3)
    for now_s in (1.0, 2.0):
        (sent,) = driven.deliver(0, values=1.0, dense=(0, 0), now_s=now_s)
        assert type(sent) is Dispatch
        assert (sent.version, sent.at_s) == (0, now_s)
        assert [(a.client, a.base_version) for a in sent.assignments] == [(0, 0)]
    assert sent.assignments[0].first_step == 2 * driven.core.config.train.steps
    assert driven.deliver(1, values=4.0, dense=(0, 0), now_s=3.0) == [CloseAt(3.0)]
    merged, sent = driven.close(3.0)
    assert merged.clients == (0, 0, 1)
    assert driven.weights() == [w + (1 + 1 + 4) / 3 for w in (6, 5, 4, 3, 2, 1)]
    assert merged.weight.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert [(a.client, a.base_version) for a in sent.assignments] == [(1, 1)]  # 0 trains already


def test_two_updates_of_a_client_in_a_merge_have_an_age_each():
    driven = buff(2)
    driven.round(0, 1, dense=(0, 0))
    driven.deliver(0, values=1.0, dense=(0, 0))  # of version 0
    driven.deliver(0, values=1.0, dense=(0, 0))  # of version 1
    merged = driven.close()[0]
    assert (merged.clients, merged.staleness.tolist()) == ((0, 0), [1, 2, 0])
    step = (1 + 2**-0.5) / 2
    assert driven.weights() == pytest.approx([w + step for w in (6, 5, 4, 3, 2, 1)])
    assert merged.weight.tolist() == pytest.approx([step, 0, 0])


def test_a_client_that_delivers_twice_takes_no_more_than_its_share_of_a_mix():
    """rho is 3 of 3: the arrivals are all updates there are."""
    choices = {"kind": "count", "count": 3}
    driven = Driven((1.0, 1.0, 1.0), method="fedasync", admission=choices).start()
    for _ in range(3):
        driven.deliver(0, values=7.0, dense=(7, 7))
    driven.close()
    assert driven.core.dense.tolist() == [7, 7]
    assert driven.core.packed.tolist() == pytest.approx([7] * 6)


def test_what_is_sent_at_once_is_not_sent_before_its_version_exists():
    driven = buff(2)
    driven.deliver(0, dense=(0, 0))
    driven.deliver(1, dense=(0, 0))
    driven.close(2.0)  # done at 2.5
    (sent,) = driven.deliver(2, dense=(0, 0), now_s=2.2)
    assert (sent.version, sent.at_s) == (1, 2.5)
    driven.deliver(2, dense=(0, 0), now_s=2.6)
    assert driven.core.clients[2].cycle_times_s[-1] == pytest.approx(0.1)


def test_an_update_of_a_client_that_is_gone_is_not_counted_any_more():
    driven = buff(3)
    driven.deliver(0, dense=(0, 0))
    driven.deliver(0, dense=(0, 0))
    driven.send(Lost(1.5, (0,), "gone"))
    (sent,) = driven.deliver(1, dense=(0, 0))
    assert type(sent) is Dispatch
    driven.deliver(1, dense=(0, 0))
    assert driven.deliver(2, dense=(0, 0), now_s=3.0) == [CloseAt(3.0)]
    assert driven.close(3.0)[0].clients == (1, 1, 2)


def test_a_round_of_single_updates_takes_one_of_every_client():
    train = {"learning_rate": 0.1, "decay_factor": 0.5, "decay_rounds": 1}
    driven = Driven((1.0, 0.5), admission={"kind": "each"}, train=train).start()
    rounds, rates = [], []
    for client in (0, 1, 0, 0, 1, 0):
        driven.round(client)
        rounds.append(driven.merged.round)
        rates.append(driven.in_flight[client].learning_rate)
    assert rounds == [0, 1, 1, 2, 2, 3]
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025, 0.0125])


def test_a_refresh_comes_once_when_the_round_passes_a_multiple_of_the_interval():
    run = {"interval_rounds": 2}
    driven = Driven((1.0, 0.5), admission={"kind": "each"}, run=run).start()
    first, evaluated = driven.dispatch.masks.mask_id, []
    for step in range(9):
        driven.deliver(0, -float(step))
        (command, *_) = driven.close()
        if isinstance(command, Evaluate):
            evaluated.append((command.version, command.round))
            driven.evaluated()
    assert evaluated == [(4, 2), (8, 4)]
    assert driven.dispatch.masks.mask_id == first + 2
    assert driven.in_flight[1].mask_id == first  # it keeps its masks until it is sent new ones
    driven.deliver(1, [30, 20, 10])
    driven.close()
    assert driven.weights()[3:] == [-8, -8, -8]
    assert {a.client: a.mask_id for a in driven.dispatch.assignments} == {1: first + 2}


def test_max_rounds_counts_rounds_of_single_updates():
    run = {"max_rounds": 2}
    driven = Driven((1.0, 0.5), admission={"kind": "each"}, run=run).start()
    for _ in range(3):
        assert kinds(driven.round(0)) == [Merged, Dispatch]
    assert kinds(driven.round(0)) == [Merged, Finish]
    assert (driven.merged.version, driven.merged.round) == (4, 2)


def test_rounds_that_end_together_are_evaluated_once():
    run = {"interval_rounds": 2, "max_rounds": 50}
    driven = Driven((1.0,) * 6, admission={"kind": "each"}, run=run).start()
    for client in range(5):
        driven.round(client)
    driven.send(Lost(3.0, (0, 1, 2, 3), "silent"))
    driven.deliver(4)
    (evaluate,) = driven.close()
    assert (evaluate.version, evaluate.round) == (6, 3)
    driven.evaluated()
    assert kinds(driven.round(5)) == [Merged, Dispatch]
    driven.deliver(4)
    (evaluate,) = driven.close()
    assert (evaluate.version, evaluate.round) == (8, 4)


# --- clients that are gone


def test_a_window_that_waited_only_for_a_lost_client_closes_after_the_slack():
    driven = Driven((1.0, 0.5, 0.5)).start()
    driven.deliver(1, 0.0, now_s=6.0)
    assert driven.send(Lost(7.0, (0,), "silent for 60 s")) == [CloseAt(7.5)]
    merged, dispatch = driven.close(7.5)
    assert merged.clients == (1,) and [a.client for a in dispatch.assignments] == [1]
    assert driven.deliver(2, now_s=8.0) == []  # from now on both of share .5 pace
    assert driven.deliver(1, now_s=9.0) == [CloseAt(9.5)]


def test_a_lost_client_that_nobody_waits_for_changes_no_window():
    driven = Driven((1.0, 0.5, 0.5)).start()
    assert driven.send(Lost(3.0, (2,), "silent")) == []
    assert driven.deliver(0, now_s=7.0) == [CloseAt(7.5)]


def test_a_lost_client_leaves_the_buffer_at_once():
    driven = Driven((1.0, 0.5), aggregation={"staleness": "poly"}).start()
    driven.round(0, 1, values=6.0)
    driven.send(Lost(3.0, (1,), "silent"))
    driven.round(0, values=1.0)
    assert driven.weights() == [1] * 6
    assert driven.merged.weight.tolist() == [1, 0]
    assert driven.merged.staleness.tolist() == [1, 0]


def test_a_lost_client_has_no_part_in_the_mixing_share():
    driven = Driven((1.0, 0.5), method="fedasync").start()
    driven.round(0, 1, values=4.0)
    driven.send(Lost(3.0, (1,), "silent"))
    driven.round(0, values=0.0)
    assert driven.weights() == [0] * 6  # rho 1


def test_what_a_lost_client_has_delivered_before_the_close_is_not_merged():
    driven = Driven((1.0, 0.5)).start()
    assert driven.deliver(0, 1.0, now_s=7.0) == [CloseAt(7.5)]
    driven.deliver(1, 3.0, now_s=7.1)
    assert driven.send(Lost(7.2, (0,), "silent")) == []  # the close is under way
    merged, dispatch = driven.close(7.5)
    assert merged.clients == (1,)
    assert driven.weights() == [3, 3, 3, 3, 2, 1]
    assert [a.client for a in dispatch.assignments] == [1]


def test_a_window_that_closes_with_nothing_left_to_merge_stays_open():
    driven = Driven((1.0, 0.5)).start()
    driven.deliver(0, 1.0, now_s=7.0)
    driven.send(Lost(7.2, (0,), "silent"))
    assert driven.close(7.5) == []
    assert driven.deliver(1, 3.0, now_s=9.0) == [CloseAt(9.5)]
    assert driven.close(9.5)[0].version == 1


def test_a_client_lost_while_the_model_is_validated_is_sent_nothing():
    driven = Driven((1.0, 0.5), run={"interval_rounds": 1}).start()
    driven.deliver(0)
    driven.deliver(1)
    driven.close()
    driven.send(Lost(2.5, (0,), "silent"))
    driven.evaluated()
    assert [a.client for a in driven.dispatch.assignments] == [1]


def test_masks_are_cut_for_those_who_are_left():
    driven = Driven((1.0, 0.5, 0.2), run={"interval_rounds": 1}).start()
    assert driven.dispatch.masks.densities == (0.2, 0.5, 1.0)
    driven.send(Lost(1.0, (2,), "silent"))
    driven.round(0, 1)
    assert driven.dispatch.masks.densities == (0.5, 1.0)
    assert driven.merged.density.tolist() == [1, 0.5, 0.2]  # a lost client's last


def test_an_update_of_a_lost_client_is_refused():
    driven = Driven().start()
    driven.send(Lost(1.0, (1,), "silent"))
    with pytest.raises(RunError, match="expected none"):
        driven.deliver(1)


def test_a_run_without_clients_ends_saying_who_has_gone():
    driven = Driven((1.0, 0.5, 0.5)).start()
    driven.send(Lost(1.0, (0,), "silent"))
    driven.deliver(1, NAN)
    with pytest.raises(RunError, match="no client is left: 2 lost, 1 quarantined.*60 s") as error:
        driven.send(Lost(2.0, (2,), "silent for 60 s"))
    assert (error.value.version, error.value.stage) == (0, "receive")


# --- quarantine


@pytest.mark.parametrize(
    "changed",
    [
        {"values": [1, NAN, 3]},
        {"values": [1, 2, float("inf")]},
        {"values": [-float("inf"), float("inf"), 0]},
        {"dense": (NAN, 0)},
        {"grad_squares": np.array([0, float("inf"), 0], np.float32)},
    ],
)
def test_an_update_that_is_not_finite_shuts_its_client_out(changed):
    driven = Driven().start()
    driven.round(0, values=2.0)
    assert driven.deliver(1, **changed) == [Quarantined(1, 1, "a value is not finite")]
    driven.round(0, values=1.0)
    assert driven.merged.clients == (0,) and driven.weights() == [1] * 6
    assert driven.merged.weight.tolist() == [1, 0]


def test_large_values_are_finite_though_their_squares_are_not():
    driven = Driven().start()
    assert driven.deliver(1, [3e38, -3e38, 0], (1e30, 0)) == []


def test_the_quarantine_of_the_pacing_client_closes_the_window():
    driven = Driven((1.0, 0.5)).start()
    driven.deliver(1, now_s=5.0)
    commands = driven.deliver(0, NAN, now_s=7.0)
    assert commands == [Quarantined(0, 0, "a value is not finite"), CloseAt(7.5)]
    merged, dispatch = driven.close(7.5)
    assert merged.clients == (1,) and [a.client for a in dispatch.assignments] == [1]


def test_a_client_in_quarantine_takes_its_earlier_update_along():
    driven = Driven((1.0, 0.5)).start()
    driven.round(0, 1, values=6.0)
    driven.deliver(1, NAN)
    driven.round(0, values=0.0)
    assert driven.weights() == [0] * 6


def test_when_every_client_is_in_quarantine_the_model_has_diverged():
    driven = Driven((1.0, 0.5)).start()
    driven.deliver(1, NAN)
    with pytest.raises(RunError, match="diverged: every client.*lower train.learning_rate"):
        driven.deliver(0, float("inf"))


def test_a_norm_far_out_shuts_a_client_out_where_a_ratio_is_set():
    # entries 6 5 4 and 10 20 of the model: mean square 115.4, root 10.74
    driven = Driven(aggregation={"max_norm_ratio": 2.0}).start()
    (command,) = driven.deliver(1, 60 / 3**0.5)  # mean square (3600 + 500) / 5, root 28.6
    assert (command.client, command.version) == (1, 0)
    assert command.reason == (
        "its root mean square 28.6 is more than aggregation.max_norm_ratio = 2 times "
        "the model's 10.7"
    )
    # all six entries: mean square 591 / 8, root 8.6; 17 makes 2234 / 8, root 16.7
    assert driven.deliver(0, 17.0) == [CloseAt(1.5)]


def test_a_norm_far_out_is_merged_where_no_ratio_is_set():
    driven = Driven().start()
    assert driven.deliver(1, 1e6) == []


def test_the_norm_is_that_of_the_same_entries_under_the_masks_of_the_update():
    driven = Driven((1.0, 0.5), aggregation={"max_norm_ratio": 1.5}, run={"interval_rounds": 1})
    driven.start().round(0, values=[0, 0, 0, 9, 9, 9], dense=(0, 0))
    assert driven.dispatch.masks.positions(0).tolist() == [3, 4, 5]
    # client 1 trained 0 1 2, which are zero by now: their norm says nothing
    assert driven.deliver(1, 100.0, dense=(0, 0)) == []
    driven.round(0, values=[9, 9, 9, 1, 1, 1], dense=(0, 0))
    assert driven.in_flight[1].base_version == 2
    assert isinstance(driven.deliver(1, 1000.0, dense=(0, 0))[0], Quarantined)


# --- the end


def test_the_run_ends_after_max_rounds_with_a_last_validation():
    driven = Driven(run={"max_rounds": 2}).start()
    driven.round(0, values=1.0)
    driven.deliver(0, 2.0)
    (evaluate,) = driven.close()
    assert (evaluate.version, natural(evaluate)) == (2, [2.0] * 6 + [10, 20])
    merged, finish = driven.evaluated()
    assert kinds([merged, finish]) == [Merged, Finish] and merged.version == 2
    assert finish.weights.tolist() == [2.0] * 6 + [10, 20]


def test_the_run_ends_with_the_merge_that_is_ready_at_max_time():
    driven = Driven(run={"max_time_s": 10.0}).start()
    driven.deliver(0)
    assert kinds(driven.send(Closed(9.4, 9.9))) == [Merged, Dispatch]
    driven.deliver(0)
    assert kinds(driven.send(Closed(9.5, 10.0))) == [Evaluate]
    assert kinds(driven.evaluated(now_s=10.0)) == [Merged, Finish]


def test_nothing_is_restored_at_the_end():
    driven = Driven(
        (1.0, 0.5),
        method="fedgmr",
        run={"max_rounds": 1, "interval_rounds": 1},
        restoration={"patience": 1},
    ).start(accuracy=0.5)
    assert kinds(driven.round(0, accuracy=0.5)) == [Merged, Finish]
    assert driven.merged.density.tolist() == [1, 0.5]


# --- learning rate


def test_the_learning_rate_decays_by_rounds():
    train = {"learning_rate": 0.1, "decay_factor": 0.5, "decay_rounds": 2}
    driven = Driven(train=train).start()
    rates = [driven.dispatch.assignments[0].learning_rate]
    for _ in range(5):
        driven.round(0)
        rates.append(driven.dispatch.assignments[0].learning_rate)
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


def test_the_learning_rate_stops_decaying():
    train = {"learning_rate": 0.1, "decay_factor": 0.5, "decay_rounds": 1, "max_decays": 2}
    driven = Driven(train=train).start()
    rates = [driven.dispatch.assignments[0].learning_rate]
    for _ in range(3):
        driven.round(0)
        rates.append(driven.dispatch.assignments[0].learning_rate)
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.025])


def test_an_assignment_is_frozen():
    assignment = Driven().start().in_flight[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        assignment.base_version = 5


# --- rows whose masks change in every round, or whose clients are limited


def test_masks_are_cut_anew_in_every_round_where_the_row_says_so():
    driven = Driven((0.5, 0.5), method="fiarse").start()
    assert driven.dispatch.masks.mask_id == 1
    assert driven.dispatch.masks.positions(0).tolist() == [0, 1, 2]
    driven.round(0, 1, values=[0.5, 9, 0.25])
    assert driven.dispatch.masks.mask_id == 2
    assert driven.weights() == [0.5, 9, 0.25, 3, 2, 1]
    assert driven.dispatch.masks.positions(0).tolist() == [1, 3, 4]


def test_a_rolling_window_moves_by_one_a_round():
    layers = [PrunableLayer("a", 0, 6, 1.0, (Axis(6),))]
    driven = Driven((0.25, 0.25), layers, method="fedrolex").start()  # 3 of 6 units
    windows = []
    for _ in range(7):
        windows.append(sorted(driven.dispatch.masks.positions(0).tolist()))
        driven.round(0, 1)
    assert windows == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 4, 5], [0, 1, 5], [0, 1, 2]]


def test_a_window_of_single_updates_rolls_when_a_round_of_them_is_full():
    layers = [PrunableLayer("a", 0, 6, 1.0, (Axis(6),))]
    driven = Driven((0.25, 0.25), layers, method="fedrolex", admission={"kind": "each"}).start()
    ids = []
    for client in (0, 0, 1, 1):
        driven.round(client)
        ids.append(driven.dispatch.masks.mask_id)
    assert ids == [1, 2, 2, 3]


def test_buffered_updates_of_past_windows_count_where_they_were_held():
    """Client 1 holds units 0 to 2 of version 0; then client 0 holds 1 to 3."""
    layers = [PrunableLayer("a", 0, 6, 1.0, (Axis(6),))]
    driven = Driven((0.25, 0.25), layers, method="fedrolex+aux",
                    admission={"kind": "each"}, aggregation={"staleness": "constant"})  # fmt: skip
    driven.start()
    driven.round(1, values=[4, 4, 4])
    driven.round(0, values=[8, 8, 8])  # both of version 0: the mean, 6, on units 0 to 2
    assert driven.weights() == [6, 6, 6, 3, 2, 1]
    driven.round(0, values=[10, 10, 10])  # of units 1 to 3; client 1's 4 still counts
    assert driven.weights() == [4, 7, 7, 10, 2, 1]


def test_ceilings_reach_the_dispatch_and_hold_through_restorations():
    driven = Driven(
        (0.5, 0.5, 0.5),
        method="fedgmr",
        clients={"count": 3, "shares": [0.5] * 3, "max_densities": [1.0, 0.7, 0.2]},
        run={"interval_rounds": 1},
        restoration={"patience": 1},
    ).start()
    assert [a.density for a in driven.dispatch.assignments] == [0.5, 0.5, 0.2]
    assert [a.num_kept for a in driven.dispatch.assignments] == [3, 3, 1]
    for _ in range(4):
        driven.round(0, 1, 2, accuracy=0.0)
    assert [a.density for a in driven.dispatch.assignments] == [1.0, 0.7, 0.2]
    assert [a.num_kept for a in driven.dispatch.assignments] == [6, 4, 1]


def test_a_fixed_alpha_is_scaled_by_the_mean_staleness_weight_of_the_arrivals():
    driven = Driven((1.0, 1.0), method="fedasync_seq", aggregation={"staleness": "poly"}).start()
    driven.round(0, values=1.0)  # alpha .6 at age 1
    assert driven.weights() == pytest.approx([0.4 * w + 0.6 for w in (6, 5, 4, 3, 2, 1)])
    before = driven.weights()
    driven.round(1, values=0.0)  # age 2: .6 / sqrt(2)
    assert driven.weights() == pytest.approx([(1 - 0.6 / 2**0.5) * w for w in before])


def test_a_model_without_a_dense_part_is_looked_at_for_numbers_that_are_not_finite():
    core = Coordinator(make_config({}), (1.0,), WEIGHTS[:6], [PrunableLayer("a", 0, 6, 1.0)])
    core._check_finite()
    core.packed[0] = np.inf
    with pytest.raises(RunError, match="a weight is not finite"):
        core._check_finite()


@pytest.mark.parametrize(("weigh_by", "expected"), [("steps", 3.0), ("data", 4.0)])
def test_updates_weigh_by_their_steps_or_by_the_data_of_their_clients(weigh_by, expected):
    choices = {"method": "fedavg", "aggregation": {"weigh_by": weigh_by}}
    driven = Driven((1.0, 1.0), num_samples=[10, 30], **choices).start()
    driven.deliver(0, values=1.0)
    driven.deliver(1, values=5.0)
    driven.close()
    assert driven.weights() == [expected] * 6


def test_fed_buff_adds_changes_with_their_own_staleness_over_the_number_of_updates():
    """Client 2's change was made on version 0, and counts 2^-.5 on version 1."""
    driven = Driven((1.0, 1.0, 1.0), method="fedbuff", admission={"kind": "count", "count": 2},
                    aggregation={"staleness": "poly"}).start()  # fmt: skip
    driven.round(0, 1, values=1.0, dense=(0, 0))
    assert driven.weights() == [7, 6, 5, 4, 3, 2]
    driven.round(1, 2, values=1.0, dense=(2, 0))
    step = (1 + 2**-0.5) / 2
    assert driven.weights() == pytest.approx([w + step for w in (7, 6, 5, 4, 3, 2)])
    assert driven.dispatch.dense.tolist() == pytest.approx([10 + 2 * step, 20])
