"""Disk: writing that says which file it was about when it fails, however the writer reports it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_full", "named", "refusal"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException, folder: Path) -> bool:
    """Return whether a failed write into `folder` failed for want of space.

    Writers of many formats make errors of their own of what the system said, so the disk itself is asked.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    try:
        return shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Let a failed write name its file, and be an `OSError` where the disk is full, whatever the writer raises."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except Exception as error:
        if not is_full(error, path.parent):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def refusal(folder: Path) -> tuple[Path, str] | None:
    """Return which existing folder refuses a small file, and why, where `folder` cannot be made or written in."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
    except OSError as error:
        return folder, error.strerror or str(error)
    return None
