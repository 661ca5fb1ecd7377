"""The verb `scale`: how a configuration scales over ranks, and where its server saturates.

    scale strong|weak [CONFIG] --ranks 2,3,5,9 [--repeats N] [--warmup ROUNDS] [--out DIR]
                                                  [key=value ...]
    scale sweep [CONFIG] --ranks 3 --sweep clients-per-rank|density|bandwidth --values 1,2,4 ...
    scale report DIR                              the report again, from a study's folder

`strong` keeps the clients, `weak` the clients of a rank (those that CONFIG has with the fewest
ranks). `density` gives all clients one density, `bandwidth` multiplies all rates. Points run in
turn, all of them once before any a second time, with one thread a rank and, where cores suffice, a
core each: by mpirun, or inside a Slurm job by srun over its nodes. A signal (TERM, USR1, USR2) ends
the run under way with exit code 75; the same words with --out DIR leave out what has finished.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.scaling.analysis import analyse
from fedgmr_hpc.scaling.page import write_report
from fedgmr_hpc.scaling.runs import KINDS, Kind, Plan, check_plan, make_points, read_plan, run_plan
from fedgmr_hpc.storage.checkpoint import EXIT_CHECKPOINTED
from fedgmr_hpc.storage.process import num_cores

Number = TypeVar("Number", int, float)


def scale(
    kind: Kind,
    source: str | None,
    overrides: Sequence[str],
    ranks: Sequence[int],
    values: Sequence[float],
    repeats: int,
    warmup_rounds: int,
    out: Path,
) -> int:
    """Runs what a study lacks and prints its report; returns the exit code.

    Raises:
        ValueError: what is asked for is wrong.
        RunError: a run failed.
    """
    for key, number, least in (("--repeats", repeats, 1), ("--warmup", warmup_rounds, 1)):
        if number < least:
            raise ValueError(f"{key}: got {number}, allowed: at least {least}")
    points = make_points(kind, load_config(source, overrides), ranks, values)
    plan = Plan(kind, source, tuple(overrides), repeats, warmup_rounds, num_cores(), points)
    check_plan(plan, out)
    if not run_plan(plan, out):
        return EXIT_CHECKPOINTED
    print(report(out))
    return 0


def report(folder: Path) -> str:
    """Writes the report of a study's folder again; returns what to say on the terminal.

    Raises:
        ValueError: the folder holds no complete study.
    """
    return write_report(analyse(read_plan(folder), folder), folder)


def main(words: Sequence[str]) -> int:
    """Runs the verb.

    Raises:
        ValueError: what is asked for is wrong.
        RunError: a run failed.
    """
    parser = _make_parser()
    given = parser.parse_intermixed_args(words)
    if given.action == "report":
        print(report(Path(_only(given.words, "a study's folder"))))
        return 0
    sources = [word for word in given.words if "=" not in word]
    source = _only(sources, "one configuration") if sources else None
    if (given.action == "sweep") != (given.sweep is not None):
        raise ValueError(f"--sweep: got {given.sweep}, allowed with sweep: {', '.join(KINDS[2:])}")
    kind: Kind = given.sweep if given.action == "sweep" else given.action
    out = Path(given.out or f"results/scaling-{kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    overrides = [word for word in given.words if "=" in word]
    ranks = _numbers(int, "--ranks", given.ranks)
    values = _numbers(float, "--values", given.values)
    return scale(kind, source, overrides, ranks, values, given.repeats, given.warmup, out)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fedgmr_hpc scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("strong", "weak", "sweep", "report"))
    parser.add_argument("words", nargs="*", help="CONFIG and key=value overrides")
    parser.add_argument("--ranks", default="2,3", help="comma-separated, the server included")
    parser.add_argument("--sweep", choices=KINDS[2:], help="what a sweep varies")
    parser.add_argument("--values", default="", help="comma-separated values of a sweep")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every point")
    parser.add_argument("--warmup", type=int, default=3, help="rounds left out of all rates")
    parser.add_argument("--out", help="folder for runs and report, new or of the same study")
    return parser


def _only(words: Sequence[str], what: str) -> str:
    if len(words) != 1:
        raise ValueError(f"got {' '.join(words) or 'nothing'}, need {what}")
    return words[0]


def _numbers(read: Callable[[str], Number], key: str, text: str) -> list[Number]:
    try:
        return [read(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{key}: got {text}, allowed: numbers with commas between") from None
