"""Where a run was computed: its start, and each stretch after a resume.

The provenance of a resumed run is that of its start, with an entry `resume_N` for what differed
from it at each resume. Whoever asks what a run was computed with has to ask all of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping

PREFIX = "resume_"
OWN = ("version", "utc")  # of the resume itself
ARROW = "\u2192"


def stretches(provenance: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what each stretch of a run was computed with, the start first."""
    start = {key: value for key, value in provenance.items() if not key.startswith(PREFIX)}
    numbers = sorted(int(key.removeprefix(PREFIX)) for key in provenance.keys() - start.keys())
    later = [json.loads(provenance[f"{PREFIX}{number}"]) for number in numbers]
    return [start, *(start | {k: v for k, v in each.items() if k not in OWN} for each in later)]


def values_of(provenance: Mapping[str, str], key: str) -> set[str]:
    """Return the values of a key in all stretches that have one."""
    return {part[key] for part in stretches(provenance) if key in part}


def course_of(provenance: Mapping[str, str], key: str, unknown: str = "-") -> str:
    """Return the value of a key, `A→B` where a run was resumed with another one."""
    return in_turn(part.get(key, unknown) for part in stretches(provenance))


def in_turn(texts: Iterable[str]) -> str:
    """Return texts with an arrow wherever one differs from the one before."""
    return ARROW.join(text for text, _ in itertools.groupby(texts))
