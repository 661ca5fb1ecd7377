"""What every dispatch and upload is charged: exact frame lengths, known before anything is encoded.

Charged bytes are those of the modelled links: a broadcast once from the server, each listener's
part once. Copies for a second rank, evaluation and task records are overhead and not charged.

Shapes: C clients, D dense entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.sections import LinksConfig
from fedgmr_hpc.fl.events import Dispatch
from fedgmr_hpc.fl.scores import needs_grad_squares
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.network.fluid import Listener
from fedgmr_hpc.network.links import Broadcast
from fedgmr_hpc.wire.frames import Dtype, frame_bytes
from fedgmr_hpc.wire.positions import CodedPositions, encode_positions


class PositionCodes:
    """The encoded positions of the newest masks, one code a level, made once."""

    def __init__(self) -> None:
        self._mask_id, self._codes = -1, dict[int, CodedPositions]()

    def code(self, masks: MaskSet, level: int) -> CodedPositions:
        """Return the codec and bytes of a level's increment."""
        if masks.mask_id < self._mask_id:  # a dispatch that waited while masks were cut
            return encode_positions(masks.positions(level), masks.size)
        if masks.mask_id > self._mask_id:
            self._mask_id, self._codes = masks.mask_id, {}
        if level not in self._codes:
            self._codes[level] = encode_positions(masks.positions(level), masks.size)
        return self._codes[level]


class Ledger:
    """Byte counts of all links so far, and which client knows which positions."""

    def __init__(
        self,
        num_clients: int,
        num_dense: int,
        *,
        links: LinksConfig,
        transmission: str,
        dtype: Dtype,
        has_squares: bool = False,
        codes: PositionCodes | None = None,
    ) -> None:
        """
        Args:
            num_dense: D.
            links: what a transfer costs.
            transmission: `increments` or `whole`.
            dtype: of values in frames.
            has_squares: whether updates bring squared gradients along.
            codes: encoded positions that somebody else needs, too.
        """
        self.num_dense, self.links, self.transmission = num_dense, links, transmission
        self.dtype, self.has_squares = dtype, has_squares
        self.codes = codes or PositionCodes()
        self.up_bytes = np.zeros(num_clients, np.int64)
        self.down_bytes = np.zeros(num_clients, np.int64)
        self.server_up_bytes = self.server_down_bytes = 0
        self.last_down_bytes = [0] * num_clients
        self._known = [(-1, -1)] * num_clients  # (mask id, highest level) whose positions it has

    def charge_dispatch(self, dispatch: Dispatch) -> Broadcast:
        """Charge a dispatch; return it as the links see it."""
        masks, assignments = dispatch.masks, dispatch.assignments
        groups = [assignments]
        if self.transmission == "whole":
            levels = sorted({a.level for a in assignments})
            groups = [tuple(a for a in assignments if a.level == level) for level in levels]
        listeners: list[Listener] = []
        begin = 0
        for group in groups:
            begin = self._charge_group(group, masks, begin, listeners)
        self.server_up_bytes += begin
        uploads = {a.client: self.upload_bytes(a) for a in assignments}
        return Broadcast(begin, tuple(listeners), uploads)

    def _charge_group(
        self,
        group: tuple[Assignment, ...],
        masks: MaskSet,
        begin: int,
        listeners: list[Listener],
    ) -> int:
        """Lay increments 0..top behind `begin`, everybody's part ending after its level."""
        lacks = {a.client: self._lacking(a) for a in group}
        end, own, ends = begin, dict.fromkeys(lacks, 0), {}
        for level in range(max(a.level for a in group) + 1):
            plain, positions = self._increment_bytes(masks, level)
            here = [a for a in group if a.level >= level]
            is_lacking = [level in lacks[a.client] for a in here]
            end += plain + (positions if any(is_lacking) else 0)
            ends[level] = end
            for assignment, lack in zip(here, is_lacking, strict=True):
                own[assignment.client] += plain + (positions if lack else 0)
        for a in group:
            listeners.append(Listener(a.client, begin, ends[a.level], own[a.client]))
            self.down_bytes[a.client] += own[a.client]
            self.last_down_bytes[a.client] = own[a.client]
            self._known[a.client] = (a.mask_id, a.level)
        return end

    def _lacking(self, assignment: Assignment) -> range:
        """Return the levels of whose positions a client knows nothing."""
        mask_id, level = self._known[assignment.client]
        known = level + 1 if mask_id == assignment.mask_id else 0
        return range(known, assignment.level + 1)

    def _increment_bytes(self, masks: MaskSet, level: int) -> tuple[int, int]:
        """(bytes without positions, bytes of positions) of an increment's frame."""
        span = masks.increment(level)
        if self.links.size == "nominal":
            below = self._nominal_bytes(masks.densities[level - 1]) if level else 0
            return self._nominal_bytes(masks.densities[level]) - below, 0
        dense = self.num_dense if level == 0 else 0
        plain = frame_bytes(span.stop - span.start, dense, dtype=self.dtype)
        return plain, len(self.codes.code(masks, level)[1])

    def _nominal_bytes(self, density: float) -> int:
        """Return what a transfer of a density is charged, whatever share of the weights that is."""
        return max(1, round(self.links.nominal_mb * 1e6 * density))  # never a transfer of nothing

    def upload_bytes(self, assignment: Assignment) -> int:
        """Return the length of the update that answers an assignment."""
        if self.links.size == "nominal":
            return self._nominal_bytes(assignment.density)
        extra = assignment.num_kept if self.has_squares else 0
        return frame_bytes(assignment.num_kept, self.num_dense, num_extra=extra, dtype=self.dtype)

    def forget_positions(self) -> None:
        """Note that every client has been started anew, and knows no positions."""
        self._known = [(-1, -1)] * len(self._known)

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back."""
        return {
            "up_bytes": self.up_bytes,
            "down_bytes": self.down_bytes,
            "server_bytes": [self.server_up_bytes, self.server_down_bytes],
            "last_down_bytes": self.last_down_bytes,
            "known": self._known,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.up_bytes, self.down_bytes = state["up_bytes"], state["down_bytes"]
        self.server_up_bytes, self.server_down_bytes = state["server_bytes"]
        self.last_down_bytes = state["last_down_bytes"]
        self._known = [(mask_id, level) for mask_id, level in state["known"]]

    def charge_upload(self, assignment: Assignment) -> int:
        """Charge an upload that has arrived; return its bytes."""
        size = self.upload_bytes(assignment)
        self.up_bytes[assignment.client] += size
        self.server_down_bytes += size
        return size


def make_ledger(
    config: Config, num_clients: int, num_dense: int, codes: PositionCodes | None = None
) -> Ledger:
    """Return the ledger of a run; see `Ledger`."""
    return Ledger(
        num_clients,
        num_dense,
        links=config.links,
        transmission=config.transmission,
        dtype=config.wire.dtype,
        has_squares=needs_grad_squares(config.submodel),
        codes=codes,
    )
