"""Measure which density learns fastest at which accuracy (docs/method.md#feasibility).

Every run has one density for all clients from start to end. A run's test accuracy over virtual time
is smoothed and its best so far is taken, so that each accuracy is reached once. The growth rate g
in an accuracy interval is its width over the time that the run spent in it, which is the mean of
d accuracy / d time there; a run that does not get through has g = 0. The optimal density of an
interval has the largest g, as mean over seeds. Intervals shrink with what is left to the best
accuracy, as the paper's axis -ln(a - accuracy) does.

Deviations from the paper's procedure: the virtual clock (docs/method.md#timing) in place of
PruneFL's cost model, masks cut anew at every refresh, moving means in place of Savitzky-Golay.

Shapes: E evaluations, I accuracy intervals, D densities, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.results.series import Values, scored
from fedgmr_hpc.storage.reader import Result

WINDOW = 5  # evaluations of a moving mean
NUM_INTERVALS = 10
LEFT_FRAC = 0.02  # of the accuracy gained that is still ahead of the last interval's axis


@dataclass(frozen=True)
class Series:
    """Test accuracy [E], 0 to 1, over virtual time [E] of a run with one density."""

    density: float
    seed: int
    times_s: Values
    accuracy: Values


@dataclass(frozen=True)
class Growth:
    """Growth rates g [D,S,I] in accuracy per s, 0 where a run does not get through an interval.

    Attributes:
        edges: [I + 1] of the accuracy intervals.
        end: a, the accuracy at which the axis -ln(a - accuracy) ends, above all edges.
    """

    edges: Values
    end: float
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    rates: Values

    @property
    def middles(self) -> Values:
        """[I] middles of the intervals on the axis -ln(a - accuracy)."""
        left = self.end - self.edges
        middles: Values = self.end - np.sqrt(left[:-1] * left[1:])
        return middles

    def optima(self) -> list[float | None]:
        """Return [I] density with the largest mean g over seeds; None where no run gets through."""
        return self._best_of(self.rates.mean(axis=1))

    def optima_of_seed(self, index: int) -> list[float | None]:
        """Return [I] density with the largest g in one seed's runs."""
        return self._best_of(self.rates[:, index])

    def _best_of(self, rates: Values) -> list[float | None]:
        best = rates.argmax(axis=0)
        known = rates.max(axis=0) > 0
        return [self.densities[d] if k else None for d, k in zip(best, known, strict=True)]

    def num_agreeing(self) -> list[int]:
        """Return [I] seeds whose own optimum is the optimum of the means."""
        own = [self.optima_of_seed(index) for index in range(len(self.seeds))]
        return [sum(o[i] == best for o in own) for i, best in enumerate(self.optima())]


def series_of(result: Result) -> Series:
    """Return a run's series.

    Raises:
        ValueError: its clients have more than one density.
    """
    densities = np.unique(result.merges["density"])
    if len(densities) != 1:
        got = f"{densities.min():g} to {densities.max():g}" if len(densities) else "no merge"
        raise ValueError(must_be(f"{result.path}: density", "the same for all clients", found=got))
    evaluations = scored(result)
    known = np.isfinite(evaluations["test_accuracy"])
    return Series(
        density=float(densities[0]),
        seed=int(result.config["seed"]),
        times_s=evaluations["now_s"][known],
        accuracy=evaluations["test_accuracy"][known],
    )


def centred_mean(values: Values, window: int) -> Values:
    """Return [E] means of each value and (window - 1) / 2 on either side, fewer at the ends."""
    half = (window - 1) // 2
    reach = [min(i, len(values) - 1 - i, half) for i in range(len(values))]
    means = [values[i - r : i + r + 1].mean() for i, r in enumerate(reach)]
    return np.array(means)


def reach_times_s(times_s: Values, accuracy: Values, levels: Values) -> Values:
    """Return when `accuracy` [E] first reaches each level: interpolated, infinite if never."""
    best = np.maximum.accumulate(accuracy)
    after = np.searchsorted(best, levels)
    reached = np.full(len(levels), np.inf)
    for i, at in enumerate(after):
        if at == 0:
            reached[i] = times_s[0]
        elif at < len(best):
            share = (levels[i] - best[at - 1]) / (best[at] - best[at - 1])
            reached[i] = times_s[at - 1] + share * (times_s[at] - times_s[at - 1])
    return reached


def growth_rates(times_s: Values, accuracy: Values, edges: Values) -> Values:
    """Return [I] mean d accuracy / d time of a smoothed series [E] inside each interval."""
    reached_s = reach_times_s(times_s, accuracy, edges)
    with np.errstate(invalid="ignore"):
        spent_s = np.diff(reached_s)  # NaN where both ends are out of reach
    rates = np.zeros(len(spent_s))
    np.divide(np.diff(edges), spent_s, out=rates, where=spent_s > 0)
    return rates


def _whole(smooth: Values, window: int) -> Values:
    """Return the values that are means of a whole window, of a short series the middle ones."""
    cut = (min(window, len(smooth)) - 1) // 2
    return smooth[cut : len(smooth) - cut]


def accuracy_edges(smooth: Sequence[Values], num: int, window: int = 1) -> tuple[Values, float]:
    """Return edges [num + 1] for accuracies smoothed over a window, and the end of their axis.

    They go from where all runs have started to the best accuracy that is a mean of a whole window,
    so that one lucky look at the end is no interval of its own; each interval is shorter than the
    last by the same factor.

    Raises:
        ValueError: no run gets beyond where all have started.
    """
    start = max(float(each[0]) for each in smooth)
    best = max(float(_whole(each, window).max()) for each in smooth)
    if best <= start:
        raise ValueError(must("results", "have a run that gets better than it begins", f"{best:g}"))
    left = LEFT_FRAC * (best - start)
    edges: Values = best + left - np.geomspace(best + left - start, left, num + 1)
    edges[0], edges[-1] = start, best  # to the last bit, or nobody gets through an interval
    return edges, best + left


def measure_growth(
    series: Sequence[Series], num_intervals: int = NUM_INTERVALS, window: int = WINDOW
) -> Growth:
    """Return the growth rates of runs with every density for every seed.

    Raises:
        ValueError: fewer than two densities, or a density and seed with no run or several.
    """
    densities = tuple(sorted({each.density for each in series}))
    seeds = tuple(sorted({each.seed for each in series}))
    if len(densities) < 2:
        raise ValueError(must("results", "have at least 2 densities", len(densities)))
    found = _by_cell(series, densities, seeds)
    smooth = {cell: centred_mean(each.accuracy, window) for cell, each in found.items()}
    edges, end = accuracy_edges(list(smooth.values()), num_intervals, window)
    rates = [
        [growth_rates(found[d, s].times_s, smooth[d, s], edges) for s in seeds] for d in densities
    ]
    return Growth(edges, end, densities, seeds, np.array(rates))


def _by_cell(
    series: Sequence[Series], densities: Sequence[float], seeds: Sequence[int]
) -> Mapping[tuple[float, int], Series]:
    for density in densities:
        for seed in seeds:
            num = sum((each.density, each.seed) == (density, seed) for each in series)
            if num != 1:
                where = f"density {density:g}, seed {seed}"
                raise ValueError(must("results", f"have one run of {where}", num))
    return {(each.density, each.seed): each for each in series}


def rank_trend(optima: Sequence[float | None]) -> float:
    """Return the share of pairs of intervals whose optima rise less that which fall, -1 to 1.

    This is Kendall's tau-a, where equal optima count 0. SciPy has tau-b and tau-c alone, which
    leave equal pairs out of the denominator: one rise among many equal optima would be near 1.
    """
    known = [each for each in optima if each is not None]
    signs = [np.sign(b - a) for i, a in enumerate(known) for b in known[i + 1 :]]
    return float(np.mean(signs)) if signs else 0.0


def is_monotone(optima: Sequence[float | None]) -> bool:
    """Return whether no optimum is below the one of the interval before."""
    known = [each for each in optima if each is not None]
    return all(b >= a for a, b in zip(known, known[1:], strict=False))
