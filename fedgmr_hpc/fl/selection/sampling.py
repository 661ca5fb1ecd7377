"""Who is sent something next: all that can be chosen, or those of them that a rule chooses.

A client is idle while it is in the run, has nothing in flight and does not wait for a merge. With
`clients.sampled` a rule chooses of the idle and available ones until that many take part; otherwise
all of them are sent something.

A rule is a class registered under a name for `clients.selection`; its fields are its options. The
server asks it only where there are more to choose from than are wanted, and sees to it that it
chooses as many, each once, and nobody else.

Shapes: C clients.
"""

from __future__ import annotations

import copy
import math
import operator
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.choices.failures import check_state
from fedgmr_hpc.config.choices.registry import SELECTIONS, register_selection
from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.records import Doubles
from fedgmr_hpc.config.sections import ClientsConfig
from fedgmr_hpc.fl.selection.availability import Availability
from fedgmr_hpc.fl.updates import UpdateHeader

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """A choice of clients that is due, as a rule sees it.

    Attributes:
        num_wanted: how many are to be chosen, at least one.
        available: clients that can be chosen, ascending, more than are wanted.
        idle: these and those that have nothing to do but are away, ascending.
        now_s: the time.
        round: rounds done.
        shares: [C] bandwidth shares.
        densities: [C] of what each client is sent next.
        num_samples: [C] training samples that each client holds.
        num_updates: [C] updates that each has delivered.
        train_losses: [C] mean loss of the local steps in each client's last update, NaN before any.
        scores: [C] last validation accuracy of each client's own model, NaN before any; measured
            where the schedule watches scores.
        cycle_times_s: [C] last time from dispatch to delivery, NaN before any.
        rng: random numbers that follow from the seed, the version and the updates arrived since.
        state: the rule's own, whatever JSON can hold; written in place, empty at first.
    """

    num_wanted: int
    available: Sequence[int]
    idle: Sequence[int]
    now_s: float
    round: int
    shares: Doubles
    densities: Doubles
    num_samples: Counts
    num_updates: Counts
    train_losses: Doubles
    scores: Doubles
    cycle_times_s: Doubles
    rng: np.random.Generator
    state: dict[str, Any]


class SelectionRule(Section):
    """The base of all rules."""

    @abstractmethod
    def choose(self, draw: Draw) -> Iterable[int]:
        """Return as many of the available clients as are wanted, each once, in any order."""

    def chosen(self, draw: Draw) -> list[int]:
        """Return whom it chooses, ascending.

        Raises:
            RunError: it does not choose as many of the available clients, each once, or keeps what
                cannot be saved.
        """
        answer: Any = self.choose(draw)
        asked = list(answer) if isinstance(answer, Iterable) else answer  # it may go on to compute
        check_state(f"selection {type(self).__name__}: draw.state", draw.state)
        try:
            found, words = sorted(operator.index(client) for client in asked), ""
        except TypeError:
            found, words = [], f"a {type(answer).__name__}"
        if len(found) == draw.num_wanted == len(set(found).intersection(draw.available)):
            return found
        need = f"choose {draw.num_wanted} of {len(draw.available)} available clients, each once"
        raise RunError(
            must(f"selection {type(self).__name__}", need, found, found=words), stage="send"
        )


@register_selection("uniform")
class Uniform(SelectionRule):
    """All alike."""

    def choose(self, draw: Draw) -> list[int]:
        """Draw without replacement."""
        drawn = draw.rng.choice(len(draw.available), draw.num_wanted, replace=False)
        return [draw.available[index] for index in drawn]


class Selection:
    """Says who takes part, and keeps what a rule may know of the clients.

    Args:
        clients: how many take part at a time, and the rule.
        seed: of the draws.
        shares: [C] bandwidth shares.
        availability: when clients can be chosen; None for always.
        num_samples: [C] training samples of each client; None for one each.
    """

    def __init__(
        self,
        clients: ClientsConfig,
        seed: int,
        shares: Sequence[float],
        availability: Availability | None = None,
        num_samples: Sequence[int] | None = None,
    ) -> None:
        self.sampled, self.seed = clients.sampled, seed
        self.availability = availability or Availability({})
        self.rule: SelectionRule = SELECTIONS.make(clients.selection, clients)
        num = len(shares)
        self._shares = np.array(shares, np.float64)
        self._num_samples = np.array([1] * num if num_samples is None else num_samples, np.int64)
        self._seen: dict[str, NDArray[Any]] = {
            "num_updates": np.zeros(num, np.int64),
            "train_losses": np.full(num, math.nan),
            "scores": np.full(num, math.nan),
            "cycle_times_s": np.full(num, math.nan),
        }
        self._state: dict[str, Any] = {}  # of the rule

    def choose(
        self,
        idle: Sequence[int],
        num_taking: int,
        now_s: float,
        round_: int,
        densities: Sequence[float],
        key: tuple[int, int],
    ) -> list[int]:
        """Return the idle clients that are sent this version, ascending.

        Args:
            idle: ascending.
            num_taking: clients that take part already.
            round_: rounds done.
            densities: [C].
            key: of the draw: the version, and how many updates have arrived since it was made.

        Raises:
            RunError: see `SelectionRule.chosen`.
        """
        able = self.availability.able(idle, now_s)
        if self.sampled is None or len(able) <= self.sampled - num_taking:
            return able
        if num_taking >= self.sampled:
            return []
        version, turn = key
        known = self._seen | {"shares": self._shares, "num_samples": self._num_samples}
        draw = Draw(
            num_wanted=self.sampled - num_taking,
            available=tuple(able),
            idle=tuple(idle),
            now_s=now_s,
            round=round_,
            densities=np.array(densities, np.float64),
            rng=make_rng(self.seed, "sample", turn, version),
            state=self._state,
            **{name: array.copy() for name, array in known.items()},
        )
        return self.rule.chosen(draw)

    def deliver(self, update: UpdateHeader, cycle_s: float) -> None:
        """Take note of an update, and of the time since its client was sent the model."""
        seen, client = self._seen, update.client
        seen["num_updates"][client] += 1
        seen["train_losses"][client] = update.train_loss
        seen["cycle_times_s"][client] = cycle_s
        if not math.isnan(update.score):
            seen["scores"][client] = update.score

    def wake_s(self, idle: Sequence[int], now_s: float) -> float:
        """Return the earliest time at which one of them can be chosen, infinity if none ever
        can.
        """
        return min((self.availability.next_s(client, now_s) for client in idle), default=math.inf)

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back."""
        return {**self._seen, "rule": self._state}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self._seen = {name: state[name].copy() for name in self._seen}
        self._state = copy.deepcopy(state["rule"])
