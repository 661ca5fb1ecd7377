"""Plug-ins on several ranks: imported by every one, told once where they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from launchers import MPIRUN, TINY, run_job

from fedgmr_hpc.storage.reader import differing_columns, read_result

SHORT = (*TINY, "run.max_rounds=3", "run.interval_rounds=2")
TRANSPORT = '''
from fedgmr_hpc import register_transport
from fedgmr_hpc.transport.gloo import GlooTransport


class CountedGloo(GlooTransport):
    """Gloo under another name."""

    name = "counted_gloo"


@register_transport("counted_gloo")
def join(launch, device):
    return CountedGloo()
'''


def test_ranks_meet_over_a_transport_of_ones_own(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(TRANSPORT)
    words = (f"plugins={plugin}", f"results.path={tmp_path / 'own.h5'}", *SHORT)
    ended = run_job(3, *words, "transport=counted_gloo", launcher="torchrun")
    assert ended.code == 0, ended.output
    own = read_result(tmp_path / "own.h5")
    assert own.ranks["transport"].tolist() == ["counted_gloo"] * 3
    assert list(own.config["plugin_digests"]) == ["mine"]
    words = (f"plugins={plugin}", f"results.path={tmp_path / 'alone.h5'}", *SHORT)
    ended = run_job(1, *words, launcher="none")
    assert ended.code == 0, ended.output
    assert differing_columns(own, read_result(tmp_path / "alone.h5")) == []


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
def test_one_that_fails_is_told_once_and_ends_every_rank(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("import fedgmr_hpc\nfedgmr_hpc.register_agregation('x')\n")
    ended = run_job(3, *SHORT, f"plugins={plugin}")
    assert ended.code == 2
    (error,) = ended.errors
    assert f"plug-in {plugin}:2: AttributeError: " in error
