"""Decoded data sets on disk, memory-mapped, so that all ranks of a node share one copy in memory.

`build` opens or builds a cache, `files` has its format and says whose caches are trusted,
`row_file` appends to one that is too large for memory, `meter` shows how far that is.
"""

from fedgmr_hpc.data.cache.build import (
    HOME_BYTES,
    Reader,
    check_room,
    file_facts,
    is_default,
    make_cache_key,
    open_or_build,
    open_or_fill,
)
from fedgmr_hpc.data.cache.meter import Meter
from fedgmr_hpc.data.cache.row_file import RowFile

__all__ = [
    "HOME_BYTES",
    "Meter",
    "Reader",
    "RowFile",
    "check_room",
    "file_facts",
    "is_default",
    "make_cache_key",
    "open_or_build",
    "open_or_fill",
]
