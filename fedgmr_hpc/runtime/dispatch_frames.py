"""The frames of a dispatch, which all ranks and clients share."""

from __future__ import annotations

from fedgmr_hpc.fl.events import Dispatch
from fedgmr_hpc.runtime.ledger import PositionCodes
from fedgmr_hpc.wire.frames import Dtype, Frame, Kind
from fedgmr_hpc.wire.parcels import Parcel


class DispatchFrames:
    """A dispatch's frames, each made when it is first needed.

    Args:
        codes: encoded positions, shared with the ledger that charges them.
    """

    def __init__(self, dispatch: Dispatch, dtype: Dtype, run_id: int, codes: PositionCodes) -> None:
        self.dispatch, self._dtype, self._run_id = dispatch, dtype, run_id
        self._codes = codes
        self._parcels: dict[tuple[int, bool], Parcel] = {}

    def parcel(self, level: int, *, with_positions: bool) -> Parcel:
        """Return the increment of a level; the first one has the dense part."""
        key = (level, with_positions)
        if key not in self._parcels:
            coded = self._codes.code(self.dispatch.masks, level) if with_positions else None
            self._parcels[key] = Parcel(self._frame(level, with_positions), coded)
        return self._parcels[key]

    def _frame(self, level: int, with_positions: bool) -> Frame:
        d = self.dispatch
        return Frame(
            kind=Kind.INCREMENT,
            run=self._run_id,
            client=-1,
            base_version=d.version,
            mask_id=d.masks.mask_id,
            level=level,
            density=d.masks.densities[level],
            num_prunable=d.masks.size,
            values=d.packed[d.masks.increment(level)],
            positions=d.masks.positions(level) if with_positions else None,
            dense=d.dense if level == 0 else d.dense[:0],
            dtype=self._dtype,
        )
