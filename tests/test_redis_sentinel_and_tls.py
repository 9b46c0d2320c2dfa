"""A Redis behind a sentinel or TLS holds and serves what a plain one does, through Feast's client.

Run: pytest tests/test_redis_sentinel_and_tls.py
"""

import subprocess
import time

import numpy as np
import pytest
import redis
from conftest import free_port
from feast.infra.online_stores.redis import RedisType
from store_world import load, open_store, source_rows, stored, write_source

from evaluation.bench.local_redis import BINARY, RedisServer
from moonstore.matrix import matrix_reader, read_matrix
from moonstore.redis_store import RedisOnlineStoreConfig
from moonstore.sqlite_store import SqliteOnlineStoreConfig

pytestmark = pytest.mark.redis
ENTITIES, MASTER, READY_S, FAST_S = 300, "shop", 20, 0.5
FEATURES = ["vector", "title", "number", "recent"]


@pytest.fixture
def sentinel(tmp_path):
    """A master and the sentinel that knows it."""
    with RedisServer("--dir", str(tmp_path)) as master:
        port, configuration = free_port(), tmp_path / "sentinel.conf"
        configuration.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
        )
        command = [BINARY, str(configuration), "--sentinel"]
        guard = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _until(lambda: redis.Redis(port=port).ping())
            online = RedisOnlineStoreConfig(
                redis_type=RedisType.redis_sentinel,
                sentinel_master=MASTER,
                connection_string=f"127.0.0.1:{port}",
            )
            yield online, master
        finally:
            guard.kill()
            guard.wait()


@pytest.fixture
def tls(tmp_path):
    """A server that also listens on a port with TLS, whose certificate signs itself."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-keyout", key, "-out", certificate,
         "-days", "1", "-subj", "/CN=shop", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    port = free_port()
    server = RedisServer(
        "--dir", str(tmp_path), "--tls-port", str(port), "--tls-cert-file", str(certificate),
        "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no",
    )  # fmt: skip
    with server:
        online = RedisOnlineStoreConfig(
            connection_string=f"127.0.0.1:{port},ssl=true,ssl_ca_certs={certificate}"
        )
        yield online, server


def _until(true):
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if true():
                return
        except redis.exceptions.ConnectionError:
            pass
        assert time.monotonic() < deadline, f"not ready within {READY_S} s"
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["sentinel", pytest.param("tls", marks=pytest.mark.openssl)])
def test_what_is_read_is_what_a_plain_store_holds_and_a_hang_is_reported_fast(kind, request, tmp_path):
    online, server = request.getfixturevalue(kind)
    write_source(tmp_path, source_rows(np.random.default_rng(0), 500, entities=ENTITIES))
    store = open_store(tmp_path, online)
    report = load(store)
    one = open_store(tmp_path, SqliteOnlineStoreConfig(path=str(tmp_path / "one.db")))
    assert load(one).written == report.written > ENTITIES // 2
    assert stored(store, range(ENTITIES)) == stored(one, range(ENTITIES))
    asked = [(store.get_feature_view("item"), FEATURES)]
    assert store._get_provider().online_store.matrix_reader(store.config, asked) is None
    ids = np.random.default_rng(1).permutation(ENTITIES + 5)
    ours, plain = (read_matrix(each, "item", ids, FEATURES) for each in (store, one))
    assert ours.found.tolist() == plain.found.tolist() and ours.found.any() and not ours.found.all()
    assert ours.event_us.tolist() == plain.event_us.tolist()
    for name in FEATURES:
        assert ours.columns[name].valid.tolist() == plain.columns[name].valid.tolist()
        assert [np.array(v).tolist() for v in ours[name]] == [np.array(v).tolist() for v in plain[name]]
    read = matrix_reader(store, asked)
    server.hang()
    began = time.monotonic()
    with pytest.raises(redis.exceptions.RedisError):
        read(ids[:1])
    assert time.monotonic() - began < FAST_S
    server.wake()
    assert read(ids)[0].found.tolist() == plain.found.tolist()
