"""With pytest-xdist (`make test` has two workers) tests that start ranks take turns on one worker.
The other has those that learn, which no clock disturbs, those that wait for Slurm, and unit tests.

Tests that start ranks or jobs are run again once if they fail.
"""

from __future__ import annotations

import pytest

SHARED = ("tests/ranks/test_learning.py", "tests/ranks/", "tests/slurm/")  # the first that fits
LAUNCHING = ("tests/ranks/", "tests/slurm/")
DIFFERENT = r"assert \[.* == \[\]"  # a list of differences that is not empty


@pytest.hookimpl(optionalhook=True)  # pytest-xdist is not needed for anything else
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Hands a worker all of what `SHARED` names, else a module at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return next((part for part in SHARED if module.startswith(part)), module)

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs more CUDA devices than there are, before its fixtures are made."""
    if marker := item.get_closest_marker("gpu"):
        import torch

        found, needed = torch.cuda.device_count(), marker.args[0] if marker.args else 1
        if found < needed:
            pytest.skip(f"{found} CUDA devices, needs {needed}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lets tests that start real launchers fail once, where pytest-rerunfailures is installed.

    A launcher's ports, time slices and signals are the machine's, not this package's. The closing
    line counts every rerun. Results that differ (`assert differing_columns(a, b) == []`) are this
    package's, and never tried again.
    """
    if config.pluginmanager.hasplugin("rerunfailures"):
        for item in items:
            if item.nodeid.startswith(LAUNCHING):
                item.add_marker(pytest.mark.flaky(reruns=1, rerun_except=DIFFERENT))
