"""A table whose rows say less than is needed, beside one that says the rest: lines of orders, and the orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import duckdb
import pyarrow as pa

from dataset.adapters.described.files import ROWS, Batch, Files, connection
from dataset.adapters.described.sql import quoted
from dataset.adapters.source import NEXT
from dataset.contracts import DataError

OTHER, PLACE = "other", "place of the row"


@dataclass(frozen=True)
class Joined:
    """The rows of ``own`` with the columns of the row of ``other`` that has in ``key`` what they have in ``on``.

    It reads as ``Files`` does. Of several rows of ``other`` with one value the first counts; a row of ``own`` without
    any has nulls there. What is kept in memory is ``other``.

    Attributes:
        own, other: the tables.
        on: column of ``own``.
        key: column of ``other``; None: it has the same name.
        prefix: of the names of the columns of ``other``.
    """

    own: Files | Joined
    other: Files
    on: str
    key: str | None = None
    prefix: str = ""

    @property
    def each(self) -> str | None:
        """The list whose parts are the rows of ``own``."""
        return self.own.each

    def paths(self) -> list[Path]:
        """The files of ``own``."""
        return self.own.paths()

    def name(self, path: Path) -> str:
        """The path inside the folder."""
        return self.own.name(path)

    def columns(self, path: Path) -> dict[str, str]:
        """Names and types of the columns of a file and of ``other``; where both have one, that of the file.

        Raises:
            DataError: see ``Files``; or one of them lacks the column that joins them.
        """
        own, other = self.own.columns(path), self._added
        for name, column, found in (
            (self.own.name(path), self.on, own),
            (self.other.patterns[0], self._key, other),
        ):
            if column not in found:
                raise DataError(
                    f"{name}: expected the column {column!r} that {'lookup' if self.prefix else 'join_on'} names, "
                    f"found {list(found)}. Correct moon.toml. {NEXT}"
                )
        return {**{name: other[theirs] for theirs, name in self._new.items()}, **own}

    def batches(
        self, path: Path, select: Sequence[str], rows: int = ROWS, part: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Rows of one file in its order; see ``Files``."""
        own = self.own.columns(path)
        others = [
            f"other.{quoted(theirs)} AS {quoted(name)}"
            for theirs, name in self._new.items()
            if name not in own
        ]
        for batch in self.own.batches(path, [quoted(name) for name in own], rows, part):
            places = pa.array(range(len(batch.table)), pa.int64())
            self._loaded.register("own", batch.table.append_column(PLACE, places))
            both = f"SELECT {', '.join(['own.*', *others])} FROM own LEFT JOIN {OTHER} AS other"
            both += f" ON {_id('own', self.on)} = {_id('other', self._key)}"
            sql = f"SELECT {', '.join(select)} FROM ({both} ORDER BY {quoted(PLACE)})"
            yield Batch(batch.file, batch.start, self._loaded.sql(sql).to_arrow_table())
            self._loaded.unregister("own")

    @property
    def _key(self) -> str:
        return self.key or self.on

    @cached_property
    def _added(self) -> dict[str, str]:
        """The columns of ``other``."""
        return self.other.columns(self.other.paths()[0])

    @property
    def _new(self) -> dict[str, str]:
        """Those columns under their names here; where a prefix says whose they are, the key is not told again."""
        return {name: self.prefix + name for name in self._added if not (self.prefix and name == self._key)}

    @cached_property
    def _loaded(self) -> duckdb.DuckDBPyConnection:
        """A connection whose table OTHER holds ``other``, a row for each value of ``on``."""
        cursor = connection().cursor()
        names = [quoted(name) for name in self._added]
        for number, path in enumerate(self.other.paths()):
            for batch in self.other.batches(path, names):
                cursor.register("part", batch.table)
                start = number == 0 and batch.start == 0
                cursor.execute(
                    "CREATE TEMP TABLE whole AS SELECT * FROM part"
                    if start
                    else "INSERT INTO whole SELECT * FROM part"
                )
                cursor.unregister("part")
        cursor.execute(
            f"CREATE TEMP TABLE {OTHER} AS SELECT * EXCLUDE (row) FROM (SELECT *, rowid AS row FROM whole) "
            f"QUALIFY row_number() OVER (PARTITION BY {quoted(self._key)} ORDER BY row) = 1"
        )
        cursor.execute("DROP TABLE whole")
        return cursor


def _id(table: str, column: str) -> str:
    """An id as text: whole numbers lose the fraction that another program gave them."""
    return f"regexp_replace(CAST({table}.{quoted(column)} AS VARCHAR), '^([0-9]+)[.]0$', '\\1')"
