"""Whose cache is believed: who can write a cache can choose what is trained on, checksums or not.

Believed are a user's own files, those of root, and those of the user that `data.cache_owner` names
(a colleague who has prepared a cache for all); none of them may be writable by group or others. A
cache of one's own that is writable by others is decoded anew; another user's is refused, since it
can neither be believed nor replaced.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from fedgmr_hpc.config.messages import must, must_be

ROOT = 0
OTHERS_WRITE = 0o022


def find_intruder(folder: Path, owner: str | None) -> str:
    """What is wrong with the modes of a cache; empty where they can be believed.

    Raises:
        ValueError: it belongs to a user who is not trusted, or `owner` is nobody.
        OSError: the folder or a file is not there.
    """
    trusted = {os.getuid(), ROOT, *_named(owner)}
    for path in (folder, *folder.iterdir()):
        stat = path.stat()
        if stat.st_uid not in trusted:
            raise ValueError(
                must("data.cache", "hold only trusted files", folder.parent)
                + f": its {folder.name} belongs to {_name(stat.st_uid)}, neither you, root, nor "
                "the user that data.cache_owner names"
            )
        if stat.st_mode & OTHERS_WRITE:
            return f"{path.name} can be written by others"
    return ""


def keep_others_out(folder: Path) -> None:
    """Takes the right to write from group and others, whatever the umask is."""
    for path in (folder, *folder.iterdir()):
        path.chmod(path.stat().st_mode & 0o777 & ~OTHERS_WRITE)


def _named(owner: str | None) -> list[int]:
    if owner is None:
        return []
    try:
        return [pwd.getpwnam(owner).pw_uid]
    except KeyError:
        line = must_be("data.cache_owner", "a user of this machine", owner)
        raise ValueError(line) from None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
