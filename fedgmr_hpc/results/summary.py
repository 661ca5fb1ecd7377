"""Tables and plots of finished, running or killed runs, from their result files alone.

    render_summary   what a person reads at the end of one run
    make_report      one table over runs, each run's course and, with a timeline beside it, where
                     its ranks' time went, and plots

Text is plain, so that it can be copied into a mail. "Server up" is what the server sent and "server
down" what it received, as charged on its links, in MB of 10^6 bytes: server_up_bytes and
server_down_bytes of the table `merges`. Densities are means over clients; times are virtual, or
unscaled on the wall clock, unless they say wall. Shapes: N merges, E evaluations, C clients.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedgmr_hpc.config.identity import method_label
from fedgmr_hpc.reporting.console import own_python
from fedgmr_hpc.reporting.interactive import PAGE, write_interactive
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.reporting.words import count_of, percent
from fedgmr_hpc.results.chance import describe_chance
from fedgmr_hpc.results.interactive.curves import chart_of, state_of
from fedgmr_hpc.results.pairs import MAX_OVERRUN_FRAC, overrun_frac
from fedgmr_hpc.results.series import (
    Values,
    end_s,
    last_tests,
    lost_ranks,
    mean_density,
    merged_ages,
    own_accuracies,
    quarantined,
    scored,
    server_bytes,
)
from fedgmr_hpc.results.watch import find_files, short_names
from fedgmr_hpc.runtime.timeline import CATEGORIES, breakdowns, read_timeline
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.run_files import timeline_path

COURSE_ROWS = 8
RUN_HEADS = (
    "run",
    "method",
    "data",
    "seed",
    "rounds",
    "versions",
    "time\ns",
    "wall\ns",
    "test\n%",
    "test, mean of 3\n%",
    "val\n%",
    "density\nstart -> end",
    "server up\nMB",
    "server down\nMB",
    "status",
)
COURSE_HEADS = (
    *("round", "time\ns", "val\n%", "test\n%", "density"),
    *("server up\nMB", "server down\nMB"),
)
LEGEND = (
    "time: virtual, or on the wall clock unscaled; server up, down: what the server sent, "
    "received, 10^6 bytes;\ntest, mean of 3: over the last evaluations, at most 3, the "
    "untrained model's left out; dead?: it says running, but is silent;\nwith eval.every_s means, "
    "courses and curves are of looks at equal times, test and val of the last version"
)


def report_results(
    words: Sequence[str],
    out: str | os.PathLike[str] | None,
    formats: Sequence[str] = ("png",),
    sizes: Sequence[str] = ("page",),
) -> str:
    """Return the tables of the runs that words name: files, patterns, or folders of them.

    Args:
        words: as `find_files` takes them.
        out: folder of the plots; None for `report` beside the first file, or in the first folder.
        formats: of the plots' files: `png`, `pdf`, `svg`.
        sizes: what the plots are for: `page`, `slide`, `column`.

    Raises:
        ValueError: a word names nothing, or nothing that it names is a result file.
    """
    files = find_files(words)
    if not files:
        raise ValueError(f"results {' '.join(words)}: no result files there")
    first = Path(words[0])
    out = out or (first if first.is_dir() else files[0].parent) / "report"
    return make_report(files, out, formats, sizes)


def make_report(
    paths: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    formats: Sequence[str] = ("png",),
    sizes: Sequence[str] = ("page",),
) -> str:
    """Render the tables of all runs and draw their figures into `out_dir` (plots.py).

    `interactive.html` is written where plotly is installed. A file that cannot be read is left out,
    with a line that says why.

    Raises:
        ValueError: no path is a result file.
        OSError: `out_dir` cannot be written.
    """
    from fedgmr_hpc.results.plots import write_figures  # a summary needs no matplotlib

    results, unreadable = _read_all(paths)
    names = short_names([result.path for result in results])
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    plots = write_figures(results, out_dir, formats, sizes)
    page = _write_page(results, names, out_dir)
    runs = as_text(RUN_HEADS, [_run_cells(*run) for run in zip(names, results, strict=True)])
    courses = [_course(*run) for run in zip(names, results, strict=True)]
    spent = [
        _time_spent(*run)
        for run in zip(names, results, strict=True)
        if timeline_path(run[1].path).exists()
    ]
    written = "\n".join(f"plot: {path}" for path in plots)
    left_out = "\n".join(f"left out: {line}" for line in unreadable)
    parts = [f"{runs}\n{LEGEND}", *courses, *spent, f"{written}\n{page}", left_out]
    return "\n\n".join(filter(None, parts))


def _read_all(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[Result], list[str]]:
    """Return the runs that can be read, and what is wrong with the other files."""
    results, wrong = [], []
    for path in paths:
        try:
            results.append(read_result(path))
        except ValueError as error:
            wrong.append(str(error))
    if not results:
        raise ValueError("\n".join(wrong))
    return results, wrong


def _write_page(results: Sequence[Result], names: Sequence[str], out_dir: Path) -> str:
    """Write the interactive page; return a line that says where it is, or why it is not there."""
    try:
        return f"page: {write_interactive(chart_of(results, names), out_dir / PAGE)}"
    except ValueError as error:
        return f"no interactive page: {error}"


def _gone(result: Result) -> str:
    """Say which clients were put in quarantine; "" for none."""
    gone = quarantined(result)
    which = f"client{'s' * (len(gone) > 1)} {', '.join(map(str, gone))}"
    return f"{which} in quarantine, so that the others alone were trained" if gone else ""


def _lost(result: Result) -> str:
    """Say which ranks were lost before the run's end; "" for none."""
    lost = lost_ranks(result)
    which = f"rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
    return f"without {which}, lost before the end: no row in /ranks, no spans" if lost else ""


def render_summary(result: Result) -> str:
    """Summarize the end of a run: what it reached, what it cost, where it is, what to type next."""
    config, merges = result.config, result.merges
    up, down = _last_mb(result)
    test, last_test, val = _accuracies(result)
    num_last = count_of(len(last_tests(result)), "evaluation")
    facts = {
        "test accuracy": f"{test} %, mean of the last {num_last} {last_test} %",
        "warning": "; ".join(filter(None, [describe_chance(result), _gone(result), _lost(result)])),
        "sub-models": _own_submodels(result),
        "val accuracy": f"{val} %",
        "mean density": _density_course(result),
        "server": f"{up:.1f} MB up to the clients, {down:.1f} MB down from them",
        "merged": f"rounds {_count(merges['round'])}, versions {_count(merges['version'])}",
        "time": f"{end_s(result, 'now_s'):.1f} s {_clock(result)}, "
        f"{end_s(result, 'wall_s'):.1f} s wall",
        "overruns": _overruns(result),
        "staleness": _staleness(result),
        "results": str(result.path),
        "timeline": _timeline(result),
    }
    title = f"{method_label(config)} on {_data_name(result)}, seed {config.get('seed', '-')}"
    lines = [f"  {name:<15}{text}" for name, text in facts.items() if text]
    next_step = f"next: {own_python()} -m fedgmr_hpc report {shlex.quote(str(result.path))}"
    return "\n".join([f"{title}: {result.status}", *lines, next_step])


def _run_cells(name: str, result: Result) -> list[str]:
    _, density = mean_density(result)
    up, down = _last_mb(result)
    return [
        name,
        method_label(result.config),
        _data_name(result),
        str(result.config.get("seed", "-")),
        str(_count(result.merges["round"])),
        str(_count(result.merges["version"])),
        f"{end_s(result, 'now_s'):.1f}",
        f"{end_s(result, 'wall_s'):.1f}",
        *_accuracies(result),
        f"{density[0]:.3f} -> {density[-1]:.3f}" if len(density) else "-",
        f"{up:.1f}",
        f"{down:.1f}",
        state_of(result),
    ]


def _course(name: str, result: Result) -> str:
    """Render about `COURSE_ROWS` evaluations, evenly spread, the last one always among them."""
    evaluations = scored(result)
    num_rows = len(evaluations["version"])
    head = "\n".join(filter(None, [f"{name}: {result.status}", _lost(result), _overruns(result)]))
    if not num_rows:
        return f"{head}\nno evaluation yet"
    picks = np.unique(np.linspace(0, num_rows - 1, COURSE_ROWS).round().astype(int))
    up, down = (moved / 1e6 for moved in server_bytes(result, evaluations["version"]))
    rows = [
        [
            str(evaluations["round"][i]),
            f"{evaluations['now_s'][i]:.1f}",
            percent(evaluations["val_accuracy"][i]),
            percent(evaluations["test_accuracy"][i]),
            f"{evaluations['mean_density'][i]:.3f}",
            f"{up[i]:.1f}",
            f"{down[i]:.1f}",
        ]
        for i in picks
    ]
    return f"{head}\n{as_text(COURSE_HEADS, rows)}"


def _time_spent(name: str, result: Result) -> str:
    """Render the breakdown of the timeline beside a result file, or what is wrong with it."""
    try:
        ranks = read_timeline(timeline_path(result.path))
    except ValueError as error:
        return f"{name}: no breakdown of the time: {error}"
    dropped = sum(trace.num_dropped for trace in ranks)
    note = f"; {dropped} spans were dropped and count as idle" if dropped else ""
    return f"{name}: seconds of each rank{note}\n{render_breakdown(breakdowns(ranks))}"


def render_breakdown(seconds: Mapping[int, Mapping[str, float]]) -> str:
    """Render where the time of each rank went, in seconds by category."""
    heads = ["rank", *CATEGORIES, "idle"]
    rows = [[str(rank), *(f"{row[h]:.3f}" for h in heads[1:])] for rank, row in seconds.items()]
    return as_text(heads, rows)


def _density_course(result: Result) -> str:
    times, means = mean_density(result)
    if not len(means):
        return "-"
    quarters = np.searchsorted(times, times[-1] * np.array([0.25, 0.5, 0.75]), side="right") - 1
    start, *middle, end = (f"{means[i]:.3f}" for i in (0, *np.maximum(quarters, 0), -1))
    return f"{start} -> {', '.join(middle)} -> {end}  (after 0 -> 25, 50, 75 -> 100 % of the time)"


def _staleness(result: Result) -> str:
    """Describe the staleness of updates when they were first merged; a fresh one has 1."""
    ages = merged_ages(result)
    return f"mean {ages.mean():.2f}, max {ages.max()} versions" if ages.size else "-"


def _accuracies(result: Result) -> list[str]:
    """Return the last test accuracy, the mean of its last ones, the last validation accuracy."""
    val = result.evaluations["val_accuracy"]
    test = result.evaluations["test_accuracy"]
    kept = [test[np.isfinite(test)][-1:], last_tests(result), val[np.isfinite(val)][-1:]]
    return [percent(values.mean()) if values.size else "-" for values in kept]


def _own_submodels(result: Result) -> str:
    """Describe the last test accuracy of the clients' own sub-models, "" where none was scored."""
    cut = result.submodels["version"][-1:]
    if not len(cut):
        return ""
    mean, worst = (percent(values[0]) for values in own_accuracies(result, cut))
    return f"test accuracy {mean} %, mean over the clients, worst class {worst} %"


def _clock(result: Result) -> str:
    is_wall = result.config.get("clock") == "wall"
    return f"at time_scale {result.config.get('time_scale')}" if is_wall else "virtual"


def _overruns(result: Result) -> str:
    """Describe how many client-steps took longer than the wall clock gives them, "" if none."""
    share = overrun_frac(result) if len(result.updates["client"]) else 0.0
    if not share:
        return ""
    text = f"{100 * share:.1f} % of the client-steps took longer than they may"
    too_many = "; the times are too long: raise time_scale"
    return f"{text}{too_many}" if share > MAX_OVERRUN_FRAC else text


def _timeline(result: Result) -> str:
    path = timeline_path(result.path)
    return f"{path}, for ui.perfetto.dev" if path.exists() else ""


def _count(column: Values) -> int:
    """Return the last value of a counter, 0 before the first row."""
    return int(column[-1]) if len(column) else 0


def _data_name(result: Result) -> str:
    return str(result.config.get("data", {}).get("name", "-"))


def _last_mb(result: Result) -> tuple[float, float]:
    """Return MB that the server has sent (up) and received (down) by the last merge."""
    up, down = (moved[0] / 1e6 for moved in server_bytes(result, np.array([np.inf])))
    return up, down
