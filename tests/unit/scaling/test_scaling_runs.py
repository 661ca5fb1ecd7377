"""Points, plans and measurements of scaling studies, from hand-made results."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.runtime.rank_state import RankClocks
from fedgmr_hpc.runtime.timeline import CODES, SPAN, RankTrace, Tracer
from fedgmr_hpc.scaling import runs as scalingruns
from fedgmr_hpc.scaling.analysis import ratio_summary
from fedgmr_hpc.scaling.measure import Measured, make_system, measure
from fedgmr_hpc.scaling.runs import (
    Kind,
    Plan,
    Point,
    RankIdentity,
    check_plan,
    make_points,
    read_identities,
    read_plan,
    run_plan,
    write_plan,
)
from fedgmr_hpc.storage.process import describe_cores, pin_core
from fedgmr_hpc.storage.reader import Result

WALL = ("clock=wall", "time_scale=0.5", "clients.count=2", "clients.shares=[1.0, 0.5]")


def applied(point: Point, *words: str) -> Config:
    return load_config("digits", words, point.overrides)


def test_strong_scaling_keeps_the_configuration() -> None:
    points = make_points("strong", load_config("digits"), [5, 2, 5], [])
    assert [(p.num_ranks, p.overrides) for p in points] == [(2, ()), (5, ())]


def test_weak_scaling_keeps_the_clients_of_a_rank() -> None:
    words = ("clients.count=6", "clients.shares=[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]")
    points = make_points("weak", load_config("digits", words), [3, 5], [])
    assert [applied(p, *words).clients.count for p in points] == [6, 12]
    assert applied(points[1], *words).clients.bandwidth_shares() == (0.5,) * 12


def test_sweeps_change_one_thing() -> None:
    config = load_config("digits", WALL)
    per_rank = make_points("clients-per-rank", load_config("digits"), [3], [4, 2])
    assert [applied(p).clients.count for p in per_rank] == [4, 8]
    (dense,) = make_points("density", config, [3], [0.25])
    assert applied(dense, *WALL).clients.max_densities == (0.25, 0.25)
    (slow,) = make_points("bandwidth", config, [3], [0.1])
    links = applied(slow, *WALL).links
    assert links.client_up_bytes_per_s == pytest.approx(0.5e6)
    assert links.server_down_bytes_per_s == pytest.approx(5e6)
    assert links.rank_up_bytes_per_s is None and links.compute_s == config.links.compute_s


@pytest.mark.parametrize(
    ("kind", "words", "ranks", "values", "message"),
    [
        ("strong", (), [1, 2], [], r"--ranks must be 2 or more, .*got 1,2"),
        ("strong", (), [2], [1.0], r"--values must be absent when scaling is strong"),
        ("weak", (), [4, 7], [], r"clients.count must be a multiple of 3 when .*got 10"),
        ("weak", WALL, [2, 3], [], r"clients.shares must be null, .*got 2 different values"),
        (
            "weak",
            ("clients.sampled=4",),
            [2, 3],
            [],
            r"clients.sampled must be null when the number of clients varies .got 4",
        ),
        ("clients-per-rank", ("clients.sampled=4",), [3], [5.0], r"clients.sampled must be null"),
        (
            "weak",
            ("aggregation.max_entries=4",),
            [2, 3],
            [],
            r"^aggregation.max_entries must be null when the number of clients varies .got 4.$",
        ),
        ("density", (), [3], [2.0], r"--values must be densities, .*got 2"),
        ("density", (), [3, 5], [0.5], r"one number of ranks and one or more values above 0"),
        ("clients-per-rank", (), [3], [1.5], r"--values must be whole numbers of clients .got 1.5"),
        (
            "bandwidth",
            (),
            [3],
            [1.0],
            r"clock must be 'wall' when --sweep is bandwidth",
        ),
    ],
)
def test_wrong_points_are_named(kind, words, ranks, values, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make_points(kind, load_config("digits", words), ranks, values)


@pytest.mark.parametrize(
    ("kind", "ranks", "values"),
    [("weak", [2, 3], []), ("clients-per-rank", [3], [5.0, 9.0])],
)
def test_files_of_so_many_clients_are_no_files_of_another_number(
    kind: Kind, ranks: list[int], values: list[float], tmp_path: Path
) -> None:
    names = ("availability", "trace", "partition")
    availability, trace, partition = (tmp_path / f"{name}.csv" for name in names)
    availability.write_text("client,from_s,to_s\n0,0,100\n")
    trace.write_text("time_s,client,direction,bytes_per_s\n0,0,up,1e6\n")
    partition.write_text("client,sample\n")
    words = (
        f"clients.availability={availability}",
        f"links.trace={trace}",
        "data.partition=file",
        f"data.partition_file={partition}",
    )
    config = load_config("digits", words)
    with pytest.raises(ValueError) as wrong:
        make_points(kind, config, ranks, values)
    assert str(wrong.value).splitlines() == [
        f"{key} must be null when the number of clients varies (got '{path}')"
        for key, path in (
            ("clients.availability", availability),
            ("data.partition_file", partition),
            ("links.trace", trace),
        )
    ]
    assert make_points("strong", config, [2, 3], [])  # which has the same clients all along


def made_plan(*words: str) -> Plan:
    points = make_points("strong", load_config("digits"), [2, 3], [])
    return Plan("strong", ("digits",), words, 2, 3, 4, points)


def test_a_plan_comes_back_and_another_is_refused(tmp_path: Path) -> None:
    plan = made_plan("run.max_rounds=9")
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    check_plan(replace(plan, num_cores=2), tmp_path)  # goes on, on another machine
    with pytest.raises(ValueError, match="holds another scaling study"):
        check_plan(made_plan("run.max_rounds=8"), tmp_path)
    (tmp_path / "scaling.json").write_text("{}")
    with pytest.raises(ValueError, match="no scaling study"):
        check_plan(plan, tmp_path)


def test_a_study_that_was_told_to_end_goes_on_if_any_run_had_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    tells_at = [0, 3]  # before any run, then after three in all

    def run(plan: Plan, point: Point, path: Path, lock: int) -> None:
        if tells_at and len(done) == tells_at[0]:
            tells_at.pop(0)
            os.kill(os.getpid(), signal.SIGUSR2)
        done.append(path.stem)

    monkeypatch.setattr(scalingruns, "_run", run)
    monkeypatch.setattr(scalingruns, "_is_to_run", lambda path, config: path.stem not in done)
    with pytest.raises(RunError, match="SIGUSR2 came before any run had finished"):
        run_plan(made_plan(), tmp_path)
    assert not run_plan(made_plan(), tmp_path)
    assert run_plan(made_plan(), tmp_path)
    turns = ["0002-ranks-repeat0", "0003-ranks-repeat0", "0002-ranks-repeat1", "0003-ranks-repeat1"]
    assert done == turns
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_a_run_shorter_than_its_warm_up_is_refused(tmp_path: Path) -> None:
    points = make_points("strong", load_config("digits"), [2], [])
    plan = Plan("strong", ("digits",), ("run.max_rounds=3",), 1, 3, 2, points)
    with pytest.raises(ValueError, match=r"run.max_rounds must be more than the 3 warm-up"):
        check_plan(plan, tmp_path)


def test_what_ranks_say_of_themselves_is_read_by_rank(tmp_path: Path) -> None:
    lines = [
        "rank 1 of 2: host b, pid 9, local rank 0, device cuda:0, threads 1, launcher mpi, "
        "transport mpi (1 device), cores 1",
        "some warning",
        "rank 0 of 2: host a, pid 8, local rank 0, device cpu, threads 1, launcher mpi, "
        "transport mpi, cores 0 1",
    ]
    (tmp_path / "x.out").write_text("\n".join(lines))
    server, client = read_identities(tmp_path / "x.out")
    assert server == RankIdentity(0, "a", "cpu", 1, "0 1")
    assert client == RankIdentity(1, "b", "cuda:0", 1, "1")


def test_pinning_needs_a_core_for_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, c: asked.append(c), raising=False)
    pin_core(1, 2)
    pin_core(0, 3)
    pin_core(0, None)
    assert asked == [{5}] and describe_cores() == "2 5"


def made_result(config: Config) -> Result:
    """4 rounds of 2 clients, ending at 1, 2, 4 and 6 s."""
    return Result(
        path=Path("made.h5"),
        status="finished",
        config_yaml="",
        config=json.loads(config.model_dump_json()),
        provenance={},
        merges={
            "round": np.array([1, 2, 3, 4]),
            "version": np.array([1, 2, 3, 4]),
            "wall_s": np.array([1.0, 2.0, 4.0, 6.0]),
            "num_merged": np.array([2, 2, 2, 2]),
            "server_up_bytes": np.array([100, 200, 300, 400]),
            "server_down_bytes": np.array([10, 20, 50, 80]),
            "wall_rss_bytes": np.array([7, 9, 8, 8]),
        },
        evaluations={},
        updates={
            "version": np.array([1, 1, 2, 2, 3, 3, 4, 4]),
            "client": np.array([0, 1] * 4),
            "down_bytes": np.array([9, 9, 9, 9, 40, 20, 40, 20]) * 10**5,
            "up_bytes": np.array([9, 9, 9, 9, 10, 5, 10, 5]) * 10**5,
            "wall_overrun": np.array([0, 0, 0, 1, 0, 0, 0, 0]),
        },
        events={},
        transfers={},
        ranks={
            "rank": np.array([0, 1]),
            "host": np.array(["a", "a"]),
            "rss_bytes": np.array([5, 6]),
        },
        weights=np.zeros(0, np.float32),
        layout_json="",
    )


def made_traces() -> list[RankTrace]:
    """The server waits all the time but 0.4 s after round 2; the client trains 3 of the 4 s."""
    server = [("receive", 100.0, 102.0), ("receive", 102.4, 106.0)]
    client = [("receive", 100.0, 102.5), ("train", 102.5, 105.5), ("encode", 105.5, 106.5)]
    return [RankTrace(rank, "a", made_spans(rows)) for rank, rows in enumerate((server, client))]


def made_spans(rows: list[tuple[str, float, float]]) -> np.ndarray:
    return np.array([(CODES[name], -1, -1, begin, end) for name, begin, end in rows], SPAN)


def measured(*words: str) -> Measured:
    return measure(made_result(load_config("digits", words)), made_traces(), 2)


def test_a_measurement_begins_after_the_warm_up() -> None:
    virtual = measured("clients.count=2", "clients.shares=[1.0, 0.5]")
    assert (virtual.num_updates, virtual.seconds, virtual.num_rounds) == (4, 4.0, 2)
    assert virtual.rounds_per_s == 1.0
    assert virtual.split[1]["compute"] == pytest.approx(3.0)
    assert virtual.split[1]["serialise"] == pytest.approx(0.5)  # the rest is after the last merge
    assert (virtual.rss_bytes, virtual.server_peak_bytes) == ({0: 5, 1: 6}, 9)
    assert virtual.overrun_frac == 0.125


def test_demands_of_a_client_round_on_the_virtual_clock() -> None:
    demand = measured("clients.count=2", "clients.shares=[1.0, 0.5]").demand
    assert demand.core_s == pytest.approx(3.5 / 4)  # all but 0.5 s of waiting
    assert demand.train_s == pytest.approx(3.0 / 4)
    assert demand.service_s == pytest.approx(0.4 / 4)
    assert (demand.down_bytes, demand.up_bytes) == (3e6, 0.75e6)
    assert (demand.server_up_bytes, demand.server_down_bytes) == (50.0, 15.0)
    assert (demand.own_up_s, demand.delay_s, demand.round_s) == (0.0, 0.0, 0.0)


def test_demands_and_links_on_the_wall_clock_are_scaled() -> None:
    words = (*WALL, "links.rank_up_bytes_per_s=1e6", "links.latency_s=0.1")
    run = measured(*words)
    # up 1 MB at 5 MB/s and 0.5 MB at 2.5 MB/s, and the latency, at half speed of time
    assert run.demand.own_up_s == pytest.approx(0.5 * (0.2 + 0.1))
    assert run.demand.own_down_s == pytest.approx(0.5 * (0.2 + 0.1))
    assert run.demand.delay_s == pytest.approx(0.25)
    assert run.demand.round_s == pytest.approx(0.5)  # merge and slack, 0.5 s each
    system = make_system(run)
    assert (system.rates.rank_up, system.rates.rank_down) == (2e6, math.inf)
    assert system.rates.server_down == 100e6
    assert system.is_placed and system.is_synchronous and system.num_cores is None


def test_a_run_that_has_lost_a_rank_is_refused() -> None:
    result = replace(made_result(load_config("digits")), provenance={"num_ranks": "3"})
    with pytest.raises(ValueError, match=r"lost ranks must be none .got \[2\]"):
        measure(result, made_traces(), 2)


def test_a_run_without_merges_after_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rounds must be more than the 4 warm-up rounds .got 4"):
        measure(made_result(load_config("digits")), made_traces(), 4)


def test_a_model_is_given_the_clients_that_take_part_at_a_time() -> None:
    assert measured().num_clients == 10
    assert measured("clients.sampled=4").num_clients == 4


def test_spans_that_any_rank_dropped_are_counted() -> None:
    own, other = Tracer(enabled=True, max_spans=1), Tracer(enabled=True)
    for _ in range(3):
        own.add("merge", 1.0, 2.0)
    clocks = RankClocks()
    clocks.traces[1] = other
    clocks.measure(1, lambda rank: (0.0, 1.0, 2.0))
    other.num_dropped = 4
    assert [t.num_dropped for t in clocks.aligned(own, {1: "b"})] == [2, 4]
    traces = [replace(t, num_dropped=n) for t, n in zip(made_traces(), (2, 4), strict=True)]
    assert measure(made_result(load_config("digits")), traces, 2).num_dropped == 6


def test_ratios_are_averaged_by_their_logarithms() -> None:
    summary = ratio_summary([1.0, 4.0])
    assert summary.mean == pytest.approx(2.0)
    assert summary.bootstrap == pytest.approx((1.0, 4.0))
    assert summary.student is not None and summary.student[0] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strong", "--repeats", "0"], "--repeats must be a whole number from 1 on (got 0)"),
        (["strong", "--sweep", "density"], "unknown option '--sweep'"),
        (["sweep", "digits"], "missing: --sweep, --values"),
        (
            ["sweep", "--sweep", "densty", "--values", "1"],
            "--sweep must be one of clients-per-rank, density, bandwidth (got densty); "
            "did you mean 'density'?",
        ),
        (["strong", "--ranks", "2,x"], "--ranks must be numbers with commas between them"),
        (["strong", "--ranks", "2,,3"], "--ranks must be numbers with commas between them"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", *words]) == 2
    assert message in capsys.readouterr().err
