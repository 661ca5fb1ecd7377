"""Find the folders that are installed with the package: configurations and job scripts.

A wheel holds them inside the package, `fedgmr_hpc/configs` and `fedgmr_hpc/slurm`; in a checkout,
or an editable installation of one, they lie beside it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def configs_dir() -> Path:
    """Return the folder of the shipped runs, methods, wrappers, studies and sites."""
    return _find("configs")


def scripts_dir() -> Path:
    """Return the folder of the job scripts for Slurm.

    Raises:
        ValueError: The installation has none.
    """
    folder = _find("slurm")
    if not (folder / "common.sh").is_file():
        raise ValueError(f"job scripts must be at {folder} (install the wheel, or a checkout)")
    return folder


def _find(name: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
