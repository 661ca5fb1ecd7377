"""The frames of a dispatch, which all ranks and clients share."""

from __future__ import annotations

from fedgmr_hpc.fl.events import Dispatch
from fedgmr_hpc.runtime.ledger import PositionCodes
from fedgmr_hpc.transport.contract import Shared
from fedgmr_hpc.wire.frames import Dtype, Frame, Kind, encode_parts


class DispatchFrames:
    """A dispatch's frames, each encoded when it is first needed.

    Args:
        codes: encoded positions, shared with the ledger that charges them.
    """

    def __init__(self, dispatch: Dispatch, dtype: Dtype, run_id: int, codes: PositionCodes) -> None:
        self.dispatch, self._dtype, self._run_id = dispatch, dtype, run_id
        self._codes = codes
        self._shared: dict[tuple[int, bool], Shared] = {}
        self._encoded: dict[tuple[int, bool], tuple[memoryview, ...]] = {}

    def shared(self, level: int, *, with_positions: bool) -> Shared:
        """Return the increment of a level as what several ranks are sent."""
        key = (level, with_positions)
        if key not in self._shared:
            self._shared[key] = Shared(*self.frame(level, with_positions=with_positions))
        return self._shared[key]

    def frame(self, level: int, *, with_positions: bool) -> tuple[memoryview, ...]:
        """Return the increment of a level in parts; the first one has the dense part."""
        key = (level, with_positions)
        if key not in self._encoded:
            d = self.dispatch
            coded = self._codes.code(d.masks, level) if with_positions else None
            self._encoded[key] = encode_parts(
                Frame(
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
                ),
                coded,
            )
        return self._encoded[key]
