"""Studies as Slurm jobs: the texts for sbatch, and what the queue adds to a cell's state."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.errors import DIVERGED
from fedgmr_hpc.config.sites import Site, job_values
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.job_states import (
    CellJob,
    Submission,
    next_folder,
    read_jobs,
    with_job,
    write_submission,
)
from fedgmr_hpc.study.slurm.plan import Plan, nodes_for, render_scripts
from fedgmr_hpc.study.slurm.submit import add_site, split_cells, tasks_here
from fedgmr_hpc.study.states import CellState
from fedgmr_hpc.study.study_file import load_study

GOLDEN = Path(__file__).parents[2] / "golden"
STUDY = {
    "title": "tiny",
    "base": "digits",
    "matrix": {"method": ["fedgmr", "fedavg"], "seed": [0, 1]},
    "comparison_time_s": 5.0,
    "ranks": 5,
}
SITE = Site(
    partition="gpu",
    account="abc123",
    qos="normal",
    constraint="a100",
    time_limit="12:00:00",
    mem="64G",
    gpus_per_node=2,
)


def make_cells() -> list[Cell]:
    study, words = load_study(STUDY)
    return expand(study, words)


def make_plan(cells: list[Cell], site: Site = SITE) -> Plan:
    return Plan(
        name="tiny",
        cells=tuple(cells),
        cells_dir=Path("/shared/out/cells"),
        folder=Path("/shared/out/cells/.jobs/0003"),
        report=("-m", "fedgmr_hpc", "study", "report", "tiny.yaml"),
        num_ranks=5,
        num_nodes=2,
        max_parallel=3,
        site=site,
        scripts=Path("/shared/fedgmr hpc/slurm"),
        variables={"FEDGMR_MODULES": "gcc/13.2 openmpi/5.0", "FEDGMR_VENV": "/shared/venv"},
    )


def test_texts_are_the_recorded_ones() -> None:
    """After a wanted change: write the texts into the files, and read what has become of them."""
    array, report = render_scripts([make_plan(make_cells())], job="4711")
    assert array == (GOLDEN / "study_array.sh").read_text()
    assert report == (GOLDEN / "study_report.sh").read_text()


def test_one_cell_is_no_array_and_a_site_without_facts_asks_for_nothing() -> None:
    array, report = render_scripts([make_plan(make_cells()[:1], Site())])
    assert "--array" not in array and "0003/%j_0_log.out" in array
    for key in ("partition", "account", "qos", "constraint", "mem", "time", "gpus", "wckey"):
        assert f"--{key}" not in array + report
    assert "#SBATCH --dependency=afterany:JOB\n" in report


def test_a_sites_facts_for_the_job_are_not_those_for_sbatch() -> None:
    site = SITE.model_copy(update={"mpi": "pmi2", "venv": "~/v", "env": {"UCX_N": 2}})
    values = job_values(site, {"HOME": "/h"}, prefix="FEDGMR_")
    assert values == {"FEDGMR_VENV": "/h/v", "FEDGMR_MPI": "pmi2", "UCX_N": "2"}


def test_cells_are_checked_with_the_sites_data_and_plug_ins(tmp_path: Path) -> None:
    site, plugin = tmp_path / "site.yaml", tmp_path / "scores.py"
    plugin.write_text("")
    site.write_text(f"data: /data\nplugins: [{plugin}, numbers]\n")
    words = add_site(["seed=1", "plugins=[fractions, numbers]"], str(site))
    assert words == [f'plugins=["{plugin}", "numbers", "fractions"]', "seed=1", "data.root=/data"]
    cells = expand(*load_study({**STUDY, "matrix": {"method": ["fedgmr"]}}, words))
    assert cells[0].config.plugins == (str(plugin), "numbers", "fractions")
    assert add_site(["data.root=/mine"], str(site))[1:] == ["data.root=/mine"]
    assert add_site(["seed=1"], None) == ["seed=1"]


@pytest.mark.parametrize(
    ("gpus", "ranks", "nodes"), [(None, 1, 1), (None, 99, 1), (4, 1, 1), (4, 5, 1), (4, 6, 2)]
)
def test_client_ranks_get_a_gpu_each_where_there_are_some(
    gpus: int | None, ranks: int, nodes: int
) -> None:
    assert nodes_for(Site(gpus_per_node=gpus), ranks) == nodes


@pytest.mark.parametrize(
    ("ranks", "nodes", "gpus"), [(1, 1, 1), (2, 1, 1), (5, 1, 4), (9, 1, 4), (5, 2, 2), (11, 3, 4)]
)
def test_a_cell_asks_for_the_gpus_that_its_client_ranks_can_use(
    ranks: int, nodes: int, gpus: int
) -> None:
    site = Site(gpus_per_node=4)
    plan = replace(make_plan(make_cells(), site), num_ranks=ranks, num_nodes=nodes)
    assert plan.gpus_per_node == gpus
    array, _ = render_scripts([plan])
    assert f"#SBATCH --ntasks-per-node={-(-ranks // nodes)}\n" in array
    study, words = load_study({**STUDY, "set": {"device": "cpu"}})
    assert replace(plan, cells=tuple(expand(study, words))).gpus_per_node is None


@pytest.mark.parametrize(
    ("files", "word", "status"),
    [
        ("missing", "PENDING", "queued"),
        ("failed", "REQUEUE_HOLD", "queued"),
        ("interrupted", "RUNNING", "running"),  # its lock is not seen from here
        ("interrupted", "COMPLETING", "running"),
        ("running", "PENDING", "running"),  # somebody runs it here
        ("running", "FAILED", "running"),
        ("done", "RUNNING", "done"),
        ("diverged", "COMPLETING", "diverged"),
        ("missing", "NODE_FAIL", "failed"),
        ("missing", "CANCELLED by 0", "failed"),
        ("interrupted", "TIMEOUT", "interrupted"),
        ("failed", "FAILED", "failed"),
        ("missing", "COMPLETED", "missing"),  # and its result was removed since
        ("missing", "", "missing"),
    ],
)
def test_the_queue_outweighs_the_files(files: str, word: str, status: str) -> None:
    state = CellState(files, Path("/o/x.h5"), error="died" if files == "failed" else "")  # type: ignore[arg-type]
    job = CellJob("7_1", word, "n1", "Priority", Path("/o/.jobs/0001/7_1_0_log.out"), 4)
    merged = with_job(state, job)
    assert merged.status == status
    said = {
        "queued": "job 7_1 (Priority)",
        "running": "job 7_1 on n1",
        "failed": f"job 7_1 on n1: {word}, see .jobs/0001/7_1_0_log.out",
    }
    if (
        files not in ("done", "diverged")
        and word not in ("FAILED", "COMPLETED", "")
        and status in said
    ):
        assert (merged.job, merged.error) in {(text, "") for text in said.values()}
    if files == status == "failed":
        assert merged == state  # what the run itself has said is more


def put(folder: Path, name: str, script: str) -> None:
    """A command that does nothing but `script`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    monkeypatch.delenv("FEDGMR_VENV", raising=False)
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def submitted(cells_dir: Path, job: str | None, *digests: str) -> Path:
    folder = next_folder(cells_dir)
    write_submission(Submission(folder, digests, 2))
    if job:
        (folder / f"{job}_submission.sh").touch()
    return folder


def test_jobs_are_found_by_folder_in_queue_accounts_and_logs(bin_dir: Path, tmp_path: Path) -> None:
    """The second submit was killed before it knew its job; the third is one cell's."""
    cells = tmp_path / "cells"
    first = submitted(cells, "10", "a", "b", "c", "d")
    killed = submitted(cells, None, "b", "c")
    single = submitted(cells, "30", "e")
    log = "x\nslurmstepd-n1: error: *** JOB 10 ON n1 CANCELLED AT 3 DUE TO TIME LIMIT ***\n"
    (first / "10_0_0_log.out").write_text(log)
    queue = (
        f"10_1|TIMEOUT|n1|TimeLimit|{first}/.submission_file_1.sh\n"
        f"20_0|RUNNING|n[1-2]|None|{killed}/.submission_file_2.sh\n"
        f"20_1|PENDING||Resources|{killed}/.submission_file_2.sh\n"
        f"30|NODE_FAIL|n3|NodeDown|{single}/.submission_file_3.sh\n"
        f"31|PENDING||Dependency|{single}/report/.submission_file_4.sh\n"
        "99|RUNNING|n1|None|/elsewhere/script.sh\n"
    )
    put(bin_dir, "squeue", f"/bin/cat <<'END'\n{queue}END")
    put(bin_dir, "sacct", "echo '10_3|OUT_OF_MEMORY|n2'")
    jobs = read_jobs(cells)
    shown = {digest: (job.name, job.word, job.nodes) for digest, job in jobs.items()}
    assert shown == {
        "a": ("10_0", "CANCELLED AT 3 DUE TO TIME LIMIT", ""),
        "b": ("20_0", "RUNNING", "n[1-2]"),
        "c": ("20_1", "PENDING", ""),
        "d": ("10_3", "OUT_OF_MEMORY", "n2"),
        "e": ("30", "NODE_FAIL", "n3"),
    }
    put(bin_dir, "sacct", "echo 'accounting storage is disabled' >&2; exit 1")
    assert read_jobs(cells)["d"].word == ""
    put(bin_dir, "squeue", "echo 'squeue: error: no controller' >&2; exit 1")
    with pytest.raises(ValueError, match="squeue: squeue: error: no controller"):
        read_jobs(cells)


def test_what_a_kill_left_of_a_submission_blocks_no_other(
    bin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file cut short, as a full disk leaves it, and a folder that somebody has copied."""
    cells = tmp_path / "cells"
    cut, whole = submitted(cells, "10", "a", "b"), submitted(cells, "20", "c")
    assert [path.name for path in cut.iterdir() if "cells" in path.name] == ["cells.json"]
    shutil.copytree(whole, whole.with_name("0002.bak"))
    (cut / "cells.json").write_text("")
    put(bin_dir, "squeue", "true")
    put(bin_dir, "sacct", "echo '20|FAILED|n1'")
    assert {digest: job.word for digest, job in read_jobs(cells).items()} == {"c": "FAILED"}
    assert next_folder(cells).name == "0003"
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": passed over, ")[0] for line in told] == [
        f"fedgmr_hpc: warning: {cells}/.jobs/{name}/cells.json" for name in ("0001", "0002.bak")
    ]
    assert read_jobs(cells) and capsys.readouterr().err == ""


def test_without_submissions_nobody_is_asked(tmp_path: Path, bin_dir: Path) -> None:
    assert read_jobs(tmp_path / "cells") == {}


def write_study(folder: Path, **changes: object) -> list[str]:
    (folder / "tiny.yaml").write_text(json.dumps({**STUDY, **changes}))  # JSON is YAML
    return [str(folder / "tiny.yaml"), "--out", str(folder / "out")]


def test_what_sbatch_is_given_is_what_a_dry_run_prints(
    bin_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "site.yaml").write_text("env: {SBATCH_SIGNAL: B:USR1@600}")
    options = ["--site", str(tmp_path / "site.yaml"), "--side-by-side", "2"]
    words = ["study", "submit", *write_study(tmp_path), *options]
    monkeypatch.setenv("SBATCH_SIGNAL", "")
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert not (tmp_path / "out").exists() and "4 cells (4 missing), 4 to submit" in shown.err
    put(bin_dir, "srun", "true")
    says = f'/bin/cat "$1" >> {tmp_path}/given; echo $SBATCH_SIGNAL > {tmp_path}/signal'
    put(bin_dir, "sbatch", f"{says}; echo Submitted batch job 77")
    put(bin_dir, "squeue", "true")
    assert main(words) == 0
    given = (tmp_path / "given").read_text()
    assert given.replace("afterany:77", "afterany:JOB") == shown.out
    assert (tmp_path / "signal").read_text() == "B:USR1@600\n"
    assert f"export FEDGMR_VENV={sys.prefix}\n" in given and "--array=0-3%2\n" in given


def test_more_cells_than_an_array_may_have_are_submitted_in_parts(
    bin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("srun", "squeue"):
        put(bin_dir, name, "true")
    put(bin_dir, "scontrol", "echo 'MaxArraySize            = 3'")
    ids = f'echo x >> {tmp_path}/n; echo "Submitted batch job $(/bin/grep -c x {tmp_path}/n)"'
    put(bin_dir, "sbatch", f'/bin/cat "$1" >> {tmp_path}/given; {ids}')
    assert main(["study", "submit", *write_study(tmp_path)]) == 0
    given, shown = (tmp_path / "given").read_text(), capsys.readouterr()
    assert "in parts: an array has at most 3 tasks (MaxArraySize)" in shown.err
    assert "job 1: 3 cells" in shown.out and "job 2: 1 cells" in shown.out
    assert given.count("--array=0-2%") == given.count("--array=") == 1
    assert "--dependency=afterany:1\n" in given and "--dependency=afterany:1:2\n" in given
    jobs = tmp_path / "out" / "cells" / ".jobs"
    pickles = list(jobs.glob("*/*.pkl"))
    assert len(pickles) == 4 and {path.stat().st_mode & 0o777 for path in pickles} == {0o600}
    assert jobs.stat().st_mode & 0o777 == 0o700
    assert len({job.name for job in read_jobs(jobs.parent).values()}) == 4


def test_parts_keep_order_and_leave_none_out() -> None:
    assert split_cells([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]  # type: ignore[list-item]
    assert split_cells([], 2) == []


def test_slurm_that_refuses_leaves_nothing_behind_but_what_it_took(
    bin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "submit", *write_study(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "sbatch is not on PATH" in error
    for name in ("srun", "squeue"):
        put(bin_dir, name, "true")
    put(bin_dir, "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    assert main(words) == 2
    assert "hpc: error: sbatch: error: invalid partition\n" in capsys.readouterr().err
    jobs = tmp_path / "out" / "cells" / ".jobs"
    assert list(jobs.iterdir()) == []
    put(bin_dir, "sbatch", f"[ -e {jobs}/0001/report ] && exit 1; echo Submitted batch job 5")
    assert main(words) == 2
    assert "job 5: 4 cells" in capsys.readouterr().out
    assert [job.name for job in read_jobs(jobs.parent).values()] == ["5_0", "5_1", "5_2", "5_3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "--local"), "unknown option '--local'"),
        (("status", "--dry-run"), "unknown option '--dry-run'"),
        (("status", "--ranks", "2"), "unknown option '--ranks'"),
        (
            ("submit", "--dry-run", "--nodes", "0"),
            "--nodes must be a whole number from 1 on (got 0)",
        ),
        (
            ("submit", "--dry-run", "--site", "moon"),
            "there is no site 'moon' (give a file, or one of",
        ),
    ],
)
def test_wrong_options_are_named(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    action, *options = words
    assert main(["study", action, *write_study(tmp_path), *options]) == 2
    assert re.search(re.escape(said), capsys.readouterr().err)


def test_gpus_of_this_machine_are_dealt_to_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(make_plan(make_cells()), num_ranks=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    seen = [task.visible for task in tasks_here(plan)]
    assert seen == ["4,6,7", "6,7,4", "7,4,6", "4,6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert {task.visible for task in tasks_here(plan)} == {""}


def test_a_study_that_trials_cannot_tune_is_not_submitted(
    bin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sbatch", "srun", "squeue"):
        put(bin_dir, name, "true")
    matrix = {"method": ["fedavg"], "seed": [0]}
    tuned = {"matrix": matrix, "tune": {"train.learning_rate": [1, 2]}, "tune_seeds": [7]}
    words = write_study(tmp_path, **tuned)
    cells = expand(*load_study(Path(words[0])))
    for cell in cells:
        if cell.is_trial:
            error = tmp_path / "out" / "cells" / f"{cell.name}.error"
            error.parent.mkdir(parents=True, exist_ok=True)
            error.write_text(f"{DIVERGED}: all of it\n")
    assert main(["study", "submit", *words]) == 1
    shown = capsys.readouterr().err
    assert "3 cells (2 diverged, 1 failed), 0 to submit" in shown
    name = next(cell.name for cell in cells if not cell.is_trial)
    assert f"  cannot be submitted: {name}: {DIVERGED} in a trial of every combination" in shown
    assert main(["study", "submit", *words, "--dry-run"]) == 0


def write_femnist(folder: Path) -> Path:
    """The smallest files that are taken for FEMNIST's."""
    for part in ("train", "test"):
        shard = folder / "femnist" / "data" / part / "all_data_0.json"
        shard.parent.mkdir(parents=True)
        shard.touch()
    return folder


def test_the_sites_data_is_the_root_unless_a_word_says_it(
    bin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_femnist(tmp_path / "data")
    (tmp_path / "site.yaml").write_text(f"data: {data}\nmem: 16G\n")
    study, *out = write_study(tmp_path, base="femnist")
    words = ["study", "submit", study, *out, "--site", str(tmp_path / "site.yaml")]
    assert main(["study", "status", study, *out]) == 2
    assert "data.root must be the folder of femnist (got null)" in capsys.readouterr().err
    assert main([*words, "data.root=/nowhere"]) == 2
    assert "(got '/nowhere')" in capsys.readouterr().err
    for name in ("srun", "squeue"):
        put(bin_dir, name, "true")
    put(bin_dir, "sbatch", f'/bin/cat "$1" >> {tmp_path}/given; echo Submitted batch job 77')
    assert main(words) == 0
    assert (tmp_path / "given").read_text().count("#SBATCH --mem=16G\n") == 2
    assert main(["study", "status", study, *out]) == 0  # with the words that were noted
    assert "4 missing of 4 cells" in capsys.readouterr().out
