"""Putting a finished directory where another may be, so that a reader finds the old one or the new one whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path

# <fcntl.h>, <linux/fs.h>
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def take_place(place: Path, destination: Path) -> None:
    """Rename a directory to `destination`; what is there already comes to be at `place`. At no moment is there nothing.

    On a system or file system that cannot exchange two names at once there is such a moment, between two renames.
    """
    while True:
        try:
            place.rename(destination)  # also over an empty directory
            return
        except OSError as exc:
            if exc.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
        with contextlib.suppress(FileNotFoundError):  # it vanished meanwhile: the next turn renames
            if exchange(place, destination):
                return
            old = place.with_name(f"{place.name}-old")
            destination.rename(old)
            try:
                place.rename(destination)
            except BaseException:
                old.rename(destination)
                raise
            old.rename(place)
            return


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two directories in one step; whether this system and file system can.

    Source: renameat2(2), RENAME_EXCHANGE.

    Raises:
        OSError: it can, and failed.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS}:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
