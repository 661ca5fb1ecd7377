"""What makes two runs the same: every key has a mark, and what reads the marks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fedgmr_hpc
from fedgmr_hpc.config import identity as module
from fedgmr_hpc.config.choices.named_content import CONTENT_OF
from fedgmr_hpc.config.choices.registry import AGGREGATIONS, DATASETS
from fedgmr_hpc.config.choices.section import Count, Run, Section
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.identity import CELL, REPLAYED, RESUMED, differences, flat, identity, marks
from fedgmr_hpc.config.rules import ROBUST_RULES
from fedgmr_hpc.fl.aggregation.robust import Median
from fedgmr_hpc.runtime.preparation import check_inputs
from fedgmr_hpc.runtime.replay import EventLog
from fedgmr_hpc.study.cells import Cell, digest_of, expand
from fedgmr_hpc.study.states import read_state, result_path
from fedgmr_hpc.study.study_file import load_study
from tests.registering import registered

OF_THE_MACHINE = {
    "checkpoint.every_s": 10.0,
    "data.cache": "elsewhere",
    "data.cache_owner": "somebody",
    "data.device_memory_frac": 0.1,
    "data.root": "/somewhere",
    "device": "cpu",
    "progress": "plain",
    "results.flush_s": 9.0,
    "results.locking": "off",
    "results.path": "there.h5",
    "run.pin_cores": True,
    "run.relay": "off",
    "run.server_threads": 2,
    "run.timeout_s": 5.0,
    "trace": True,
    "train.cuda_graphs": False,
    "train.parallel_clients": 2,
    "transport": "mpi",
    "wire.verify": True,
}
# What these choose counts, as axes and as digests; where it lies does not.
WHERE_CHOICES_LIE = ("methods", "plugins", *CONTENT_OF)


def words_of(values: dict[str, object]) -> list[str]:
    return [f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in values.items()]


def test_every_key_has_a_mark() -> None:
    found = marks()
    assert set(found) == set(flat(load_config().model_dump(mode="json")))
    assert {key for key, mark in found.items() if mark == "machine"} == {
        *OF_THE_MACHINE,
        *WHERE_CHOICES_LIE,
    }
    assert {key for key, mark in found.items() if mark == "limit"} == {
        "run.max_rounds",
        "run.max_time_s",
    }
    assert {key for key, mark in found.items() if mark == "look"} == {
        "eval.every_s",
        "eval.submodels",
    }


def test_a_key_without_a_mark_is_named() -> None:
    class Odd(Section):
        good: Run[Count] = 1
        forgotten: int = 2

    with pytest.raises(TypeError, match=r"^Odd.forgotten must have one mark .* \(got 0\)$"):
        list(module._marked(Odd, ""))


def test_only_what_differs_from_the_default_counts() -> None:
    plain = identity(load_config(None, ["method=fedavg"]))
    assert plain["method"] == "fedavg" and plain["submodel.kind"] == "full"
    assert "train.momentum" not in plain and "data.alpha" not in plain
    assert identity(load_config(None, ["method=fedavg", "train.momentum=0.0"])) == plain
    older = load_config(None, ["method=fedavg"]).model_dump(mode="json")
    del (
        older["train"]["clip_norm"],
        older["model"]["init"],
        older["eval"],
    )  # keys that came after the file was written
    assert identity(older) == plain


@pytest.mark.parametrize("key", OF_THE_MACHINE)
def test_what_belongs_to_the_machine_makes_no_other_run(key: str) -> None:
    plain, other = load_config(), load_config(None, words_of({key: OF_THE_MACHINE[key]}))
    assert plain != other
    assert digest_of(other) == digest_of(plain)
    assert differences(plain, other, CELL) == {}
    assert EventLog(other).state() == EventLog(plain).state()


@pytest.mark.parametrize(
    "words",
    [
        ["time_scale=0.1"],
        ["links.rank_down_bytes_per_s=1e6"],
        ["links.rank_up_bytes_per_s=1e6"],
        ["wire.max_resends=9"],
        ["wire.resend_after_s=9"],
        ["links.nominal_mb=9"],
        ["data.max_train_users=9"],
        ["data.max_test_users=9"],
        ["data.max_user_samples=9"],
        ["data.unknown_words=scored"],
        ["method=fedavg", "submodel.refresh=round"],
        *(
            [f"method={rule}", "aggregation.staleness=hinge", "aggregation.hinge_delay=1"]
            for rule in ROBUST_RULES
        ),
    ],
)
def test_what_has_no_effect_makes_no_other_run(words: list[str]) -> None:
    rows = [word for word in words if word.startswith("method=")]
    plain, other = load_config(None, rows), load_config(None, words)
    assert plain != other
    assert digest_of(other) == digest_of(plain)
    assert differences(plain, other, CELL) == differences(other, plain, CELL) == {}
    assert EventLog(other).state() == EventLog(plain).state()


@pytest.mark.parametrize(
    "words",
    [
        ["clock=wall", "time_scale=0.1"],
        ["clock=wall", "links.rank_down_bytes_per_s=1e6"],
        ["data.name=stackoverflow", "data.unknown_words=scored"],
        ["data.name=imagefolder", "data.image_size=32"],
        ["submodel.refresh=round"],
        ["method=fedavg", "aggregation.staleness=hinge"],
        ["method=fedavg", "aggregation.weigh_by=data"],
    ],
)
def test_what_has_an_effect_makes_another_run(words: list[str]) -> None:
    plain, other = load_config(None, words[:-1]), load_config(None, words)
    assert digest_of(other) != digest_of(plain)
    assert list(differences(plain, other, CELL)) == [words[-1].partition("=")[0]]


class Mine(Median):
    """A rule that could look at staleness and samples."""


def mine() -> None:
    """Stand for a data set that reads what it likes."""


@pytest.mark.parametrize(
    ("registry", "entry", "keys"),
    [
        (AGGREGATIONS, Mine, {"aggregation.staleness": "constant", "aggregation.weigh_by": "data"}),
        (DATASETS, mine, {"data.image_size": 32, "data.class_list": "a", "data.max_test_users": 9}),
    ],
    ids=["rule", "data"],
)
def test_a_plug_in_may_read_what_built_in_choices_do_not(registry, entry, keys) -> None:
    with registered(registry, entry):
        words = [f"{registry.key}=mine"]
        plain, other = load_config(None, words), load_config(None, [*words, *words_of(keys)])
        assert set(differences(plain, other, CELL)) == set(keys)


def test_a_pair_on_both_clocks_may_share_what_only_one_of_them_uses() -> None:
    own = ["wire.resend_after_s=9", "links.rank_up_bytes_per_s=1e6"]
    virtual, wall = load_config(None, own), load_config(None, [*own, "clock=wall"])
    assert list(differences(virtual, wall, CELL)) == ["clock"]
    assert list(differences(load_config(), wall, CELL)) == ["clock", *sorted(own_keys(own))]


def own_keys(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words]


def words_beside(key: str, path: Path) -> list[str]:
    return [f"{key}={path}", *(["data.partition=file"] if key == "data.partition_file" else [])]


@pytest.mark.parametrize("key", CONTENT_OF)
def test_a_named_file_counts_by_what_it_says_and_not_by_where_it_lies(
    key: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    for path in (here, there):
        path.write_text("client,sample\n0,0\n0,1\n")

    def known(path: Path) -> str:
        return digest_of(load_config(None, words_beside(key, path)))

    before = known(here)
    assert known(there) == before
    there.write_text("client,sample\n0,0\n0,2\n")
    assert known(there) != before == known(here)
    config = load_config(None, words_beside(key, here))
    other = load_config(None, words_beside(key, there))
    for of in (CELL, RESUMED, REPLAYED):
        assert list(differences(config, other, of)) == [CONTENT_OF[key]]
    here.unlink()
    assert load_config(config.model_dump(mode="json")) == config  # as a result file tells it


@pytest.mark.parametrize("path", ["none.csv", "~0/none.csv", "a\0b", "."])
def test_a_file_that_cannot_be_read_has_no_content(path: str) -> None:
    assert load_config(None, {"links.trace": path}).links.trace_xxh3 is None


@pytest.mark.parametrize("key", ["links.trace", "clients.availability"])
def test_a_file_of_a_run_that_was_changed_is_refused_where_it_is_read(
    key: str, tmp_path: Path
) -> None:
    texts = {
        "links.trace": "time_s,client,direction,bytes_per_s\n0,0,up,1e6\n",
        "clients.availability": "client,from_s,to_s\n0,0,9\n",
    }
    path = tmp_path / "named.csv"
    path.write_text(texts[key])
    config = load_config(None, [f"{key}={path}"])
    check_inputs(config)
    path.write_text(texts[key] + "\n")
    with pytest.raises(ValueError, match=rf"^{key} must be a file of xxh3 \w+ \(got .*named") as no:
        check_inputs(config)
    digest = CONTENT_OF[key]
    hint = f": {digest} is what the run began with; {digest}=null begins another run"
    assert str(no.value).endswith(hint)
    path.unlink()
    with pytest.raises(ValueError, match=rf"^{key}.* No such file"):
        check_inputs(config)


def test_a_file_that_a_run_file_names_is_taken_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "speeds.csv").write_text("")
    (tmp_path / "run.yaml").write_text(
        "links: {trace: speeds.csv}\nclients: {availability: not_there.csv}\n"
    )
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "run.yaml")
    assert config.links.trace == str(tmp_path / "speeds.csv")
    assert config.clients.availability == "not_there.csv"


@pytest.mark.parametrize(
    ("word", "cell", "resumed", "replayed"),
    [
        ("train.learning_rate=0.05", True, True, True),
        ("seed=1", True, True, True),
        ("model.init=kaiming", True, True, True),
        ("eval.every_s=10", True, True, False),
        ("eval.submodels=true", True, True, False),
        ("run.max_rounds=7", True, False, False),
        ("run.max_time_s=7", True, False, False),
    ],
)
def test_what_counts_for_cells_resumed_runs_and_replays(word, cell, resumed, replayed) -> None:
    plain, other = load_config(), load_config(None, [word])
    key = word.partition("=")[0]
    for of, counts in ((CELL, cell), (RESUMED, resumed), (REPLAYED, replayed)):
        assert list(differences(plain, other, of)) == [key] * counts
    assert (digest_of(plain) != digest_of(other)) == cell
    assert (EventLog(plain).state() != EventLog(other).state()) == replayed


def one_cell(*words: str) -> Cell:
    study = {
        "title": "tiny",
        "base": "digits",
        "set": {"run.max_rounds": 2, "run.interval_rounds": 1, "train.steps": 1},
        "matrix": {"method": ["fedavg"], "seed": [0]},
        "comparison_time_s": 50.0,
    }
    (cell,) = expand(*load_study(study, ["data.max_train=300", "data.max_test=50", *words]))
    return cell


def test_a_finished_cell_is_found_whatever_its_name_and_machine(tmp_path: Path) -> None:
    cell = one_cell()
    results = cell.config.results.model_copy(update={"path": str(tmp_path / f"{cell.name}.h5")})
    update = {"results": results, "progress": "quiet", "device": "cpu"}
    fedgmr_hpc.run(cell.config.model_copy(update=update))
    other = one_cell("checkpoint.every_s=7", "run.timeout_s=30", "trace=true")
    assert read_state(tmp_path, other).status == "done"
    old = tmp_path / f"{cell.slug}-0123456789.h5"  # as when digests were made otherwise
    os.rename(tmp_path / f"{cell.name}.h5", old)
    assert result_path(tmp_path, cell) == old and read_state(tmp_path, cell).status == "done"
    assert read_state(tmp_path, one_cell("train.learning_rate=0.03")).status == "missing"


def test_a_file_that_is_taken_away_leaves_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "days.csv"
    path.write_text("client,from_s,to_s\n0,0,9\n")
    kept = load_config(None, [f"clients.availability={path}"]).model_dump(mode="json")
    assert kept["clients"]["availability_xxh3"]
    assert load_config(kept, ["clients.availability=null"]) == load_config(None, [])
