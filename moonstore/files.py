"""Small files written so that a kill or a loss of power leaves either the old or the new one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moonstore.disk import writing


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to disk, so that it survives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON record atomically; it survives a kill and a loss of power.

    Raises:
        DiskError: the disk does not take it; the record before it stays.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small text file as ``write_json`` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write; on a clean exit it takes the place of the one at ``path``, durably and at once.

    Raises:
        DiskError: the disk does not take it; the file before it stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path), removed_if_it_fails(temporary):
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)


@contextlib.contextmanager
def removed_if_it_fails(temporary: Path) -> Iterator[None]:
    """Remove what was written under a temporary name if the block fails."""
    try:
        yield
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> bytes:
    """The hash of a file, read a piece at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def link(source: Path, to: Path) -> None:
    """Give a file that never changes a second name; a copy where the file system has no links."""
    to.unlink(missing_ok=True)  # of a job that was killed
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``, exclusive between processes and threads."""
    with writing(path):
        lock = path.open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
