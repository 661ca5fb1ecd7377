"""The tables of docs/method.md say what the code does: parsed and compared, one by one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.methods import method_names
from fedgmr_hpc.config.sections import LEVELS, RUNGS, ClientsConfig, LinksConfig
from fedgmr_hpc.models import make_layout

PAGE = Path(__file__).parents[2] / "docs" / "method.md"
MODELS = {
    "Conv2": "conv2",
    "VGG-11": "vgg11",
    "ResNet-18": "resnet18",
    "transformer": "transformer",
}
RUNS = {
    "FEMNIST": "femnist",
    "CIFAR-10": "cifar10",
    "ImageNet-100": "imagenet100",
    "StackOverflow": "stackoverflow",
}
UNITS = {"first units": "width_prefix", "rolling units": "width_rolling"}
RULES = {"MA": "mask_aware", "FA": "average", "GA": "gradient"}


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The cells of a section's table, head first, without its rule."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", section(heading), re.MULTILINE)
    rows = [
        [cell.strip(" `") for cell in line[1:-1].split("|")] for line in blocks[number].split("\n")
    ]
    return [row for row in rows if len(row) > 1 and not set("".join(row)) <= set("-")]


def numbers(text: str) -> list[float]:
    return [
        float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*\.?\d*(?:e-\d+)?|\.\d+", text)
    ]


def test_levels() -> None:
    head, *rows = table("Levels")
    assert tuple(map(float, head[1:6])) == RUNGS
    for level, *cells in rows:
        shares = ClientsConfig(level=level).bandwidth_shares()
        assert tuple(map(float, cells[:5])) == LEVELS[level]
        assert float(cells[6]) == pytest.approx(np.mean(shares))


def test_links() -> None:
    links, text = LinksConfig(), section("Links")
    client, server = links.client_sigma, links.server_sigma
    assert f"{links.client_down_bytes_per_s / 1e6:g} MB/s down" in text
    assert f"{links.client_up_bytes_per_s / 1e6:g} MB/s up" in text
    assert f"{links.server_up_bytes_per_s / 1e6:g} MB/s" in text
    assert f"{links.server_down_bytes_per_s / 1e6:g} MB/s" in text
    assert f"s = {client:g} for clients (mean factor {np.exp(client**2 / 2):.3f}" in text
    assert f"s = {server:g} for the server ({np.exp(server**2 / 2):.3f}" in text
    assert f"mean of {links.num_draws} log-normal draws" in text


def test_models() -> None:
    for name, *cells in table("Models")[1:]:
        layout = make_layout(MODELS[name])
        prunable = [entry for entry in layout.entries if entry.prunable]
        num_dense = layout.num_weights - layout.num_prunable
        found = [layout.num_trainable, layout.num_prunable, len(prunable), num_dense]
        assert [numbers(cell)[0] for cell in cells] == found


def test_layer_costs() -> None:
    for line in section("Layer costs").split("\n* ")[1:4]:
        model = MODELS[re.findall(r"\*\*(.*?)\*\*", line)[0]]
        costs = [entry.cost for entry in make_layout(model).entries if entry.prunable]
        assert numbers(re.sub(r"conv\d|fc\d?|\*\*.*?\*\*", "", line))[: len(costs)] == costs


def test_width_shares() -> None:
    head, *rows = table("Width methods")
    for name, *cells in rows:
        parts = [make_layout(MODELS[name], "width_prefix", float(each)) for each in head[1:]]
        shares = [part.num_trainable / parts[0].num_trainable for part in parts]
        assert list(map(float, cells)) == pytest.approx(shares, abs=6e-4)


def test_rows() -> None:
    head, *rows = table("Rows")
    named = [name.strip(" `") for row in rows for name in row[0].split(",")]
    others = {"fedgmr_two_stage", "fedgmr_wg", "fedgmr_timed"}
    assert sorted(named) == sorted(set(method_names()) - others)
    for names, submodel, restoration, rule, admission, transmission in rows:
        triggers = [word.strip() for word in restoration.replace(", ladder", "").split(",")]
        for name, trigger in zip(names.split(","), triggers, strict=True):
            config = load_config(None, [f"method={name.strip(' `')}"])
            kind = UNITS.get(submodel, submodel.replace(" ", "_"))
            assert (config.submodel.kind, config.restoration.trigger) == (kind, trigger)
            merging, words = config.aggregation, re.split(r"[ ,]+", rule)
            assert merging.rule == RULES.get(words[0], words[0])
            assert (merging.buffered, merging.staleness in words) == ("buffered" in words, True)
            if merging.staleness == "poly":
                assert merging.exponent == (0.5 if "poly a = 0.5" in rule else 0.6)
            assert f"{config.admission.kind} {config.admission.count or ''}".strip() == admission
            assert config.transmission == transmission


def test_local_training() -> None:
    head, *rows = table("Local training")
    cells = {row[0]: row[1:] for row in rows}
    for column, data in enumerate(head[1:]):
        config = load_config(RUNS[data], ["data.root=/"])
        train, run = config.train, config.run
        said = {name: row[column] for name, row in cells.items()}
        assert numbers(said["E, B"]) == [train.steps, train.batch]
        assert said["loss"].startswith({"bce": "BCE"}.get(train.loss, "cross-entropy"))
        decay = [train.decay_factor, train.decay_rounds, train.max_decays]
        assert numbers(said["decay"]) == ([each for each in decay if each] if decay[0] < 1 else [])
        exact = ("learning rate", "momentum", "weight decay", "rounds", "comparison time T (s)")
        assert [float(said[name].replace(",", "")) for name in exact] == [
            train.learning_rate,
            train.momentum,
            train.weight_decay,
            run.max_rounds,
            config.restoration.total_time_s,
        ]


@pytest.mark.parametrize("data", RUNS)
def test_values_of_data_sets(data: str) -> None:
    config = load_config(RUNS[data], ["data.root=/"])
    assert f"{config.links.nominal_mb:g}" in section("Nominal sizes").replace("37.20398", "37.204")
    assert f"{data} {config.restoration.patience}" in " ".join(section("Patience").split())
    by_k = re.findall(r"(\d+) for ([\w, -]+?)(?=, \d|\.)", section("Refreshes"))
    assert next(int(k) for k, names in by_k if data in names) == config.run.interval_rounds


def test_deviations_are_numbered_in_turn() -> None:
    found = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert list(map(int, found)) == list(range(1, len(found) + 1))
