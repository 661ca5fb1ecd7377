"""The event log: written as a run goes, followed by a replay.

The coordinator does nothing but answer events, so a run is its configuration and the order and
times of its events. A replay hands the coordinator the logged events; the updates in them are
trained anew, by any number of ranks. Every row carries a hash over the configuration and all rows
before it, so a log that was changed, or that belongs to another configuration, is found out.

Shapes: N events.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.identity import REPLAYED, identity, marks
from fedgmr_hpc.config.messages import must
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.events import Closed, Delivered, Evaluated, Event, Lost, Resumed
from fedgmr_hpc.network.links import Arrival, Broadcast, WindowEnd
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.rows import EventRow

NEAR_FRAC = 0.05  # of the norm of final weights, where arithmetic does not repeat itself
DELIVERED, CLOSED, EVALUATED, LOST, RESUMED = range(5)
_LINK = struct.Struct("<Qqddq")


class EventLog:
    """Makes the rows of a run's log.

    Args:
        config: of the run.
        counts_unused: whether keys without effect count, as they did in older logs.
    """

    def __init__(self, config: Config, *, counts_unused: bool = False) -> None:
        content = json.dumps(
            identity(config, REPLAYED, counts_unused=counts_unused), sort_keys=True
        )
        self._chain = xxhash.xxh3_64_intdigest(content.encode())

    def row(self, event: Event) -> EventRow | None:
        """Return the row of an event; None for the start, which needs none.

        Raises:
            ValueError: several clients are lost at once, for which a row has no room.
        """
        if isinstance(event, Delivered):
            return self.link(DELIVERED, event.now_s, event.now_s, event.update.client)
        if isinstance(event, Closed):
            return self.link(CLOSED, event.now_s, event.ready_s, -1)
        if isinstance(event, Evaluated):
            return self.link(EVALUATED, event.now_s, event.now_s, -1)
        if isinstance(event, Lost):
            if len(event.clients) != 1:
                raise ValueError(must("Lost.clients", "have one client an event", event.clients))
            return self.link(LOST, event.now_s, event.now_s, event.clients[0])
        if isinstance(event, Resumed):
            return self.link(RESUMED, event.now_s, event.now_s, -1)
        return None

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back."""
        return {"chain": self._chain}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a chain."""
        self._chain = state["chain"]

    def link(self, kind: int, now_s: float, ready_s: float, client: int) -> EventRow:
        """Return the next row of the chain."""
        packed = _LINK.pack(self._chain, kind, now_s, ready_s, client)
        self._chain = xxhash.xxh3_64_intdigest(packed)
        return EventRow(kind, now_s, ready_s, client, self._chain)


class ReplayClock:
    """Hands out the events of a log, in order.

    Raises:
        ValueError: the log is damaged, or is not of this configuration.
    """

    def __init__(self, config: Config, recorded: Result) -> None:
        names = ("kind", "now_s", "ready_s", "client", "chain_xxh3")
        columns = [recorded.events[name].tolist() for name in names]
        self._rows = [EventRow(*row) for row in zip(*columns, strict=True)]
        self._check(config, recorded)
        self._next = 0

    def _check(self, config: Config, recorded: Result) -> None:
        if not self._rows:
            raise ValueError(f"replay {recorded.path}: it holds no events")
        index = self._first_wrong(EventLog(config))
        if index < len(self._rows):  # unless it is from when keys without effect still counted
            index = max(index, self._first_wrong(EventLog(config, counts_unused=True)))
        if index < len(self._rows):
            raise ValueError(
                f"replay {recorded.path}: event {index} of {len(self._rows)} is damaged or "
                "belongs to another configuration"
            )

    def _first_wrong(self, log: EventLog) -> int:
        """Return the first event that does not follow in a log, or how many there are."""
        for index, row in enumerate(self._rows):
            if log.link(row.kind, row.now_s, row.ready_s, row.client) != row:
                return index
        return len(self._rows)

    def _take(self, *kinds: int) -> EventRow:
        if self._next == len(self._rows):
            raise RunError(f"the log ends after {self._next} events, before the run does")
        row = self._rows[self._next]
        if row.kind not in kinds:
            raise RunError(f"event {self._next} of the log is of kind {row.kind}, not {kinds}")
        self._next += 1
        return row

    def next(self) -> Arrival | WindowEnd | Lost | Resumed:
        """Return the next logged event."""
        row = self._take(DELIVERED, CLOSED, LOST, RESUMED)
        self._ready_s = row.ready_s
        if row.kind == DELIVERED:
            return Arrival(row.now_s, row.client)
        if row.kind == LOST:
            return Lost(row.now_s, (row.client,), "as logged")
        if row.kind == RESUMED:
            return Resumed(row.now_s)
        return WindowEnd(row.now_s)

    def merge_end_s(self, now_s: float) -> float:
        """Return when the merge of the window that has just closed was done."""
        return self._ready_s

    def validated_s(self, ready_s: float) -> float:
        """Return when the validation was done."""
        return self._take(EVALUATED).now_s

    def close_at(self, at_s: float) -> None:
        """Ignore it: the log says when windows close."""

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        """Ignore it: the log says when updates arrive."""


def replayed_config(recorded: Result, sources: Sequence[str], overrides: Sequence[str]) -> Config:
    """Return the configuration of a recorded run, its results in a file of their own.

    Raises:
        ValueError: a source or an override would change more than where things are.
    """
    keep_recorded("a replay", sources, overrides)
    stamp = f"{recorded.path.with_suffix('')}-replay-{time.strftime('%Y%m%d-%H%M%S')}.h5"
    return load_config({**recorded.config, "results": {"path": stamp}}, overrides)


def keep_recorded(what: str, sources: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse what would change more of a recorded run than where things are.

    Args:
        what: what is done with the run, for the message.

    Raises:
        ValueError: there is a source, or an override of another key.
    """
    allowed = [key for key, mark in marks().items() if mark == "machine"]
    wrong = [word for word in overrides if word.partition("=")[0] not in allowed]
    if sources or wrong:
        got = " ".join([f"--config {source}" for source in sources] + wrong)
        need = f"have no --config, and set nothing but {', '.join(allowed)}"
        raise ValueError(must(what, need, found=got))


def check_versions(recorded: Result, replayed: Result) -> str:
    """Return one line saying that all model versions are the same.

    With `train.deterministic: false` the final weights are to be nearly the same.

    Raises:
        RunError: a version differs; says which is the first.
    """
    if not recorded.config.get("train", {}).get("deterministic", True):
        return _check_distance(recorded, replayed)
    then, now = recorded.evaluations["model_xxh3"], replayed.evaluations["model_xxh3"]
    versions = recorded.evaluations["version"]
    for index in range(len(then)):
        if index >= len(now) or then[index] != now[index]:
            raise RunError("the replayed model differs", version=int(versions[index]))
    if len(recorded.weights) and recorded.weights.tobytes() != replayed.weights.tobytes():
        raise RunError("the replayed final weights differ", version=int(versions[-1]))
    return f"replay of {recorded.path}: {len(then)} evaluated versions, all the same bit for bit"


def _check_distance(recorded: Result, replayed: Result) -> str:
    """Return one line saying how far the final weights are from one another.

    Raises:
        RunError: they are further apart than `NEAR_FRAC` says.
    """
    then, now = (result.weights.astype(np.float64) for result in (recorded, replayed))
    if not len(then):
        return f"replay of {recorded.path}: that run broke off, so there is nothing to compare"
    away = np.linalg.norm(then - now) / np.linalg.norm(then) if len(then) == len(now) else np.inf
    text = (
        f"the replayed final weights are {away:.2g} of their norm from the recorded ones "
        f"(without train.deterministic at most {NEAR_FRAC:g})"
    )
    if not away <= NEAR_FRAC:
        raise RunError(text)
    return f"replay of {recorded.path}: {text}"
