"""Agreement of two clocks on hand-made results: 2 clients, 3 rounds, literal numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_results import write_result
from matplotlib.figure import Figure
from matplotlib.image import imread

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.experiments.agreement import _plot_staleness as plot_staleness
from fedgmr_hpc.experiments.agreement import agree, compare, plot_agreement, render_agreement
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.rows import EvaluationRow, MergeRow, UpdateRow
from fedgmr_hpc.storage.schema import columns_of
from fedgmr_hpc.storage.writer import ResultWriter

CONFIG = {"seed": 0, "time_scale": 1.0, "faults": [], "links": {"compute_s": 0.5, "trace": None}}
# Clients 0, 1 arrive in each of the rounds that end at 10, 20 and 30 s.
ARRIVED_S = (4.0, 8.0, 14.0, 18.0, 24.0, 28.0)


def make(clock: str = "virtual", seed: int = 0, **updates: Any) -> Result:
    """A finished run; `updates` replaces columns of the table of updates."""
    columns = {
        "now_s": ARRIVED_S,
        "client": (0, 1, 0, 1, 0, 1),
        "base_version": (0, 0, 1, 1, 2, 2),
        "version": (1, 1, 2, 2, 3, 3),
        "density": (0.5, 1.0, 0.5, 1.0, 0.5, 1.0),
        "down_bytes": (60, 110, 50, 100, 50, 100),
        "up_bytes": (50, 100, 50, 100, 50, 100),
        "wall_overrun": (0, 0, 0, 0, 0, 0),
    }
    return Result(
        path=Path(f"{clock}{seed}.h5"),
        status="finished",
        config_yaml="",
        config={**CONFIG, "clock": clock, "seed": seed},
        provenance={},
        merges={
            "version": np.array([1, 2, 3]),
            "round": np.array([1, 2, 3]),
            "now_s": np.array([10.0, 20.0, 30.0]),
        },
        evaluations={"version": np.arange(4), "test_accuracy": np.array([0.1, 0.6, 0.7, 0.8])},
        updates={name: np.array(values) for name, values in (columns | updates).items()},
        events={},
        transfers={},
        ranks={},
        weights=np.zeros(0, np.float32),
        layout_json="{}",
    )


def with_table(run: Result, table: str, **columns: Any) -> Result:
    arrays = {name: np.array(values) for name, values in columns.items()}
    return replace(run, **{table: getattr(run, table) | arrays})


def test_equal_runs_agree_in_everything() -> None:
    agreement = compare(make(), make("wall"))
    assert [check.value for check in agreement.checks] == pytest.approx([1, 1, 0, 0, 0, 0, 0])
    assert agreement.agrees and all(check.agrees for check in agreement.checks)
    assert (agreement.num_rounds, agreement.num_matched, agreement.num_unmatched) == (3, 6, 0)


def test_an_order_inside_a_round_shows_only_in_the_second_correlation() -> None:
    wall = make("wall", now_s=(4.0, 8.0, 14.0, 18.0, 26.0, 28.0), client=(0, 1, 0, 1, 1, 0))
    agreement = compare(make(), wall)
    assert agreement.order.value == pytest.approx(1 - 6 * 2 / (6 * 35))  # ranks 5 and 6 swapped
    assert agreement.round_order.value == pytest.approx((1 + 1 - 1) / 3)
    assert agreement.round_order.agrees is False and not agreement.agrees


def test_the_kth_update_of_a_client_meets_its_kth() -> None:
    # Client 1 delivers once less on the wall clock, and client 0's second comes after its own.
    columns = {name: values[:5] for name, values in make("wall").updates.items()}
    columns["now_s"], columns["client"] = [4.0, 8.0, 16.0, 18.0, 24.0], [0, 1, 1, 0, 0]
    agreement = compare(make(), make("wall", **columns))
    assert (agreement.num_matched, agreement.num_unmatched) == (5, 1)
    assert agreement.order.value == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert agreement.round_order.value == pytest.approx((1 - 1) / 2)  # the third has one arrival


def test_equal_times_share_a_rank_and_a_round_without_an_order_is_left_out() -> None:
    virtual = make(now_s=(8.0, 8.0, 14.0, 18.0, 24.0, 28.0))
    agreement = compare(virtual, make("wall"))
    assert agreement.order.value == pytest.approx(17 / np.sqrt(17 * 17.5))  # ranks 0.5, 0.5, 2, ...
    assert agreement.round_order.value == pytest.approx(1.0)


def test_an_update_merged_into_no_version_has_no_round_and_no_staleness() -> None:
    columns = {"version": (1, 1, 2, 0, 3, 3)}
    wall = make("wall", now_s=(4.0, 8.0, 18.0, 14.0, 24.0, 28.0), **columns)
    agreement = compare(make(**columns), wall)
    assert agreement.round_order.value == pytest.approx(
        1.0
    )  # round 2, where the order differs, has one update
    assert agreement.staleness.value == 0


def test_round_times_count_the_first_round_from_zero() -> None:
    wall = with_table(make("wall"), "merges", now_s=[11.0, 21.0, 30.0])
    agreement = compare(make(), wall)
    assert agreement.round_time.value == pytest.approx(0)
    assert agreement.round_time_p95.value == pytest.approx(0.1)  # 10, 0 and 10 %
    wall = with_table(make("wall"), "merges", now_s=[12.0, 24.0, 36.0])
    agreement = compare(make(), wall)
    assert agreement.round_time.value == pytest.approx(0.2)
    assert agreement.round_time.agrees is False


def test_several_merges_make_a_round_and_only_common_rounds_count() -> None:
    table = {"version": [1, 2, 3, 4, 5], "round": [0, 1, 1, 2, 2]}
    virtual = with_table(make(), "merges", now_s=[4.0, 8.0, 14.0, 18.0, 24.0], **table)
    wall = with_table(make("wall"), "merges", now_s=[10.0, 18.0, 30.0])  # rounds 1 to 3
    agreement = compare(virtual, wall)
    assert agreement.num_rounds == 2  # of 8 and 10 s, and of 10 and 8 s
    assert agreement.round_time.value == pytest.approx(0)
    assert agreement.round_time_p95.value == pytest.approx(0.2 + 0.05 * 0.95)  # of 0.25 and 0.2


def test_staleness_is_the_share_of_updates_that_would_have_to_move() -> None:
    agreement = compare(make(), make("wall", base_version=(0, 0, 1, 0, 2, 0)))
    assert agreement.staleness.value == pytest.approx(2 / 6)  # two of six left 1
    assert agreement.staleness.agrees is False


def test_bytes_are_means_at_equal_density() -> None:
    wall = make("wall", up_bytes=(50, 100, 50, 100, 50, 103))
    assert compare(make(), wall).transfer_bytes.value == pytest.approx(0.01)
    wall = make("wall", down_bytes=(52, 110, 50, 100, 50, 100))  # 152 instead of 160
    assert compare(make(), wall).transfer_bytes.value == pytest.approx(0.05)
    wall = make("wall", density=(0.4, 1.0, 0.4, 1.0, 0.4, 1.0), up_bytes=(9, 100, 9, 100, 9, 100))
    assert compare(make(), wall).transfer_bytes.value == 0


def test_what_cannot_be_compared_has_no_verdict() -> None:
    agreement = compare(make(), make("wall", density=[0.3] * 6))
    assert agreement.transfer_bytes.agrees is None and agreement.agrees
    text = render_agreement(agreement)
    assert line(text, "bytes")[-5:] == ["-", "<=", "1.00", "%", "-"]
    assert text.splitlines()[0].endswith(": agree, without bytes of a transfer, error")


def line(text: str, start: str) -> list[str]:
    return next(row.split() for row in text.splitlines() if row.startswith(start))


def with_accuracies(run: Result, *accuracies: float) -> Result:
    versions = np.arange(len(accuracies))
    return with_table(run, "evaluations", version=versions, test_accuracy=accuracies)


RISING = (0.1, 0.3, 0.5, 0.6, 0.7, 0.75)  # as in a run of 40 rounds of digits: std 17 points


@pytest.mark.parametrize(("off", "agrees"), [(0.0, True), (0.019, True), (-0.03, False)])
def test_accuracies_that_are_points_apart_disagree_however_they_rise(
    off: float, agrees: bool
) -> None:
    wall = with_accuracies(make("wall"), *(value + off for value in RISING))
    agreement = compare(with_accuracies(make(), *RISING), wall)
    assert agreement.accuracy.value == pytest.approx(off)
    assert (agreement.accuracy.bound, agreement.agrees) == (0.02, agrees)
    assert agreement.accuracy_std > 0.17
    assert compare(with_accuracies(make(), *RISING), wall, max_points=3.5).agrees


def test_other_seeds_are_shown_and_bound_nothing() -> None:
    other = with_accuracies(make(seed=1), 0.1, 0.2, 0.2, 0.2)
    wall = with_accuracies(make("wall"), 0.1, 0.6, 0.7, 0.89)
    agreement = compare(make(), wall, [make(), other])  # the virtual run again adds no seed
    assert (agreement.num_seeds, agreement.seed_range) == (2, pytest.approx(0.5))
    assert agreement.accuracy.value == pytest.approx(0.03) and not agreement.agrees
    assert "range over 2 seeds 50.00 points" in render_agreement(agreement)


def test_overruns_are_counted_and_refused_above_five_percent() -> None:
    columns = {name: np.tile(values, 10) for name, values in make().updates.items()}
    few = make("wall", **columns | {"wall_overrun": np.arange(60) < 3})
    assert compare(make(), few).overrun_frac == pytest.approx(0.05)
    assert "client-steps that overran: 5.00 %" in render_agreement(compare(make(), few))
    many = make("wall", **columns | {"wall_overrun": np.arange(60) < 6})
    with pytest.raises(ValueError, match="overran in 10.0 % .* at most 5 %: raise time_scale"):
        compare(make(), many)


def test_without_the_column_nothing_overran() -> None:
    wall = make("wall")
    del wall.updates["wall_overrun"]
    assert compare(make(), wall).overrun_frac == 0


def with_config(run: Result, **sections: Any) -> Result:
    return replace(run, config=run.config | sections)


def test_configurations_may_differ_only_where_the_clocks_do() -> None:
    free = {"time_scale": 0.1, "transport": "mpi", "results": {"path": "a"}, "progress": "quiet"}
    compare(make(), with_config(make("wall"), trace=True, faults=[{"kind": "cut"}], **free))
    links = {"compute_s": 0.6, "trace": "speeds.csv", "trace_xxh3": "abc"}
    wall = with_config(make("wall", seed=3), links=links, device="cpu")
    with pytest.raises(ValueError, match="in links.compute_s, links.trace_xxh3, seed; it may"):
        compare(make(), wall)


def test_noise_runs_may_differ_in_their_seed_alone() -> None:
    other = with_config(make(seed=1), method="fedavg")
    with pytest.raises(ValueError, match=r"virtual1.h5.* in method; it may differ.*faults, seed$"):
        compare(make(), make("wall"), [other])


@pytest.mark.parametrize(
    ("virtual", "wall", "message"),
    [
        (make("wall"), make(), "clock must be 'wall' .got 'virtual'"),
        (make("wall"), make("wall"), "clock must be 'virtual' .got 'wall'"),
        (
            make(),
            replace(make("wall"), status="running"),
            "status must be 'finished'",
        ),
        (
            replace(make(), status="failed: no"),
            make("wall"),
            "virtual0.h5: status must be",
        ),
        (
            with_table(make(), "merges", round=[1, 1, 1]),
            make("wall"),
            "2 or more .got 1",
        ),
        (
            make(),
            with_table(make("wall"), "merges", round=np.array([], int)),
            "2 or more .got 0",
        ),
    ],
)
def test_what_is_no_pair_is_refused(virtual: Result, wall: Result, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(virtual, wall)


def test_the_table_has_value_bound_and_verdict() -> None:
    wall = with_table(make("wall"), "merges", now_s=[12.0, 24.0, 36.0])
    text = render_agreement(compare(make(), wall))
    assert text.splitlines()[0].endswith("DISAGREE")
    assert line(text, "mean round")[-6:] == ["20.00", "%", "<=", "10.00", "%", "NO"]
    assert line(text, "arrival order, whole")[-4:] == ["1.0000", ">=", "0.9900", "yes"]
    assert line(text, "final test")[-6:] == ["0.00", "points", "<=", "2.00", "points", "yes"]
    assert "agree\n" in render_agreement(compare(make(), make("wall")))


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    plot_agreement(make(), make("wall", base_version=(0, 0, 1, 0, 2, 0)), tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape[:2] == (960, 3000)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


@pytest.mark.parametrize(("base_version", "last"), [((0, 0, 1, 1, 2, 2), 4), ((-5,) * 6, 8)])
def test_staleness_is_drawn_over_whole_numbers(base_version: tuple[int, ...], last: int) -> None:
    axes = Figure().subplots()
    plot_staleness(axes, make(), make("wall", base_version=base_version))
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low < tick < high] == list(range(1, last + 1))


def write(path: Path, clock: str) -> Path:
    config = f"{{seed: 0, clock: {clock}}}"
    evaluation = dict.fromkeys((column.name for column in columns_of(EvaluationRow)), 0)
    merge = dict.fromkeys((column.name for column in columns_of(MergeRow)), 0)
    clients = {c.name: np.zeros(1, c.dtype) for c in columns_of(MergeRow) if c.per_client}
    update = dict.fromkeys((column.name for column in columns_of(UpdateRow)), 1)
    sizes = {"num_clients": 1, "num_weights": 1, "num_ranks": 1}
    with ResultWriter(path, config_yaml=config, layout_json="", provenance={}, **sizes) as writer:
        for k in (1, 2):
            times = {"version": k, "round": k, "now_s": 10.0 * k}
            at = {"now_s": 10.0 * k - 1, "version": k, "base_version": k - 1, "wall_overrun": 0}
            writer.append(MergeRow(**merge | clients | times))
            writer.append(UpdateRow(**update | at))
            writer.append(EvaluationRow(**evaluation | times))
    return path


def test_agree_reads_two_files_and_writes_the_plot(tmp_path: Path) -> None:
    virtual, wall = (write(tmp_path / f"{clock}.h5", clock) for clock in ("virtual", "wall"))
    agrees, text = agree(virtual, wall, tmp_path / "new" / "out")
    assert agrees
    first, second = text.splitlines()[:2]
    assert first.endswith(": agree, without arrival order inside a round")  # one arrival in each
    assert second.startswith("2 rounds, 2 arrivals matched")
    assert text.endswith(f"plot: {tmp_path / 'new' / 'out' / 'agreement.png'}")
    assert (tmp_path / "new" / "out" / "agreement.png").is_file()
    with pytest.raises(ValueError, match="clock must be 'wall' .got 'virtual'"):
        agree(virtual, virtual, tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        agree(virtual, wall, tmp_path, [tmp_path / "none.h5"])


def test_a_disagreement_ends_in_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(write(tmp_path / f"{clock}.h5", clock)) for clock in ("virtual", "wall")]
    assert main(["agree", *files, "--out", str(tmp_path)]) == 0
    wall = read_result(files[1])
    wall.evaluations["test_accuracy"][:] += 0.03
    write_result(Path(files[1]), wall)
    assert main(["agree", *files, "--out", str(tmp_path)]) == 1
    assert line(capsys.readouterr().out.rpartition("DISAGREE")[2], "final test")[-1] == "NO"
    assert main(["agree", *files, "--out", str(tmp_path), "--points", "4"]) == 0
    assert main(["agree", *files, "--out", str(tmp_path), "--points", "0"]) == 2
