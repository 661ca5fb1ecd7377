"""idx files, the format of MNIST (LeCun et al., 1998) and of the data sets made in its likeness.

Big-endian: two bytes 0, the type of the values (8 for bytes), the number of dimensions, the size of
each as 4 bytes, then the values. Files may be packed by gzip, whatever their names say: the first
bytes tell. A file is unpacked only up to the size that its header names.

Shapes: N samples, H height, W width.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import IO

import numpy as np

from fedgmr_hpc.data.source import check_labels
from fedgmr_hpc.data.splits import Bytes, Split
from fedgmr_hpc.data.untrusted import reading, refuse

IMAGES, LABELS = 0x803, 0x801  # bytes of 3 dimensions, and of 1
WHAT = {IMAGES: "an idx file of images", LABELS: "an idx file of labels"}
GZIP = b"\x1f\x8b"
MAX_BYTES = 1 << 30  # unpacked; the largest official file, of EMNIST, has 547 MB


def read_idx(path: Path, magic: int) -> Bytes:
    """Read one file, [N] labels or [N, H, W] images as its magic number must say.

    Raises:
        BadFile: it is damaged, or something else.
    """
    expected = WHAT[magic]
    with reading(path, expected), path.open("rb") as raw:
        is_packed = raw.read(2) == GZIP
        raw.seek(0)
        if not is_packed:
            return _read_values(path, raw, magic)
        with gzip.open(raw) as unpacked:
            return _read_values(path, unpacked, magic)


def _read_values(path: Path, file: IO[bytes] | gzip.GzipFile, magic: int) -> Bytes:
    expected = WHAT[magic]
    if (found := int.from_bytes(file.read(4), "big")) != magic:
        refuse(path, f"begins with the number {found}", f"{magic}, {expected}")
    num_dims = magic & 0xFF
    header = file.read(4 * num_dims)
    if len(header) < 4 * num_dims:
        refuse(path, "ends within its header", expected)
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    if not 0 < (size := math.prod(shape)) <= MAX_BYTES:
        found_shape = "x".join(map(str, shape))
        refuse(path, f"holds {found_shape} values", f"at least one and at most {MAX_BYTES}")
    values = np.frombuffer(file.read(size), np.uint8)
    if len(values) < size or file.read(1):
        more = "more than " if len(values) == size else f"{len(values)} of "
        refuse(path, f"holds {more}the {size} values of its header", "exactly these")
    return values.reshape(shape)


def read_split(
    images: Path,
    labels: Path,
    *,
    num_classes: int,
    edge: int,
    first_label: int = 0,
    is_transposed: bool = False,
) -> Split:
    """Read the images and labels of one split.

    Args:
        images: the file of the images.
        labels: the file of their labels.
        num_classes: of the data set.
        edge: height and width that images must have.
        first_label: number of the first class in the file.
        is_transposed: whether images lie on their side in the file, mirrored.

    Raises:
        BadFile: a file is damaged, or they do not belong together.
    """
    x, y = read_idx(images, IMAGES), read_idx(labels, LABELS).astype(np.int64)
    if x.shape[1:] != (edge, edge):
        refuse(images, f"has images of {x.shape[1]}x{x.shape[2]}", f"{edge}x{edge}")
    if len(x) != len(y):
        refuse(labels, f"{len(x)} images and {len(y)} labels", "as many of each")
    check_labels(labels, y, num_classes=num_classes, where="record", first=first_label)
    x = np.ascontiguousarray(x.transpose(0, 2, 1)) if is_transposed else x
    return Split(x=x[:, None], y=y - first_label, group=np.zeros(len(y), np.int32))
