"""The labels of a study's cells, and what rows and columns are called: raw names, and titles.

A raw name has a part for each of its keys: `high, iid` or `fedgmr, patience 5`, words by
themselves, numbers with their key. A title has a title for each part, of the study's `labels`

    labels: {wo_gmr: fixed sub-models, patience 5: five plateaus, clients.level: level}

for a word, for a number with its key, or for a key, which then stands before its values; else a
method has the title of its row (configs/methods), and other parts stay as they are. Only tables,
figures and pages show titles: no label changes which runs a study has.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedgmr_hpc.config.messages import did_you_mean, must
from fedgmr_hpc.config.methods import short_name
from fedgmr_hpc.reporting.words import part_of, text_of

Labels = dict[str, Any]  # dotted key -> value
# Tables of a report, which may be given other captions.
CAPTIONED = (
    "claims",
    "test_accuracy",
    "differences",
    "cost_to_accuracy",
    "own_submodels",
    "legacy",
    "tuning",
    "tuning_costs",
    "cells",
)


def label_of(labels: Labels, keys: Iterable[str]) -> str:
    """Return the raw name of some keys' values; `all` for none."""
    return ", ".join(part_of(key, labels[key]) for key in keys if key in labels) or "all"


def title_of(labels: Labels, keys: Iterable[str], shown: Mapping[str, str]) -> str:
    """Return the title of some keys' values.

    Args:
        shown: the study's `labels`, and the titles of methods under their raw names.
    """
    found = (_title(key, labels[key], shown) for key in keys if key in labels)
    return ", ".join(found) or "all"


def unknown_labels(
    labels: Collection[str], captions: Collection[str], values: Mapping[str, Sequence[Any]]
) -> list[str]:
    """Return a line for each label and caption of what a study does not have.

    Args:
        values: those of every key that the study varies or tunes.
    """
    parts = list(dict.fromkeys(_parts(values)))
    named = f"name what the study varies, such as {', '.join(parts[:3])}"
    tables = f"name tables: {', '.join(CAPTIONED)}"
    return [
        must(key, need, got) + did_you_mean(got, known)
        for key, given, known, need in (
            ("labels", labels, parts, named),
            ("captions", captions, CAPTIONED, tables),
        )
        for got in given
        if got not in known
    ]


def _title(key: str, value: Any, shown: Mapping[str, str]) -> str:
    part = part_of(key, value)
    if part in shown or key not in shown:
        return shown.get(part, part)
    return f"{shown[key]} {part if isinstance(value, str) else text_of(value)}"


def _parts(values: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield what can have a label: parts of raw names first, then keys."""
    for key, each in values.items():
        names = (short_name(str(value)) if key == "method" else value for value in each)
        yield from (part_of(key, name) for name in names)
    yield from (key for key in values if key != "method")


def label_sets(blocks: Iterable[Mapping[str, Any]], exclude: Iterable[Labels]) -> list[Labels]:
    """Return the varied keys and values of every cell: all combinations of each block of lists,
    without those that fit one of `exclude`.
    """
    found: dict[str, Labels] = {}
    for block in blocks:
        lists = [v if isinstance(v, list) else [v] for v in block.values()]
        for values in itertools.product(*lists) if block else ():
            labels = dict(zip(block, values, strict=True))
            if not any(matches(labels, excluded) for excluded in exclude):
                found.setdefault(json.dumps(_plain(labels), sort_keys=True), labels)
    return list(found.values())


def _plain(value: Any) -> Any:
    """Return a value in which 1.0 is 1, for which it is another way to write."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def matches(labels: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether `labels` has every wanted value; a list allows any of its values."""
    return all(
        key in labels and labels[key] in (value if isinstance(value, list) else [value])
        for key, value in wanted.items()
    )
