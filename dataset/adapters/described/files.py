"""The files of one table, read by DuckDB in batches: parquet, csv, JSON lines, each also gzipped.

Text files are read as text: an id keeps its leading zeros, and what a cell means is decided by its column's role
(``described.cells``), never by a guess of the parser. Batches have bounded size, so that a log of any length can be
read. Every batch knows its file and its first row, and so does every error.
"""

from __future__ import annotations

import atexit
import codecs
import csv
import gzip
import io
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.adapters.described.converted import XML, as_lines
from dataset.adapters.described.nested import DEPTH, Kind, kinds_of, lists_of, rows
from dataset.adapters.described.sql import literal
from dataset.adapters.source import NEXT
from dataset.contracts import DataError

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".xml": XML,
    ".inter": "csv",
    ".item": "csv",
    ".user": "csv",
}  # by ending; .gz may follow
PACKED = ".gz"
TABBED = (".tsv", ".tab", ".inter", ".item", ".user")  # the last three are RecBole's
ROWS = 100_000  # of a batch
KEY_ROWS = 100_000  # of a JSON file that are looked at for its keys
ESCAPES = r"[*?\[]"  # what makes a name a pattern


@dataclass(frozen=True)
class Batch:
    """Some rows of a file.

    Attributes:
        file: its path inside the folder.
        start: number of the file's rows before these.
        table: the rows.
    """

    file: str
    start: int
    table: pa.Table


@dataclass(frozen=True)
class Files:
    """The files of one table; every file has the columns that are asked of it.

    Attributes:
        root: the folder.
        patterns: paths inside it, or patterns.
        delimiter: of a csv; None: by the ending.
        quote: of a csv.
        header: whether a csv has one.
        encoding: of text.
        escape: of a csv, what stands before a quote inside a quoted cell; None: another quote.
        each: the list whose parts are the rows, see ``nested``; None: the rows are those of the files.
        separators: of ``each``, if it is a text.
    """

    root: Path
    patterns: tuple[str, ...]
    delimiter: str | None = None
    quote: str = '"'
    header: bool = True
    encoding: str = "utf-8"
    escape: str | None = None
    each: str | None = None
    separators: tuple[str, ...] = ()

    def paths(self) -> list[Path]:
        """The files, those of a pattern by name.

        Raises:
            DataError: a path leaves the folder, or there is no such file.
        """
        return [path for pattern in self.patterns for path in _matching(self.root, pattern)]

    def name(self, path: Path) -> str:
        """The path inside the folder."""
        return path.relative_to(self.root).as_posix()

    def columns(self, path: Path) -> dict[str, str]:
        """Names and DuckDB types of the columns of one file; text columns are VARCHAR.

        Raises:
            DataError: empty or damaged file, or two columns of one name.
        """
        with _errors(self.name(path)), self._readable(path) as plain:
            if format_of(path) == "parquet":
                _refuse_twice(self.name(path), pq.read_schema(plain).names)
            described = connection().execute(f"DESCRIBE SELECT * FROM {self._rows(plain, path)}").fetchall()
        return {str(row[0]): str(row[1]) for row in described}

    def lists(self, path: Path) -> dict[str, list[str]]:
        """The lists in a row of one file, and the fields of the objects in each; see ``nested``."""
        with _errors(self.name(path)), self._readable(path) as plain:
            return {} if format_of(path) == "csv" else lists_of(self._scan(plain, path)[1])

    def batches(
        self, path: Path, select: Sequence[str], rows: int = ROWS, part: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Rows of one file in its order, ``select`` being SQL expressions over its columns.

        Args:
            path: one of ``paths()``.
            select: e.g. ``'CAST("price" AS DOUBLE) AS "price"'``.
            rows: of a batch.
            part: first row and number of rows; None: all.

        Raises:
            DataError: damaged file or broken row; says the file and the line.
        """
        with _errors(self.name(path)), self._readable(path) as plain:
            limit = "" if part is None else f" LIMIT {part[1]} OFFSET {part[0]}"
            sql = f"SELECT {', '.join(select)} FROM {self._rows(plain, path)}{limit}"
            start = 0
            for batch in connection().cursor().sql(sql).to_arrow_reader(rows):
                yield Batch(self.name(path), start, pa.Table.from_batches([batch]))
                start += len(batch)

    def _rows(self, plain: Path, path: Path) -> str:
        """SQL of the rows."""
        scan, kinds = self._scan(plain, path)
        return rows(scan, kinds, _is_json(path), self.each, self.separators)

    def _scan(self, plain: Path, path: Path) -> tuple[str, dict[str, Kind]]:
        """A table function of DuckDB that reads the file, and what its columns hold; see ``nested``."""
        file, hive = literal(str(plain)), "hive_partitioning=true, hive_types_autocast=false"
        if format_of(path) == "parquet":
            scan = f"read_parquet({file}, {hive})"
            return scan, kinds_of(connection(), scan)
        if _is_json(path):
            looked = f"maximum_depth={DEPTH}, sample_size={KEY_ROWS}, map_inference_threshold=-1"
            looked += ", field_appearance_threshold=0, convert_strings_to_integers=false"
            found = kinds_of(connection(), f"read_json({file}, {looked}, hive_partitioning=false)")
            kinds = {name: "JSON" if one.holds_objects else "VARCHAR" for name, one in found.items()}
            columns = ", ".join(f"{literal(name)}: '{kind}'" for name, kind in kinds.items())
            scan = f"read_json({file}, columns={{{columns}}}, format='auto', {hive})"
            return scan, {**kinds_of(connection(), scan), **found}
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in self._names(plain, path))
        quote, escape = literal(self.quote), literal(self.escape or self.quote)
        scan = (
            f"read_csv({file}, columns={{{columns}}}, delim={literal(self._delimiter(path))}, quote={quote}, "
            f"escape={escape}, header={str(self.header).lower()}, auto_detect=false, {hive})"
        )
        return scan, kinds_of(connection(), scan)

    def _names(self, plain: Path, path: Path) -> list[str]:
        """The columns that a csv has."""
        first = self._first_row(plain, path)
        if not self.header:
            return [f"column{number}" for number in range(1, len(first) + 1)]
        names = [name.strip() or f"column{number}" for number, name in enumerate(first, start=1)]
        _refuse_twice(self.name(path), names)
        return names

    def _first_row(self, plain: Path, path: Path) -> list[str]:
        delimiter = self._delimiter(path)
        with opened(plain) as stream:
            text = io.TextIOWrapper(
                stream, "utf-8-sig", errors="replace", newline=""
            )  # DuckDB names a bad line
            lines = (line for line in text if line.strip())
            if len(delimiter) > 1:
                first = next(lines, "").rstrip("\r\n")
                row = first.split(delimiter) if first else None
            elif self.quote:
                escape = self.escape
                row = next(
                    csv.reader(lines, delimiter=delimiter, quotechar=self.quote, escapechar=escape), None
                )
            else:
                row = next(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE), None)
        if not row:
            raise DataError(f"{self.name(path)}: expected a table, found an empty file. Remove it. {NEXT}")
        return row

    def _delimiter(self, path: Path) -> str:
        return self.delimiter or ("\t" if is_tabbed(path) else ",")

    @contextmanager
    def _readable(self, path: Path) -> Iterator[Path]:
        """The file, or of one that DuckDB cannot read a copy: text in UTF-8 without a mark, parquet unpacked."""
        layout, encoding = format_of(path), codecs.lookup(self.encoding).name
        with opened(path) as stream:
            lines = as_lines(path, layout, stream, encoding)
        if lines is not None:
            yield lines
            return
        with opened(path) as stream:
            marked = layout == "json" and stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        as_it_is = (
            not path.name.endswith(PACKED) if layout == "parquet" else encoding == "utf-8" and not marked
        )
        if as_it_is:
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / self.name(path).removesuffix(PACKED)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with opened(path) as stream:
                if layout == "parquet":
                    with copy.open("wb") as unpacked:
                        shutil.copyfileobj(stream, unpacked)
                else:
                    self._decode(path, stream, "utf-8-sig" if encoding == "utf-8" else encoding, copy)
            yield copy

    def _decode(self, path: Path, stream: IO[bytes], encoding: str, copy: Path) -> None:
        with copy.open("w", encoding="utf-8", newline="") as out:
            try:
                shutil.copyfileobj(codecs.getreader(encoding)(stream), out)
            except UnicodeError as error:
                raise DataError(
                    f"{self.name(path)}: expected text in {self.encoding}, found: {error}. "
                    f"Set encoding in moon.toml. {NEXT}"
                ) from None


@cache
def connection() -> duckdb.DuckDBPyConnection:
    """A DuckDB of this process that installs nothing."""
    atexit.register(connection.cache_clear)
    return duckdb.connect(config={"autoinstall_known_extensions": False, "TimeZone": "UTC"})


def format_of(path: Path) -> str | None:
    """ "parquet", "csv", "json" or "xml" by the ending, a last ``.gz`` aside; None: not a table."""
    return FORMATS.get(Path(path.name.lower().removesuffix(PACKED)).suffix)


def is_tabbed(path: Path) -> bool:
    """Whether cells are usually between tabs in a file of this ending."""
    return Path(path.name.removesuffix(PACKED)).suffix in TABBED


def _is_json(path: Path) -> bool:
    return format_of(path) in ("json", XML)


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if it ends in ``.gz``."""
    return gzip.open(path) if path.name.endswith(PACKED) else path.open("rb")  # type: ignore[return-value]


def inside(root: Path, path: Path) -> bool:
    """Whether a path, its links followed, is below the folder."""
    return path.resolve().is_relative_to(root.resolve())


def _matching(root: Path, pattern: str) -> list[Path]:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise DataError(f"files {pattern!r}: expected a path inside {root.name}, found one that leaves it.")
    is_pattern = re.search(ESCAPES, pattern) and not (root / pattern).is_file()
    paths = sorted(path for path in root.glob(pattern) if path.is_file()) if is_pattern else [root / pattern]
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with {pattern}, found no such folder. {NEXT}")
    if not paths or not paths[0].is_file():
        present = sorted(path.name for path in root.iterdir())
        raise DataError(
            f"{pattern}: expected a file in {root}, found {len(present)} others {present[:12]}. "
            f"Put it there or correct moon.toml. {NEXT}"
        )
    for path in paths:
        if not inside(root, path):
            raise DataError(
                f"{pattern}: expected files inside {root}, found {path} that leads out of it. {NEXT}"
            )
        if format_of(path) is None:
            raise DataError(f"{path.name}: expected one of {', '.join(FORMATS)}, each also gzipped. {NEXT}")
    return paths


def _refuse_twice(name: str, columns: Sequence[str]) -> None:
    twice = [column for column, times in Counter(columns).items() if times > 1]
    if twice:
        places = [number for number, column in enumerate(columns, start=1) if column == twice[0]]
        raise DataError(
            f"{name}: expected each column once, found {len(twice)} more than once, first {twice[0]!r} as columns "
            f"{places}. Rename one of them. {NEXT}"
        )


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Say errors of the readers with the file and the line, without the advice that is not ours."""
    try:
        yield
    except DataError as error:
        if str(error).startswith(f"{name}:"):
            raise
        raise DataError(f"{name}: {error}") from error
    except (duckdb.Error, pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        lines = [line.strip().removeprefix("Invalid Input Error: ") for line in str(error).splitlines()]
        ours = ("Possible", "*", "file =", "delimiter =", "Try setting")
        said = [line for line in lines if line and not line.startswith(ours)]
        kept = said[:3] if "CSV Error" in str(error) else said[:1]
        where = re.sub(r' in file "[^"]*"', "", "; ".join(kept))
        cure = "Correct the row" if "ine" in where else "Correct the file"
        if isinstance(error, UnicodeDecodeError) or "unicode" in str(error):
            cure = 'Set encoding in moon.toml, e.g. encoding = "cp1252"'
        raise DataError(f"{name}: expected a table, found: {where.rstrip('.')}. {cure}. {NEXT}") from error
