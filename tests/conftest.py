"""With pytest-xdist (`make test` has two workers) tests that start ranks take turns on one worker.
The other has those that learn, which no clock disturbs, those that wait for Slurm, and unit tests.
"""

from __future__ import annotations

import pytest

SHARED = ("tests/ranks/test_learning.py", "tests/ranks/", "tests/slurm/")  # the first that fits


@pytest.hookimpl(optionalhook=True)  # pytest-xdist is not needed for anything else
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Hands a worker all of what `SHARED` names, else a module at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return next((part for part in SHARED if module.startswith(part)), module)

    return Scheduling(config, log)
