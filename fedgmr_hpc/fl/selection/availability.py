"""When clients can be chosen: those that come and go.

Availability decides only who can be chosen: a client that has begun finishes, whatever its trace
says, so a trace models when devices check in, not failures (those are `faults`).

The trace follows the idea of FedScale's device traces (Lai et al. 2022): intervals in which each
client can be chosen, repeated with a period. Times are seconds of the run's clock.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgmr_hpc.config.messages import must, must_be

COLUMNS = ["client", "from_s", "to_s"]
Span = tuple[float, float]


@dataclass(frozen=True)
class Availability:
    """When clients can be chosen.

    Attributes:
        spans: [from, to) of each client named in the trace, ascending and disjoint; others always
            can be chosen.
        period_s: after which it begins anew; infinity for never.
    """

    spans: dict[int, list[Span]]
    period_s: float = math.inf

    def able(self, clients: Sequence[int], now_s: float) -> list[int]:
        """Return those of them that can be chosen now, in the same order."""
        if not self.spans:  # spares thousands of clients a look each
            return list(clients)
        return [client for client in clients if self.next_s(client, now_s) <= now_s]

    def next_s(self, client: int, now_s: float) -> float:
        """Return the earliest time from `now_s` on at which a client can be chosen, infinity if
        never.
        """
        if client not in self.spans:
            return now_s
        spans = self.spans[client]
        base = 0.0 if math.isinf(self.period_s) else now_s // self.period_s * self.period_s
        found = bisect_right(spans, (now_s - base, math.inf)) - 1
        if found >= 0 and now_s - base < spans[found][1]:
            return now_s
        if found + 1 < len(spans):
            return base + spans[found + 1][0]
        return base + self.period_s + spans[0][0]


def read_availability(path: str, num_clients: int, period_s: float | None) -> Availability:
    """Read a CSV file `client,from_s,to_s`.

    Raises:
        ValueError: it cannot be read, or says something that cannot be.
    """
    try:
        with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            rows = [[field.strip() for field in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"clients.availability: {path} cannot be read: {error}") from None
    if not rows or rows[0] != COLUMNS:
        found = ",".join(rows[0]) if rows and rows[0] else "nothing"
        need = f"begin with the header {','.join(COLUMNS)}"
        raise ValueError(must(f"clients.availability: {path}", need, found=found))
    period = math.inf if period_s is None else period_s
    spans: dict[int, list[Span]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        client, span = _parse(row, num_clients, period, f"clients.availability: {path}:{number}")
        spans.setdefault(client, []).append(span)
    for client, own in spans.items():
        own.sort()
        if any(later[0] < earlier[1] for earlier, later in zip(own, own[1:], strict=False)):
            raise ValueError(f"clients.availability: {path}: intervals of client {client} overlap")
    return Availability(spans, period)


def _parse(row: list[str], num_clients: int, period_s: float, where: str) -> tuple[int, Span]:
    try:
        number, from_s, to_s = row
        client, begin, end = int(number), float(from_s), float(to_s)
    except ValueError:
        raise ValueError(
            must_be(
                f"{where}: a row", "client,from_s,to_s", found=",".join(row).replace("\n", "\\n")
            )
        ) from None
    if not 0 <= client < num_clients:
        raise ValueError(must_be(f"{where}: client", f"between 0 and {num_clients - 1}", client))
    if not 0 <= begin < end or begin >= period_s or (end > period_s and math.isfinite(end)):
        need, found = "lie in order between 0 and the period", f"{begin:g} to {end:g}"
        raise ValueError(must(f"{where}: from_s and to_s", need, found=found))
    return client, (begin, end)
