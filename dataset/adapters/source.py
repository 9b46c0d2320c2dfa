"""Strict readers of source files: required files, required columns, required types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dataset.contracts import DataError
from dataset.sieve import Column
from run.progress import track

NEXT = "Then run 'moon dataset' again."
CSV_BLOCK = 1 << 22  # bytes of a large file; Arrow reads 32 blocks ahead
AT_ONCE = 500_000  # rows of it in memory
ROWS = 1 << 14  # of a parquet file with long lists, read at once


def has_files(folder: Path, names: Sequence[str]) -> bool:
    """Whether all of ``names`` are files in ``folder``."""
    return all((folder / name).is_file() for name in names)


def choose_layout(folder: Path, layouts: dict[str, Sequence[str]], some: bool = False) -> str:
    """The name of the first layout whose files are all in ``folder``.

    Args:
        folder: the source.
        layouts: name -> file names.
        some: any of the files will do: those that are not there have nothing new.

    Raises:
        DataError: no layout is complete; says which files were expected and which were found.
    """
    for layout, names in layouts.items():
        if has_files(folder, names) or (some and any((folder / name).is_file() for name in names)):
            return layout
    expected = " or ".join(f"{', '.join(names)} ({layout})" for layout, names in layouts.items())
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with {expected}, found no such folder. {NEXT}")
    present = sorted(path.name for path in folder.iterdir())
    missing = {name for names in layouts.values() for name in names if not (folder / name).is_file()}
    raise DataError(
        f"{folder}: expected {expected}, found {len(present)} files {present[:12]}; "
        f"missing {sorted(missing)}. Put the missing files there. {NEXT}"
    )


def read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a parquet file that must have exactly the columns of ``schema``, and cast them without loss.

    A file that is not there has no rows: which must be there, ``choose_layout`` says.

    Raises:
        DataError: damaged file, unknown or missing columns, or values of another type.
    """
    if not path.exists():
        return schema.empty_table()
    with _reading_parquet(path):
        table = pq.read_table(path)
    _require_columns(path, table.column_names, schema)
    return pa.table([_cast(path, table.column(field.name), field) for field in schema], schema=schema)


def read_wide_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a parquet file that has the columns of ``schema``, cast without loss, and perhaps others, as they are.

    Raises:
        DataError: damaged file, missing columns, or values of another type.
    """
    with _reading_parquet(path):
        table = pq.read_table(path)
    others = [name for name in table.column_names if name not in schema.names]
    _require_columns(path, [name for name in table.column_names if name in schema.names], schema, others)
    known = {field.name: _cast(path, table.column(field.name), field) for field in schema}
    return pa.table({**known, **{name: table.column(name) for name in others}})


def read_rows(path: Path, schema: pa.Schema, key: str, wanted: Column) -> pa.Table:
    """The rows of a parquet file of the columns of ``schema`` whose ``key`` is wanted, read some at a time.

    Raises:
        DataError: as ``read_parquet``.
    """
    kept = [schema.empty_table()]
    with _reading_parquet(path), pq.ParquetFile(path) as file:
        _require_columns(path, file.schema_arrow.names, schema)
        batches = file.iter_batches(ROWS)
        for batch in track(
            batches, f"read {path.name}", total=-(-file.metadata.num_rows // ROWS), unit="parts"
        ):
            part = pa.Table.from_batches([batch])
            part = part.filter(pc.is_in(part.column(key), value_set=wanted.cast(part.column(key).type)))
            kept.append(pa.table([_cast(path, part.column(one.name), one) for one in schema], schema=schema))
    return pa.concat_tables(kept)


@contextmanager
def _reading_parquet(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: expected a parquet file, found: {_first_line(error)}. Correct the file. {NEXT}"
        ) from error


def read_csv(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a CSV file with a header that must name exactly the columns of ``schema``; no file, no rows.

    Raises:
        DataError: unknown or missing columns, ragged rows, not UTF-8, or values of another type.
    """
    if not path.exists():
        return schema.empty_table()
    with _reading_csv(path, schema) as (parse, convert):
        table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    return pa.table([table.column(field.name) for field in schema], schema=schema)


def csv_batches(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of ``read_csv``, some at a time: for a file that does not fit memory.

    Raises:
        DataError: as ``read_csv``, once the offending rows are reached.
    """
    with _reading_csv(path, schema) as (parse, convert):
        read = pa.csv.ReadOptions(block_size=CSV_BLOCK)
        batches = pa.csv.open_csv(path, read, parse, convert)
        count = -(-path.stat().st_size // CSV_BLOCK)
        for part in together(track(batches, f"read {path.name}", total=count, unit="blocks")):
            yield part.select(schema.names).cast(schema)


def together(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of the batches, AT_ONCE or a little more of them at a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= AT_ONCE:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


@contextmanager
def _reading_csv(
    path: Path, schema: pa.Schema
) -> Iterator[tuple[pa.csv.ParseOptions, pa.csv.ConvertOptions]]:
    """How to read a CSV file of these columns; what goes wrong is said in our words."""
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    convert = pa.csv.ConvertOptions(
        column_types={field.name: field.type for field in schema}, strings_can_be_null=True, null_values=[""]
    )
    try:
        with path.open("rb") as stream:
            header = stream.readline()
        names = pa.csv.read_csv(pa.BufferReader(header), parse_options=parse).column_names
        _require_columns(path, names, schema)
        yield parse, convert
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected CSV of {_types(schema)}, found: {_first_line(error)}. Correct the file. {NEXT}"
        ) from error


def _require_columns(path: Path, names: Sequence[str], schema: pa.Schema, others: Sequence[str] = ()) -> None:
    """Raise unless ``names`` are the columns of ``schema``; ``others``, which may be there, are said as well."""
    unknown = [name for name in names if name not in schema.names]
    missing = [name for name in schema.names if name not in names]
    if unknown or missing or len(set(names)) != len(names):
        raise DataError(
            f"{path}: expected columns {schema.names}, found {[*names, *others]}: "
            f"{len(unknown)} unknown {unknown[:3]}, {len(missing)} missing {missing[:3]}. "
            f"Rename, add or drop them. {NEXT}"
        )


def _cast(path: Path, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        first = [str(value)[:40] for value in column.slice(0, 3).to_pylist()]
        raise DataError(
            f"{path}: expected {field.name} to be {field.type}, found {column.type} such as {first}: "
            f"{_first_line(error)}. Correct the file. {NEXT}"
        ) from error


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
