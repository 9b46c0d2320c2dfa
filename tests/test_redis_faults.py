"""A Redis that is gone or hangs is reported fast, and used again when it is back.

Run: pytest tests/test_redis_faults.py
"""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import redis
from conftest import DAY, START

from evaluation.bench.faults import ask, fallen, service, whole
from evaluation.bench.local_redis import RedisServer
from feature_repo.create import create_store
from feature_repo.ingest.ingestor import HistoryWriter
from feature_repo.online import OnlineReader, StoreUnavailable
from feature_repo.store import materialize
from moonstore import connection
from moonstore.connection import Address, Wire, command

pytestmark = pytest.mark.redis
MOMENT = START + 35 * DAY
FAST_S = 0.5
PING, PONG = command(b"PING"), b"+PONG\r\n"


@pytest.fixture(scope="module")
def served(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    with RedisServer("--dir", str(folder)) as server:
        create_store(folder / "store", tiny_world.dataset, tiny_world.split, "redis", server.url())
        materialize(folder / "store", MOMENT)
        yield folder / "store", server


def assert_unavailable_fast(call):
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        call()
    assert time.monotonic() - began < FAST_S


def test_a_hanging_redis_is_reported_fast_and_read_again_when_it_wakes(tiny_world, served):
    store, server = served
    reader, writer = OnlineReader(store, 5), HistoryWriter(store)
    user, items = int(tiny_world.user_ids[0]), tiny_world.item_ids
    before = reader.read(user, items, MOMENT)
    with hanging(server):
        assert_unavailable_fast(lambda: reader.read(user, items, MOMENT))
        assert_unavailable_fast(lambda: writer.push(tiny_world.split.log))
        assert_unavailable_fast(lambda: OnlineReader(store, 5).read_user(user, MOMENT))
    after = reader.read(user, items, MOMENT)
    assert after.candidates.equals(before.candidates) and after.requests.equals(before.requests)


def test_a_refusing_redis_is_reported_fast_and_read_again_when_it_is_back(tiny_world, served):
    store, server = served
    reader = OnlineReader(store, 5)
    user, items = int(tiny_world.user_ids[0]), tiny_world.item_ids
    before = reader.read(user, items, MOMENT)
    server.kill()
    assert_unavailable_fast(lambda: reader.read(user, items, MOMENT))
    assert_unavailable_fast(lambda: reader.read_user(user, MOMENT))
    server.restart()
    empty = reader.read(user, items, MOMENT)
    assert not any(empty.candidates.column("item_found").to_pylist())
    materialize(store, MOMENT)
    assert reader.read(user, items, MOMENT).candidates.equals(before.candidates)


@pytest.fixture
def wire(tmp_path):
    """Connections to a server of our own, and the server."""
    with RedisServer("--dir", str(tmp_path)) as server:
        yield Wire(Address("127.0.0.1", server.port), 0.1), server


@contextmanager
def hanging(server):
    """A server that answers nobody; afterwards it does."""
    server.hang()
    try:
        yield
    finally:
        server.wake()


def failing_s(wire, error=redis.exceptions.TimeoutError):
    """How long a question takes that fails."""
    began = time.monotonic()
    with pytest.raises(error):
        wire.ask(PING)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The service over a small shop, and the Redis server of its online store."""
    folder = tmp_path_factory.mktemp("shop")
    with RedisServer("--dir", str(folder)) as server:
        yield service(folder / "store", server, clicks=3000), server


def best_ms(tries):
    """The slowest answer of the best of some tries: another process may have been in the way of the others."""
    return min(max(one.ms for one in answers) for answers in tries)


def test_the_service_answers_while_redis_hangs_and_in_full_when_it_is_back(shop):
    app, server = shop
    whole(ask(app))
    first, later = [], []
    for _ in range(5):
        with hanging(server):
            first.append(fallen(ask(app)))
            later.append([one for _ in range(10) for one in fallen(ask(app))])
        whole(ask(app))
    assert best_ms(first) < 150 and best_ms(later) < 50


def test_twenty_requests_at_once_are_all_answered_while_redis_hangs(shop):
    app, server = shop
    tries = []
    for _ in range(3):
        with hanging(server):
            tries.append(fallen(ask(app, at_once=20)))
        whole(ask(app, at_once=20))
    assert best_ms(tries) < 300


def test_the_service_answers_while_redis_refuses_and_in_full_when_it_is_back(shop):
    app, server = shop
    server.client().save()
    server.kill()
    assert best_ms([fallen(ask(app)) for _ in range(10)]) < 20
    server.restart()
    whole(ask(app))


@pytest.fixture
def connections(monkeypatch):
    """Every address that is connected to, in order."""
    made = []

    def connect(address, until, real=connection.connect):
        made.append(address)
        return real(address, until)

    monkeypatch.setattr(connection, "connect", connect)
    return made


def test_a_stale_connection_is_replaced(wire):
    wire, server = wire
    assert wire.ask(PING).tobytes() == PONG
    server.client().client_kill_filter(_type="normal", skipme=True)
    assert wire.ask(PING).tobytes() == PONG


def test_a_hanging_server_costs_its_deadline_once_and_then_next_to_nothing(wire):
    wire, server = wire
    with hanging(server):
        assert failing_s(wire) < 0.15
        waits = sorted(failing_s(wire) for _ in range(20))
        assert waits[10] < 0.01 and waits[-1] < 0.05  # a look, and at times a new probe
    assert wire.ask(PING).tobytes() == PONG
    assert not wire._breaker.open


def test_one_probe_at_a_time_asks_whether_a_hanging_server_is_back(wire, connections):
    wire, server = wire
    with hanging(server):
        failing_s(wire)
        connections.clear()
        with ThreadPoolExecutor(20) as pool:
            waits = list(pool.map(lambda _: failing_s(wire), range(100)))
        assert len(connections) <= 2 and max(waits) < 0.1  # a second one after half a second
    with ThreadPoolExecutor(20) as pool:
        assert {reply.tobytes() for reply in pool.map(lambda _: wire.ask(PING), range(100))} == {PONG}


@pytest.mark.parametrize("questions", [1, 2])  # before the probe, and while it is on its way
def test_a_server_that_hangs_and_then_dies_refuses_and_is_used_again_when_it_is_back(wire, questions):
    wire, server = wire
    server.hang()
    for _ in range(questions):
        failing_s(wire)
    server.kill()
    for _ in range(3):
        assert failing_s(wire, redis.exceptions.ConnectionError) < 0.02
    server.restart()
    assert wire.ask(PING).tobytes() == PONG


def test_a_refused_question_takes_one_connect(wire, connections):
    wire, server = wire
    assert wire.ask(PING).tobytes() == PONG
    server.kill()
    for _ in range(3):
        connections.clear()
        assert failing_s(wire, redis.exceptions.ConnectionError) < 0.02
        assert len(connections) == 1


def test_a_server_with_a_password_is_probed_and_used_again(wire):
    wire, server = wire
    server.client().config_set("requirepass", "secret")
    secret = Wire(Address("127.0.0.1", wire.address.port, 1, password="secret"), 0.1)
    assert secret.ask(PING).tobytes() == PONG
    server.hang()
    failing_s(secret)
    failing_s(secret)
    with pytest.raises(redis.exceptions.AuthenticationError):  # awake, and asks who we are
        server.wake()
    assert secret.ask(PING).tobytes() == PONG


def test_a_server_that_is_loading_or_wants_a_password_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(reply):
            link, _ = server.accept()
            with link:
                text = link.recv(1 << 16)
                link.sendall(reply + b"$32\r\n" + text[-34:])

        address = Address("127.0.0.1", server.getsockname()[1])
        secret = Address("127.0.0.1", server.getsockname()[1], password="wrong")
        for where, reply, error, says in (
            (address, b"-LOADING Redis is loading\r\n", redis.exceptions.ConnectionError, "LOADING"),
            (secret, b"-WRONGPASS no\r\n", redis.exceptions.ResponseError, "WRONGPASS"),
        ):
            thread = threading.Thread(target=answer, args=(reply,))
            thread.start()
            with pytest.raises(error, match=says):
                Wire(where, 1.0).ask(PING)
            thread.join()
