"""CIFAR-10: the binary and the pickled batches of its authors (Krizhevsky, 2009).

Training images are moved and mirrored at random, and all are normalised by channel
(docs/method.md#data-sets); formats/cifar_batches.py reads the files.
"""

from __future__ import annotations

from pathlib import Path

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.formats.cifar_batches import SHAPE, Batches, find_batches, read_cifar
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, plan_build, register

BATCHES = Batches("CIFAR-10", num_classes=10, label_bytes=1, label_key="labels")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
TRAITS = Traits(BATCHES.num_classes, SHAPE, 255, MEAN, STD, "crop_flip")
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
FOLDERS = {"cifar-10-batches-bin": ".bin", "cifar-10-batches-py": ""}
INSTRUCTIONS = """\
CIFAR-10 is published at https://www.cs.toronto.edu/~kriz/cifar.html.
Unpack one of its two archives in ROOT:
  cifar-10-binary.tar.gz  -> ROOT/cifar-10-batches-bin/data_batch_1.bin ... _5.bin, test_batch.bin
  cifar-10-python.tar.gz  -> ROOT/cifar-10-batches-py/data_batch_1 ... _5, test_batch
(ROOT may also be that folder itself.)"""


def find_files(root: Path) -> Files:
    """List the files of the first layout of which one is there, else those of the binary one."""
    return find_batches(root, FOLDERS, TRAIN_FILES, ("test_batch",))


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    train, test = files
    facts = file_facts(train + test)
    paths = {"train_files": train, "test_files": test}
    return plan_build(data.name, TRAITS, facts, read_cifar, kind=BATCHES, **paths)


register(DatasetSource("cifar10", TRAITS, _plan, find_files, INSTRUCTIONS))
