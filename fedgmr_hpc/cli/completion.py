"""The verb `completion`: completes verbs and options in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fedgmr_hpc.cli.arguments import Verbs, add_verb, one_of
from fedgmr_hpc.cli.parser import Parser

SHELLS = ("bash", "zsh")
DESCRIPTION = """\
Print a script that lets the shell complete the verbs and options of
`fedgmr-hpc`. Write it where the shell looks for completions.
"""
EPILOG = """\
examples:
  eval "$(%(prog)s bash)"
  %(prog)s zsh > ~/.zfunc/_fedgmr-hpc
"""


def add_to(verbs: Verbs, build: Callable[[str], Parser]) -> None:
    """Add the verb.

    Args:
        build: makes the parser of the whole command line for a program's name.
    """
    parser = add_verb(
        verbs,
        "completion",
        summary="print completions for a shell",
        description=DESCRIPTION,
        epilog=EPILOG,
        call=completion,
    )
    parser.add_argument(
        "shell", type=one_of(SHELLS), choices=SHELLS, metavar="SHELL", help="bash or zsh"
    )
    parser.set_defaults(build=build)


def completion(arguments: argparse.Namespace) -> int:
    """Print the script for `fedgmr-hpc`."""
    import shtab

    print(shtab.complete(arguments.build("fedgmr-hpc"), arguments.shell))
    return 0
