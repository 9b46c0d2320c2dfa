"""Small SQLite databases of a store, which every process of the store reads and writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from moonstore.errors import StoreError

WAIT_S = 5.0  # for another process that is writing


@contextmanager
def opened(path: Path, table: str, holds: str, advice: str = "") -> Iterator[sqlite3.Connection]:
    """A connection to the database at ``path``, which is made if it is not there.

    Args:
        path: of the file.
        table: SQL that makes its table where there is none.
        holds: what it holds, for the error message.
        advice: sentences that end the message.

    Raises:
        StoreError: it is damaged, locked for too long, or cannot be opened.
    """
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)) as connection:
            connection.execute(table)  # also after a kill between the making of the file and of the table
            yield connection
    except sqlite3.Error as error:
        raise StoreError(f"{path}: expected {holds}, found: {error}.{advice}") from error
