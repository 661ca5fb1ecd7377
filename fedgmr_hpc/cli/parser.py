"""A parser of command lines whose errors are single sentences with a suggestion."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


class UsageError(ValueError):
    """A command line that cannot be read; `hint` says where to look."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Parser(argparse.ArgumentParser):
    """Parser of one verb, or of a group of verbs.

    Attributes:
        summary: what the verb does, in a few words for listings.
        listing: text that takes the place of the generated help.
    """

    summary = ""
    listing = ""

    def __init__(self, *args: Any, **settings: Any) -> None:
        own: dict[str, Any] = {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
        }
        super().__init__(*args, **(own | settings))

    def format_help(self) -> str:
        """Return the text of `--help`."""
        return self.listing or super().format_help()

    def error(self, message: str) -> NoReturn:
        """Report a wrong command line.

        Raises:
            UsageError: always.
        """
        text = message.replace("the following arguments are required", "missing")
        text = text.removeprefix("argument ").replace(": must be ", " must be ", 1)
        raise UsageError(text, f"see: {self.prog} --help")

    def verbs(self) -> dict[str, Parser]:
        """Return the parsers of its verbs by name; none where it is the parser of a verb itself."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Read a command line; options and positional words may come in any order.

    Raises:
        UsageError: an unknown verb or option, a missing word or a wrong value.
    """
    rest = list(words)
    while (verbs := parser.verbs()) and rest and not rest[0].startswith("-"):
        if rest[0] not in verbs:
            what = "action" if " " in parser.prog.partition("fedgmr")[2] else "verb"
            parser.error(f"unknown {what} {rest[0]!r}{suggest(rest[0], verbs)}")
        parser = verbs[rest.pop(0)]
    if verbs:
        given, extra = parser.parse_known_args(rest)
    else:
        given, extra = parser.parse_known_intermixed_args(rest)
    if extra:
        parser.error(_describe_extra(parser, extra))
    if verbs:
        parser.error(f"choose one of {', '.join(verbs)}")
    return given


def _describe_extra(parser: Parser, extra: Sequence[str]) -> str:
    options = [word.partition("=")[0] for word in extra if word.startswith("-")]
    if options:
        return f"unknown option {options[0]!r}{suggest(options[0], parser._option_string_actions)}"
    return f"unexpected word {extra[0]!r}"


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'NEAR'?` for a word that is close to a known one, else an empty text."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
