"""Whether a data set that is to be decoded has room in `data.cache`, and is wanted there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.sections import DataConfig

DEFAULT = str(DataConfig.model_fields["cache"].default)
HOME_BYTES = 1 << 30  # the most that a job puts into a home folder which nobody has named
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")


def check_room(cache: Path, need_bytes: int) -> None:
    """Refuses a cache folder that is too small, or that a job would fill unasked.

    Args:
        cache: the folder `data.cache`, which is there.
        need_bytes: what is still to be written.

    Raises:
        ValueError: so it is; names the key.
    """
    free_bytes, size = shutil.disk_usage(cache).free, f"{need_bytes / 1e9:.1f} GB"
    if need_bytes > free_bytes:
        raise ValueError(
            must("data.cache", f"have {size} free", found=f"{free_bytes / 1e9:.1f} GB in {cache}")
            + "; choose another folder, or a smaller data.image_size or data.max_train"
        )
    if need_bytes > HOME_BYTES and is_default(cache) and any(name in os.environ for name in JOBS):
        raise ValueError(
            must_be("data.cache", "set to a folder", when=f"a job caches {size} (default: {cache})")
            + ": the site's scratch or the node's, or the default one if you name it"
        )


def is_default(cache: Path) -> bool:
    """Whether this is the folder where nobody has named one, below the user's home."""
    return cache == Path(DEFAULT).expanduser()
