"""Where a contender waits between two rounds, and where the benchmark lets it go on.

So all of them can be started once and then train one round each in turn: whatever else the machine
does meanwhile slows all of them alike. One gate a process that would go on by itself.
"""

from __future__ import annotations

import json
import socket


class Gate:
    """A contender's end: it tells that a round is over, and waits until the next may begin.

    Args:
        address: path of the benchmark's socket.
    """

    def __init__(self, address: str) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        self._lines = connection.makefile("rw")

    def wait(self) -> None:
        """Tell that this process is ready, or that a round is over; wait for the next to begin.

        Raises:
            EOFError: the benchmark has gone away.
        """
        self._tell(None)
        if not self._lines.readline():
            raise EOFError("the benchmark has gone away")

    def finish(self, samples: int) -> None:
        """Tell that the last round is over and its weights are saved.

        Args:
            samples: what the framework says that all clients have trained on in all rounds.
        """
        self._tell(samples)

    def _tell(self, what: int | None) -> None:
        self._lines.write(f"{json.dumps(what)}\n")
        self._lines.flush()
