"""Errors of a run, which say where they happened: rank, client, version and stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["receive", "decode", "train", "encode", "send", "merge", "evaluate"]
DIVERGED = "the model has diverged"  # begins the error of a run that it ends


class RunError(Exception):
    """A failure while running. Carries where it happened; `str()` is the one line a user reads."""

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        client: int | None = None,
        version: int | None = None,
        stage: Stage | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rank, self.client, self.version, self.stage = rank, client, version, stage

    def __str__(self) -> str:
        where = {
            "rank": self.rank,
            "client": self.client,
            "version": self.version,
            "stage": self.stage,
        }
        named = ", ".join(f"{key} {value}" for key, value in where.items() if value is not None)
        return f"{named}: {self.message}" if named else self.message


class TransportError(RunError):
    """Bytes could not be moved between ranks."""


class TransportTimeout(TransportError):
    """Nothing arrived before the deadline."""


class WireError(RunError):
    """A frame is damaged, foreign or inconsistent."""


class RankFailed(RunError):
    """Another rank reported a failure, which is the message."""


class PluginError(RunError):
    """A plug-in has failed; the message names its choice, file and line."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker's exception on its way to the server.

    Attributes:
        trace: its traceback.
        is_told: whether the message says all, so that the trace is for the log file alone.
    """

    rank: int
    client: int | None
    version: int | None
    stage: Stage
    message: str
    trace: str
    is_told: bool
