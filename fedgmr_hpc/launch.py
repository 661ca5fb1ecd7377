"""`python -m fedgmr_hpc.launch`: one rank of a run, from start to finish (cli/launch.py)."""

import sys

from fedgmr_hpc.cli.launch import main

if __name__ == "__main__":
    sys.exit(main())
