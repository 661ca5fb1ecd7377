"""With pytest-xdist (`make test` has two workers) tests that start ranks take turns on one worker,
those that wait for Slurm on another, and unit tests fill what is left.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TAKING_TURNS = ("ranks", "slurm")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).parent.name
        if folder in TAKING_TURNS:
            item.add_marker(pytest.mark.xdist_group(folder))
