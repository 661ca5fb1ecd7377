"""A scaling study from start to report: its points are run, measured, analysed and shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.scaling.analysis import analyse
from fedgmr_hpc.scaling.page import write_report
from fedgmr_hpc.scaling.runs import Kind, Plan, check_plan, make_points, read_plan, run_plan
from fedgmr_hpc.storage.checkpoint import EXIT_CHECKPOINTED
from fedgmr_hpc.storage.process import num_cores


def scale(
    kind: Kind,
    sources: Sequence[str],
    overrides: Sequence[str],
    ranks: Sequence[int],
    values: Sequence[float],
    repeats: int,
    warmup_rounds: int,
    out: Path,
) -> int:
    """Run what a study lacks and print its report; return the exit code.

    Raises:
        ValueError: what is asked for is wrong.
        RunError: a run failed.
    """
    points = make_points(kind, load_config(sources, overrides), ranks, values)
    plan = Plan(kind, tuple(sources), tuple(overrides), repeats, warmup_rounds, num_cores(), points)
    check_plan(plan, out)
    if not run_plan(plan, out):
        return EXIT_CHECKPOINTED
    print(report(out))
    return 0


def report(folder: Path) -> str:
    """Write the report of a study's folder again; return what to say on the terminal.

    Raises:
        ValueError: the folder holds no complete study.
    """
    return write_report(analyse(read_plan(folder), folder), folder)
