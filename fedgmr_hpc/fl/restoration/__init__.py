"""Gradual model restoration: when densities grow, by the server's own triggers or a schedule."""

from __future__ import annotations

from fedgmr_hpc.fl.restoration.restoring import Plateau, Restoration
from fedgmr_hpc.fl.restoration.schedule import Refresh, Schedule

__all__ = ["Plateau", "Refresh", "Restoration", "Schedule"]
