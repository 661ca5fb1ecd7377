"""The verb `bench`: one part of the system against its ceiling."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedgmr_hpc.cli.arguments import (
    Verbs,
    add_json,
    add_perf_log,
    add_ranks,
    add_tolerance,
    add_verb,
    limit,
    one_of,
    stdout_to_stderr,
)

BENCHES = (
    "codec",
    "merge",
    "mask",
    "data",
    "compact",
    "round",
    "overhead",
    "links",
    "fanout",
    "server",
    "clients",
    "memory",
    "peers",
    "gpu",
)
DESCRIPTION = """\
Benchmark one part of the system. Each benchmark warms up, checks its answer,
repeats, and states the ceiling that it is measured against in the same run:

  codec    encode and decode a frame        a copy of the dense model
  merge    one buffered mask-aware merge    a copy of as many bytes
  mask     rank all entries, cut the masks  one sort of as many keys
  data     training batches from bytes      a copy of as many bytes
  compact  a local step over densities      the same of dense layers
  round    FedGMR rounds over real ranks    the same local steps alone
  overhead a small and a large model        the same local steps alone
  links    ten throttled links at once      the rates asked for
  server   small updates a second           a bare request and reply
  fanout   one frame to all ranks           one send a node
  clients  many clients, few take part      only those that take part
  memory   rank 0 over many rounds          a flat line
  peers    FedAvg rounds of full models     pfl-research and Flower
  gpu      local steps and runs on one GPU  the goals for an H100

The last line is JSON, with --json the only one. The exit code is 1 where a
row is outside its bound, or worse than the --baseline: ratios are compared,
not times.

peers installs pfl and flwr, once, into an environment of their own (--venv).
"""
EPILOG = """\
examples:
  %(prog)s codec --quick
  %(prog)s round --ranks 5
  %(prog)s merge --json >> baseline.jsonl
  %(prog)s merge --baseline baseline.jsonl --tolerance 5%%
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
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="of gpu: with --quick cpu, too, to try its program (default: cuda)",
    )
    parser.add_argument(
        "--venv", metavar="DIR", help="the Python of the peers (default: ~/.cache/fedgmr_hpc/peers)"
    )
    parser.add_argument("--baseline", metavar="FILE", help="JSON lines of earlier measurements")
    add_tolerance(parser, "by how much a ratio may be worse than before")
    add_perf_log(parser)


def bench(arguments: argparse.Namespace) -> int:
    """Run a benchmark; return 1 where a row is outside its bounds."""
    from fedgmr_hpc.bench.benchmarks import Request, run_bench

    places = {
        "venv": arguments.venv,
        "baseline": arguments.baseline,
        "perf_log": arguments.perf_log,
    }
    request = Request(
        arguments.what,
        quick=arguments.quick,
        ranks=arguments.ranks,
        tolerance=limit(arguments, "tolerance", 0.1),
        device=arguments.device,
        **{name: Path(path) for name, path in places.items() if path is not None},
    )
    return run_bench(request, stdout_to_stderr(True) if arguments.json else None)
