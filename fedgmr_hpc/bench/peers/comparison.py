"""The table of `bench peers`: seconds a round of every contender, and whether all do the same work.

All are started, warm up, and train one round each in turn. A ratio is the median over these turns,
each of which has both rounds within seconds. That the work is the same is checked by runs of one
round: the same tensors, as many samples, and weights that agree within rounding.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.bench.case import Benchmark, Row
from fedgmr_hpc.bench.peers import contenders as who
from fedgmr_hpc.bench.peers.contenders import WARM_UP, Contender, Spent, Started
from fedgmr_hpc.bench.peers.environment import VERSIONS, prepare
from fedgmr_hpc.bench.peers.ours import make_case, make_work
from fedgmr_hpc.bench.peers.work import Arrays, Work
from fedgmr_hpc.reporting.console import say

ROUNDING = 1e-3  # of the norm of what a round changes; other orders of adding make 2e-4
IDLE_CORES = 0.1  # what a contender may use while others train
BUSY = 1.2  # times the CPU seconds of the steps alone
# The most that a round here may take, as a share of a peer's.
BOUNDS = {
    who.ONE_PROCESS.name: {who.PFL_ONE: 0.95},
    who.THREE_RANKS.name: {who.PFL_TWO: 0.9, who.FLOWER: 0.6},
}


@dataclass(frozen=True)
class Trained:
    """What a contender has done.

    Attributes:
        spent: times of its rounds.
        weights: its tensors after the last round.
        samples: what it says that clients have trained on in all rounds.
    """

    spent: Spent
    weights: Arrays
    samples: int


def measure_peers(quick: bool, venv: Path) -> Benchmark:
    """Return a row for each contender.

    Args:
        quick: two turns without bounds, as a smoke test.
        venv: the environment of the peers.

    Raises:
        ValueError: it has not got them, and they cannot be installed.
    """
    python = prepare(venv)
    turns = 2 if quick else 9
    everyone = [who.STEPS, who.ONE_PROCESS, who.THREE_RANKS, *who.peers(python)]
    with tempfile.TemporaryDirectory(prefix="peers") as name:
        folder = Path(name)
        work = make_work(make_case(folder / "work.h5", 1))
        work.save(folder)
        once = train(everyone, folder, 1)
        often = train(everyone, folder, WARM_UP + turns)
    faults = {each: describe_fault(work, once, often, each) for each in once}
    spent = {name: trained.spent for name, trained in often.items()}
    rows = make_rows(everyone, spent, faults, {} if quick else BOUNDS)
    if warning := describe_others(rows[0]):
        say(warning)
    summary = {"versions": VERSIONS, "model_bytes": work.model_bytes, "turns": turns}
    return Benchmark(rows, summary)


def train(everyone: list[Contender], folder: Path, rounds: int) -> dict[str, Trained]:
    """Start all contenders, let each train a round in turn, and end them."""
    with ExitStack() as stack:
        started = [stack.enter_context(Started(each, folder, rounds)) for each in everyone]
        for _ in range(rounds):
            for each in started:
                each.step()
        return {each.contender.name: Trained(each.spent, *each.finish()) for each in started}


def describe_fault(
    work: Work, once: dict[str, Trained], often: dict[str, Trained], name: str
) -> str:
    """Say what makes a contender's work another than the rest's; "" where nothing does."""
    for trained in (once[name], often[name]):
        rounds = len(trained.spent.wall_s)
        if trained.samples != rounds * work.samples_a_round:
            return f"{trained.samples} samples in {rounds} rounds"
    if name == who.STEPS.name:  # which averages nothing
        return ""
    if (idle := often[name].spent.idle_cores) > IDLE_CORES:
        return f"{idle:.2g} cores at work while it waits"
    return describe_difference(work.weights, once[who.ONE_PROCESS.name].weights, once[name].weights)


def describe_difference(initial: Arrays, expected: Arrays, found: Arrays) -> str:
    """Say how the tensors of a round are others than expected; "" where they agree."""
    shapes = [{name: (w.shape, w.dtype) for name, w in each.items()} for each in (initial, found)]
    if shapes[0] != shapes[1]:
        return "another model"
    change = _norm({name: w - initial[name] for name, w in expected.items()})
    difference = _norm({name: w - expected[name] for name, w in found.items()})
    if change > 0 and difference <= ROUNDING * change:
        return ""
    return f"weights differ by {difference / max(change, 1e-30):.1g} of a round's change"


def _norm(tensors: Arrays) -> float:
    return float(np.sqrt(sum(np.square(w, dtype=np.float64).sum() for w in tensors.values())))


def describe_others(steps: Row) -> str:
    """Say that other work ran on the cores, which makes times rough; "" where none did.

    Args:
        steps: the row of the steps alone, which wait for nothing but a core.
    """
    if steps["s/round"] <= BUSY * steps["CPU s"]:
        return ""
    took = f"took {steps['s/round']:.3g} s for {steps['CPU s']:.3g} CPU s"
    return f"warning: the steps alone {took}: other work ran here, so trust CPU s more than ratios"


def make_rows(
    everyone: list[Contender],
    spent: dict[str, Spent],
    faults: dict[str, str],
    bounds: dict[str, dict[str, float]],
) -> list[Row]:
    """Return the table; the rounds that warm up are left out.

    Args:
        bounds: for each contender, the most that its time may be of others'.
    """
    wall_s = {name: times.wall_s[WARM_UP:] for name, times in spent.items()}
    rows = []
    for each in everyone:
        limits, is_ours = bounds.get(each.name, {}), each in (who.ONE_PROCESS, who.THREE_RANKS)
        pfl = who.PFL_ONE if each.processes == 1 else who.PFL_TWO
        ratios = {peer: ratio(wall_s[each.name], wall_s[peer]) for peer in wall_s}
        row: dict[str, Any] = {
            "contender": each.name,
            "processes": each.processes,
            "s/round": statistics.median(wall_s[each.name]),
            "CPU s": statistics.median(spent[each.name].cpu_s[WARM_UP:]),
            "of steps alone": ratios[who.STEPS.name],
            "of pfl": ratios[pfl] if is_ours else None,
            "of Flower": ratios[who.FLOWER] if is_ours else None,
            "at most": ", ".join(f"{bound} of {peer}" for peer, bound in limits.items()),
            "work": faults[each.name] or "the same",
            "within": not faults[each.name]
            and all(ratios[peer] <= bound for peer, bound in limits.items()),
        }
        rows.append(row)
    return rows


def ratio(times: list[float], others: list[float]) -> float:
    """Return how long rounds take against others', as the median over the turns."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))
