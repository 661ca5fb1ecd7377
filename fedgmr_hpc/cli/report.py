"""The verbs `report` and `watch`: runs from their result files, once or live."""

from __future__ import annotations

import argparse

from fedgmr_hpc.cli.arguments import Verbs, above_zero, add_out, add_verb

EVERY_S = 2.0
RESULT_HELP = "a result file, a pattern, or a folder of them"
REPORT = """\
Make tables and plots of runs: accuracy and density over virtual time, bytes,
and where the time went. The tables are printed; the plots are written to
--out. Files that cannot be read are left out, with a line that says why.
"""
REPORT_EPILOG = """\
examples:
  %(prog)s results/
  %(prog)s a.h5 b.h5 --out compared
"""
WATCH = """\
Show a table of runs, read from their files alone. On a terminal it is redrawn
until Ctrl-C, or until the named files have all ended; into a pipe, or with
--once, it is printed once. A folder is a study's or one of result files; new
files are taken in.

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
        default=EVERY_S,
        metavar="S",
        help="seconds between two looks (default: %(default)g)",
    )
    parser.add_argument("--once", action="store_true", help="print the table once")


def report(arguments: argparse.Namespace) -> int:
    """Print the tables, and where the plots are."""
    from fedgmr_hpc.results.summary import report_results

    print(report_results(arguments.results, arguments.out))
    return 0


def watch(arguments: argparse.Namespace) -> int:
    """Show the runs until they end or Ctrl-C."""
    from fedgmr_hpc.results.watch import watch as watch_files

    return watch_files(arguments.results, arguments.every, arguments.once)
