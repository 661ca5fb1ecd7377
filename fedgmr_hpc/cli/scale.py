"""The verb `scale`: how a configuration scales over ranks, and where its server saturates."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from fedgmr_hpc.cli.arguments import (
    Verbs,
    add_actions,
    add_configuration,
    add_json,
    add_out,
    add_verb,
    at_least,
    numbers,
    one_of,
    overrides_of,
    sources_of,
    stdout_to_stderr,
)
from fedgmr_hpc.cli.parser import Parser

SWEEPS = ("clients-per-rank", "density", "bandwidth")
DESCRIPTION = """\
Measure how a configuration scales: speed-up, efficiency, where the time goes,
and at how many ranks the server saturates, measured and predicted.

Points run one after the other, all of them once before any a second time,
with one thread a rank and, where cores suffice, a core each: by mpirun, or
inside a Slurm job by srun over its nodes. TERM, USR1 and USR2 end the run
under way with exit code 75; the same command with --out DIR continues.
"""
EPILOG = """\
examples:
  %(prog)s strong digits --ranks 2,3,5,9
  %(prog)s sweep --ranks 3 --sweep density --values 0.1,1
"""
KINDS = {
    "strong": (
        "more ranks, the same clients",
        "Measure more and more ranks that share the same clients.\n",
        "  %(prog)s digits --ranks 2,3,5,9\n  %(prog)s --ranks 2,5 --repeats 5 run.max_rounds=40\n",
    ),
    "weak": (
        "more ranks, as many clients on each",
        "Measure more and more ranks with as many clients on each, those that the\n"
        "configuration has with the fewest ranks.\n",
        "  %(prog)s digits --ranks 2,3,5,9\n  %(prog)s --ranks 3,5 clients.count=20\n",
    ),
    "sweep": (
        "the same ranks, one value varied",
        "Measure the same ranks while one value varies: the clients of a rank, one\n"
        "density for all clients, or a factor on the rates of all links.\n",
        "  %(prog)s --ranks 3 --sweep density --values 0.1,0.5,1\n"
        "  %(prog)s --sweep clients-per-rank --values 1,4\n",
    ),
}
REPORT = """\
Write the report of a scaling study again, from its folder.
"""
REPORT_EPILOG = """\
examples:
  %(prog)s results/scaling-strong
  %(prog)s results/scaling-strong/
"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    group = add_verb(
        verbs,
        "scale",
        summary="measure scaling and the server's limit",
        description=DESCRIPTION,
        epilog=EPILOG,
        call=None,
    )
    actions = add_actions(group)
    for kind, (summary, description, examples) in KINDS.items():
        parser = add_verb(
            actions,
            kind,
            summary=summary,
            description=description,
            epilog=f"examples:\n{examples}",
            call=scale,
        )
        parser.set_defaults(kind=kind, values=[])
        _add_options(parser)
        if kind == "sweep":
            _add_sweep(parser)
    parser = add_verb(
        actions,
        "report",
        summary="write the report of a folder again",
        description=REPORT,
        epilog=REPORT_EPILOG,
        call=report,
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a scaling study")
    add_json(parser)


def _add_options(parser: Parser) -> None:
    add_configuration(parser)
    parser.add_argument(
        "--ranks",
        type=numbers(int),
        default=[2, 3],
        metavar="N,N,...",
        help="numbers of ranks, the server included (default: 2,3)",
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=3, metavar="N", help="runs of a point (default: 3)"
    )
    parser.add_argument(
        "--warmup",
        type=at_least(1),
        default=3,
        metavar="N",
        help="first rounds that are left out of all rates (default: 3)",
    )
    add_out(parser, None, "folder of runs and report", "results/scaling-KIND-TIME")
    add_json(parser)


def _add_sweep(parser: Parser) -> None:
    parser.add_argument(
        "--sweep",
        required=True,
        type=one_of(SWEEPS),
        choices=SWEEPS,
        metavar="WHAT",
        help=f"what varies: {', '.join(SWEEPS)}",
    )
    parser.add_argument(
        "--values", required=True, type=numbers(float), metavar="X,X,...", help="its values"
    )


def scale(arguments: argparse.Namespace) -> int:
    """Run what a scaling study lacks, and report."""
    overrides, sources = overrides_of(arguments), sources_of(arguments)
    from fedgmr_hpc.scaling.study import report as write_report
    from fedgmr_hpc.scaling.study import scale as run_scaling

    kind = arguments.sweep if arguments.kind == "sweep" else arguments.kind
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = Path(arguments.out or f"results/scaling-{kind}-{stamp}")
    numbers = (arguments.ranks, arguments.values, arguments.repeats, arguments.warmup)
    with stdout_to_stderr(arguments.json):
        code = run_scaling(kind, sources, overrides, *numbers, out)
    if code == 0:
        print(write_report(out, arguments.json))
    return code


def report(arguments: argparse.Namespace) -> int:
    """Write a report again, and print it."""
    from fedgmr_hpc.scaling.study import report as write_report

    print(write_report(Path(arguments.folder), arguments.json))
    return 0
