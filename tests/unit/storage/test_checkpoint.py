"""Checkpoint files: what comes back, what damage is found, what counts, and who may resume."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fedgmr_hpc.storage.checkpoint as checkpoint
from fedgmr_hpc.config.files import make_config, render_config
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.sections import LinksConfig
from fedgmr_hpc.fl.client_memory import Memories
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import Closed, Delivered, Dispatch, Evaluated, Merged, Resumed, Started
from fedgmr_hpc.fl.snapshot import coordinator_state, restore_coordinator
from fedgmr_hpc.fl.submodels import PrunableLayer
from fedgmr_hpc.fl.updates import Assignment, Update
from fedgmr_hpc.network.fluid import Listener
from fedgmr_hpc.network.links import Arrival, Broadcast, VirtualClock
from fedgmr_hpc.runtime.checkpoints.manager import CheckpointManager
from fedgmr_hpc.runtime.checkpoints.plan import (
    ResumePlan,
    adopt_checkpoint,
    move_aside,
    plan_resume,
    resumed_provenance,
)
from fedgmr_hpc.storage.checkpoint import (
    Tree,
    has_checkpoint,
    pack_tree,
    read_checkpoint,
    remove_checkpoints,
    unpack_tree,
    write_checkpoint,
)
from fedgmr_hpc.storage.reader import kept_rows, read_result
from fedgmr_hpc.storage.rows import CheckpointRow, EventRow, LookRow
from fedgmr_hpc.storage.run_files import checkpoint_path, older
from fedgmr_hpc.storage.writer import ResultWriter
from fedgmr_hpc.transport.termination import StopRequest

TREE: Tree = {
    "name": "ü",
    "nothing": None,
    "third": 1 / 3,
    "odd": [math.inf, -0.0, 2**63],
    "inner": {"weights": np.array([1.5, np.nan], np.float32), "ids": np.array([[3], [4]])},
    "empty": np.zeros(0, np.int32),
}
HEAD_BYTES = 28  # magic 8, version 4, length 8, checksum 8


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_tree_comes_back_with_its_types_and_bits(tmp_path: Path) -> None:
    num_bytes = write_checkpoint(tmp_path / "run.ckpt", TREE)
    back = read_checkpoint(tmp_path / "run.ckpt")
    assert num_bytes == (tmp_path / "run.ckpt").stat().st_size
    assert (back["name"], back["nothing"], back["third"]) == ("ü", None, 1 / 3)
    assert back["odd"] == [math.inf, 0.0, 2**63] and math.copysign(1, back["odd"][1]) == -1
    weights = back["inner"]["weights"]
    assert weights.dtype == np.float32 and weights.tobytes() == TREE["inner"]["weights"].tobytes()
    assert back["inner"]["ids"].tolist() == [[3], [4]] and back["empty"].dtype == np.int32
    weights[0] = 7.0  # what comes back can be written to
    assert names(tmp_path) == {"run.ckpt"}


def test_what_a_file_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match="array .*/a/0 must be of numbers .got <U1"):
        pack_tree({"a": [np.array(["x"])]})
    with pytest.raises(TypeError, match="set"):
        pack_tree({"a": {1, 2}})


def test_a_flip_of_any_byte_is_found(tmp_path: Path) -> None:
    """Every byte of prefix, header and arrays: nothing of the file goes unchecked."""
    whole = b"".join(pack_tree(TREE))
    path = tmp_path / "run.ckpt"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=f"checkpoint {path}: "):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert read_checkpoint(path)["third"] == 1 / 3


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "does not begin as a checkpoint does"),
        (8, r"its format version must be 3 \(got 2"),
        (18, "ends inside its header"),
        (20, "its header fails the checksum"),
        (HEAD_BYTES + 3, "its header fails the checksum"),
        (-20, "/inner/weights fails its checksum"),
        (-1, "/inner/ids fails its checksum"),
    ],
)
def test_damage_is_told_by_where_it_is(at: int, text: str, tmp_path: Path) -> None:
    content = bytearray(b"".join(pack_tree(TREE)))
    content[at] ^= 1
    (tmp_path / "run.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_checkpoint(tmp_path / "run.ckpt")


def test_every_truncation_and_anything_behind_the_end_is_found() -> None:
    whole = b"".join(pack_tree(TREE))
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="damaged"):
            unpack_tree(whole[:size])
    with pytest.raises(ValueError, match=f"it has {len(whole) + 1} bytes, {len(whole)} were"):
        unpack_tree(whole + b"\0")


def test_the_last_two_generations_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    for number in range(3):
        write_checkpoint(path, {"number": number})
    assert names(tmp_path) == {"run.ckpt", "run.ckpt.old"}
    assert read_checkpoint(path)["number"] == 2 and read_checkpoint(older(path))["number"] == 1
    remove_checkpoints(path)
    assert not names(tmp_path) and not has_checkpoint(path)


def test_going_on_from_the_older_one_puts_the_damaged_one_out_of_the_way(tmp_path: Path) -> None:
    """Else the next checkpoint would make the damaged one the older, and leave nothing whole."""
    path = tmp_path / "run.ckpt"
    write_checkpoint(path, {"number": 0})
    write_checkpoint(path, {"number": 1})
    path.write_bytes(b"junk")
    assert adopt_checkpoint(tmp_path / "run.h5", older(path))["number"] == 0
    assert names(tmp_path) == {"run.ckpt", "run.ckpt.damaged"}
    assert read_checkpoint(path)["number"] == 0


def test_a_failed_write_leaves_both_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    write_checkpoint(path, {"number": 0})
    write_checkpoint(path, {"number": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, {"number": 2})
    assert names(tmp_path) == {"run.ckpt", "run.ckpt.old"}
    assert read_checkpoint(path)["number"] == 1 and read_checkpoint(older(path))["number"] == 0


def test_a_checkpoint_lies_beside_its_results() -> None:
    assert checkpoint_path(Path("a/run.h5")) == Path("a/run.ckpt")
    assert checkpoint_path(Path("a/run.hdf")) == Path("a/run.hdf.ckpt")


# --- state


def clock_events(clock: VirtualClock, count: int) -> list[tuple[str, float]]:
    happened = [clock.next() for _ in range(count)]
    return [(str(e.client) if isinstance(e, Arrival) else "end", e.now_s) for e in happened]


def make_clock() -> VirtualClock:
    links = LinksConfig(client_sigma=0.7, server_up_bytes_per_s=3e6, compute_s=0.5)
    return VirtualClock(links, (1.0, 0.5, 0.2), seed=3)


def test_a_clock_goes_on_in_the_same_steps_from_any_point() -> None:
    def run(stop_after: int | None) -> list[tuple[str, float]]:
        clock, happened = make_clock(), []
        listeners = (Listener(0, 0, 9000, 9000), Listener(1, 0, 5000, 4000), Listener(2, 0, 99, 99))
        for number in range(3):
            at_s = clock.fluid.now_s + number / 8
            clock.broadcast(at_s, Broadcast(9000, listeners, dict.fromkeys(range(3), 7000)))
            clock.close_at(at_s + 0.51)
            for _ in range(4):
                if len(happened) == stop_after:
                    state = unpack_tree(b"".join(pack_tree(clock.state())))
                    clock = make_clock()
                    clock.restore(state)
                happened += clock_events(clock, 1)
        return happened

    unbroken = run(None)
    assert len({now_s for _, now_s in unbroken}) > 6
    for stop_after in range(12):
        assert run(stop_after) == unbroken


LAYERS = [PrunableLayer("a", 0, 6, 1.0), PrunableLayer("b", 6, 12, 2.0)]
NUM_DENSE = 2


def make_coordinator() -> Coordinator:
    config = make_config(
        {
            "clients": {"count": 3, "shares": [1.0, 0.5, 0.25]},
            "run": {"max_rounds": 8, "interval_rounds": 2},
            "restoration": {"patience": 1},
            "train": {"steps": 2},
        }
    )
    weights = np.linspace(-1, 1, 14, dtype=np.float32)
    return Coordinator(config, config.clients.bandwidth_shares(), weights, LAYERS)


def answer(task: Assignment, now_s: float) -> Delivered:
    values = np.sin(np.arange(task.num_kept, dtype=np.float32) + task.first_step + task.client)
    dense = np.full(NUM_DENSE, now_s, np.float32)
    fields = {name: getattr(task, name) for name in ("client", "base_version", "mask_id", "level")}
    update = Update(**fields, density=task.density, values=values, dense=dense,
                    grad_squares=None, train_loss=1.0, score=0.5, num_samples=10)  # fmt: skip
    return Delivered(now_s, update)


class Course:
    """A coordinator driven by hand: client 2 answers only every other version."""

    def __init__(self) -> None:
        self.coordinator, self.tasks, self.now_s = make_coordinator(), {}, 0.0
        self.merged: list[Merged] = []
        self.take(self.coordinator.handle(Started(0.0)))

    def take(self, commands: list[object]) -> None:
        for command in commands:
            if isinstance(command, Dispatch):
                self.tasks |= {task.client: task for task in command.assignments}
            if isinstance(command, Merged):
                self.merged.append(command)
            if type(command).__name__ == "Evaluate":
                self.take(self.coordinator.handle(Evaluated(self.now_s, 0.5)))

    def step(self) -> None:
        """Everybody due answers, and the window closes."""
        late = 2 if self.coordinator.version % 2 else None
        for client in sorted(self.tasks.keys() - {late}):
            self.now_s += 1.0
            self.take(self.coordinator.handle(answer(self.tasks.pop(client), self.now_s)))
        self.now_s += 0.5
        self.take(self.coordinator.handle(Closed(self.now_s, self.now_s)))


def reload(coordinator: Coordinator) -> Coordinator:
    state = unpack_tree(b"".join(pack_tree(coordinator_state(coordinator))))
    fresh = make_coordinator()
    restore_coordinator(fresh, state)
    return fresh


@pytest.mark.parametrize("stop_after", range(7))
def test_a_coordinator_goes_on_with_the_same_bits(stop_after: int) -> None:
    unbroken, broken = Course(), Course()
    for number in range(7):
        if number == stop_after:
            broken.coordinator = reload(broken.coordinator)
        unbroken.step()
        broken.step()
    a, b = unbroken.coordinator, broken.coordinator
    assert a.version == b.version == 7 and max(a.restoration.densities[1:]) == 1.0
    assert a.packed.tobytes() == b.packed.tobytes() and a.dense.tobytes() == b.dense.tobytes()
    assert a.same_since == b.same_since > 0
    assert a.masks.mask_id == b.masks.mask_id and a.base_versions.tolist() == [6, 6, 5]
    for left, right in zip(unbroken.merged, broken.merged, strict=True):
        assert left.weight.tolist() == right.weight.tolist()
        assert left.density.tolist() == right.density.tolist()


def test_a_resumed_wall_run_sends_the_current_version_again() -> None:
    course = Course()
    course.step()
    course.take(course.coordinator.handle(answer(course.tasks.pop(0), 9.0)))
    before = {client: task for client, task in course.tasks.items()}
    commands = reload(course.coordinator).handle(Resumed(10.0))
    (dispatch,) = [c for c in commands if isinstance(c, Dispatch)]
    assert dispatch.version == 1
    # steps are counted once, and nothing that was kept goes with what others keep from now on
    assert list(dispatch.assignments) == [replace(before[c], same_since=2) for c in (1, 2)]
    assert [type(command).__name__ for command in commands] == ["Dispatch", "CloseAt"]


def test_memories_go_on_from_where_they_were() -> None:
    first, second = Memories(4), Memories(4)
    positions = np.array([0, 2, 3], np.int32)
    memory = first.open(5, 1, positions)
    memory.values["v"], memory.dense["v"] = np.array([0.1, 0.3, 0.7], np.float32), np.ones(1)
    memory.numbers["way"] = 0.1 + 0.2
    second.restore(unpack_tree(b"".join(pack_tree({"m": first.state()})))["m"])
    for mask_id, at in ((1, positions), (2, None)):
        then, now = first.open(5, mask_id, at), second.open(5, mask_id, at)
        assert now.values["v"].tobytes() == then.values["v"].tobytes()
        assert now.dense["v"].tolist() == [1] and now.numbers == {"way": 0.1 + 0.2}
    assert second.open(6, 2, None).values == {}


# --- the result file


SIZES = {"num_clients": 3, "num_weights": 4, "num_ranks": 2, "layout_json": ""}


LOOK = LookRow(1, 1, 1.0, *[0.5] * 5, model_xxh3=1, wall_s=1.0)


def event(number: int) -> EventRow:
    return EventRow(kind=0, now_s=float(number), ready_s=0.0, client=number, chain_xxh3=number)


def write_results(
    path: Path,
    status: str | None = None,
    weights: Floats | None = None,
    values: dict[str, object] | None = None,
) -> dict[str, int]:
    """Three events, of which the last is not synced."""
    text = render_config(make_config(values or {}))
    writer = ResultWriter(path, config_yaml=text, provenance={"cpu_model": "one"}, **SIZES)
    writer.append(event(0))
    writer.append(event(1))
    num_rows = writer.sync()
    writer.append(event(2))
    writer.append(CheckpointRow(1, 2.0, 0, 99, 0.0, 0.5, 3.0))
    writer.finish(status or "checkpointed: version 1", weights=weights)
    return num_rows


def test_a_resumed_file_begins_with_the_rows_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    num_rows = write_results(path)
    assert num_rows["events"] == 2 and num_rows["merges"] == 0
    kept = kept_rows(read_result(path), num_rows)
    with ResultWriter(path, config_yaml="{}", provenance={}, kept=kept, **SIZES) as writer:
        assert read_result(path).events["client"].tolist() == [0, 1]  # at once, under its name
        writer.append(event(7))
        writer.append(LOOK)  # of a table that kept nothing
    result = read_result(path)
    assert result.events["client"].tolist() == [0, 1, 7] and len(result.looks["version"]) == 1
    assert result.checkpoints["bytes"].tolist() == [99]  # what was written is no part of the run
    assert names(tmp_path) == {"run.h5"}


def test_a_checkpoint_without_its_rows_is_refused(tmp_path: Path) -> None:
    num_rows = write_results(tmp_path / "run.h5")
    with pytest.raises(ValueError, match="events has 3 rows, the checkpoint needs 4"):
        kept_rows(read_result(tmp_path / "run.h5"), {**num_rows, "events": 4})


def save(path: Path, values: dict[str, object], num_rows: dict[str, int]) -> None:
    config = make_config(values).model_dump(mode="json")
    server = {"log": {"chain": num_rows["events"] - 1}}
    tree = {"config": config, "num_rows": num_rows, "server": server}
    write_checkpoint(checkpoint_path(path), tree)


def test_a_start_tells_finished_resumed_and_fresh_apart(tmp_path: Path) -> None:
    path, config = tmp_path / "run.h5", make_config({})
    assert plan_resume(path, config).notes == (
        f"no checkpoint {tmp_path / 'run.ckpt'} yet: starts from the beginning",
    )
    num_rows = write_results(path)
    again = plan_resume(path, config)
    assert not again.checkpoint and again.notes[0].endswith(f"becomes {tmp_path / 'run.h5.old'}")
    save(path, {}, num_rows)
    assert plan_resume(path, config) == ResumePlan(checkpoint=checkpoint_path(path))
    path.unlink()
    with pytest.raises(ValueError, match="which is not there, but its checkpoint is"):
        plan_resume(path, config)
    write_results(path, "finished", np.ones(4, np.float32))
    assert plan_resume(path, config).is_finished
    assert names(tmp_path) == {"run.h5"}  # of its checkpoints nothing is left


def test_a_start_with_other_data_is_refused_and_names_both_fingerprints(tmp_path: Path) -> None:
    path, config = tmp_path / "run.h5", make_config({"data": {"root": "/there"}})
    num_rows = write_results(path)
    server = {"log": {"chain": num_rows["events"] - 1}}
    saved = {"config": config.model_dump(mode="json"), "server": server}
    where = checkpoint_path(path)
    write_checkpoint(where, {**saved, "num_rows": num_rows, "data_xxh3": "aa11"})
    assert plan_resume(path, config, "aa11").checkpoint
    with pytest.raises(ValueError) as wrong:
        plan_resume(path, config, "bb22")
    assert str(wrong.value) == (
        f"data.root must hold data with fingerprint aa11 when continuing {where} (got '/there'): "
        "its data have bb22"
    )
    write_checkpoint(where, {**saved, "num_rows": num_rows})  # from before there were any
    assert plan_resume(path, config, "bb22").checkpoint


def test_a_start_with_other_kernels_is_refused_and_names_both(tmp_path: Path) -> None:
    path, config = tmp_path / "run.h5", make_config({})
    num_rows = write_results(path)
    server = {"log": {"chain": num_rows["events"] - 1}}
    saved = {"config": config.model_dump(mode="json"), "server": server, "num_rows": num_rows}
    where = checkpoint_path(path)
    write_checkpoint(where, {**saved, "kernels": "c1"})
    assert plan_resume(path, config, kernels="c1").checkpoint
    with pytest.raises(ValueError) as wrong:
        plan_resume(path, config, kernels="torch1")
    assert str(wrong.value) == (
        f"the kernels of compact layers must be c1 when continuing {where} (got 'torch1'): "
        "others round otherwise, see docs/compact-training.md"
    )
    for kernels in ("", None):  # nothing compact, or from before there were any
        write_checkpoint(where, {**saved, "kernels": kernels})
        assert plan_resume(path, config, kernels="torch1").checkpoint


def test_sub_models_by_magnitude_that_began_dense_do_not_go_on_compact(tmp_path: Path) -> None:
    path, config = tmp_path / "run.h5", make_config({"method": "fiarse"})
    num_rows = write_results(path)
    server = {"log": {"chain": num_rows["events"] - 1}}
    saved = {"config": config.model_dump(mode="json"), "server": server, "num_rows": num_rows}
    write_checkpoint(checkpoint_path(path), {**saved, "kernels": ""})
    assert plan_resume(path, config, kernels="").checkpoint
    with pytest.raises(ValueError, match=r"kernels of compact layers must be none .*\(got 'c1'\)"):
        plan_resume(path, config, kernels="c1")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path, rows: path.write_bytes(b""), "does not begin as a checkpoint does"),
        (lambda path, rows: path.unlink(), "No such file"),  # killed between the two renames
        (
            lambda path, rows: respoil(path, {**rows, "events": 4}, 3),
            "events has 3 rows, the checkpoint needs 4",
        ),
        (lambda path, rows: respoil(path, rows, 9), "its events are not those of "),
    ],
)
def test_the_older_generation_stands_in_for_one_that_does_not_fit(
    spoil: Callable[[Path, dict[str, int]], None], why: str, tmp_path: Path
) -> None:
    path, config = tmp_path / "run.h5", make_config({})
    num_rows = write_results(path)
    save(path, {}, num_rows)
    save(path, {}, num_rows)
    newest = checkpoint_path(path)
    spoil(newest, num_rows)
    start = plan_resume(path, config)
    assert start.checkpoint == older(newest)
    assert why in start.notes[0] and f"resumes from the older {older(newest)}" in start.notes[0]


def respoil(path: Path, num_rows: dict[str, int], chain: int) -> None:
    """A whole checkpoint, but of other rows."""
    tree = read_checkpoint(path)
    path.write_bytes(
        b"".join(pack_tree({**tree, "num_rows": num_rows, "server": {"log": {"chain": chain}}}))
    )


def test_finished_is_believed_only_with_the_weights_of_its_last_evaluation(tmp_path: Path) -> None:
    path, config = tmp_path / "run.h5", make_config({})
    num_rows = write_results(path, "finished")
    (again,) = plan_resume(path, config).notes[:1]
    assert again == f"{path} says that it is finished, but it has no weights"
    save(path, {}, num_rows)
    start = plan_resume(path, config)
    assert start.checkpoint == checkpoint_path(path) and start.notes == (again,)
    assert checkpoint_path(path).exists()


def test_a_start_names_every_key_that_may_not_differ(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    save(path, {"seed": 1, "links": {"merge_s": 0.25}}, write_results(path))
    with pytest.raises(ValueError) as wrong:
        plan_resume(path, make_config({"run": {"max_rounds": 9}}))
    where = f"when continuing the checkpoint {tmp_path / 'run.ckpt'}"
    assert str(wrong.value).splitlines() == [
        f"links.merge_s must be 0.25 {where} (got 0.5)",
        f"seed must be 1 {where} (got 0)",
    ]


@pytest.mark.parametrize(
    ("status", "values", "named"),
    [
        ("finished", {"seed": 1}, "seed must be 0 when continuing {}, which is finished (got 1)"),
        (
            "finished",
            {"run": {"max_rounds": 900}},
            "run.max_rounds must be 500 when continuing {}, which is finished (got 900)",
        ),
        ("failed: interrupted", {"seed": 1}, "seed must be 0 when continuing {} (got 1)"),
    ],
)
def test_a_file_of_another_configuration_is_never_taken_for_this_one(
    status: str, values: dict[str, object], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    write_results(path, status)
    with pytest.raises(ValueError) as wrong:
        plan_resume(path, make_config(values))
    assert str(wrong.value) == named.format(path)
    assert names(tmp_path) == {"run.h5"}


def test_limits_and_where_things_are_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    save(path, {}, write_results(path))
    values = {
        "run": {"max_rounds": 7, "max_time_s": 5.0, "timeout_s": 9.0},
        "results": {"path": str(path), "flush_s": 1.0},
        "checkpoint": {"every_s": None},
        "progress": "quiet",
        "transport": "gloo",
        "device": "cpu",
    }
    assert plan_resume(path, make_config(values)).checkpoint


def test_results_without_a_checkpoint_are_put_aside_not_lost(tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_text("rows")
    move_aside(tmp_path / "run.h5")
    move_aside(tmp_path / "run.h5")
    assert (tmp_path / "run.h5.old").read_text() == "rows" and not (tmp_path / "run.h5").exists()
    (tmp_path / "run.h5").write_text("later rows")
    move_aside(tmp_path / "run.h5")
    assert (tmp_path / "run.h5.old").read_text() == "rows"
    assert (tmp_path / "run.h5.old-2").read_text() == "later rows"


def test_provenance_tells_what_was_different_after_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_results(tmp_path / "run.h5")
    before = read_result(tmp_path / "run.h5")
    entry = resumed_provenance(before, {"cpu_model": "two"}, 12)
    assert entry["cpu_model"] == "one" and '"version": 12' in entry["resume_1"]
    assert '"cpu_model": "two"' in entry["resume_1"]
    assert "resumed with another cpu_model" in caplog.text


def test_a_checkpoint_on_the_wall_clock_waits_for_evaluations_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 100 s: put off while something is being evaluated, until twice that is long past."""
    config = make_config({"clock": "wall", "checkpoint": {"every_s": 100}})
    server = SimpleNamespace(
        evaluator=SimpleNamespace(is_waiting=True),
        coordinator=SimpleNamespace(version=3, admission=SimpleNamespace(is_closing=True)),
    )
    manager, written, now_s = CheckpointManager(tmp_path / "run.h5", config, StopRequest()), [], 0.0
    monkeypatch.setattr(manager, "_write", lambda server: written.append(now_s))
    for now_s in (99.0, 101.0, 199.0, 221.0):
        manager.tried_s = time.perf_counter() - now_s
        assert not manager.should_stop(server)
    assert written == [221.0]
    server.evaluator.is_waiting, manager.tried_s = False, time.perf_counter() - 101.0
    manager.should_stop(server)
    assert len(written) == 2
