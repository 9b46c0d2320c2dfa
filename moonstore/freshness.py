"""Time to live at reading: Feast declares it, and then serves a row of any age.

Feast's joins measure it against each row's own time; online the only time it knows is now. A service that answers as
of another time says so with ``as_of``, and reads online what a join at that time would give.
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
    """Reads inside measure ages against ``time``, not now; as of ``EPOCH`` nothing has expired."""
    token = _time.set(time)
    try:
        yield
    finally:
        _time.reset(token)


def oldest(view: FeatureView) -> datetime | None:
    """The event time before which a row of ``view`` is as good as none; None: rows are good for ever."""
    return (_time.get() or datetime.now(UTC)) - view.ttl if view.ttl else None


def fresh_rows(view: FeatureView, rows: Sequence[Row]) -> list[Row]:
    """What Feast's reader found, without what has expired."""
    limit = oldest(view)
    return [
        (None, None) if limit is not None and stamp is not None and stamp < limit else (stamp, values)
        for stamp, values in rows
    ]


def is_fresh(view: FeatureView, event_us: np.ndarray) -> np.ndarray:
    """bool (N): whether rows with these event times have not expired."""
    limit = oldest(view)
    return np.ones(len(event_us), bool) if limit is None else event_us >= (limit - EPOCH) // US


class FreshReads(OnlineStore):
    """Put before a store of Feast's: its reader, without what has expired."""

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Row]:
        """What is stored and has not expired."""
        rows = super().online_read(config, table, entity_keys, requested_features)  # type: ignore[safe-super]
        return fresh_rows(table, rows)
