"""The configuration: all errors at once, overrides, round trip, shares, and the shipped files."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.files import describe_keys, load_config, make_config, render_config
from fedgmr_hpc.config.methods import method_names
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.yaml_file import configs_dir

METHODS = sorted(path.stem for path in (configs_dir() / "methods").glob("*.yaml"))
RUNS = sorted(path.stem for path in (configs_dir() / "runs").glob("*.yaml"))


def errors(*overrides: str) -> list[str]:
    with pytest.raises(ValueError) as error:
        load_config(None, overrides)
    return sorted(str(error.value).splitlines())


def shares(count: int, level: str) -> list[float]:
    config = make_config({"clients": {"count": count, "level": level}})
    return list(config.clients.bandwidth_shares())


# --- errors


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.max_rounds=0", "run.max_rounds must be at least 1 (got 0)"),
        ("train.batch=010", "train.batch must be a whole number (got '010')"),
        ("run.timeout_s=1:30", "run.timeout_s must be a number (got '1:30')"),
        ("train.momentum=1", "train.momentum must be less than 1 (got 1)"),
        ("train.learning_rate=-0.5", "train.learning_rate must be more than 0 (got -0.5)"),
        ("submodel.floor_frac=2", "submodel.floor_frac must be at most 1 (got 2)"),
        (
            "admission.kind=eager",
            "admission.kind must be 'window', 'barrier', 'count' or 'each' (got 'eager')"
            "; is a plug-in missing (--plugin FILE, or plugins: in a file)?",
        ),
        ("transmission=7", "transmission must be 'increments' or 'whole' (got '7')"),
        (
            "restoration.trigger=on",
            "restoration.trigger must be 'none', 'plateau', 'time' or 'both' (got 'on')"
            "; is a plug-in missing (--plugin FILE, or plugins: in a file)?",
        ),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(override, line):
    assert errors(override) == [line]


@pytest.mark.parametrize("value", ["many", "[1]", "2.5", "null", "{a: 1}"])
def test_a_value_of_the_wrong_type_is_named(value):
    (line,) = errors(f"clients.count={value}")
    assert line.startswith("clients.count must be a whole number (got ")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_must_be_finite(value):
    (line,) = errors(f"links.nominal_mb={value}")
    assert line.startswith("links.nominal_mb must be a finite number (got ")


def test_all_errors_come_at_once():
    found = errors("run.max_rounds=0", "train.momentum=1", "wire.dtype=int4", "seed=-1", "foo=1")
    assert [line.split()[0] for line in found] == [
        "foo",
        "run.max_rounds",
        "seed",
        "train.momentum",
        "wire.dtype",
    ]


def test_an_unknown_method_comes_with_all_other_errors():
    found = errors("method=fedsgd", "run.max_rounds=0")
    assert found == [
        "run.max_rounds must be at least 1 (got 0)",
        "there is no method 'fedsgd'; did you mean 'fedgmr'?",
    ]


def test_impossible_combinations_come_with_all_other_errors():
    found = errors("clients.shares=[1, 0.5]", "clients.count=3", "run.max_rounds=0")
    assert [line.split()[0] for line in found] == ["clients.shares", "run.max_rounds"]


def test_all_impossible_combinations_come_at_once():
    found = errors(
        "method=fedavg", "restoration.trigger=plateau", "clients.shares=[1]", "clients.count=3"
    )
    assert [line.split()[0] for line in found] == ["clients.shares", "restoration.trigger"]


def test_an_unknown_key_suggests_or_lists_the_known_ones():
    (line,) = errors("admission.slack=1")
    assert line == "admission.slack is not a key; did you mean 'admission.slack_s'?"
    (line,) = errors("admission.patience_s=1")
    assert line == (
        "admission.patience_s is not a key (keys of admission: kind, slack_s, count); "
        "is a plug-in missing (--plugin FILE, or plugins: in a file)?"
    )
    (line,) = errors("velocity=1")
    assert line.startswith("velocity is not a key (keys: seed, method, ")
    assert errors("restration.trigger=time") == [
        "restration is not a key; did you mean 'restoration'?"
    ]
    assert errors("max_rounds=3") == ["max_rounds is not a key; did you mean 'run.max_rounds'?"]


def test_an_unknown_method_lists_the_methods():
    (line,) = errors("method=sgd")
    known = ", ".join(map(repr, METHODS[:-1]))
    assert line == f"there is no method 'sgd' (give a file, or one of {known} and '{METHODS[-1]}')"


def test_a_wrong_element_is_named_by_its_index():
    assert errors("clients.count=3", "clients.shares=[1, 0, 1.5]") == [
        "clients.shares.1 must be more than 0 (got 0)",
        "clients.shares.2 must be at most 1 (got 1.5)",
    ]


def test_shares_must_fit_the_number_of_clients():
    (line,) = errors("clients.count=3", "clients.shares=[1, 0.5]")
    assert line == "clients.shares must have 3 values when clients.count is 3 (got 2)"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "restoration.trigger=time",
            "restoration.trigger must be 'none' when submodel.kind is 'full' (got 'time')",
        ),
        (
            "restoration.balance=true",
            "restoration.balance must be false when submodel.kind is 'full' (got true)",
        ),
    ],
)
def test_a_full_model_has_nothing_to_restore(override, line):
    assert errors("method=fedavg", override) == [line]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ("clock=wall", "train.parallel_clients=2"),
            "train.parallel_clients must be 1 when clock is 'wall' (got 2)",
        ),
        (
            ("faults=[{kind: drop}, {kind: cut}]",),
            "faults must be empty when clock is 'virtual' (got 2)",
        ),
        (
            ("clock=wall", "clients.count=3", "faults=[{kind: drop}, {kind: cut, client: 3}]"),
            "faults.1.client must be at most 2 when clients.count is 3 (got 3)",
        ),
        (
            ("links.trace_period_s=2.5",),
            "links.trace_period_s must be null when links.trace is null (got 2.5)",
        ),
        (
            ("admission.count=2",),
            "admission.count must be null when admission.kind is 'window' (got 2)",
        ),
        (
            ("admission.kind=count",),
            "admission.count must be between 1 and 10 when admission.kind is 'count' and "
            "clients.count is 10 (got null)",
        ),
        (
            ("admission.kind=count", "admission.count=4", "clients.count=3"),
            "admission.count must be between 1 and 3 when admission.kind is 'count' and "
            "clients.count is 3 (got 4)",
        ),
        (
            ("admission.kind=count", "admission.count=4", "clients.sampled=3"),
            "admission.count must be between 1 and 3 when admission.kind is 'count' and "
            "clients.sampled is 3 (got 4)",
        ),
        (
            ("clients.sampled=11",),
            "clients.sampled must be at most 10 when clients.count is 10 (got 11)",
        ),
        (
            ("clients.selection=best",),
            "clients.selection must be 'uniform' (got 'best'); is a plug-in missing (--plugin "
            "FILE, or plugins: in a file)?",
        ),
        (
            ("clients.availability_period_s=5",),
            "clients.availability_period_s must be null when clients.availability is null (got 5)",
        ),
        (
            ("method=krum", "aggregation.weigh_by=data"),
            "aggregation.weigh_by must be 'steps' when aggregation.rule is 'krum' (got 'data')",
        ),
        (
            ("data.image_size=32",),
            "data.image_size must be 168 when data.name is 'digits' (got 32)",
        ),
        (
            ("data.name=npz", "data.class_list=some.txt"),
            "data.class_list must be null when data.name is 'npz' (got 'some.txt')",
        ),
        (
            ("links.trace_xxh3=abc",),
            "links.trace_xxh3 must be null when links.trace is null (got 'abc')",
        ),
        (
            ("clients.count=3", "clients.max_densities=[1, 0.5]"),
            "clients.max_densities must have 3 values when clients.count is 3 (got 2)",
        ),
        (
            ("method=fedbuff", "aggregation.buffered=true"),
            "aggregation.buffered must be false when aggregation.rule is 'fedbuff' (got true): "
            "a change is added only once",
        ),
        (
            ("aggregation.mix_share=0.5",),
            "aggregation.mix_share must be null when aggregation.rule is 'mask_aware' (got 0.5)",
        ),
        (
            ("aggregation.server_learning_rate=0.5",),
            "aggregation.server_learning_rate must be 1 when aggregation.rule is 'mask_aware' "
            "(got 0.5)",
        ),
        (
            ("method=fiarse", "submodel.score=g"),
            "submodel.score must be 'w' when submodel.kind is 'magnitude' (got 'g')",
        ),
        (
            ("model.name=transformer", "model.init=kaiming"),
            "model.init must be 'paper' when model.name is 'transformer' (got 'kaiming')",
        ),
        (
            ("submodel.scaler=true",),
            "submodel.scaler must be false when submodel.kind is 'importance' (got true)",
        ),
        (
            ("submodel.width_rates=[0.5]",),
            "submodel.width_rates must be [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1] when submodel.kind is "
            "'importance' (got [0.5])",
        ),
    ],
)
def test_a_value_that_another_one_rules_out_is_named(overrides, line):
    assert errors(*overrides) == [line]


def test_every_wrong_fault_is_named():
    plan = "[{kind: drop, client: 3}, {kind: cut, client: 2}, {kind: delay, client: 9}]"
    assert {line.split()[0] for line in errors("clients.count=3", f"faults={plan}")} == {
        "faults",
        "faults.0.client",
        "faults.2.client",
    }


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("admission.kind=window",), "admission.kind"),
        (("aggregation.rule=average",), "aggregation.rule"),
        (("submodel.kind=importance", "submodel.refresh=round"), "submodel.refresh"),
        (("clients.sampled=3",), "clients.sampled"),
        (("clients.availability=who.csv",), "clients.availability"),
    ],
)
def test_control_variates_need_the_mean_of_the_same_clients(overrides, key):
    (line,) = errors("method=scaffold", *overrides)
    assert line.startswith(f"{key} must be ") and "when train.objective is 'scaffold'" in line
    assert line.endswith(": control variates need the mean of the same clients over several rounds")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ("wire.dtype=fp16",),
            "wire.dtype must be 'fp32' when train.objective is 'scaffold' (got 'fp16'): "
            "control variates are found in weights, which must not be rounded",
        ),
        (
            ("train.momentum=0.9",),
            "train.momentum must be 0 when train.objective is 'scaffold' (got 0.9): "
            "with momentum a step is longer than the rate times the gradient",
        ),
        (
            ("method=wo_asyn", "train.objective=scaffold"),
            "submodel.gate_biases must be false when train.objective is 'scaffold' (got true): "
            "a gated bias comes back as it was sent",
        ),
    ],
)
def test_what_would_falsify_control_variates_is_refused(overrides, line):
    row = () if overrides[0].startswith("method=") else ("method=scaffold",)
    assert errors(*row, *overrides) == [line]


def test_gated_biases_are_no_matter_to_whole_models():
    config = load_config(None, ["method=scaffold", "submodel.gate_biases=true"])
    assert config.train.objective == "scaffold"


def test_an_option_of_another_objective_is_refused():
    assert errors("method=scaffold", "train.proximal_mu=1") == [
        "train.proximal_mu must be 0.01 when train.objective is 'scaffold' (got 1)"
    ]


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            "{kind: flood}",
            "faults.0.kind must be 'delay', 'cut', 'drop', 'corrupt' or 'duplicate' (got 'flood')",
        ),
        ("{kind: cut, client: -1}", "faults.0.client must be at least 0 (got -1)"),
        ("{kind: cut, probability: 2}", "faults.0.probability must be at most 1 (got 2)"),
        ("{kind: cut, at_s: -1}", "faults.0.at_s must be at least 0 (got -1)"),
    ],
)
def test_a_wrong_value_of_a_fault_is_named_by_its_index(fault, line):
    assert errors("clock=wall", f"faults=[{fault}]") == [line]


@pytest.mark.parametrize(
    "overrides",
    [
        ("clock=wall", "clients.count=3", "faults=[{kind: drop, client: 2}]"),
        ("links.trace=speeds.csv", "links.trace_period_s=2.5"),
        ("links.trace=speeds.csv",),
        ("admission.kind=count", "admission.count=3", "clients.count=3"),
    ],
)
def test_what_nothing_rules_out_is_taken(overrides):
    assert isinstance(load_config(None, overrides), Config)


def test_a_missing_file_lists_the_named_runs():
    with pytest.raises(
        ValueError, match=f"^there is no run 'nope' .give a file, or one of '{RUNS[0]}', "
    ):
        load_config("nope")


@pytest.mark.parametrize("path", ["/tmp/nope/nope", "runs/nope", "nope.yaml"])
def test_a_path_that_does_not_exist_says_so(path):
    with pytest.raises(
        ValueError, match=rf"^--config must be a file that exists \(got '{path}'\)$"
    ):
        load_config(path)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words", "a: [1"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="run.yaml"):
        load_config(path)


# --- precedence


def test_the_method_sets_the_axes_and_the_file_and_overrides_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("method: fedavg\nadmission: {slack_s: 2}\ntrain: {steps: 7, batch: 3}\n")
    config = load_config(path, ["train.batch=4", "transmission=increments"])
    assert (config.submodel.kind, config.admission.kind) == ("full", "barrier")  # of the row
    assert (config.admission.slack_s, config.train.steps) == (2, 7)  # of the file
    assert (config.train.batch, config.transmission) == (4, "increments")  # overridden


def test_an_override_can_change_the_method():
    assert load_config("digits", ["method=fedavg"]).aggregation.rule == "average"


def test_later_overrides_are_laid_over_earlier_ones():
    assert load_config(None, ["seed=1", "train.batch=3"], ["seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("seed=1", "seed=2"), "seed must be set only once (got seed=1 and seed=2)"),
        (("seed=1", "seed=1"), "seed must be set only once (got seed=1 and seed=1)"),
        (
            ("run={max_rounds: 3}", "run.max_rounds=4"),
            "run.max_rounds must be set only once (got run={max_rounds: 3} and run.max_rounds=4)",
        ),
        (("seed.x=2", "seed=1"), "seed must be set only once (got seed.x=2 and seed=1)"),
        (
            ("run={seed: 1, seed: 2}",),
            "run must be valid YAML (got '{seed: 1, seed: 2}'): line 1: seed must be set only once",
        ),
    ],
)
def test_a_repeated_override_is_refused(words, line):
    assert errors(*words)[0].startswith(line)


def test_an_override_of_a_group_keeps_its_other_keys():
    config = load_config("femnist", ["run={interval_rounds: 3}", "data.root=x"])
    assert config.run.max_rounds == load_config("femnist").run.max_rounds
    assert config.run.interval_rounds == 3 and load_config(None, ["run={}"]) == load_config()


def test_several_files_are_laid_over_each_other(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 7\nmethod: fedavg\ntrain: {steps: 3, batch: 4}\n")
    second.write_text("train: {batch: 5}\n")
    config = load_config([first, second, {"train": {"momentum": 0.5}}], ["seed=8"])
    assert (config.seed, config.method) == (8, "fedavg")
    assert (config.train.steps, config.train.batch, config.train.momentum) == (3, 5, 0.5)
    assert load_config([second, first]).train.batch == 4 and load_config([]) == load_config()


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.learning_rate=1e-3", lambda c: c.train.learning_rate, 0.001),
        ("train.learning_rate=0.25", lambda c: c.train.learning_rate, 0.25),
        ("run.max_time_s=null", lambda c: c.run.max_time_s, None),
        ("aggregation.buffered=true", lambda c: c.aggregation.buffered, True),
        ("results.path=a=b.h5", lambda c: c.results.path, "a=b.h5"),
        ("data.name=femnist", lambda c: c.data.name, "femnist"),
    ],
)
def test_override_values_are_read_by_their_keys_type(override, read, value):
    assert read(load_config(None, [override])) == value


@pytest.mark.parametrize(
    "override", ["seed", "=3", "seed.deep=[1", "train.steps", "seed=[1"], ids=str
)
def test_a_malformed_override_is_refused(override):
    with pytest.raises(ValueError, match=r"seed|train\.steps|=3"):
        load_config(None, [override])


def test_a_list_that_the_shell_has_cut_hints_at_quotes():
    with pytest.raises(
        ValueError, match=r"faults must be valid YAML \(got '\[\{kind:'\); in a shell"
    ):
        load_config(None, ["faults=[{kind:"])


def test_an_override_below_a_value_is_refused():
    with pytest.raises(
        ValueError, match="seed must be a mapping of keys when seed.x is set .got 1"
    ):
        load_config({"seed": 1}, ["seed.x=2"])


# --- round trip


@pytest.mark.parametrize("method", METHODS)
def test_a_rendered_configuration_loads_to_an_equal_one(tmp_path, method):
    changes = ["train.learning_rate=1e-5", "run.max_time_s=3", "data.root=a: b #c"]
    config = load_config(None, [f"method={method}", *changes])
    path = tmp_path / "run.yaml"
    path.write_text(render_config(config))
    assert load_config(path) == config


def test_rendered_shares_load_again(tmp_path):
    config = load_config(None, ["clients.count=2", "clients.shares=[1, 0.05]", "method=fedasync"])
    path = tmp_path / "run.yaml"
    path.write_text(render_config(config))
    assert load_config(path).clients.bandwidth_shares() == (1.0, 0.05)


def test_rendered_faults_load_again(tmp_path):
    faults = "[{kind: delay, client: 1, delay_s: 0.5}, {kind: cut, at_s: 2, for_s: 3}]"
    config = load_config(None, ["clock=wall", f"faults={faults}"])
    path = tmp_path / "run.yaml"
    path.write_text(render_config(config))
    again = load_config(path)
    assert again == config
    assert [(fault.kind, fault.client, fault.for_s) for fault in again.faults] == [
        ("delay", 1, 1e9),
        ("cut", None, 3.0),
    ]


def test_loading_does_not_change_what_it_was_given():
    values = {"method": "fedavg", "train": {"steps": 3}}
    make_config(values)
    assert values == {"method": "fedavg", "train": {"steps": 3}}


def test_a_configuration_is_frozen():
    config = make_config({})
    for section, key in ((config, "seed"), (config.train, "steps")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 3)


def _leaves(prefix: str, section: Section) -> Iterator[str]:
    for name, value in section:
        if isinstance(value, Section):
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield prefix + name


def test_the_reference_describes_every_key():
    lines = describe_keys().splitlines()
    assert [line.split()[0] for line in describe_keys("eval").splitlines()[::2]] == [
        "eval.every_s",
        "eval.submodels",
        "eval.client_samples",
        "eval.chunk",
        "eval.norm_samples",
    ]
    assert describe_keys("run.max_rounds").startswith("run.max_rounds = 500\n")
    assert describe_keys("max_round") == describe_keys("run.max_rounds")  # part of a name
    with pytest.raises(ValueError, match="^no key has max_ruonds .* did you mean 'run.max_rounds'"):
        describe_keys("max_ruonds")
    keys = {line.split(" = ")[0] for line in lines if not line.startswith("    ")}
    assert keys == set(_leaves("", make_config({})))
    assert all(line.strip() for line in lines)


# --- bandwidth shares


@pytest.mark.parametrize(
    ("count", "level", "expected"),
    [
        (10, "high", [1, 0.5, 0.2, 0.1] + [0.05] * 6),
        (10, "medium", [1, 0.5, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05]),
        (10, "low", [1, 1, 0.5, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05]),
        (1, "high", [0.05]),
        (1, "low", [0.05]),
        (7, "high", [0.05] * 7),
        (7, "medium", [0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]),
        (7, "low", [1, 0.5, 0.2, 0.1, 0.05, 0.05, 0.05]),
        (100, "high", [1] * 10 + [0.5] * 10 + [0.2] * 10 + [0.1] * 10 + [0.05] * 60),
        (100, "medium", [1] * 10 + [0.5] * 10 + [0.2] * 20 + [0.1] * 30 + [0.05] * 30),
        (100, "low", [1] * 20 + [0.5] * 20 + [0.2] * 20 + [0.1] * 20 + [0.05] * 20),
    ],
)
def test_shares_of_a_level(count, level, expected):
    assert shares(count, level) == expected


@pytest.mark.parametrize(("level", "mean"), [("high", 0.21), ("medium", 0.235), ("low", 0.37)])
def test_mean_densities_of_section_1_1(level, mean):
    assert sum(shares(10, level)) / 10 == pytest.approx(mean)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.sampled_from(["high", "medium", "low"]))
def test_every_client_has_a_share_fastest_first(count, level):
    found = shares(count, level)
    assert len(found) == count
    assert found == sorted(found, reverse=True)


def test_given_shares_take_the_place_of_the_level():
    config = make_config({"clients": {"count": 3, "shares": [0.3, 1, 0.2]}})
    assert config.clients.bandwidth_shares() == (0.3, 1.0, 0.2)


# --- shipped files


def test_method_names_are_the_files():
    assert method_names() == METHODS
    assert {"fedgmr", "wo_gmr", "fedavg", "fedasync"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_loads(method):
    assert load_config(None, [f"method={method}"]).method == method


@pytest.mark.parametrize("run", RUNS)
def test_every_run_loads_by_name_and_by_path(run):
    config = load_config(run)
    assert isinstance(config, Config)
    assert load_config(configs_dir() / "runs" / f"{run}.yaml") == config


@pytest.mark.parametrize(
    ("method", "axes"),
    [  # docs/method.md#rows: sub-model, trigger, rule, buffered, admission, transmission
        ("fedgmr", ("importance", "plateau", "mask_aware", True, "window", "increments")),
        ("wo_gmr", ("importance", "none", "mask_aware", True, "window", "increments")),
        ("fedavg", ("full", "none", "average", False, "barrier", "whole")),
        ("fedasync", ("full", "none", "mix", False, "window", "whole")),
    ],
)
def test_method_rows(method, axes):
    c = make_config({"method": method})
    assert axes == (
        c.submodel.kind,
        c.restoration.trigger,
        c.aggregation.rule,
        c.aggregation.buffered,
        c.admission.kind,
        c.transmission,
    )
    assert c.aggregation.exponent == 0.6


@pytest.mark.parametrize(
    ("run", "model", "rounds", "interval", "nominal_mb", "total_time_s"),
    [
        ("femnist", "conv2", 10_000, 25, 25.9811, 70_000),
        ("cifar10", "vgg11", 20_000, 50, 37.20398, 220_000),
    ],
)
def test_runs_of_the_paper_follow_section_1_3(
    run, model, rounds, interval, nominal_mb, total_time_s
):
    c = load_config(run)
    assert (c.model.name, c.run.max_rounds, c.run.interval_rounds) == (model, rounds, interval)
    assert (c.links.nominal_mb, c.restoration.total_time_s) == (nominal_mb, total_time_s)
    assert (c.train.steps, c.train.batch, c.train.loss) == (5, 20, "bce")
    assert (c.train.learning_rate, c.train.momentum, c.train.weight_decay) == (0.25, 0, 0)


# --- what a review found


def test_keys_are_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("run:\n  on: 2\n")
    with pytest.raises(ValueError, match=r"run\.on is not a key \(keys of run: max_rounds"):
        load_config(path)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("method=fedavg", "submodel.score=g"), "submodel.score"),
        (("method=fedasync", "aggregation.max_entries=3"), "aggregation.max_entries"),
        (("results.path=",), "results.path"),
        (("train.batch=1000000000",), "train.batch"),
    ],
)
def test_a_choice_without_effect_is_refused(overrides, key):
    (line,) = errors(*overrides)
    assert line.startswith(f"{key} must be ")


def test_an_unknown_key_inside_a_fault_lists_the_known_ones():
    (line,) = errors("faults=[{kind: drop, foo: 1}]")
    assert line.startswith("faults.0.foo is not a key (keys of faults.0: kind, client, direction")


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_words_that_yaml_reads_as_truth_values_may_come_unquoted(word):
    config = load_config(None, [f"results.locking={word}"])
    assert config.results.locking == word
    assert f"locking: {word}" in render_config(config).replace("'", "")


@pytest.mark.parametrize(
    ("word", "limit"),
    [
        ("run.timeout_s=5e9", "1000000000"),
        ("run.interval_rounds=100000000000000000000", "1000000000000000"),
        ("links.compute_s=1e308", "1e+30"),
        ("links.nominal_mb=1e20", "1000000000"),
        ("train.learning_rate=1e300", "1e+30"),
    ],
)
def test_numbers_that_no_run_can_bear_are_refused(word: str, limit: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ValueError, match=re.escape(f"{key} must be at most {limit} (got ")):
        load_config(None, [word])
