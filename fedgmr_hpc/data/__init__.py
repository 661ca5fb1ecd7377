"""Real and stand-in data sets, and who holds which sample.

`layouts` finds official files, `formats` reads them, `cache` keeps them decoded and memory-mapped,
`datasets` hands out normalised batches, `partition` deals samples to clients.
"""

from fedgmr_hpc.data.datasets import (
    DATASET_NAMES,
    Dataset,
    augment_images,
    load_dataset,
    prepare,
)
from fedgmr_hpc.data.formats import Split
from fedgmr_hpc.data.layouts import describe_missing
from fedgmr_hpc.data.partition import (
    batch_indices,
    class_counts,
    cut_validation,
    make_partition,
)

__all__ = [
    "DATASET_NAMES",
    "Dataset",
    "Split",
    "augment_images",
    "batch_indices",
    "class_counts",
    "cut_validation",
    "describe_missing",
    "load_dataset",
    "make_partition",
    "prepare",
]
