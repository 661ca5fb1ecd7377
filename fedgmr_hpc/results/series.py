"""Series that tables and plots share, read off a result.

Shapes: N merges, M merged updates, E evaluations with a test accuracy, F of them at refreshes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.reporting.statistics import cost_to_reach, is_by, mean_last, std_last
from fedgmr_hpc.results.stretches import stretches
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.schema import Columns

Values = NDArray[Any]
LOST = 3  # the kind of an event
TIMES = {"virtual": "virtual time", "wall": "unscaled time"}  # by clock


@dataclass(frozen=True)
class Run:
    """What is measured in one run. Accuracies are 0 to 1; bytes and client-steps are since the
    start. Where a run has looks at equal times (`eval.every_s`), these are its evaluations, and
    those of its refreshes count for the release's own number alone.
    """

    row: str
    column: str
    seed: int
    name: str
    times_s: Values  # [E] virtual
    test: Values  # [E]
    val: Values  # [E]
    own_mean: Values  # [E] of the clients' own sub-models on the test set; NaN where not scored
    own_worst: Values  # [E] of the class of clients that has the least
    bytes: Values  # [E] server's links, both directions
    client_steps: Values  # [E] local steps of the updates that have been merged so far
    density_times_s: Values  # [N] virtual
    densities: Values  # [N] means over the clients
    refresh_times_s: Values  # [F] virtual, of the refreshes alone
    refresh_test: Values  # [F]
    labels: dict[str, object]
    time: str = TIMES["virtual"]  # what its times are called
    classes: dict[float, Values] = field(default_factory=dict)  # density to own accuracy [E]
    num_untrained: int = 0  # evaluations of version 0, the first ones

    @property
    def resolution_s(self) -> float:
        """Longest time between two evaluations: how much later than it happened anything is seen;
        NaN for fewer than two.
        """
        return float(np.diff(self.times_s).max()) if len(self.times_s) > 1 else np.nan

    def accuracy_at(self, at_s: float, last: int, of: str = "test") -> float:
        """Return the test accuracy at `at_s`, or that of another field.

        It is NaN where the run ended more than an evaluation before.
        """
        values = getattr(self, of)
        return mean_last(self.times_s, values, at_s, last) if self.covers(at_s) else np.nan

    def validation_at(self, at_s: float, last: int) -> float:
        """Return the validation accuracy at `at_s`, as `accuracy_at` does; NaN where the untrained
        model would count, which says nothing for any way of training.
        """
        is_trained = np.arange(len(self.val)) >= self.num_untrained
        trained = replace(self, val=np.where(is_trained, self.val, np.nan))
        return trained.accuracy_at(at_s, last, "val")

    def covers(self, at_s: float) -> bool:
        """Return whether there is an evaluation at `at_s`, or the next would have come after it, as
        long after the last as half of them come; not the longest, which may be that of a stall.
        """
        if len(self.times_s) < 2:
            return False
        usual_s = np.quantile(np.diff(self.times_s), 0.5, method="lower")
        return bool(self.times_s[-1] >= at_s or not is_by(self.times_s[-1] + usual_s, at_s))

    def scatter_at(self, at_s: float, window: int) -> float:
        """Return the standard deviation of the accuracies of the last `window` versions that looks
        at or before `at_s` have seen; NaN for fewer. A look that repeats its version tells nothing.
        """
        is_new = np.diff(self.client_steps, prepend=-1.0) > 0  # a merge takes steps
        is_new[: self.num_untrained] = False
        return std_last(self.times_s[is_new], self.test[is_new], at_s, window)

    def cost_to(self, cost: str, target: float, last: int) -> float:
        """Return `times_s`, `bytes` or `client_steps` until `target`; infinite if never."""
        return cost_to_reach(self.test, getattr(self, cost), target, last)


def measure_run(
    result: Result, row: str, column: str = "", labels: Mapping[str, object] | None = None
) -> Run:
    """Return the series of a result.

    Args:
        row: what its method is called in tables and figures.
        column: the condition under which methods are compared.
        labels: what a study varies, with the run's values.
    """
    evaluations = scored(result)
    known = np.isfinite(evaluations["test_accuracy"])
    refreshes = result.evaluations
    is_tested = np.isfinite(refreshes["test_accuracy"])
    versions = evaluations["version"][known]
    times, densities = mean_density(result)
    own_mean, own_worst = own_accuracies(result, versions)
    return Run(
        row=row,
        column=column,
        seed=int(result.config.get("seed", 0)),
        name=result.path.stem,
        times_s=evaluations["now_s"][known],
        test=evaluations["test_accuracy"][known],
        val=evaluations["val_accuracy"][known],
        own_mean=own_mean,
        own_worst=own_worst,
        bytes=traffic_bytes(result, versions),
        client_steps=client_steps(result, versions),
        density_times_s=times,
        densities=densities,
        refresh_times_s=refreshes["now_s"][is_tested],
        refresh_test=refreshes["test_accuracy"][is_tested],
        labels=dict(labels or {}),
        time=time_name(result.config),
        classes=class_accuracies(result, versions),
        num_untrained=int((versions == 0).sum()),
    )


def time_name(*configs: Mapping[str, Any]) -> str:
    """Return what the times of runs are called, by their clocks."""
    return common_time(TIMES[str(config.get("clock", "virtual"))] for config in configs)


def common_time(names: Iterable[str]) -> str:
    """Return what times are called that have these names alone."""
    named = set(names)
    return named.pop() if len(named) == 1 else "time"


def server_bytes(result: Result, versions: Values) -> tuple[Values, Values]:
    """Return [E] bytes that the server had sent (up) and received (down) when each version was
    made.
    """
    num_merged = np.searchsorted(result.merges["version"], versions, side="right")
    moved = (result.merges[f"server_{way}_bytes"] for way in ("up", "down"))
    up, down = (np.concatenate([[0], each])[num_merged] for each in moved)
    return up, down


def traffic_bytes(result: Result, versions: Values) -> Values:
    """Return [E] bytes on the server's links, both directions, when each version was made."""
    up, down = server_bytes(result, versions)
    return up + down


def client_steps(result: Result, versions: Values) -> Values:
    """Return [E] local steps of the updates that were merged up to each version: samples over the
    batch. Version 0 stands for an update that was never merged.
    """
    batch = int(result.config.get("train", {}).get("batch", Config().train.batch))
    order = np.argsort(result.updates["version"], kind="stable")
    merged = result.updates["version"][order]
    steps = np.cumsum(result.updates["num_samples"][order] * (merged > 0) / batch)
    return np.concatenate([[0.0], steps])[np.searchsorted(merged, versions, side="right")]


def scored(result: Result) -> Columns:
    """Return the evaluations that curves and comparisons are made of.

    These are the looks at equal times where the run has them (`eval.every_s`), else the evaluations
    at its refreshes. Looks after the run's time is over are left out: a run ends with the first
    merge at or after its limit, or at it where nobody trains, so methods of slow rounds have looks
    there that others lack.
    """
    looks, limit_s = result.looks, result.config.get("run", {}).get("max_time_s")
    if not len(looks.get("version", ())):
        return result.evaluations
    if limit_s is None:
        return looks
    is_in_time = is_by(looks["now_s"], limit_s)
    return {name: values[is_in_time] for name, values in looks.items()}


def own_accuracies(result: Result, versions: Values) -> tuple[Values, Values]:
    """Return [E] test accuracies of the clients' own sub-models: mean and worst class.

    Each sub-model is cut as for its class of clients; NaN where a version was not cut.
    """
    rows = result.submodels
    if not len(rows.get("version", ())):
        unknown = np.full(len(versions), np.nan)
        return unknown, unknown
    known, starts = np.unique(rows["version"], return_index=True)
    weights = rows["num_clients"]
    total = np.add.reduceat(rows["test_accuracy"] * weights, starts)
    means = total / np.add.reduceat(weights, starts)
    worst = np.minimum.reduceat(rows["test_accuracy"], starts)
    at = np.minimum(np.searchsorted(known, versions), len(known) - 1)
    is_cut = known[at] == versions
    return np.where(is_cut, means[at], np.nan), np.where(is_cut, worst[at], np.nan)


def class_accuracies(result: Result, versions: Values) -> dict[float, Values]:
    """Return [E] test accuracies of the sub-models of each class of clients, by its density; NaN
    where a version was not cut.
    """
    rows = result.submodels
    found = {}
    for density in np.unique(rows.get("density", ())):
        of_class = rows["density"] == density
        known, values = rows["version"][of_class], rows["test_accuracy"][of_class]
        at = np.minimum(np.searchsorted(known, versions), len(known) - 1)
        found[float(density)] = np.where(known[at] == versions, values[at], np.nan)
    return found


def mean_density(result: Result) -> tuple[Values, Values]:
    """Return times in s and mean densities, [N], from the initial model on if it was evaluated."""
    times, means = result.merges["now_s"], result.merges["density"].mean(axis=1)
    initial = result.evaluations["version"] == 0
    before = [result.evaluations[name][initial][:1] for name in ("now_s", "mean_density")]
    return np.concatenate([before[0], times]), np.concatenate([before[1], means])


def end_s(result: Result, name: str) -> float:
    """Return the latest time in column `name`."""
    columns = [result.merges[name], result.evaluations[name]]
    return max((float(column[-1]) for column in columns if len(column)), default=0.0)


def last_tests(result: Result) -> Values:
    """Return the last test accuracies, at most 3, of models that were trained if there are any."""
    evaluations = scored(result)
    test = evaluations["test_accuracy"]
    is_known = np.isfinite(test)
    is_trained = is_known & (evaluations["version"] > 0)
    return test[is_trained if is_trained.any() else is_known][-3:]


def quarantined(result: Result) -> list[int]:
    """Return the clients that were put in quarantine: what they sent last is in no version, though
    they were not lost.
    """
    unmerged = result.updates["client"][result.updates["version"] == 0]
    lost = result.events["client"][result.events["kind"] == LOST]
    return [int(client) for client in np.setdiff1d(unmerged, lost)]


def lost_ranks(result: Result) -> list[int]:
    """Return the ranks of a run that has ended without them: no row of `ranks` is theirs, nor any
    span of the timeline. Files that do not say how many ranks there were have none.
    """
    num_ranks = stretches(result.provenance)[-1].get("num_ranks", "0")
    there = {int(rank) for rank in result.ranks.get("rank", ())}
    return sorted({*range(int(num_ranks))} - there) if there else []


def merged_ages(result: Result) -> Values:
    """Return [M] staleness of the merged updates when they were first merged; a fresh one has 1."""
    version, base = result.updates["version"], result.updates["base_version"]
    return (version - base)[version > 0]
