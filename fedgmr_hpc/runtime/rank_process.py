"""One rank of a run as a process, from start to finish: join, serve or work, tear down.

The same alone (server and clients in one process) and under mpirun, srun or torchrun. Rank 0 checks
the configuration and the data and hands the resolved configuration to the others, so that a mistake
is reported once and every rank ends with exit code 2. A failure while running ends every rank with
exit code 1. USR1, USR2 and TERM end every rank with exit code 75 once the run is checkpointed.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from fedgmr_hpc.config.choices.failures import naming_plugins
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.reporting.console import print_error, say
from fedgmr_hpc.runtime.roles import EXIT_BAD_INPUT, EXIT_FAILED, follow, guard, lead, run_alone
from fedgmr_hpc.storage.process import describe_cores, pin_core
from fedgmr_hpc.training.numeric_settings import settle
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.joining import hidden_devices_note, make_transport
from fedgmr_hpc.transport.ranks import (
    Launch,
    choose_device,
    detect_launch,
    make_identity,
    take_slice,
)
from fedgmr_hpc.transport.termination import STOP_REQUEST, interrupt_on_term

if TYPE_CHECKING:
    from fedgmr_hpc.runtime.callbacks.contract import Callback
    from fedgmr_hpc.runtime.preparation import Experiment
    from fedgmr_hpc.storage.reader import Result

Report = Callable[["Experiment", "Result"], int]  # tells a person how a run ended: the exit code


def launch_rank(
    config: Config | ValueError,
    resumes: bool,
    report: Report,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Run this rank of a training.

    Args:
        config: of the run, or what is wrong with it, which rank 0 reports.
        resumes: whether to continue the run of `results.path` from its checkpoint.
        report: called on rank 0 at the end of the run.
        callbacks: are told on rank 0 what happens.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 75 checkpointed.
    """
    STOP_REQUEST.install()
    return _run_rank(config, None, resumes, report, callbacks)


def replay_rank(path: str, sources: Sequence[str], overrides: Sequence[str], report: Report) -> int:
    """Repeat the run of a result file from its event log, as this rank.

    Args:
        path: the result file.
        sources: configurations laid over the recorded one.
        overrides: `key=value` laid over these.
        report: called on rank 0 at the end of the run.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input.
    """
    from fedgmr_hpc.runtime.replay import replayed_config
    from fedgmr_hpc.storage.reader import read_result

    interrupt_on_term()
    try:
        recorded = read_result(path)
        config = replayed_config(recorded, sources, overrides)
    except ValueError as error:
        return _run_rank(error, None, False, report)
    return _run_rank(config, recorded, False, report)


def _run_rank(
    config: Config | ValueError,
    recorded: Result | None,
    resumes: bool,
    report: Report,
    callbacks: Sequence[Callback] = (),
) -> int:
    settle()
    logging.raiseExceptions = False  # a terminal that has gone away is no reason to stop
    try:
        launch = detect_launch(os.environ)
        kind, device = "auto", "cpu"
        if isinstance(config, Config):
            kind, device = config.transport, config.device
            if config.run.pin_cores:
                pin_core(launch.local_rank, launch.local_size)
        take_slice(launch, os.environ)
        with STOP_REQUEST.suspended(), naming_plugins(rank=launch.rank):
            transport = make_transport(kind, launch, device)
        if transport is not None and isinstance(config, Config):
            transport.allow(config.run.timeout_s)
        chosen = choose_device(launch, torch.cuda.device_count(), device)
    except (ValueError, RunError) as error:
        print_error(str(error))
        return EXIT_BAD_INPUT if isinstance(error, ValueError) else EXIT_FAILED
    if hidden := hidden_devices_note(torch.cuda.device_count(), device):
        print_warning(launch, hidden)
    if transport is None:
        code = run_alone(config, recorded, report, resumes, callbacks)
    else:
        _print_identity(launch, transport, device)
        lead_here = partial(lead, config, recorded, transport, report, resumes, callbacks)
        follow_here = partial(follow, transport, chosen, launch.local_rank == 0)
        code = guard(transport, follow_here if transport.rank else lead_here)
    STOP_REQUEST.ignore()
    return code


def print_warning(launch: Launch, text: str) -> None:
    """Print a line on stderr, on one rank of each host."""
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
