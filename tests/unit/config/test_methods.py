"""The method table, its wrappers, and what its files must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config import methods
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.methods import (
    explain_method,
    load_method,
    merged,
    method_names,
    render_methods,
    wrapper_names,
)
from fedgmr_hpc.config.yaml_file import read_mapping

FULL = {"fedavg", "fedasync", "fedasync_seq", "fedbuff", "fedavgm", "fedadam", "median",
        "trimmed_mean", "krum", "fedprox", "scaffold"}  # fmt: skip
TOGETHER = {"scaffold"}  # whose clients have to take part in every round


# --- wrappers


@pytest.mark.parametrize("row", sorted(set(method_names()) - TOGETHER))
def test_aux_makes_any_row_an_asynchronous_buffered_one(row):
    config = load_config(None, [f"method={row}+aux", "restoration.trigger=none"])
    choices = config.aggregation
    assert (choices.rule, choices.buffered, choices.staleness) == ("mask_aware", True, "poly")
    assert (config.admission.kind, config.admission.count) == ("window", None)
    assert config.transmission == "increments"
    assert config.submodel == load_config(None, [f"method={row}"]).submodel


@pytest.mark.parametrize("row", sorted(TOGETHER))
def test_aux_is_refused_where_all_clients_are_needed(row):
    with pytest.raises(ValueError, match="^admission.kind must be 'barrier' when train.objective"):
        load_config(None, [f"method={row}+aux"])


@pytest.mark.parametrize("row", sorted(set(method_names()) - FULL))
def test_gmr_restores_any_partial_sub_model(row):
    config = load_config(None, [f"method={row}+gmr"])
    assert (config.restoration.trigger, config.restoration.step) == ("plateau", "ladder")
    assert config.aggregation == load_config(None, [f"method={row}"]).aggregation


@pytest.mark.parametrize("row", sorted(FULL))
def test_gmr_has_nothing_to_restore_in_full_models(row):
    with pytest.raises(ValueError, match="(?m)^restoration.trigger must be 'none' when submodel"):
        load_config(None, [f"method={row}+aux+gmr"])


def test_heterofl_with_both_wrappers_is_fedgmr_with_widths():
    """Aux is asynchrony, increments and MA, whatever the sub-model (docs/method.md#wrappers)."""
    wrapped, own = load_method("heterofl+aux+gmr").axes, load_method("fedgmr").axes
    assert wrapped["submodel"] == {"kind": "width_prefix", "scaler": True}
    for axis in ("restoration", "transmission"):
        assert wrapped[axis] == own[axis]
    assert wrapped["aggregation"] == own["aggregation"] | {
        "mix_share": None,
        "server_learning_rate": 1.0,
    }
    assert wrapped["admission"] == own["admission"] | {"count": None}


def test_wrappers_are_said_and_lie_in_their_order():
    method = load_method("fiarse+aux+gmr")
    assert method.name == "fiarse+aux+gmr"
    assert method.about.index("+Aux") < method.about.index("+GMR")
    assert method.source == "Wu et al. 2024"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("fedgrm", "there is no method 'fedgrm'; did you mean 'fedgmr'?"),
        ("heterofl+axu", "there is no wrapper 'axu'; did you mean 'aux'?"),
        ("heterofl+", "there is no wrapper '' (give one of 'aux' and 'gmr')"),
        ("+aux", "there is no method '' (give a file, or one of 'fa', 'fedadam', "),
        ("aux", "there is no method 'aux' (give a file, or one of 'fa', 'fedadam', "),
        ("", "there is no method '' (give a file, or one of 'fa', 'fedadam', "),
    ],
)
def test_an_unknown_row_or_wrapper_is_named_with_those_there_are(name, line):
    with pytest.raises(ValueError) as error:
        load_method(name)
    assert str(error.value).startswith(line)


# --- rows that are like another one but for something


def test_a_row_of_ones_own_has_neither_source_nor_differences_of_its_base():
    own = load_method("mine", {"mine": {"base": "fedgmr", "restoration": {"trigger": "none"}}})
    assert (own.source, own.differs, own.made_of) == ("", {}, ("mine", "fedgmr"))
    base, variant = load_method("fedgmr"), load_method("wo_buff_ims")
    assert base.source == variant.source and base.differs == variant.differs


def test_a_row_says_from_which_it_is_derived(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: fedgmr\nabout: mine\n")
    text = explain_method(str(tmp_path / "mine.yaml"))
    assert "\nsource: -\nderived from: fedgmr\n" in text and "differs from" not in text
    assert "derived from" not in explain_method("fedgmr")


@pytest.mark.parametrize(
    ("row", "base", "differing"),
    [
        ("wo_gmr", "fedgmr", {"restoration.trigger": "none"}),
        ("wo_asyn", "fedgmr", {"admission.kind": "barrier"}),
        ("wo_ims", "fedgmr", {"transmission": "whole"}),
        ("wo_buff", "fedgmr", {"aggregation.rule": "mix", "aggregation.buffered": False}),
        ("wo_buff_ims", "wo_buff", {"transmission": "whole"}),
        ("fedgmr_timed", "fedgmr", {"restoration.trigger": "time"}),
        ("gmr_ga", "fedgmr", {"aggregation.rule": "gradient", "aggregation.buffered": False}),
        ("gmr_fa", "fedgmr", {"aggregation.rule": "average", "aggregation.buffered": False}),
        ("ga", "gmr_ga", {"restoration.trigger": "none"}),
        ("fa", "gmr_fa", {"restoration.trigger": "none"}),
        ("fedrolex", "heterofl", {"submodel.kind": "width_rolling", "submodel.refresh": "round"}),
        ("fedasync_seq", "fedasync", {"aggregation.mix_share": 0.6, "aggregation.exponent": 0.5,
                                      "admission.kind": "each"}),
    ],
)  # fmt: skip
def test_an_ablation_differs_in_what_its_name_says_only(row, base, differing):
    own, other = (flat(load_config(None, [f"method={name}"]).model_dump()) for name in (row, base))
    found = {key: value for key, value in own.items() if value != other[key]}
    assert found == {"method": row} | differing


def flat(values, prefix="") -> dict:
    found = {}
    for key, value in values.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found |= {f"{prefix}{key}": value} if inner is None else inner
    return found


@pytest.mark.parametrize(
    ("row", "paper"),
    [
        ("fedavg", "not by the size of their data"),
        ("fedasync_seq", "no proximal term"),
        ("fedbuff", "secure aggregation"),
        ("fedavgm", "the momentum has weights alone"),
        ("fedadam", "moments begin at 0"),
        ("median", "of the gradients of one step"),
        ("krum", "the paper proves its bound for one model"),
        ("heterofl", "output layer's rows"),
        ("fedrolex", "cut and rolled alike"),
        ("fjord", "one set of batch norm statistics"),
        ("fiarse", "a threshold for each tensor"),
    ],
)
def test_a_baseline_says_how_it_differs_from_its_paper(row, paper):
    text = " ".join(explain_method(row).split())
    assert paper in text[text.index("differs from its paper") : text.index("the release")]


@pytest.mark.parametrize(
    ("row", "compared"),
    [
        ("fedavg", ("paper", "release")),
        ("fedasync", ("paper", "release")),
        ("fedasync_seq", ("paper", "release")),
        ("fedbuff", ("paper", "code", "release")),
        ("heterofl", ("paper", "code", "release")),
        ("fedrolex", ("paper", "code", "release")),
        ("fjord", ("paper", "code", "release")),
        ("fiarse", ("paper", "code", "release")),
        ("fedgmr", ("paper", "release")),
        ("fedgmr_two_stage", ("paper", "release")),
        ("fedgmr_wg", ("paper", "release")),
    ],
)
def test_what_is_known_to_differ_is_said(row, compared):
    method = load_method(row)
    assert all(method.differs.get(each) for each in compared)
    assert "nothing known" not in explain_method(row)


def test_no_row_refers_to_what_readers_do_not_have():
    for name in [*method_names(), "fiarse+aux+gmr"]:
        text = explain_method(name)
        assert "item " not in text and "spec" not in text and " section" not in text


def test_a_row_takes_over_what_its_base_differs_in_but_for_its_own():
    base, row = load_method("fedgmr"), load_method("ga")
    assert row.differs["paper"] == base.differs["paper"]
    assert row.differs["release"] != base.differs["release"]


def test_only_fedgmrs_rows_gate_biases():
    rows = [load_method(name) for name in method_names()]
    gating = {row.name for row in rows if row.axes["submodel"].get("gate_biases")}
    assert gating == {row.name for row in rows if row.source.startswith("FedGMR")}
    assert "fiarse" not in gating
    assert not load_method("fiarse+aux+gmr").axes["submodel"].get("gate_biases")


def test_the_paper_has_two_density_stages():
    axes, plain = load_method("fedgmr_two_stage").axes, load_method("fedgmr").axes
    assert axes["restoration"] == plain["restoration"] | {"balance": True}
    assert {k: axes[k] for k in axes if k != "restoration"} == {
        k: plain[k] for k in plain if k != "restoration"
    }
    assert load_method("fedgmr_wg").axes["submodel"]["score"] == "wg"


def test_values_are_laid_over_key_by_key():
    base = {"a": {"x": 1, "y": 2}, "b": 3, "c": {"z": 4}}
    assert merged(base, {"a": {"y": 5}, "b": {"w": 6}, "c": 7}) == {
        "a": {"x": 1, "y": 5},
        "b": {"w": 6},
        "c": 7,
    }
    assert base == {"a": {"x": 1, "y": 2}, "b": 3, "c": {"z": 4}}


def test_the_table_has_a_line_for_every_row_and_wrapper():
    text, wrong = render_methods()
    lines = text.splitlines()
    assert wrong == []
    assert [line.split()[0] for line in lines[2 : 2 + len(method_names())]] == method_names()
    assert [line.split(":")[0].strip() for line in lines[-len(wrapper_names()) :]] == [
        f"+{name}" for name in wrapper_names()
    ]
    (fedrolex,) = [line for line in lines if line.startswith("fedrolex ")]
    assert "width_rolling scaler round" in fedrolex and "static masked_loss" in fedrolex
    (fedavg,) = [line for line in lines if line.startswith("fedavg ")]
    assert fedavg.endswith(" sgd")
    assert max(map(len, lines)) <= 140


# --- files


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    for folder in ("methods", "wrappers"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(methods, "configs_dir", lambda: tmp_path)
    return tmp_path / "methods"


OLD = """
about: Old.
submodel: {scaler: false, kind: full}
restoration: {trigger: none}
aggregation: {rule: average}
admission: {kind: barrier}
transmission: whole
"""


def test_a_new_file_is_a_new_row(table):
    (table / "old.yaml").write_text(OLD)
    (table / "new.yaml").write_text("about: New.\nbase: old\nsubmodel: {kind: magnitude}\n")
    (table.parent / "wrappers" / "late.yaml").write_text("about: Late.\nadmission: {kind: each}\n")
    method = load_method("new+late")
    assert method.about == "New. Late."
    assert method.axes == {
        "submodel": {"kind": "magnitude", "scaler": False},
        "restoration": {"trigger": "none"},
        "aggregation": {"rule": "average"},
        "admission": {"kind": "each"},
        "transmission": "whole",
    }


def test_a_row_says_of_training_what_is_not_the_runs_to_say(table):
    (table / "odd.yaml").write_text(f"{OLD}train: {{batch: 5, clip_norm: 2}}\n")
    with pytest.raises(ValueError) as error:
        load_method("odd")
    assert str(error.value) == (
        "configs/methods/odd.yaml: train.batch is not a key; did you mean 'train.batch_norm'?"
    )


def test_a_key_that_is_no_axis_is_refused_with_its_file(table):
    (table / "odd.yaml").write_text("about: Odd.\naggregaton: {rule: mix}\n")
    with pytest.raises(ValueError) as error:
        load_method("odd")
    assert str(error.value) == (
        "configs/methods/odd.yaml: aggregaton is not a key; did you mean 'aggregation'?"
    )


BAD_ROWS = [
    (
        "about: Odd.\nsubmodel: {score: w}\nadmission: {kind: each}\n",
        "submodel.kind, restoration.trigger, aggregation.rule, transmission must be chosen, "
        "here or in a base",
    ),
    (
        "about: Odd.\nbase: old\naggregation: {rule: mask_awre}\n",
        "aggregation.rule must be 'mask_aware', 'gradient', 'average', 'mix', 'fedbuff', "
        "'momentum', 'adam', 'median', 'trimmed_mean' or 'krum' "
        "(got 'mask_awre'); did you mean 'mask_aware'?",
    ),
    ("about: Odd.\nbase: old\nsubmodel:\n", "submodel must be a mapping of keys (got null)"),
    (
        "about: Odd.\nbase: old\nrestoration: {trigger: time}\n",
        "restoration.trigger must be 'none' when submodel.kind is 'full' (got 'time')",
    ),
    ("base: old\n", "about must be given"),
    (
        "about: Odd.\nbase: older\n",
        "base must be the name of a row (got 'older'); did you mean 'old'?",
    ),
    (
        "about: Odd.\nbase: odd\n",
        "base must be another row, not based on this one (got 'odd'); did you mean 'old'?",
    ),
    (
        "about: Odd.\nbase: old\ndiffers: [much]\n",
        "differs must be a mapping of keys (got ['much'])",
    ),
]


@pytest.mark.parametrize(("text", "said"), BAD_ROWS)
def test_a_bad_row_is_refused_wherever_it_is_read_and_leaves_the_others_in_the_table(
    table, capsys, text, said
):
    (table / "old.yaml").write_text(OLD)
    (table / "odd.yaml").write_text(text)
    line = f"configs/methods/odd.yaml: {said}"
    assert main(["methods"]) == 2
    shown = capsys.readouterr()
    assert [row.split()[:2] for row in shown.out.splitlines()[2:3]] == [["old", "full"]]
    assert shown.err == f"fedgmr_hpc: error: {line}\n"
    with pytest.raises(ValueError) as error:
        load_method("odd")
    assert str(error.value) == line


def test_a_run_refuses_a_bad_row_in_one_line(table):
    (table / "fedgmr.yaml").write_text(OLD)
    (table / "odd.yaml").write_text("about: Odd.\nbase: fedgmr\nadmission: {kind: all}\n")
    with pytest.raises(ValueError) as error:
        load_config({"method": "odd"})
    assert str(error.value) == (
        "configs/methods/odd.yaml: admission.kind must be 'window', 'barrier', 'count' or 'each' "
        "(got 'all'); is a plug-in missing (--plugin FILE, or plugins: in a file)?"
    )


def test_a_mistake_of_a_base_or_wrapper_is_said_once_with_its_own_file(table):
    (table / "old.yaml").write_text(OLD)
    for name, base in (("odd", "old"), ("b", "odd"), ("c", "b")):
        (table / f"{name}.yaml").write_text(f"about: It.\nbase: {base}\n")
    (table / "odd.yaml").write_text("about: Odd.\nbase: old\nadmission: {kind: all}\n")
    (table.parent / "wrappers/late.yaml").write_text("about: Late.\ntransmission: some\n")
    assert [line.partition(" must be")[0] for line in render_methods()[1]] == [
        "configs/methods/odd.yaml: admission.kind",
        "configs/wrappers/late.yaml: transmission",
    ]


def test_rows_that_are_based_on_each_other_are_refused(table):
    for name, base in (("a", "b"), ("b", "a")):
        (table / f"{name}.yaml").write_text(f"about: It.\nbase: {base}\n")
    with pytest.raises(ValueError, match=r"^configs/methods/b.yaml: base must .* \(got 'a'\)$"):
        load_method("a")


def test_a_row_may_ask_for_more_clients_than_a_run_has_by_default(table):
    count = "about: Many.\nbase: old\nadmission: {kind: count, count: 50}\n"
    (table / "old.yaml").write_text(OLD)
    (table / "many.yaml").write_text(count)
    assert load_method("many").axes["admission"] == {"kind": "count", "count": 50}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", r"must hold a mapping of keys \(got \['a', 'b'\]\)"),
        ("word\n", r"must hold a mapping of keys \(got 'word'\)"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, said):
    path = tmp_path / "row.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_mapping(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_an_empty_file_has_no_keys_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_mapping(tmp_path / "empty.yaml") == {}
    with pytest.raises(ValueError, match="gone.yaml: cannot be read: No such file or directory$"):
        read_mapping(tmp_path / "gone.yaml")


def test_a_mistake_in_a_row_of_ones_own_is_said_with_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: fedgmr\nrestoration: {trigerr: time}\n")
    with pytest.raises(ValueError, match=f"^{path}: restoration.trigerr is not a key"):
        load_method(str(path))
    path.write_text("base: nonesuch\n")
    with pytest.raises(ValueError, match=f"^{path}: base must be the name of a row"):
        load_method(f"{path}+aux")
