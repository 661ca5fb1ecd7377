"""A scaling study from start to report: its points are run, measured, analysed and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.reporting.tables import finite
from fedgmr_hpc.scaling.analysis import PointSummary, Scaling, analyse
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
    """Run what a study lacks; return the exit code: 0 complete, 75 ended by a signal.

    Raises:
        ValueError: what is asked for is wrong.
        RunError: a run failed.
    """
    points = make_points(kind, load_config(sources, overrides), ranks, values)
    plan = Plan(kind, tuple(sources), tuple(overrides), repeats, warmup_rounds, num_cores(), points)
    check_plan(plan, out)
    return 0 if run_plan(plan, out) else EXIT_CHECKPOINTED


def report(folder: Path, as_json: bool = False) -> str:
    """Write the report of a study's folder; return the tables as text, or a JSON document.

    Raises:
        ValueError: the folder holds no complete study.
    """
    scaling = analyse(read_plan(folder), folder)
    text = write_report(scaling, folder)
    return json.dumps(scaling_record(scaling), indent=1) if as_json else text


def scaling_record(scaling: Scaling) -> dict[str, Any]:
    """Return the measured points and the predicted limit of the server; None where there is no
    number.
    """
    limit = scaling.simulations[0].saturation
    return {
        "kind": scaling.plan.kind,
        "configurations": list(scaling.plan.sources),
        "overrides": list(scaling.plan.overrides),
        "repeats": scaling.plan.repeats,
        "points": [_point_record(point) for point in scaling.points],
        "amdahl_serial_frac": finite(scaling.amdahl_frac),
        "gustafson_serial_frac": finite(scaling.gustafson_frac),
        "saturation_workers": finite(limit.num_workers),
        "saturation_rounds_per_s": finite(limit.rounds_per_s),
        "saturated_by": limit.station,
    }


def _point_record(point: PointSummary) -> dict[str, Any]:
    return {
        "name": point.point.name,
        "ranks": point.point.num_ranks,
        "value": point.point.value,
        "client_rounds_per_s": finite(point.rounds_per_s.mean),
        "speedup": finite(point.speedup.mean),
        "efficiency": finite(point.efficiency.mean),
        "predicted_client_rounds_per_s": finite(point.predicted_per_s),
        "bound_by": point.bound_by,
    }
