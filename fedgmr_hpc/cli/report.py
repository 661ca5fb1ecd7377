"""The verbs `report` and `watch`: runs from their result files, once or live."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedgmr_hpc.cli.arguments import (
    Verbs,
    above_zero,
    add_figures,
    add_out,
    add_perf_log,
    add_tolerance,
    add_verb,
    limit,
)
from fedgmr_hpc.config.messages import must_be

EVERY_S, PAGE_EVERY_S = 2.0, 10.0
RESULT_HELP = "a result file, a pattern, or a folder of them"
REPORT = """\
Make tables and plots of runs: accuracy against virtual time, bytes and local
steps, densities, the clients' own sub-models, and where the time went. Runs
that differ only by their seed are one line, with a band from the least to the
greatest. The tables are printed; the plots are written to --out. Files that
cannot be read are left out, with a line that says why.

With --baseline the runs are compared with earlier ones instead: one table of
ratios, without plots. Two runs are a pair if configuration, limits and seed
are the same; repeats count by their median. The exit code is 1

  * where a figure is worse than --tolerance or --points allow; wall times
    are judged on the same machine only,
  * where on the virtual clock, the same kind of processor and the same
    libraries bytes, times, scores or weights have changed at all, for better
    or worse,
  * where a run of the baseline has no partner.
"""
REPORT_EPILOG = """\
examples:
  %(prog)s results/
  %(prog)s a.h5 b.h5 --out compared
  %(prog)s now/ --baseline before/ --tolerance 5%%
  %(prog)s now/ --baseline before/ --perf-log perf.jsonl
  %(prog)s results/ --format pdf,svg --size column,slide
"""
WATCH = """\
Show a table of runs, read from their files alone. On a terminal it is redrawn
until Ctrl-C, or until the named files have all ended; into a pipe, or with
--once, it is printed once. A folder is a study's or one of result files; new
files are taken in. With --html the same table and the curves are a page in
DIR, for a browser; an open page renews itself, and needs no server. It is
written until the named files have all ended or Ctrl-C, on a terminal or not.

  done    share of the rounds or of the virtual time, whichever is further
  rows/s  rows of all tables over the wall time of the run
  age     time since the file was written to
  left    time to the limit that comes first, at the pace of the last merges
  dead?   the run should go on, but is silent for longer than its pace explains
"""
WATCH_EPILOG = """\
examples:
  %(prog)s results/
  %(prog)s 'results/*.h5' --once
  %(prog)s results/ --html page
"""


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    parser = add_verb(
        verbs,
        "report",
        summary="make tables and plots of runs",
        description=REPORT,
        epilog=REPORT_EPILOG,
        call=report,
    )
    parser.add_argument("results", nargs="+", metavar="RESULT", help=RESULT_HELP)
    add_out(parser, None, "folder of the plots", "report, beside the first RESULT")
    parser.add_argument(
        "--baseline", nargs="+", metavar="RESULT", help="earlier runs, to compare with"
    )
    add_tolerance(parser, "by how much of its value before a figure may be worse")
    parser.add_argument(
        "--points",
        type=above_zero,
        metavar="N",
        help="by how many points the test accuracy may fall (default: 1)",
    )
    add_perf_log(parser)
    add_figures(parser, "png")
    parser = add_verb(
        verbs,
        "watch",
        summary="show a live table of runs",
        description=WATCH,
        epilog=WATCH_EPILOG,
        call=watch,
    )
    parser.add_argument("results", nargs="+", metavar="RESULT", help=RESULT_HELP)
    parser.add_argument(
        "--every",
        type=above_zero,
        metavar="S",
        help=f"seconds between two looks (default: {EVERY_S:g}, with --html {PAGE_EVERY_S:g})",
    )
    parser.add_argument("--once", action="store_true", help="look once")
    parser.add_argument("--html", metavar="DIR", help="write DIR/index.html (needs plotly)")


def report(arguments: argparse.Namespace) -> int:
    """Print the tables, and where the plots are; or compare runs, and return 1 where some are
    worse.
    """
    limits = limit(arguments, "tolerance", 0.1), limit(arguments, "points", 1.0)
    if arguments.baseline is not None:
        return _gate(arguments, *limits)
    from fedgmr_hpc.results.gate.compare import read_runs
    from fedgmr_hpc.results.gate.perf_log import append_lines, run_lines
    from fedgmr_hpc.results.summary import report_results

    if arguments.perf_log is not None:
        append_lines(arguments.perf_log, run_lines(read_runs(arguments.results)))
    print(report_results(arguments.results, arguments.out, arguments.format, arguments.size))
    return 0


def _gate(arguments: argparse.Namespace, tolerance_frac: float, points: float) -> int:
    from fedgmr_hpc.results.gate.compare import Limits, compare_runs, read_runs
    from fedgmr_hpc.results.gate.perf_log import append_lines, verdict_lines
    from fedgmr_hpc.results.gate.text import render_verdict

    if arguments.out is not None:
        raise ValueError(must_be("--out", "absent beside --baseline, which makes no plots"))
    if arguments.perf_log is not None:
        append_lines(arguments.perf_log, ())  # a file that cannot be a log, before the verdict
    now, before = (read_runs(words) for words in (arguments.results, arguments.baseline))
    verdict = compare_runs(now, before, Limits(tolerance_frac, points))
    print(render_verdict(verdict))
    if arguments.perf_log is not None:
        append_lines(arguments.perf_log, verdict_lines(verdict))
    return 0 if verdict.is_passed else 1


def watch(arguments: argparse.Namespace) -> int:
    """Show the runs until they end or Ctrl-C."""
    if arguments.html is not None:
        from fedgmr_hpc.results.interactive.live_page import watch_page

        every_s = arguments.every or PAGE_EVERY_S
        return watch_page(arguments.results, Path(arguments.html), every_s, arguments.once)
    from fedgmr_hpc.results.watch import watch as watch_files

    return watch_files(arguments.results, arguments.every or EVERY_S, arguments.once)
