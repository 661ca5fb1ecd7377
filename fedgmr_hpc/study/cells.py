"""The cells of a study: every combination of its values as one checked configuration.

A cell whose study tunes something is open: it has a run for each of the combinations of values that
its row uses, and trials, which are cells too, with other seeds, that judge them (tuning.py).

A cell's name is a readable slug and the hash of its configuration's identity (identity.py). Cells
of several studies that agree in it share one file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedgmr_hpc.config.choices.named_content import CONTENT_OF
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.identity import flat, identity, method_label, method_title
from fedgmr_hpc.config.messages import must, must_be, shown
from fedgmr_hpc.config.methods import short_name
from fedgmr_hpc.config.overrides import as_override, leaves
from fedgmr_hpc.config.rules import is_used
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.registry import describe_missing
from fedgmr_hpc.study.labels import Labels, label_of, label_sets, matches, title_of
from fedgmr_hpc.study.study_file import DifferenceClaim, Row, StudyFile

MAX_SLUG = 80


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        labels: the varied keys that it names, with its values.
        row: The raw name of its row in tables, and `column` that of its column (labels.py).
        row_title: What readers see of it, and `column_title` of the column.
        values: The tuned values: those tried by a trial, those chosen for another cell.
        tuning: What an untuned cell's values are chosen from; until then its configuration and
            digest are placeholders.
        pending_digest: The digest that it had before its values were chosen.
    """

    labels: Labels
    row: str
    column: str
    row_title: str
    column_title: str
    seed: int
    config: Config
    slug: str
    digest: str
    values: Labels = field(default_factory=dict)
    is_trial: bool = False
    tuning: Tuning | None = None
    pending_digest: str = ""

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.slug}-{self.digest}"


@dataclass(frozen=True)
class Candidate:
    """A combination of values: the run with it, and the trials that judge it, one for each seed."""

    run: Cell
    trials: tuple[Cell, ...]


@dataclass(frozen=True)
class Tuning:
    """What a cell's values are chosen from, by accuracy at `at_s`, a mean of `last` evaluations."""

    at_s: float
    last: int
    candidates: tuple[Candidate, ...]

    @property
    def trials(self) -> list[Cell]:
        """The trials of all candidates."""
        return [trial for candidate in self.candidates for trial in candidate.trials]


def expand(study: StudyFile, overrides: Sequence[str] = ()) -> list[Cell]:
    """Return every cell, resolved and checked: the trials, then the others in the file's order.

    Raises:
        ValueError: one line for each different mistake, with how many cells have it.
    """
    cells: list[Cell] = []
    wrong: dict[str, list[str]] = {}
    for labels in label_sets([study.matrix, *study.cells], study.exclude):
        try:
            cells.append(_make_cell(study, labels, overrides))
        except ValueError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(_slug(labels))
    for line, names in _missing_files(cells).items():
        wrong.setdefault(line, []).extend(names)
    if wrong:
        raise ValueError("\n".join(_counted(line, names) for line, names in wrong.items()))
    if not cells:
        raise ValueError(must("exclude", "leave at least one cell"))
    if shared := {cell.seed for cell in cells} & set(study.tune_seeds if study.tune else ()):
        raise ValueError(must("tune_seeds", "be seeds that no cell runs with", min(shared)))
    _check_distinct(cells)
    _check_titles(cells)
    for key, row in _named_rows(study):
        find_row(cells, row, key)
    _check_own_scores(study, cells)
    trials = {trial.digest: trial for cell in cells if cell.tuning for trial in cell.tuning.trials}
    return [*trials.values(), *cells]


def _check_own_scores(study: StudyFile, cells: Sequence[Cell]) -> None:
    """Check that what claims are about is measured.

    Raises:
        ValueError: a claim is about the clients' own sub-models, which a run does not score.
    """
    for index, claim in enumerate(study.claims):
        if not isinstance(claim, DifferenceClaim) or claim.of == "test":
            continue
        key = f"claims.{index}"
        rows = {find_row(cells, row, key) for row in (claim.a, *claim.opponents())}
        concerned = [c for c in cells if c.row in rows and matches(c.labels, claim.where)]
        if not all(cell.config.eval.submodels for cell in concerned):
            when = f"{key} is of {claim.of}"
            raise ValueError(must_be("eval.submodels", "true", False, when=when))


def _check_distinct(cells: Sequence[Cell]) -> None:
    """Check that no two runs are one in the tables.

    Raises:
        ValueError: two are, such as those of two files of one name; names both.
    """
    first: dict[tuple[str, str, int], Cell] = {}
    for cell in cells:
        other = first.setdefault((cell.row, cell.column, cell.seed), cell)
        if other.digest != cell.digest:
            found = f"{_without(other.labels, cell)} and {_without(cell.labels, other)}"
            because = f"both are {cell.row} in {cell.column}"
            raise ValueError(must("cells", "be told apart in tables", found=found, because=because))


def _check_titles(cells: Sequence[Cell]) -> None:
    """Check that no two rows, and no two columns, have one title.

    Raises:
        ValueError: two have; names them.
    """
    for names in ({c.row: c.row_title for c in cells}, {c.column: c.column_title for c in cells}):
        first: dict[str, str] = {}
        for name, title in names.items():
            if (other := first.setdefault(title, name)) != name:
                found = f"{shown(title)} for both {other} and {name}"
                raise ValueError(must("labels", "tell rows and columns apart", found=found))


def _without(labels: Labels, other: Cell) -> str:
    """Return the labels that another cell does not share."""
    own = {k: v for k, v in labels.items() if k not in other.labels or other.labels[k] != v}
    return " ".join(_words(own)) or "none"


def titles_of(cells: Iterable[Cell]) -> dict[str, str]:
    """Return what readers see of every row and column, by its raw name."""
    rows = {cell.row: cell.row_title for cell in cells}
    return {cell.column: cell.column_title for cell in cells} | rows


def find_row(cells: Sequence[Cell], row: Row, key: str) -> str:
    """Return the one row that a method's name, a row's label or some of its values stand for.

    Raises:
        ValueError: none fits, or several do.
    """
    rows = list(dict.fromkeys(cell.row for cell in cells))
    wanted = row if isinstance(row, dict) else {"method": row}
    fitting = [row] if isinstance(row, str) and row in rows else _fitting(cells, wanted)
    if len(fitting) != 1:
        found = f"{shown(row)}, which fits {len(fitting) or 'no'} row{'s' * (len(fitting) > 1)}"
        raise ValueError(must(key, f"fit one of the rows {'; '.join(rows)}", found=found))
    return fitting[0]


def _fitting(cells: Sequence[Cell], wanted: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell.row for cell in cells if matches(cell.labels, wanted)))


def digest_of(config: Config) -> str:
    """Return ten hexadecimal digits of the configuration's identity."""
    return _digest(identity(config))


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _make_cell(study: StudyFile, labels: Labels, overrides: Sequence[str]) -> Cell:
    """Return the cell of `labels`, untuned where several combinations of values are tried."""
    plain = _make_run(study, labels, overrides)
    found = flat(plain.config.model_dump(mode="json"))
    made = (_make_run(study, labels, overrides, each) for each in _combinations(study, found))
    runs = list(itertools.islice(_distinct(made), study.tune_cells))
    if len(runs) == 1:
        return runs[0]
    candidates = tuple(
        Candidate(
            run,
            tuple(
                _make_run(study, labels, overrides, run.values, seed) for seed in study.tune_seeds
            ),
        )
        for run in runs
    )
    pending_digest = _digest([run.digest for run in runs])
    tuning = Tuning(study.tuned_at_s(), study.last, candidates)
    return replace(runs[0], values={}, digest=pending_digest, tuning=tuning)


def _combinations(study: StudyFile, untuned: Labels) -> Iterator[Labels]:
    """Yield the combinations of tuned values, without keys that have no effect in them.

    Args:
        untuned: the configuration beside them, by dotted key.
    """
    tried = study.combinations(list(study.tune))
    keys = [key for key in study.tune if any(is_used(key, untuned | each) for each in tried)]
    used = [
        {key: value for key, value in each.items() if is_used(key, untuned | each)}
        for each in study.combinations(keys)
    ]
    yield from {json.dumps(each): each for each in used}.values()


def _distinct(runs: Iterable[Cell]) -> Iterator[Cell]:
    """Yield runs, each configuration once."""
    seen: set[str] = set()
    for run in runs:
        if run.digest not in seen:
            seen.add(run.digest)
            yield run


def _make_run(
    study: StudyFile,
    labels: Labels,
    overrides: Sequence[str],
    values: Labels | None = None,
    trial_seed: int | None = None,
) -> Cell:
    """Return a run of `labels` with tuned `values`; with a seed of its own where it is a trial."""
    is_trial, own, unscored = trial_seed is not None, dict(values or {}), {}
    if is_trial:
        labels = {key: value for key, value in labels.items() if key != "seed"}
        own["seed"] = trial_seed
        unscored = {"eval.submodels": False}  # which decides nothing
    layers = (_words(study.settings), _words(labels), overrides, _words(own | unscored))
    config = _bounded(study, load_config(study.bases(), *layers), layers, is_trial)
    _check_looks(study, config.eval.every_s, is_trial)
    named, shown = _named(labels, study, config)
    return Cell(
        labels=labels,
        row=label_of(named, study.row_keys()),
        column=label_of(named, study.column_keys()),
        row_title=title_of(named, study.row_keys(), shown),
        column_title=title_of(named, study.column_keys(), shown),
        seed=config.seed,
        config=config,
        slug=_slug({"trial": "tune", **labels, **own} if is_trial else labels),
        digest=digest_of(config),
        values=values or {},
        is_trial=is_trial,
    )


def _check_looks(study: StudyFile, every_s: float | None, is_trial: bool) -> None:
    """Check that no mean of looks takes in that of the untrained model.

    Raises:
        ValueError: one does, as looks are too rare.
    """
    for name, at_s in study.judged_at_s(is_trial).items():
        if every_s and round(study.last * every_s, 9) > at_s:
            limit = f"at most {name} / last, {at_s / study.last:g} s"
            because = "the look at 0 s, at the untrained model, would count"
            raise ValueError(must_be("eval.every_s", limit, every_s, because=because))


def _words(values: Labels) -> list[str]:
    return [as_override(key, value) for key, value in values.items()]


def _bounded(
    study: StudyFile, config: Config, layers: Sequence[Sequence[str]], is_trial: bool
) -> Config:
    """Return a run that ends once all that is compared is known, or when the study says."""
    if not is_trial and any("run.max_time_s" in leaves(words) for words in layers):
        return config
    end_s = study.end_s(study.tuned_at_s() if is_trial else study.compared_until_s(), config)
    run = config.run
    if run.max_time_s is not None and run.max_time_s <= end_s:
        return config
    return config.model_copy(update={"run": run.model_copy(update={"max_time_s": end_s})})


def _named(labels: Labels, study: StudyFile, config: Config) -> tuple[Labels, dict[str, str]]:
    """Return labels whose method says what else differs from its row, and what is shown of them."""
    if "method" not in labels:
        return labels, study.labels
    but = {*labels, *study.tune}
    method = method_label(config, but)
    shown = {**study.labels, method: method_title(config, but, study.labels)}
    return {**labels, "method": method}, shown


def _slug(labels: Labels) -> str:
    """Return labels in a file's name, which is no hidden one."""
    short = {k: short_name(str(v)) if k == "method" else v for k, v in labels.items()}
    words = [
        f"s{value}" if key == "seed" else label_of({key: value}, [key])
        for key, value in short.items()
    ]
    return re.sub(r"[^A-Za-z0-9.+_-]+", "", "-".join(words)).lstrip(".-")[:MAX_SLUG] or "run"


def _missing_files(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Data sets and other files that are not there: a line each, and the cells that need them."""
    wrong: dict[str, list[str]] = {}
    seen: dict[tuple[str, str | None], str | None] = {}
    for cell in cells:
        data = cell.config.data
        where = (data.name, data.root)
        if where not in seen:
            seen[where] = _missing_line(data.name, data.root)
        if line := seen[where]:
            wrong.setdefault(line, []).append(cell.slug)
        values = flat(cell.config.model_dump())
        for key, digest in CONTENT_OF.items():
            if values[key] is not None and values[digest] is None:
                line = must_be(key, "a file that can be read", values[key])
                wrong.setdefault(line, []).append(cell.slug)
    return wrong


def _missing_line(name: str, root: str | None) -> str | None:
    missing = describe_missing(name, root)
    if not missing:
        return None
    line = must_be("data.root", f"the folder of {name}", root)
    if root is None:
        return line
    more = f" and {len(missing) - 1} more" if missing[1:] else ""
    return f"{line}; missing: {missing[0]}{more}"


def _counted(line: str, names: Sequence[str]) -> str:
    return f"{line} (in {len(names)} cells, the first: {names[0]})"


def _named_rows(study: StudyFile) -> Iterator[tuple[str, Row]]:
    """Yield each key where the study names a row, with that row."""
    if study.reference is not None:
        yield "reference", study.reference
    for index, claim in enumerate(study.claims):
        for row in (claim.a, *claim.opponents()):
            yield f"claims.{index}", row
        if (full := claim.full_model()) is not None:
            yield f"claims.{index}.full", full
