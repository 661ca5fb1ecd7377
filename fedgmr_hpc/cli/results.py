"""`python -m fedgmr_hpc results ACTION FILE...`: verify, repair, merge and export result files.

verify FILE...                     0 where all are sound, else 1 and one line a finding
repair FILE --out NEW              what can be read, as a new file
merge FILE... --out NEW            several runs in one file
export FILE... --format F --out D  csv, jsonl, parquet or tensorboard
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

ACTIONS = ("verify", "repair", "merge", "export")


def main(words: Sequence[str]) -> int:
    """Runs the verb; returns its exit code: 0 done, 1 a file is not sound.

    Raises:
        ValueError: a wrong word or file.
        OSError: `out` cannot be written.
    """
    parser = argparse.ArgumentParser(
        "python -m fedgmr_hpc results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="ACTION FILE")
    parser.add_argument("--out", help="the new file, or the folder of an export")
    parser.add_argument("--format", help="csv, jsonl, parquet or tensorboard")
    arguments = parser.parse_intermixed_args(list(words))
    return act(arguments.words, arguments.out, arguments.format)


def act(words: Sequence[str], out: str | None, form: str | None) -> int:
    """Runs an action; returns its exit code: 0 done, 1 a file is not sound.

    Raises:
        ValueError: a wrong word or file.
        OSError: `out` cannot be written.
    """
    action, *files = words or [""]
    if action not in ACTIONS or not files:
        got = " ".join(words) or "nothing"
        raise ValueError(f"results: got {got}, need one of {', '.join(ACTIONS)}, and result files")
    if action == "verify":
        return _verify(files)
    if out is None:
        raise ValueError(f"--out: got nothing, results {action} needs a new place")
    if action == "export":
        return _export(files, form, out)
    print(_remake(action, files, out))
    return 0


def _verify(files: Sequence[str]) -> int:
    from fedgmr_hpc.results.verify import remark, verify

    findings = {file: verify(file) for file in files}
    for file, lines in findings.items():
        print("\n".join(lines) if lines else f"results {file}: sound{remark(file)}")
    return 1 if any(findings.values()) else 0


def _remake(action: str, files: Sequence[str], out: str) -> str:
    from fedgmr_hpc.results.files import merge
    from fedgmr_hpc.results.salvage import repair

    if action == "merge":
        return merge(files, out)
    if len(files) > 1:
        raise ValueError(f"results repair: got {len(files)} files, allowed: one")
    return repair(files[0], out)


def _export(files: Sequence[str], form: str | None, out: str) -> int:
    from fedgmr_hpc.results.export import FORMS, export

    if form is None:
        raise ValueError(f"--format: got nothing, allowed: {', '.join(FORMS)}")
    for file in files:
        print("\n".join(map(str, export(file, form, out))))
    return 0
