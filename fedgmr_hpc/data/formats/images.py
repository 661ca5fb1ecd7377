"""Decode images to RGB bytes of one size, regardless of their aspect ratio.

Shapes: S edge of a stored image in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fedgmr_hpc.data.cache import Meter, RowFile
from fedgmr_hpc.data.splits import Bytes
from fedgmr_hpc.data.untrusted import reading, refuse

FORMATS = {".png": "PNG", ".webp": "WebP"}  # by ending; others are JPEG
WIDE_MODES = ("I", "F")  # 16 or 32 bits, which a conversion to bytes would clip
CHUNK = 256  # images decoded between two writes: 22 MB at 168 pixels
MAX_THREADS = 16


def expected_image(path: Path) -> str:
    """Return what a file of this name should be."""
    return f"a {FORMATS.get(path.suffix.lower(), 'JPEG')} image"


def decode_image(path: Path, edge: int) -> Bytes:
    """Decode an image of 8 bits a channel to RGB bytes [3, S, S].

    As in the usual pipelines for ImageNet, transparency is dropped and the orientation recorded by
    a camera (EXIF) is not applied.

    Args:
        path: the image, of any format whatever its name.
        edge: S.

    Raises:
        ValueError: the file cannot be decoded, or has pixels of 16 or 32 bits; names it.
    """
    expected = expected_image(path)
    with reading(path, expected), Image.open(path) as image:
        if image.mode.startswith(WIDE_MODES):
            refuse(path, f"has pixels of more than 8 bits ({image.mode})", expected)
        image.draft("RGB", (edge, edge))  # decode at 1/2 or 1/4 where that suffices
        pixels = image.convert("RGB").resize((edge, edge), Image.Resampling.BILINEAR)
    rgb: Bytes = np.asarray(pixels).transpose(2, 0, 1)
    return rgb


def append_images(file: RowFile, paths: Sequence[Path], edge: int, meter: Meter) -> None:
    """Decode on all cores of this process and append in order, one chunk at a time."""
    num_threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            for image in pool.map(lambda path: decode_image(path, edge), chunk):
                file.append(image)
                meter.add(1)
            file.flush()
