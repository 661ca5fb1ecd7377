"""The result file: its schema, a writer followed, killed or out of space, and comparisons."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sample_results import (
    EVALUATION,
    EVENT,
    RANK,
    SIZES,
    TEXTS,
    TRANSFER,
    UPDATE,
    WEIGHTS,
    merge_row,
    open_writer,
    write_run,
)

import fedgmr_hpc.storage.table_file as tablefile
from fedgmr_hpc.storage.reader import deterministic_columns, differing_columns, read_result
from fedgmr_hpc.storage.schema import OTHER_COLUMNS, PARTS
from fedgmr_hpc.storage.writer import ResultWriter

I8, F8, U8 = np.dtype("i8"), np.dtype("f8"), np.dtype("u8")


def test_schema_is_the_documented_one(tmp_path: Path) -> None:
    open_writer(tmp_path / "run.h5").finish("finished")
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def visit(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = (node.shape, node.dtype)

    with h5py.File(tmp_path / "run.h5", "r", swmr=True) as file:
        file.visititems(visit)
        assert file.attrs["format"] == b"fedgmr_hpc results 3"
    number, each_client, block = (0,), (0, 3), (0, 2)
    assert {name: kind for name, kind in found.items() if kind[1].kind != "S"} == {
        "committed": ((8,), I8),
        "merges/version": (number, I8),
        "merges/round": (number, I8),
        "merges/now_s": (number, F8),
        "merges/num_merged": (number, I8),
        "merges/server_up_bytes": (number, I8),
        "merges/server_down_bytes": (number, I8),
        "merges/staleness": (each_client, I8),
        "merges/density": (each_client, F8),
        "merges/weight": (each_client, F8),
        "merges/up_bytes": (each_client, I8),
        "merges/down_bytes": (each_client, I8),
        "merges/wall_s": (number, F8),
        "merges/wall_rss_bytes": (number, I8),
        "evaluations/version": (number, I8),
        "evaluations/round": (number, I8),
        "evaluations/now_s": (number, F8),
        "evaluations/val_accuracy": (number, F8),
        "evaluations/val_loss": (number, F8),
        "evaluations/test_accuracy": (number, F8),
        "evaluations/test_loss": (number, F8),
        "evaluations/mean_density": (number, F8),
        "evaluations/model_xxh3": (number, U8),
        "evaluations/wall_s": (number, F8),
        "updates/now_s": (number, F8),
        "updates/client": (number, I8),
        "updates/base_version": (number, I8),
        "updates/version": (number, I8),
        "updates/mask_id": (number, I8),
        "updates/density": (number, F8),
        "updates/down_bytes": (number, I8),
        "updates/up_bytes": (number, I8),
        "updates/train_loss": (number, F8),
        "updates/score": (number, F8),
        "updates/num_samples": (number, I8),
        "updates/wall_overrun": (number, I8),
        "updates/wall_rank": (number, I8),
        "events/kind": (number, I8),
        "events/now_s": (number, F8),
        "events/ready_s": (number, F8),
        "events/client": (number, I8),
        "events/chain_xxh3": (number, U8),
        "transfers/now_s": (number, F8),
        "transfers/client": (number, I8),
        "transfers/base_version": (number, I8),
        "transfers/is_upload": (number, I8),
        "transfers/bytes": (number, I8),
        "transfers/requested_bytes_per_s": (number, F8),
        "transfers/achieved_bytes_per_s": (number, F8),
        "transfers/queue_wait_s": (number, F8),
        "transfers/num_resent": (number, I8),
        "checkpoints/version": (number, I8),
        "checkpoints/now_s": (number, F8),
        "checkpoints/is_resume": (number, I8),
        "checkpoints/bytes": (number, I8),
        "checkpoints/wall_wait_s": (number, F8),
        "checkpoints/wall_write_s": (number, F8),
        "checkpoints/wall_s": (number, F8),
        "looks/version": (number, I8),
        "looks/round": (number, I8),
        "looks/now_s": (number, F8),
        "looks/val_accuracy": (number, F8),
        "looks/val_loss": (number, F8),
        "looks/test_accuracy": (number, F8),
        "looks/test_loss": (number, F8),
        "looks/mean_density": (number, F8),
        "looks/model_xxh3": (number, U8),
        "looks/wall_s": (number, F8),
        "submodels/version": (number, I8),
        "submodels/now_s": (number, F8),
        "submodels/density": (number, F8),
        "submodels/num_kept": (number, I8),
        "submodels/num_clients": (number, I8),
        "submodels/test_accuracy": (number, F8),
        "submodels/test_loss": (number, F8),
        "submodels/wall_s": (number, F8),
        "ranks/rank": (number, I8),
        "ranks/sent_bytes": (number, I8),
        "ranks/received_bytes": (number, I8),
        "ranks/overhead_bytes": (number, I8),
        "ranks/num_tasks": (number, I8),
        "ranks/train_s": (number, F8),
        "ranks/wait_s": (number, F8),
        "ranks/rss_bytes": (number, I8),
        "model/weights": (number, np.dtype("f4")),
        "checksums/texts": ((), U8),
        "checksums/status": ((), U8),
        **{f"checksums/{part}": (block, U8) for part in PARTS},
    }
    texts = {name for name, kind in found.items() if kind[1].kind == "S"}
    software = {f"ranks/{name}" for name in OTHER_COLUMNS["ranks"]}
    assert texts == {"status", "config", "model/layout", "ranks/host", "ranks/device", *software}


def row_of(columns: dict[str, Any]) -> dict[str, Any]:
    """The only row of a table."""
    assert {len(column) for column in columns.values()} == {1}
    return {name: column[0].item() for name, column in columns.items()}


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    result = read_result(write_run(tmp_path / "new" / "run.h5"))
    assert result.status == "finished"
    assert result.config == {"seed": 7, "data": {"name": "digits"}}
    assert result.provenance == {"hostname": "näme"}
    assert result.layout_json == '{"names": ["w"]}'
    assert result.merges["version"].tolist() == [1, 2]
    assert result.merges["up_bytes"].tolist() == [[10, 20, 70], [20, 40, 140]]
    assert result.merges["density"].tolist() == [[0.25, 0.5, 1.0]] * 2
    assert result.evaluations["model_xxh3"].tolist() == [EVALUATION.model_xxh3]
    assert np.isnan(result.evaluations["test_accuracy"]).tolist() == [True]
    assert result.updates["train_loss"].tolist() == [2.25]
    assert row_of(result.updates) == pytest.approx(dataclasses.asdict(UPDATE), rel=0, nan_ok=True)
    assert row_of(result.events) == dataclasses.asdict(EVENT)
    assert row_of(result.transfers) == dataclasses.asdict(TRANSFER)
    assert result.ranks["host"].tolist() == ["node-ü"]
    assert result.ranks["wait_s"].tolist() == [0.25]
    assert result.weights.dtype == np.float32 and result.weights.tolist() == [0, 1, 2, 3]


def test_a_file_from_before_a_table_reads_as_one_without_its_rows(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        del file["looks"], file["submodels"]
    result = read_result(path)
    assert result.looks["now_s"].tolist() == result.submodels["density"].tolist() == []
    assert result.merges["version"].tolist() == [1, 2]


def test_a_row_is_copied_when_appended(tmp_path: Path) -> None:
    density = np.array([0.25, 0.5, 1.0])
    with open_writer(tmp_path / "run.h5") as writer:
        writer.append(merge_row(1, density=density))
        density[:] = 0
    assert read_result(tmp_path / "run.h5").merges["density"].tolist() == [[0.25, 0.5, 1.0]]


def test_wrong_sizes_are_refused_by_name(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "run.h5")
    with pytest.raises(ValueError, match=r"MergeRow\.density: shape \(2,\), want \(3,\)"):
        writer.append(merge_row(1, density=np.ones(2)))
    with pytest.raises(ValueError, match="model/weights: 3 values, the file was made for 4"):
        writer.finish("finished", weights=np.ones(3, np.float32))
    with pytest.raises(ValueError, match="ranks/rank: 3 values, the file was made for 2"):
        writer.finish("finished", ranks=[RANK] * 3)


def read_elsewhere(path: Path) -> str:
    code = (
        "import sys; from fedgmr_hpc.storage.reader import read_result;"
        "r = read_result(sys.argv[1]);"
        "print(r.status, r.merges['version'].tolist(), r.merges['density'].shape, r.weights.size)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_another_process_follows_a_running_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with open_writer(path, flush_s=1e9) as writer:
        assert read_elsewhere(path) == "running [] (0, 3) 0"
        writer.append(merge_row(1))
        assert read_elsewhere(path) == "running [] (0, 3) 0"
        writer.flush()
        assert read_elsewhere(path) == "running [1] (1, 3) 0"
        writer.append(merge_row(2))
        writer.flush()
        assert read_elsewhere(path) == "running [1, 2] (2, 3) 0"
        writer.finish("finished", weights=np.ones(4, np.float32))
    assert read_elsewhere(path) == "finished [1, 2] (2, 3) 4"


def test_rows_that_come_while_a_file_is_read_do_not_make_it_damaged(tmp_path: Path) -> None:
    """A reader that has looked at the checksums when the file grows, and not yet at the rows."""
    path = tmp_path / "run.h5"
    code = f"""
        import time
        from pathlib import Path
        from fedgmr_hpc.storage import reader as result
        look = result._check_place
        def look_and_wait(path, group):
            [len(blocks) for blocks in group["checksums"].values() if blocks.ndim]
            Path({str(tmp_path / "looked")!r}).touch()
            while not Path({str(tmp_path / "grown")!r}).exists():
                time.sleep(0.01)
            look(path, group)
        result._check_place = look_and_wait
        print(result.read_result({str(path)!r}).merges["version"].tolist())
    """
    with open_writer(path, flush_s=1e9) as writer:
        command = [sys.executable, "-c", textwrap.dedent(code)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            while not (tmp_path / "looked").exists() and reader.poll() is None:
                time.sleep(0.01)
            writer.append(merge_row(1))
            writer.flush()
            (tmp_path / "grown").touch()
            output, _ = reader.communicate(timeout=300)
    assert (reader.returncode, output) == (0, "[]\n")


def test_flush_s_bounds_what_a_reader_waits_for(tmp_path: Path) -> None:
    with open_writer(tmp_path / "run.h5", flush_s=0.0) as writer:
        writer.append(merge_row(1))
        assert read_elsewhere(tmp_path / "run.h5") == "running [1] (1, 3) 0"


def run_writer(path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A writer in a process of its own: `open_writer`, `merge_row` and `path` are at hand."""
    head = f"""
        import os, resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from sample_results import merge_row, open_writer
        path = Path({str(path)!r})
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_rows_that_belong_together_are_flushed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer(tmp_path / "run.h5", flush_s=0.0) as writer:
        flushed: list[int] = []
        monkeypatch.setattr(writer, "flush", lambda: flushed.append(len(writer._rows["updates"])))
        writer.append(UPDATE, UPDATE, UPDATE)
        assert flushed == [3]
        monkeypatch.undo()
        writer.finish("finished")
    assert len(read_result(tmp_path / "run.h5").updates["client"]) == 3


def test_a_killed_writer_keeps_all_up_to_its_last_flush(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    run_writer(
        path,
        """
        writer = open_writer(path, flush_s=1e9)
        for version in range(1, 301):
            writer.append(merge_row(version))
            if version % 100 == 0 and version < 300:
                writer.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    result = read_result(path)
    assert result.status == "running"
    assert result.merges["version"].tolist() == list(range(1, 201))
    assert all(len(column) == 200 for column in result.merges.values())


FILL = """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
    try:
        with open_writer(path, flush_s=0.0) as writer:
            for version in range(1, 100_000):
                writer.append(merge_row(version))
    except OSError as error:
        print(error, flush=True)
        sys.exit(3)  # as any program ends: libhdf5 has nothing left to write, and does not crash
"""


@pytest.mark.parametrize("limit_bytes", [1000, 20_000, 30_000, 100_000, 200_000, 300_000])
def test_a_full_disk_is_named_and_leaves_whole_rows(tmp_path: Path, limit_bytes: int) -> None:
    path = tmp_path / "run.h5"
    ran = run_writer(path, FILL.replace("ROOM", str(limit_bytes)))
    assert ran.stdout == f"results {path}: cannot write (File too large)\n", ran.stderr
    assert (ran.returncode, ran.stderr) == (3, "")
    if not path.exists():  # not even its head found room: nothing is left behind
        assert limit_bytes <= 30_000 and not list(tmp_path.iterdir())
        return
    result = read_result(path)
    versions = result.merges["version"]
    assert versions.tolist() == list(range(1, len(versions) + 1))
    assert (result.merges["density"] == [0.25, 0.5, 1.0]).all()
    assert len(versions) > 10 or limit_bytes < 300_000
    assert result.status.startswith("failed: OSError")


def test_after_an_error_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    writer = open_writer(path, flush_s=1e9)
    writer.append(merge_row(1))
    writer.flush()
    with monkeypatch.context() as patched:
        patched.setattr(tablefile, "force_to_disk", fail)
        writer.append(merge_row(2))
        with pytest.raises(OSError, match=r"run\.h5: cannot write \(no space\)"):
            writer.flush()
    before = path.read_bytes()
    for act in (writer.flush, writer.sync, lambda: writer.finish("finished", weights=WEIGHTS)):
        with pytest.raises(OSError, match="no space"):
            act()
    assert path.read_bytes() == before
    assert read_elsewhere(path) == "running [1] (1, 3) 0"


def fail(file: h5py.File) -> None:
    raise OSError("no space")


def test_finished_is_said_only_of_weights_that_were_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    real = tablefile.TableFile._fill

    def lose(self: tablefile.TableFile, name: str, start: int, values: Any) -> None:
        real(self, name, start, values * 0 if name == "model/weights" else values)

    with monkeypatch.context() as patched:
        patched.setattr(tablefile.TableFile, "_fill", lose)
        with pytest.raises(OSError, match="cannot be read back .*/model fails its checksum"):
            write_run(path)
    assert read_result(path).status.startswith("failed: OSError")
    with pytest.raises(OSError, match="not those of version 2, by evaluations/model_xxh3"):
        with open_writer(tmp_path / "other.h5") as writer:
            writer.append(merge_row(1))
            writer.append(merge_row(2))
            writer.append(EVALUATION)
            writer.finish("finished", weights=WEIGHTS + 1)
    assert read_result(tmp_path / "other.h5").status.startswith("failed: OSError")


def test_an_exception_marks_the_file_failed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with pytest.raises(RuntimeError), open_writer(path) as writer:
        writer.append(merge_row(1))
        raise RuntimeError("rank 3 did not answer " + "ü" * 4000)
    result = read_result(path)
    assert result.status.startswith("failed: RuntimeError: rank 3 did not answer üü")
    assert result.merges["version"].tolist() == [1]


def test_finish_twice_keeps_the_first_status(tmp_path: Path) -> None:
    with open_writer(tmp_path / "run.h5") as writer:
        writer.finish("failed: rank 2 left")
    assert read_result(tmp_path / "run.h5").status == "failed: rank 2 left"


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5")
    with pytest.raises(ValueError, match=r"results\.path: .*run\.h5 exists"):
        open_writer(path)
    assert read_result(path).status == "finished"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"results .*file/run\.h5: cannot create the file"):
        open_writer(tmp_path / "file" / "run.h5")


def test_foreign_files_are_refused_with_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.h5: no such file"):
        read_result(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text\.h5: cannot be read"):
        read_result(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w", libver="latest") as file:
        file["status"] = 1
    with pytest.raises(ValueError, match=r"other\.h5: .*lacks /committed, /config"):
        read_result(tmp_path / "other.h5")


def test_a_file_without_the_tables_of_this_format_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        del file["events"], file["transfers"]
    with pytest.raises(ValueError, match=r"old\.h5: .*it lacks /events, /transfers$"):
        read_result(path)


def test_only_machine_dependent_columns_are_left_out(tmp_path: Path) -> None:
    columns = deterministic_columns(read_result(write_run(tmp_path / "run.h5")))
    assert {
        "merges/density",
        "updates/score",
        "evaluations/model_xxh3",
        "events/chain_xxh3",
        "model/weights",
    } <= set(columns)
    assert not any("wall_" in name or name.startswith(("ranks/", "transfers/")) for name in columns)


def test_differing_columns_names_what_differs(tmp_path: Path) -> None:
    first = read_result(write_run(tmp_path / "a.h5"))
    slower = read_result(write_run(tmp_path / "b.h5", wall_s=99.0, wall_rss_bytes=1))
    other = read_result(write_run(tmp_path / "c.h5", density=np.array([0.25, 0.5, 0.9])))
    assert differing_columns(first, slower) == []
    assert differing_columns(first, other) == ["merges/density"]
    open_writer(tmp_path / "d.h5").finish("finished", weights=WEIGHTS)
    assert "merges/version" in differing_columns(first, read_result(tmp_path / "d.h5"))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    ran = run_writer(
        tmp_path / "run.h5",
        """
        import numpy as np
        wide = {name: np.ones(100) for name in ("density", "weight")}
        wide |= {name: np.ones(100, int) for name in ("staleness", "up_bytes", "down_bytes")}

        def resident_bytes():
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * resource.getpagesize()

        with open_writer(path, num_clients=100, flush_s=1e9) as writer:
            for version in range(1, 5001):
                writer.append(merge_row(version, **wide))
                if version % 20 == 0:
                    writer.flush()
                if version == 1000:
                    start_bytes = resident_bytes()
            print(resident_bytes() - start_bytes)
        """,
    )
    assert int(ran.stdout) < 4_000_000, ran.stderr  # these 4000 rows are 16 MB


def test_a_torn_flush_is_cut_to_whole_rows(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        file["merges/density"].resize(5, axis=0)
        file["merges/version"].resize(3, axis=0)
        file["events/kind"].resize(4, axis=0)
        file["transfers/bytes"].resize(2, axis=0)
    assert read_result(path).merges["version"].tolist() == [1, 2]
    assert row_of(read_result(path).events) == dataclasses.asdict(EVENT)
    assert row_of(read_result(path).transfers) == dataclasses.asdict(TRANSFER)
    assert read_result(path).merges["density"].tolist() == [[0.25, 0.5, 1.0]] * 2


def test_rows_reach_the_file_when_due_without_another_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with ResultWriter(tmp_path / "run.h5", flush_s=5.0, **SIZES, **TEXTS) as writer:
        writer.append(merge_row(1))
        writer.flush()
        writer.append(merge_row(2))
        now_s += 6.0
        assert len(read_result(tmp_path / "run.h5").merges["version"]) == 1
        writer.flush_if_due()
        assert len(read_result(tmp_path / "run.h5").merges["version"]) == 2
