"""Sources that cannot be read: one error for what Arrow and DuckDB say of a damaged file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from moonstore.errors import StoreError


@contextlib.contextmanager
def readable(path: Path | str = "", again: str = "Write it again.") -> Iterator[None]:
    """Say what to do about a damaged source.

    Args:
        path: of the file; empty where DuckDB, which reads several, names it.
        again: what to do about it, a sentence.

    Raises:
        StoreError: instead of what is raised inside because a file is damaged.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        named = f"{path}: " if str(path) not in str(error) else ""
        raise StoreError(f"{named}missing or damaged ({error}). {again}") from error
