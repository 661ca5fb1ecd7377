"""Result files that were killed, cut off or damaged: read, or in part; verified; exported."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from changed_results import write_result
from sample_results import EVALUATION, merge_row, open_writer, write_run

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.results.export import export
from fedgmr_hpc.results.runs import run
from fedgmr_hpc.results.verify import verify
from fedgmr_hpc.runtime import server
from fedgmr_hpc.runtime.replay import EventLog
from fedgmr_hpc.storage.hdf5_file import num_missing_bytes, read_superblock
from fedgmr_hpc.storage.reader import Result, deterministic_columns, differing_columns, read_result
from fedgmr_hpc.storage.schema import TABLES

WORDS = [
    *("clients.count=2", "run.max_rounds=12", "run.interval_rounds=5", "progress=quiet"),
    *("results.flush_s=0.001", "train.batch=4", "train.steps=1"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run's file."""
    folder = tmp_path_factory.mktemp("whole")
    words = [*WORDS, f"data.cache={folder}", f"results.path={folder / 'whole.h5'}"]
    return run(load_config(None, words)).path


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """A file as it is while its writer goes on, or after the writer was killed: 3000 merges."""
    with open_writer(tmp_path / "live.h5", flush_s=1e9) as writer:
        for version in range(1, 3001):
            writer.append(merge_row(version))
        writer.flush()
        return Path(shutil.copy(writer.path, tmp_path / "followed.h5"))


def test_an_events_log_of_when_keys_without_effect_counted_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "EventLog", partial(EventLog, counts_unused=True))
    words = [*WORDS, "time_scale=0.5", f"results.path={tmp_path / 'older.h5'}"]
    path = run(load_config(None, words)).path
    monkeypatch.undo()
    first = EventLog(load_config(None, words)).link(1, 0.0, 0.0, 0).chain_xxh3
    assert (
        first != EventLog(load_config(None, words), counts_unused=True).link(1, 0, 0, 0).chain_xxh3
    )
    assert verify(path) == []


KILLED_AT_RANDOM = """
    import os, random, signal, sys, time
    from pathlib import Path
    from fedgmr_hpc.config.files import load_config
    from fedgmr_hpc.results.runs import run
    from fedgmr_hpc.results.watch import look

    folder, *words = sys.argv[1:]
    for index in range(4):
        path = Path(folder, f"killed{index}.h5")
        child = os.fork()
        if child == 0:
            run(load_config(None, [*words, f"results.path={path}"]))
            os._exit(0)
        while not path.exists() or look(path).num_rows < 10 * index:
            time.sleep(0.005)
        time.sleep(0.05 * random.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def test_a_run_killed_at_any_moment_leaves_a_prefix_of_the_whole_run(
    whole: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED_AT_RANDOM), str(tmp_path), *WORDS]
    ran = subprocess.run(
        [*command, f"data.cache={whole.parent}"], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    unbroken = deterministic_columns(read_result(whole))
    num_merges, statuses = [], set()
    for index in range(1, 4):  # the first may be killed before SWMR starts, with nothing in it
        killed = read_result(tmp_path / f"killed{index}.h5")
        num_merges.append(len(killed.merges["version"]))
        statuses.add(killed.status)
        for name, values in deterministic_columns(killed).items():
            if name != "model/weights":
                assert np.array_equal(values, unbroken[name][: len(values)], equal_nan=True), name
    assert max(num_merges) > 0 and "running" in statuses


def test_a_whole_run_is_sound_and_so_is_a_followed_one(whole: Path, tmp_path: Path) -> None:
    assert verify(whole) == []
    words = [*WORDS, f"data.cache={whole.parent}", f"results.path={tmp_path / 'b.h5'}", "seed=1"]
    run(load_config(None, words))
    assert main(["results", "verify", str(whole), str(tmp_path / "b.h5")]) == 0


@pytest.mark.parametrize(
    ("place", "value", "finding"),
    [
        ("merges/num_merged", 7, "updates: count of a merge in row 3 must be 7 (got 2)"),
        ("merges/version", 9, "merges/version: not 1 to 12 without a gap"),
        ("merges/up_bytes", 0, "merges/up_bytes: falls in row 3"),
        ("events/now_s", 99.0, "events: row 3 of "),
        ("evaluations/val_accuracy", 1.5, "evaluations/val_accuracy: beyond 0 to 1"),
        ("model/weights", np.nan, "model/weights: 1 are not finite"),
        ("updates/client", 2, "updates/client: beyond 0 to 1"),
    ],
)
def test_verify_names_what_was_changed(
    whole: Path, tmp_path: Path, place: str, value: float, finding: str
) -> None:
    def change(result: Result) -> None:
        table, _, name = place.partition("/")
        values = result.weights if table == "model" else getattr(result, table)[name]
        values[3] = value

    path = rewrite(whole, tmp_path / "changed.h5", change)
    assert any(line.startswith(f"results {path}: {finding}") for line in verify(path)), verify(path)
    assert main(["results", "verify", str(whole), str(path)]) == 1


def rewrite(whole: Path, path: Path, change: Callable[[Result], None]) -> Path:
    """A changed run, with checksums that hold."""
    result = read_result(whole)
    change(result)
    return write_result(path, result)


def test_verify_names_columns_of_unequal_length_and_a_wrong_configuration(
    whole: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(whole, tmp_path / "changed.h5"))
    with h5py.File(path, "r+") as file:
        file["merges/density"].resize(5, axis=0)
        del file["updates/score"]
    assert verify(path) == [
        f"results {path}: merges/density: 5 rows, 12 are committed",
        f"results {path}: updates/score: missing",
    ]
    result = read_result(whole)
    text = result.config_yaml.replace("method: fedgmr", "method: fedgmx")
    write_result(path, dataclasses.replace(result, config_yaml=text))
    assert any(": config: there is no method" in line for line in verify(path))


def test_verify_imports_no_plug_in_and_says_what_it_leaves_out(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, there = read_result(whole), tmp_path / "there.py"
    there.write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    for plugin in (there, tmp_path / "gone.py"):
        text = result.config_yaml.replace("plugins: []", f"plugins: [{plugin}]")
        text = text.replace("plugin_digests: {}", f"plugin_digests: {{{plugin.stem}: '12'}}")
        path = write_result(tmp_path / "run.h5", dataclasses.replace(result, config_yaml=text))
        assert read_result(path).config["plugins"] == [str(plugin)]
        assert main(["results", "verify", str(path)]) == 0
        assert capsys.readouterr().out == (
            f"results {path}: sound; its configuration was not checked, since verify imports no "
            "plug-ins\n"
        )
    assert not (tmp_path / "was_run").exists()

    def change(found: Result) -> None:
        found.events["now_s"][3] = 99.0

    changed = rewrite(path, tmp_path / "changed.h5", change)
    assert [line.partition(" breaks ")[2] for line in verify(changed)] == ["the chain of hashes"]


def read_or_refuse(path: Path) -> str:
    """`read`, or why not; either way within seconds, not counting other work on the cores."""
    start_s = time.process_time()
    try:
        read_result(path)
        return "read"
    except ValueError as error:
        return str(error)
    finally:
        assert time.process_time() - start_s < 10


@pytest.mark.parametrize("cut_frac", [0.97, 0.6, 0.3, 0.1, 0.02, 0.0])
def test_a_file_that_was_cut_off_is_refused_within_seconds(
    whole: Path, followed: Path, tmp_path: Path, cut_frac: float
) -> None:
    for source in (whole, followed):
        data = source.read_bytes()
        path = tmp_path / "cut.h5"
        path.write_bytes(data[: int(cut_frac * len(data))])
        said = read_or_refuse(path)
        assert said.startswith(f"results {path}: ") and said != "read"
        assert ("cut off" in said) == (cut_frac > 0)


@pytest.mark.parametrize("is_marked", [False, True])
def test_flipped_bytes_never_hang_a_reader(
    whole: Path, followed: Path, tmp_path: Path, is_marked: bool
) -> None:
    source = followed if is_marked else whole
    block = read_superblock(source)
    assert block is not None and block.is_marked == is_marked
    data = bytearray(source.read_bytes())
    said = []
    for at in (10, 30, 44, 50, 120, *range(500, 6500, 500)):
        changed = data.copy()
        changed[at] ^= 0xFF
        path = tmp_path / f"flipped{at}.h5"
        path.write_bytes(changed)
        said.append(read_or_refuse(path))
    assert any("checksum" in line for line in said)


def test_a_file_with_all_rows_is_read_although_its_end_is_missing(followed: Path) -> None:
    with followed.open("r+b") as file:  # as a disk that is full leaves it
        block = read_superblock(followed)
        assert block is not None
        file.truncate(block.end_bytes - 1)
    assert num_missing_bytes(followed) == 1
    said = read_or_refuse(followed)
    assert said == "read" or "part of /" in said


def test_a_cut_file_is_read_in_part_up_to_the_rows_that_all_columns_have(followed: Path) -> None:
    with h5py.File(followed, "r", swmr=True) as file:  # rows of wide columns lie in many chunks
        density = file["merges/density"].id
        chunk_rows = file["merges/density"].chunks[0]
        end = density.get_chunk_info_by_coord((2 * chunk_rows, 0)).byte_offset
        last = density.get_num_chunks() - 1
        assert all(density.get_chunk_info(i).byte_offset >= end for i in range(2, last + 1))
    before = followed.read_bytes()[:-1000]
    followed.write_bytes(before)
    partial = read_result(followed, partial=True)
    num_rows = len(partial.merges["version"])
    assert f"partial: was running; merges {num_rows} of 3000 rows, as " in partial.status
    assert 0 < num_rows < 3000
    assert partial.merges["version"].tolist() == list(range(1, num_rows + 1))
    assert partial.merges["density"].tolist() == [[0.25, 0.5, 1.0]] * num_rows
    assert followed.read_bytes() == before


def test_of_a_killed_run_nothing_is_lost(followed: Path) -> None:
    killed, partial = read_result(followed), read_result(followed, partial=True)
    assert partial.status == "partial: was running; nothing lost"
    assert differing_columns(killed, partial) == []
    assert partial.provenance == killed.provenance and partial.config == killed.config


def test_a_whole_file_read_in_part_is_the_same(whole: Path) -> None:
    result, partial = read_result(whole), read_result(whole, partial=True)
    assert same_content(dataclasses.replace(partial, status=result.status), result)
    assert partial.weights.tobytes() == result.weights.tobytes()
    assert partial.status == "partial: was finished; nothing lost"


def test_of_a_file_without_a_configuration_nothing_can_be_read(followed: Path) -> None:
    followed.write_bytes(followed.read_bytes()[:1000])
    with pytest.raises(ValueError, match="nothing of it can be read"):
        read_result(followed, partial=True)
    with pytest.raises(ValueError, match="no such file"):
        read_result(followed.with_name("none.h5"), partial=True)


def test_what_is_left_of_a_damaged_file_is_exported_where_asked_for(
    whole: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(whole, tmp_path / "changed.h5"))
    with h5py.File(path, "r+") as file:
        file["merges/wall_s"][7] = 1.0
    with pytest.raises(ValueError, match="/merges fails its checksum from row"):
        export([path], "csv", tmp_path / "refused")
    words = ["results", "export", str(path), "--format", "csv", "--out", str(tmp_path / "out")]
    assert main([*words, "--partial"]) == 0
    assert len((tmp_path / "out/changed/merges.csv").read_text().splitlines()) == 1 + 7
    status = json.loads((tmp_path / "out/changed/run.json").read_text())["status"]
    assert status == "partial: was finished; merges from row 7 of 12 on, where checksums fail"


def test_csv_and_jsonl_hold_every_row(tmp_path: Path) -> None:
    source = write_run(tmp_path / "run.h5")
    written = export([source], "csv", tmp_path / "csv")
    export([source], "jsonl", tmp_path / "lines")
    assert tmp_path / "csv" / "run" / "merges.csv" in written
    with (tmp_path / "csv/run/merges.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["version"], row["now_s"], row["up_bytes_2"]) for row in rows] == [
        ("1", "1.5", "70"),
        ("2", "3.0", "140"),
    ]
    (line,) = (tmp_path / "lines/run/evaluations.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["model_xxh3"], row["val_accuracy"], row["test_accuracy"]) == (
        EVALUATION.model_xxh3,
        0.5,
        None,
    )
    assert json.loads((tmp_path / "csv/run/run.json").read_text())["config"]["seed"] == 7
    with pytest.raises(ValueError, match="--out must be a new or empty folder"):
        export([source], "csv", tmp_path / "csv")
    with pytest.raises(ValueError, match=r"--format must be one of csv, jsonl, parquet, tens"):
        export([source], "xml", tmp_path / "xml")


def test_joined_runs_share_one_file_a_table(tmp_path: Path) -> None:
    sources = [write_run(tmp_path / "a.h5"), write_run(tmp_path / "b.h5")]
    written = export(sources, "csv", tmp_path / "csv", join=True)
    assert {path.parent for path in written} == {tmp_path / "csv"}
    with (tmp_path / "csv" / "merges.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["version"]) for row in rows] == [
        *(("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"))
    ]
    assert json.loads((tmp_path / "csv" / "runs.json").read_text())["b"]["config"]["seed"] == 7
    export(sources, "jsonl", tmp_path / "lines", join=True)
    lines = (tmp_path / "lines" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["a", "b"]
    with pytest.raises(ValueError, match="csv, jsonl, parquet when --join is given"):
        export(sources, "tensorboard", tmp_path / "board", join=True)
    with pytest.raises(ValueError, match=r"have another name than the others \(got a again\)"):
        export([*sources, sources[0]], "csv", tmp_path / "twice", join=True)


def test_nothing_is_exported_before_all_files_are_read_and_all_folders_are_new(
    tmp_path: Path,
) -> None:
    sources, out = [write_run(tmp_path / "a.h5"), write_run(tmp_path / "b.h5")], tmp_path / "out"
    other = tmp_path / "arrays.npz"
    np.savez(other, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"arrays.npz: cannot be read"):
        export([*sources, other], "csv", out)
    assert not out.exists()
    kept = out / "b" / "mine.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    with pytest.raises(ValueError, match="--out must be a new or empty folder"):
        export(sources, "csv", out)
    assert [path for path in out.rglob("*") if path.is_file()] == [kept]


def test_parquet_keeps_types_and_lists(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `export`")
    export([write_run(tmp_path / "run.h5")], "parquet", tmp_path / "out")
    merges = parquet.read_table(tmp_path / "out/run/merges.parquet").to_pydict()
    assert merges["version"] == [1, 2] and merges["up_bytes"][1] == [20, 40, 140]
    events = parquet.read_table(tmp_path / "out/run/events.parquet").to_pydict()
    assert events["chain_xxh3"] == [2**64 - 2]


def test_tensorboard_gets_one_event_file_a_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra `export`")
    (path,) = export([write_run(tmp_path / "run.h5")], "tensorboard", tmp_path / "out")
    assert path.parent == tmp_path / "out" / "run" and b"evaluations/val_acc" in path.read_bytes()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow, which is missing: pip install"):
        export([write_run(tmp_path / "run.h5")], "parquet", tmp_path / "out")


@pytest.mark.parametrize("words", [("verify",), ("mend", "a.h5"), ("export", "a.h5", "--out", "x")])
def test_wrong_words_say_what_is_needed(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", *words]) == 2
    said = capsys.readouterr().err
    assert "missing: " in said or "unknown action 'mend'" in said


@pytest.mark.parametrize("locking", ["auto", "on", "off"])
def test_every_locking_policy_writes_a_file_that_is_read_meanwhile(
    tmp_path: Path, locking: str
) -> None:
    with open_writer(tmp_path / "run.h5", locking=locking) as writer:
        writer.append(merge_row(1))
        writer.flush()
        code = "import sys; from fedgmr_hpc import read_result; read_result(sys.argv[1])"
        command = [sys.executable, "-c", code, str(writer.path)]
        assert subprocess.run(command, timeout=300).returncode == 0


def test_a_flipped_byte_is_found_wherever_it_changes_what_is_read(
    whole: Path, tmp_path: Path
) -> None:
    data, unbroken, rng = whole.read_bytes(), read_result(whole), np.random.default_rng(11)
    path = tmp_path / "flipped.h5"
    for at in rng.choice(len(data), 100, replace=False).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        if not verify(path):
            assert same_content(read_result(path), unbroken), at


def same_content(a: Result, b: Result) -> bool:
    """Whether two results hold the same, down to the bits of NaN."""
    texts = ("status", "config_yaml", "provenance", "layout_json")
    return all(getattr(a, name) == getattr(b, name) for name in texts) and all(
        values.tobytes() == getattr(b, table)[name].tobytes()
        for table in (*TABLES, "ranks")
        for name, values in getattr(a, table).items()
    )


def test_a_file_without_checksums_is_sound_with_a_remark(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copy(whole, tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        del file["checksums"]
        file.attrs["format"] = np.bytes_("fedgmr_hpc results 2")
    assert same_content(read_result(path), read_result(whole))
    assert main(["results", "verify", str(path)]) == 0
    said = capsys.readouterr().out
    assert said == f"results {path}: sound, but without checksums, which its format lacks\n"
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = np.bytes_("fedgmr_hpc results 3")
    assert "lacks /checksums" in verify(path)[0]


@pytest.mark.parametrize("num_bytes", [1, 8, 63])
def test_a_closed_file_that_lost_its_last_bytes_is_not_sound(
    whole: Path, tmp_path: Path, num_bytes: int
) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes(whole.read_bytes()[:-num_bytes])
    assert verify(path) == [
        f"results {path}: cut off, the last {num_bytes} bytes are missing; "
        "`python -m fedgmr_hpc results export --partial` keeps what can be read"
    ]


def test_rows_that_fail_their_checksum_are_left_out(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path / "changed.h5"))
    with h5py.File(path, "r+") as file:
        file["merges/wall_s"][7] = 1.0
    partial = read_result(path, partial=True)
    assert "was finished; merges from row 7 of 12 on, where checksums fail" in partial.status
    assert partial.merges["version"].tolist() == list(range(1, 8))
    assert len(partial.evaluations["version"]) == len(read_result(whole).evaluations["version"])


def test_a_changed_count_of_a_killed_runs_rows_is_found(tmp_path: Path) -> None:
    with open_writer(tmp_path / "live.h5") as writer:
        for version in range(1, 6):
            writer.append(merge_row(version))
            writer.flush()
        path = Path(shutil.copy(writer.path, tmp_path / "killed.h5"))
        place = writer._file["committed"].id.get_offset()
    assert not any("are committed" in line for line in verify(path))
    with path.open("r+b") as file:
        file.seek(place)
        file.write((3).to_bytes(8, "little"))
    (finding,) = verify(path)
    assert finding.endswith("merges: 3 rows are committed, checksums are there for 5")
