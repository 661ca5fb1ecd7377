"""The verbs `launch` and `replay`: a run, and the same run again."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from fedgmr_hpc.cli.arguments import (
    Verbs,
    add_configuration,
    add_plugin_option,
    add_verb,
    overrides_of,
    sources_of,
    try_load,
)

if TYPE_CHECKING:
    from fedgmr_hpc.runtime.preparation import Experiment
    from fedgmr_hpc.storage.reader import Result

LAUNCH = """\
Train: rank 0 is the server, every other rank hosts a group of clients.

Start it alone (server and clients in one process), or as many ranks by
mpirun, srun or torchrun. `python -m fedgmr_hpc.launch` is the same.

USR1, USR2 and TERM checkpoint the run and end every rank with exit code 75.
With --resume it then continues from the checkpoint of results.path, starts
from the beginning where there is none, and does nothing once it is finished.
"""
LAUNCH_EPILOG = """\
examples:
  %(prog)s digits run.max_rounds=100
  mpirun -n 9 %(prog)s femnist data.root=/data
  mpirun -n 9 %(prog)s --resume results.path=run.h5
"""
REPLAY = """\
Repeat a run from the event log in its result file: the same arrivals in the
same order give the same weights. The new result lies beside the old one, and
the output says where the two differ.

Only keys that describe the machine may be overridden, such as data.root.
--plugin says where a plug-in of the run lies now.
"""
REPLAY_EPILOG = """\
examples:
  %(prog)s results/run.h5
  mpirun -n 4 %(prog)s results/run.h5 data.root=/data
"""


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    parser = add_verb(
        verbs,
        "launch",
        summary="train: server on rank 0, clients on the others",
        description=LAUNCH,
        epilog=LAUNCH_EPILOG,
        call=launch,
    )
    add_configuration(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint of results.path"
    )
    parser.add_argument("--replay", metavar="RESULT", help="the same as the verb replay")
    parser = add_verb(
        verbs,
        "replay",
        summary="repeat a run from its event log",
        description=REPLAY,
        epilog=REPLAY_EPILOG,
        call=replay,
    )
    parser.add_argument("result", metavar="RESULT", help="the result file of a finished run")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides")
    add_plugin_option(parser)
    parser.set_defaults(config=[])


def launch(arguments: argparse.Namespace) -> int:
    """Run this rank.

    Raises:
        ValueError: a wrong configuration, where there is no other rank to tell.
    """
    if arguments.replay is not None:
        if arguments.resume:
            raise ValueError("--resume must be absent when --replay is given")
        return _replay(arguments.replay, arguments)
    from fedgmr_hpc.transport.ranks import detect_launch

    config = try_load(arguments)
    if isinstance(config, ValueError) and detect_launch(os.environ).size == 1:
        raise config
    from fedgmr_hpc.runtime.rank_process import launch_rank

    return launch_rank(config, arguments.resume, _report)


def replay(arguments: argparse.Namespace) -> int:
    """Repeat a run as this rank."""
    return _replay(arguments.result, arguments)


def _replay(path: str, arguments: argparse.Namespace) -> int:
    sources, overrides = sources_of(arguments), overrides_of(arguments)
    from fedgmr_hpc.runtime.rank_process import replay_rank

    return replay_rank(path, sources, overrides, _report)


def _report(experiment: Experiment, result: Result) -> int:
    """Say how a run has ended; return the exit code."""
    from fedgmr_hpc.reporting.console import say
    from fedgmr_hpc.results.summary import render_summary
    from fedgmr_hpc.runtime.replay import check_versions
    from fedgmr_hpc.storage.checkpoint import EXIT_CHECKPOINTED

    if experiment.recorded is not None:
        say(check_versions(experiment.recorded, result))
    say(render_summary(result))
    if result.status == "finished":
        return 0
    say("checkpointed before its end; the same command with --resume continues it")
    return EXIT_CHECKPOINTED
