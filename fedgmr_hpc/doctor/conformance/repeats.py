"""Whether the coordinator does the same again, and goes on from a checkpoint as if never stopped.

What a plug-in keeps outside the state that the server saves for it shows here.
"""

from __future__ import annotations

from typing import Any

from fedgmr_hpc.doctor.conformance.check import demand
from fedgmr_hpc.doctor.conformance.small_run import SmallRun, trained
from fedgmr_hpc.fl.snapshot import coordinator_state, restore_coordinator
from fedgmr_hpc.storage.checkpoint import pack_tree, unpack_tree

MERGES = 8
Values = dict[str, Any]


def _start(values: Values) -> SmallRun:
    """Begin a run with a refresh every second round."""
    return SmallRun(values, run={"interval_rounds": 2})


def _walk(run: SmallRun, merges: int) -> list[tuple[bytes, list[float]]]:
    """Return the model and the densities after each of some merges."""
    found = []
    for _ in range(merges):
        run.score = (run.core.version % 3) / 10
        run.merge(trained)
        found.append((run.model().tobytes(), list(run.core.restoration.densities)))
    return found


def repeats(values: Values) -> str:
    """Check that a run can be repeated in the same process."""
    first, second = _walk(_start(values), MERGES), _walk(_start(values), MERGES)
    demand(
        first == second, "the same run again gives other bits: by chance, or by a state it hides"
    )
    return "the same run twice gives the same bits"


def goes_on(values: Values) -> str:
    """Check that a run goes on from a checkpoint."""
    run, half = _start(values), MERGES // 2
    _walk(run, half)
    try:
        packed = b"".join(bytes(part) for part in pack_tree(coordinator_state(run.core)))
    except TypeError as error:
        demand(False, f"its state cannot be saved: {error}")
    rest = _walk(run, half)
    again = _start(values)
    _walk(again, half)
    restore_coordinator(again.core, unpack_tree(packed))
    demand(_walk(again, half) == rest, "from a checkpoint a run goes on to other bits")
    return "from a checkpoint a run goes on to the same bits"
