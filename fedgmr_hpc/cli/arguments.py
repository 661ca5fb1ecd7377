"""Options and words that several verbs share."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from fedgmr_hpc.cli.parser import Parser, suggest
from fedgmr_hpc.config.messages import must

if TYPE_CHECKING:
    from fedgmr_hpc.config.schema import Config

Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"
Number = TypeVar("Number", int, float)
Call = Callable[[argparse.Namespace], int]
FIGURE_FORMATS = ("png", "pdf", "svg")
FIGURE_SIZES = ("page", "slide", "column")
CONFIG = "CONFIG|KEY=VALUE"
CONFIG_HELP = (
    "a YAML file or the name of one in configs/runs (default: digits), each laid over those "
    "before it; and overrides such as run.max_rounds=100"
)


def add_verb(
    verbs: Verbs, name: str, *, summary: str, description: str, epilog: str, call: Call | None
) -> Parser:
    """Add the parser of a verb.

    Args:
        verbs: what `add_subparsers` returned.
        name: the verb.
        summary: what it does, in a few words for listings.
        description: the same in full, in lines of at most 80 characters.
        epilog: examples.
        call: does it, and returns the exit code; None for a group of actions.
    """
    parser = verbs.add_parser(name, help=summary, description=description, epilog=epilog)
    parser.summary = summary
    if call is not None:
        parser.set_defaults(call=call)
    return parser


def add_actions(parser: Parser) -> Verbs:
    """Make a verb a group of actions; return what `add_verb` takes."""
    return parser.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)


def add_configuration(parser: Parser) -> None:
    """Add the configuration: files, names and overrides, read by `load`."""
    parser.add_argument("words", nargs="*", metavar=CONFIG, help=CONFIG_HELP)
    add_config_option(parser)


def add_config_option(parser: Parser) -> None:
    """Add `--config`, which names a configuration as the positional words do."""
    about = "the same as a positional CONFIG; may be repeated"
    parser.add_argument("--config", action="append", default=[], metavar="CONFIG", help=about)
    add_plugin_option(parser)


def add_plugin_option(parser: Parser) -> None:
    """Add `--plugin`, a file or module that adds choices."""
    about = "a Python file or module with choices of your own; may be repeated"
    parser.add_argument("--plugin", action="append", default=[], metavar="PLUGIN", help=about)


def plugin_words(arguments: argparse.Namespace) -> list[str]:
    """Return the plug-ins of a command line as an override."""
    named = getattr(arguments, "plugin", [])
    if not named:
        return []
    from fedgmr_hpc.config.choices.plugins import absolute

    paths = [absolute(each, Path()) for each in named]
    return [f"plugins={json.dumps(paths, ensure_ascii=False)}"]


def add_out(parser: Parser, default: str | None, about: str, shown: str = "") -> None:
    """Add `--out`, a folder.

    Args:
        default: the folder that is used without the option; None where the verb works it out.
        about: what the folder is for.
        shown: the default in words.
    """
    about = f"{about} (default: {shown or default})"
    parser.add_argument("--out", metavar="DIR", default=default, help=about)


def add_figures(parser: Parser, default: str, more: str = "") -> None:
    """Add `--format` and `--size` of figures.

    Args:
        default: the formats that are used without the option.
        more: what else is to be known of them.
    """
    for option, known, used in (
        ("--format", FIGURE_FORMATS, default),
        ("--size", FIGURE_SIZES, FIGURE_SIZES[0]),
    ):
        parser.add_argument(
            option,
            type=some_of(known),
            default=some_of(known)(used),
            metavar=",".join(known),
            help=f"of the figures, any of these{more} (default: {used})",
        )


def add_ranks(parser: Parser, default: int | None = None, least: int = 1, about: str = "") -> None:
    """Add `--ranks`, the number of processes."""
    text = about or "number of ranks, the server included"
    shown = f"{text} (default: {default})" if default else text
    parser.add_argument("--ranks", type=at_least(least), default=default, metavar="N", help=shown)


def add_json(parser: Parser) -> None:
    """Add `--json`: one JSON document on stdout, and nothing else there."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def add_tolerance(parser: Parser, about: str) -> None:
    """Add `--tolerance`, a share of an earlier value."""
    parser.add_argument(
        "--tolerance",
        type=share,
        metavar="SHARE",
        help=f"{about}, 0.1 or 10%% (default: 10%%)",
    )


def limit(arguments: argparse.Namespace, name: str, default: float) -> float:
    """Return a limit of a comparison, `default` where it is not given.

    Raises:
        ValueError: it is given, and nothing to compare with.
    """
    value: float | None = getattr(arguments, name)
    if value is not None and arguments.baseline is None:
        raise ValueError(must(f"--{name}", "come with --baseline", value))
    return default if value is None else value


def add_perf_log(parser: Parser) -> None:
    """Add `--perf-log`, a file of measurements."""
    about = "append a JSON line for each figure, with the system that it was measured on"
    parser.add_argument("--perf-log", metavar="FILE", help=about)


@contextmanager
def stdout_to_stderr(redirects: bool) -> Iterator[None]:
    """Send what is printed meanwhile to stderr, also by processes that are started meanwhile."""
    if not redirects:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def sources_of(arguments: argparse.Namespace) -> list[str]:
    """Return the configurations of a command line, those of `--config` first."""
    return [*arguments.config, *(word for word in arguments.words if "=" not in word)]


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return the `key=value` words of a command line.

    Raises:
        ValueError: a shell has split one at its spaces.
    """
    words = [word for word in arguments.words if "=" in word]
    for word in words:
        text = word.partition("=")[2]
        if text[:1] in ("[", "{") and text.count(text[0]) > text.count("]}"["[{".index(text[0])]):
            key = word.partition("=")[0]
            raise ValueError(f"{word} is cut off at a space: quote the value, '{key}=...'")
    if (named := plugin_words(arguments)) and any(word.startswith("plugins=") for word in words):
        raise ValueError(must("plugins", "not be set beside --plugin", found=named[0]))
    return [*named, *words]


def load(arguments: argparse.Namespace) -> Config:
    """Return the configuration that a command line names and changes.

    Raises:
        ValueError: no such file, or one line for every wrong key or value.
    """
    from fedgmr_hpc.config.files import load_config

    overrides = overrides_of(arguments)
    return load_config(sources_of(arguments), overrides)


def try_load(arguments: argparse.Namespace) -> Config | ValueError:
    """As `load`; an error is returned, for rank 0 to report."""
    try:
        return load(arguments)
    except ValueError as error:
        return error


def at_least(least: int) -> Callable[[str], int]:
    """Return a type of options: whole numbers from `least` on."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on (got {text})")
        return int(text)

    return read


def share(text: str) -> float:
    """Return a share that an option gives as a number or in percent."""
    number, _, rest = text.partition("%")
    try:
        value = float(number) / (100 if "%" in text else 1)
    except ValueError:
        value = -1.0
    if rest or not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a share such as 0.1 or 10% (got {text})")
    return value


def above_zero(text: str) -> float:
    """Return a number above zero that an option gives, and that is finite."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0 (got {text})")
    return value


def numbers(read: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    """Return a type of options: numbers with commas between them."""

    def read_all(text: str) -> list[Number]:
        try:
            return [read(part) for part in text.split(",")]
        except ValueError:
            message = f"must be numbers with commas between them (got {text})"
            raise argparse.ArgumentTypeError(message) from None

    return read_all


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a type of options: some of the known ones, with commas between them."""

    def read(text: str) -> list[str]:
        return list(dict.fromkeys(map(one_of(known), text.split(","))))

    return read


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """Return a type of options and words: one of the known ones."""

    def read(text: str) -> str:
        if text not in known:
            listed = ", ".join(known)
            near = suggest(text, known)
            raise argparse.ArgumentTypeError(f"must be one of {listed} (got {text}){near}")
        return text

    return read
