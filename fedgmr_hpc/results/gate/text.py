"""The verdict of a gate as a person reads it: one table of ratios, then what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.results.gate.compare import Compared, Pair, Verdict, joined
from fedgmr_hpc.results.gate.figures import FIGURES, Figure, case_of, machines_of
from fedgmr_hpc.results.stretches import in_turn
from fedgmr_hpc.storage.reader import Result

LEGEND = (
    "now / before; test: the mean of the last 3 accuracies, now - before; changed: datasets whose\n"
    "bits differ, - where they may; *: worse than allowed; (): of another machine, not judged"
)
MAX_NAMED = 3  # datasets that a line names


def render_verdict(verdict: Verdict) -> str:
    """Render the table, a line for each fault and each run without a partner, and the sum."""
    heads = ["run", *map(_head, (figure.name for figure in FIGURES)), "changed"]
    rows = [_cells(pair) for pair in verdict.pairs]
    faults = [*_worse(verdict), *_changed(verdict)]
    lines = [*faults, *_unjudged(verdict), *_unowed(verdict), *_alone(verdict)]
    table = f"{as_text(heads, rows)}\n{LEGEND}"
    return "\n\n".join(filter(None, [table, "\n".join(lines), _sum(verdict)]))


def _head(name: str) -> str:
    return "test\npoints" if name == "test accuracy" else name.replace(" ", "\n")


def _cells(pair: Pair) -> list[str]:
    changed = str(len(pair.changed)) if pair.is_exact else "-"
    return [pair.name, *map(_cell, pair.figures), f"{changed} *" if pair.changed else changed]


def _cell(compared: Compared) -> str:
    change = compared.change
    if math.isnan(change):
        return "-"
    text = f"{change:+.2f}" if compared.figure.unit == "%" else f"{1 + change:.3f}"
    if not compared.is_judged:
        return f"({text})"
    return f"{text} *" if compared.is_worse else text


def _worse(verdict: Verdict) -> Iterator[str]:
    for pair, each in verdict.worse():
        now, before = (_value(value, each.figure) for value in (each.now, each.before))
        yield f"worse: {pair.name}: {each.figure.name} {now}, before {before}: {_allowed(each)}"


def _value(value: float, figure: Figure) -> str:
    """Return a value with its unit, unless the figure's name ends in it."""
    text = f"{value:,.0f}" if figure.unit == "bytes" else f"{value:.4g}"
    return text if figure.name.endswith("/s") else f"{text} {figure.unit}"


def _allowed(compared: Compared) -> str:
    if compared.figure.unit == "%":
        return f"{compared.change:+.2f} points, allowed {-compared.limit:+g}"
    if compared.figure.better == "lower":
        return f"{1 + compared.change:.3f} of it, at most {1 + compared.limit:g}"
    return f"{1 + compared.change:.3f} of it, at least {1 - compared.limit:g}"


def _changed(verdict: Verdict) -> Iterator[str]:
    for pair in verdict.pairs:
        if pair.changed:
            more = len(pair.changed) - MAX_NAMED
            rest = f" and {more} more" if more > 0 else ""
            yield f"changed: {pair.name}: {', '.join(pair.changed[:MAX_NAMED])}{rest}"


def _unjudged(verdict: Verdict) -> Iterator[str]:
    for pair in verdict.pairs:
        if not all(each.is_judged for each in pair.figures):
            now, before = (_machines(runs) for runs in (pair.now, pair.before))
            yield f"not judged: {pair.name}: wall time and rounds/s: {now}, before {before}"


def _machines(runs: Sequence[Result]) -> str:
    return joined(in_turn(machines_of(run)) for run in runs)


def _unowed(verdict: Verdict) -> Iterator[str]:
    for pair in verdict.pairs:
        if pair.differing:
            yield f"bits not owed: {pair.name}: {'; '.join(pair.differing)}"


def _alone(verdict: Verdict) -> Iterator[str]:
    for word, results in (("gone", verdict.gone), ("new", verdict.new)):
        yield from (
            f"{word}: {each.path.stem}: {case_of(each)}, without a partner" for each in results
        )


def _sum(verdict: Verdict) -> str:
    num_changed = sum(bool(pair.changed) for pair in verdict.pairs)
    counts = {
        "worse": len(list(verdict.worse())),
        "changed": num_changed,
        "gone": len(verdict.gone),
    }
    faults = ", ".join(f"{count} {word}" for word, count in counts.items())
    word = "passed" if verdict.is_passed else "failed"
    return f"{word}: {count_of(len(verdict.pairs), 'pair')}: {faults}"
