"""Columns of a source that no canonical table has a place for, kept beside the id of their entity.

They are files of the dataset artifact, ``extra_item.parquet`` and so on, and their Arrow types are in its
configuration, under "extra". What ``moon.toml`` switches on of them is there under "features". A column of vectors
may stand in for the encoder: that of items which the configuration names under "vectors". Where it says GONE, a
column of that name holds since when each item is not to be had, null while it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.contracts import TIME, DataError
from dataset.log import microseconds
from dataset.upsert import upserted
from run.artifacts import Artifact

TABLES = {
    "item": "items",
    "user": "users",
    "query": "queries",
    "event": "events",
}  # entity -> canonical table
GONE = "gone"  # timestamps, UTC


@dataclass(frozen=True)
class LeftOver:
    """The left-over columns of a dataset.

    Attributes:
        tables: entity -> its id and the columns.
        on: entity -> the columns that are switched on.
        context: the file of those of events; None: they have none.
    """

    tables: Mapping[str, pa.Table]
    on: Mapping[str, Sequence[str]]
    context: Path | None = None

    @classmethod
    def of(cls, dataset: Artifact) -> LeftOver:
        """Those of an artifact of kind "dataset"."""
        entities = [entity for entity in dataset.config.get("extra", {}) if entity != "event"]
        tables = {entity: pq.read_table(dataset.file(extra_file(entity))) for entity in entities}
        context = dataset.file(extra_file("event")) if "event" in dataset.config.get("extra", {}) else None
        return cls(tables, dataset.config.get("features", {}), context)


NOTHING = LeftOver({}, {})


def extra_file(entity: str) -> str:
    """Name of the file in a dataset artifact: a column ``<entity>_id`` and the left-over ones."""
    return f"extra_{entity}.parquet"


def extra_types(extra: Mapping[str, pa.Table]) -> dict[str, dict[str, str]]:
    """The Arrow type of every left-over column, by entity."""
    return {
        entity: {column.name: str(column.type) for column in table.schema if column.name != f"{entity}_id"}
        for entity, table in extra.items()
    }


def given_vectors(dataset: Artifact) -> tuple[np.ndarray, np.ndarray] | None:
    """The items' vectors that the source gives, where they stand in for the encoder's.

    Args:
        dataset: artifact of kind "dataset".

    Returns:
        item ids, int64 (M) ascending, and float32 (M, D) of unit norm; items whose vector is missing, not finite or
        zero are left out. None: the encoder makes them.

    Raises:
        DataError: the column holds no lists, or lists of several widths.
    """
    name = dataset.config.get("vectors")
    if name is None:
        return None
    table = pq.read_table(dataset.file(extra_file("item")), columns=["item_id", name])
    table = table.filter(table.column(name).is_valid()).combine_chunks()
    lists = table.column(name).combine_chunks()
    kind, types = lists.type, pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    width = pc.unique(pc.list_value_length(lists)).to_pylist() if is_list else []
    if len(width) != 1:
        raise DataError(
            f"{dataset.path}: expected vectors of one width in the column {name!r} of the items, found {kind} of "
            f"lengths {width[:3]}. Correct them, then run 'moon dataset' again."
        )
    ids, first = np.unique(table.column("item_id").to_numpy(), return_index=True)
    values = lists.flatten().cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    matrix = values.reshape(-1, width[0])[first]
    length = np.sqrt(np.einsum("md,md->m", matrix, matrix, dtype=np.float64)).astype(
        np.float32
    )  # squares are large
    usable = np.isfinite(length) & (length > 0)
    return ids[usable], matrix[usable] / length[usable, None]


def gone_since(dataset: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Which items are not to be had any more, and since when; none where the source does not say it.

    Args:
        dataset: artifact of kind "dataset".

    Returns:
        item ids int64 (G), and int64 (G) microseconds since 1970 UTC, ascending.
    """
    if GONE not in dataset.config:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    table = pq.read_table(dataset.file(extra_file("item")), columns=["item_id", GONE])
    table = table.filter(table.column(GONE).is_valid()).sort_by(GONE)
    return table.column("item_id").to_numpy(), microseconds(table.column(GONE).cast(TIME))


def gone_before(dataset: Artifact, moment: datetime) -> np.ndarray:
    """Ids of the items that were not to be had any more at a moment, int64; one that goes at this moment is gone."""
    item_id, since_us = gone_since(dataset)
    return item_id[: np.searchsorted(since_us, pa.scalar(moment, TIME).value, side="right")]


def write_extra(folder: Path, extra: Mapping[str, pa.Table], kept: Mapping[str, pa.Table]) -> None:
    """Write the left-over columns of what is kept.

    Args:
        folder: of the artifact that is being written.
        extra: by entity.
        kept: canonical tables, by name.
    """
    for entity, table in extra.items():
        key = f"{entity}_id"
        is_there = pc.is_in(table.column(key), value_set=kept[TABLES[entity]].column(key))
        pq.write_table(table.filter(is_there), folder / extra_file(entity), compression="zstd")


def merged_extra(old: Mapping[str, pa.Table], new: Mapping[str, pa.Table]) -> tuple[dict[str, pa.Table], int]:
    """Left-over columns of a dataset and of files that are appended; of an entity that has both the new row counts.

    A column that only one of them has is null in the other's rows, and keeps what it says of an entity that has both.

    Returns:
        the columns by entity, and how many rows of entities that were there have changed.

    Raises:
        DataError: a column has two types that no type holds.
    """
    merged, changed = {**old, **new}, 0
    for entity in old.keys() & new.keys():
        parts = [old[entity], new[entity]]
        try:
            both = pa.concat_tables(parts, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"{TABLES[entity]}: expected the left-over columns as they were before, found another type: {error}."
            ) from error
        count = len(old[entity])
        unsaid = [name for name in both.column_names if name not in new[entity].column_names]
        merged[entity], _, rows = upserted(both.slice(0, count), both.slice(count), [f"{entity}_id"], unsaid)
        changed += rows
    changed += sum(len(new[entity]) for entity in new.keys() - old.keys() - {"event"})
    return merged, changed
