"""The columns of a frame, the same whether they were read offline (training) or online (serving).

A null means that the store has nothing: no row, a row beyond its time to live, or a row without this value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.signature import Feature

SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def user_columns(
    features: Sequence[Feature], stored: Mapping[str, pa.Array], known_behaviours: np.ndarray
) -> dict[str, pa.Array]:
    """The user columns of a frame.

    Args:
        features: of users.
        stored: their values by name.
        known_behaviours: int64, number of behaviours of each user before the request.

    Returns:
        the features, ``user_events`` int64, the number of behaviours, and ``user_found`` bool: whether the store has
        a feature of the user.
    """
    columns = {one.name: stored[one.name] for one in features}
    events = pa.array(known_behaviours, pa.int64())
    return {**columns, "user_events": events, "user_found": _found(columns, len(events))}


def item_columns(
    features: Sequence[Feature], stored: Mapping[str, pa.Array], count: int
) -> dict[str, pa.Array]:
    """The candidate columns of a frame: the features, and ``item_found`` bool: whether the store has one of them.

    Args:
        features: of candidates.
        stored: their values by name.
        count: number of candidates.
    """
    columns = {one.name: stored[one.name] for one in features}
    return {**columns, "item_found": _found(columns, count)}


def as_read(column: pa.Array, dtype: pa.DataType) -> pa.Array:
    """A column as an online store would return it: of this type, NaN as null, timestamps in whole seconds."""
    if pa.types.is_timestamp(dtype) and pa.types.is_timestamp(column.type):
        ticks = column.cast(pa.timestamp(column.type.unit, "UTC")).cast(pa.int64())
        return pc.divide(ticks, SECOND[column.type.unit]).cast(dtype)  # towards 1970, as Feast does
    column = column.cast(dtype)
    if pa.types.is_floating(dtype):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, dtype), column)
    return column


def nothing(features: Sequence[Feature], count: int) -> dict[str, pa.Array]:
    """Columns of entities of which the store has nothing."""
    return {one.name: pa.nulls(count, one.dtype) for one in features}


def in_frames(features: Sequence[Feature], *roles: str) -> tuple[Feature, ...]:
    """The features of these roles whose values a frame holds: all but vectors of embeddings, kept in an artifact."""
    return tuple(one for one in features if one.role in roles and not one.of_embedding)


def by_view(features: Sequence[Feature]) -> dict[str, list[Feature]]:
    """The features of each view."""
    views: dict[str, list[Feature]] = {}
    for one in features:
        views.setdefault(one.view, []).append(one)
    return views


def _found(columns: Mapping[str, pa.Array], count: int) -> pa.Array:
    found = np.zeros(count, bool)
    for column in columns.values():
        found |= pc.is_valid(column).to_numpy(zero_copy_only=False)
    return pa.array(found)
