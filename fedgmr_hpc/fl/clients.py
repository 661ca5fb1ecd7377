"""What the server keeps of each client: what it owes, what it delivered, how long that took.

Shapes: D dense entries.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.updates import Assignment, Update


@dataclass
class Client:
    """What the server knows of one client."""

    steps: int = 0
    dispatched_s: float = 0.0
    in_flight: Assignment | None = None
    masks: MaskSet | None = None  # of the assignment in flight
    is_scored: bool = False  # its local model was, or is being, scored since the last refresh
    cycle_times_s: deque[float] = field(default_factory=deque)

    def mean_cycle_s(self) -> float | None:
        """Return mean recent time from dispatch to delivery, None before any."""
        times = self.cycle_times_s
        return sum(times) / len(times) if times else None

    def take(self, assignment: Assignment, masks: MaskSet, num_steps: int, now_s: float) -> None:
        """Note that it is sent an assignment of `num_steps` local steps."""
        self.steps += num_steps
        self.in_flight, self.masks = assignment, masks
        self.dispatched_s = now_s
        self.is_scored |= assignment.measure

    def deliver(self, now_s: float) -> float:
        """Note that what it owed has arrived; return the time since its dispatch."""
        self.in_flight = self.masks = None
        cycle_s = now_s - self.dispatched_s
        self.cycle_times_s.append(cycle_s)
        return cycle_s

    def refresh(self, density: float) -> None:
        """Note a refresh, after which its density is this; a score that is under way will count
        only if it is one of that.
        """
        flying = self.in_flight
        self.is_scored = flying is not None and flying.measure and flying.density == density

    def recall(self, num_steps: int) -> None:
        """Note that what it owes will not come: it counts as never sent."""
        if self.in_flight is not None:
            self.steps -= num_steps
            self.is_scored &= not self.in_flight.measure
        self.in_flight = self.masks = None

    def leave(self) -> None:
        """Note that it is gone: it owes nothing."""
        self.in_flight = self.masks = None
        self.cycle_times_s.clear()

    def check_owed(self, update: Update, num_dense: int, version: int) -> MaskSet:
        """Return the masks of the assignment that this update answers.

        Args:
            num_dense: D.
            version: the current version, for the message.

        Raises:
            RunError: nothing is owed, or something else.
        """
        owed = self.in_flight
        answered = f"masks {update.mask_id}, version {update.base_version}"
        expected = "none" if owed is None else f"masks {owed.mask_id}, version {owed.base_version}"
        if owed is None or self.masks is None or answered != expected:
            raise RunError(
                f"update for {answered} arrived, expected {expected}",
                client=update.client,
                version=version,
                stage="receive",
            )
        if len(update.values) != owed.num_kept or len(update.dense) != num_dense:
            raise RunError(
                f"update has {len(update.values)} + {len(update.dense)} values, "
                f"expected {owed.num_kept} + {num_dense}",
                client=update.client,
                version=owed.base_version,
                stage="receive",
            )
        return self.masks
