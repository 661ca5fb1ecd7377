"""`python -m fedgmr_hpc.launch`: one rank of a run, as the verb `launch`."""

import sys
from collections.abc import Sequence

from fedgmr_hpc.cli.command_line import main as run_verb


def main(argv: Sequence[str] | None = None) -> int:
    """Run this rank; return its exit code."""
    return run_verb(["launch", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
