"""What a run was computed with, from its start over each resume."""

from __future__ import annotations

import json

from fedgmr_hpc.results.stretches import course_of, stretches, values_of

START = {"git_commit": "a", "cpu_model": "Xeon", "num_ranks": "3"}


def resumed(**entries: dict[str, str]) -> dict[str, str]:
    return START | {
        name: json.dumps({"version": 7, "utc": "2026-11-30", **changes})
        for name, changes in entries.items()
    }


def test_a_run_without_a_resume_is_one_stretch() -> None:
    assert stretches(START) == [START]
    assert course_of(START, "git_commit") == "a" and course_of(START, "kernels") == "-"


def test_each_resume_is_laid_over_the_start_and_not_over_the_one_before() -> None:
    """`resume_N` says what differs from the start, whose Xeon the second resume has again."""
    known = resumed(resume_1={"git_commit": "b", "cpu_model": "EPYC"}, resume_2={"git_commit": "b"})
    assert stretches(known) == [
        START,
        START | {"git_commit": "b", "cpu_model": "EPYC"},
        START | {"git_commit": "b"},
    ]
    assert course_of(known, "git_commit") == "a\u2192b"
    assert course_of(known, "cpu_model") == "Xeon\u2192EPYC\u2192Xeon"
    assert values_of(known, "cpu_model") == {"Xeon", "EPYC"}
    assert values_of(known, "kernels") == set()


def test_the_tenth_resume_follows_the_ninth() -> None:
    known = resumed(**{f"resume_{n}": {"num_ranks": str(n)} for n in range(1, 11)})
    assert stretches(known)[-1]["num_ranks"] == "10"
