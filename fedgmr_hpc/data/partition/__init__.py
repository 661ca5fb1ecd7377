"""Which client holds which sample, which samples validate, and in what order batches come.

Everything here is a pure function of the configuration and the seed (docs/method.md#partitions).
`deal` chooses between the kinds: even ones of its own, those that `skew` draws, and those `listed`
in a file; `sizes` says how many samples a client needs. The paper has no validation split; in
`order` each client holds some of its samples back, and the others get the order of their batches.
"""

from fedgmr_hpc.data.partition.deal import KINDS, LABELLED_KINDS, make_partition
from fedgmr_hpc.data.partition.order import batch_indices, class_counts, cut_validation

__all__ = [
    "KINDS",
    "LABELLED_KINDS",
    "batch_indices",
    "class_counts",
    "cut_validation",
    "make_partition",
]
