"""Run two methods on the embedded digits and print how they compare.

python examples/compare_methods.py [key=value ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import fedgmr_hpc

METHODS = ("fedgmr", "heterofl")
DEFAULTS = ("run.max_rounds=60", "progress=quiet")


def main(words: list[str]) -> None:
    """Run each method once, with the same seed, and print a line for each."""
    given = {word.partition("=")[0] for word in words}
    overrides = [*words, *(word for word in DEFAULTS if word.partition("=")[0] not in given)]
    print(f"{'method':10}{'time':>9}{'test':>9}{'density':>16}{'sent to clients':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            path = Path(folder, f"{method}.h5")
            config = fedgmr_hpc.load_config(
                "digits", [f"method={method}", f"results.path={path}", *overrides]
            )
            print(_line(method, fedgmr_hpc.run(config)))


def _line(method: str, result: Any) -> str:
    scores, merges = result.evaluations, result.merges
    first, last = scores["mean_density"][0], scores["mean_density"][-1]
    return (
        f"{method:10}{scores['now_s'][-1]:7.0f} s{100 * scores['test_accuracy'][-1]:7.1f} %"
        f"{first:8.3f} ->{last:6.3f}{merges['server_up_bytes'][-1] / 1e6:15.1f} MB"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
