"""The updates that the server holds (paper, Algorithm 3; docs/method.md#buffer).

An update has *arrived* until the next merge takes it. With buffering it then stays until its client
delivers again, is evicted or is gone. An update keeps the packed order of its own masks until a
merge needs it in the current one; most are replaced before that.

Shapes: C clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from fedgmr_hpc.config.axes import AggregationConfig
from fedgmr_hpc.config.records import fields_of, shared_fields
from fedgmr_hpc.fl.aggregation import BufferEntry
from fedgmr_hpc.fl.submodels import MaskSet, repack
from fedgmr_hpc.fl.updates import Update


class UpdateBuffer:
    """Delivered updates that still count: with buffering each client's last, without it all that
    were never merged.

    Args:
        num_samples: [C] training samples of each client, for updates that weigh by these.

    Attributes:
        arrived: updates that were never merged, by client, in the order of their arrival; with
            buffering one at most of each client.
        num_arrived: how many these are.
    """

    def __init__(self, choices: AggregationConfig, num_samples: Sequence[int] = ()) -> None:
        self.is_kept, self.max_entries = choices.buffered, choices.max_entries
        self._num_samples = num_samples if choices.weigh_by == "data" else None
        self.arrived: dict[int, list[BufferEntry]] = {}
        self.num_arrived = 0
        self._merged: dict[int, BufferEntry] = {}  # longest held first
        self._masks: dict[int, MaskSet] = {}  # that what is held is packed for

    def add(self, update: Update, masks: MaskSet) -> None:
        """Take a new update, with buffering in place of its client's last."""
        if self.is_kept:
            self.drop(update.client)
        self._masks[masks.mask_id] = masks
        entry = BufferEntry(**shared_fields(update, BufferEntry), index=None)
        if self._num_samples is not None:
            entry = replace(entry, num_samples=self._num_samples[update.client])
        self._arrive(entry)

    def _arrive(self, entry: BufferEntry) -> None:
        self.arrived.setdefault(entry.client, []).append(entry)
        self.num_arrived += 1

    def drop(self, client: int) -> None:
        """Forget what it holds of a client."""
        self.num_arrived -= len(self.arrived.pop(client, ()))
        self._merged.pop(client, None)

    def take(self, masks: MaskSet) -> list[BufferEntry]:
        """Return what a merge is made of, in client order and in the packed order of `masks`; from
        now on nothing of it counts as arrived.
        """
        held = self.waiting()
        self.arrived, self.num_arrived = {}, 0
        if self.is_kept:
            self._merged.update({entry.client: entry for entry in held})
            self._evict(len(held))
            held = list(self._merged.values())
        held = [self._repacked(entry, masks) for entry in held]
        if self.is_kept:
            self._merged = {entry.client: entry for entry in held}
        self._masks = {masks.mask_id: masks}
        return sorted(held, key=attrgetter("client"))

    def waiting(self) -> list[BufferEntry]:
        """Return the updates that have arrived, clients and their updates in the order of their
        arrival.
        """
        return [entry for own in self.arrived.values() for entry in own]

    @property
    def masks(self) -> list[MaskSet]:
        """The masks that what is held is packed for."""
        return list(self._masks.values())

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back, but for the masks."""
        held = {"arrived": self.waiting(), "merged": self._merged.values()}
        return {name: [fields_of(entry) for entry in entries] for name, entries in held.items()}

    def restore(self, state: dict[str, Any], masks: Mapping[int, MaskSet]) -> None:
        """Go back to a saved state; `masks` by id."""
        self.arrived, self.num_arrived = {}, 0
        for fields in state["arrived"]:
            self._arrive(BufferEntry(**fields))
        self._merged = {fields["client"]: BufferEntry(**fields) for fields in state["merged"]}
        held = [*self.waiting(), *self._merged.values()]
        self._masks = {entry.mask_id: masks[entry.mask_id] for entry in held}

    def _evict(self, num_new: int) -> None:
        """Drop what was delivered longest ago, but nothing that was never merged."""
        while self.max_entries is not None and len(self._merged) > max(self.max_entries, num_new):
            del self._merged[next(iter(self._merged))]  # a delivery puts its update at the end

    def _repacked(self, entry: BufferEntry, masks: MaskSet) -> BufferEntry:
        if entry.mask_id == masks.mask_id:
            return entry
        values, index = repack(entry.values, entry.index, self._masks[entry.mask_id], masks)
        return replace(entry, values=values, index=index, mask_id=masks.mask_id)
