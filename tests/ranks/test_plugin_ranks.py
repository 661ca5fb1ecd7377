"""Plug-ins on several ranks: imported by every one, told once where they fail; objectives of one's
own give the same bytes on any ranks and after SIGKILL.
"""

from __future__ import annotations

import time
from pathlib import Path

import killing
import pytest
from launchers import MPIRUN, ROOT, TINY, last_of_each, run_job

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

FAILING = """
import fedgmr_hpc


@fedgmr_hpc.register_aggregation("bad")
class Bad(fedgmr_hpc.MeanRule):
    def step(self, old, mean, part):
        x


@fedgmr_hpc.register_objective("bad")
class Worse(fedgmr_hpc.Objective):
    def begin(self, steps):
        x
"""

INERTIA = '''
from typing import ClassVar

import fedgmr_hpc
from fedgmr_hpc.training.objectives import LocalSteps, Objective


@fedgmr_hpc.register_objective("inertia")
class Inertia(Objective):
    """Clients remember which way they went at their last dispatch, and how often they trained."""

    keeps: ClassVar[tuple[str, ...]] = ("way",)
    share: float = 0.1

    def gradients(self, steps, gradients):
        if not steps.kept:
            return gradients
        pairs = zip(gradients, steps.split(steps.kept["way"]), strict=True)
        return [gradient + self.share * way for gradient, way in pairs]

    def end(self, steps: LocalSteps) -> None:
        count = steps.numbers["count"] = steps.numbers.get("count", 0) + 1
        steps.kept["way"] = (steps.received - steps.weights) / count
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


def test_what_a_plug_in_sets_in_torch_changes_no_bit_on_any_rank(tmp_path: Path) -> None:
    plugin = tmp_path / "heavy.py"
    plugin.write_text(
        "import torch\ntorch.set_default_dtype(torch.float64)\n"
        "torch.backends.mkldnn.enabled = False\n"
    )
    found = []
    for name, more in (("plain", ()), ("changed", (f"plugins=[{plugin}]",))):
        ended = run_job(3, *SHORT, *more, f"results.path={tmp_path / name}.h5")
        assert ended.code == 0, ended.output
        found.append(read_result(tmp_path / f"{name}.h5"))
    assert differing_columns(*found) == ["events/chain_xxh3"]  # over the digest of the plug-in


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
def test_one_that_fails_is_told_once_and_ends_every_rank(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("import fedgmr_hpc\nfedgmr_hpc.register_agregation('x')\n")
    ended = run_job(3, *SHORT, f"plugins={plugin}")
    assert ended.code == 2
    (error,) = ended.errors
    assert f"plug-in {plugin}:2: AttributeError: " in error


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
@pytest.mark.parametrize(
    ("choice", "where"),
    [
        ("aggregation.rule=bad", "rank 0, version 0, stage merge: aggregation.rule"),
        ("train.objective=bad", "stage train: train.objective"),
    ],
)
def test_one_that_fails_in_a_run_is_one_line_and_ends_every_rank(
    choice: str, where: str, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(FAILING)
    ended = run_job(3, *SHORT, f"plugins={plugin}", choice, f"results.path={tmp_path / 'run.h5'}")
    assert ended.code in (1, 9)  # 9: MPICH's launcher may say whom it killed
    (error,) = ended.errors
    assert f"{where} 'bad' ({plugin}:" in error and error.endswith(
        "NameError: name 'x' is not defined"
    )
    assert "Traceback" not in ended.output
    assert "NameError" in (tmp_path / "run.log").read_text()


def test_what_an_objective_of_ones_own_keeps_outlives_a_kill(tmp_path: Path) -> None:
    """Masks change and densities grow while clients keep something, on one rank and on four."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(INERTIA)
    words = (*TINY, f"plugins=[{plugin}]", "train.objective=inertia", "checkpoint.every_s=0")
    alone, path = tmp_path / "alone.h5", tmp_path / "run.h5"
    ended = run_job(1, *last_of_each(*words, f"results.path={alone}"), launcher="none")
    assert ended.code == 0, ended.output
    resumed = (*last_of_each(*words, f"results.path={path}"), "--resume")
    pids = killing.start(tmp_path, 4, *resumed)
    while not path.with_suffix(".ckpt").exists():
        time.sleep(0.01)
    assert killing.kill(pids, 2)
    assert killing.wait(killing.start(tmp_path, 4, *resumed)) == [0] * 4
    result = read_result(path)
    assert differing_columns(result, read_result(alone)) == []
    assert 1 in result.checkpoints["is_resume"]


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
@pytest.mark.parametrize(
    ("example", "choices"),
    [
        ("own_objective", ("train.objective=near",)),
        ("own_rule", ("aggregation.rule=nesterov",)),
        (
            "own_selection",
            ("clients.sampled=3", "clients.selection=power_of_choice", "clients.candidates=5"),
        ),
        ("own_score_and_schedule", ("submodel.score=growth", "restoration.trigger=steady")),
    ],
)
def test_examples_give_the_same_bytes_on_three_ranks(
    example: str, choices: tuple[str, ...], tmp_path: Path
) -> None:
    words = (*SHORT, f"plugins=[{ROOT / 'examples' / f'{example}.py'}]", *choices)
    found = []
    for number, launcher in ((1, "none"), (3, "mpirun")):
        path = tmp_path / f"{number}.h5"
        ended = run_job(number, *words, f"results.path={path}", launcher=launcher)
        assert ended.code == 0, ended.output
        found.append(read_result(path))
    assert differing_columns(*found) == []
