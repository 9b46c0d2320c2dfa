"""Feast's SQLite online store with columnar reads and writes; keeps the newest row.

Feast's reader fetches every feature of a view, whichever are requested, and creates a datetime per value. This one
fetches the requested features and converts one timestamp per entity; the tables are the same. Feast stores event
times to the second here.

The file is kept in write-ahead mode (WAL), in which a writer never blocks a reader. A read that finds the file locked
all the same fails within ``READ_WAIT_MS``, and until the lock is gone later reads fail at once: an answer without
the store is better than a late one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from feast import FeatureView, RepoConfig
from feast.infra.infra_object import InfraObject
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores import sqlite as feast_sqlite
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import to_naive_utc
from google.protobuf.message import DecodeError

from moonstore.batch import Batch, refuse_future
from moonstore.decode import decode
from moonstore.disk import DiskError, disk_reason, writing
from moonstore.encode import encode
from moonstore.errors import FutureRowError
from moonstore.files import locked
from moonstore.freshness import FreshReads
from moonstore.front_door import FrontDoor, Stored
from moonstore.matrix import Asked, Matrix, Reader, entity_keys, kinds

READ_WAIT_MS = 100  # for a lock that another process holds
# Of an event, for a lock that no writer of ours holds: its sender waits. It is in the journal already, and goes
# online with the next one.
SWAP_WAIT_MS = 250
LOAD_WAIT_MS = 5_000  # of a load, for which nobody waits
AT_ONCE = 10_000  # entities per query; SQLite allows 32,766 parameters
TEXT = ("string", "int32", "int64", "float", "double", "bool")  # types that Feast stores as text as well
UPSERT = """
INSERT INTO {table} AS stored (entity_key, feature_name, value, value_text, event_ts, created_ts)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (entity_key, feature_name) DO UPDATE SET
    value = excluded.value, value_text = excluded.value_text,
    event_ts = excluded.event_ts, created_ts = excluded.created_ts
WHERE excluded.event_ts > stored.event_ts
   OR excluded.event_ts = stored.event_ts AND coalesce(excluded.created_ts, 0) >= coalesce(stored.created_ts, 0)
"""


class DamagedStore(sqlite3.OperationalError):
    """The file of the store is damaged, or its disk takes nothing."""


class SqliteOnlineStoreConfig(feast_sqlite.SqliteOnlineStoreConfig):
    """The options of Feast's own store."""

    type: str = "moonstore.sqlite_store.SqliteOnlineStore"  # type: ignore[assignment]


class SqliteOnlineStore(FrontDoor, FreshReads, feast_sqlite.SqliteOnlineStore):
    """The default: one file, embedded in the process."""

    _read_wait_ms = READ_WAIT_MS  # 0 while the file is locked

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        """Feast's connection, in write-ahead mode: a file from before is converted when it is opened."""
        known = self._conn
        connection: sqlite3.Connection = super()._get_conn(config)
        if known is None:
            with contextlib.suppress(
                sqlite3.OperationalError
            ):  # locked or read-only: the next opening tries again
                connection.execute(f"PRAGMA busy_timeout = {READ_WAIT_MS}")
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA busy_timeout = {LOAD_WAIT_MS}")
        return connection

    def plan(self, config: RepoConfig, desired_registry_proto: Registry) -> list[InfraObject]:
        """Nothing: ``update`` makes the tables. Feast records planned ones for its own store only.

        'feast plan' would report them for ever.
        """
        return []

    def matrix_reader(self, config: RepoConfig, asked: Asked) -> Reader | None:
        """A reader of views of N entities, one query per view (``moonstore.matrix``); None: several join keys."""
        if any(len(view.join_keys) != 1 for view, _ in asked):
            return None

        def read(ids: np.ndarray) -> list[Matrix]:
            unique, row = np.unique(ids, return_inverse=True)
            with self._sound(config):
                return [self._read(config, view, list(features), unique, row) for view, features in asked]

        return read

    def stored(self, config: RepoConfig, asked: Asked, entities: Sequence[bytes]) -> list[Stored] | None:
        """What is stored of each view, one query per view."""
        answer = []
        with self._sound(config):
            for view, features in asked:
                values, stamps = self._columns(config, view, list(features), entities)
                # A feature that was added to the view since has no row of its own, and Feast does not find it.
                there = [np.array([one is not None for one in values[name]], bool) for name in features]
                answer.append(Stored([values[name] for name in features], there, _event_times(stamps)))
        return answer

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write the rows that are not older than the stored ones.

        Raises:
            FutureRowError: an event time lies in the future; nothing is written.
        """
        refuse_future(table.name, [stamp for _, _, stamp, _ in data])
        if _more(config):
            super().online_write_batch(config, table, data, progress)
            return
        version = config.entity_key_serialization_version
        rows = (
            (
                serialize_entity_key(key, version),
                name,
                value.SerializeToString(),
                _text(value),
                *_stamps(stamp, created),
            )
            for key, values, stamp, created in data
            for name, value in values.items()
        )
        self._write(config, table, rows)
        if progress:
            progress(len(data))

    def write_columns(self, config: RepoConfig, view: FeatureView, batch: Batch) -> int:
        """Write the rows of a batch that are not older than the stored ones; returns their number."""
        if _more(config):
            self._by_feast(config, view, batch)
            return len(batch)
        cells = _cells(config, view, batch)
        return self._write(config, view, cells) // max(len(batch.features), 1)

    def compare_and_set(
        self, config: RepoConfig, view: FeatureView, batch: Batch, guard: str, before: list[bytes]
    ) -> np.ndarray:
        """Write the rows whose stored ``guard`` still is what it was when it was read, ``before``."""
        table = feast_sqlite._quote_id(self._table(config, view))
        keys = batch.serialized_keys(view, config.entity_key_serialization_version)
        with self._transaction(config, SWAP_WAIT_MS) as connection:
            connection.execute("BEGIN IMMEDIATE")  # excludes other writers between compare and set
            query = f"SELECT value FROM {table} WHERE entity_key = ? AND feature_name = ?"
            found = [connection.execute(query, (key, guard)).fetchone() for key in keys]
            same = np.array(
                [(row[0] if row else b"") == then for row, then in zip(found, before, strict=True)], bool
            )
            cells = _cells(config, view, batch)
            count = len(batch)
            some = (cell for place, cell in enumerate(cells) if same[place % count])
            connection.executemany(UPSERT.format(table=table), some)
        return same

    def update(self, config: RepoConfig, *rest: Any, **named: Any) -> None:
        """Make the tables of the views that stay, and remove those of the others."""
        with self._sound(config):
            super().update(config, *rest, **named)

    @contextlib.contextmanager
    def _sound(self, config: RepoConfig) -> Iterator[None]:
        """Say which file is damaged, as an error of a store that does not answer."""
        try:
            yield
        except (sqlite3.DatabaseError, DecodeError, ValueError) as error:
            path = Path(self._get_db_path(config))
            if (why := disk_reason(error)) is not None:  # readers write, too: locks and the index of the log
                raise DamagedStore(str(DiskError(path, why))) from error
            absent = "no such table" in str(error)  # it was emptied, or removed and made anew
            if isinstance(error, FutureRowError) or (
                isinstance(error, sqlite3.OperationalError) and not absent
            ):
                raise
            raise DamagedStore(f"{path}: damaged ({error}). Remove it and materialize again") from error

    def _by_feast(self, config: RepoConfig, view: FeatureView, batch: Batch) -> None:
        kind = kinds(view)
        values = {name: encode(column, kind[name]) for name, column in batch.features.items()}
        event = map(_moment, batch.event_us.tolist())
        created = repeat(None) if batch.created_us is None else map(_moment, batch.created_us.tolist())
        columns = zip(*values.values(), strict=True)
        rows = zip(batch.entity_keys(view), columns, event, created, strict=False)  # created may be endless
        data = [
            (key, {name: Value.FromString(one) for name, one in zip(values, row, strict=True)}, at, since)
            for key, row, at, since in rows
        ]
        super().online_write_batch(config, view, data, None)

    def _write(self, config: RepoConfig, view: FeatureView, rows: Iterable[tuple[Any, ...]]) -> int:
        table = feast_sqlite._quote_id(self._table(config, view))
        with self._transaction(config, LOAD_WAIT_MS) as connection:
            cursor = connection.executemany(UPSERT.format(table=table), rows)
        return cursor.rowcount

    @contextlib.contextmanager
    def _transaction(self, config: RepoConfig, wait_ms: int) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction that waits so long for a lock that no writer of ours holds.

        Our writers queue for the file: SQLite's own waiting is by polling, in which one of many may starve.
        """
        connection, path = self._get_conn(config), Path(self._get_db_path(config))
        connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
        with self._sound(config), writing(path), locked(Path(f"{path}-writing")), connection:
            yield connection

    def _table(self, config: RepoConfig, view: FeatureView) -> str:
        name: str = feast_sqlite._table_id(
            config.project, view, config.registry.enable_online_feature_view_versioning
        )
        return name

    def _read(
        self, config: RepoConfig, view: FeatureView, features: list[str], ids: np.ndarray, row: np.ndarray
    ) -> Matrix:
        version = config.entity_key_serialization_version
        keys = [serialize_entity_key(one, version) for one in entity_keys(view, ids.tolist())]
        values, stamps = self._columns(config, view, features, keys)
        found = np.array([stamp is not None for stamp in stamps], bool)
        kind = kinds(view)
        columns = {name: decode(values[name], kind[name]).take(row) for name in features}
        return Matrix(columns, found[row], _event_times(stamps)[row])

    def _columns(
        self, config: RepoConfig, view: FeatureView, features: list[str], keys: Sequence[bytes]
    ) -> tuple[dict[str, list[bytes | None]], list[int | None]]:
        """The values of each feature of N entities, and the event times as Feast stores them."""
        place = {key: number for number, key in enumerate(keys)}
        table = self._table(config, view)
        values: dict[str, list[bytes | None]] = {name: [None] * len(keys) for name in features}
        stamps: list[int | None] = [None] * len(keys)
        wanted = ",".join("?" * len(features))
        connection = self._get_conn(config)
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            query = (
                # CAST, because Feast registers a converter that turns the bare column into datetimes, value by value.
                f"SELECT entity_key, feature_name, CASE WHEN feature_name IN ({wanted}) THEN value END, "
                f"CAST(event_ts AS INTEGER) FROM {feast_sqlite._quote_id(table)} "
                f"WHERE entity_key IN ({','.join('?' * len(some))})"
            )
            for key, name, value, stamp in self._rows(connection, query, [*features, *some]):
                at = place[key]
                stamps[at] = stamp
                if value is not None:
                    values[name][at] = value
        return values, stamps

    def _rows(self, connection: sqlite3.Connection, query: str, parameters: list[Any]) -> list[tuple]:
        """The rows of a query; a lock is waited for once, and only looked at until it is gone."""
        connection.execute(f"PRAGMA busy_timeout = {self._read_wait_ms}")
        try:
            rows = connection.execute(query, parameters).fetchall()
        except sqlite3.OperationalError:
            self._read_wait_ms = 0
            raise
        self._read_wait_ms = READ_WAIT_MS
        return rows


def _cells(config: RepoConfig, view: FeatureView, batch: Batch) -> Iterator[tuple[Any, ...]]:
    """Rows of the table: the values of all entities for the first feature, then for the second, ..."""
    keys = batch.serialized_keys(view, config.entity_key_serialization_version)
    event = [_stored(stamp) for stamp in batch.event_us.tolist()]
    created: list[int | None] = [None] * len(keys)
    if batch.created_us is not None:
        created = [_stored(stamp) for stamp in batch.created_us.tolist()]
    kind = kinds(view)
    for name, column in batch.features.items():
        values = encode(column, kind[name])
        texts = [_text(Value.FromString(one)) if kind[name] in TEXT else None for one in values]
        yield from zip(keys, repeat(name), values, texts, event, created, strict=False)


def _event_times(stamps: Sequence[int | None]) -> np.ndarray:
    """Microseconds since 1970, 0 where there is no row."""
    of = {stamp: 0 if stamp is None else _event_us(stamp) for stamp in set(stamps)}
    return np.array([of[stamp] for stamp in stamps], np.int64)


def _event_us(stamp: int) -> int:
    # Feast stores UTC as if it were local time, and reads it back the same way.
    return int(datetime.fromtimestamp(stamp).replace(tzinfo=UTC).timestamp()) * 1_000_000


def _moment(event_us: int) -> datetime:
    return datetime.fromtimestamp(event_us / 1e6, UTC)


def _stored(event_us: int) -> int:
    return int(datetime.fromtimestamp(event_us // 1_000_000, UTC).replace(tzinfo=None).timestamp())


def _stamps(event: datetime, created: datetime | None) -> tuple[int, int | None]:
    seconds = int(to_naive_utc(event).timestamp())
    return seconds, None if created is None else int(to_naive_utc(created).timestamp())


def _text(value: Value) -> str | None:
    text: str | None = extract_text_and_num(value, False)[0]
    return text


def _more(config: RepoConfig) -> bool:
    """Whether Feast also stores vectors or numbers in columns of their own."""
    return config.online_store.vector_enabled or config.online_store.enable_openai_compatible_store
