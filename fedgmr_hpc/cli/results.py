"""The verb `results`: checks and exports result files."""

from __future__ import annotations

import argparse

from fedgmr_hpc.cli.arguments import Verbs, add_actions, add_verb, one_of

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

Configuration and provenance are in RUN/run.json. Files are not overwritten.
With --partial what is left of a damaged file is written; the status in
RUN/run.json says what is lost.
"""
EXPORT_EPILOG = """\
examples:
  %(prog)s run.h5 --format csv --out tables
  %(prog)s results/*.h5 --format parquet --out tables
"""


def add_to(verbs: Verbs) -> None:
    """Adds the verb."""
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
        required=True,
        type=one_of(FORMATS),
        choices=FORMATS,
        metavar="FORMAT",
        help=", ".join(FORMATS),
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    about = "export what is left of damaged files instead of refusing them"
    parser.add_argument("--partial", action="store_true", help=about)


def verify(arguments: argparse.Namespace) -> int:
    """Prints what is wrong with files; 1 where something is."""
    from fedgmr_hpc.results.verify import remark
    from fedgmr_hpc.results.verify import verify as findings_of

    findings = {file: findings_of(file) for file in arguments.files}
    for file, lines in findings.items():
        print("\n".join(lines) if lines else f"results {file}: sound{remark(file)}")
    return 1 if any(findings.values()) else 0


def export(arguments: argparse.Namespace) -> int:
    """Writes tables and prints where they are."""
    from fedgmr_hpc.results.export import export as export_file

    for file in arguments.files:
        written = export_file(file, arguments.format, arguments.out, partial=arguments.partial)
        print("\n".join(map(str, written)))
    return 0
