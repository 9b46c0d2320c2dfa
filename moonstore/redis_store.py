"""Feast's Redis online store, adapted to serving.

Reads fail fast: one retry without backoff and short timeouts, while redis-py's default backs off for seconds and
Feast's connection string cannot change that. Writes are bulk loads with long timeouts; an older row never replaces a
newer one (``moonstore.redis_write``). An entity without a stored timestamp is not found, while Feast returns it as
present and empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import ByteString, Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores import redis as feast_redis
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.infra.online_stores.redis import _versioned_fv_name
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64
from feast.utils import make_tzaware
from google.protobuf.timestamp_pb2 import Timestamp
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from moonstore.batch import Batch, refuse_future
from moonstore.cluster import ClusterWire
from moonstore.connection import Address, Wire
from moonstore.decode import Cells, Values, decode, decode_stamps
from moonstore.encode import encode, encode_stamps
from moonstore.freshness import FreshReads, Row
from moonstore.front_door import FrontDoor, Stored
from moonstore.matrix import Asked, Matrix, Reader, entity_keys, kinds
from moonstore.redis_delete import delete_fields
from moonstore.redis_write import Rows, compare_and_set, write
from moonstore.resp import Hmgets

READ_TIMEOUT_S = 0.1
CAS_TIMEOUT_S = 1.0  # compare-and-set
WRITE_TIMEOUT_S = 30.0
AT_ONCE = 2_000  # entities per message and deadline


class RedisOnlineStoreConfig(feast_redis.RedisOnlineStoreConfig):
    """The options of Feast's own store. ``skip_dedup`` has no effect: older rows never replace newer ones."""

    type: str = "moonstore.redis_store.RedisOnlineStore"  # type: ignore[assignment]


class RedisOnlineStore(FrontDoor, FreshReads, feast_redis.RedisOnlineStore):
    """Writes and reads the same bytes as Feast's store, with deadlines."""

    _bulk: Redis | RedisCluster | None = None
    _cas_client: Redis | RedisCluster | None = None
    _wire: Wire | ClusterWire | None = None

    def matrix_reader(self, config: RepoConfig, asked: Asked) -> Reader | None:
        """A reader of several views of N entities with one round trip per server (see ``moonstore.matrix``).

        Returns:
            None if the server is behind a sentinel or TLS, or the views have several join keys.
        """
        keys = {tuple(view.join_keys) for view, _ in asked}
        wire = self._open_wire(config)
        if wire is None or len(keys) != 1 or len(keys.pop()) != 1:
            return None
        first, version = asked[0][0], config.entity_key_serialization_version
        commands = Hmgets(
            _fields(config, asked),
            lambda one: _redis_key(config.project, entity_keys(first, [one])[0], version),
        )
        kind = [kinds(view) for view, _ in asked]

        def read(ids: np.ndarray) -> list[Matrix]:
            columns: Sequence[Cells | Values] = (
                wire.columns(commands, _id_keys(config, first, ids))
                if isinstance(wire, ClusterWire)
                else commands.columns(wire.ask(commands.message(ids)), len(ids))
            )
            found = iter(columns)
            matrices = []
            for (_, features), of in zip(asked, kind, strict=True):
                decoded = {feature: decode(next(found), of[feature]) for feature in features}
                event_us = decode_stamps(next(found))
                matrices.append(Matrix(decoded, event_us != 0, event_us))
            return matrices

        return read

    def stored(self, config: RepoConfig, asked: Asked, entities: Sequence[bytes]) -> list[Stored] | None:
        """What is stored of views of the same entities; None: the server is behind a sentinel or TLS."""
        wire = self._open_wire(config)
        if wire is None:
            return None
        commands, project = Hmgets(_fields(config, asked)), config.project.encode()
        groups: list[Sequence[Cells | Values]] = []
        for start in range(0, len(entities), AT_ONCE):  # each with a deadline of its own
            some = [key + project for key in entities[start : start + AT_ONCE]]
            if isinstance(wire, ClusterWire):
                groups.append(wire.columns(commands, some))
            else:
                groups.append(commands.columns(wire.ask(commands.of_keys(some)), len(some)))
        found = iter(groups[0] if len(groups) == 1 else map(_joined, zip(*groups, strict=True)))
        answer = []
        for _, features in asked:
            columns = [next(found) for _ in features]
            event_us = decode_stamps(next(found))
            # Of a stored row Feast calls every feature present, also one that was added to the view since.
            answer.append(Stored(columns, [event_us != 0] * len(features), event_us))
        return answer

    def _open_wire(self, config: RepoConfig) -> Wire | ClusterWire | None:
        address = address_of(config.online_store)
        if address is None:
            return None
        if self._wire is None and config.online_store.redis_type == feast_redis.RedisType.redis_cluster:
            self._wire = ClusterWire(self._get_client(config.online_store), address, READ_TIMEOUT_S)
        elif self._wire is None:
            self._wire = Wire(address, READ_TIMEOUT_S)
        return self._wire

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Row]:
        """``online_read`` in a worker thread."""
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """``online_write_batch`` in a worker thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def _get_client(self, online_store_config: feast_redis.RedisOnlineStoreConfig) -> Any:
        if self._client is None:
            self._client = connect(online_store_config, READ_TIMEOUT_S)
        return self._client

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write the rows that are not older than the stored ones, with long timeouts.

        Raises:
            FutureRowError: an event time lies in the future; nothing is written.
        """
        refuse_future(table.name, [stamp for _, _, stamp, _ in data])
        names = list(data[0][1]) if data else []
        version = config.entity_key_serialization_version
        rows = Rows(
            [_redis_key(config.project, key, version) for key, _, _, _ in data],
            [_stamp(stamp) for _, _, stamp, _ in data],
            [b"" if created is None else _stamp(created) for _, _, _, created in data],
            [_mmh3(f"{_versioned_fv_name(table, config)}:{name}") for name in names],
            [[values[name].SerializeToString() for _, values, _, _ in data] for name in names],
        )
        self._write(config, table, rows)
        if progress:
            progress(len(data))

    def write_columns(self, config: RepoConfig, view: FeatureView, batch: Batch) -> int:
        """Write the rows of a batch that are not older than the stored ones; returns their number."""
        return self._write(config, view, _rows(config, view, batch))

    def compare_and_set(
        self, config: RepoConfig, view: FeatureView, batch: Batch, guard: str, before: list[bytes]
    ) -> np.ndarray:
        """Write the rows whose stored ``guard`` still is what it was when it was read, ``before``."""
        if self._cas_client is None:
            self._cas_client = connect(config.online_store, CAS_TIMEOUT_S)
        name = _versioned_fv_name(view, config)
        expires_s = config.online_store.key_ttl_seconds or 0
        field = _mmh3(f"{name}:{guard}")
        return compare_and_set(self._cas_client, name, _rows(config, view, batch), field, before, expires_s)

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Delete the rows of a view; the other views of its entities stay."""
        keys = table.entity_columns
        if len(keys) != 1 or keys[0].dtype != Int64:
            super().delete_table(config, table)
            return
        name = _versioned_fv_name(table, config)
        before, after = _around_id(config, table)
        fields = [_mmh3(f"{name}:{feature.name}") for feature in table.features]
        fields += [f"{stamp}:{name}".encode() for stamp in ("_ts", "_created")]
        delete_fields(self._patient(config), before, after, fields)

    def _write(self, config: RepoConfig, view: FeatureView, rows: Rows) -> int:
        expires_s = config.online_store.key_ttl_seconds or 0
        return write(self._patient(config), _versioned_fv_name(view, config), rows, expires_s)

    def _patient(self, config: RepoConfig) -> Redis | RedisCluster:
        if self._bulk is None:
            self._bulk = connect(config.online_store, WRITE_TIMEOUT_S)
        return self._bulk

    def _get_features_for_entity(
        self, values: Sequence[ByteString | None], feature_view: str, requested_features: list[str]
    ) -> tuple[datetime | None, dict[str, Value] | None]:
        if values[requested_features.index(f"_ts:{feature_view}")] is None:
            return None, None
        return super()._get_features_for_entity(values, feature_view, requested_features)


def _fields(config: RepoConfig, asked: Asked) -> list[bytes]:
    """The fields of an entity's hash: of each view its features, then its event time."""
    fields: list[bytes] = []
    for view, features in asked:
        name = _versioned_fv_name(view, config)
        fields += [*(_mmh3(f"{name}:{feature}") for feature in features), f"_ts:{name}".encode()]
    return fields


def _joined(parts: tuple[Cells | Values, ...]) -> Values:
    """The values of one field, of several replies."""
    return [one for part in parts for one in (part.values() if isinstance(part, Cells) else part)]


def _stamp(moment: datetime) -> bytes:
    stamp = Timestamp()
    stamp.FromDatetime(make_tzaware(moment))
    return stamp.SerializeToString()


def _rows(config: RepoConfig, view: FeatureView, batch: Batch) -> Rows:
    name = _versioned_fv_name(view, config)
    kind = kinds(view)
    return Rows(
        _keys(config, view, batch),
        encode_stamps(batch.event_us),
        [b""] * len(batch) if batch.created_us is None else encode_stamps(batch.created_us),
        [_mmh3(f"{name}:{feature}") for feature in batch.features],
        [encode(column, kind[feature]) for feature, column in batch.features.items()],
    )


def _keys(config: RepoConfig, view: FeatureView, batch: Batch) -> list[bytes]:
    """Redis keys; those of int64 ids differ only in eight bytes and are built together."""
    if len(batch.keys) == 1 and batch.keys[0].type == pa.int64():
        return _id_keys(config, view, batch.keys[0].to_numpy())
    project = config.project.encode()
    return [key + project for key in batch.serialized_keys(view, config.entity_key_serialization_version)]


def _id_keys(config: RepoConfig, view: FeatureView, ids: np.ndarray) -> list[bytes]:
    before, after = _around_id(config, view)
    packed = ids.astype("<i8").tobytes()
    return [before + packed[at : at + 8] + after for at in range(0, len(packed), 8)]


def _around_id(config: RepoConfig, view: FeatureView) -> tuple[bytes, bytes]:
    """The bytes of a view's Redis keys before and after the eight bytes of the int64 id."""
    version = config.entity_key_serialization_version
    before, after = _redis_key(config.project, entity_keys(view, [0])[0], version).rsplit(bytes(8), 1)
    return before, after


def address_of(online_store_config: feast_redis.RedisOnlineStoreConfig) -> Address | None:
    """Address of the plain server, or of the first node of the plain cluster; None if it is neither."""
    nodes, options = feast_redis.RedisOnlineStore._parse_connection_string(
        online_store_config.connection_string
    )
    kind, client = online_store_config.redis_type, online_store_config.client
    single = kind == feast_redis.RedisType.redis and len(nodes) == 1
    known = {"db", "password", "username"} if single else {"password", "username"}
    if client != feast_redis.RedisClient.redis or not set(options) <= known:
        return None
    if not (single or kind == feast_redis.RedisType.redis_cluster):
        return None
    words = {name: str(options[name]) for name in ("username", "password") if name in options}
    return Address(nodes[0]["host"], int(nodes[0]["port"]), int(options.get("db", 0)), **words)


def connect(
    online_store_config: feast_redis.RedisOnlineStoreConfig, timeout_s: float
) -> Redis | RedisCluster:
    """A client of a server, a sentinel's master or a cluster, with one retry and a timeout of ``timeout_s`` each."""
    nodes, options = feast_redis.RedisOnlineStore._parse_connection_string(
        online_store_config.connection_string
    )
    options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, **options}
    places = [(node["host"], int(node["port"])) for node in nodes]
    kind = online_store_config.redis_type
    options["retry"] = Retry(NoBackoff(), 1)
    if kind == feast_redis.RedisType.redis_cluster:
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in places], **options)
    if kind == feast_redis.RedisType.redis_sentinel:
        master: Redis = Sentinel(places, **options).master_for(online_store_config.sentinel_master, **options)
        return master
    host, port = places[0]
    return Redis(host=host, port=port, **options)
