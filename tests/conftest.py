"""With pytest-xdist (`make test` has two workers) tests that start ranks take turns on one worker,
those that wait for Slurm on the other, and then it goes through the unit tests.
"""

from __future__ import annotations

import pytest

TAKING_TURNS = ("tests/ranks/", "tests/slurm/")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist is not needed for anything else
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Hands a worker a whole folder that takes turns, else a module at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folders = [folder for folder in TAKING_TURNS if nodeid.startswith(folder)]
            return folders[0] if folders else nodeid.partition("::")[0]

    return Scheduling(config, log)
