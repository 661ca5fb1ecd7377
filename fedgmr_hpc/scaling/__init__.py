"""Scaling studies, the capacity model and its simulation."""
