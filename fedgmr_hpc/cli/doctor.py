"""The verb `doctor`: checks a machine before a run begins there."""

from __future__ import annotations

import argparse

from fedgmr_hpc.cli.arguments import (
    Verbs,
    above_zero,
    add_configuration,
    add_json,
    add_verb,
    try_load,
)

LIMIT_S = 60.0
DESCRIPTION = """\
Check a machine before a run begins there. Start it as the run: by mpirun,
srun or torchrun with as many ranks, or alone, with the run's configuration.
Rank 0 prints where each rank runs, then one line a check:

  ranks    which rank is on which host, cores and device; what they share
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


def doctor(arguments: argparse.Namespace) -> int:
    """Check as this rank; return the exit code, the same on every rank."""
    config = try_load(arguments)
    from fedgmr_hpc.doctor.rank import check_rank

    return check_rank(config, arguments.limit, arguments.json)
