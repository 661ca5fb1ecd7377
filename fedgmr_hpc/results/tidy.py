"""One tidy table of many runs: a row an evaluation, a column a variable.

Columns: `run`, the stem of the file; `method`, the row; `seed`; `label`, what the method is called,
without what has a column of its own; every key that varies; then `FIGURES`. Evaluations are those
of curves: looks at equal times where a run has them, else those of its refreshes. Bytes are those
that the server had sent and received when the version was made.

Shapes: E evaluations.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from fedgmr_hpc.config.choices.named_content import FILE_OF
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.identity import CELL, differences, flat, method_label
from fedgmr_hpc.config.messages import must_be, unknown_choice
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.reporting.tables import finite
from fedgmr_hpc.results.export import run_names
from fedgmr_hpc.results.series import own_accuracies, scored, server_bytes
from fedgmr_hpc.storage.reader import Result, read_result

SCORES = ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
BYTES = ("server_up_bytes", "server_down_bytes")
OWN = "submodel_test_accuracy"
FIGURES = ("round", "version", "now_s", *BYTES, *SCORES, "mean_density", OWN)
NAMED = ("method", "seed")  # keys with columns of their own
Record = dict[str, Any]


def export_tidy(
    paths: Sequence[str | os.PathLike[str]],
    form: str,
    out: str | os.PathLike[str],
    *,
    partial: bool = False,
) -> None:
    """Write the tidy table of result files, with a column for each key in which they vary.

    Args:
        form: `csv` or `jsonl`.
        out: a new file.
        partial: take what is left of damaged files instead of refusing them.

    Raises:
        ValueError: an unknown form, an unreadable file, two files of one stem, or `out` exists.
        OSError: `out` cannot be written.
    """
    out = Path(out)
    run_names(paths)
    if out.exists():
        raise ValueError(must_be("--out", "a new file", out))
    results = [read_result(path, partial=partial) for path in paths]
    keys = varied_keys([result.config for result in results])
    write_tidy(results, keys, form, out)


def varied_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which runs differ, but for what their methods' rows say differently."""
    own = [_own_keys(config) for config in configs]
    values = [flat(config) for config in configs]
    differing = {key for each in own for key in each if key not in NAMED}
    differing |= {FILE_OF[key] for key in differing & FILE_OF.keys()}  # by which people know it
    return [
        key
        for key in sorted(differing)
        if any(each.get(key) != values[0].get(key) for each in values)
    ]


def _own_keys(config: Mapping[str, Any]) -> set[str]:
    """Return the keys in which a run differs from the row of its method alone."""
    try:
        row = make_config({key: config[key] for key in ("method", "methods") if key in config})
    except ValueError:  # a row of another checkout, or of a plug-in, which no table executes
        row = Config()
    return set(differences(row, config, CELL))


def write_tidy(results: Sequence[Result], keys: Sequence[str], form: str, out: Path) -> None:
    """Write the tidy table of runs.

    Args:
        keys: the varied keys; what a run does not have of them is left empty, in JSON null.

    Raises:
        ValueError: an unknown form.
        OSError: `out` cannot be written.
    """
    if form not in TIDY_FORMS:
        raise ValueError(unknown_choice("--format", form, TIDY_FORMS, when="--tidy is given"))
    heads = ("run", *NAMED, "label", *keys, *FIGURES)
    with out.open("w", newline="", encoding="utf-8") as file:
        TIDY_FORMS[form](file, heads, tidy_records(results, keys))


def tidy_records(results: Sequence[Result], keys: Sequence[str]) -> Iterator[Record]:
    """Yield the rows of the table."""
    for result in results:
        values = flat(result.config)
        of_run = {
            "run": result.path.stem,
            "label": method_label(result.config, but=keys),
            **{key: values.get(key) for key in (*NAMED, *keys)},
        }
        columns = _figures(result)
        for row in zip(*columns.values(), strict=True):
            yield {**of_run, **dict(zip(columns, map(finite, row), strict=True))}


def _figures(result: Result) -> dict[str, list[Any]]:
    """Return [E] columns, by name."""
    evaluations = scored(result)
    versions = evaluations["version"]
    columns = {name: evaluations[name] for name in FIGURES if name in evaluations}
    columns |= dict(zip(BYTES, server_bytes(result, versions), strict=True))
    columns[OWN] = own_accuracies(result, versions)[0]
    return {name: columns[name].tolist() for name in FIGURES}


def _csv(file: TextIO, heads: Sequence[str], records: Iterable[Record]) -> None:
    writer = csv.DictWriter(file, heads, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _cell(value) for name, value in record.items()})


def _cell(value: Any) -> Any:
    """Return a value as it is typed in an override."""
    return json.dumps(value) if isinstance(value, bool | list | dict) else value


def _jsonl(file: TextIO, heads: Sequence[str], records: Iterable[Record]) -> None:
    for record in records:
        file.write(json.dumps({name: record[name] for name in heads}) + "\n")


TIDY_FORMS: dict[str, Callable[[TextIO, Sequence[str], Iterable[Record]], None]] = {
    "csv": _csv,
    "jsonl": _jsonl,
}
