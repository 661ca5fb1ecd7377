"""Read the facts of a computing site from a YAML file, and turn them into variables for its jobs.

    eval "$(python -m fedgmr_hpc site NAME)"     then: sbatch slurm/femnist.sh

The lines it prints set the options that sbatch itself reads from the environment (partition,
account, ...) and the FEDGMR_* variables that slurm/common.sh reads. What a site's file leaves out
stays as the environment has it, so a variable set by hand does instead of a file.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fedgmr_hpc.config.choices.section import Count, Section
from fedgmr_hpc.config.messages import must_be, unknown_name
from fedgmr_hpc.config.validation import text_like, validate
from fedgmr_hpc.config.yaml_file import configs_dir, read_mapping

Name = Annotated[str, text_like(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a shell variable")]
Limit = Annotated[int, Field(ge=0, strict=True)]
Memory = Annotated[
    str,
    text_like(
        r"[0-9]+[KMGT]?",
        'memory as Slurm writes it, such as 16G or 500M; a bare number in quotes, such as "0"',
    ),
]
Mpi = Annotated[
    str,
    text_like(
        r"[a-z0-9_]+", "auto, mpirun, torch, torchrun, or a plugin that `srun --mpi=list` names"
    ),
]
Plugin = Annotated[str, text_like(r"\S+", "a module or a file's path, without spaces")]


def _check_variable(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("text or a whole number; true, false and 1.10 go in quotes")
    return value


VARIABLES = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "time_limit": "SBATCH_TIMELIMIT",
    "gpus_per_node": "SBATCH_GPUS_PER_NODE",
    "mem": "SBATCH_MEM_PER_NODE",
    "modules": "FEDGMR_MODULES",
    "venv": "FEDGMR_VENV",
    "mpi": "FEDGMR_MPI",
    "master_addr": "FEDGMR_MASTER_ADDR",
    "data": "FEDGMR_DATA",
    "scratch": "FEDGMR_SCRATCH",
    "results": "FEDGMR_RESULTS",
    "max_requeues": "FEDGMR_MAX_REQUEUES",
    "plugins": "FEDGMR_PLUGINS",
}
PATHS = ("venv", "data", "scratch", "results")


class Site(Section):
    """One site; configs/sites/example.yaml explains the keys. None and () say nothing."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_limit: str | None = None
    """Slurm's words for a time, such as 12:00:00 or 1-00:00:00."""
    gpus_per_node: Count | None = None
    mem: Memory | None = None
    """Slurm's words for the memory of a node, such as 16G; 0 is all of it."""
    modules: tuple[str, ...] = ()
    venv: str | None = None
    mpi: Mpi | None = None
    """`auto`, `mpirun`, `torch`, or a plugin that `srun --mpi=list` names."""
    master_addr: str | None = None
    data: str | None = None
    scratch: str | None = None
    results: str | None = None
    max_requeues: Limit | None = None
    plugins: tuple[Plugin, ...] = ()
    """Plug-ins for every run here: modules, and absolute paths of files."""
    env: dict[Name, Annotated[str | int, BeforeValidator(_check_variable)]] = {}


def site_names() -> list[str]:
    """Return the names of the sites in configs/sites."""
    return sorted(path.stem for path in (configs_dir() / "sites").glob("*.yaml"))


def load_site(source: str | Path) -> Site:
    """Return a site by its name or its file.

    Raises:
        ValueError: no such site, or wrong keys or values, one line for each.
    """
    path = _find(source)
    return validate(Site, read_mapping(path), path)


def render_exports(site: Site, environ: Mapping[str, str] = os.environ) -> str:
    """Return shell lines `export NAME=value`, quoted, in the order of the keys; "" for an empty
    site.

    Paths that do not exist are named on stderr; they are no error, for the job may run elsewhere.

    Args:
        site: its paths may begin with ~ and hold $NAME.
        environ: where $NAME and ~ are looked up.

    Raises:
        ValueError: a path holds a variable that `environ` lacks.
    """
    values = job_values(site, environ)
    for key in ("venv", "data", "scratch"):  # jobs make `results`
        path = values.get(VARIABLES[key])
        if path and not Path(path).exists():
            print(f"site: {key}: {path} does not exist on this machine", file=sys.stderr)
    return "\n".join(f"export {name}={shlex.quote(text)}" for name, text in values.items())


def job_values(
    site: Site, environ: Mapping[str, str] = os.environ, prefix: str = ""
) -> dict[str, str]:
    """Return the variables of a job by name.

    Args:
        prefix: of the variables that stand for keys, return only those that begin with it.
    """
    values = {name: _as_text(site, key, environ) for key, name in VARIABLES.items()}
    own = {name: text for name, text in values.items() if text and name.startswith(prefix)}
    return own | {name: str(value) for name, value in site.env.items()}


def _find(source: str | Path) -> Path:
    named = configs_dir() / "sites" / f"{source}.yaml"
    for path in (Path(source), named):
        if path.is_file():
            return path
    raise ValueError(unknown_name("site", source, site_names(), or_else="a file"))


def _as_text(site: Site, key: str, environ: Mapping[str, str]) -> str:
    value = getattr(site, key)
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(value)
    return _expand(key, value, environ) if key in PATHS else str(value)


def _expand(key: str, path: str, environ: Mapping[str, str]) -> str:
    """`path` with ~ and $NAME filled in."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name not in environ:
            need = "a path whose variables are set"
            raise ValueError(must_be(key, need, path, because=f"${name} is not set here"))
        return environ[name]

    whole = re.sub(r"^~(?=/|$)", "${HOME}", path)
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", fill, whole)
