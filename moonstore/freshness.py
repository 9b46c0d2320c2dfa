"""Time to live applied to online reads: Feast declares it, but returns rows of any age.

Feast's joins measure age against each entity row's time; online reads measure it against now. ``as_of`` sets another
time, so that an online read returns what a join at that time would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta

import numpy as np
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

US = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Row = tuple[datetime | None, dict[str, Value] | None]
_time: ContextVar[datetime | None] = ContextVar("time", default=None)


@contextmanager
def as_of(time: datetime) -> Iterator[None]:
    """Measure ages against ``time`` instead of now inside the block; as of ``EPOCH`` nothing has expired."""
    token = _time.set(time)
    try:
        yield
    finally:
        _time.reset(token)


def oldest(view: FeatureView) -> datetime | None:
    """The event time before which a row of ``view`` has expired; None: rows never expire."""
    ttl = getattr(view, "ttl", None)  # an on-demand view that is written online has no time to live
    return (_time.get() or datetime.now(UTC)) - ttl if ttl else None


def fresh_rows(view: FeatureView, rows: Sequence[Row]) -> list[Row]:
    """Rows of Feast's reader, expired ones as not found."""
    limit = oldest(view)
    return [
        (None, None) if limit is not None and stamp is not None and stamp < limit else (stamp, values)
        for stamp, values in rows
    ]


def is_fresh(view: FeatureView, event_us: np.ndarray) -> np.ndarray:
    """Mask of event times that have not expired, bool (N)."""
    limit = oldest(view)
    return np.ones(len(event_us), bool) if limit is None else event_us >= (limit - EPOCH) // US


class FreshReads(OnlineStore):
    """Mixin before one of Feast's stores: hides expired rows from its reader."""

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Row]:
        """Stored rows that have not expired."""
        rows = super().online_read(config, table, entity_keys, requested_features)  # type: ignore[safe-super]
        return fresh_rows(table, rows)
