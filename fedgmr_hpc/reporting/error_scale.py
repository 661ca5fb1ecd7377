"""When an axis of accuracies is spaced by error, in figures and in interactive pages.

From 90 to 95 % is then as far as from 80 to 90 %. Accuracies are in percent.
"""

from __future__ import annotations

GOOD = 75.0
LEAST_ERROR = 0.02  # 0 is not on a log scale


def is_spaced_by_error(high: float) -> bool:
    """Return whether the axis of accuracies up to `high` has distances that are ratios of errors.

    Linear, what is left to 100 % would be a narrow strip at the edge.
    """
    return high >= GOOD
