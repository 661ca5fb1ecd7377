"""The verb `study`: many runs, here or on Slurm."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedgmr_hpc.cli.arguments import (
    Verbs,
    add_actions,
    add_figures,
    add_json,
    add_out,
    add_plugin_option,
    add_ranks,
    add_verb,
    at_least,
    one_of,
    overrides_of,
)
from fedgmr_hpc.cli.parser import Parser

if TYPE_CHECKING:
    from fedgmr_hpc.study.folder import StudyFolder

STUDY_DIR = "results/studies"
EXIT_INTERRUPTED = 130
DESCRIPTION = """\
Run a study: every combination of what its file varies, on this machine or on
Slurm; then write its report, with tables, figures and verdicts.

DIR holds the runs in cells/, shared by all studies of DIR, and a folder for
each study's report. `status`, `report` and `export` without KEY=VALUE take the
words of the last `run` or `submit`.
"""
EPILOG = """\
examples:
  %(prog)s run main_small data.root=/data
  %(prog)s submit main --site mysite.yaml
"""
RUN = """\
Run on this machine what is missing, was interrupted or has failed. The report
is written afterwards, by `study report`.
"""
RUN_EPILOG = """\
examples:
  %(prog)s main_small data.root=/data --dry-run
  %(prog)s main_small data.root=/data --max-parallel 2
"""
SUBMIT = """\
Submit to Slurm, as an array of jobs and a job that reports, what is missing,
was interrupted or has failed. data.root is the site's `data` unless a word
says otherwise; the site's plug-ins are those of every run.
"""
SUBMIT_EPILOG = """\
examples:
  %(prog)s main --site mysite.yaml --dry-run
  %(prog)s main --site mysite.yaml --ranks 5
"""
STATUS = """\
Print the state of every run (done, queued, running, failed, interrupted,
missing, or waiting for the trials that tune it) and the time left.
"""
STATUS_EPILOG = """\
examples:
  %(prog)s main_small
  %(prog)s main_small --out /scratch/studies
"""
REPORT = """\
Write tables, figures and verdicts of the runs that are done.
"""
REPORT_EPILOG = """\
examples:
  %(prog)s main_small
  %(prog)s main_small --spread interval
  %(prog)s main_small --format svg --size column,slide
"""
EXPORT = """\
Write the runs that are done as one tidy table beside the report, tidy.csv or
tidy.jsonl: a row an evaluation, with method, seed, every key that the study
varies or tunes, round, time, bytes and scores.
"""
EXPORT_EPILOG = """\
examples:
  %(prog)s main_small
  %(prog)s main_small --format jsonl
"""
EXPORT_FORMATS = ("csv", "jsonl")
SPREADS = ("sd", "interval")


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    group = add_verb(
        verbs,
        "study",
        summary="run many configurations, here or on Slurm",
        description=DESCRIPTION,
        epilog=EPILOG,
        call=None,
    )
    actions = add_actions(group)
    _add_run(actions)
    _add_submit(actions)
    parser = add_verb(
        actions,
        "status",
        summary="print the state of every run",
        description=STATUS,
        epilog=STATUS_EPILOG,
        call=status,
    )
    _add_study(parser)
    add_json(parser)
    parser = add_verb(
        actions,
        "report",
        summary="write tables, figures and verdicts",
        description=REPORT,
        epilog=REPORT_EPILOG,
        call=report,
    )
    _add_study(parser)
    parser.add_argument(
        "--spread",
        default=SPREADS[0],
        choices=SPREADS,
        type=one_of(SPREADS),
        metavar="WHAT",
        help="behind a mean: sd, or interval, half the 95 %% interval (default: %(default)s)",
    )
    add_figures(parser, "png,pdf", "; those of the report, png and page, in any case")
    parser = add_verb(
        actions,
        "export",
        summary="write one tidy table for other programs",
        description=EXPORT,
        epilog=EXPORT_EPILOG,
        call=export,
    )
    _add_study(parser)
    parser.add_argument(
        "--format",
        default=EXPORT_FORMATS[0],
        type=one_of(EXPORT_FORMATS),
        choices=EXPORT_FORMATS,
        metavar="FORMAT",
        help=f"{' or '.join(EXPORT_FORMATS)} (default: %(default)s)",
    )


def _add_run(actions: Verbs) -> None:
    parser = add_verb(
        actions,
        "run",
        summary="run what is missing on this machine",
        description=RUN,
        epilog=RUN_EPILOG,
        call=run,
    )
    _add_study(parser)
    _add_start(parser)


def _add_submit(actions: Verbs) -> None:
    parser = add_verb(
        actions,
        "submit",
        summary="submit what is missing to Slurm",
        description=SUBMIT,
        epilog=SUBMIT_EPILOG,
        call=submit,
    )
    _add_study(parser)
    _add_start(parser)
    parser.add_argument("--site", help="a YAML file, or the name of one in configs/sites")
    parser.add_argument(
        "--nodes",
        type=at_least(1),
        metavar="N",
        help="nodes of a run (default: one, or a GPU for each client rank)",
    )
    parser.add_argument("--local", action="store_true", help="run the jobs on this machine")


def _add_study(parser: Parser) -> None:
    about = "a YAML file, or the name of one in configs/studies"
    parser.add_argument("study", metavar="STUDY", help=about)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides of every run")
    add_plugin_option(parser)
    add_out(parser, STUDY_DIR, "folder of runs and reports")


def _add_start(parser: Parser) -> None:
    add_ranks(parser, about="ranks of a run, the server included (default: the study's)")
    parser.add_argument(
        "--max-parallel", "--side-by-side", type=at_least(1), metavar="N", help="runs at a time"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")


def run(arguments: argparse.Namespace) -> int:
    """Run a study here."""
    from fedgmr_hpc.study.folder import check_time_limits
    from fedgmr_hpc.study.running.local_run import run_study

    folder = _open(arguments)
    check_time_limits(folder)
    given = (arguments.ranks, arguments.max_parallel, arguments.dry_run)
    return _until_interrupted(folder, "run", lambda: run_study(folder, *given))


def submit(arguments: argparse.Namespace) -> int:
    """Submit a study."""
    from fedgmr_hpc.study.folder import check_time_limits, open_study
    from fedgmr_hpc.study.slurm.submit import add_site
    from fedgmr_hpc.study.slurm.submit import main as submit_study

    words = add_site(overrides_of(arguments), arguments.site)
    folder = open_study(arguments.study, words, arguments.out, reuses_overrides=False)
    check_time_limits(folder)
    return _until_interrupted(folder, "submit", lambda: submit_study(folder, arguments))


def status(arguments: argparse.Namespace) -> int:
    """Print the state of a study."""
    from fedgmr_hpc.study.folder import render_status, status_record

    folder = _open(arguments, reuses_overrides=True)
    print(json.dumps(status_record(folder), indent=1) if arguments.json else render_status(folder))
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Write the report of a study."""
    folder = _open(arguments, reuses_overrides=True)
    from fedgmr_hpc.study.report.page import write_report

    where = (folder.cells_dir, folder.report_dir)
    how = (arguments.spread, arguments.format, arguments.size)
    print(write_report(folder.study, folder.cells, *where, folder.command, *how))
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write the tidy table of a study."""
    folder = _open(arguments, reuses_overrides=True)
    from fedgmr_hpc.study.export import export_study

    print(export_study(folder, arguments.format))
    return 0


def _open(arguments: argparse.Namespace, reuses_overrides: bool = False) -> StudyFolder:
    words = overrides_of(arguments)
    from fedgmr_hpc.study.folder import open_study

    return open_study(arguments.study, words, arguments.out, reuses_overrides=reuses_overrides)


def _until_interrupted(folder: StudyFolder, action: str, work: Callable[[], int]) -> int:
    try:
        return work()
    except KeyboardInterrupt:
        print(f"interrupted; `{folder.command(action)}` continues", file=sys.stderr)
        return EXIT_INTERRUPTED
