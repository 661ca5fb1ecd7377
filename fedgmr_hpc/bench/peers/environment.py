"""The Python of the peers: a virtual environment of their own, beside the present torch.

pfl-research and Flower pin versions that this project does not have, and Ray is large. The present
packages are linked behind those of the environment, so torch is the same and not downloaded again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fedgmr_hpc.reporting.console import say

VERSIONS = {"pfl": "0.6.0", "flwr": "1.42.0"}
REQUIREMENTS = ("pfl[pytorch]==0.6.0", "flwr[simulation]==1.42.0")
DEFAULT = "~/.cache/fedgmr_hpc/peers"


def prepare(venv: Path) -> Path:
    """Return the Python of the peers, which are installed first where they are not there.

    Raises:
        ValueError: they cannot be installed; says how to.
    """
    if not is_installed(venv):
        say(f"installing {' and '.join(REQUIREMENTS)} into {venv}: some 400 MB, once")
        try:
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            link(venv)
            subprocess.run(install_command(venv), check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(_describe(venv, error)) from None
    link(venv)
    return python_of(venv)


def python_of(venv: Path) -> Path:
    """Return the interpreter of an environment."""
    return venv.absolute() / "bin" / "python"


def packages_of(venv: Path) -> Path:
    """Return the folder of the packages of an environment."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))


def is_installed(venv: Path) -> bool:
    """Return whether an environment has the peers, in the versions that are compared."""
    found = packages_of(venv)
    named = [found / f"{name}-{number}.dist-info" for name, number in VERSIONS.items()]
    return python_of(venv).exists() and all(path.is_dir() for path in named)


def link(venv: Path) -> None:
    """Put the present packages and this one behind those of the environment."""
    torch, own = find_spec("torch"), Path(__file__).resolve().parents[3]
    assert torch is not None and torch.origin is not None
    paths = f"{Path(torch.origin).parents[1]}\n{own}\n"
    (packages_of(venv) / "present.pth").write_text(paths)


def install_command(venv: Path) -> list[str]:
    """Return pip's words; the constraint keeps it from any other torch."""
    (venv / "constraints.txt").write_text(f"torch=={version('torch')}\n")
    patience = ["--retries", "1", "--timeout", "30"]
    constraint = ["--constraint", str(venv / "constraints.txt")]
    pip = [str(python_of(venv)), "-m", "pip", "install", "--quiet"]
    return [*pip, *patience, *constraint, *REQUIREMENTS]


def _describe(venv: Path, error: OSError | subprocess.CalledProcessError) -> str:
    """Say what has failed and what to do."""
    lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
    again = shlex.join([Path(sys.executable).name, "-m", "fedgmr_hpc", "bench", "peers"])
    return (
        f"the peers cannot be installed into {venv}: {lines[-1]}\n"
        f"run `{again} --venv DIR` once with a network, or name a --venv that has them"
    )
