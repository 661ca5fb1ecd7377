"""The names of a run's files, which all lie beside its result and are made from its name.

    RUN.h5                  the result (storage/writer.py)
    RUN.h5.part             the result while it is made, before it takes its name
    RUN.h5.old              an unfinished result without a checkpoint, moved aside by `--resume`;
                            the next ones are RUN.h5.old-2 and so on
    RUN.ckpt                the newest checkpoint (storage/checkpoint.py)
    RUN.ckpt.old            the checkpoint before it
    RUN.ckpt.damaged        a newest checkpoint that failed its checksum
    RUN.ckpt.tmp-HOST-PID   a checkpoint that a process is writing
    RUN.owner-EPOCH         who writes all of these (storage/ownership.py)
    RUN.log                 the log (runtime/progress.py)
    RUN.trace.json          the timeline (runtime/timeline.py)
    RUN.out RUN.error       what a study's or scaling study's run prints, and what it failed with
    RUN.yaml                the configuration that a study gives it

RUN is the result's name without `.h5`; where that has another ending, its whole name.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

Name = str | os.PathLike[str]


def beside(results: Name, ending: str) -> Path:
    """Return the file of a run with this ending: run.h5 -> run.log."""
    results = Path(results)
    return results.with_name(_run_name(results) + ending)


def _run_name(results: Path) -> str:
    return results.stem if results.suffix == ".h5" else results.name


def part_path(results: Path) -> Path:
    """Return where a result is made before it takes its name."""
    return results.with_name(f"{results.name}.part")


def moved_aside_path(results: Path) -> Path:
    """Return where an unfinished result goes that a new start makes room for: a name that no
    earlier one has.
    """
    names = (f"{results.name}.old{'' if number == 1 else f'-{number}'}" for number in count(1))
    return next(path for name in names if not os.path.lexists(path := results.with_name(name)))


def checkpoint_path(results: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return beside(results, ".ckpt")


def older(checkpoint: Path) -> Path:
    """Return the checkpoint before the newest."""
    return checkpoint.with_name(f"{checkpoint.name}.old")


def damaged_path(checkpoint: Path) -> Path:
    """Return where a damaged newest checkpoint is kept."""
    return checkpoint.with_name(f"{checkpoint.name}.damaged")


def unfinished_checkpoint(checkpoint: Path) -> Path:
    """Return where this process writes a checkpoint before it takes its name."""
    return checkpoint.with_name(f"{checkpoint.name}.tmp-{os.uname().nodename}-{os.getpid()}")


def unfinished_checkpoints(checkpoint: Path) -> Iterator[Path]:
    """Yield the checkpoints that any process has begun and not finished."""
    return checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}.tmp-*")


def owner_prefix(results: Path) -> str:
    """Return how the names of a run's ownership records begin; the epoch follows."""
    return beside(results, ".owner-").name


def log_path(results: Name) -> Path:
    """Return the log of a run."""
    return beside(results, ".log")


def timeline_path(results: Name) -> Path:
    """Return the timeline of a run."""
    return beside(results, ".trace.json")


def output_path(results: Name) -> Path:
    """Return what the run of a study prints."""
    return beside(results, ".out")


def error_path(results: Name) -> Path:
    """Return what the run of a study failed with."""
    return beside(results, ".error")


def config_path(results: Name) -> Path:
    """Return the configuration that a study gives a run."""
    return beside(results, ".yaml")
