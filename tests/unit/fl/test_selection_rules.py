"""A user's selection rule: what it is given, what it may return, and what is saved of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from registering import registered

from fedgmr_hpc.config.choices import plugins
from fedgmr_hpc.config.choices.registry import SELECTIONS
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import Closed, Delivered, Dispatch, Evaluate, Evaluated, Started
from fedgmr_hpc.fl.selection import Availability, Selection, SelectionRule
from fedgmr_hpc.fl.snapshot import coordinator_state, restore_coordinator
from fedgmr_hpc.fl.submodels import PrunableLayer
from fedgmr_hpc.fl.updates import Update, UpdateHeader
from fedgmr_hpc.storage.checkpoint import pack_tree, unpack_tree

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "own_selection.py"
SHARES = (1.0, 0.5, 0.5, 0.25)
NAN = math.nan


class Recording(SelectionRule):
    """Takes the first ones, and notes how often it was asked."""

    def choose(self, draw):
        seen.append(draw)
        draw.state["asked"] = draw.state.get("asked", 0) + 1
        return draw.available[: draw.num_wanted]


seen: list = []


@pytest.fixture(autouse=True)
def _nothing_seen():
    seen.clear()


def config_of(selection="mine", sampled=2, **options):
    clients = {"count": 4, "shares": SHARES, "sampled": sampled, "selection": selection, **options}
    return make_config({"method": "fedavg", "clients": clients, "seed": 3})


def selecting(*given, availability=None, **choices) -> Selection:
    return Selection(config_of(*given, **choices).clients, 3, SHARES, availability, (7, 8, 9, 10))


def choose(selection, idle=(0, 1, 2, 3), num_taking=0, now_s=0.0, version=0) -> list[int]:
    return selection.choose(idle, num_taking, now_s, 5, SHARES, (version, 0))


def header(client, loss, score=NAN) -> UpdateHeader:
    return UpdateHeader(client, 0, 0, 0, 1.0, loss, score, 10)


def test_a_rule_sees_what_the_server_knows_of_the_clients():
    with registered(SELECTIONS, Recording):
        selection = selecting(availability=Availability({0: [(9.0, 10.0)]}, 20.0))
        selection.deliver(header(2, 0.5, score=0.25), 3.0)
        selection.deliver(header(2, 0.75), 4.0)
        selection.deliver(header(3, 1.5), 6.0)
        assert choose(selection, now_s=2.0) == [1, 2]
    (draw,) = seen
    assert (draw.num_wanted, draw.available, tuple(draw.idle)) == (2, (1, 2, 3), (0, 1, 2, 3))
    assert (draw.now_s, draw.round) == (2.0, 5)
    assert draw.shares.tolist() == draw.densities.tolist() == list(SHARES)
    assert draw.num_samples.tolist() == [7, 8, 9, 10]
    assert draw.num_updates.tolist() == [0, 0, 2, 1]
    np.testing.assert_equal(draw.train_losses, [NAN, NAN, 0.75, 1.5])
    np.testing.assert_equal(draw.scores, [NAN, NAN, 0.25, NAN])
    np.testing.assert_equal(draw.cycle_times_s, [NAN, NAN, 4.0, 6.0])


def test_what_it_sees_is_its_own():
    """What it keeps of one draw does not go on to change, and what it writes there is lost."""
    names = ("train_losses", "scores", "cycle_times_s", "num_updates", "num_samples", "shares")
    with registered(SELECTIONS, Recording):
        selection = selecting()
        choose(selection)
        for name in names:
            getattr(seen[0], name)[:] = 77
        choose(selection)
    assert not any((getattr(seen[1], name) == 77).any() for name in names)


def test_a_fault_of_a_rule_that_yields_is_its_own():
    class Yielding(Recording):
        def choose(self, draw):
            draw.state["turn"] = {1}
            yield from draw.available[: draw.num_wanted]

    class Faulty(Recording):
        def choose(self, draw):
            yield 1 + "1"

    with registered(SELECTIONS, Faulty), pytest.raises(TypeError, match="unsupported operand"):
        choose(selecting())
    with (
        registered(SELECTIONS, Yielding),
        pytest.raises(RunError, match=r"draw\.state\['turn'\] must hold"),
    ):
        choose(selecting())


def test_it_is_asked_only_where_there_is_a_choice():
    with registered(SELECTIONS, Recording):
        selection = selecting()
        assert choose(selection, (1, 3)) == [1, 3]
        assert choose(selection, (0, 1, 3), num_taking=2) == []
        assert seen == []
        assert choose(selection, (0, 1, 3), num_taking=1) == [0]
        assert seen[0].num_wanted == 1


def test_its_chance_follows_from_seed_and_version():
    with registered(SELECTIONS, Recording):
        for version in (4, 4, 5):
            choose(selecting(), version=version)
    first, same, other = (draw.rng.random() for draw in seen)
    assert first == same != other


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1], "[1]"),
        ([1, 2, 3], "[1, 2, 3]"),
        ([2, 2], "[2, 2]"),
        ([0, 2], "[0, 2]"),
        ([1, 4], "[1, 4]"),
        (np.array([1, -1]), "[-1, 1]"),
        ([1.0, 2.0], "a list"),
        ("12", "a str"),
        (None, "a NoneType"),
    ],
)
def test_anything_but_as_many_available_clients_is_one_line(answer, said):
    class Wrong(SelectionRule):
        def choose(self, draw):
            return answer

    with registered(SELECTIONS, Wrong), pytest.raises(RunError) as error:
        choose(selecting(), (1, 2, 3))
    need = "selection Wrong must choose 2 of 3 available clients, each once"
    assert str(error.value) == f"stage send: {need} (got {said})"


@pytest.mark.parametrize("answer", [[3, 1], (1, 3), {1, 3}, np.array([3, 1]), iter((3, 1))])
def test_clients_may_come_in_any_form_and_order(answer):
    class Right(SelectionRule):
        def choose(self, draw):
            return answer

    with registered(SELECTIONS, Right):
        assert choose(selecting()) == [1, 3]
        assert all(type(client) is int for client in choose(selecting(), (1, 3)))


def test_options_are_keys_of_the_clients_and_taken_by_the_rule():
    class First(SelectionRule):
        """Those from some client on."""

        start: int = 0

        def choose(self, draw):
            return [client for client in draw.available if client >= self.start][: draw.num_wanted]

    with registered(SELECTIONS, First):
        assert choose(selecting(start=1)) == [1, 2]


def test_without_a_sample_there_is_nothing_to_choose():
    with registered(SELECTIONS, Recording), pytest.raises(ValueError) as error:
        config_of(sampled=None)
    need = "clients.selection must be 'uniform' when clients.sampled is null"
    assert str(error.value) == f"{need} (got 'mine')"


# --- in a coordinator, and over its checkpoints


class Course:
    """A coordinator of 4 clients, 2 of which take part at a time; a client's loss is its number."""

    def __init__(self) -> None:
        layers = [PrunableLayer("a", 0, 6, 1.0)]
        self.core = Coordinator(config_of(), SHARES, np.zeros(8, np.float32), layers)
        self.sent, self.now_s, self.close_s = {}, 0.0, 0.0
        self.send(Started(0.0))

    def send(self, event) -> None:
        for command in self.core.handle(event):
            if isinstance(command, Dispatch):
                self.sent.update({a.client: a for a in command.assignments})
            if isinstance(command, Evaluate):
                self.send(Evaluated(self.now_s, 0.0))

    def in_flight(self) -> dict:
        clients = enumerate(self.core.clients)
        return {number: c.in_flight for number, c in clients if c.in_flight is not None}

    def round(self) -> None:
        for client in sorted(self.sent):
            task, self.now_s = self.sent.pop(client), self.now_s + 1.0
            update = Update(client, task.base_version, task.mask_id, task.level, task.density,
                            float(client), NAN, 1, values=np.zeros(task.num_kept, np.float32),
                            dense=np.zeros(2, np.float32), grad_squares=None)  # fmt: skip
            self.send(Delivered(self.now_s, update))
        self.send(Closed(self.now_s, self.now_s))


class LeastOften(SelectionRule):
    """Those who have delivered least, and of them those with the largest loss."""

    def choose(self, draw):
        seen.append(draw)
        draw.state["turns"] = [*draw.state.get("turns", []), draw.round]
        order = np.lexsort((-np.nan_to_num(draw.train_losses), draw.num_updates))
        return [client for client in order if client in draw.available][: draw.num_wanted]


def test_deliveries_reach_the_rule():
    with registered(SELECTIONS, LeastOften):
        course = Course()
        assert set(course.sent) == {0, 1}
        course.round()
        assert set(course.sent) == {2, 3}
        course.round()
        assert set(course.sent) == {2, 3}
        assert seen[-1].num_updates.tolist() == [1, 1, 1, 1]
        assert seen[-1].train_losses.tolist() == [0, 1, 2, 3]
        assert seen[-1].cycle_times_s.tolist() == [1, 2, 1, 2]
        assert seen[-1].num_samples.tolist() == [1, 1, 1, 1]
        assert seen[-1].state == {"turns": [0, 1, 2]}


def test_what_it_knows_and_keeps_is_in_a_checkpoint():
    with registered(SELECTIONS, LeastOften):
        course, again = Course(), Course()
        course.round()
        packed = b"".join(pack_tree(coordinator_state(course.core)))
        course.round()
        restore_coordinator(again.core, unpack_tree(packed))
        again.sent, again.now_s = again.in_flight(), 2.0
        again.round()
    one, two = seen[-2:]
    assert one.state == {"turns": [0, 1, 2]} == two.state
    np.testing.assert_equal(one.train_losses, two.train_losses)
    assert (one.num_updates.tolist(), two.num_updates.tolist()) == ([1, 1, 1, 1],) * 2


def test_checkpoints_of_before_are_read():
    with registered(SELECTIONS, Recording):
        course = Course()
        state = unpack_tree(b"".join(pack_tree(coordinator_state(course.core))))
        del state["selection"], state["admission"]["opened_s"]
        restore_coordinator(course.core, state)
        course.round()
        assert seen[-1].state == {"asked": 2}
    assert json.loads(json.dumps(course.core.selection.state()["rule"])) == {"asked": 2}


# --- the example


def test_power_of_choice_takes_the_candidates_with_the_largest_losses():
    plugins.load_plugins([str(EXAMPLE)])
    try:
        all_of_them = selecting("power_of_choice", candidates=4)
        for client, loss in ((0, 0.5), (2, 2.0), (3, 1.0)):
            all_of_them.deliver(header(client, loss), 1.0)
        assert choose(all_of_them) == [1, 2]  # client 1 has told no loss yet
        all_of_them.deliver(header(1, 0.75), 1.0)
        assert choose(all_of_them) == [2, 3]
        by_chance = selecting("power_of_choice", candidates=1)
        drawn = {tuple(choose(by_chance, version=version)) for version in range(50)}
        assert len(drawn) == 6  # all pairs
    finally:
        SELECTIONS.forget("own_selection")
        plugins._loaded.clear()
