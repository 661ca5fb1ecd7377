"""One thing that was looked at, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedgmr_hpc.config.choices.failures import plugin_failure, what_failed
from fedgmr_hpc.config.errors import RunError


@dataclass(frozen=True)
class Check:
    """A line of the report.

    Attributes:
        subject: what was looked at, as `aggregation.rule=median`.
        name: what of it.
        state: `ok`, `FAIL`, or `-` where there is nothing to check.
        text: what was found.
    """

    subject: str
    name: str
    state: str
    text: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether a promise is broken."""
        return self.state == "FAIL"


class Broken(Exception):
    """A promise does not hold; says how."""


class NotPromised(Exception):
    """There is nothing to check; says why."""


def look(subject: str, name: str, test: Callable[[], str | None]) -> Check:
    """Return what a test finds: it returns, or raises one of the two above; anything else that goes
    wrong is the subject's fault, too.
    """
    try:
        return Check(subject, name, "ok", test() or "")
    except NotPromised as reason:
        return Check(subject, name, "-", str(reason))
    except Exception as error:
        is_told = isinstance(error, Broken | RunError | ValueError)
        text = plugin_failure(error) or (str(error) if is_told else what_failed(error))
        return Check(subject, name, "FAIL", " ".join(text.split()))


def demand(holds: bool, otherwise: str) -> None:
    """Fail unless something holds.

    Raises:
        Broken: it does not.
    """
    if not holds:
        raise Broken(otherwise)
