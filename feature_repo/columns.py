"""The columns of a frame, the same whether they were read offline (training) or online (serving).

A null means that the store has nothing: no row, a row beyond its time to live, or a row without this value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.signature import Feature

# Never null in the sources of the profiles: null says that the store does not know the user or the item.
FOUND = {
    "user": Feature("user_profile__age_band", "user_profile", "age_band", "user", "category", pa.int64()),
    "candidate": Feature(
        "item_profile__first_seen_us", "item_profile", "first_seen_us", "candidate", "timestamp", pa.int64()
    ),
}
SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def user_columns(
    features: Sequence[Feature], stored: Mapping[str, pa.Array], known_behaviours: np.ndarray
) -> dict[str, pa.Array]:
    """The user columns of a frame.

    Args:
        features: of users.
        stored: their values by name, and that of ``FOUND``.
        known_behaviours: int64, number of behaviours of each user before the request.

    Returns:
        the features, ``user_events`` int64, the number of behaviours, and ``user_found`` bool: whether the store
        knows the user.
    """
    columns = {one.name: stored[one.name] for one in features}
    found = pc.is_valid(stored[FOUND["user"].name])
    return {**columns, "user_events": pa.array(known_behaviours, pa.int64()), "user_found": found}


def item_columns(features: Sequence[Feature], stored: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """The candidate columns of a frame: the features, and ``item_found`` bool: whether the store knows the item.

    Args:
        features: of candidates.
        stored: their values by name, and that of ``FOUND``.
    """
    columns = {one.name: stored[one.name] for one in features}
    return {**columns, "item_found": pc.is_valid(stored[FOUND["candidate"].name])}


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
