"""The verb `bench`: one part of the system against its ceiling."""

from __future__ import annotations

import argparse
import json

from fedgmr_hpc.cli.arguments import (
    Verbs,
    add_json,
    add_ranks,
    add_verb,
    one_of,
    stdout_to_stderr,
)

BENCHES = ("codec", "merge", "mask", "round", "links", "server", "clients", "memory")
DESCRIPTION = """\
Benchmark one part of the system. Each benchmark warms up, checks its answer,
repeats, and states the ceiling that it is measured against in the same run:

  codec    encode and decode a frame        a copy of the dense model
  merge    one buffered mask-aware merge    a copy of as many bytes
  mask     rank all entries, cut the masks  one sort of as many keys
  round    FedGMR rounds over real ranks    the same local steps alone
  links    ten throttled links at once      the rates asked for
  server   small updates a second           a bare request and reply
  clients  many clients, few take part      only those that take part
  memory   rank 0 over many rounds          a flat line

The last line is JSON, with --json the only one. The exit code is 1 where a
row is outside its bound.
"""
EPILOG = """\
examples:
  %(prog)s codec --quick
  %(prog)s round --ranks 5
"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "bench",
        summary="benchmark one part against its ceiling",
        description=DESCRIPTION,
        epilog=EPILOG,
        call=bench,
    )
    parser.add_argument(
        "what", type=one_of(BENCHES), choices=BENCHES, metavar="WHAT", help="one of the above"
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, as a smoke test")
    add_ranks(parser, default=3, least=2)
    add_json(parser)


def bench(arguments: argparse.Namespace) -> int:
    """Run a benchmark; return 1 where a row is outside its bounds."""
    from fedgmr_hpc.bench.benchmarks import as_record, measure, run_bench

    how = {"quick": arguments.quick, "ranks": arguments.ranks}
    if not arguments.json:
        return run_bench(arguments.what, **how)
    with stdout_to_stderr(True):
        found = measure(arguments.what, **how)
    print(json.dumps(as_record(arguments.what, arguments.quick, found)))
    return 1 if found.num_outside else 0
