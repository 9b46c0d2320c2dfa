"""What the values of a column look like, from a sample of the rows."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset.adapters.described.cells import DIGITS, GROUPS, PLAIN, SUFFIXES
from dataset.adapters.described.files import PACKED, format_of
from dataset.adapters.described.sql import quoted
from dataset.adapters.guessing.clock import Clock, clock
from dataset.adapters.guessing.folder import Found, sampled

SAMPLE = 20_000  # rows of a table
MOST_DIGITS = 17  # characters of a fraction that a float holds
STRETCHES = 5  # of a file, when it has more rows
WORDS_FOR_NOTHING = (
    "NULL",
    "null",
    "\\N",
    "NA",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "None",
    "none",
    "-",
    "?",
    "unknown",
    "Unknown",
)
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")


@dataclass
class Profile:
    """A column of the sample.

    Attributes:
        name: of the column.
        kind: its DuckDB type.
        cells: values that are there; numbers and times as they are, all else as text.
        rows: of the sample.
        missing: words for "no value" that were found.
        aligned: a cell for every row of the sample, None where there is no value.
    """

    name: str
    kind: str
    cells: list[Any]
    rows: int
    missing: list[str] = field(default_factory=list)
    clock: Clock | None = None
    aligned: list[Any] = field(default_factory=list)

    @cached_property
    def distinct(self) -> int:
        """Number of values."""
        return len(self.values)

    @cached_property
    def values(self) -> Counter[str]:
        """How often each value is there, as text."""
        return Counter(as_id(one) for one in self.cells if not isinstance(one, bytes | list))

    @property
    def full(self) -> float:
        """Share of the rows that have a value."""
        return len(self.cells) / max(self.rows, 1)

    @property
    def unique(self) -> float:
        """Distinct values per value."""
        return self.distinct / max(len(self.cells), 1)

    @cached_property
    def is_number(self) -> bool:
        """Whether all values are numbers."""
        if self.kind != "VARCHAR":
            return self.kind.startswith(
                ("TINYINT", "SMALLINT", "INT", "BIGINT", "U", "HUGE", "FLOAT", "DOUBLE", "DECIMAL")
            ) and (self.kind != "UUID")
        return bool(self.cells) and all(NUMBER.fullmatch(str(one)) for one in self.cells[:2000])

    @cached_property
    def numbers(self) -> list[float]:
        """The values as numbers; those that are none left out."""
        found = []
        for one in self.cells:
            try:
                found.append(
                    _amount(one) if isinstance(one, str) and not NUMBER.fullmatch(one) else float(one)
                )
            except (TypeError, ValueError):
                continue
        return found

    @cached_property
    def is_money(self) -> bool:
        """Whether all values are numbers, perhaps with a currency."""
        return self.is_number or (
            bool(self.cells) and all(MONEY.fullmatch(_plain(str(one))) for one in self.cells[:2000])
        )

    @cached_property
    def is_text(self) -> bool:
        """Whether the values are words."""
        return self.kind == "VARCHAR" and not self.is_number and bool(self.cells)

    @cached_property
    def is_bytes(self) -> bool:
        """Whether the values are encoded pictures."""
        found = [one for one in self.cells[:20] if isinstance(one, bytes)]
        return bool(found) and sum(one.startswith(MAGIC) for one in found) >= len(found) / 2

    @cached_property
    def length(self) -> float:
        """Mean characters of a text."""
        some = [len(str(one)) for one in self.cells[:2000]]
        return sum(some) / max(len(some), 1)

    @cached_property
    def words(self) -> float:
        """Mean words of a text."""
        some = [str(one).count(" ") + 1 for one in self.cells[:2000]]
        return sum(some) / max(len(some), 1)

    @cached_property
    def is_id(self) -> bool:
        """Whether the values could be ids: short, mostly without spaces, no fractions, no times written out."""
        if self.kind in ("FLOAT", "DOUBLE") or self.kind.startswith("DECIMAL"):
            return bool(self.cells) and all(float(one).is_integer() for one in self.cells[:2000])
        if (
            self.kind.startswith(("TIMESTAMP", "DATE", "TIME", "BOOL", "BLOB"))
            or "[" in self.kind
            or "(" in self.kind
        ):
            return False
        if not self.cells or self.length > 80 or self.words > 1.3:
            return False
        if not self.is_number:
            return True
        fractions = [one for one in map(as_id, self.cells[:2000]) if "." in one]
        return all(
            len(one) > MOST_DIGITS for one in fractions
        )  # more than a float holds: two numbers by a dot

    def example(self, most: int = 3) -> str:
        """The first values."""
        seen = list(dict.fromkeys(str(one)[:30] for one in self.cells if not isinstance(one, bytes)))[:most]
        return ", ".join(seen)


NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*")
SIGNS = "".join(
    sign for sign in map(chr, range(0x10000)) if unicodedata.category(sign) == "Sc"
)  # of currencies
MONEY = re.compile(
    rf"\s*(?:(?:[A-Z]{{0,3}}[{SIGNS}]|[A-Z]{{3}}|Rs\.?)\s?)?(-?[0-9][0-9.,]*)(?:\s?(?:[{SIGNS}]|{SUFFIXES}))?\s*"
)
THOUSANDS = re.compile(r"-?\d{1,3}((,\d{3})+(\.\d+)?|(\.\d{3})+,\d+)")  # 1,299.00; 1.299,00


def _plain(text: str) -> str:
    """With the digits of other scripts as these, and no space between thousands."""
    return re.sub(GROUPS, r"\1", text.translate(str.maketrans(DIGITS, PLAIN)))


def _amount(text: str) -> float:
    """The number of an amount of money, as the importer reads it (``described.cells``).

    Raises:
        ValueError: it is none.
    """
    money = MONEY.fullmatch(_plain(text))
    amount = money[1] if money else text
    if THOUSANDS.fullmatch(amount):
        comma_ends = amount.rfind(",") > amount.rfind(".") > 0
        amount = amount.replace("." if comma_ends else ",", "")
        amount = amount.replace(",", ".") if comma_ends else amount
    elif re.fullmatch(r"-?\d+,\d{1,2}", amount):
        amount = amount.replace(",", ".")
    return float(amount)


def pairs(one: Profile, other: Profile) -> list[tuple[str, str]]:
    """The values of two columns, row by row, where both have one."""
    both = zip(one.aligned, other.aligned, strict=True)
    return [
        (str(left), str(right)) for left, right in both if left not in (None, "") and right not in (None, "")
    ]


def as_id(value: Any) -> str:
    """A value as the id that the importer would make of it."""
    if isinstance(value, str):
        return re.sub(r"^(\d+)\.0$", r"\1", value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def profiles(found: Found) -> dict[str, Profile]:
    """The profile of every column of a table, from the first rows of some of its files."""
    paths = sampled(found.files.paths())
    parts = []
    for path in paths:
        present = found.files.columns(path)
        select = [quoted(name) for name in found.columns if name in present]
        for part in _places(found, path, max(SAMPLE // len(paths), 1)):
            parts += [batch.table for batch in found.files.batches(path, select, part=part)]
    sample = pa.concat_tables(parts, promote_options="permissive") if parts else None
    return {
        name: _profile(
            name, kind, sample.column(name) if sample is not None and name in sample.column_names else None
        )
        for name, kind in found.columns.items()
    }


def _places(found: Found, path: Path, most: int) -> list[tuple[int, int]]:
    """(first row, rows) of the stretches of a file that are looked at: of parquet some all over it, else its head."""
    if any(kind == "BLOB" for kind in found.columns.values()):
        most = min(most, 2000)
    if format_of(path) != "parquet" or path.name.endswith(PACKED):
        return [(0, most)]
    rows = pq.read_metadata(path).num_rows
    if rows <= most:
        return [(0, most)]
    return [
        (place * (rows - most // STRETCHES) // (STRETCHES - 1), most // STRETCHES)
        for place in range(STRETCHES)
    ]


def _profile(name: str, kind: str, column: pa.ChunkedArray | None) -> Profile:
    cells = [] if column is None else column.to_pylist()
    there = [
        one
        for one in cells
        if one is not None and one == one and not (isinstance(one, str) and not one.strip())
    ]
    profile = Profile(name, kind, there, len(cells), aligned=cells)
    if kind == "VARCHAR":
        nothing = [word for word in WORDS_FOR_NOTHING if profile.values.get(word)]
        rest = [one for one in there if one not in nothing]
        other = Profile(
            name, kind, rest, len(cells), nothing, aligned=[None if one in nothing else one for one in cells]
        )
        if nothing and rest and (other.is_money or _looks_like_time(rest)):
            profile = other
    if column is not None and there and not profile.is_bytes and "[" not in kind:
        profile.clock = clock(name, kind, profile.cells, profile.numbers if profile.is_number else None)
    return profile


def _looks_like_time(cells: list[Any]) -> bool:
    return bool(cells) and all(re.match(r"\d{1,4}[-/.:]\d", str(one)) for one in cells[:200])


def values_of(found: Found, column: str, most_bytes: int = 2**30) -> set[str] | None:
    """All values of a column as ids; None: the table is too large to look at."""
    if found.bytes > most_bytes:
        return None
    values: set[str] = set()
    for path in found.files.paths():
        if column not in found.files.columns(path):
            continue
        name = quoted(column)
        for batch in found.files.batches(path, [f"CAST({name} AS VARCHAR) AS {name}"]):
            values.update(as_id(text) for text in batch.table.column(column).unique().to_pylist() if text)
    return values
