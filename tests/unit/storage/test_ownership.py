"""One owner a run: who is refused, who takes over, and that the one before writes no more."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_results import merge_row, open_writer

import fedgmr_hpc.runtime.roles as roles
import fedgmr_hpc.storage.ownership as ownership
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.runtime.preparation import prepare_experiment
from fedgmr_hpc.storage.checkpoint import read_checkpoint, write_checkpoint
from fedgmr_hpc.storage.ownership import NotOwner, Owner, Record, claim, describe_self, find_owners
from fedgmr_hpc.storage.reader import read_result

SELF = describe_self("aa", {})
GONE = replace(SELF, run="bb", process_start="1")  # its number is another process's now
ELSEWHERE = replace(SELF, run="cc", host="n7", machine="another", pid=41)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_S", 0.05), ("STALE_S", 2.0), ("LOOK_S", 0.02)):
        monkeypatch.setattr(ownership, name, seconds)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def take(results: Path, record: Record = SELF) -> Owner:
    return claim(results, record, lambda: False)


@pytest.fixture
def held(results: Path) -> Iterator[Owner]:
    with take(results) as owner:
        yield owner


def leave(results: Path, record: Record) -> Owner:
    """What a kill leaves of an owner."""
    owner = take(results, record)
    owner._is_released.set()
    return owner


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_is_refused_with_who_has_it_since_when(held: Owner, results: Path) -> None:
    with pytest.raises(ValueError) as wrong:
        take(results, replace(SELF, run="dd"))
    assert str(wrong.value) == (
        f"results.path: {results} is being written by run aa (pid {os.getpid()} on {SELF.host}) "
        f"since {SELF.since}; wait for it or end it, or, if it is known to be dead, "
        f"remove {results.parent / 'run.owner-1'}"
    )
    held.check()
    held.release()
    assert names(results.parent) == []
    take(results, replace(SELF, run="dd")).release()


def test_a_run_is_refused_before_it_touches_anything(results: Path) -> None:
    config = load_config(None, ["clients.count=2", f"results.path={results}"])
    first = prepare_experiment(config)
    results.write_text("rows")
    for resumes in (False, True):
        with pytest.raises(ValueError, match=f"is being written by run .*pid {os.getpid()} "):
            prepare_experiment(config, resumes=resumes)
    assert results.read_text() == "rows" and first.owner is not None
    first.owner.check()
    first.owner.release()
    with pytest.raises(ValueError, match="exists and is never overwritten"):
        prepare_experiment(config)
    assert names(results.parent) == ["run.h5"]  # a run that is refused is no owner either


def test_a_start_keeps_the_checkpoint_of_a_result_file_that_was_moved_away(results: Path) -> None:
    config = load_config(None, ["clients.count=2", f"results.path={results}"])
    checkpoint = results.with_suffix(".ckpt")
    checkpoint.write_bytes(b"days of work")
    for resumes in (False, True):
        with pytest.raises(ValueError, match="its checkpoint is: bring it back, or remove"):
            prepare_experiment(config, resumes=resumes)
    assert checkpoint.read_bytes() == b"days of work" and names(results.parent) == [checkpoint.name]


def test_a_link_to_a_file_that_is_not_there_is_refused_and_stays(results: Path) -> None:
    config = load_config(None, ["clients.count=2", f"results.path={results}"])
    results.symlink_to("/scratch/gone.h5")
    for resumes in (False, True):
        with pytest.raises(ValueError) as wrong:
            prepare_experiment(config, resumes=resumes)
        assert str(wrong.value) == (
            f"results.path must not be a link to a file that is not there (got '{results}'): "
            "it leads to /scratch/gone.h5"
        )
    assert results.is_symlink() and names(results.parent) == ["run.h5"]


def test_the_record_of_a_process_that_is_gone_is_taken_over(results: Path) -> None:
    before = leave(results, GONE)
    with take(results) as owner:
        assert names(results.parent) == ["run.owner-2"]
        owner.check()
        with pytest.raises(NotOwner, match=r"run aa \(pid .* has taken over; nothing more is"):
            before.check()
        before.release()  # takes nothing from the new one
        owner.check()


def test_a_requeued_job_takes_over_and_the_start_before_it_does_not(results: Path) -> None:
    job = {"SLURM_JOB_ID": "77"}
    old = describe_self("old", {**job, "SLURM_RESTART_COUNT": "1"})
    new = describe_self("new", {**job, "SLURM_RESTART_COUNT": "2"})
    with take(results, old) as first, take(results, new) as second:
        with pytest.raises(NotOwner, match=r"run new \(pid \d+ on .*, Slurm job 77, start 3\)"):
            first.check()
        with pytest.raises(ValueError, match="is being written by run new"):
            take(results, old)
        with pytest.raises(ValueError, match="is being written by run new"):
            take(results, describe_self("other", {"SLURM_JOB_ID": "78"}))
        second.check()


def test_an_owner_elsewhere_that_shows_life_is_left_alone(results: Path) -> None:
    with take(results, ELSEWHERE) as owner:
        time.sleep(2.2)  # a record is as old as its last touch
        with pytest.raises(ValueError, match="is being written by run cc .pid 41 on n7"):
            take(results)
        owner.check()


def test_an_owner_elsewhere_that_stays_silent_is_taken_over(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(results, ELSEWHERE)
    began_s = time.monotonic()
    take(results).release()
    assert 1.5 < time.monotonic() - began_s < 60
    assert "run cc (pid 41 on n7) since" in caplog.text and "may be alive" in caplog.text
    os.utime(leave(results, ELSEWHERE).path, (1.0, 1.0))  # of long ago: no need to wait
    caplog.clear()
    take(results).release()
    assert not caplog.text and names(results.parent) == []


def test_a_record_that_cannot_be_understood_counts_as_long_as_it_is_touched(results: Path) -> None:
    (results.parent / "run.owner-4").write_text("{")
    with take(results) as owner:
        assert owner.path.name == "run.owner-5"


def test_waiting_ends_when_a_signal_asks_for_it(results: Path) -> None:
    leave(results, ELSEWHERE)
    with pytest.raises(RunError, match="while waiting for a sign of life of run cc"):
        claim(results, SELF, lambda: True)


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_that_find_a_dead_owner_one_takes_over(
    results: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    leave(results, GONE)
    won: list[Owner] = []
    lost: list[str] = []

    def try_it(number: int) -> None:
        try:
            won.append(take(results, replace(SELF, run=f"r{number}")))
        except ValueError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = won
    assert len(lost) == 11 and len(find_owners(results.parent, "run.owner-")) == 1
    owner.check()
    owner.release()


def test_whoever_is_no_longer_the_owner_leaves_rows_and_checkpoint_alone(results: Path) -> None:
    before = take(results, GONE)
    write_checkpoint(results.with_suffix(".ckpt"), {"of": "before"})
    with pytest.raises(NotOwner), open_writer(results, may_write=before.check) as writer:
        writer.append(merge_row(1))
        writer.flush()
        with take(results):
            content = results.read_bytes()
            with pytest.raises(NotOwner):
                write_checkpoint(results.with_suffix(".ckpt"), {"of": "late"}, before.check)
            writer.append(merge_row(2))
            writer.finish("finished")
    assert results.read_bytes() == content and read_result(results).status == "running"
    assert read_checkpoint(results.with_suffix(".ckpt"))["of"] == "before"
    assert names(results.parent) == ["run.ckpt", "run.h5"]
    before.release()


def test_removing_the_record_stops_its_run(held: Owner) -> None:
    held.path.unlink()
    with pytest.raises(NotOwner, match=r"run\.owner-1 was removed; nothing more is written"):
        held.check()


def test_a_full_disk_is_a_failure_and_no_wrong_input(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = load_config(None, ["clients.count=2", f"results.path={results}"])
    for place in (
        "fedgmr_hpc.storage.ownership._make",
        "fedgmr_hpc.runtime.preparation.tempfile.TemporaryFile",
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, refuse)
            assert roles._try_prepare(config, None, False) == roles.EXIT_FAILED
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("No space left on device" in line for line in said)
    assert names(results.parent) == []
