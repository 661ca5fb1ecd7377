"""The verbs `doctor` and `conformance`: what a machine and a method promise before a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedgmr_hpc.cli.arguments import (
    Verbs,
    above_zero,
    add_configuration,
    add_json,
    add_plugin_option,
    add_verb,
    try_load,
)
from fedgmr_hpc.config.messages import must_be

LIMIT_S = 60.0
DESCRIPTION = """\
Check a machine before a run begins there. Start it as the run: by mpirun,
srun or torchrun with as many ranks, or alone, with the run's configuration.
Rank 0 prints where each rank runs, then one line a check:

  ranks    which rank is on which host, cores and device; what they share;
           whether their devices have the run's precision, and the same kernels
  ping     the round trip of every pair of ranks
  links    rates between rank 0 and the others, against what the run needs
  mpi      the MPI library, and whether it is CUDA-aware
  data     the data set is there, and every rank reads the same bytes
  results  a result file can be made, locked and followed
  time     steps of the run's model on every rank; how long the run takes
  memory   what the ranks of a host will take
  disk     what results and checkpoints will take

A warning is no failure. A rank that falls silent is named, and ends the job.
"""
EPILOG = """\
examples:
  mpirun -n 9 %(prog)s femnist data.root=/data
  srun -n 11 %(prog)s femnist data.root=/data --limit 120
"""
CONFORMANCE = """\
Check what the suite promises of methods on what a plug-in registers, or on a
row. It takes about ten seconds a choice, and prints a line a check: ok, FAIL,
or - where there is nothing to check.

  no-ops       clients that train nothing change nothing
  uncovered    an entry that no client holds keeps its value
  shares       the shares of the updates sum to 1
  closed form  the first merge is as the rule's `expected` says
  clients      whoever sends an update, it counts the same
  entries      an entry becomes the same wherever it stands
  dense        density 1 equals full models bit for bit
  state        what a rule keeps moves along as masks are cut anew
  scores, densities, closes, chooses
               what a score, a schedule, an admission and a selection rule give
  repeat, checkpoint
               the same again, and from a checkpoint
  run, ranks, resume, replay
               short runs on digits: 1 and 4 client ranks, stopped and resumed,
               and replayed, bit for bit; KEY=VALUE changes them

A target may use what the other ones and --plugin register. A data set needs a
model that fits it, and a model a data set: name it as KEY=VALUE.
"""
CONFORMANCE_EPILOG = """\
examples:
  %(prog)s ./mine.py
  %(prog)s fedavgm
  %(prog)s ./my_row.yaml --plugin ./mine.py
  %(prog)s ./data.py ./net.py data.name=d model.name=m
"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "doctor",
        summary="check ranks, links, data, disk and memory",
        description=DESCRIPTION,
        epilog=EPILOG,
        call=doctor,
    )
    add_configuration(parser)
    parser.add_argument(
        "--limit",
        type=above_zero,
        default=LIMIT_S,
        metavar="S",
        help="longest silence of a rank, in seconds (default: %(default)g)",
    )
    add_json(parser)
    _add_conformance(verbs)


def _add_conformance(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "conformance",
        summary="check what a plug-in or a row promises",
        description=CONFORMANCE,
        epilog=CONFORMANCE_EPILOG,
        call=conformance,
    )
    about = "a plug-in (a Python file, or a module with a dot), or a row (a name, or a YAML file)"
    parser.add_argument("targets", nargs="+", metavar="TARGET|KEY=VALUE", help=about)
    add_plugin_option(parser)
    add_json(parser)


def conformance(arguments: argparse.Namespace) -> int:
    """Check the targets; return the exit code, 1 where a promise is broken."""
    words = [word for word in arguments.targets if "=" in word]
    targets = [word for word in arguments.targets if "=" not in word]
    if not targets:
        raise ValueError(must_be("TARGET", "a plug-in or a row", arguments.targets))
    from fedgmr_hpc.config.choices.plugins import absolute, is_plugin, load_plugins
    from fedgmr_hpc.config.methods import load_method

    plugins = [*arguments.plugin, *filter(is_plugin, targets)]
    load_plugins([absolute(each, Path()) for each in plugins])  # each target may use all of them
    for target in targets:
        if not is_plugin(target):
            load_method(target)  # a typo is told before torch is imported
    from fedgmr_hpc.doctor.conformance.kit import run_kit

    return run_kit(targets, words, as_json=arguments.json)


def doctor(arguments: argparse.Namespace) -> int:
    """Check as this rank; return the exit code, the same on every rank."""
    config = try_load(arguments)
    from fedgmr_hpc.doctor.rank import check_rank

    return check_rank(config, arguments.limit, arguments.json)
