"""The verbs `agree`, `feasibility` and `probe`: experiments on the method and on the clocks."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedgmr_hpc.cli.arguments import (
    CONFIG_HELP,
    Verbs,
    above_zero,
    add_actions,
    add_config_option,
    add_out,
    add_ranks,
    add_verb,
    overrides_of,
    sources_of,
)

AGREE_DIR, FEASIBILITY_DIR = "results/agree", "results/feasibility"
PROBE_DIR = "results/probe"
POINTS = 2.0
AGREE = """\
Compare a run on the wall clock, over real throttled links, with the same run
on the virtual clock: order of arrivals, times of rounds, staleness, bytes,
accuracy. The exit code is 1 where they disagree.

Runs a configuration on both clocks, or takes two result files: the virtual
run, the wall run, and more virtual runs with other seeds.
"""
AGREE_EPILOG = """\
examples:
  %(prog)s digits --ranks 3 run.max_rounds=40
  %(prog)s virtual.h5 wall.h5 --points 3
"""
FEASIBILITY = """\
Say which density suits a client of which bandwidth, from runs that each have
one density for all clients: the accuracy that every density reaches in time.
"""
FEASIBILITY_EPILOG = """\
examples:
  %(prog)s density-*.h5
  %(prog)s density-*.h5 --out feasibility
"""
PROBE = "Measure a quantity of the method on models of short or finished runs.\n"
PROBE_EPILOG = """\
examples:
  %(prog)s error digits
  %(prog)s error run.h5
"""
ERROR = """\
Measure the error of an aggregation rule against mean density, and what masks
that change while updates are in flight add to it. Starts from models of short
runs of a configuration, for which seed and run.max_rounds may be lists, or
from finished runs.
"""
ERROR_EPILOG = """\
examples:
  %(prog)s digits seed=0,1,2 run.max_rounds=10,100
  %(prog)s run.h5 --out error
"""


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    _add_agree(verbs)
    parser = add_verb(
        verbs,
        "feasibility",
        summary="find the density that suits a bandwidth",
        description=FEASIBILITY,
        epilog=FEASIBILITY_EPILOG,
        call=feasibility,
    )
    parser.add_argument("results", nargs="+", metavar="RESULT", help="a result file")
    add_out(parser, FEASIBILITY_DIR, "folder of the report")
    _add_probe(verbs)


def _add_agree(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "agree",
        summary="compare the wall clock with the virtual clock",
        description=AGREE,
        epilog=AGREE_EPILOG,
        call=agree,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG|KEY=VALUE|RESULT",
        help=f"result files; or a configuration: {CONFIG_HELP}",
    )
    add_config_option(parser)
    add_ranks(parser, default=3)
    parser.add_argument(
        "--points",
        type=above_zero,
        default=POINTS,
        metavar="X",
        help="largest difference of the accuracies, in points (default: %(default)g)",
    )
    shown = f"{AGREE_DIR}; of result files, the folder of the second"
    add_out(parser, None, "folder of the report", shown)


def _add_probe(verbs: Verbs) -> None:
    group = add_verb(
        verbs,
        "probe",
        summary="measure aggregation error against density",
        description=PROBE,
        epilog=PROBE_EPILOG,
        call=None,
    )
    parser = add_verb(
        add_actions(group),
        "error",
        summary="aggregation error against density",
        description=ERROR,
        epilog=ERROR_EPILOG,
        call=probe_error,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG|KEY=VALUE|RESULT",
        help=f"result files; or a configuration: {CONFIG_HELP}",
    )
    add_config_option(parser)
    add_out(parser, PROBE_DIR, "folder of tables and figures")


def agree(arguments: argparse.Namespace) -> int:
    """Compare two runs; 1 where they disagree."""
    sources, overrides = sources_of(arguments), overrides_of(arguments)
    from fedgmr_hpc.experiments.agreement import agree as compare_files
    from fedgmr_hpc.experiments.agreement import agree_config

    points = arguments.points
    if len(sources) >= 2 and all(source.endswith(".h5") for source in sources):
        virtual, wall, *others = sources
        out = arguments.out or Path(wall).parent
        agrees, text = compare_files(virtual, wall, out, others, points)
    else:
        out = arguments.out or AGREE_DIR
        agrees, text = agree_config(sources, overrides, arguments.ranks, out, points)
    print(text)
    return 0 if agrees else 1


def feasibility(arguments: argparse.Namespace) -> int:
    """Write and print the report."""
    from fedgmr_hpc.experiments.feasibility_report import report_files

    print(report_files(arguments.results, arguments.out))
    return 0


def probe_error(arguments: argparse.Namespace) -> int:
    """Measure, write and print the tables."""
    sources, overrides = sources_of(arguments), overrides_of(arguments)
    from fedgmr_hpc.experiments.merge_error import probe_error as measure

    print(measure([*sources, *overrides], arguments.out))
    return 0
