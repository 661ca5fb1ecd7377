"""A study's YAML file: which cells, compared with what, when and at which accuracies.

    title: ...                             one line
    base: femnist                          a named run, a file, or its content
    set: {run.max_time_s: 70000}           dotted keys, for every cell
    matrix: {method: [...], seed: [...]}   dotted key -> values; all combinations are cells
    cells: [{method: fedasync, seed: [0]}] more cells; lists are combined as in the matrix
    exclude: [{method: fjord, seed: 2}]    cells left out, where all of these values fit
    rows: [method]                         keys that make a table's row; the others make columns
    reference: fedgmr                      the row (or its values) that differences refer to
    comparison_time_s: 70000               T; accuracies are compared there, and runs end a little
                                           past it, unless they say run.max_time_s
    last: 5                                m: looks averaged, and window of moving means
    targets: [0.7, 0.8]                    accuracies for time-, bytes- and steps-to-accuracy
    ranks: 1, max_parallel: 2              ranks of a cell, cells at a time (default: cores / ranks)
    tune: {train.learning_rate: [...]}     dotted key -> values, chosen for every row and column
    tune_cells: 3                          combinations tried of them (default: all; see below)
    tune_seeds: [1000]                     seeds of the trials, none of which is a cell's
    tune_time_s: 35000                     when trials are judged (default: T)
    claims: [...]                          see claims.py

What is tuned is chosen by validation accuracy in trials of their own, before the row's other cells
run (tuning.py). A key that has no effect in a row, as `restoration.patience` without restoration,
is not varied there. So that such rows get no more trials than the others, `tune_cells` bounds the
combinations: the first values of all keys together, the second ones, and so on round the shorter
lists, then the same with later keys moved on by one.

On the command line `key=value` sets a key in every cell; a key that the cells vary or tune takes a
list and replaces its values.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError

from fedgmr_hpc.config.axes import Count, Number, Positive, Section
from fedgmr_hpc.config.install import configs_dir
from fedgmr_hpc.config.overrides import leaves, parse_values
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.yaml_file import read_mapping

PAST_FRAC = 0.05  # of T, that runs go on where evaluations come at no known times
Seed = Annotated[int, Field(ge=0, strict=True)]
Accuracy = Annotated[Number, Field(gt=0, le=1)]
Row = str | dict[str, Any]
Kind = Literal["difference", "time_ratio", "gap_narrowing", "stability"]


class ClaimSpec(Section):
    """One claim about row `a` against each row `b`; claims.py says what each kind compares."""

    name: str
    kind: Kind
    a: Row
    b: Row | list[Row]
    full: Row | None = None
    where: dict[str, Any] = {}
    at_s: Positive | None = None
    target: Accuracy | None = None
    window: Annotated[int, Field(ge=2, strict=True)] = 10
    max_drop: Accuracy = 0.05

    def opponents(self) -> list[Row]:
        """The rows `b`: one claim each."""
        return self.b if isinstance(self.b, list) else [self.b]


class StudyFile(Section):
    """The content of a study file; see the module docstring."""

    title: str
    base: str | dict[str, Any] = "digits"
    settings: dict[str, Any] = Field(default={}, alias="set")
    matrix: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    cells: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    rows: tuple[str, ...] | None = None
    reference: Row | None = None
    comparison_time_s: Positive
    last: Count = 3
    targets: tuple[Accuracy, ...] = ()
    ranks: Count = 1
    max_parallel: Count | None = Field(
        default=None, validation_alias=AliasChoices("max_parallel", "side_by_side")
    )
    claims: tuple[ClaimSpec, ...] = ()
    tune: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    tune_cells: Count | None = None
    tune_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1000,)
    tune_time_s: Positive | None = None

    def varied(self) -> list[str]:
        """The dotted keys that the cells vary, in the file's order."""
        blocks = [self.matrix, *self.cells]
        return list(dict.fromkeys(key for block in blocks for key in block))

    def row_keys(self) -> tuple[str, ...]:
        """The keys of a table's row: `rows`, else the method, else the first key but the seed."""
        keys = [key for key in self.varied() if key != "seed"]
        return self.rows or (("method",) if "method" in keys else tuple(keys[:1]))

    def column_keys(self) -> tuple[str, ...]:
        """The keys of a table's column: what is varied beyond rows and seed."""
        return tuple(key for key in self.varied() if key not in (*self.row_keys(), "seed"))

    def combinations(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The values of some tuned keys that are tried together, at most `tune_cells` of them; one
        without values for no keys.
        """
        lists = [list({json.dumps(v): v for v in self.tune[key]}.values()) for key in keys]
        sizes = [len(values) for values in lists]
        longest = max(sizes, default=1)
        shifts = itertools.product(*(range(size) for size in sizes))
        places = dict.fromkeys(
            tuple((turn + by) % size for by, size in zip(shift, sizes, strict=True))
            for shift in shifts
            for turn in range(longest)
        )
        found = [
            dict(zip(keys, (v[i] for v, i in zip(lists, place, strict=True)), strict=True))
            for place in places
        ]
        return found[: self.tune_cells]

    def compared_until_s(self) -> float:
        """The last time at which anything is compared."""
        return max([self.comparison_time_s, *(c.at_s for c in self.claims if c.at_s is not None)])

    def tuned_at_s(self) -> float:
        """When trials are judged."""
        return self.tune_time_s or self.comparison_time_s

    def end_s(self, at_s: float, config: Config) -> float:
        """When a run has all that is compared at `at_s`, and `last` evaluations more."""
        every_s = config.eval.every_s
        return at_s + (self.last * every_s if every_s else PAST_FRAC * at_s)


def find_study(source: str | Path) -> Path:
    """The file of a study: a path, or the name of one in configs/studies.

    Raises:
        ValueError: there is none.
    """
    named = configs_dir() / "studies" / f"{source}.yaml"
    for path in (Path(source), named):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in named.parent.glob("*.yaml")))
    raise ValueError(f"study: got '{source}', allowed: a file, or one of {names}")


def load_study(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[StudyFile, list[str]]:
    """A study, its varied keys replaced where `overrides` name them, and the other overrides.

    Raises:
        ValueError: one line for every wrong key or value.
    """
    values = dict(source) if isinstance(source, Mapping) else read_mapping(find_study(source))
    try:
        study = StudyFile.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(_line(item) for item in error.errors())) from None
    study, others = _replace_varied(study, overrides)
    if wrong := _contradictions(study):
        raise ValueError("\n".join(wrong))
    return study, others


def _line(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = [f.alias or n for n, f in StudyFile.model_fields.items()]
        if error["loc"][0] == "claims":
            known = list(ClaimSpec.model_fields)
        return f"{key}: unknown key; known keys here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{key}: got nothing, allowed: a value (there is no default)"
    allowed = error.get("ctx", {}).get("expected") or error["msg"].lower()
    return f"{key}: got {error['input']!r}, allowed: {str(allowed).replace(' or ', ', ')}"


def _replace_varied(study: StudyFile, overrides: Sequence[str]) -> tuple[StudyFile, list[str]]:
    """Values of varied keys go into the matrix and the cells that name them, tuned ones too."""
    varied, new, others = [*study.varied(), *study.tune], {}, []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or key not in varied:
            others.append(override)
        elif key in new:
            raise ValueError(f"{key}: got {override} after another value, allowed: one word for it")
        else:
            new[key] = parse_values(key, text)
    if hidden := sorted(leaves(others).keys() & set(varied)):
        raise ValueError(f"{hidden[0]}: varied by the study, allowed: {hidden[0]}=VALUES by itself")
    if not new:
        return study, others
    change = {
        "matrix": {key: new.get(key, old) for key, old in study.matrix.items()},
        "cells": tuple({k: new.get(k, old) for k, old in cell.items()} for cell in study.cells),
        "tune": {key: new.get(key, old) for key, old in study.tune.items()},
    }
    return study.model_copy(update=change), others


def _contradictions(study: StudyFile) -> list[str]:
    """Keys that no cell varies, where only varied ones make sense."""
    named = {f"exclude.{i}": list(cell) for i, cell in enumerate(study.exclude)}
    named |= {"rows": list(study.rows or ())}
    named |= {f"claims.{i}.where": list(claim.where) for i, claim in enumerate(study.claims)}
    varied = study.varied()
    wrong = [
        f"{place}: got {key}, allowed: {', '.join(varied)}"
        for place, keys in named.items()
        for key in keys
        if key not in varied
    ]
    wrong += [
        f"tune: got {key}, allowed: keys that the cells do not vary, and neither method nor seed"
        for key in study.tune
        if key in (*varied, "method", "seed")
    ]
    if not varied:
        wrong.append("matrix: got no keys, allowed: at least one key with values")
    return wrong + [line for i, c in enumerate(study.claims) for line in _lacking(i, c)]


def _lacking(index: int, claim: ClaimSpec) -> list[str]:
    needs = {"time_ratio": "target", "gap_narrowing": "full"}
    key = needs.get(claim.kind)
    if key is None or getattr(claim, key) is not None:
        return []
    return [f"claims.{index}.{key}: got nothing, allowed with kind = {claim.kind}: a value"]
