"""A study's YAML file: which cells, compared with what, when and at which accuracies.

    title: ...                             one line
    base: femnist                          a named run, a file, or its content
    set: {run.max_time_s: 70000}           dotted keys, for every cell
    plugins: [./mine.py]                   files and modules with choices of one's own
    methods: {mine: {base: fedgmr, ...}}   rows of one's own, which the cells can name
    matrix: {method: [...], seed: [...]}   dotted key -> values; all combinations are cells
    cells: [{method: fedasync, seed: [0]}] more cells; lists are combined as in the matrix
    exclude: [{method: fjord, seed: 2}]    cells left out, where all of these values fit
    rows: [method]                         keys that make a table's row; the others make columns
    reference: fedgmr                      the row (or its values) that differences refer to
    comparison_time_s: 70000               T; accuracies are compared there, and runs end there with
                                           eval.every_s, else a little later, unless they say
                                           run.max_time_s
    last: 5                                m: looks averaged, and window of moving means; the one at
                                           0 s must not be among them
    targets: [0.7, 0.8]                    accuracies for time-, bytes- and steps-to-accuracy
    ranks: 1, max_parallel: 2              ranks of a cell, cells at a time (default: cores / ranks)
    tune: {train.learning_rate: [...]}     dotted key -> values, chosen for every row and column
    tune_cells: 3                          combinations tried of them (default: all; see below)
    tune_seeds: [1000]                     seeds of the trials, none of which is a cell's
    tune_time_s: 35000                     when trials are judged (default: T)
    claims: [...]                          see claims.py
    labels: {wo_gmr: fixed sub-models}     titles in place of names (labels.py); without, those of
                                           the methods' rows
    captions: {test_accuracy: ...}         captions of tables, by the name of their files

What is tuned is chosen by validation accuracy in trials of their own, before the row's other cells
run (tuning.py). A key that has no effect in a row, as `restoration.patience` without restoration,
is not varied there, nor `restoration.fixed_step` beside another `restoration.step`. So that such
rows get no more trials than the others, `tune_cells` bounds the combinations: the first values of
all keys together, the second ones, and so on round the shorter lists, then the same with later keys
moved on by one.

Paths of rows (`method: [./mine.yaml]`) and plug-ins are taken from the study's folder.

On the command line `key=value` sets a key in every cell; a key that the cells vary or tune takes a
list and replaces its values. A reference and claims that name a value which is gone then go, too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Discriminator, Field, Tag

from fedgmr_hpc.config.choices.section import Count, Number, Positive, Section
from fedgmr_hpc.config.messages import must, must_be, unknown_name
from fedgmr_hpc.config.overrides import leaves, parse_values
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.validation import validate
from fedgmr_hpc.config.yaml_file import configs_dir, read_mapping
from fedgmr_hpc.study.labels import unknown_labels
from fedgmr_hpc.study.named_files import files_from
from fedgmr_hpc.study.notices import warn_once

PAST_FRAC = 0.05  # of T, that runs go on where evaluations come at no known times
Seed = Annotated[int, Field(ge=0, strict=True)]
Accuracy = Annotated[Number, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Row = str | dict[str, Any]


class _Claim(Section):
    """What every claim about a row `a` against each row `b` says; see claims.py."""

    name: str
    a: Row
    b: Row | Annotated[list[Row], Field(min_length=1)]
    where: dict[str, Any] = {}
    at_s: Positive | None = None

    def opponents(self) -> list[Row]:
        """Return the rows `b`: one comparison each."""
        return self.b if isinstance(self.b, list) else [self.b]

    def full_model(self) -> Row | None:
        """Return the row that both are measured against, if there is one."""
        return None


class DifferenceClaim(_Claim):
    """Row `a` is more accurate than row `b`: the full model, or the clients' own sub-models, their
    mean or those of the worst class.
    """

    kind: Literal["difference"]
    of: Literal["test", "own_mean", "own_worst"] = "test"


class TimeRatioClaim(_Claim):
    """Row `a` reaches the accuracy `target` sooner."""

    kind: Literal["time_ratio"]
    target: Accuracy


class GapNarrowingClaim(_Claim):
    """Row `a` is nearer than row `b` to the row `full`."""

    kind: Literal["gap_narrowing"]
    full: Row

    def full_model(self) -> Row | None:
        """Return the row `full`."""
        return self.full


class StabilityClaim(_Claim):
    """The last `window` versions seen of row `a` scatter less, and no run drops by `max_drop`."""

    kind: Literal["stability"]
    window: Annotated[int, Field(ge=2, strict=True)] = 10
    max_drop: Accuracy = 0.05


def _kind(claim: Any) -> Any:
    """Return what chooses a claim's form; by a function, since sections check fields beforehand."""
    return claim.get("kind") if isinstance(claim, Mapping) else getattr(claim, "kind", None)


ClaimSpec = Annotated[
    Annotated[DifferenceClaim, Tag("difference")]
    | Annotated[TimeRatioClaim, Tag("time_ratio")]
    | Annotated[GapNarrowingClaim, Tag("gap_narrowing")]
    | Annotated[StabilityClaim, Tag("stability")],
    Discriminator(_kind),
]


class StudyFile(Section):
    """The content of a study file; see the module docstring."""

    title: str
    base: str | dict[str, Any] = "digits"
    settings: dict[str, Any] = Field(default={}, alias="set")
    plugins: tuple[str, ...] = ()
    methods: dict[str, dict[str, Any]] = {}
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
    labels: dict[str, Text] = {}
    captions: dict[str, Text] = {}
    tune: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    tune_cells: Count | None = None
    tune_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1000,)
    tune_time_s: Positive | None = None

    def varied(self) -> list[str]:
        """Return the dotted keys that the cells vary, in the file's order."""
        blocks = [self.matrix, *self.cells]
        return list(dict.fromkeys(key for block in blocks for key in block))

    def all_values(self) -> dict[str, list[Any]]:
        """Return every value of the keys that are varied or tuned, the seed excepted."""
        found: dict[str, list[Any]] = {}
        for block in (self.matrix, *self.cells, self.tune):
            for key, values in block.items():
                found.setdefault(key, []).extend(values if isinstance(values, list) else [values])
        return {key: values for key, values in found.items() if key != "seed"}

    def bases(self) -> list[str | dict[str, Any]]:
        """Return what the configurations of all cells begin with."""
        own = {"plugins": list(self.plugins), "methods": self.methods}
        return [self.base, {key: value for key, value in own.items() if value}]

    def row_keys(self) -> tuple[str, ...]:
        """Return a table row's keys: `rows`, else the method, else the first key but the seed."""
        keys = [key for key in self.varied() if key != "seed"]
        return self.rows or (("method",) if "method" in keys else tuple(keys[:1]))

    def column_keys(self) -> tuple[str, ...]:
        """Return the keys of a table's column: what is varied beyond rows and seed."""
        return tuple(key for key in self.varied() if key not in (*self.row_keys(), "seed"))

    def combinations(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Return the combinations of values of some tuned keys, in the order of the module
        docstring; for no keys one without values.
        """
        lists = [list({json.dumps(v): v for v in self.tune[key]}.values()) for key in keys]
        sizes = [len(values) for values in lists]
        longest = max(sizes, default=1)
        shifts = itertools.product(*(range(size) for size in sizes))
        index_sets = dict.fromkeys(
            tuple((turn + by) % size for by, size in zip(shift, sizes, strict=True))
            for shift in shifts
            for turn in range(longest)
        )
        return [
            dict(zip(keys, (v[i] for v, i in zip(lists, indices, strict=True)), strict=True))
            for indices in index_sets
        ]

    def compared_until_s(self) -> float:
        """Return the last virtual time at which anything is compared."""
        return max([self.comparison_time_s, *(c.at_s for c in self.claims if c.at_s is not None)])

    def tuned_at_s(self) -> float:
        """Return the virtual time at which trials are judged."""
        return self.tune_time_s or self.comparison_time_s

    def judged_at_s(self, is_trial: bool) -> dict[str, float]:
        """Return the times at which means of looks are taken, by the key that says so."""
        if is_trial:
            return {
                "comparison_time_s"
                if self.tune_time_s is None
                else "tune_time_s": self.tuned_at_s()
            }
        own = {f"claims.{i}.at_s": c.at_s for i, c in enumerate(self.claims) if c.at_s is not None}
        return {"comparison_time_s": self.comparison_time_s} | own

    def end_s(self, at_s: float, config: Config) -> float:
        """Return when a run has all that is compared at `at_s`, the look at that time included."""
        return at_s if config.eval.every_s else (1 + PAST_FRAC) * at_s


def find_study(source: str | Path) -> Path:
    """Return the file of a study.

    Args:
        source: A path, or the name of a study in configs/studies.

    Raises:
        ValueError: There is none.
    """
    named = configs_dir() / "studies" / f"{source}.yaml"
    for path in (Path(source), named):
        if path.is_file():
            return path
    if Path(source).name != str(source) or Path(source).suffix in (".yaml", ".yml"):
        raise ValueError(must_be("STUDY", "a file that exists", str(source)))
    names = sorted(path.stem for path in named.parent.glob("*.yaml"))
    raise ValueError(unknown_name("study", source, names, or_else="a file"))


def load_study(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[StudyFile, list[str]]:
    """Read a study; overrides of keys that its cells vary or tune replace their values.

    Args:
        source: A name, a path, or the content.
        overrides: Words `key=value`.

    Returns:
        The study, and the overrides that hold for every cell.

    Raises:
        ValueError: One line for every wrong key or value.

    Example:
        >>> study, overrides = load_study("quick", ["seed=[0, 1]", "train.batch=10"])
        >>> study.matrix["seed"], overrides
        ([0, 1], ['train.batch=10'])
    """
    if isinstance(source, Mapping):
        folder, values = Path(), dict(source)
    else:
        path = find_study(source)
        folder, values = path.parent, read_mapping(path)
    study = validate(StudyFile, files_from(folder, values))
    wrong = unknown_labels(study.labels, study.captions, study.all_values())
    study, others = _replace_varied(study, overrides)
    if wrong := [*_contradictions(study), *wrong]:
        raise ValueError("\n".join(wrong))
    return study, others


def _replace_varied(study: StudyFile, overrides: Sequence[str]) -> tuple[StudyFile, list[str]]:
    """Replace values of varied and tuned keys; return the other overrides beside the study."""
    varied, new, others = [*study.varied(), *study.tune], {}, []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or key not in varied:
            others.append(override)
        elif key in new:
            raise ValueError(must_be(key, "set only once", found=f"{override}, too"))
        else:
            new[key] = parse_values(key, text)
    if hidden := sorted(leaves(others).keys() & set(varied)):
        how = f"be given as {hidden[0]}=VALUES"
        raise ValueError(must(hidden[0], how, when="the study varies it"))
    if not new:
        return study, others
    change = {
        "matrix": {key: new.get(key, old) for key, old in study.matrix.items()},
        "cells": tuple({k: new.get(k, old) for k, old in cell.items()} for cell in study.cells),
        "tune": {key: new.get(key, old) for key, old in study.tune.items()},
    }
    narrowed = _without_gone(study, study.model_copy(update=change))
    _tell_gone(study, narrowed)
    return narrowed, others


def _without_gone(before: StudyFile, study: StudyFile) -> StudyFile:
    """Return a study without a reference, claims and opponents that name a value which has gone."""
    own = study.all_values()
    gone = {
        key: [value for value in values if value not in own[key]]
        for key, values in before.all_values().items()
    }

    def is_gone(row: Row | None) -> bool:
        wanted = row if isinstance(row, dict) else {"method": row}
        any_of = {key: each if isinstance(each, list) else [each] for key, each in wanted.items()}
        return any(all(v in gone.get(key, ()) for v in values) for key, values in any_of.items())

    claims = [
        claim.model_copy(update={"b": against})
        for claim in study.claims
        if not any(map(is_gone, (claim.a, claim.where, claim.full_model())))
        and (against := [row for row in claim.opponents() if not is_gone(row)])
    ]
    reference = None if is_gone(study.reference) else study.reference
    return study.model_copy(update={"claims": tuple(claims), "reference": reference})


def _tell_gone(before: StudyFile, study: StudyFile) -> None:
    """Say that a study is without its reference or some claims, if it is."""
    num = len(before.claims) - len(study.claims)
    what = [*["its reference"] * (study.reference != before.reference)]
    what += [f"{num} of {len(before.claims)} claims"] * bool(num)
    if what:
        warn_once(f"without {' and '.join(what)}, which name what it does not run with these words")


def _contradictions(study: StudyFile) -> list[str]:
    """Return a line for each key that no cell varies where only varied ones make sense."""
    named = {f"exclude.{i}": list(cell) for i, cell in enumerate(study.exclude)}
    named |= {"rows": list(study.rows or ())}
    named |= {f"claims.{i}.where": list(claim.where) for i, claim in enumerate(study.claims)}
    varied = study.varied()
    wrong = [
        must(where, f"name keys that the cells vary, {', '.join(varied)}", key)
        for where, keys in named.items()
        for key in keys
        if key not in varied
    ]
    if study.rows and len(set(study.rows)) < len(study.rows):
        wrong.append(must("rows", "name each key once", list(study.rows)))
    wrong += [
        must("tune", "name keys that the cells do not vary, and neither method nor seed", key)
        for key in study.tune
        if key in (*varied, "method", "seed")
    ]
    return wrong if varied else [*wrong, must("matrix", "have at least one key with values")]
