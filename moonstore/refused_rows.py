"""Rows that a load refused, with the reason: one parquet file per view, which its next load replaces."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moonstore.disk import writing

DATA, DEAD_LETTER = "data", "dead_letter"  # folders in the repository: data/dead_letter/<view>.parquet


class RefusedRows:
    """A parquet file of refused rows; a context manager that replaces the file atomically on success.

    Args:
        path: of the file; it is deleted if no row is refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_suffix(".parquet.tmp")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> RefusedRows:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is not None:
            with contextlib.suppress(OSError):  # the footer of a file that is thrown away
                if self._writer is not None:
                    self._writer.close()
            self._temporary.unlink(missing_ok=True)
            return
        with writing(self.path):
            if self._writer is None:
                self.path.unlink(missing_ok=True)
            else:
                self._writer.close()
                self._temporary.replace(self.path)

    def add(self, rows: pa.Table) -> None:
        """Append refused rows, with their column ``reason``."""
        if not rows.num_rows:
            return
        with writing(self.path):
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._temporary, rows.schema)
            self._writer.write_table(rows)
