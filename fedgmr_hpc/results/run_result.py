"""A run as a Python program holds it: its tables, weights and figures.

Shapes: N rows of a table, C clients.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.identity import method_label
from fedgmr_hpc.config.messages import must, unknown_choice
from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.reporting.packages import optional_package
from fedgmr_hpc.reporting.words import count_of, percent
from fedgmr_hpc.results.columns import long, wide
from fedgmr_hpc.results.series import end_s
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.reader import read_result as read_stored
from fedgmr_hpc.storage.schema import TABLES, Columns

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from torch import Tensor, nn

PLOTS = ("accuracy", "density", "submodels")


@dataclass(frozen=True, repr=False, eq=False)
class RunResult(Result):
    """What a result file holds, and what is made of it in Python.

    Example:
        >>> result = fedgmr_hpc.run("digits", {"run.max_rounds": 60})
        >>> result.evaluations["test_accuracy"][-1]
        >>> result.frame("merges", by_client=True).groupby("client").up_bytes.last()
    """

    def frame(self, table: str = "evaluations", *, by_client: bool = False) -> pandas.DataFrame:
        """Return a table as a pandas data frame.

        Args:
            table: `merges`, `evaluations` or another one of the file.
            by_client: one row a client, with a column `client`, of a table with columns [N, C].
                Otherwise each of these becomes C columns: `density_0`, `density_1` and so on.

        Raises:
            ValueError: there is no such table, or pandas is missing.
        """
        if table not in (*TABLES, "ranks"):
            raise ValueError(unknown_choice("table", table, (*TABLES, "ranks")))
        frames = optional_package("pandas", "result.frame")
        columns: Columns = getattr(self, table)
        return frames.DataFrame(long(columns) if by_client else wide(columns))

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the final weights by name, as `load_state_dict` of `model()` takes them.

        Raises:
            ValueError: the run has not finished.
        """
        from fedgmr_hpc.models import state_dict_of  # with torch, which tables do not need

        self._check_weights()
        return state_dict_of(self.layout_json, self.weights)

    def model(self) -> nn.Module:
        """Return the whole model with the final weights, in evaluation mode; this imports the
        plug-ins that the run names.

        Raises:
            ValueError: the run has not finished, or its configuration cannot be read here.
        """
        from fedgmr_hpc.models import module_with_weights  # as above

        self._check_weights()
        return module_with_weights(make_config(self.config), self.layout_json, self.weights)

    def plot(self, what: str = "accuracy") -> Figure:
        """Draw the run over time; a notebook shows it once `matplotlib.pyplot` is imported.

        Args:
            what: `accuracy`, `density`, or `submodels` where they were scored.

        Raises:
            ValueError: there is no such figure, or nothing to draw in it.
        """
        from fedgmr_hpc.results.plots import draw_run  # a result needs no matplotlib

        if what not in PLOTS:
            raise ValueError(unknown_choice("what", what, PLOTS))
        if what == "submodels" and not len(self.submodels["version"]):
            raise ValueError(must("eval.submodels", "have been true for this figure"))
        if what == "density" and not len(self.merges["version"]):
            raise ValueError(must(f"results {self.path}", "have a merge for this figure"))
        return draw_run(self, what)

    def _check_weights(self) -> None:
        if not len(self.weights):
            because = f"the run is {self.status}"
            raise ValueError(must(f"results {self.path}", "have final weights", because=because))

    @classmethod
    def of(cls, stored: Result) -> RunResult:
        """Return what a file holds, with these methods."""
        return cls(**fields_of(stored))

    def __repr__(self) -> str:
        facts = self._facts()
        scores = [f"{name} {text}" for name, text in facts.items() if name.endswith("accuracy")]
        told = ", ".join([facts["status"], facts["course"], *scores, facts["file"]])
        return f"<{facts['run']}: {told}>"

    def _repr_html_(self) -> str:
        """Return a small table, as a notebook shows it."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._facts().items()
        )
        return f"<table>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        data, seed = self.config.get("data", {}).get("name", "-"), self.config.get("seed", "-")
        facts = {"run": f"{method_label(self.config)} on {data}, seed {seed}"}
        facts["status"] = self.status
        rounds = int(self.merges["round"][-1]) if len(self.merges["round"]) else 0
        facts["course"] = f"{count_of(rounds, 'round')} in {end_s(self, 'now_s'):.1f} s"
        for name in ("test", "val"):
            values = self.evaluations[f"{name}_accuracy"]
            if len(known := values[np.isfinite(values)]):
                facts[f"{name} accuracy"] = f"{percent(known[-1])} %"
        return {**facts, "file": str(self.path)}


def read_result(path: str | os.PathLike[str], *, partial: bool = False) -> RunResult:
    """Read a finished, running or killed run, up to its last flush.

    Args:
        partial: read what is left of a damaged file instead of refusing it; the status then says
            what is lost.

    Raises:
        ValueError: `path` is missing, damaged or no result file; says what is wrong.

    Example:
        >>> read_result("run.h5").evaluations["test_accuracy"]
    """
    return RunResult.of(read_stored(path, partial=partial))
