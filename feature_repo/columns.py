"""The columns of a frame and their defaults, shared by offline and online reads so that both agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# feature -> (view, type, default)
Features = dict[str, tuple[str, pa.DataType, Any]]
USER_FEATURES: Features = {
    "age_band": ("user_profile", pa.int64(), -1),
    "segment": ("user_profile", pa.string(), ""),
}
ITEM_FEATURES: Features = {
    "category": ("item_profile", pa.string(), ""),
    "category_top": ("item_profile", pa.string(), ""),
    "spu": ("item_profile", pa.int64(), -1),
    "price": ("item_profile", pa.float32(), 0.0),
    "attributes": ("item_profile", pa.list_(pa.string()), []),
    "first_seen_us": ("item_profile", pa.int64(), None),
    "shown_7d": ("item_stats", pa.int64(), 0),
    "positive_7d": ("item_stats", pa.int64(), 0),
    "shown_28d": ("item_stats", pa.int64(), 0),
    "positive_28d": ("item_stats", pa.int64(), 0),
    "shown_all": ("item_stats", pa.int64(), 0),
    "positive_all": ("item_stats", pa.int64(), 0),
    "rate_all": ("item_stats", pa.float32(), 1 / 20),
}
US = 1_000_000


def references(features: Features) -> list[str]:
    """Feast's names of ``features``."""
    return [f"{view}:{name}" for name, (view, _, _) in features.items()]


def user_columns(stored: Mapping[str, pa.Array], known_behaviours: np.ndarray) -> dict[str, pa.Array]:
    """The user columns of a frame.

    Args:
        stored: USER_FEATURES, null where the store has nothing.
        known_behaviours: int64, number of behaviours of each user before the request.
    """
    found = pc.is_valid(stored["age_band"])  # never null in its source
    return {
        **_fill(stored, USER_FEATURES),
        "user_events": pa.array(known_behaviours, pa.int64()),
        "user_found": found,
    }


def item_columns(stored: Mapping[str, pa.Array], time_us: np.ndarray) -> dict[str, pa.Array]:
    """The item columns of a frame.

    Args:
        stored: ITEM_FEATURES, null where the store has nothing.
        time_us: int64, time of each row's request, microseconds since 1970 UTC.
    """
    first_seen_us = stored["first_seen_us"]  # never null in its source
    found = pc.is_valid(first_seen_us)
    since = np.where(found, time_us - pc.fill_null(first_seen_us, 0).to_numpy(), 0)
    filled = _fill(stored, {name: spec for name, spec in ITEM_FEATURES.items() if spec[2] is not None})
    return {**filled, "age_s": pa.array(np.maximum(since, 0) / US, pa.float32()), "item_found": found}


def _fill(stored: Mapping[str, pa.Array], features: Features) -> dict[str, pa.Array]:
    return {
        name: pc.coalesce(stored[name].cast(dtype), pa.scalar(default, dtype))
        for name, (_, dtype, default) in features.items()
    }
