"""A Redis Cluster of three real nodes holds and serves what one server does.

Run: pytest tests/test_redis_cluster.py
"""

import os
import signal
import time
from contextlib import ExitStack

import numpy as np
import pytest
import redis
from conftest import free_port
from feast.infra.online_stores.redis import RedisType
from redis.crc import key_slot
from store_world import WIDTH, load, open_store, source_rows, stored, write_source

from evaluation.bench.local_redis import RedisServer
from moonstore import matrix
from moonstore.matrix import by_feast as by_feasts
from moonstore.matrix import matrix_reader, read_matrix
from moonstore.redis_store import RedisOnlineStoreConfig
from moonstore.sqlite_store import SqliteOnlineStoreConfig

pytestmark = pytest.mark.redis
SLOTS, NODES, READY_S = 16384, 3, 30


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ports of three nodes that share the slots among them."""
    buses = [free_port() for _ in range(NODES)]
    with ExitStack() as stack:
        nodes = [stack.enter_context(_node(bus, tmp_path_factory.mktemp("node"))) for bus in buses]
        ports, clients = [node.port for node in nodes], [node.client() for node in nodes]
        for number, client in enumerate(clients):
            first, last = SLOTS * number // NODES, SLOTS * (number + 1) // NODES - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for port, bus in zip(ports[1:], buses[1:], strict=True):
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", port, bus)
        _until(lambda: all(_formed(client) for client in clients))
        yield ports


def _node(bus, folder):
    return RedisServer("--cluster-enabled", "yes", "--cluster-port", str(bus), "--dir", str(folder))


def _formed(client):
    info = client.execute_command("CLUSTER INFO")
    text = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
    return text["cluster_state"] == "ok" and int(text["cluster_known_nodes"]) == NODES


def _until(true):
    deadline = time.monotonic() + READY_S
    while not true():
        assert time.monotonic() < deadline, f"the cluster was not ready within {READY_S} s"
        time.sleep(0.1)


def test_every_node_holds_its_share_and_reads_are_whole(cluster, tmp_path):
    write_source(tmp_path, source_rows(np.random.default_rng(0), 2500, entities=2000))
    address = ",".join(f"127.0.0.1:{port}" for port in cluster)
    online = RedisOnlineStoreConfig(redis_type=RedisType.redis_cluster, connection_string=address)
    store = open_store(tmp_path, online)
    report = load(store)
    one = open_store(tmp_path, SqliteOnlineStoreConfig(path=str(tmp_path / "one.db")))
    assert load(one).written == report.written > 1000
    assert stored(store, range(0, 2000, 3)) == stored(one, range(0, 2000, 3))
    view = store.get_feature_view("item")
    assert store._get_provider().online_store.matrix_reader(store.config, [(view, ["number"])]) is not None
    ids = np.random.default_rng(1).permutation(2000)
    many, single = (read_matrix(each, "item", ids, ["vector", "title", "number"]) for each in (store, one))
    assert many["vector"].shape == (2000, WIDTH) and many.found.tolist() == single.found.tolist()
    for name in ("vector", "title", "number"):
        assert many[name].tolist() == single[name].tolist()
    shares = []
    for number, port in enumerate(cluster):
        keys = redis.Redis(port=port).keys("*")
        first, last = SLOTS * number // NODES, SLOTS * (number + 1) // NODES - 1
        assert all(first <= key_slot(key) <= last for key in keys)
        shares.append(len(keys))
    assert sum(shares) == report.written and min(shares) > 0.8 * report.written / NODES


def test_a_second_load_changes_nothing_and_a_restarted_script_cache_is_filled(cluster, tmp_path):
    write_source(tmp_path, source_rows(np.random.default_rng(2), 300, entities=200))
    address = ",".join(f"127.0.0.1:{port}" for port in cluster)
    online = RedisOnlineStoreConfig(redis_type=RedisType.redis_cluster, connection_string=address)
    store = open_store(tmp_path, online)
    load(store)
    before = stored(store, range(200))
    for port in cluster:
        redis.Redis(port=port).script_flush()
    load(store)
    assert stored(store, range(200)) == before


def test_a_view_is_taken_out_of_every_node(cluster, tmp_path):
    write_source(tmp_path, source_rows(np.random.default_rng(3), 300, entities=200))
    address = ",".join(f"127.0.0.1:{port}" for port in cluster)
    online = RedisOnlineStoreConfig(redis_type=RedisType.redis_cluster, connection_string=address)
    kept, gone = (open_store(tmp_path, online, created=True) for _ in range(2))
    load(kept)
    load(gone)
    before = stored(kept, range(200))
    sizes = [redis.Redis(port=port).dbsize() for port in cluster]
    found = len(read_matrix(gone, "item", np.arange(200), ["number"]).found.nonzero()[0])
    gone.apply([], objects_to_delete=gone.list_feature_views(), partial=False)
    assert stored(kept, range(200)) == before
    assert sum(sizes) - sum(redis.Redis(port=port).dbsize() for port in cluster) == found > 100


def served(store, ids):
    found = matrix_reader(store, [(store.get_feature_view("item"), ["number", "title"])])(ids)[0]
    return found["number"].tolist(), found["title"].tolist(), found.found.tolist()


def test_a_slot_that_moves_is_read_by_feasts_client_and_then_where_it_went(cluster, tmp_path, monkeypatch):
    write_source(tmp_path, source_rows(np.random.default_rng(3), 300, entities=200))
    address = ",".join(f"127.0.0.1:{port}" for port in cluster)
    online = RedisOnlineStoreConfig(redis_type=RedisType.redis_cluster, connection_string=address)
    store = open_store(tmp_path, online)
    load(store)
    ids, by_feast = np.arange(200), []
    monkeypatch.setattr(matrix, "by_feast", lambda *args, real=by_feasts: by_feast.append(1) or real(*args))
    before = served(store, ids)
    assert sum(before[2]) > 100 and not by_feast
    clients = [redis.Redis(port=port) for port in cluster]
    names = [client.execute_command("CLUSTER MYID").decode() for client in clients]
    held = clients[0].keys("*")  # CLUSTER GETKEYSINSLOT would do, but redis-py makes text of its bytes
    slot = key_slot(next(key for key in held if key.endswith(store.project.encode())))
    keys = [key for key in held if key_slot(key) == slot]
    clients[1].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
    clients[0].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
    clients[0].execute_command("MIGRATE", "127.0.0.1", cluster[1], "", 0, 5000, "KEYS", *keys)
    assert served(store, ids) == before and by_feast  # on its way
    for client in clients:
        client.execute_command("CLUSTER SETSLOT", slot, "NODE", names[1])
    assert served(store, ids) == before
    by_feast.clear()
    assert served(store, ids) == before and not by_feast


def test_a_node_that_hangs_is_reported_fast_and_the_others_answer(cluster, tmp_path):
    write_source(tmp_path, source_rows(np.random.default_rng(4), 300, entities=200))
    address = ",".join(f"127.0.0.1:{port}" for port in cluster)
    online = RedisOnlineStoreConfig(redis_type=RedisType.redis_cluster, connection_string=address)
    store = open_store(tmp_path, online)
    load(store)
    ids = np.arange(200)
    read = matrix_reader(store, [(store.get_feature_view("item"), ["number"])])
    before = read(ids)[0]["number"].tolist()
    process = redis.Redis(port=cluster[1]).info()["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        waits, answered = [], 0
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(redis.exceptions.TimeoutError):
                read(ids)
            waits.append(time.monotonic() - began)
        for one in ids:
            try:
                answered += read(ids[one : one + 1])[0]["number"].tolist() == before[one : one + 1]
            except redis.exceptions.TimeoutError:
                pass
        assert waits[0] < 0.15 and max(waits[1:]) < 0.1 and answered > 100
    finally:
        os.kill(process, signal.SIGCONT)
    redis.Redis(port=cluster[1]).ping()
    assert read(ids)[0]["number"].tolist() == before
