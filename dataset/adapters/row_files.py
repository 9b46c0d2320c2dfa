"""Row files of a partly known layout, with pictures beside them; used by the MBE importers."""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dataset.adapters.source import NEXT
from dataset.contracts import DataError
from dataset.pictures import shrink

EXACT = 2.0**53  # larger floats skip integers
ENDINGS = (".parquet", ".jsonl", ".json", ".csv")
PARTS = {
    "train": "train",
    "test": "test",
    "eval": "test",
    "valid": "train",
    "val": "train",
    "validation": "train",
}


@dataclass
class Source:
    """The files of a folder, row by row, and the pictures beside them.

    Attributes:
        folder: the folder.
        unread: names of unknown columns.
        missing: number of pictures that rows name but the folder lacks.
    """

    folder: Path
    unread: set[str] = field(default_factory=set)
    missing: int = 0

    def rows(
        self, known: tuple[str, ...], needed: tuple[tuple[str, ...], ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(part, row) of every file, by file name; of each tuple in ``needed`` at least one column must exist."""
        files = sorted(
            path
            for path in (*self.folder.glob("*"), *self.folder.glob("data/*"))
            if path.suffix in ENDINGS and path.is_file()
        )
        if not files:
            found = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else None
            what = "no such folder" if found is None else f"{len(found)} files {found[:12]}"
            raise DataError(
                f"{self.folder}: expected files ending in {', '.join(ENDINGS)}, found {what}. {NEXT}"
            )
        for path in files:
            columns, read = _read(path)
            lacking = [" or ".join(names) for names in needed if not set(names) & set(columns)]
            if lacking:
                raise DataError(
                    f"{path}: expected columns {list(known)}, at least {' and '.join(lacking)}; "
                    f"found {columns}. Rename them. {NEXT}"
                )
            self.unread.update(set(columns) - set(known))
            named = [PARTS[word] for word in re.split(r"[^a-z]+", path.stem.lower()) if word in PARTS]
            for whole in read:
                row = {name: value for name, value in whole.items() if name in known}
                said = str(row.get("split") or "").strip().lower()
                part = PARTS.get(said) if said else (named[0] if named else None)
                if part is None:
                    raise DataError(
                        f"{path}: expected split to be one of {list(PARTS)}, in a column or in the file's "
                        f"name, found {said!r} in the column. {NEXT}"
                    )
                yield part, row

    @cached_property
    def _shelf(self) -> dict[str, Path]:
        """Pictures under images/ by file name, with and without the ending, accents composed (NFC)."""
        files = sorted(path for path in (self.folder / "images").rglob("*") if path.is_file())
        return {_composed(path.stem): path for path in files} | {_composed(path.name): path for path in files}

    def picture(self, value: Any, key: str | None) -> bytes | None:
        """The picture that a cell holds or names; None if it names none, or a missing one (which is counted)."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None or value == "" or value == b"":
            return None
        content = value if isinstance(value, bytes) else self._found(str(value), key)
        if content is None:
            self.missing += 1
            return None
        return shrink(content)

    def _found(self, text: str, key: str | None) -> bytes | None:
        """The bytes for a path, an address or base64 text."""
        if text.startswith("data:"):
            return _base64(text.partition(",")[2])
        name = PureWindowsPath(urlsplit(text).path).name if len(text) < 2048 else ""  # separated by / or \
        if name:
            inside = (self.folder / text).resolve()
            if inside.is_relative_to(self.folder.resolve()) and inside.is_file():
                return inside.read_bytes()
            for candidate in (key, name, unquote(name), PurePosixPath(name).stem):
                if candidate is not None and _composed(candidate) in self._shelf:
                    return self._shelf[_composed(candidate)].read_bytes()
        return None if "://" in text or text.startswith("//") else _base64(text)


def _composed(name: str) -> str:
    """A file name in Unicode form NFC; some file systems decompose accents."""
    return unicodedata.normalize("NFC", name)


def _base64(text: str) -> bytes | None:
    """Decoded base64 that is long enough to be a picture, else None."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if len(content) > 32 else None


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of a data file of any of the endings; text in the file stays text.

    Types are not guessed: an id keeps its leading zeros, and ``007`` or ``NULL`` can be a title.

    Raises:
        DataError: the file is damaged or not a table.
    """
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            return table.column_names, table.to_pylist()
        if path.suffix == ".csv":
            return _read_csv(path)
        rows = _read_json(path)
        if not rows:
            raise ValueError("no rows")
        return list(dict.fromkeys(name for row in rows for name in row.keys())), rows
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{path}: expected a table, found: {first}. Correct the file. {NEXT}") from error


def _read_json(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, or of one line each; with or without a byte order mark."""
    with path.open(encoding="utf-8-sig") as stream:
        first = next((line for line in stream if line.strip()), "").lstrip()
        stream.seek(0)
        if first.startswith("["):
            rows: list[dict[str, Any]] = json.load(stream)
            return rows
        return [json.loads(line) for line in stream if line.strip()]


def id_text(value: Any) -> str | None:
    """A cell's id as the text it is mapped from; None if the cell is empty or not a number (NaN).

    Whole numbers lose the fraction that another program gave them beside a missing value: 7.0 is the id 7.

    Raises:
        DataError: a number that is not whole, or too large for a float to hold exactly.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= EXACT:
            raise DataError(
                f"expected ids as text or whole numbers, found the float {value!r}, which may be rounded. "
                f"Write the ids as text. {NEXT}"
            )
        return str(int(value))
    return str(value)


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    convert = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
    )
    table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    return table.column_names, table.to_pylist()
