"""Report of the feasibility study: the paper's Table 7, growth rates, verdict and picture.

Shapes: I accuracy intervals, D densities, S seeds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.experiments.feasibility import (
    Growth,
    is_monotone,
    measure_growth,
    rank_trend,
    series_of,
)
from fedgmr_hpc.experiments.feasibility_plot import plot_feasibility
from fedgmr_hpc.reporting.figures import save
from fedgmr_hpc.reporting.pages import Page, Picture, page_markdown, write_page
from fedgmr_hpc.reporting.statistics import summarize
from fedgmr_hpc.reporting.tables import Table, write_tables
from fedgmr_hpc.storage.reader import Result, read_result


def interval_table(growth: Growth, command: str = "") -> Table:
    """Tabulate the optimum of every accuracy interval, with g of all densities."""
    best, agreeing = growth.optima(), growth.num_agreeing()
    heads = ["accuracy %", "optimal density", "seeds agree"]
    heads += [f"g at {density:g}" for density in growth.densities]
    means = 1e4 * growth.rates.mean(axis=1)  # points per 100 s
    rows = [
        [_span(growth.edges[i], growth.edges[i + 1]), _shown(best[i]),
         f"{agreeing[i]} of {len(growth.seeds)}", *(f"{g:.2f}" for g in means[:, i])]
        for i in range(len(best))
    ]  # fmt: skip
    return Table(
        name="feasibility",
        title="Growth rate by accuracy interval and density",
        heads=heads,
        rows=rows,
        notes=[
            "g: points of test accuracy per 100 s of virtual time, mean over seeds; "
            "0: not through the interval."
        ],  # fmt: skip
        command=command,
        num_seeds=", ".join(map(str, growth.seeds)),
        records=[record for i in range(len(best)) for record in _records(growth, i)],
    )


def _records(growth: Growth, i: int) -> list[dict[str, float]]:
    return [
        {"accuracy_from": growth.edges[i], "accuracy_to": growth.edges[i + 1], "seed": seed,
         "density": density, "growth_per_s": growth.rates[d, s, i]}
        for d, density in enumerate(growth.densities) for s, seed in enumerate(growth.seeds)
    ]  # fmt: skip


def optimum_table(growth: Growth) -> Table:
    """Tabulate the paper's Table 7: neighbouring intervals with one optimal density are joined."""
    best, agreeing = growth.optima(), growth.num_agreeing()
    rows: list[list[str]] = []
    begin = 0
    for i in range(1, len(best) + 1):
        if i == len(best) or best[i] != best[begin]:
            span = _span(growth.edges[begin], growth.edges[i])
            low, high = min(agreeing[begin:i]), max(agreeing[begin:i])
            agree = f"{low}" if low == high else f"{low} to {high}"
            rows.append([_shown(best[begin]), span, f"{agree} of {len(growth.seeds)}"])
            begin = i
    heads = ["optimal density", "accuracy %", "seeds agree"]
    return Table("optimal_density", "Optimal density by accuracy", heads, rows)


def verdict(growth: Growth) -> str:
    """Say whether the optimal density rises with accuracy, over seeds and in each of them."""
    by_seed = [growth.optima_of_seed(index) for index in range(len(growth.seeds))]
    summary = summarize([rank_trend(optima) for optima in by_seed])
    assert summary is not None
    best, interval = growth.optima(), summary.correlation_interval
    spread = f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    return (
        f"With rising accuracy the optimal density of the means over {len(growth.seeds)} seeds "
        f"{_course(best)} (tau {rank_trend(best):.2f}). In single seeds it never falls in "
        f"{sum(map(is_monotone, by_seed))} of {len(by_seed)}; their mean tau is "
        f"{summary.mean:.2f}{spread}."
    )


def _course(optima: Sequence[float | None]) -> str:
    if not is_monotone(optima):
        return "does not rise monotonically"
    return "stays the same" if rank_trend(optima) == 0 else "rises and never falls"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _shown(density: float | None) -> str:
    return "-" if density is None else f"{density:g}"


def feasibility_report(
    results: Sequence[Result], out_dir: str | os.PathLike[str], command: str = ""
) -> str:
    """Write feasibility.html, .md, .csv and .png into `out_dir`; return the Markdown.

    Raises:
        ValueError: the results are not one run of each density and seed.
        OSError: `out_dir` cannot be written.
    """
    title = _title(results)
    series = [series_of(result) for result in results]
    growth, out = measure_growth(series), Path(out_dir)
    table = interval_table(growth, command)
    picture = save(plot_feasibility(growth, series), out / "feasibility.png")
    parts = (optimum_table(growth), table, Picture("Growth rate and accuracy", picture))
    write_tables([table], out, latex=False)
    page = Page(title, [verdict(growth)], parts=parts)
    write_page(page, out, "feasibility")
    return page_markdown(page, out)


def _title(results: Sequence[Result]) -> str:
    """Say what the runs have in common.

    Raises:
        ValueError: they are of several data sets or models.
    """
    kinds = {(r.config["data"]["name"], r.config["model"]["name"]) for r in results}
    if len(kinds) != 1:
        got = "; ".join(f"{data}, {model}" for data, model in sorted(kinds)) or "no result"
        need = "the same in all results"
        raise ValueError(must_be("data.name and model.name", need, found=got))
    data, model = next(iter(kinds))
    return f"Optimal density against accuracy: {data}, {model}"


def report_files(paths: Sequence[str], out_dir: str | os.PathLike[str]) -> str:
    """Write the `feasibility_report` of result files.

    Raises:
        ValueError: a path is no result, or the results do not fit together.
    """
    command = f"python -m fedgmr_hpc feasibility {_shorten(paths)} --out {out_dir}"
    return feasibility_report([read_result(path) for path in paths], out_dir, command)


def _shorten(paths: Sequence[str]) -> str:
    """Return the paths, or what a shell makes them of where they are all results of a folder."""
    folder = Path(paths[0]).parent if paths else Path()
    is_all = sorted(map(Path, paths)) == sorted(folder.glob("*.h5"))
    return f"{folder}/*.h5" if is_all and len(paths) > 1 else " ".join(paths)
