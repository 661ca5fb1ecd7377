"""What the jobs of `study submit` do: a cell each, and the report. submitit pickles these.

A job is one process of submitit in the batch script itself, which runs its cell as `study run` does
(runner.run_cell) and starts the ranks with srun or mpirun, by slurm/common.sh. As tasks of
submitit's own srun the ranks would be inside a step already: a launcher would have to begin a
second step beside it on the same cores, and MPI would find the variables of the first.

Signals are those of the scripts in slurm/: Slurm sends USR1 to the batch script some time before it
ends the job, the ranks write a checkpoint, and the job is requeued to go on from it, at most
`max_requeues` times. At TERM, of a job that is cancelled or preempted, the ranks checkpoint too,
and it is Slurm that requeues or not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.overrides import as_override
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.running.runner import run_cell, start_here
from fedgmr_hpc.study.states import ENDED
from fedgmr_hpc.study.tuning import with_chosen_values
from fedgmr_hpc.transport.termination import handling

_RUN = 'source "$0/common.sh"; flag=$1; shift; run_ranks "$@"'
_REQUEUE = 'source "$0/common.sh"; finish "$CHECKPOINTED"'


@dataclass(frozen=True)
class CellTask:
    """One cell; an open one takes the values that its trials have chosen by then.

    Args:
        cells_dir: the cells' files.
        scripts: the folder slurm/; None outside Slurm.
        visible: CUDA_VISIBLE_DEVICES outside Slurm, where submitit would hide all GPUs.
    """

    cell: Cell
    cells_dir: Path
    num_ranks: int
    scripts: Path | None
    visible: str | None = None

    def __call__(self) -> None:
        """Run the cell.

        Raises:
            RunError: It is not done; so the job has failed for Slurm, too.
            SystemExit: A signal ended it.
        """
        try:
            cell = with_chosen_values(self.cells_dir, self.cell)
        except ValueError as error:
            raise RunError(f"{self.cell.name}: {error}") from None
        try:
            replace(self, cell=cell)._run()
        finally:
            os.umask(0o077)  # for what submitit pickles of the outcome

    def _run(self) -> None:
        launcher = start_here
        if self.scripts:
            flag = self.cells_dir / f"{self.cell.name}.checkpointed"
            launcher = partial(start_in_job, self.scripts, flag, self._cache_word())
        else:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ.update({"CUDA_VISIBLE_DEVICES": self.visible} if self.visible else {})
        # slurm/common.sh sends USR2 to every Python of a job where mpirun has started the ranks
        with handling(signal.SIGUSR2, lambda number, frame: None):
            try:
                state = run_cell(self.cells_dir, self.cell, self.num_ranks, launcher)
            except KeyboardInterrupt as error:
                sys.exit(f"{self.cell.name}: {error or 'interrupted'}")
        if state.status == "interrupted" and self.scripts:
            sys.stdout.flush()
            os.execvp("bash", ["bash", "-c", _REQUEUE, str(self.scripts)])
        if state.status not in ENDED:
            raise RunError(f"{self.cell.name}: {state.status}: {state.error}")

    def _cache_word(self) -> tuple[str, ...]:
        """Return the override that puts the data's cache on the site's scratch, if it has one."""
        scratch = os.environ.get("FEDGMR_SCRATCH")
        data = self.cell.config.data
        if not scratch or data.cache != type(data).model_fields["cache"].default:
            return ()
        return (as_override("data.cache", f"{scratch}/fedgmr_hpc"),)


@dataclass(frozen=True)
class ReportTask:
    """The report of a study. `words`: what Python is given."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Write the report, with the Python that runs this."""
        subprocess.run([sys.executable, *self.words], check=True)


def start_in_job(
    scripts: Path, flag: Path, more: Sequence[str], num_ranks: int, words: list[str]
) -> list[str]:
    """Return the command for `python -m fedgmr_hpc.launch WORDS` on the ranks of a Slurm job.

    Args:
        scripts: the folder slurm/.
        flag: a file that a rank makes which has checkpointed (slurm/rank.sh).
        more: words that come last.
    """
    return ["bash", "-c", _RUN, str(scripts), str(flag), str(num_ranks), *words, *more]
