"""Frames as the ranker reads them today: constants for nulls, and the age of an item at the request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.frame import Frame

COUNTS = [f"{what}_{window}" for window in ("7d", "28d", "all") for what in ("shown", "positive")]
DEFAULTS: dict[str, Any] = {
    "age_band": -1, "segment": "", "category": "", "category_top": "", "spu": -1, "price": 0, "rate_all": 1 / 20,
    **dict.fromkeys(COUNTS, 0),
}  # fmt: skip


def filled(frame: Frame) -> Frame:
    """The frame without nulls, and with ``age_s`` of every candidate, 0 where its first sight is unknown."""
    candidates = filled_table(frame.candidates)
    if "first_seen_us" in candidates.column_names and "age_s" not in candidates.column_names:
        time_us = frame.requests["time"].combine_chunks().cast(pa.int64()).to_numpy(zero_copy_only=False)
        asked_us = np.repeat(time_us, np.diff(frame.offsets))
        seen_us = candidates["first_seen_us"].combine_chunks()
        known = seen_us.is_valid().to_numpy(zero_copy_only=False)
        since = np.where(known, asked_us - pc.fill_null(seen_us, 0).to_numpy(), 0)
        candidates = candidates.append_column("age_s", pa.array(np.maximum(since, 0) / 1e6, pa.float32()))
    return replace(frame, requests=filled_table(frame.requests), candidates=candidates)


def filled_table(table: pa.Table) -> pa.Table:
    """The table with DEFAULTS in the place of nulls."""
    for place, name in enumerate(table.column_names):
        column = table.column(name)
        if name in DEFAULTS and column.null_count:
            table = table.set_column(place, name, column.fill_null(pa.scalar(DEFAULTS[name], column.type)))
    return table
