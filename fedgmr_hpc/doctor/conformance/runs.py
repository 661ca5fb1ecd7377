"""Whether short runs give the same bytes on 1 and 4 ranks, after a resume, and in a replay.

The ranks are threads of this process, which exchange the same frames as processes do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import ModelMisfit
from fedgmr_hpc.doctor.conformance.check import Check, NotPromised, demand, look
from fedgmr_hpc.runtime.callbacks.contract import Callback, RoundEnd, RunHandle
from fedgmr_hpc.runtime.experiment import serve
from fedgmr_hpc.runtime.preparation import prepare_experiment
from fedgmr_hpc.runtime.replay import check_versions
from fedgmr_hpc.runtime.roles import work
from fedgmr_hpc.storage.reader import Result, differing_columns
from fedgmr_hpc.training.numeric_settings import settled
from fedgmr_hpc.transport.contract import make_inproc
from fedgmr_hpc.transport.termination import StopRequest

ROUNDS, STOP_ROUND = 6, 3
Values = dict[str, Any]
SMALL: Values = {
    "clients": {"count": 5},
    "run": {"max_rounds": ROUNDS, "interval_rounds": 2},
    "restoration": {"patience": 1},
    "train": {"steps": 2},
    "progress": "quiet",
}


class _Stop(Callback):
    """Stops a run in the middle."""

    def on_round(self, run: RunHandle, end: RoundEnd) -> None:
        """Stop at the round."""
        if end.round >= STOP_ROUND:
            run.stop()


class ShortRuns:
    """Runs of one configuration, each into a file of its own.

    Args:
        unchosen: the key of the model or data set that may not fit what is looked at, as nobody has
            chosen it; "" for none.
    """

    def __init__(
        self, sources: Sequence[Any], words: Sequence[str], folder: Path, unchosen: str = ""
    ) -> None:
        self.sources, self.words, self.folder = sources, words, folder
        self.whole: Result | None = None
        self.unchosen = unchosen

    def config(self, name: str) -> Config:
        """Return the configuration, with the results of this name."""
        path = self.folder / f"{name}.h5"
        return load_config([*self.sources], [*self.words, f"results.path={path}"])

    def first(self) -> Result:
        """Return the whole run on one client rank, which others are compared with."""
        if self.whole is None:
            self.whole = run_on(self.config("whole"), 1)
        return self.whole

    def finishes(self) -> str:
        """Check that it runs at all."""
        try:
            result = self.first()
        except ModelMisfit as misfit:
            if not self.unchosen:
                raise
            raise NotPromised(f"{misfit}; choose one that fits: {self.unchosen}=...") from None
        demand(result.status == "finished", f"the run is {result.status}")
        return f"{result.evaluations['round'][-1]} rounds; how well it learns is not judged"

    def ranks(self) -> str:
        """Check that the ranks do not count."""
        _demand_same(self.first(), run_on(self.config("ranks"), 4))
        return "1 and 4 client ranks give the same bytes"

    def resumes(self) -> str:
        """Check that a stopped run goes on as if it had not been."""
        config = self.config("resumed")
        stopped = run_on(config, 1, callbacks=[_Stop()])
        demand(stopped.status != "finished", "the run does not stop")
        _demand_same(self.first(), run_on(config, 4, resumes=True))
        return f"stopped after round {STOP_ROUND} and resumed, it gives the same bytes"

    def replays(self) -> str:
        """Check that a replay arrives at the same versions."""
        first = self.first()
        check_versions(first, run_on(self.config("replayed"), 4, recorded=first))
        return "a replay arrives at the same versions"


def _demand_same(one: Result, other: Result) -> None:
    different = differing_columns(one, other)
    demand(not different, f"other bytes in {', '.join(map(str, different[:4]))}")
    demand(one.weights.tobytes() == other.weights.tobytes(), "other final weights")


def run_on(
    config: Config,
    num_ranks: int,
    *,
    resumes: bool = False,
    recorded: Result | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Run in this process, the clients in as many threads as there are ranks besides the server's.

    Args:
        resumes: whether to go on with what is there.
        recorded: a run to replay.
    """
    experiment = prepare_experiment(config, recorded, resumes)
    server, *ends = make_inproc(num_ranks + 1)
    same = experiment.data.fingerprint, experiment.kernels
    common = (experiment.run_id, *same, recorded is not None)
    threads = [
        threading.Thread(target=work, args=(config, end, *common), daemon=True) for end in ends
    ]
    with settled():
        for thread in threads:
            thread.start()
        try:
            return serve(experiment, server, StopRequest(), callbacks)
        finally:
            server.abort(1)  # wakes the ranks if the server has failed
            for thread in threads:
                thread.join(timeout=60.0)


def check_runs(
    subject: str, sources: Sequence[Any], words: Sequence[str], unchosen: str = ""
) -> Iterator[Check]:
    """Yield what holds of short runs.

    Args:
        sources: of the configuration, over which `SMALL` is laid.
        words: overrides, which count more.
        unchosen: see `ShortRuns`.
    """
    with TemporaryDirectory(prefix="conformance-") as folder:
        runs = ShortRuns([*sources, SMALL], words, Path(folder), unchosen)
        tests: dict[str, Callable[[], str]] = {
            "run": runs.finishes,
            "ranks": runs.ranks,
            "resume": runs.resumes,
            "replay": runs.replays,
        }
        for name, test in tests.items():
            check = look(subject, name, test)
            yield check
            if name == "run" and check.state != "ok":
                return
