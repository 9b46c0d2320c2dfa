"""How a column says times: numbers since 1970, ISO 8601 or a pattern; days or moments; with a zone or without."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from dataset.adapters.described.cells import Reader
from dataset.adapters.described.description import ISO, UNITS, Section
from dataset.adapters.described.files import connection
from dataset.adapters.described.rows import KEY

PATTERNS = (
    "%Y%m%d", "%Y%m%d%H%M%S", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y",
    "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y", "%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M:%S %p", "%d/%m/%y %H:%M",
    "%m/%d/%y %H:%M", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M",
    "%d-%m-%Y", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y %I:%M %p",
    "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z", "%a %b %d %H:%M:%S %z %Y", "%Y-%m-%d %I:%M:%S %p",
    "%d/%b/%Y:%H:%M:%S %z", "%Y-%m",
)  # fmt: skip
FIRST, LATER = datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Clock:
    """How a column says times.

    Attributes:
        layout: as ``time_format``.
        share: of the cells that are such a time, between 1990 and 2100.
        days: whether none has a time of day.
        zoned: whether they say their zone.
        first, last: of the sample.
        rising: share of neighbours that are not earlier than the one before.
        future: how many are later than now.
        twin: the pattern that reads all of them as well, with day and month exchanged.
    """

    layout: str
    share: float
    days: bool
    zoned: bool
    first: datetime
    last: datetime
    rising: float
    future: int
    twin: str | None = None


def clock(name: str, kind: str, cells: list[Any], numbers: list[float] | None) -> Clock | None:
    """How a column says times; None: it does not.

    Args:
        name, kind: of the column, its DuckDB type.
        cells: its values.
        numbers: the same as numbers; None: they are none.
    """
    if kind == "BOOLEAN" or "[" in kind or "(" in kind.replace("DECIMAL(", ""):
        return None
    values = cells[:: len(cells) // 5000 + 1]
    table = pa.table({name: pa.array([str(one) for one in values] if kind == "VARCHAR" else values)})
    layouts = [ISO] if kind.startswith(("TIMESTAMP", "DATE")) else _layouts(kind, cells, numbers)
    found = [one for one in (_read(table, name, kind, layout) for layout in layouts) if one is not None]
    if not found:
        return None
    best = max(found, key=lambda one: (round(one.share, 3), one.rising if one.layout != ISO else 2.0))
    if best.share < 0.9:
        return None
    twins = [
        one.layout
        for one in found
        if one is not best and one.share == best.share and _swapped(one.layout, best.layout)
    ]
    return replace(best, twin=twins[0] if twins else None)


def _layouts(kind: str, cells: list[Any], numbers: list[float] | None) -> list[str]:
    """The layouts that are worth a trial."""
    if numbers:
        middle = sorted(numbers)[len(numbers) // 2]
        whole = [unit for unit, ticks in UNITS.items() if 6e8 * ticks <= middle <= 4.1e9 * ticks]
        dated = ["%Y%m%d"] if 19_900_101 <= middle <= 21_000_101 else []
        return [*whole, *dated, *(["%Y%m%d%H%M%S"] if 19_900_101e6 <= middle <= 21_000_101e6 else [])]
    is_short = kind == "VARCHAR" and all(len(str(one)) <= 40 for one in cells[:50])
    return [ISO, *PATTERNS] if is_short and any(map(str.isdigit, str(cells[0]))) else []


def _read(table: pa.Table, name: str, kind: str, layout: str) -> Clock | None:
    reader = Reader(Section(files=["?"]), {name: kind})
    cell = reader.time(KEY, name, layout)
    cursor = connection().cursor().register("sample", table)
    try:
        times = cursor.sql(f"SELECT {cell.sql} AS us FROM sample").to_arrow_table().column("us").to_pylist()
    except (duckdb.Error, ValueError):  # a pattern that this kind of column cannot be read by
        return None
    low, high = int(FIRST.timestamp() * 1e6), int(LATER.timestamp() * 1e6)
    kept = [one for one in times if one is not None and low <= one < high]
    if not kept:
        return None
    texts = table.column(name).to_pylist()
    now = int(datetime.now(UTC).timestamp() * 1e6)
    days = all(one % 86_400_000_000 == 0 for one in kept) and len(kept) > 1
    zoned = kind == "TIMESTAMP WITH TIME ZONE" or layout in UNITS or "%z" in layout
    if layout == ISO and kind == "VARCHAR":
        zoned = all(
            re.search(r":\d\d(\.\d+)?\s*(Z|z|UTC|GMT|[+-]\d\d(:?\d\d)?)$", str(one)) for one in texts[:500]
        )
    rising = sum(b >= a for a, b in zip(kept, kept[1:], strict=False)) / max(len(kept) - 1, 1)
    return Clock(
        layout, len(kept) / len(times), days, zoned, _moment(min(kept)), _moment(max(kept)), rising,
        sum(one > now for one in kept),
    )  # fmt: skip


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)


def _swapped(one: str, other: str) -> bool:
    return one.replace("%d", "?").replace("%m", "%d").replace("?", "%m") == other
