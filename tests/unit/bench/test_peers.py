"""The comparison with the peers: its verdicts, the peers' environment, this project's program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgmr_hpc.bench.peers import contenders as who
from fedgmr_hpc.bench.peers import environment
from fedgmr_hpc.bench.peers.comparison import (
    BOUNDS,
    Trained,
    describe_difference,
    describe_fault,
    describe_others,
    make_rows,
    train,
)
from fedgmr_hpc.bench.peers.contenders import Contender, Spent, Started, cpu_s_of
from fedgmr_hpc.bench.peers.conv2 import Conv2
from fedgmr_hpc.bench.peers.ours import make_case, make_work
from fedgmr_hpc.bench.peers.steps_alone import train_client
from fedgmr_hpc.bench.peers.work import Work
from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.errors import RunError

EVERYONE = [who.STEPS, who.ONE_PROCESS, who.THREE_RANKS, *who.peers(Path("python"))]


def spent(**times_s: float) -> dict[str, Spent]:
    """Two rounds to warm up, then three in which the machine is slower each time."""
    factors = (9.0, 9.0, 1.0, 2.0, 4.0)
    return {
        each.name: Spent([times_s[key] * f for f in factors], [2.0] * 5)
        for key, each in zip(times_s, EVERYONE, strict=True)
    }


def rows_of(one: float, three: float) -> list[dict[str, Any]]:
    times = spent(steps=1.5, one=one, three=three, pfl_one=2.0, pfl_two=1.2, flower=1.8)
    return make_rows(EVERYONE, times, {each.name: "" for each in EVERYONE}, BOUNDS)


def test_ratios_are_of_the_same_turn_and_leave_the_warm_up_out() -> None:
    rows = {row["contender"]: row for row in rows_of(1.8, 1.05)}
    one, three = rows["one process"], rows["1 server + 2 ranks"]
    assert one["s/round"] == pytest.approx(3.6) and one["of pfl"] == pytest.approx(0.9)
    assert three["of pfl"] == pytest.approx(0.875)  # of its two processes
    assert three["of Flower"] == pytest.approx(1.05 / 1.8)
    assert rows[who.FLOWER]["of pfl"] is None  # peers are no matter of this project
    assert all(row["within"] for row in rows.values())


@pytest.mark.parametrize(
    ("one", "three", "outside"),
    [
        (1.92, 1.05, {"one process"}),  # 0.96 of pfl
        (1.8, 1.09, {"1 server + 2 ranks"}),  # 0.606 of Flower
        (1.8, 1.085, {"1 server + 2 ranks"}),  # 0.904 of pfl's two
    ],
)
def test_a_ratio_above_its_bound_is_outside(one: float, three: float, outside: set[str]) -> None:
    assert {r["contender"] for r in rows_of(one, three) if not r["within"]} == outside


def test_times_on_a_busy_machine_are_told_to_be_rough() -> None:
    assert describe_others({"s/round": 1.5, "CPU s": 1.4}) == ""
    assert "took 3 s for 1.4 CPU s" in describe_others({"s/round": 3.0, "CPU s": 1.4})


def test_another_work_is_told_and_outside() -> None:
    times = spent(steps=1.5, one=1.0, three=1.0, pfl_one=2.0, pfl_two=1.2, flower=1.8)
    faults = {each.name: "" for each in EVERYONE} | {who.PFL_TWO: "100 samples in 5 rounds"}
    rows = make_rows(EVERYONE, times, faults, {})
    marked = [row for row in rows if not row["within"]]
    assert [(row["contender"], row["work"]) for row in marked] == [
        (who.PFL_TWO, faults[who.PFL_TWO])
    ]


def tensors(change: float) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.full(4, 1 + change, np.float32)}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (tensors(0.1 + 1e-6), ""),
        (tensors(0.11), "weights differ by 0.1 of a round's change"),
        ({"w": np.ones(5, np.float32)}, "another model"),
        ({"v": np.ones(4, np.float32)}, "another model"),
        ({"w": np.ones(4)}, "another model"),
    ],
)
def test_weights_that_differ_are_told(found: dict[str, Any], text: str) -> None:
    assert describe_difference(tensors(0), tensors(0.1), found) == text


def test_weights_that_nothing_has_changed_are_no_agreement() -> None:
    assert "differ" in describe_difference(tensors(0), tensors(0), tensors(0))


@pytest.mark.parametrize(
    ("samples", "idle_cpu_s", "text"),
    [(40, 0.5, ""), (39, 0.5, "39 samples in 1 rounds"), (40, 5.0, "0.5 cores at work")],
)
def test_samples_left_out_and_work_while_others_train_are_told(
    samples: int, idle_cpu_s: float, text: str
) -> None:
    work = Work(tensors(0), np.zeros((2, 20, 1)), np.zeros((2, 20), np.int64), 20, 0.1)
    good = Trained(Spent([1.0], [1.0], [9.0, 9.0, 0.5], [10.0] * 3), tensors(0.1), 40)
    bad = Trained(Spent([1.0], [1.0], [9.0, 9.0, idle_cpu_s], [10.0] * 3), tensors(0.1), samples)
    once = {who.ONE_PROCESS.name: good, who.FLOWER: good}
    told = describe_fault(work, once, once | {who.FLOWER: bad}, who.FLOWER)
    assert told == "" if not text else text in told


def test_cpu_time_is_that_of_all_descendants(tmp_path: Path) -> None:
    def process(pid: int, parent: int, *ticks: int) -> None:
        fields = ["S", str(parent), *"0" * 9, *map(str, ticks), "20"]
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) c) {' '.join(fields)}")

    process(7, 1, 100, 10, 0, 5)  # user, system, and those of children that have ended
    process(8, 7, 20, 0, 0, 0)
    process(9, 8, 3, 0, 0, 0)
    process(10, 1, 1000, 0, 0, 0)  # nobody's
    assert cpu_s_of({7}, tmp_path) == 138 / os.sysconf("SC_CLK_TCK")


def test_a_contender_that_ends_too_early_is_told_with_its_last_words(tmp_path: Path) -> None:
    first = ("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    second = ("sh", "-c", "echo no torch here")
    with pytest.raises(RunError, match="no torch here"):
        Started(Contender("x", 2, (first, second), ({}, {})), tmp_path, 1)
    with pytest.raises(ProcessLookupError):  # the other process has ended, too
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_pip_may_take_no_other_torch(tmp_path: Path) -> None:
    words = environment.install_command(tmp_path)
    constraint = Path(words[words.index("--constraint") + 1]).read_text()
    assert constraint == f"torch=={torch.__version__}\n"
    assert words[-2:] == list(environment.REQUIREMENTS)


def test_only_the_versions_that_are_compared_count(tmp_path: Path) -> None:
    environment.python_of(tmp_path).parent.mkdir()
    environment.python_of(tmp_path).touch()
    packages = environment.packages_of(tmp_path)
    for name, number in (*environment.VERSIONS.items(), ("flwr", "1.0.0")):
        assert not environment.is_installed(tmp_path)
        (packages / f"{name}-{number}.dist-info").mkdir(parents=True)
        if number == "1.0.0":
            break
        (packages / f"{name}-{number}.dist-info").rename(packages / f"{name}-0.dist-info")
    for name, number in environment.VERSIONS.items():
        (packages / f"{name}-{number}.dist-info").mkdir()
    assert environment.is_installed(tmp_path)


def test_without_network_and_environment_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], **more: Any) -> None:
        environment.packages_of(tmp_path / "v").mkdir(parents=True, exist_ok=True)
        if "pip" in command:
            raise subprocess.CalledProcessError(1, command, stderr="w\nERROR: no route to host\n")

    monkeypatch.setattr(environment.subprocess, "run", fail)
    assert main(["bench", "peers", "--quick", "--venv", str(tmp_path / "v")]) == 2
    told = capsys.readouterr().err
    assert "ERROR: no route to host" in told and "bench peers --venv DIR" in told


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_this_project_averages_what_plain_steps_give(tmp_path: Path) -> None:
    """One round through the gate, against the mean of models trained by torch alone."""
    work = make_work(make_case(tmp_path / "work.h5", 1))
    work.save(tmp_path)
    own = train([who.ONE_PROCESS], tmp_path, 1)[who.ONE_PROCESS.name]
    mean = {name: np.zeros_like(tensor) for name, tensor in work.weights.items()}
    for client in range(len(work.x)):
        model = Conv2().load(Work.load(tmp_path).weights)
        train_client(model, work, client)
        for name, tensor in model.state_dict().items():
            mean[name] += tensor.numpy() / len(work.x)
    assert own.samples == work.samples_a_round == 10 * 5 * 20
    assert work.model_bytes == 4 * 6_603_710
    assert describe_difference(work.weights, mean, own.weights) == ""
    assert own.spent.cpu_s[0] > 0


def test_the_peers_average_the_same(tmp_path: Path) -> None:
    venv = Path(environment.DEFAULT).expanduser()
    if not environment.is_installed(venv):
        pytest.skip(f"{venv} has no pfl and flwr; `python -m fedgmr_hpc bench peers` installs them")
    work = make_work(make_case(tmp_path / "work.h5", 1))
    work.save(tmp_path)
    once = train([who.ONE_PROCESS, *who.peers(environment.prepare(venv))], tmp_path, 1)
    assert [describe_fault(work, once, once, name) for name in once] == [""] * len(once)
