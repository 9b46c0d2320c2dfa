"""Entity keys as bytes, a column at a time, without a protobuf object per entity.

The slow twin is Feast's ``serialize_entity_key``. A key is the number of join keys, their names in order, and their
values: a type, a length and the content of each.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value, ValueType

INT, LONG = struct.Struct("<I"), struct.Struct("<q")
TYPES = {"int64": ValueType.INT64, "string": ValueType.STRING}
VERSION = 3  # of the serialization; earlier ones are written by nobody


def of_arrow(names: Sequence[str], columns: Sequence[pa.Array], kinds: Sequence[str]) -> list[bytes] | None:
    """Serialized keys of N entities; None: of another type than int64 and text.

    Args:
        names: join keys.
        columns: their values, without nulls, of types that cast to ``kinds``.
        kinds: "int64", "string", or what Feast's own code has to serialize.
    """
    if not set(kinds) <= set(TYPES):
        return None
    return serialized(
        names, [column.cast(kind).to_pylist() for column, kind in zip(columns, kinds, strict=True)], kinds
    )


def natives(values: Sequence[Value]) -> list[Any] | None:
    """The integers or texts of a join key; None: there is none, or one of another type or without a value."""
    field = values[0].WhichOneof("val") if values else None
    if field not in ("int64_val", "string_val") or not all(value.HasField(field) for value in values):
        return None
    return [getattr(value, field) for value in values]


def of_natives(columns: dict[str, list[Any]]) -> list[bytes]:
    """Serialized keys of N entities.

    Args:
        columns: join key -> N values, all integers of 64 bits or all texts.
    """
    kinds = ["string" if isinstance(values[0], str) else "int64" for values in columns.values()]
    return serialized(list(columns), list(columns.values()), kinds)


def serialized(names: Sequence[str], columns: Sequence[Sequence[Any]], kinds: Sequence[str]) -> list[bytes]:
    """Serialized keys of entities with these values."""
    order = sorted(range(len(names)), key=lambda place: names[place])
    head = INT.pack(len(names))
    for place in order:
        name = names[place].encode()
        head += INT.pack(ValueType.STRING) + INT.pack(len(name)) + name
    parts = [_parts(columns[place], kinds[place]) for place in order]
    if len(parts) == 1:
        return [head + part for part in parts[0]]
    return [head + b"".join(row) for row in zip(*parts, strict=True)]


def unique(keys: Sequence[bytes]) -> tuple[list[bytes], np.ndarray | None]:
    """The distinct keys, and which of them each one is; None: they are distinct already."""
    place: dict[bytes, int] = {}
    row = [place.setdefault(key, len(place)) for key in keys]
    return list(place), None if len(place) == len(keys) else np.array(row)


def _parts(values: Sequence[Any], kind: str) -> list[bytes]:
    """Type, length and content of each value."""
    first = INT.pack(TYPES[kind])
    if kind == "int64":
        first, pack = first + INT.pack(LONG.size), LONG.pack
        return [first + pack(value) for value in values]
    pack = INT.pack
    return [first + pack(len(text)) + text for text in map(str.encode, values)]
