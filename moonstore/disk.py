"""A disk that is full or may not be written: recognised whichever library meets it, and said with path and remedy."""

from __future__ import annotations

import contextlib
import errno
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

FULL, QUOTA, READ_ONLY = "the disk is full", "the disk quota is used up", "the disk is read-only"
FORBIDDEN, BROKEN = "writing is not permitted", "the disk reports an error"
NUMBERS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: QUOTA,
    errno.EROFS: READ_ONLY,
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.EIO: BROKEN,
}
SQLITE = {
    "SQLITE_FULL": FULL,
    "SQLITE_READONLY": READ_ONLY,
    "SQLITE_CANTOPEN": FORBIDDEN,
    "SQLITE_PERM": FORBIDDEN,
    "SQLITE_IOERR": BROKEN,
}
WORDS = {  # of libraries that pass on no number: safetensors, faiss, shutil, numpy
    r"No space left on device|requested and \d+ written|database or disk is full": FULL,
    r"Disk quota exceeded": QUOTA,
    r"Read-only file system|readonly database": READ_ONLY,
    r"Permission denied|Operation not permitted|unable to open database file": FORBIDDEN,
    r"Input/output error|disk I/O error": BROKEN,
}


class DiskError(OSError):
    """Something could not be written.

    Attributes:
        reason: why, in words.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(
            f"{path}: cannot be written: {reason}. Whatever was there before is as it was. "
            f"Free some space or make the folder writable, and run the same command again."
        )
        self.reason = reason


def disk_reason(error: BaseException) -> str | None:
    """Why the disk did not take what was written; None: the error is about something else."""
    if isinstance(error, DiskError):
        return error.reason
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "")
        return next((why for start, why in SQLITE.items() if name.startswith(start)), None)
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    return next((why for words, why in WORDS.items() if re.search(words, str(error))), None)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which path it is that the disk does not take.

    Raises:
        DiskError: instead of whatever error of the disk a library raises inside.
    """
    try:
        yield
    except DiskError:
        raise  # named by whoever was closer to it
    except Exception as error:
        why = disk_reason(error)
        if why is None:
            raise
        raise DiskError(path, why) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        DiskError: the disk does not take it.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
