"""The wall clock under real launchers: transfers, replays, faults, and ranks that go silent."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from changed_results import write_result
from launchers import LIMIT_S, MPIRUN, ROOT, SOON_S, TINY, Ended, last_of_each, run_job

import fedgmr_hpc
from fedgmr_hpc.results.series import quarantined
from fedgmr_hpc.runtime.timeline import read_timeline
from fedgmr_hpc.storage.reader import Result, differing_columns, read_result

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)
WALL = (
    *TINY,
    "clock=wall",
    "time_scale=0.05",
    "eval.every_s=3",
    "eval.submodels=true",
    "wire.resend_after_s=30",  # a busy machine is late, which is no loss
)
DELIVERED, CLOSED, EVALUATED, LOST = range(4)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run on three ranks."""
    path = tmp_path_factory.mktemp("wall") / "run.h5"
    ended = run_job(3, *WALL, f"results.path={path}")
    assert ended.code == 0, ended.output
    return read_result(path)


def check_rows(result: Result, num_rounds: int = 12) -> None:
    """What holds for every run to the end without faults on which no client was lost."""
    merges, updates, events = result.merges, result.updates, result.events
    assert result.status == "finished" and merges["round"][-1] >= num_rounds
    assert (np.diff(updates["now_s"]) >= 0).all()
    assert updates["wall_rank"].max() < max(2, len(result.ranks["rank"]))
    kinds = np.bincount(events["kind"], minlength=4).tolist()
    evaluated = len(result.evaluations["version"])
    assert kinds == [len(updates["client"]), len(merges["version"]), evaluated, 0]
    assert np.array_equal(events["client"][events["kind"] == DELIVERED], updates["client"])
    check_transfers(result)


def check_transfers(result: Result) -> None:
    """Bytes are those charged, and nothing is faster than its links allow."""
    transfers, updates, last = result.transfers, result.updates, result.updates["now_s"][-1]
    is_up = transfers["is_upload"] == 1
    assert len(set(_keys(transfers, is_up))) == is_up.sum(), "an update has arrived twice"
    assert len(set(_keys(transfers, ~is_up))) == (~is_up).sum(), "a dispatch has arrived twice"
    up = dict(zip(_keys(transfers, is_up), transfers["bytes"][is_up], strict=True))
    down = dict(zip(_keys(transfers, ~is_up), transfers["bytes"][~is_up], strict=True))
    for row, key in enumerate(_keys(updates)):
        assert up.pop(key) == updates["up_bytes"][row], key
        assert down[key] == updates["down_bytes"][row], key
    # what comes while the last version is evaluated is no part of the run any more
    is_late = is_up & (transfers["now_s"] > last)
    assert set(up) <= set(_keys(transfers, is_late))
    num_clients = result.merges["up_bytes"].shape[1]
    rows = is_up & ~is_late
    arrived = np.bincount(transfers["client"][rows], transfers["bytes"][rows], num_clients)
    assert np.array_equal(arrived, result.merges["up_bytes"][-1])
    arrived = np.bincount(transfers["client"][~is_up], transfers["bytes"][~is_up], num_clients)
    assert (arrived <= result.merges["down_bytes"][-1]).all()
    allowed = transfers["requested_bytes_per_s"] * 1.05
    assert (transfers["achieved_bytes_per_s"] <= allowed).all()
    assert (transfers["queue_wait_s"] >= -1e-9).all()


def _keys(table: dict[str, np.ndarray], rows: np.ndarray | slice = slice(None)) -> list[object]:
    return list(zip(table["client"][rows], table["base_version"][rows], strict=True))


def run_wall(path: Path, *words: str) -> Result:
    """A run in this process."""
    own = last_of_each(*WALL, f"results.path={path}", "progress=quiet", *words)
    return fedgmr_hpc.run(fedgmr_hpc.load_config(None, own))


def test_transfers_take_their_time_and_carry_what_is_charged(recorded: Result) -> None:
    check_rows(recorded)
    assert len(recorded.ranks["rank"]) == 3
    took_s = recorded.evaluations["wall_s"][-1]
    assert took_s >= 0.05 * recorded.merges["now_s"][-2]


def test_torchrun_runs_on_the_wall_clock_and_writes_a_timeline(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    ended = run_job(3, *WALL, f"results.path={path}", "trace=true", launcher="torchrun")
    assert ended.code == 0, ended.output
    check_rows(read_result(path))
    ranks = {trace.rank: trace for trace in read_timeline(tmp_path / "run.trace.json")}
    assert sorted(ranks) == [0, 1, 2]
    assert all(len(trace.spans) for trace in ranks.values())


def test_one_process_runs_on_the_wall_clock(tmp_path: Path) -> None:
    ended = run_job(1, *WALL, f"results.path={tmp_path / 'run.h5'}", launcher="none")
    assert ended.code == 0, ended.output
    check_rows(read_result(tmp_path / "run.h5"))


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_a_replay_gives_the_same_bytes(num_ranks: int, recorded: Result, tmp_path: Path) -> None:
    path = tmp_path / "again.h5"
    ended = run_job(num_ranks, "--replay", str(recorded.path), f"results.path={path}")
    assert ended.code == 0, ended.output
    assert "all the same bit for bit" in ended.output
    replayed = read_result(path)
    # whether training overran its time is measured; a replay takes none
    assert differing_columns(recorded, replayed) == []
    assert len(replayed.transfers["client"]) == 0


@pytest.mark.parametrize("launcher", ["none", "mpirun"])
def test_a_changed_log_is_refused(launcher: str, recorded: Result, tmp_path: Path) -> None:
    events = {name: values.copy() for name, values in recorded.events.items()}
    events["now_s"][5] += 1e-6
    changed = write_result(tmp_path / "changed.h5", dataclasses.replace(recorded, events=events))
    check_refused(changed, launcher, "event 5 of")


def test_a_log_of_another_configuration_is_refused(recorded: Result, tmp_path: Path) -> None:
    text = recorded.config_yaml.replace("seed: 0", "seed: 1")
    assert text != recorded.config_yaml
    other = write_result(tmp_path / "other.h5", dataclasses.replace(recorded, config_yaml=text))
    check_refused(other, "none", "event 0 of")


def test_a_replay_takes_no_other_configuration(recorded: Result) -> None:
    ended = run_job(1, "--replay", str(recorded.path), "seed=1", launcher="none")
    assert ended.code == 2 and len(ended.errors) == 1 and "(got seed=1)" in ended.errors[0]


def check_refused(log: Path, launcher: str, where: str) -> None:
    num_ranks = 1 if launcher == "none" else 2
    words = ("--replay", str(log), f"results.path={log.with_name('again.h5')}")
    ended = run_job(num_ranks, *words, launcher=launcher)
    assert ended.code == 2, ended.output
    (error,) = ended.errors
    assert where in error and "damaged or belongs to another configuration" in error
    assert "Traceback" not in ended.output
    assert not log.with_name("again.h5").exists()


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", ["drop", "corrupt"])
def test_what_is_lost_or_damaged_is_sent_again(kind: str, direction: str, tmp_path: Path) -> None:
    fault = f"faults=[{{kind: {kind}, probability: 0.3, direction: {direction}}}]"
    words = ("run.max_rounds=5", "wire.max_resends=12")
    # only that nothing comes tells of a drop, which is to be sooner than by default
    wait = ("wire.resend_after_s=1",) if kind == "drop" else ()
    result = run_wall(tmp_path / "run.h5", fault, *words, *wait)
    check_rows(result, 5)
    transfers = result.transfers
    is_sent_again = transfers["num_resent"] > 0
    assert is_sent_again.any()  # how many are sent at all in five rounds is up to the machine
    assert (transfers["is_upload"][is_sent_again] == (direction == "up")).all()


def test_a_dispatch_in_many_pieces_survives_the_loss_of_the_first(tmp_path: Path) -> None:
    """Each of the pieces that follow shows that one is missing; they ask for one new attempt."""
    words = (
        "faults=[{kind: drop, client: 0, direction: down, probability: 0.5}]",
        "links.client_down_bytes_per_s=2e5",
        "clients.count=2",
        "clients.shares=[1.0,0.5]",
        "run.max_rounds=4",
        "wire.max_resends=4",
    )
    result = run_wall(tmp_path / "run.h5", *words)
    check_rows(result, 4)
    assert 1 <= result.transfers["num_resent"].max() <= 4


def run_slowed(path: Path, *faults: str) -> tuple[np.ndarray, np.ndarray]:
    """When each transfer of a run with faults that only take time began, and how long it took."""
    result = run_wall(path, f"faults=[{', '.join(faults)}]", "run.max_rounds=4")
    check_rows(result, 4)
    transfers = result.transfers
    assert transfers["num_resent"].sum() == 0
    took_s = transfers["bytes"] / transfers["achieved_bytes_per_s"]
    return transfers["now_s"] - took_s, took_s


def test_duplicates_and_delays_only_take_time(tmp_path: Path) -> None:
    run_slowed(tmp_path / "duplicate.h5", "{kind: duplicate}")
    _, took_s = run_slowed(tmp_path / "delay.h5", "{kind: delay, delay_s: 2.0}")
    assert took_s.min() >= 1.9


def test_what_begins_while_the_links_are_cut_ends_after_it(tmp_path: Path) -> None:
    cuts = ((0.0, 4.0), (9.0, 14.0))
    faults = [f"{{kind: cut, at_s: {at_s}, for_s: {end_s - at_s}}}" for at_s, end_s in cuts]
    began_s, took_s = run_slowed(tmp_path / "run.h5", *faults)
    for at_s, end_s in cuts:
        is_held = (began_s >= at_s) & (began_s < end_s)
        assert is_held.any() or at_s > 0, began_s
        assert (began_s + took_s >= end_s - 1e-6)[is_held].all()


def test_all_faults_together_on_three_ranks(tmp_path: Path) -> None:
    kinds = ("drop", "corrupt", "duplicate", "delay, delay_s: 1.0", "cut, at_s: 5, for_s: 2")
    faults = ", ".join(f"{{kind: {kind}, probability: 0.1}}" for kind in kinds)
    words = (f"faults=[{faults}]", "wire.resend_after_s=1", "wire.max_resends=8")
    ended = run_job(3, *WALL, *words, "run.max_rounds=8", f"results.path={tmp_path / 'run.h5'}")
    assert ended.code == 0, ended.output
    result = read_result(tmp_path / "run.h5")
    check_rows(result, 8)
    assert (result.transfers["num_resent"] > 0).sum() >= 4


def test_a_transfer_that_never_gets_through_ends_the_run(tmp_path: Path) -> None:
    words = ("faults=[{kind: corrupt}]", "wire.max_resends=0")
    ended = run_job(3, *WALL, *words, f"results.path={tmp_path / 'run.h5'}")
    assert ended.code not in (0, 2) and ended.wall_s < SOON_S
    (error,) = ended.errors
    for name in ("rank ", "client ", "version 0", "stage receive", "sent 1 times"):
        assert name in error


def test_a_run_goes_on_without_a_rank_that_has_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    # 50 rounds take 95 s, 24 of the wall: the rank has been silent for long before they are over
    own = ("run.timeout_s=10", "run.max_rounds=50", "time_scale=0.25", "eval.every_s=10")
    words = last_of_each(*WALL, *own, f"results.path={path}")
    command = [str(MPIRUN), "-n", "3", sys.executable, "-m", "fedgmr_hpc.launch", *words]
    with subprocess.Popen(
        [*command, "results.flush_s=0.1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            pid = next(_pid(line) for line in process.stdout if line.startswith("rank 2 of 3"))
            wait_for_merges(path, 3)
            os.kill(pid, signal.SIGSTOP)
            output, _ = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (0, 9), output  # 9: MPICH's launcher may say whom it killed
    result = read_result(path)
    assert result.status == "finished" and result.merges["round"][-1] == 50
    events = result.events
    lost = events["client"][events["kind"] == LOST]
    assert sorted(lost) == [1, 3, 5, 7, 9]
    lost_s = events["now_s"][events["kind"] == LOST].max()
    assert not (np.isin(result.updates["client"], lost) & (result.updates["now_s"] > lost_s)).any()
    assert result.ranks["rank"].tolist() == [0, 1]
    assert "rank 2 has been silent for 10 s" in (tmp_path / "run.log").read_text()


def _pid(line: str) -> int:
    return int(line.split("pid ")[1].split(",")[0])


def wait_for_merges(path: Path, num_merges: int) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        time.sleep(0.1)
        if path.exists() and len(read_result(path).merges["version"]) >= num_merges:
            return
    raise AssertionError(f"no {num_merges} merges within {LIMIT_S:g} s")


def run_broken(stage: str, path: Path, *words: str) -> Ended:
    script = (str(HERE / "failing.py"), stage)
    return run_job(3, *WALL, f"results.path={path}", *words, module=script)


def test_a_client_whose_update_is_not_finite_is_quarantined(tmp_path: Path) -> None:
    ended = run_broken("nan", tmp_path / "run.h5")
    assert ended.code == 0, ended.output
    (warning,) = [line for line in ended.output.splitlines() if "is quarantined" in line]
    assert "a value is not finite" in warning
    assert "is quarantined" in (tmp_path / "run.log").read_text()
    result = read_result(tmp_path / "run.h5")
    client = int(warning.split("client ")[1].split()[0])
    assert client % 2 == 1 and quarantined(result) == [client]  # of rank 2
    (row,) = np.flatnonzero(result.updates["client"] == client)
    assert result.updates["version"][row] == 0
    assert np.isfinite(result.weights).all() and result.merges["round"][-1] == 12


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_failing_training_thread_ends_the_job_naming_where(stage: str, tmp_path: Path) -> None:
    ended = run_broken(stage, tmp_path / "run.h5")
    assert ended.code not in (0, 2) and ended.wall_s < SOON_S
    (error,) = ended.errors
    assert "rank 2" in error and f"stage {stage}" in error and "broken on purpose" in error
    assert "version " in error
    if stage != "evaluate":
        client = int(error.split("client ")[1].split(",")[0])
        assert client % 2 == 1  # of rank 2
    assert read_result(tmp_path / "run.h5").status.startswith("failed: RankFailed: rank 2")


@pytest.mark.parametrize(
    "words",
    [("admission.kind=count", "admission.count=3"), ("admission.kind=each",)],
)
def test_admission_by_updates(words: tuple[str, ...], tmp_path: Path) -> None:
    result = run_wall(tmp_path / "run.h5", *words, "run.max_rounds=4")
    check_rows(result, 4)
    assert result.merges["round"][-1] == 4
    assert (result.merges["num_merged"] >= (3 if "count" in words[0] else 1)).all()


def test_a_barrier_waits_for_everybody(tmp_path: Path) -> None:
    result = run_wall(tmp_path / "run.h5", "admission.kind=barrier", "run.max_rounds=4")
    check_rows(result, 4)
    assert (result.merges["num_merged"] == 10).all()
