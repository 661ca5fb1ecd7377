"""The command line: `python -m fedgmr_hpc VERB`, or `fedgmr-hpc VERB` once installed.

Nothing is computed here. A verb's module declares its options and calls one function of the
package, which is imported, with all it needs, only once the command line has been read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from fedgmr_hpc import __version__
from fedgmr_hpc.cli import (
    bench,
    completion,
    configuration,
    data,
    doctor,
    experiments,
    launch,
    report,
    results,
    scale,
    site,
    study,
)
from fedgmr_hpc.cli.parser import Parser, UsageError, parse
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.reporting.console import open_streams, print_error

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

DESCRIPTION = """\
Benchmark asynchronous federated learning over MPI: FedGMR and the methods it
is compared with.
"""
GROUPS: dict[str, tuple[str, ...]] = {
    "runs": ("launch", "replay", "watch"),
    "before a run": (
        *("check", "conformance", "doctor", "keys"),
        *("methods", "prepare", "partition", "site"),
    ),
    "results": ("report", "results"),
    "many runs": ("study", "scale"),
    "experiments": ("agree", "feasibility", "probe"),
    "this installation": ("bench", "completion"),
}
MODULES: tuple[ModuleType, ...] = (
    launch,
    configuration,
    doctor,
    data,
    site,
    report,
    results,
    study,
    scale,
    experiments,
    bench,
)
EPILOG = """\
A run takes its configuration from YAML files, or names of those in
configs/runs, and from KEY=VALUE words; every verb reads them alike.

exit codes:
  0    done
  1    failed: a run, a check or a comparison
  2    bad input: a wrong option, key, value or file; nothing was started
  75   checkpointed after a signal; the same command (launch: with --resume)
       continues
  130  interrupted by Ctrl-C

examples:
  %(prog)s launch digits run.max_rounds=100
  mpirun -n 9 %(prog)s launch femnist data.root=/data
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of this process.

    Args:
        argv: the words behind the program's name; None for those of this process.

    Returns:
        The exit code, as `--help` lists them; a mistake that a user can mend is one line on stderr.
    """
    words = sys.argv[1:] if argv is None else argv
    open_streams()
    try:
        return _run(build_parser(_program()), words)
    except RunError as error:
        print_error(str(error))
        return EXIT_FAILED
    except (ValueError, OSError) as error:
        print_error(str(error))
        if isinstance(error, UsageError):
            print(error.hint, file=sys.stderr)
        return EXIT_BAD_INPUT
    except Exception as error:
        from fedgmr_hpc.config.choices.failures import plugin_failure

        if told := plugin_failure(error):
            print_error(told)
            return EXIT_FAILED
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(parser: Parser, words: Sequence[str]) -> int:
    code = 0
    try:
        if words:
            arguments = parse(parser, words)
            code = arguments.call(arguments)
        else:
            parser.print_help()
            code = EXIT_BAD_INPUT
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _program() -> str:
    """Return what was typed to start this program."""
    name = Path(sys.argv[0]).name
    return name if name == "fedgmr-hpc" else "python -m fedgmr_hpc"


def build_parser(program: str = "python -m fedgmr_hpc") -> Parser:
    """Return the parser of the whole command line; building it imports and changes nothing.

    Args:
        program: what a user types to start it.
    """
    parser = Parser(
        program, usage="%(prog)s VERB [options]", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"fedgmr_hpc {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", prog=program, parser_class=Parser)
    for module in MODULES:
        module.add_to(verbs)
    completion.add_to(verbs, build_parser)
    parser.listing = _list_verbs(parser)
    return parser


def _list_verbs(parser: Parser) -> str:
    """Return the help of the whole: verbs in groups, each with its summary."""
    known = parser.verbs()
    lines = [f"usage: {parser.prog} VERB [options]", "", DESCRIPTION]
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<12} {known[name].summary}" for name in names), ""]
    lines += [f"`{parser.prog} VERB --help` explains a verb;", "--version prints the version.", ""]
    return "\n".join([*lines, EPILOG % {"prog": parser.prog}])
