"""Real and stand-in data sets, and who holds which sample.

`layouts` finds official files, `formats`, `imagenet` and `stackoverflow` read them, `cache` keeps
them decoded and memory-mapped, `datasets` hands out normalised batches, changed at random by
`augment`, `preparation` tells what is there, `partition` deals samples to clients.
"""

from fedgmr_hpc.data.augment import augment_images, crop_and_resize
from fedgmr_hpc.data.datasets import DATASET_NAMES, Dataset, load_dataset
from fedgmr_hpc.data.formats import Split
from fedgmr_hpc.data.layouts import describe_missing
from fedgmr_hpc.data.partition import batch_indices, class_counts, cut_validation, make_partition
from fedgmr_hpc.data.preparation import prepare

__all__ = [
    "DATASET_NAMES",
    "Dataset",
    "Split",
    "augment_images",
    "batch_indices",
    "class_counts",
    "crop_and_resize",
    "cut_validation",
    "describe_missing",
    "load_dataset",
    "make_partition",
    "prepare",
]
