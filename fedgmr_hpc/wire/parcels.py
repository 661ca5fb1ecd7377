"""A frame on its way: as bytes, or as it is where sender and receiver share their memory.

One process needs no bytes: a frame is handed over with the length that its bytes would have, which
is what its link is charged. Nothing is encoded, copied, checksummed or decoded. Types other than
fp32 round values, so their frames always travel as bytes, and so do those of the wall clock, which
come in pieces. `wire.verify` has every frame travel as bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.sections import WireConfig
from fedgmr_hpc.transport.contract import Message, Shared, Tag, Transport
from fedgmr_hpc.wire.frames import Frame, check_arrays, decode_frame, encode_parts, frame_bytes
from fedgmr_hpc.wire.positions import CodedPositions

_Array = TypeVar("_Array", bound=NDArray[np.generic])


def hands_over(wire: WireConfig, transport: Transport) -> bool:
    """Return whether frames of a run on the virtual clock are handed over as they are."""
    return transport.shares_memory and not wire.verify and wire.dtype == "fp32"


@dataclass(frozen=True, eq=False)
class Parcel:
    """A frame that one rank or several are to get.

    Attributes:
        frame: whose arrays never change.
        coded: what `encode_positions` makes of its positions, if it has any.
    """

    frame: Frame
    coded: CodedPositions | None = None

    @cached_property
    def shared(self) -> Shared:
        """The frame as bytes."""
        return Shared(*encode_parts(self.frame, self.coded))

    @cached_property
    def num_bytes(self) -> int:
        """The length of these bytes."""
        frame = self.frame
        return frame_bytes(
            len(frame.values),
            len(frame.dense),
            num_extra=len(frame.extra),
            dtype=frame.dtype,
            positions_bytes=None if self.coded is None else len(self.coded[1]),
        )

    def hand(self, transport: Transport, dest: int, tag: Tag) -> None:
        """Hand the frame over; neither side can write to its arrays."""
        transport.hand(dest, tag, self._read_only, self.num_bytes)

    @cached_property
    def _read_only(self) -> Frame:
        frame, positions = self.frame, self.frame.positions
        check_arrays(frame)
        return replace(
            frame,
            values=_view(frame.values),
            positions=None if positions is None else _view(positions),
            dense=_view(frame.dense),
            extra=_view(frame.extra),
        )


def _view(array: _Array) -> _Array:
    view: _Array = array.view()
    view.flags.writeable = False
    return view


def open_parcel(message: Message) -> Frame:
    """Return the frame that a message brings; see `decode_frame`."""
    if isinstance(message.handed, Frame):
        return message.handed
    return decode_frame(message.payload)
