"""A sieve applies row rules to one table and collects quarantine entries of the refused rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import QUARANTINE, SCHEMAS, TIME, DataError
from dataset.records import EARLIEST, Rule

MAX_REFUSED_FRACTION = 0.5  # above it the source, not the rows, is at fault
AGAIN = "Correct the source or its importer, then run 'moon dataset' again."
TYPES = (
    (pa.types.is_int64, Rule.INT64),
    (pa.types.is_int32, Rule.INT32),
    (pa.types.is_floating, Rule.NUMBER),
    (pa.types.is_string, Rule.TEXT),
    (pa.types.is_list, Rule.TEXTS),
    (pa.types.is_map, Rule.TEXT_MAP),
    (pa.types.is_timestamp, Rule.TIME),
)
VALUE_LENGTH = 200  # characters kept of an offending value
YEAR_US = 365.2425 * 86_400e6

Column: TypeAlias = "pa.Array | pa.ChunkedArray"


@dataclass
class Sieve:
    """One table under its row rules; ``alive`` is the mask of rows not refused so far, ``known`` rows kept before."""

    name: str
    table: pa.Table
    known: pa.Table | None = None
    alive: np.ndarray = field(init=False)
    entries: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.alive = np.ones(self.table.num_rows, dtype=bool)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column over all rows, refused ones included."""
        return self.table.column(name)

    def refuse(self, rule: str, bad: np.ndarray | Column, value: Column) -> None:
        """Refuse the rows, alive so far, that are ``bad``; ``value`` is recorded as the offending value."""
        self.alive = self.alive & ~self._enter(rule, bad, value)

    def empty(self, rule: str, bad: np.ndarray | Column, name: str, value: Column | None = None) -> None:
        """Set column ``name`` to null in the rows, alive so far, that are ``bad``; the rows stay.

        ``value`` is recorded; None: what the column held.
        """
        hit = self._enter(rule, bad, self.column(name) if value is None else value)
        if hit.any():
            column = self.column(name)
            emptied = pc.if_else(pa.array(hit), pa.scalar(None, column.type), column)
            place = self.table.column_names.index(name)
            self.table = self.table.set_column(place, self.table.field(name), emptied)

    def _enter(self, rule: str, bad: np.ndarray | Column, value: Column) -> np.ndarray:
        mask = bad if isinstance(bad, np.ndarray) else pc.fill_null(bad, False).to_numpy(zero_copy_only=False)
        hit = self.alive & mask.astype(bool)
        rows = np.flatnonzero(hit)
        if len(rows):
            columns = [
                pa.repeat(self.name, len(rows)),
                pa.repeat(rule, len(rows)),
                pa.array(rows),
                _text(value.take(pa.array(rows))),
            ]
            self.entries.append(pa.table(columns, schema=QUARANTINE))
        return hit

    def refuse_nulls(self) -> None:
        """Refuse rows with a null in a column that the schema declares not nullable."""
        for column in SCHEMAS[self.name]:
            if not column.nullable:
                found = self.column(column.name)
                self.refuse(Rule.NULL.format(column.name), found.is_null(), found)

    def first_rows(self, *names: str) -> np.ndarray:
        """The first row, of those alive, with the same key (the columns ``names``) as each row, int64.

        A row that is not alive is its own first.
        """
        rows = np.flatnonzero(self.alive)
        key = np.zeros(len(rows), dtype=np.int64)
        for name in names:
            codes = _codes(self.column(name).take(pa.array(rows)))
            key = key * (codes.max(initial=0) + 1) + codes
        first = np.arange(len(self.alive))
        _, place, inverse = np.unique(key, return_index=True, return_inverse=True)
        first[rows] = rows[place[inverse]]
        return first

    def refuse_repeats(self, *names: str) -> None:
        """Refuse duplicates: rows whose key an earlier row, also alive, has."""
        first = self.first_rows(*names)
        repeated = first != np.arange(len(first))
        self.refuse(f"duplicate {' and '.join(names)}", repeated, self.column(names[0]))

    def refuse_times(self, name: str, latest: datetime) -> None:
        """Refuse rows whose time is outside the bounds."""
        column = self.column(name)
        self.refuse(Rule.MOMENT.format(name), pc.invert(sane(column, latest)), column)

    def refuse_negative(self, *names: str) -> None:
        """Refuse negative ids and positions; consumers use them to mark a missing one."""
        for name in names:
            self.refuse(Rule.NEGATIVE.format(name), pc.less(self.column(name), 0), self.column(name))

    def refuse_unknown(self, name: str, parent: Sieve) -> None:
        """Refuse rows whose id in column ``name`` is neither in an alive nor in a known row of ``parent``."""
        self.refuse(f"unknown {name}", self.dangling(name, parent), self.column(name))

    def dangling(self, name: str, parent: Sieve) -> Column:
        """Mask of ids in column ``name`` that are not null and in neither an alive nor a known row of ``parent``."""
        found = pc.is_in(self.column(name), parent.column(name).filter(pa.array(parent.alive)))
        if parent.known is not None:
            found = pc.or_(found, pc.is_in(self.column(name), parent.known.column(name)))
        return pc.and_(self.column(name).is_valid(), pc.invert(found))

    def require_most(self, given: pa.Table) -> None:
        """Raise DataError if more than half of the rows are refused.

        Args:
            given: the importer's own QUARANTINE entries, of rows that are not in the table.
        """
        require_most(self.name, [given, *self.entries], given.num_rows, given.num_rows + self.table.num_rows)

    def kept(self) -> pa.Table:
        """The rows still alive, with the exact schema."""
        table = self.table if self.alive.all() else self.table.filter(pa.array(self.alive))
        return pa.table(table.columns, schema=SCHEMAS[self.name])


def require_most(name: str, entries: list[pa.Table], given: int, total: int) -> None:
    """Raise DataError if more than half of a table's rows are refused.

    Args:
        name: of the table.
        entries: QUARANTINE; the first ``given`` are of rows that are not in the table.
        given: their number.
        total: number of rows, those included.
    """
    refusals = pa.concat_tables([QUARANTINE.empty_table(), *entries])
    refused = given + len(pc.unique(refusals.column("row").slice(given)))
    if refused <= MAX_REFUSED_FRACTION * total:
        return
    counts = Counter(refusals.column("rule").to_pylist()).most_common()
    rules = ", ".join(f"{rows} {rule}" for rule, rows in counts)
    first = refusals.slice(0, 3).select(["row", "rule", "value"]).to_pylist()
    offenders = "; ".join(f"row {entry['row']}: {entry['rule']} {entry['value']}" for entry in first)
    raise DataError(
        f"{name}: expected at most {MAX_REFUSED_FRACTION:.0%} of the rows to break the contract, "
        f"found {refused} of {total} ({rules}). First: {offenders}. {AGAIN}"
    )


def mistyped(column: pa.Field) -> str:
    """The words of the rule that a value of another type breaks."""
    for is_type, rule in TYPES:
        if is_type(column.type):
            return rule.format(column.name)
    return f"{column.name} is not {column.type}"


def sane(times: Column, latest: datetime) -> Column:
    """Whether each time is between 1990 and ``latest``; null where it is null."""
    return pc.and_(
        pc.greater_equal(times, pa.scalar(EARLIEST, TIME)), pc.less_equal(times, pa.scalar(latest, TIME))
    )


def _codes(keys: Column) -> np.ndarray:
    """Number the distinct keys from 0, int64."""
    encoded = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    return encoded.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _moment(us: int | None) -> str | None:
    """A time as text; of one that no calendar has, e.g. milliseconds read as seconds, the year."""
    if us is None:
        return None
    try:
        return str(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us))
    except OverflowError:
        return f"about the year {1970 + us / YEAR_US:.0f}"


def _text(values: Column) -> pa.Array:
    """Values as text, ``null`` for null, at most VALUE_LENGTH characters."""
    if pa.types.is_nested(values.type):
        text = pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())
    elif pa.types.is_binary(values.type):
        text = pa.array([f"{len(value or b'')} bytes" for value in values.to_pylist()], pa.string())
    elif pa.types.is_timestamp(values.type):
        text = pa.array([_moment(us) for us in values.cast(pa.int64()).to_pylist()], pa.string())
    else:
        text = values.cast(pa.string())
    joined = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    return pc.utf8_slice_codeunits(pc.fill_null(joined, "null"), 0, VALUE_LENGTH)
