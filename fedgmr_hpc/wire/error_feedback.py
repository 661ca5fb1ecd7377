"""Error feedback: what int8 took from an upload is added to the client's next one.

With values v_t [K] to be uploaded, remainder r_t and Q the rounding of int8.py, a client sends
q_t = Q(v_t + r_t) and keeps r_{t+1} = v_t + r_t - q_t (Seide et al. 2014; Karimireddy et al. 2019),
so the sums of what was sent and of what was meant stay within one rounding of each other. The
remainder is a part of the client's memory (fl/client_memory.py): it begins with 0, belongs to
entries, and follows them when the mask changes.

Shapes: K kept entries.
"""

from __future__ import annotations

import numpy as np

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.client_memory import Memory
from fedgmr_hpc.wire.int8 import round_values

REMAINDER = "int8.remainder"  # its name in a memory


def round_with_feedback(memory: Memory, values: Floats) -> Floats:
    """Return what a client sends in place of `values`; its remainder changes accordingly.

    Args:
        memory: the client's, opened for the mask of the upload.
        values: [K] to be uploaded.

    Returns:
        Float32 [K] that int8 carries without a further error; NaN in blocks that are not finite, of
        which nothing is kept.
    """
    meant = values + memory.values.get(REMAINDER, np.float32(0))
    sent = round_values(meant)
    lost = np.subtract(meant, sent, out=meant)
    lost[~np.isfinite(lost)] = 0.0
    memory.values[REMAINDER] = lost
    return sent
