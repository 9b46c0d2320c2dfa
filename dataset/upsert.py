"""Rows that replace those of the same key, or come after them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import DataError
from dataset.log import pairs


def upserted(
    old: pa.Table, new: pa.Table, keys: Sequence[str], kept: Sequence[str] = ()
) -> tuple[pa.Table, int, int]:
    """Rows of ``new`` in place of those of ``old`` with their key, or after them if the key is new.

    Args:
        old, new: tables of one schema, keys unique in each.
        keys: columns of the key.
        kept: columns that keep their old value where the new row has none (an item that comes without its picture,
            a user of whom the log names only the id); ``first_seen`` always does, what is known is not news.

    Returns:
        the table, the number of rows added, and of rows changed.

    Raises:
        DataError: a key stands for another ``external_id`` than before.
    """
    place = _places(old, new, keys)
    is_old = place >= 0
    before, after = old.take(pa.array(place[is_old])), new.filter(pa.array(is_old))
    _refuse_other_names(before, after, keys)
    for name in kept:
        both = (before, after) if name == "first_seen" else (after, before)
        column = pc.coalesce(*(table.column(name) for table in both))
        after = after.set_column(after.column_names.index(name), after.field(name), column)
    differs = _differs(before, after)
    row = np.arange(len(old))
    row[place[is_old][differs]] = len(old) + np.flatnonzero(differs)
    together = pa.concat_tables([old, after, new.filter(pa.array(~is_old))])
    rows = np.append(row, len(old) + len(after) + np.arange(int((~is_old).sum())))
    table = old if len(rows) == len(old) and not differs.any() else together.take(pa.array(rows))
    return table.combine_chunks(), int((~is_old).sum()), int(differs.sum())


def _places(old: pa.Table, new: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """The row of ``old`` with the key of each row of ``new``, -1: there is none; int64."""
    columns = [pa.concat_tables([table.select([key]) for table in (old, new)]).column(0) for key in keys]
    if len(columns) == 1:
        known, asked = columns[0].slice(0, len(old)), columns[0].slice(len(old))
    else:
        code = pa.array(pairs(*(column.to_numpy() for column in columns)))
        known, asked = code.slice(0, len(old)), code.slice(len(old))
    found = pc.index_in(asked, value_set=known)
    return np.asarray(pc.fill_null(found, -1).to_numpy()).astype(np.int64)


def _refuse_other_names(before: pa.Table, after: pa.Table, keys: Sequence[str]) -> None:
    if "external_id" not in before.column_names:
        return
    was, now = before.column("external_id"), after.column("external_id")
    other = np.flatnonzero(pc.fill_null(pc.not_equal(was, now), False).to_numpy())
    if len(other):
        first = ", ".join(f"{was[row].as_py()!r} and {now[row].as_py()!r}" for row in other[:3].tolist())
        raise DataError(
            f"{keys[0]}: expected each id to stand for one name of the source, found {len(other)} that stand for "
            f"two: {first}. Write them as before, then run 'moon dataset --append' again."
        )


def _differs(before: pa.Table, after: pa.Table) -> np.ndarray:
    """Whether rows with the same key differ, bool."""
    differs = np.zeros(len(before), bool)
    for name in before.column_names:
        was, now = before.column(name), after.column(name)
        if pa.types.is_nested(was.type):
            pair = zip(was.to_pylist(), now.to_pylist(), strict=True)
            differs |= np.fromiter((one != other for one, other in pair), bool, len(before))
        else:
            same = pc.or_(pc.fill_null(pc.equal(was, now), False), pc.and_(was.is_null(), now.is_null()))
            differs |= ~same.to_numpy()
    return differs
