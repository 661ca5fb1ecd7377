"""Runs from a Python program, with server and clients in its own process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedgmr_hpc.config.files import Source, load_config, make_config
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.overrides import Overrides
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.reporting.console import say
from fedgmr_hpc.results.run_result import RunResult, read_result
from fedgmr_hpc.runtime.callbacks.contract import Callback
from fedgmr_hpc.runtime.preparation import prepare_experiment
from fedgmr_hpc.runtime.roles import check_device, serve_alone
from fedgmr_hpc.training.numeric_settings import settled
from fedgmr_hpc.transport.contract import make_inproc
from fedgmr_hpc.transport.termination import StopRequest


def run(
    config: Config | Source | Sequence[Source],
    overrides: Overrides = (),
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    **keys: Any,
) -> RunResult:
    """Run a training in this process: the server here, the clients in a thread.

    Args:
        config: from `load_config` or `make_config`; or what `load_config` takes, with `overrides`
            and `keys`.
        callbacks: are told what happens, in this order, and can stop the run.
        resume: go on with the run of `results.path`: from its checkpoint, from the beginning where
            there is none, and not at all where it has finished.

    Returns:
        What the result file holds. A run that a callback has stopped is checkpointed.

    Raises:
        ValueError: an argument, the data or the results path is wrong.
        RunError: the run failed, or a callback; says where.
        KeyboardInterrupt: Ctrl-C, once the run is checkpointed; says how to go on.

    Example:
        >>> run("digits", {"run.max_rounds": 3}, seed=1).status
        'finished'
    """
    _check(callbacks, resume)
    config = _resolved(config, overrides, keys)
    if resume and config.results.path is None:
        raise ValueError(must_be("results.path", "the result file", None, when="resuming"))
    stop = StopRequest()
    check_device(config)
    with settled():
        experiment = prepare_experiment(config, resumes=resume)
        for note in experiment.plan.notes if experiment.plan is not None else ():
            say(note)
        if experiment.plan is not None and experiment.plan.is_finished:
            return read_result(experiment.path)
        with stop.noting_ctrl_c():
            server_side, client_side = make_inproc(2)
            result = serve_alone(experiment, server_side, client_side, stop, callbacks)
    if stop.is_by_person and result.status != "finished":
        raise KeyboardInterrupt(
            f"{result.status}; the same run with results.path={result.path} and resume=True goes on"
        )
    return RunResult.of(result)


def _check(callbacks: Sequence[Callback], resume: bool) -> None:
    """Check what a configuration does not say.

    Raises:
        ValueError: it is of a wrong type.
    """
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise ValueError(must_be("callbacks", "a list of callbacks", type(callbacks).__name__))
    for each in callbacks:
        if not isinstance(each, Callback):
            found = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            raise ValueError(must_be("callbacks", "objects of classes of Callback", found=found))
    if not isinstance(resume, bool):
        raise ValueError(must_be("resume", "true or false", resume))


def _resolved(
    config: Config | Source | Sequence[Source], overrides: Overrides, keys: dict[str, Any]
) -> Config:
    if not isinstance(config, Config):
        return load_config(config, overrides, **keys)
    if overrides or keys:
        because = "a Config is complete: give them to load_config"
        raise ValueError(must_be("overrides", "absent when a Config is given", because=because))
    if config.plugin_digests:  # which may have been changed since
        return make_config(config.model_dump(mode="json"))
    return config
