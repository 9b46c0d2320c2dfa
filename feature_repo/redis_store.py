"""Feast's Redis online store with the behaviour a serving path needs.

Reads give up fast: one retry without backoff and short timeouts, where redis-py's default backs off for
seconds and Feast's connection string cannot say otherwise. Writes are bulk loads and keep patient timeouts.
An entity without a stored timestamp is reported as not found, where Feast reports it as present and empty.
"""

from __future__ import annotations

from collections.abc import ByteString, Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from feast import FeatureView, RepoConfig
from feast.infra.online_stores import redis as feast_redis
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.infra.online_stores.redis import _versioned_fv_name
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_repo.matrix import Asked, Matrix, Reader, entity_key, kinds
from feature_repo.resp import Address, Hmgets, Wire
from feature_repo.wire import decode, decode_stamps

READ_TIMEOUT_S = 0.1
WRITE_TIMEOUT_S = 30.0


class RedisOnlineStoreConfig(feast_redis.RedisOnlineStoreConfig):
    """The options of Feast's own store.

    ``skip_dedup`` is on by default: a materialization is the truth as of its end and overwrites, so that a
    correction with an unchanged timestamp or a newly added feature does arrive, as it does on SQLite.
    """

    type: str = "feature_repo.redis_store.RedisOnlineStore"  # type: ignore[assignment]
    skip_dedup: bool = True


class RedisOnlineStore(feast_redis.RedisOnlineStore):
    """One Redis server: the same bytes as Feast's store, with deadlines."""

    _bulk: Redis | None = None
    _wire: Wire | None = None

    def matrix_reader(self, config: RepoConfig, asked: Asked) -> Reader | None:
        """Reads several views of N entities in one round trip (see ``feature_repo.matrix``).

        Returns:
            None where the server is a cluster, behind a sentinel or TLS, or the views have several join keys.
        """
        address = address_of(config.online_store)
        keys = {tuple(view.join_keys) for view, _ in asked}
        if address is None or len(keys) != 1 or len(keys.pop()) != 1:
            return None
        if self._wire is None:
            self._wire = Wire(address, READ_TIMEOUT_S)
        wire, first, version = self._wire, asked[0][0], config.entity_key_serialization_version
        fields: list[bytes] = []
        for view, features in asked:
            name = _versioned_fv_name(view, config)
            fields += [*(_mmh3(f"{name}:{feature}") for feature in features), f"_ts:{name}".encode()]
        commands = Hmgets(lambda one: _redis_key(config.project, entity_key(first, one), version), fields)
        kind = [kinds(view) for view, _ in asked]

        def read(ids: np.ndarray) -> list[Matrix]:
            found = iter(commands.cells(wire.ask(commands.message(ids)), len(ids)))
            matrices = []
            for (_, features), of in zip(asked, kind, strict=True):
                columns = {feature: decode(next(found), of[feature]) for feature in features}
                stamps = next(found)
                matrices.append(Matrix(columns, stamps.length > 0, decode_stamps(stamps)))
            return matrices

        return read

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
        """Write rows with the patient connection."""
        if self._bulk is None:
            self._bulk = connect(config.online_store, WRITE_TIMEOUT_S)
        writer = feast_redis.RedisOnlineStore()
        writer._client = self._bulk
        writer.online_write_batch(config, table, data, progress)

    def _get_features_for_entity(
        self, values: Sequence[ByteString | None], feature_view: str, requested_features: list[str]
    ) -> tuple[datetime | None, dict[str, Value] | None]:
        if values[requested_features.index(f"_ts:{feature_view}")] is None:
            return None, None
        return super()._get_features_for_entity(values, feature_view, requested_features)


def address_of(online_store_config: feast_redis.RedisOnlineStoreConfig) -> Address | None:
    """The one plain server the store is on; None where it is not one, or not plain."""
    nodes, options = feast_redis.RedisOnlineStore._parse_connection_string(
        online_store_config.connection_string
    )
    plain = set(options) <= {"db", "password", "username"}
    single = online_store_config.redis_type == feast_redis.RedisType.redis and len(nodes) == 1
    if not (plain and single and online_store_config.client == feast_redis.RedisClient.redis):
        return None
    words = {name: str(options[name]) for name in ("username", "password") if name in options}
    return Address(nodes[0]["host"], int(nodes[0]["port"]), int(options.get("db", 0)), **words)


def connect(online_store_config: feast_redis.RedisOnlineStoreConfig, timeout_s: float) -> Redis:
    """A connection that gives up after one retry of ``timeout_s``."""
    nodes, parameters = feast_redis.RedisOnlineStore._parse_connection_string(
        online_store_config.connection_string
    )
    timeouts = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    return Redis(
        host=nodes[0]["host"],
        port=int(nodes[0]["port"]),
        retry=Retry(NoBackoff(), 1),
        **{**timeouts, **parameters},
    )
