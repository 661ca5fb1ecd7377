"""What `study submit` asks of Slurm: an array of cells, their report, and the texts for sbatch.

submitit writes these texts; slurm/common.sh enters the site inside a job.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.sites import Site, job_values, load_site
from fedgmr_hpc.config.yaml_file import scripts_dir
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.folder import StudyFolder, at_least_1
from fedgmr_hpc.study.job_states import next_folder
from fedgmr_hpc.study.slurm.sbatch_text import make_sbatch_text

SIGNAL_S = 300  # from Slurm's warning to the end of a job's time
DEFAULT_MAX_PARALLEL = 32  # cells at a time in a cluster, where nobody says


@dataclass(frozen=True)
class Plan:
    """What is submitted, and with which facts.

    Args:
        name: of the study; its jobs are called after it.
        cells: the array's, in order.
        folder: of this submission, for submitit's files; not there yet.
        report: what Python is given to report.
        num_nodes: of each cell.
        max_parallel: cells at a time.
        scripts: the folder slurm/.
        variables: of a job's environment.
        after: ids of jobs that its cells wait for.
    """

    name: str
    cells: tuple[Cell, ...]
    cells_dir: Path
    folder: Path
    report: tuple[str, ...]
    num_ranks: int
    num_nodes: int
    max_parallel: int
    site: Site
    scripts: Path
    variables: Mapping[str, str]
    after: tuple[str, ...] = ()

    @property
    def report_folder(self) -> Path:
        """For submitit's files of the report job."""
        return self.folder / "report"

    @property
    def gpus_per_node(self) -> int | None:
        """As many of the site's as the client ranks of a node can use; None where none is used."""
        if not self.site.gpus_per_node or all(cell.config.device == "cpu" for cell in self.cells):
            return None
        return min(self.site.gpus_per_node, math.ceil(num_clients(self.num_ranks) / self.num_nodes))

    def array_settings(self) -> dict[str, Any]:
        """Return submitit's parameters for the cells' array."""
        asked = {"ntasks": self.num_ranks, "requeue": True, "signal": f"B:USR1@{SIGNAL_S}"}
        if self.after:
            asked["dependency"] = _afterany(self.after)
        return {
            **self._settings(self.name),
            "nodes": self.num_nodes,
            "ntasks_per_node": math.ceil(self.num_ranks / self.num_nodes),
            "cpus_per_task": 1,
            "gpus_per_node": self.gpus_per_node,
            "array_parallelism": self.max_parallel,
            "additional_parameters": asked,
        }

    def report_settings(self, after: Sequence[str]) -> dict[str, Any]:
        """Return submitit's parameters for the report, which waits for the jobs `after`."""
        asked = {"ntasks": 1, "dependency": _afterany(after)}
        return {**self._settings(f"{self.name}-report"), "additional_parameters": asked}

    def for_sbatch(self) -> dict[str, str]:
        """Return the site's options that sbatch reads from its environment."""
        return {key: text for key, text in self.variables.items() if key.startswith("SBATCH_")}

    def _settings(self, name: str) -> dict[str, Any]:
        exports = [f"export {key}={shlex.quote(text)}" for key, text in self.variables.items()]
        source = f"source {shlex.quote(str(self.scripts / 'common.sh'))}"
        keys = ("partition", "account", "qos", "constraint", "mem")
        return {
            "job_name": name,
            **{key: getattr(self.site, key) for key in keys},
            "time": self.site.time_limit,
            "wckey": None,
            "stderr_to_stdout": True,
            "use_srun": False,
            # USR1 must not end Python before it listens
            "setup": [*exports, source, "enter_site", "trap '' USR1"],
        }


def make_plan(
    folder: StudyFolder, cells: Sequence[Cell], arguments: argparse.Namespace, number: int = 0
) -> Plan:
    """Return the plan for `cells` as array `number` of several, with the command's options.

    Raises:
        ValueError: wrong options, or no job scripts.
    """
    site = load_site(arguments.site) if arguments.site else Site()
    wished = arguments.ranks
    num_ranks = at_least_1("--ranks", folder.study.ranks if wished is None else wished)
    nodes = nodes_for(site, num_ranks) if arguments.nodes is None else arguments.nodes
    max_parallel = folder.max_parallel(num_ranks, arguments.max_parallel)
    if not arguments.local and arguments.max_parallel is None:
        max_parallel = folder.study.max_parallel or DEFAULT_MAX_PARALLEL
    cells_dir = folder.cells_dir.absolute()
    return Plan(
        name=folder.report_dir.name,
        cells=tuple(cells),
        cells_dir=cells_dir,
        folder=next_folder(cells_dir, number),
        report=tuple(folder.command_arguments("report")),
        num_ranks=num_ranks,
        num_nodes=at_least_1("--nodes", nodes),
        max_parallel=max_parallel,
        site=site,
        scripts=scripts_dir(),
        variables={**_own_venv(site), **job_values(site, prefix="FEDGMR_")},
    )


def render_scripts(plans: Sequence[Plan], job: str = "JOB") -> list[str]:
    """Return the batch scripts of the arrays and of the report, with `job` for their ids."""
    ids = [job if len(plans) == 1 else f"{job}{number}" for number in range(1, len(plans) + 1)]
    texts = []
    for number, plan in enumerate(plans):
        plan = replace(plan, after=(*plan.after, *ids[:number]))
        count = len(plan.cells) if len(plan.cells) > 1 else None
        texts.append(make_sbatch_text(plan.folder, plan.array_settings(), count))
    report = make_sbatch_text(plans[-1].report_folder, plans[-1].report_settings(ids))
    return [*texts, report]


def _afterany(jobs: Sequence[str]) -> str:
    return ":".join(["afterany", *jobs])


def nodes_for(site: Site, num_ranks: int) -> int:
    """Return nodes of a cell: enough for a GPU a client rank where the site has GPUs, else one."""
    return math.ceil(num_clients(num_ranks) / (site.gpus_per_node or num_ranks))


def num_clients(num_ranks: int) -> int:
    """Return ranks that train: all but the server, unless one is both."""
    return max(1, num_ranks - 1)


def _own_venv(site: Site) -> dict[str, str]:
    """Return this Python for the jobs, unless the site or the user names one."""
    is_named = site.venv is not None or "FEDGMR_VENV" in os.environ
    has_own = not is_named and Path(sys.prefix, "bin/python").exists()
    return {"FEDGMR_VENV": sys.prefix} if has_own else {}
