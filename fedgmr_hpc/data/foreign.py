"""Files that others made: whatever their readers meet becomes one line that names the file.

A damaged file makes a parser raise nearly anything: RecursionError for JSON a thousand brackets
deep, MemoryError for a length field of garbage, OverflowError, zlib's or struct's errors. What a
reader refuses itself is a `BadFile`, which passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

MESSAGE_CHARS = 300


class BadFile(ValueError):
    """A file that is refused; the message is one line that begins with its path."""


def refuse(path: Path | str, found: str, expected: str) -> NoReturn:
    """Refuses a file: what was found in it, and what is expected there."""
    raise BadFile(f"{path}: {found}, expected {expected}")


@contextmanager
def reading(path: Path | str, expected: str) -> Iterator[None]:
    """Around the reader of one file.

    Args:
        expected: what the file should have been.

    Raises:
        BadFile: anything went wrong; a file that cannot be opened at all counts, too.
    """
    try:
        yield
    except BadFile:
        raise
    except Exception as error:
        raise BadFile(f"{path}: cannot be read ({brief(error)}), expected {expected}") from None


def brief(error: BaseException) -> str:
    """An exception in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MESSAGE_CHARS else f"{text[:MESSAGE_CHARS]}..."
