"""The runs of a scaling study: its points, and their repeats in turn.

The same command completes a study that was interrupted. Its folder holds `scaling.json` (what was
asked for and where it ran), and for every point and repeat `runs/NAME.h5` with its timeline and
`NAME.out`, what the ranks printed. A result that cannot be read, has no timeline or is of another
configuration is moved to `NAME.h5.kept-1` and so on. `.lock` is held by the command at work there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fedgmr_hpc.config.choices.named_content import CONTENT_OF
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.identity import CELL, differences, flat
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.overrides import as_override, laid_over
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.results.series import lost_ranks
from fedgmr_hpc.scaling.lock import locked
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.storage.run_files import output_path, timeline_path
from fedgmr_hpc.study.states import make_room
from fedgmr_hpc.transport.launchers import rank_command
from fedgmr_hpc.transport.termination import (
    TerminationRequested,
    raising_on_signals,
    wait_for_exit,
)

Kind = Literal["strong", "weak", "clients-per-rank", "density", "bandwidth"]
KINDS: tuple[Kind, ...] = get_args(Kind)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
FORMAT = "fedgmr_hpc scaling 1"
# Where files lie; all other keys of the machine may change what a study measures.
PLACES = frozenset(
    ("data.root", "data.cache", "data.cache_owner", "plugins", "results.path", *CONTENT_OF)
)
# What is said of a certain number of clients: with another one it would mean something else.
OF_SO_MANY_CLIENTS = (
    "clients.sampled",
    "clients.availability",
    "aggregation.max_entries",
    "data.partition_file",
    "links.trace",
)
IDENTITY = re.compile(
    r"rank (\d+) of \d+: host (\S+), .*?device (\S+), threads (\d+),.*, cores ([\d ]+|any)$"
)


@dataclass(frozen=True)
class Point:
    """One configuration of a study; `value` is what varies: the ranks, or the sweep's value."""

    name: str
    num_ranks: int
    value: float
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A scaling study.

    Attributes:
        warmup_rounds: left out of all rates.
        num_cores: of the machine that the study was started on.
    """

    kind: Kind
    sources: tuple[str, ...]
    overrides: tuple[str, ...]
    repeats: int
    warmup_rounds: int
    num_cores: int
    points: tuple[Point, ...]


def make_points(
    kind: Kind, config: Config, ranks: Sequence[int], values: Sequence[float]
) -> tuple[Point, ...]:
    """Return the points of a study, smallest first.

    Args:
        ranks: Numbers of ranks of `strong` and `weak`; a sweep has one.
        values: Those of a sweep.

    Raises:
        ValueError: They do not fit the kind or the configuration.
    """
    _check_numbers(kind, ranks, values)
    if kind == "strong":
        return tuple(Point(f"{n:04d}-ranks", n, n, ()) for n in sorted(set(ranks)))
    if kind == "weak":
        return tuple(_weak_point(config, min(ranks), n) for n in sorted(set(ranks)))
    return tuple(_sweep_point(kind, config, ranks[0], v) for v in sorted(set(values)))


def _check_numbers(kind: Kind, ranks: Sequence[int], values: Sequence[float]) -> None:
    if not ranks or min(ranks) < 2:
        found = ",".join(map(str, ranks)) or "nothing"
        raise ValueError(must_be("--ranks", "2 or more, the server included", found=found))
    if kind in ("strong", "weak"):
        if values:
            raise ValueError(must_be("--values", "absent", when=f"scaling is {kind}"))
        return
    if len(set(ranks)) != 1 or not values or min(values) <= 0:
        need = "one number of ranks and one or more values above 0"
        found = f"{len(set(ranks))} and {len(values)} numbers"
        raise ValueError(
            must_be("--ranks and --values", need, when=f"--sweep is {kind}", found=found)
        )


def _weak_point(config: Config, fewest: int, num_ranks: int) -> Point:
    per_rank, rest = divmod(config.clients.count, fewest - 1)
    if rest:
        need, when = (
            f"a multiple of {fewest - 1}",
            f"weak scaling begins with {fewest - 1} client ranks",
        )
        raise ValueError(must_be("clients.count", need, config.clients.count, when=when))
    return Point(
        f"{num_ranks:04d}-ranks", num_ranks, num_ranks, _clients(config, per_rank, num_ranks)
    )


def _clients(config: Config, per_rank: int, num_ranks: int) -> tuple[str, ...]:
    """Return overrides for `per_rank` clients on every rank; lists of equal values are resized."""
    when = "the number of clients varies"
    values = flat(config.model_dump(mode="json"))
    if given := [key for key in OF_SO_MANY_CLIENTS if values[key] is not None]:
        raise ValueError("\n".join(must_be(key, "null", values[key], when=when) for key in given))
    count = per_rank * (num_ranks - 1)
    words = [as_override("clients.count", count)]
    for key in ("clients.shares", "clients.max_densities"):
        listed = values[key]
        if listed is not None and len(set(listed)) > 1:
            need, found = "null, or have equal values", f"{len(set(listed))} different values"
            raise ValueError(must_be(key, need, when=when, found=found))
        if listed is not None:
            words.append(as_override(key, [listed[0]] * count))
    return tuple(words)


def _sweep_point(kind: Kind, config: Config, num_ranks: int, value: float) -> Point:
    makers = {"clients-per-rank": _per_rank, "density": _density, "bandwidth": _bandwidth}
    return Point(f"{kind}-{value:g}", num_ranks, value, makers[kind](config, num_ranks, value))


def _per_rank(config: Config, num_ranks: int, value: float) -> tuple[str, ...]:
    if value != int(value):
        raise ValueError(must_be("--values", "whole numbers of clients", value))
    return _clients(config, int(value), num_ranks)


def _density(config: Config, num_ranks: int, value: float) -> tuple[str, ...]:
    """Return overrides for one fixed density of all clients, on links of the full rate."""
    if value > 1:
        raise ValueError(must_be("--values", "densities, more than 0 and at most 1", value))
    count = config.clients.count
    words = {"clients.shares": [1.0] * count, "clients.max_densities": [value] * count}
    return tuple(as_override(key, content) for key, content in words.items())


def _bandwidth(config: Config, num_ranks: int, value: float) -> tuple[str, ...]:
    """Return overrides for all rates of the links times `value`."""
    if config.clock != "wall":
        when, reason = "--sweep is bandwidth", "on the virtual clock bytes take no real time"
        raise ValueError(must_be("clock", "'wall'", config.clock, when=when, because=reason))
    rates = {k: v for k, v in config.links.model_dump().items() if k.endswith("bytes_per_s") and v}
    return tuple(as_override(f"links.{key}", value * rate) for key, rate in rates.items())


def run_path(folder: Path, point: Point, repeat: int) -> Path:
    """Return the path of a run's result."""
    return folder / "runs" / f"{point.name}-repeat{repeat}.h5"


def check_plan(plan: Plan, folder: Path) -> None:
    """Check everything that can be known before anything starts.

    Raises:
        ValueError: A point's configuration is wrong, too short, or has more ranks than the Slurm
            job around it; or the folder holds another study.
    """
    if (folder / "scaling.json").exists():
        kept = read_plan(folder)
        if replace(kept, num_cores=plan.num_cores) != plan:
            reason = "this one holds another scaling study"
            raise ValueError(must_be("--out", "a new folder", folder, because=reason))
    for point in plan.points:
        rank_command(point.num_ranks)
        config = load_config(plan.sources, plan.overrides, point.overrides)
        if config.run.max_rounds <= plan.warmup_rounds:
            need = f"more than the {plan.warmup_rounds} warm-up rounds"
            raise ValueError(must_be("run.max_rounds", need, config.run.max_rounds))


def run_plan(plan: Plan, folder: Path) -> bool:
    """Run what is missing: all points once, then once more, so that slow drifts of the machine
    meet all alike. Whether all are there: a signal ends the run under way, and the study.

    Raises:
        ValueError: Another command is at work in the folder.
        RunError: a run failed; says which, and what it said last. Or a signal came before any run
            could finish, which would be so the next time.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock:
        write_plan(plan, folder)
        return _run_missing(plan, folder, lock)


def _run_missing(plan: Plan, folder: Path, lock: int) -> bool:
    turns = [(repeat, point) for repeat in range(plan.repeats) for point in plan.points]
    num_new = 0
    try:
        with raising_on_signals():
            for repeat, point in turns:
                path = run_path(folder, point, repeat)
                words = _words(plan, point, path)
                if not _is_to_run(path, load_config(plan.sources, words)):
                    continue
                print(f"repeat {repeat + 1} of {plan.repeats}: {point.name}", flush=True)
                _run(plan, point, path, lock)
                num_new += 1
    except TerminationRequested as name:
        if not num_new:
            raise RunError(f"{name} came before any run had finished: give it more time") from None
        print(f"ended by {name}, new runs: {num_new}; the same words go on with --out {folder}")
        return False
    return True


def _is_to_run(path: Path, config: Config) -> bool:
    """Return whether a run of this configuration is missing or incomplete, its timeline and each of
    its ranks included; clear the way for it.

    Raises:
        RunError: A result that is to be kept cannot be moved aside.
    """
    fault = ""
    try:
        result = read_result(path)
        keys = differing_keys(result.config, config)
        if keys:
            fault = f"results {path}: of another configuration, in {', '.join(keys)}"
        elif result.status == "finished":
            lacks = [f"rank {rank}" for rank in lost_ranks(result)]
            lacks += [] if timeline_path(path).exists() else ["a timeline"]
            if not lacks:
                return False
            fault = f"results {path}: without {', '.join(lacks)}"
    except ValueError as error:
        fault = str(error).partition("\n")[0]
    try:
        kept = make_room(path, is_leftover=not fault)
    except OSError as error:
        raise RunError(f"{path} cannot be moved aside: {error.strerror}") from None
    if kept is not None:
        print(f"{fault}; moved to {kept.name}, it runs again")
    return True


def differing_keys(then: Config | Mapping[str, Any], now: Config) -> list[str]:
    """Return the keys in which runs differ that a study takes for the same."""
    return sorted(differences(then, now, (*CELL, "machine")).keys() - PLACES)


def _words(plan: Plan, point: Point, path: Path) -> list[str]:
    """Return the overrides of a run."""
    own = [*point.overrides, "trace=true", as_override("results.path", str(path)), "progress=quiet"]
    return laid_over(laid_over(["run.pin_cores=true"], plan.overrides), own)


def _run(plan: Plan, point: Point, path: Path, lock: int) -> None:
    named = [word for source in plan.sources for word in ("--config", source)]
    command = [*rank_command(point.num_ranks), sys.executable, "-m", "fedgmr_hpc.launch"]
    output = output_path(path)
    with output.open("wb") as file:
        code = wait_for_exit(
            subprocess.Popen(
                [*command, *named, *_words(plan, point, path)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict.fromkeys(THREADS, "1")},
                pass_fds=(lock,),
            )
        )
    if code:
        lines = [each for each in output.read_text(errors="replace").splitlines() if each.strip()]
        said = next(
            (each for each in lines if "error: " in each), lines[-1] if lines else "nothing"
        )
        raise RunError(f"{point.name} ended with exit code {code}: {said} ({output})")


@dataclass(frozen=True)
class RankIdentity:
    """What a rank said of itself when it started; `cores` it may use."""

    rank: int
    host: str
    device: str
    num_threads: int
    cores: str


def read_identities(output: Path) -> list[RankIdentity]:
    """Return what the ranks of a run printed of themselves, by rank."""
    found = [IDENTITY.match(line) for line in output.read_text(errors="replace").splitlines()]
    return sorted(
        (
            RankIdentity(int(m[1]), m[2], m[3], int(m[4]), m[5].strip())
            for m in found
            if m is not None
        ),
        key=lambda identity: identity.rank,
    )


def write_plan(plan: Plan, folder: Path) -> None:
    """Write a plan as `scaling.json`, whole or not at all."""
    content = {"format": FORMAT, **asdict(plan)}
    part = folder / "scaling.json.part"
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, folder / "scaling.json")


def read_plan(folder: Path) -> Plan:
    """Return the plan of a study's folder.

    Raises:
        ValueError: The folder has none, or a damaged one.
    """
    path = folder / "scaling.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        points = [
            Point(**{**each, "overrides": tuple(each["overrides"])})
            for each in content.pop("points")
        ]
        if "source" in content:  # written when there could only be one
            source = content.pop("source")
            content["sources"] = [source] if source else []
        content["sources"] = tuple(content["sources"])
        content["overrides"] = tuple(content["overrides"])
        return Plan(**content, points=tuple(points))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no scaling study ({type(error).__name__}: {error})") from None
