"""Every online store keeps the contract of ``contracts.online_store``, and none is without it."""

import importlib
import inspect
import pkgutil

import pytest
from contracts.online_store import OnlineStoreContract
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisType
from test_redis_cluster import cluster

import moonstore
from moonstore import sqlite_store
from moonstore.redis_store import RedisOnlineStore, RedisOnlineStoreConfig
from moonstore.sqlite_store import SqliteOnlineStore, SqliteOnlineStoreConfig

__all__ = ["cluster"]


class TestSqlite(OnlineStoreContract):
    store = SqliteOnlineStore

    @pytest.fixture
    def online(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            sqlite_store, "AT_ONCE", 100
        )  # of the ids asked for, so that they are several queries
        return SqliteOnlineStoreConfig(path=str(tmp_path / "online.db"))


@pytest.mark.redis
class TestRedis(OnlineStoreContract):
    store = RedisOnlineStore

    @pytest.fixture
    def online(self, redis_server):
        return RedisOnlineStoreConfig(connection_string=f"127.0.0.1:{redis_server.port},db=8")


@pytest.mark.redis
class TestRedisCluster(OnlineStoreContract):
    store = RedisOnlineStore

    @pytest.fixture
    def online(self, cluster):
        address = ",".join(f"127.0.0.1:{port}" for port in cluster)
        return RedisOnlineStoreConfig(redis_type=RedisType.redis_cluster, connection_string=address)


def stores_of(package):
    """The classes of a package that Feast can open as an online store: those a configuration names."""
    modules = [
        importlib.import_module(one.name)
        for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    own = {
        one
        for module in modules
        for _, one in inspect.getmembers(module, inspect.isclass)
        if issubclass(one, OnlineStore) and one.__module__ == module.__name__
    }
    return {one for one in own if f"{one.__name__}Config" in vars(importlib.import_module(one.__module__))}


def test_no_online_store_is_without_the_contract():
    assert {suite.store for suite in OnlineStoreContract.__subclasses__()} == stores_of(moonstore)
