"""Checks of a machine before a run begins there: `python -m fedgmr_hpc doctor`."""
