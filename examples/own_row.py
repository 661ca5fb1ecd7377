"""Run a method of one's own, which a file describes: python examples/own_row.py [key=value ...]

The same on the command line:
    python -m fedgmr_hpc.launch --config digits --config examples/own_row.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

import fedgmr_hpc

ROW = Path(__file__).with_name("own_row.yaml")


def main(words: list[str]) -> None:
    """Lay the file over the named run `digits`, and train."""
    config = fedgmr_hpc.load_config(["digits", ROW], words)
    result = fedgmr_hpc.run(config)
    print(f"{config.aggregation.staleness} weights, {config.restoration.step} steps:")
    print(f"test accuracy {100 * result.evaluations['test_accuracy'][-1]:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
