"""`python -m fedgmr_hpc VERB`."""

import sys

from fedgmr_hpc.cli.command_line import main

sys.exit(main())
