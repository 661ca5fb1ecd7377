"""A text on a terminal that is redrawn in place; the only module that imports rich, which client
ranks need not.
"""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text


class RedrawnText:
    """The lines at the cursor of a terminal.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        # Whether to redraw is decided already; the rest of the environment has the width.
        self.console = _Console(
            file=stream,
            force_terminal=True,
            color_system=None,
            _environ={**os.environ, "TERM": "xterm"},
        )
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()
        self.console.show_cursor(True)  # a killed process must not leave it hidden

    def update(self, text: str) -> None:
        """Show `text`, cut to the terminal."""
        self._live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)

    def stop(self) -> None:
        """Leave the text where it is."""
        self._live.stop()


class _Console(Console):
    """A console for which a reader that has left is no reason to end the process."""

    def on_broken_pipe(self) -> None:
        """Say nothing more."""
        self.quiet = True
