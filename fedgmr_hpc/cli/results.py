"""The verb `results`: checks and exports result files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fedgmr_hpc.cli.arguments import Verbs, add_actions, add_json, add_verb, one_of

FORMATS = ("csv", "jsonl", "parquet", "tensorboard")
DESCRIPTION = "Check and export result files.\n"
EPILOG = """\
examples:
  %(prog)s verify results/*.h5
  %(prog)s export run.h5 --format csv --out run
"""
VERIFY = """\
Verify result files: structure, checksums, the event log's chain of hashes,
and whether the tables agree with each other. Prints one line a finding;
the exit code is 1 where a file is not sound.
"""
VERIFY_EPILOG = """\
examples:
  %(prog)s run.h5
  %(prog)s results/*.h5
"""
EXPORT = """\
Write the tables of result files in a form that other programs read:

  csv          RUN/TABLE.csv, one column for each client
  jsonl        RUN/TABLE.jsonl, one object for each row
  parquet      RUN/TABLE.parquet (needs pyarrow)
  tensorboard  RUN/events.out.tfevents... (needs tensorboardX)

Configuration and provenance are in RUN/run.json. With --join the runs share
one file a table, TABLE.csv, whose first column `run` tells them apart, and
runs.json. Files are not overwritten.

With --tidy all runs share one table in the file --out, csv or jsonl: a row an
evaluation, with method, seed, every key that differs between the runs, round,
time, bytes and scores.

With --partial, damaged files and those of killed runs give the rows before
the first damaged one; the status in run.json says what is missing.
"""
EXPORT_EPILOG = """\
examples:
  %(prog)s run.h5 --format csv --out tables
  %(prog)s results/*.h5 --join --format csv --out all
  %(prog)s results/*.h5 --tidy --out all.csv
"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    group = add_verb(
        verbs,
        "results",
        summary="verify or export result files",
        description=DESCRIPTION,
        epilog=EPILOG,
        call=None,
    )
    actions = add_actions(group)
    parser = add_verb(
        actions,
        "verify",
        summary="check that files are whole and consistent",
        description=VERIFY,
        epilog=VERIFY_EPILOG,
        call=verify,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a result file")
    add_json(parser)
    parser = add_verb(
        actions,
        "export",
        summary="write tables for other programs",
        description=EXPORT,
        epilog=EXPORT_EPILOG,
        call=export,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a result file")
    parser.add_argument(
        "--format",
        type=one_of(FORMATS),
        choices=FORMATS,
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default with --tidy: csv)",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write to; with --tidy the file"
    )
    parser.add_argument(
        "--join", action="store_true", help="write one file a table for all runs together"
    )
    parser.add_argument(
        "--tidy", action="store_true", help="write one table with a row for each evaluation"
    )
    parser.add_argument(
        "--partial", action="store_true", help="take what can be read of damaged files"
    )


def verify(arguments: argparse.Namespace) -> int:
    """Print what is wrong with files; 1 where something is."""
    from fedgmr_hpc.results.verify import remark
    from fedgmr_hpc.results.verify import verify as findings_of

    findings = {file: findings_of(file) for file in arguments.files}
    if arguments.json:
        files = [
            {"file": f, "sound": not found, "findings": found} for f, found in findings.items()
        ]
        print(json.dumps({"files": files}, indent=1))
        return 1 if any(findings.values()) else 0
    for file, lines in findings.items():
        print("\n".join(lines) if lines else f"results {file}: sound{remark(file)}")
    return 1 if any(findings.values()) else 0


def export(arguments: argparse.Namespace) -> int:
    """Write tables and print where they are.

    Raises:
        ValueError: options that do not go together.
    """
    if arguments.tidy:
        return _export_tidy(arguments)
    if arguments.format is None:
        raise ValueError("missing: --format, or --tidy")
    from fedgmr_hpc.results.export import export as export_files

    how = {"join": arguments.join, "partial": arguments.partial}
    for path in export_files(arguments.files, arguments.format, arguments.out, **how):
        print(path)
    return 0


def _export_tidy(arguments: argparse.Namespace) -> int:
    if arguments.join:
        raise ValueError("--join must be absent when --tidy is given")
    from fedgmr_hpc.results.tidy import export_tidy

    form = arguments.format or "csv"
    export_tidy(arguments.files, form, Path(arguments.out), partial=arguments.partial)
    print(arguments.out)
    return 0
