"""Selection: who is sent something next, of the clients that can be chosen."""

from fedgmr_hpc.fl.selection.availability import Availability, read_availability
from fedgmr_hpc.fl.selection.sampling import Draw, Selection, SelectionRule

__all__ = ["Availability", "Draw", "Selection", "SelectionRule", "read_availability"]
