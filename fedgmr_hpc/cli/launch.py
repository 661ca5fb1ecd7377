"""One rank from start to finish: who am I, which configuration, serve or work, tear down.

    python -m fedgmr_hpc.launch [--config FILE | --replay RESULT] [--resume] [dotted.key=value ...]

The same under plain python (server and clients in one process), mpirun, srun and torchrun. Rank 0
alone reads and checks the configuration and the data, and hands the resolved configuration to the
others, so a mistake is reported once and every rank ends with exit code 2. A failure while running
ends every rank with exit code 1. USR1, USR2 and TERM end every rank with exit code 75 once the run
is checkpointed; `--resume` then goes on with the result file that `results.path` names, begins it
where there is no checkpoint yet, and does nothing where it is finished (resume.py).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

import torch

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.reporting.console import print_error, say
from fedgmr_hpc.results.summary import render_summary
from fedgmr_hpc.runtime.experiment import Experiment
from fedgmr_hpc.runtime.replay import check_versions, replayed_config
from fedgmr_hpc.runtime.roles import EXIT_BAD_INPUT, EXIT_FAILED, follow, guard, lead, run_alone
from fedgmr_hpc.storage.checkpoint import EXIT_CHECKPOINTED
from fedgmr_hpc.storage.process import describe_cores, pin_core
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.joining import hidden_devices_note, make_transport
from fedgmr_hpc.transport.ranks import (
    Launch,
    choose_device,
    detect_launch,
    make_identity,
    take_slice,
)
from fedgmr_hpc.transport.termination import STOP_REQUEST, interrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank; returns its exit code."""
    parser = argparse.ArgumentParser("python -m fedgmr_hpc.launch", description="Run one training.")
    about = "YAML file, or the name of one in configs/runs (default: digits); again: laid over it"
    parser.add_argument("--config", action="append", default=[], help=about)
    parser.add_argument("--replay", metavar="RESULT", help="do over the events of a result file")
    parser.add_argument("--resume", action="store_true", help="go on with results.path, if begun")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    arguments = parser.parse_intermixed_args(argv)
    torch.set_num_threads(1)
    if arguments.replay:
        signal.signal(signal.SIGTERM, interrupt)  # what schedulers send before they kill
    else:
        STOP_REQUEST.install()
    logging.raiseExceptions = False  # a terminal that has gone away is no reason to stop
    try:
        launch = detect_launch(os.environ)
        config, recorded = _try_load(arguments.config, arguments.overrides, arguments.replay)
        kind, device = "auto", "cpu"
        if isinstance(config, Config):
            kind, device = config.transport, config.device
            if config.run.pin_cores:
                pin_core(launch.local_rank, launch.local_size)
        take_slice(launch, os.environ)
        with STOP_REQUEST.suspended():
            transport = make_transport(kind, launch, device)
        chosen = choose_device(launch, torch.cuda.device_count(), device)
    except (ValueError, RunError) as error:
        print_error(str(error))
        return EXIT_BAD_INPUT if isinstance(error, ValueError) else EXIT_FAILED
    if hidden := hidden_devices_note(torch.cuda.device_count(), device):
        print_warning(launch, hidden)
    if arguments.resume and arguments.replay:
        config = ValueError("--resume: allowed without --replay (a replay has no checkpoints)")
    if transport is None:
        code = run_alone(config, recorded, _report, arguments.resume)
    else:
        _print_identity(launch, transport, device)
        lead_here = partial(lead, config, recorded, transport, _report, arguments.resume)
        follow_here = partial(follow, transport, chosen, launch.local_rank == 0)
        part = follow_here if transport.rank else lead_here
        code = guard(transport, part)
    STOP_REQUEST.ignore()
    return code


def _try_load(
    sources: Sequence[str], overrides: Sequence[str], replayed: str | None
) -> tuple[Config | ValueError, Result | None]:
    try:
        if replayed is None:
            return load_config(sources, overrides), None
        recorded = read_result(replayed)
        return replayed_config(recorded, sources, overrides), recorded
    except ValueError as error:
        return error, None


def print_warning(launch: Launch, text: str) -> None:
    """A line on stderr, of one rank of each host."""
    if launch.local_rank == 0:
        sys.stderr.write(f"fedgmr_hpc: warning: {socket.gethostname()}: {text}\n")
        sys.stderr.flush()


def _print_identity(launch: Launch, transport: Transport, device: str) -> None:
    identity = make_identity(
        launch,
        rank=transport.rank,
        size=transport.size,
        transport=transport.name,
        num_visible=torch.cuda.device_count(),
        threads=torch.get_num_threads(),
        requested=device,
    )
    say(f"{identity}, cores {describe_cores()}")


def _report(experiment: Experiment, result: Result) -> int:
    """Says how a run has ended; returns the exit code."""
    if experiment.recorded is not None:
        say(check_versions(experiment.recorded, result))
    say(render_summary(result))
    if result.status == "finished":
        return 0
    say("it is not at its end: the same words with --resume go on with it")
    return EXIT_CHECKPOINTED
