"""The columns of the user's own tables that nothing else reads, as features of items, users and queries.

The dataset keeps them (``dataset.extra``); here each becomes a field of the view ``item_extra``, ``user_extra`` or
``query_extra``, stamped as the entity's profile is. No service reads them but for those that ``moon.toml`` switches
on (``features = [...]``), which join the click model's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile

import pyarrow as pa
import pyarrow.compute as pc
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import (
    Array,
    Bool,
    ComplexFeastType,
    Float32,
    Float64,
    Int64,
    PrimitiveFeastType,
    String,
    UnixTimestamp,
)

from dataset.contracts import TIME
from dataset.extra import TABLES, LeftOver
from feature_repo.entities import item, query, user
from feature_repo.features import FOREVER
from feature_repo.services import CTR
from feature_repo.sources import CONTEXT, DATA, TIMESTAMP, replace_source, source
from moonstore.files import write_json
from run.artifacts import read_json

RECORD = "extra.json"  # beside the sources
BEHAVED = {
    "role": "candidate, behaviour"
}  # a vector of an item says most beside those of the items before it
ENTITIES: dict[str, Entity] = {"item": item, "user": user, "query": query}
EPOCH = pa.scalar(0, pa.int64()).cast(TIME)  # queries have no time of their own
TYPES: dict[str, tuple[PrimitiveFeastType | ComplexFeastType, pa.DataType]] = {
    "Int64": (Int64, pa.int64()),
    "Float64": (Float64, pa.float64()),
    "Bool": (Bool, pa.bool_()),
    "String": (String, pa.string()),
    "UnixTimestamp": (UnixTimestamp, TIME),
    "Strings": (Array(String), pa.list_(pa.string())),
    "Vector": (Array(Float32), pa.list_(pa.float32())),
}  # name in the record -> type of the field, of the source


@dataclass(frozen=True)
class Extra:
    """A left-over column as a feature.

    Attributes:
        entity: "item", "user" or "query".
        column: its name in the user's table.
        field: its name in the store.
        type: one of TYPES.
        is_on: whether a service reads it.
    """

    entity: str
    column: str
    field: str
    type: str
    is_on: bool

    @property
    def view(self) -> str:
        """The view that it is in."""
        return view_name(self.entity)


def view_name(entity: str) -> str:
    """The view of the left-over columns of an entity."""
    return f"{entity}_extra"


def write_extras(folder: Path, left_over: LeftOver, tables: Mapping[str, pa.Table]) -> None:
    """Write the sources of left-over columns, and the record of them, into the data folder of a store.

    Args:
        folder: of the sources.
        left_over: of the dataset.
        tables: its "items", "users" and "queries", which say when each was first seen.
    """
    if left_over.context is not None:
        copyfile(left_over.context, folder / CONTEXT)
    found: list[Extra] = []
    for entity, table in left_over.tables.items():
        key = f"{entity}_id"
        extras = _named(entity, table.drop_columns([key]), left_over.on.get(entity, ()))
        row = pc.index_in(table.column(key), value_set=tables[TABLES[entity]].column(key))
        columns = {one.field: _stored(table.column(one.column), one.type) for one in extras}
        stamps = _stamps(tables[TABLES[entity]], entity).take(row)
        replace_source(
            folder / f"{view_name(entity)}.parquet",
            pa.table({key: table.column(key), **columns, TIMESTAMP: stamps}),
        )
        found += extras
    if found:
        write_json(folder / RECORD, [asdict(one) for one in found])


def read_extras(repository: Path) -> tuple[Extra, ...]:
    """The left-over columns of the store at ``repository``; none where its data have none."""
    path = repository / DATA / RECORD
    if not path.exists():
        return ()
    return tuple(Extra(**one) for one in read_json(path, "Run 'moon store' again."))


def extra_views(extras: tuple[Extra, ...]) -> dict[str, FeatureView]:
    """One view for each entity that has left-over columns, by name."""
    views = {}
    for entity in dict.fromkeys(one.entity for one in extras):
        owner = ENTITIES[entity]
        fields = [
            Field(
                name=one.field,
                dtype=TYPES[one.type][0],
                description=f"Column {one.column!r}.",
                tags=BEHAVED if entity == "item" and one.type == "Vector" else {},
            )
            for one in extras
            if one.entity == entity
        ]
        views[view_name(entity)] = FeatureView(
            name=view_name(entity),
            entities=[owner],
            ttl=FOREVER,
            schema=[Field(name=owner.join_key, dtype=Int64), *fields],
            source=source(view_name(entity)),
            description="Columns of the user's own tables that have no other role.",
        )
    return views


def switch_on(service: FeatureService, extras: tuple[Extra, ...], views: dict[str, FeatureView]) -> None:
    """Add the features that are on to the click model's service."""
    if service.name != CTR:
        return
    for name, view in views.items():
        on = [one.field for one in extras if one.view == name and one.is_on]
        if on:
            service.feature_view_projections.append(view[on].projection)


def _named(entity: str, table: pa.Table, on: Sequence[str]) -> list[Extra]:
    """The columns under names that a store can have, each once: ``Weight (kg)`` is ``item_weight_kg``."""
    taken = {f"{entity}_id"}
    found = []
    for column in table.schema:
        plain = re.sub(r"[^0-9a-z]+", "_", column.name.lower()).strip("_") or "column"
        plain = plain if plain.startswith(f"{entity}_") else f"{entity}_{plain}"
        name, number = plain, 2
        while name in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name)
        found.append(Extra(entity, column.name, name, _type(table.column(column.name)), column.name in on))
    return found


def _type(column: pa.ChunkedArray) -> str:
    types, kind = pa.types, column.type
    if _is_vector(column):
        return "Vector"
    if types.is_boolean(kind):
        return "Bool"
    if types.is_integer(kind):
        return "Int64"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "Float64"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "UnixTimestamp"
    is_words = types.is_list(kind) and (
        types.is_string(kind.value_type) or types.is_large_string(kind.value_type)
    )
    return "Strings" if is_words else "String"


def _is_vector(column: pa.ChunkedArray) -> bool:
    """Whether the column holds lists of fractions, all of one length."""
    kind, types = column.type, pa.types
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return (
        types.is_floating(kind.value_type) and len(pc.unique(pc.list_value_length(column)).drop_null()) == 1
    )


def _stored(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    if kind == "String" and pa.types.is_nested(column.type):
        return pa.chunked_array(
            [pa.array([None if one is None else str(one) for one in column.to_pylist()], pa.string())]
        )
    return column.cast(TYPES[kind][1], safe=False)


def _stamps(table: pa.Table, entity: str) -> pa.Array | pa.ChunkedArray:
    """When each item or user was first seen; of queries the beginning of time."""
    return pa.repeat(EPOCH, len(table)) if entity == "query" else table.column("first_seen")
