"""A Redis that is gone or hangs is reported fast, and used again when it is back.

Run: pytest tests/test_redis_faults.py
"""

import signal
import time

import pytest
from conftest import DAY, START, free_port, start_redis

from feature_repo.ingest import HistoryWriter
from feature_repo.online import OnlineReader, StoreUnavailable
from feature_repo.store import create_store, materialize

pytestmark = pytest.mark.redis
MOMENT = START + 35 * DAY
FAST_S = 0.5


@pytest.fixture(scope="module")
def served(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    port = free_port()
    process = start_redis(port, "--dir", str(folder))
    create_store(
        folder / "store",
        tiny_world.dataset,
        tiny_world.split,
        "redis",
        f"redis://127.0.0.1:{port}/0",
    )
    materialize(folder / "store", MOMENT)
    yield folder / "store", port, process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait(10)


def assert_unavailable_fast(call):
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        call()
    assert time.monotonic() - began < FAST_S


def test_a_hanging_redis_is_reported_fast_and_read_again_when_it_wakes(tiny_world, served):
    store, _, process = served
    reader, writer = OnlineReader(store, 5), HistoryWriter(store)
    user, items = int(tiny_world.user_ids[0]), tiny_world.item_ids
    before = reader.read(user, items, MOMENT)
    process.send_signal(signal.SIGSTOP)
    try:
        assert_unavailable_fast(lambda: reader.read(user, items, MOMENT))
        assert_unavailable_fast(lambda: writer.push(tiny_world.split.log))
        assert_unavailable_fast(lambda: OnlineReader(store, 5).read_user(user, MOMENT))
    finally:
        process.send_signal(signal.SIGCONT)
    after = reader.read(user, items, MOMENT)
    assert after.candidates.equals(before.candidates) and after.requests.equals(before.requests)


def test_a_refusing_redis_is_reported_fast_and_read_again_when_it_is_back(tiny_world, served, tmp_path):
    store, port, process = served
    reader = OnlineReader(store, 5)
    user, items = int(tiny_world.user_ids[0]), tiny_world.item_ids
    before = reader.read(user, items, MOMENT)
    process.kill()
    process.wait(10)
    assert_unavailable_fast(lambda: reader.read(user, items, MOMENT))
    assert_unavailable_fast(lambda: reader.read_user(user, MOMENT))
    again = start_redis(port, "--dir", str(tmp_path))
    try:
        empty = reader.read(user, items, MOMENT)
        assert not any(empty.candidates.column("item_found").to_pylist())
        materialize(store, MOMENT)
        assert reader.read(user, items, MOMENT).candidates.equals(before.candidates)
    finally:
        again.kill()
        again.wait(10)
