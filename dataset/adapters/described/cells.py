"""What a column of a file means in SQL: ids, numbers, times, texts, lists; and what is said of a cell that is none.

A cell that is there and is not what its column should hold is an error that names file, row, column and value. What
stands for "no value" is said by ``missing`` in ``moon.toml``.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from dataset.adapters.canonical import FAR_US, SECOND_US
from dataset.adapters.described.description import DAYS, ISO, UNITS, Section
from dataset.adapters.described.files import ROWS, Batch, Files
from dataset.adapters.described.joined import Joined
from dataset.adapters.described.sql import literal, quoted
from dataset.adapters.source import NEXT
from dataset.contracts import DataError

BAD = "not "  # prefix of the columns that hold what a cell was instead
CURRENCY = r"(?:[A-Z]{0,3}\\p{Sc}|[A-Z]{3}|Rs\\.?)".replace("\\\\", "\\")
SUFFIXES = (
    r"[A-Z]{3}|kr\.?|zł|Kč|Ft|руб\.?|р\.|円|元|원|ر\.س|د\.إ|ج\.م"  # currencies in letters, behind the amount
)
GROUPS = "[ \u00a0\u202f'’]([0-9]{3})"  # thousands apart: "1 299,00", "1'299.00"
MONEY = rf"^\s*(?:{CURRENCY}\s?)?(-?[0-9][0-9.,]*)(?:\s?(?:\p{{Sc}}|{SUFFIXES}))?\s*$"
DIGITS = "０１２３４５６７８９．，٠١٢٣٤٥٦٧٨٩٫٬۰۱۲۳۴۵۶۷۸۹०१२३४५६७८९"  # full-width, Arabic, Persian, Indian
PLAIN = "0123456789.,0123456789.,01234567890123456789"  # the same
ZONED = r"\d:\d\d(:\d\d(\.\d+)?)?\s*(Z|z|UTC|GMT|[+-]\d\d(:?\d\d)?)\s*$"
LISTED = "[]"  # category_separator of cells that are lists
LIST_PART = r"""\"[^\"]*\"|'[^']*'"""
NAMED_PART = rf"""["'](?:name|title|label)["']\s*:\s*({LIST_PART})"""
MOST_DAYS = 1_000_000  # beyond every bound of dates
EXACT = 2**53  # larger floats skip integers


@dataclass(frozen=True)
class Cell:
    """One column of a batch.

    Attributes:
        name: in the batch.
        sql: over the columns of the file.
        column: which column of the file a bad value is in.
        raw: SQL of the value as it is written; empty: every value will do.
        expects: what it must be, in words.
    """

    name: str
    sql: str
    column: str = ""
    raw: str = ""
    expects: str = ""


@dataclass(frozen=True)
class Reader:
    """Makes cells from the columns of one file.

    Attributes:
        section: of ``moon.toml``.
        types: column -> DuckDB type.
    """

    section: Section
    types: dict[str, str]

    def raw(self, column: str) -> str:
        """The value; null where it is empty, only spaces, or one of the texts that mean "no value"."""
        name, kind = quoted(column), self.types[column]
        if kind in ("FLOAT", "DOUBLE"):
            return f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END"
        if kind != "VARCHAR":
            return name
        said = "".join(f" OR {name} = {literal(text)}" for text in self.section.missing)
        return f"CASE WHEN trim({name}) = ''{said} THEN NULL ELSE {name} END"

    def text(self, name: str, column: str | None) -> Cell:
        """A text; lists are joined by commas."""
        if column is None:
            return Cell(name, "CAST(NULL AS VARCHAR)")
        if self.types[column].endswith("[]"):
            return Cell(name, f"array_to_string({quoted(column)}, ', ')")
        text = f"CAST({self.raw(column)} AS VARCHAR)"
        if self.types[column] != "VARCHAR":
            return Cell(name, text)
        listed = f"array_to_string(json_extract_string({text}, '$[*]'), ' ')"  # JSON lines have lists of paragraphs
        return Cell(
            name, f"CASE WHEN {text} LIKE '[\"%\"]' AND json_valid({text}) THEN {listed} ELSE {text} END"
        )

    def id(self, name: str, column: str | None) -> Cell:
        """An id as text: whole numbers lose the fraction that another program gave them."""
        if column is None:
            return self.text(name, None)
        raw, kind = self.raw(column), self.types[column]
        sql = f"CAST({raw} AS VARCHAR)"
        if kind == "VARCHAR":
            sql = f"regexp_replace({sql}, '^([0-9]+)[.]0$', '\\1')"
        if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
            number = f"CAST({raw} AS DOUBLE)"
            whole = f"{number} = floor({number}) AND abs({number}) < {EXACT}"
            sql = f"CASE WHEN {whole} THEN CAST(CAST({number} AS BIGINT) AS VARCHAR) END"
        return Cell(name, sql, column, raw, "an id, a text or a whole number")

    def number(self, name: str, column: str | None) -> Cell:
        """A number, float64; amounts of money lose their currency: ``$1,299.00``, ``12,50 EUR``."""
        if column is None:
            return Cell(name, "CAST(NULL AS DOUBLE)")
        raw, kind = self.raw(column), self.types[column]
        if kind != "VARCHAR":
            return Cell(name, f"try_cast({raw} AS DOUBLE)", column, raw, "a number")
        plain = f"translate({raw}, {literal(DIGITS)}, {literal(PLAIN)})"
        plain = rf"regexp_replace({plain}, {literal(GROUPS)}, '\1', 'g')"
        amount = f"regexp_extract({plain}, {literal(MONEY)}, 1)"
        sql = (
            f"coalesce(try_cast({plain} AS DOUBLE), try_cast(CASE "
            rf"WHEN regexp_matches({amount}, '^-?\d{{1,3}}(,\d{{3}})+(\.\d+)?$') THEN replace({amount}, ',', '') "
            rf"WHEN regexp_matches({amount}, '^-?\d{{1,3}}(\.\d{{3}})+,\d+$') "
            f"THEN replace(replace({amount}, '.', ''), ',', '.') "
            rf"WHEN regexp_matches({amount}, '^-?\d+,\d{{1,2}}$') THEN replace({amount}, ',', '.') "
            f"ELSE {amount} END AS DOUBLE))"
        )
        return Cell(name, sql, column, raw, "a number")

    def flag(self, name: str, column: str | None) -> Cell:
        """Yes or no: 0 and 1, false and true."""
        if column is None:
            return Cell(name, "CAST(NULL AS BOOLEAN)")
        raw = self.raw(column)
        whole = f"try_cast(try_cast({raw} AS DOUBLE) AS BIGINT)"
        sql = f"CASE {whole} WHEN 1 THEN true WHEN 0 THEN false END"
        if self.types[column] in ("BOOLEAN", "VARCHAR"):
            sql = f"coalesce(try_cast({raw} AS BOOLEAN), {sql})"
        return Cell(name, sql, column, raw, "0 or 1, false or true")

    def whole(self, name: str, column: str | None) -> Cell:
        """An integer of 32 bits."""
        if column is None:
            return Cell(name, "CAST(NULL AS INTEGER)")
        raw = self.raw(column)
        return Cell(name, f"try_cast(try_cast({raw} AS DOUBLE) AS INTEGER)", column, raw, "a whole number")

    def time(self, name: str, column: str | None, layout: str) -> Cell:
        """A time as int64 microseconds since 1970 UTC, the start of the day if it has no time of day."""
        if column is None:
            return Cell(name, "CAST(NULL AS BIGINT)")
        said = "a time in ISO 8601" if layout == ISO else f"a time, {layout!r}"
        if layout == DAYS:
            said = "a number of days since a start"
        if layout in UNITS and not self._is_time(column):
            said = f"a time, a number of {layout} since 1970"
        return Cell(name, f"epoch_us({self._moment(column, layout)})", column, self.raw(column), said)

    def known(self, name: str, column: str | None, layout: str, whole_days: bool) -> Cell:
        """When an event of that time could first be used, in microseconds.

        A second later; or at the end of its day, if the source says the day only: an event of the evening must not be
        seen by a request of the morning. A day that is not over yet ends now.
        """
        if column is None:
            return Cell(name, "CAST(NULL AS BIGINT)")
        moment = self._moment(column, layout)
        if not whole_days:
            return Cell(name, f"epoch_us({moment}) + {SECOND_US}")
        zone = literal(self.section.time_zone)
        end = f"epoch_us(timezone({zone}, timezone({zone}, {moment}) + INTERVAL 1 DAY)) - 1"
        now = int(time.time() * SECOND_US)
        return Cell(name, f"greatest(least({end}, {now}), epoch_us({moment}) + 1)")

    def parts(
        self, name: str, columns: str | list[str] | None, separator: str | None, levels: int | None
    ) -> Cell:
        """A list of texts, e.g. a category path; from one column, or from one column per part."""
        if columns is None:
            return Cell(name, "CAST([] AS VARCHAR[])")
        if isinstance(columns, list):
            found = f"[{', '.join(f'CAST({self.raw(column)} AS VARCHAR)' for column in columns)}]"
        else:
            found = self._listed(columns, separator)
        cut = "" if levels is None else f"[1:{levels}]"
        stripped = f"list_transform({found}, lambda part: trim(part))"
        return Cell(name, f"coalesce(list_filter({stripped}, lambda part: part <> ''), []){cut}")

    def _listed(self, column: str, separator: str | None) -> str:
        raw, kind = self.raw(column), self.types[column]
        if kind.endswith("[][]"):
            return f"CAST({raw}[1] AS VARCHAR[])"
        if kind.endswith("[]"):
            return f"CAST({raw} AS VARCHAR[])"
        text = f"CAST({raw} AS VARCHAR)"
        if separator == LISTED:  # JSON, or as Python prints a list; of objects their names
            named = f"regexp_extract_all({text}, {literal(NAMED_PART)}, 1)"
            plain = f"regexp_extract_all({text}, {literal(LIST_PART)})"
            found = f"CASE WHEN regexp_matches({text}, '^\\s*\\[\\s*\\{{') THEN {named} ELSE {plain} END"
            return f"list_transform({found}, lambda part: part[2:-2])"
        return f"[{text}]" if separator is None else f"str_split({text}, {literal(separator)})"

    def _is_time(self, column: str) -> bool:
        return self.types[column].startswith(("TIMESTAMP", "DATE"))

    def _moment(self, column: str, layout: str) -> str:
        """A time with its zone."""
        raw, kind, zone = self.raw(column), self.types[column], literal(self.section.time_zone)
        if kind == "TIMESTAMP WITH TIME ZONE":
            return raw
        if self._is_time(column):
            return f"timezone({zone}, CAST({raw} AS TIMESTAMP))"
        if layout == DAYS:
            days = f"greatest(least(try_cast({raw} AS DOUBLE), {MOST_DAYS}), {-MOST_DAYS})"
            return f"timezone({zone}, TIMESTAMP '2000-01-01' + to_days(CAST(floor({days}) AS INTEGER)))"
        if layout in UNITS:
            ticks = f"try_cast({raw} AS DECIMAL(38, 6))"
            far = FAR_US * UNITS[layout] // SECOND_US
            bound = f"greatest(least({ticks}, {far}), {-far})"
            us = f"CAST(round({bound} * {SECOND_US // UNITS[layout]}) AS BIGINT)"
            if UNITS[layout] > SECOND_US:
                us = f"CAST(CAST(floor({bound}) AS HUGEINT) // {UNITS[layout] // SECOND_US} AS BIGINT)"
            return f"timezone('UTC', make_timestamp({us}))"
        text = f"CAST({raw} AS VARCHAR)"
        if layout == ISO:
            zoned = f"regexp_matches({text}, {literal(ZONED)})"
            local = f"timezone({zone}, try_cast({text} AS TIMESTAMP))"
            offset = rf"regexp_replace({text}, '\s*([+-]\d\d):?(\d\d)\s*$', '\1:\2')"  # "+0200" is "+02:00"
            return f"CASE WHEN {zoned} THEN try_cast({offset} AS TIMESTAMPTZ) ELSE {local} END"
        parsed = f"try_strptime({text}, {literal(layout)})"
        return parsed if "%z" in layout or "%Z" in layout else f"timezone({zone}, {parsed})"


def read(
    files: Files | Joined,
    section: Section,
    wanted: Sequence[str],
    cells: Callable[[Reader], Sequence[Cell]],
    rows: int = ROWS,
) -> Iterator[Batch]:
    """The typed rows of a table, batch by batch.

    Args:
        files: of the table.
        section: what ``moon.toml`` says of it.
        wanted: the columns that every file must have.
        cells: what to make of them, given the types of one file.
        rows: of a batch.

    Raises:
        DataError: a column is missing, or a cell is not what its column must hold; names file, row and column.
    """
    for path in files.paths():
        types = files.columns(path)
        _require(files.name(path), types, wanted)
        made = cells(Reader(section, types))
        checked = [cell for cell in made if cell.raw]
        select = [f"{cell.sql} AS {quoted(cell.name)}" for cell in made]
        select += [
            f"CASE WHEN ({cell.raw}) IS NOT NULL AND ({cell.sql}) IS NULL THEN CAST({cell.raw} AS VARCHAR) END "
            f"AS {quoted(BAD + cell.name)}"
            for cell in checked
        ]
        for batch in files.batches(path, select, rows):
            for cell in checked:
                _refuse_bad(batch, cell)
            yield Batch(batch.file, batch.start, batch.table.select([cell.name for cell in made]))


def _require(file: str, types: dict[str, str], wanted: Sequence[str]) -> None:
    missing = [column for column in dict.fromkeys(wanted) if column not in types]
    if not missing:
        return
    near = difflib.get_close_matches(missing[0].lower(), [name.lower() for name in types], n=1, cutoff=0.6)
    hint = next((f" Did you mean {name!r}?" for name in types if near and name.lower() == near[0]), "")
    raise DataError(
        f"{file}: expected the column{'s' if missing[1:] else ''} {', '.join(map(repr, missing[:5]))} that moon.toml "
        f"names, found {list(types)[:20]}.{hint} Correct moon.toml or the file. {NEXT}"
    )


def _refuse_bad(batch: Batch, cell: Cell) -> None:
    found = batch.table.column(BAD + cell.name)
    if found.null_count == len(found):
        return
    rows = pc.indices_nonzero(found.is_valid())
    value = found[rows[0].as_py()].as_py()
    others = (
        f" and {len(rows) - 1} more in the rows up to {batch.start + len(found)}" if len(rows) > 1 else ""
    )
    raise DataError(
        f"{batch.file}: row {batch.start + rows[0].as_py() + 1}, column {cell.column!r}: expected {cell.expects}, "
        f"found {value[:80]!r}{others}. Correct it, or say that it means no value: missing = [{value[:80]!r}] in "
        f"moon.toml. {NEXT}"
    )
