"""The verbs `check`, `keys` and `methods`: what a configuration says, and what it can say."""

from __future__ import annotations

import argparse

from fedgmr_hpc.cli.arguments import (
    Verbs,
    add_configuration,
    add_plugin_option,
    add_ranks,
    add_verb,
    load,
)

CHECK = """\
Validate a configuration without starting any rank: every key, the data set,
the traces. Prints the configuration in full, as YAML that can be read back,
and what it amounts to. Every mistake is reported at once.
"""
CHECK_EPILOG = """\
examples:
  %(prog)s digits clients.count=20 --ranks 9
  %(prog)s femnist data.root=/data > run.yaml
"""
KEYS = """\
List the configuration keys with their defaults and meanings: all of them,
those of a section or of a choice, or those whose name or meaning has TEXT in
it.
"""
KEYS_EPILOG = """\
examples:
  %(prog)s restoration
  %(prog)s staleness
"""
METHODS = """\
List the methods with their choices on every axis, or explain one: where it
comes from, what it sets, and how it differs from its paper and public code.
Wrappers are added to a method with plus signs.
"""
METHODS_EPILOG = """\
examples:
  %(prog)s fedgmr
  %(prog)s heterofl+aux+gmr
"""


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    parser = add_verb(
        verbs,
        "check",
        summary="validate a configuration and print it in full",
        description=CHECK,
        epilog=CHECK_EPILOG,
        call=check,
    )
    add_configuration(parser)
    add_ranks(parser, about="also say what so many ranks would do, the server included")
    parser = add_verb(
        verbs,
        "keys",
        summary="list or search the configuration keys",
        description=KEYS,
        epilog=KEYS_EPILOG,
        call=keys,
    )
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="what to look for")
    add_plugin_option(parser)
    parser = add_verb(
        verbs,
        "methods",
        summary="list the methods, or explain one",
        description=METHODS,
        epilog=METHODS_EPILOG,
        call=methods,
    )
    about = "the method to explain: a name, or the file of a row"
    parser.add_argument("method", nargs="?", metavar="METHOD", help=about)
    add_plugin_option(parser)


def check(arguments: argparse.Namespace) -> int:
    """Print a configuration and what it amounts to."""
    config = load(arguments)
    from fedgmr_hpc.config.files import render_config
    from fedgmr_hpc.doctor.preview import preview_run

    lines = preview_run(config, arguments.ranks)
    print(render_config(config), end="")
    print("\n".join(f"# {line}" for line in lines))
    return 0


def keys(arguments: argparse.Namespace) -> int:
    """Print the reference of keys."""
    from fedgmr_hpc.config.choices.plugins import load_plugins
    from fedgmr_hpc.config.files import describe_keys

    load_plugins(arguments.plugin)
    print(describe_keys(arguments.text))
    return 0


def methods(arguments: argparse.Namespace) -> int:
    """Print the table of methods, or one method."""
    from fedgmr_hpc.config.choices.plugins import load_plugins
    from fedgmr_hpc.config.methods import explain_method, render_methods

    load_plugins(arguments.plugin)
    if arguments.method is not None:
        print(explain_method(arguments.method))
        return 0
    table, wrong = render_methods()
    print(table, flush=True)
    if wrong:
        raise ValueError("\n".join(wrong))
    return 0
