"""Tables and verdicts of `probe error`, from its rows.

Correlations are Spearman's rank correlations over the assignments of one model, averaged over a
seed's models; intervals are 95 % ones over seeds, Student's where these are few.

Shapes: R rows, A assignments, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fedgmr_hpc.reporting.statistics import rank_correlation, summarize
from fedgmr_hpc.reporting.tables import Table


@dataclass(frozen=True)
class ErrorRow:
    """The error e of one assignment of densities; `bound` is the term that bounds e squared."""

    seed: int
    round: int
    rule: str
    assignment: str
    mean_density: float
    error: float
    bound: float


@dataclass(frozen=True)
class MismatchRow:
    """The errors of one refresh that raises densities by `num_rungs`, from `start_rungs` above the
    bandwidth shares, if nobody and if a share of the clients is in flight."""

    seed: int
    round: int
    rule: str
    start_rungs: int
    num_rungs: int
    in_flight_frac: float
    density_increase: float
    error_new: float
    error_mixed: float

    @property
    def extra(self) -> float:
        """What uploads in flight add to the error."""
        return self.error_mixed - self.error_new


def fit_power(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit y = a x^b by least squares on logarithms; return (a, b, R squared of the logarithms).

    Zeros are left out; NaN for fewer than two different x.
    """
    known = [(u, v) for u, v in zip(x, y, strict=True) if u > 0 and v > 0]
    if len({u for u, _ in known}) < 2:
        return float("nan"), float("nan"), float("nan")
    u, v = np.log(np.array(known)).T
    b, log_a = np.polyfit(u, v, 1)
    left = v - (b * u + log_a)
    r_squared = 1 - left.var() / v.var() if v.var() else float("nan")
    return float(np.exp(log_a)), float(b), float(r_squared)


Pair = Callable[[ErrorRow], tuple[float, float]]


def seed_correlations(rows: Sequence[ErrorRow], pair: Pair) -> list[float]:
    """Return [S] rank correlation of two measures over assignments, mean over a seed's models."""
    found = []
    for seed in _distinct(row.seed for row in rows):
        own = [row for row in rows if row.seed == seed]
        models = [[pair(r) for r in own if r.round == n] for n in _distinct(r.round for r in own)]
        each = [rank_correlation(*zip(*pairs, strict=True)) for pairs in models]
        found.append(float(np.mean(each)))
    return found


def _distinct(values: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(values))


def _rules(rows: Sequence[ErrorRow] | Sequence[MismatchRow]) -> list[str]:
    return list(dict.fromkeys(row.rule for row in rows))


def with_interval(values: Sequence[float]) -> str:
    """Show the mean of [S] correlations and its interval, where there are several."""
    summary = summarize(values)
    if summary is None:
        return "-"
    low_high = summary.correlation_interval
    interval = f" [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else ""
    return f"{summary.mean:.3f}{interval}"


def make_tables(
    errors: Sequence[ErrorRow], mismatches: Sequence[MismatchRow], command: str
) -> list[Table]:
    """Tabulate laws, errors by assignment, and mismatch by increase."""
    return [
        _law_table(errors),
        _error_table(errors, command),
        _mismatch_table(mismatches, command),
    ]


def density_and_error(row: ErrorRow) -> tuple[float, float]:
    """Return what the claim relates."""
    return row.mean_density, row.error


def bound_and_error(row: ErrorRow) -> tuple[float, float]:
    """Return what the bound relates."""
    return row.bound, row.error


def missing_and_error(row: ErrorRow) -> tuple[float, float]:
    """Return error against what is missing of the density."""
    return 1 - row.mean_density, row.error


LAWS = {"p": density_and_error, "1 - p": missing_and_error}


def _law_table(errors: Sequence[ErrorRow]) -> Table:
    rows = []
    for rule in _rules(errors):
        own = [row for row in errors if row.rule == rule]
        for name, group in _groups(own).items():
            laws = [fit_power(*zip(*map(pair, group), strict=True)) for pair in LAWS.values()]
            tightest = max(row.error**2 / row.bound for row in group if row.bound > 0)
            rows.append([
                f"{rule}, {name}",
                with_interval(seed_correlations(group, density_and_error)),
                *(f"{power:.2f} ({fit:.2f})" for _, power, fit in laws),
                with_interval(seed_correlations(group, bound_and_error)),
                f"{tightest:.2g}",
            ])  # fmt: skip
    powers = [f"power of {name} (R2)" for name in LAWS]
    heads = ["rule, assignments", "rank corr. e, mean density", *powers]
    heads += ["rank corr. e, bound", "max e2 / bound"]
    notes = ["p: mean density; powers fitted to the logarithms of all e > 0.",
             "bound: (1/K) sum of squares that masks cut away, in units of e squared; it holds for "
             "gradient, while average counts absent entries as zero."]  # fmt: skip
    return Table("laws", "Error against mean density", heads, rows, notes)


def _groups(rows: Sequence[ErrorRow]) -> dict[str, list[ErrorRow]]:
    """Group all assignments, those with one density or several ones, and those of each round."""
    uniform = [row for row in rows if row.assignment.startswith("uniform")]
    ladder = [row for row in rows if row not in uniform]
    rounds = _distinct(row.round for row in rows)
    by_round = {f"round {n}": [row for row in rows if row.round == n] for n in rounds}
    groups = {"all": list(rows), "uniform": uniform, "levels": ladder, **by_round}
    return {name: group for name, group in groups.items() if group}


def _error_table(errors: Sequence[ErrorRow], command: str) -> Table:
    names = {row.assignment: row.mean_density for row in errors}
    rules = _rules(errors)
    rows = []
    for name, mean in sorted(names.items(), key=lambda item: item[1]):
        means = [_mean(r.error for r in errors if (r.assignment, r.rule) == (name, rule))
                 for rule in rules]  # fmt: skip
        rows.append([name, f"{mean:.3f}", *(f"{each:.3f}" for each in means)])
    return Table(
        name="error",
        title="Error e of every assignment, mean over seeds and rounds",
        heads=["densities", "mean density", *rules],
        rows=rows,
        notes=["level +n: the level's bandwidth shares, every client n rungs up."],
        command=command,
        records=[asdict(row) for row in errors],
    )


def _mismatch_table(mismatches: Sequence[MismatchRow], command: str) -> Table:
    fracs = sorted({row.in_flight_frac for row in mismatches})
    rows = []
    for rule in _rules(mismatches):
        for num in sorted({row.num_rungs for row in mismatches}):
            own = [row for row in mismatches if (row.rule, row.num_rungs) == (rule, num)]
            extra = [_mean(row.extra for row in own if row.in_flight_frac == f) for f in fracs]
            increase = _mean(row.density_increase for row in own)
            rows.append([rule, str(num), f"{increase:.3f}", *(f"{each:+.3f}" for each in extra)])
    return Table(
        name="mismatch",
        title="What uploads in flight add to e, by rungs raised at one refresh",
        heads=["rule", "rungs raised", "density increase", *(f"{f:.0%} in flight" for f in fracs)],
        rows=rows,
        notes=["Means over seeds, rounds and starts on the ladder; 0 rungs: masks change alone."],
        command=command,
        records=[asdict(row) | {"extra": row.extra} for row in mismatches],
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def mismatch_correlations(rows: Sequence[MismatchRow]) -> list[float]:
    """Return [S] rank correlations of the increase of the mean density and the added error.

    Each is the mean over a seed's models and shares in flight.
    """
    found = []
    for seed in _distinct(row.seed for row in rows):
        groups: dict[tuple[int, float], list[tuple[float, float]]] = {}
        for row in rows:
            if row.seed == seed:
                key = (row.round, row.in_flight_frac)
                groups.setdefault(key, []).append((row.density_increase, row.extra))
        each = [rank_correlation(*zip(*pairs, strict=True)) for pairs in groups.values()]
        found.append(_mean(each))
    return found


def falling_steps(rows: Sequence[ErrorRow]) -> tuple[int, int]:
    """Return (steps of one rung up the ladder that make e smaller, all steps)."""
    ladders: dict[tuple[int, int, str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row.assignment):
        level, _, num = row.assignment.partition(" +")
        if num:
            ladders.setdefault((row.seed, row.round, row.rule, level), []).append(row.error)
    steps = [pair for ladder in ladders.values() for pair in zip(ladder, ladder[1:], strict=False)]
    return sum(after < before for before, after in steps), len(steps)


def verdicts(errors: Sequence[ErrorRow], mismatches: Sequence[MismatchRow]) -> list[str]:
    """Say what the rows mean for the claims, a line each, with figures."""
    lines = []
    for rule in _rules(errors):
        own = [row for row in errors if row.rule == rule]
        values = seed_correlations(own, density_and_error)
        falling, steps = falling_steps(own)
        lines.append(
            f"{rule}: rank correlation of error and mean density {with_interval(values)} over "
            f"{len(values)} seeds; a rung up for all makes the error smaller in {falling} of "
            f"{steps} steps."
        )
    for rule in _rules(mismatches):
        found = [row for row in mismatches if row.rule == rule]
        values = mismatch_correlations(found)
        worst, total, at_once = _slow_and_fast(found)
        lines.append(
            f"{rule}: rank correlation of density increase and error added by uploads in flight "
            f"{with_interval(values)}; one rung a refresh adds {worst:+.3f} at most and "
            f"{total:+.3f} over the whole ladder, all rungs at once {at_once:+.3f} (means over "
            "seeds, rounds and shares in flight)."
        )
    return lines


def _slow_and_fast(rows: Sequence[MismatchRow]) -> tuple[float, float, float]:
    """Return the added error of the worst single rung, of all single rungs, of all at once."""
    most = max(row.num_rungs for row in rows)
    single = [
        _mean(r.extra for r in rows if (r.start_rungs, r.num_rungs) == (start, 1))
        for start in range(most)
    ]
    return max(single), sum(single), _mean(r.extra for r in rows if r.num_rungs == most)
