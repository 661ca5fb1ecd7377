"""CIFAR-100 with its 100 fine labels: binary or pickled files of its authors (Krizhevsky, 2009).

Training images are moved and mirrored at random, and all are normalised by channel, as those of
CIFAR-10.
"""

from __future__ import annotations

from pathlib import Path

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.formats.cifar_batches import SHAPE, Batches, find_batches, read_cifar
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, plan_build, register

# a record has its coarse label, then its fine one
BATCHES = Batches("CIFAR-100", num_classes=100, label_bytes=2, label_key="fine_labels")
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
TRAITS = Traits(BATCHES.num_classes, SHAPE, 255, MEAN, STD, "crop_flip")
FOLDERS = {"cifar-100-binary": ".bin", "cifar-100-python": ""}
INSTRUCTIONS = """\
CIFAR-100 is published at https://www.cs.toronto.edu/~kriz/cifar.html.
Unpack one of its two archives in ROOT:
  cifar-100-binary.tar.gz  -> ROOT/cifar-100-binary/train.bin, test.bin
  cifar-100-python.tar.gz  -> ROOT/cifar-100-python/train, test
(ROOT may also be that folder itself.)"""


def find_files(root: Path) -> Files:
    """List the files of the first layout of which one is there, else those of the binary one."""
    return find_batches(root, FOLDERS, ("train",), ("test",))


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    train, test = files
    facts = file_facts(train + test)
    paths = {"train_files": train, "test_files": test}
    return plan_build(data.name, TRAITS, facts, read_cifar, kind=BATCHES, **paths)


register(DatasetSource("cifar100", TRAITS, _plan, find_files, INSTRUCTIONS))
