"""Feast's SQLite online store, which also reads columns.

Feast's reader fetches every feature of a view whichever are asked for, and makes a time of every value's stamp. This
one leaves the others' bytes in the file and makes one per entity; the tables are the same. Feast keeps event times
to the second here.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores import sqlite as feast_sqlite

from feature_repo.matrix import Asked, Matrix, Reader, entity_key, kinds
from feature_repo.wire import Cells, decode

AT_ONCE = 10_000  # entities of a query; SQLite takes 32,766 parameters


class SqliteOnlineStoreConfig(feast_sqlite.SqliteOnlineStoreConfig):
    """The options of Feast's own store."""

    type: str = "feature_repo.sqlite_store.SqliteOnlineStore"  # type: ignore[assignment]


class SqliteOnlineStore(feast_sqlite.SqliteOnlineStore):
    """One file: the embedded default."""

    def matrix_reader(self, config: RepoConfig, asked: Asked) -> Reader | None:
        """Reads several views of N entities, a query each (see ``feature_repo.matrix``); None: several join keys."""
        if any(len(view.join_keys) != 1 for view, _ in asked):
            return None

        def read(ids: np.ndarray) -> list[Matrix]:
            unique, row = np.unique(ids, return_inverse=True)
            return [self._read(config, view, list(features), unique, row) for view, features in asked]

        return read

    def _read(
        self, config: RepoConfig, view: FeatureView, features: list[str], ids: np.ndarray, row: np.ndarray
    ) -> Matrix:
        version = config.entity_key_serialization_version
        keys = [serialize_entity_key(entity_key(view, one), version) for one in ids.tolist()]
        place = {key: number for number, key in enumerate(keys)}
        table = feast_sqlite._table_id(
            config.project, view, config.registry.enable_online_feature_view_versioning
        )
        values: dict[str, list[bytes | None]] = {name: [None] * len(keys) for name in features}
        stamps: list[int | None] = [None] * len(keys)
        wanted = ",".join("?" * len(features))
        connection = self._get_conn(config)
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            query = (
                # Not the bare column: Feast has SQLite make a datetime of that, value by value.
                f"SELECT entity_key, feature_name, CASE WHEN feature_name IN ({wanted}) THEN value END, "
                f"CAST(event_ts AS INTEGER) FROM {feast_sqlite._quote_id(table)} "
                f"WHERE entity_key IN ({','.join('?' * len(some))})"
            )
            for key, name, value, stamp in connection.execute(query, [*features, *some]):
                at = place[key]
                stamps[at] = stamp
                if value is not None:
                    values[name][at] = value
        found = np.array([stamp is not None for stamp in stamps], bool)
        event_us = np.array([0 if stamp is None else _event_us(stamp) for stamp in stamps], np.int64)
        kind = kinds(view)
        columns = {name: decode(Cells.of(values[name]), kind[name]).take(row) for name in features}
        return Matrix(columns, found[row], event_us[row])


def _event_us(stamp: int) -> int:
    # Feast writes UTC's clock as if it were the local one, and reads it back so.
    return int(datetime.fromtimestamp(stamp).replace(tzinfo=UTC).timestamp()) * 1_000_000
