"""Reading the tables of samples (``dataset.adapters.samples``): labels, refused rows, and whose a column is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import NO_CLOCK, paths, refusals, under
from dataset.adapters.samples import SampleLog, Samples
from dataset.adapters.source import NEXT, read_wide_parquet
from dataset.contracts import IMAGES, ITEMS, JUDGEMENTS, QUERIES, TIME, USERS, DataError, Tables
from dataset.given import PART
from dataset.sieve import Column

LABEL = "label"  # what the label is called once it is read


def read_part(path: Path, part: str, schema: pa.Schema, labels: Sequence[str]) -> pa.Table:
    """The samples of one part: the columns of ``schema``, LABEL bool, PART, and the others of the file.

    Args:
        path: a parquet file.
        part: one of ``requests.PARTS``.
        schema: columns that must be there.
        labels: what the label may be called; 1 is a click, 0 is none, anything else is no label.

    Raises:
        DataError: a column is missing, or none of the labels is there, or it holds no numbers.
    """
    table = read_wide_parquet(path, schema)
    label = next((name for name in labels if name in table.column_names), None)
    if label is None:
        raise DataError(
            f"{path}: expected a label in the column {' or '.join(labels)}, found {table.column_names}. Name it so. "
            f"{NEXT}"
        )
    try:
        clicked = clicks(table.column(label).cast(pa.float64()))
    except pa.ArrowException:
        raise DataError(
            f"{path}: expected numbers in the column {label}, found {table.column(label).type}. {NEXT}"
        ) from None
    return (
        table.drop_columns([label])
        .append_column(LABEL, clicked)
        .append_column(PART, pa.repeat(part, len(table)))
    )


def clicks(label: Column) -> Column:
    """Whether each sample was a click, bool: 1 of those whose label is 1, null where it is neither 0 nor 1."""
    return pc.if_else(pc.is_in(label, pa.array([0, 1], label.type)), pc.equal(label, 1), None)


def placed(shown: pa.Table, user: str, item: str, known: str) -> tuple[Samples, pa.Table]:
    """The samples of these columns, and as QUARANTINE entries those that lack one of the numbers or a label."""
    needed = [user, item, known, LABEL]
    missing = np.any([shown.column(name).is_null().to_numpy() for name in needed], axis=0)
    missing |= pc.less(shown.column(known).fill_null(0), 0).to_numpy()
    rows = np.flatnonzero(missing)
    said = [str(row) for row in shown.select(needed).take(pa.array(rows)).to_pylist()]
    refused = refusals(
        "events", "sample that lacks a number or a label of 0 or 1", zip(rows.tolist(), said, strict=True)
    )
    shown = shown.filter(pa.array(~missing)).combine_chunks()
    users, items, before, clicked = (shown.column(name).to_numpy() for name in needed)
    return Samples(users, items, before, clicked, shown.drop_columns(needed)), refused


def owned(extra: Mapping[str, pa.Table], samples: Samples) -> tuple[dict[str, pa.Table], Samples]:
    """Move the columns of samples that say the same of an item, or of a user, in all its rows to the item or user.

    Args:
        extra: "item" and "user" -> its id and columns; of a column that is there already, theirs stays.
        samples: with columns of the source's own in their context.

    Returns:
        ``extra`` with the columns, and the samples with what is left: what is so at the request.
    """
    keys = {"item": samples.item, "user": samples.user}
    moved, context = dict(extra), samples.context
    for name in [name for name in context.column_names if name != PART]:
        entity = next((one for one, key in keys.items() if _says_one_thing(context.column(name), key)), None)
        if entity is None:
            continue
        values, context = context.column(name), context.drop_columns([name])
        if name not in moved[entity].column_names:
            row = pc.index_in(moved[entity].column(f"{entity}_id"), value_set=pa.array(keys[entity]))
            moved[entity] = moved[entity].append_column(name, values.take(row))
    return moved, Samples(samples.user, samples.item, samples.known, samples.clicked, context)


def _says_one_thing(column: pa.ChunkedArray, key: np.ndarray) -> bool:
    """Whether the column has one value for each key."""
    if pa.types.is_nested(column.type):
        return False
    distinct = pa.table({"key": key, "value": column}).group_by(["key", "value"]).aggregate([])
    return len(distinct) == len(np.unique(key))


def items_of(
    item_id: Column,
    external: Column,
    category: Column | None = None,
    more: Mapping[str, Column] | None = None,
) -> pa.Table:
    """ITEMS of which the source does not say since when they are there.

    Args:
        item_id: int64.
        external: the source's own ids, text.
        category: text, one level; None: the source has none.
        more: other columns of ITEMS.
    """
    columns = {
        "item_id": item_id,
        "external_id": external,
        "spu": item_id,
        "first_seen": _since(len(item_id)),
        **(more or {}),
    }
    return under(ITEMS, columns if category is None else {**columns, "category": paths([category])})


def users_of(user_id: Column, external: Column) -> pa.Table:
    """USERS of which the source does not say since when they are there; of a repeated one the first counts."""
    _, first = np.unique(np.asarray(user_id), return_index=True)
    rows = pa.array(first)
    users = {
        "user_id": user_id.take(rows),
        "external_id": external.take(rows),
        "first_seen": _since(len(first)),
    }
    return under(USERS, users)


def dataset_of(
    name: str,
    source: str,
    items: pa.Table,
    users: pa.Table,
    log: SampleLog,
    extra: Mapping[str, pa.Table],
    refused: pa.Table,
    features: Mapping[str, Sequence[str]],
    vectors: str | None = None,
    images: pa.Table | None = None,
    said: Sequence[str] = (),
) -> tuple[Tables, dict[str, Any]]:
    """The tables and the configuration of a dataset made of samples, split as the source says.

    Args:
        name, source: of the configuration.
        items, users: ITEMS and USERS.
        log: events and context.
        extra: "item" and "user" -> id and columns that no table has a place for.
        refused: QUARANTINE entries of rows that became no samples.
        features: "item" and "user" -> columns of ``extra`` that models read; one that is not there is left out.
        vectors: the column of items that stands in for the encoder; None: the encoder makes their vectors.
        images: IMAGES; None: there are none.
        said: sentences for whoever imports, besides those of the log.
    """
    kept = {entity: table for entity, table in extra.items() if table.num_columns > 1}
    on = {entity: [one for one in features[entity] if one in kept[entity].column_names] for entity in kept}
    tables = Tables(
        items=items,
        images=IMAGES.empty_table() if images is None else images,
        users=users,
        events=log.events,
        queries=QUERIES.empty_table(),
        judgements=JUDGEMENTS.empty_table(),
        quarantine=pa.concat_tables([refused, log.quarantine]),
        extra={**kept, "event": log.context},
    )
    config = {"name": name, "source": source, "protocol": "given", "features": on, "said": [*log.said, *said]}
    return tables, config if vectors is None else {**config, "vectors": vectors}


def vectors_of(table: pa.Table) -> list[str]:
    """The columns that hold a list of fractions."""
    kinds = {one.name: one.type for one in table.schema}
    types = pa.types
    return [
        name
        for name, kind in kinds.items()
        if (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
        and types.is_floating(kind.value_type)
    ]


def _since(rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(NO_CLOCK, TIME), rows)
