"""Feast's Redis online store with the behaviour a serving path needs.

Reads give up fast: one retry without backoff and short timeouts, where redis-py's default backs off for
seconds and Feast's connection string cannot say otherwise. Writes are bulk loads and keep patient timeouts.
An entity without a stored timestamp is reported as not found, where Feast reports it as present and empty.
"""

from __future__ import annotations

from collections.abc import ByteString, Callable, Sequence
from datetime import datetime
from typing import Any

from feast import FeatureView, RepoConfig
from feast.infra.online_stores import redis as feast_redis
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

READ_TIMEOUT_S = 0.15
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


def connect(online_store_config: feast_redis.RedisOnlineStoreConfig, timeout_s: float) -> Redis:
    """A connection that gives up after one retry of ``timeout_s``."""
    nodes, parameters = feast_redis.RedisOnlineStore._parse_connection_string(
        online_store_config.connection_string
    )
    return Redis(
        host=nodes[0]["host"],
        port=int(nodes[0]["port"]),
        retry=Retry(NoBackoff(), 1),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        **parameters,
    )
