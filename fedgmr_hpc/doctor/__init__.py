"""Checks a place before a run begins there: python -m fedgmr_hpc doctor (verb.py)."""
