"""The table of a study's claims: verdicts, the figures behind them, and what would decide more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedgmr_hpc.reporting.paired import MeanTest
from fedgmr_hpc.reporting.statistics import LEVEL
from fedgmr_hpc.reporting.tables import Table
from fedgmr_hpc.results.series import Run
from fedgmr_hpc.study.claims import UNITS, ClaimResult, what_would_decide
from fedgmr_hpc.study.report.tables import Scale, resolution_note, resolutions


def claims_table(findings: Sequence[ClaimResult], runs: Sequence[Run], scale: Scale) -> Table:
    """Tabulate the verdicts, with their figures, of `runs`."""
    seen = [f for f in findings if f.num_pairs or f.num_without]
    heads = ["claim", "compared", "verdict", "seeds", "mean", "95 % interval", "p"]
    return Table(
        name="claims",
        title=f"Claims: {_tally(seen)}",
        heads=[*heads, "what would decide it"],
        rows=[
            [
                f.name,
                f"{scale.title(f.a)} vs. {scale.title(f.b)}",
                f"{f.verdict}{'*' * f.is_firm}",
                *_tested(f),
                "; ".join(filter(None, [f.note, what_would_decide(f)])),
            ]
            for f in seen
        ],
        notes=[
            *_unseen(findings),
            *_claim_notes(findings),
            resolution_note(resolutions(runs), scale),
        ],
        command=scale.command,
        records=[_claim_record(f) for f in findings],
        is_grouped=True,
    )


def _unseen(findings: Sequence[ClaimResult]) -> list[str]:
    """Name the claims of which no pair of runs is there yet."""
    names = Counter(f.name for f in findings if not f.num_pairs and not f.num_without)
    named = "; ".join(f"{name} ({number})" for name, number in names.items())
    return [f"No pair of runs yet, undecided: {named}."] if names else []


def _tally(findings: Sequence[ClaimResult]) -> str:
    counts = Counter(f.verdict for f in findings)
    return ", ".join(
        f"{counts[each]} {each}" for each in ("supported", "contradicted", "undecided")
    )


def _tested(found: ClaimResult) -> list[str]:
    """Return seeds, mean, interval and p of a claim."""
    planned = found.num_pairs + found.num_missing + found.num_without + found.num_diverged
    seeds = str(found.test.num_values if found.test else 0)
    if found.num_pairs < planned:
        seeds += f" ({found.num_pairs} of {planned} pairs)"
    if found.test is None:
        return [seeds, "-", "-", "-"]
    mean = f"{found.test.mean:+.2f} {UNITS[found.kind]}"
    return [seeds, mean, _interval(found.test), _p(found.test.p)]


def _interval(test: MeanTest) -> str:
    return f"[{test.interval[0]:+.2f}, {test.interval[1]:+.2f}]" if test.interval else "-"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"


def _claim_notes(findings: Sequence[ClaimResult]) -> list[str]:
    return [
        "Means are positive where the claim holds: points of accuracy, of scatter, or halvings of "
        "the time (1: twice as soon; an accuracy never reached counts as reached at the run's "
        "end, which moves a mean towards zero). Pairs share seed and condition; a seed's value is "
        "the mean over all conditions, and a seed that lacks one does not count. Supported: "
        "Student's paired 95 % interval over the seeds lies above zero; contradicted: below it, or "
        "a collapse; else undecided, as is what speaks for a method of which a run has diverged.",
        _by_chance(findings),
        "What would decide it: seeds for 80 % power of the two-sided test at 5 % (noncentral t), "
        "if the observed mean and deviation were the true ones, an estimate as rough as it has few "
        "values; and the smallest effect that the seeds at hand had 80 % power to show.",
    ]


def _by_chance(findings: Sequence[ClaimResult]) -> str:
    """Say how far several verdicts can be trusted together."""
    num = sum(1 for f in findings if not math.isnan(f.p_holm))
    firm = sum(f.is_firm for f in findings)
    if not num:
        return "No claim was tested: that takes two seeds that differ."
    if num == 1:
        return "The verdict is a test at 5 %; *: no other was made beside it."
    return (
        f"Each verdict is a test at 5 %: of {num} comparisons without any effect, about "
        f"{LEVEL * num:.1f} would be decided by chance. *: stands after Holm's correction over all "
        f"{num}, as {firm} of them {'does' if firm == 1 else 'do'}."
    )


def _claim_record(found: ClaimResult) -> dict[str, Any]:
    test = found.test
    low, high = (test.interval if test else None) or ("", "")
    figures = {"mean": test.mean, "sd": test.sd, "p": test.p} if test else {}
    return {
        "claim": found.name,
        "a": found.a,
        "b": found.b,
        "verdict": found.verdict,
        "stands_after_holm": found.is_firm,
        "n": test.num_values if test else 0,
        "pairs": found.num_pairs,
        "missing": found.num_missing,
        "without_value": found.num_without,
        "diverged": found.num_diverged,
        "unit": UNITS[found.kind],
        **figures,
        "low": low,
        "high": high,
        "p_holm": found.p_holm,
        "would_decide": what_would_decide(found),
        "note": found.note,
    }
