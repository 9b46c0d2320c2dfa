"""Events of a Redis stream reach the histories and the log exactly once, whatever is killed on the way.

Run: pytest tests/test_stream.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import redis
from conftest import make_world
from test_ingest import END, Clock, offline, online, some_events

from dataset.contracts import DataError
from evaluation.bench.local_redis import RedisServer
from feature_repo import dead_letters
from feature_repo.create import create_store
from feature_repo.ingest import stream
from feature_repo.ingest.clock import ShopClock
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import Ingested, Ingestor
from feature_repo.ingest.journal import Journal
from feature_repo.ingest.stream import EventFile, RedisStream, connect, consume, send
from feature_repo.store import known_until, materialize
from moonstore.errors import StoreError

pytestmark = pytest.mark.redis
ROOT = Path(__file__).resolve().parents[1]
STREAM = "events"


@pytest.fixture()
def shop(tiny_world, tmp_path, redis_server):
    """A store on SQLite, and a stream on an empty database of Redis."""
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    client = redis.Redis.from_url(redis_server.url(8))
    client.flushdb()
    return tmp_path / "store", client, f"{redis_server.url(8)}/{STREAM}"


class Ending:
    """A stream that ends when told to."""

    def __init__(self, stream, ended):
        self._stream, self.ended = stream, ended

    def __getattr__(self, name):
        return getattr(self._stream, name)


def drain(source, ingestor, store, deliveries=None):
    """Consume until nothing comes any more."""
    found, quiet = [], 0

    def stop():
        nonlocal quiet
        quiet += 1
        return quiet > 3 or (deliveries is not None and len(found) >= deliveries)

    for one in consume(Ending(source, stop), ingestor, store):
        found.append(one)
        quiet = 0
    total = Ingested(0, 0, 0)
    for one in found:
        total = total.plus(one)
    return total


def test_entries_are_ingested_once_and_acknowledged(tiny_world, shop):
    store, client, url = shop
    events = some_events(tiny_world, 700)
    send(client, STREAM, events)
    clock = Clock()
    assert drain(RedisStream(url, "one"), Ingestor(store, clock), store).accepted == 700
    assert client.xpending(STREAM, "moon")["pending"] == 0
    assert client.xlen(STREAM) == 700  # other groups may still want them
    send(client, STREAM, events[:50])
    total = drain(RedisStream(url, "one"), Ingestor(store, clock), store)
    assert (total.accepted, total.duplicates) == (0, 50)
    assert fold(store) == 700


def test_what_is_no_event_is_set_aside_and_holds_up_nothing(tiny_world, shop):
    store, client, url = shop
    events = some_events(tiny_world, 20)
    future = events[3].model_copy(update={"event_id": 99_999, "event_time": END + timedelta(hours=1)})
    send(client, STREAM, [*events[:10], future])
    client.xadd(STREAM, {"event": b'{"event_id": 1}'})
    client.xadd(STREAM, {"other": b"x"})
    client.xadd(STREAM, {"event": b"\xff"})
    send(client, STREAM, events[10:])
    assert drain(RedisStream(url, "one"), Ingestor(store, Clock()), store).accepted == 20
    letters = list(dead_letters.letters(store, "events"))
    reasons = [one.reason for one in letters]
    assert {one.door for one in letters} == {"stream"} and "\ufffd" in {one.record for one in letters}
    assert len(reasons) == 4 and sum("user_id" in reason for reason in reasons) == 1
    assert sum("[99999]" in reason for reason in reasons) == 1
    assert client.xpending(STREAM, "moon")["pending"] == 0


def test_what_one_left_unacknowledged_comes_again_to_it_or_to_another(tiny_world, shop, monkeypatch):
    store, client, url = shop
    send(client, STREAM, some_events(tiny_world, 30))
    gone = RedisStream(url, "gone")
    gone.receive()  # makes the group
    while not (delivered := gone.receive()):
        pass
    assert len(delivered) == 30
    ingestor = Ingestor(store, Clock())
    assert drain(RedisStream(url, "other"), ingestor, store).accepted == 0  # too soon to take them over
    monkeypatch.setattr(stream, "CLAIM_AFTER_MS", 0)
    other = RedisStream(url, "other")
    assert drain(other, ingestor, store, deliveries=1).accepted == 30
    monkeypatch.undo()
    send(client, STREAM, some_events(tiny_world, 5, first_id=70_000))
    back = RedisStream(url, "gone")
    while not (delivered := back.receive()):
        pass
    assert len(delivered) == 5
    assert drain(RedisStream(url, "gone"), ingestor, store).accepted == 5  # under its old name


def test_entries_wait_while_the_store_does_not_answer(tiny_world, tmp_path, redis_server, own_redis):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split, "redis", own_redis.url())
    client = redis.Redis.from_url(redis_server.url(9))
    client.flushdb()
    ingestor = Ingestor(tmp_path / "store", Clock())
    own_redis.kill()
    send(client, STREAM, some_events(tiny_world, 40))
    source = RedisStream(f"{redis_server.url(9)}/{STREAM}", "one")
    began = time.monotonic()
    ending = Ending(source, lambda: time.monotonic() > began + 1)
    assert list(consume(ending, ingestor, tmp_path / "store")) == []
    assert client.xpending(STREAM, "moon")["pending"] == 40
    own_redis.restart()
    drain(source, ingestor, tmp_path / "store")
    assert client.xpending(STREAM, "moon")["pending"] == 0
    assert Journal(tmp_path / "store").table().num_rows == 40
    seen = [online(tmp_path / "store", user, END + timedelta(seconds=1)) for user in tiny_world.user_ids]
    assert sum(len(items) for _, items in seen) == sum(
        event.type != "impression" for event in some_events(tiny_world, 40)
    )


def test_a_file_is_ingested_line_by_line(tiny_world, shop, tmp_path):
    store, _, _ = shop
    events = some_events(tiny_world, 1200)
    lines = [event.model_dump_json(exclude_none=True) for event in events]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines[:600], "{}", "", *lines[600:]]) + "\n")
    ingestor = Ingestor(store, Clock())
    found = list(consume(EventFile(tmp_path / "events.jsonl"), ingestor, store))
    assert sum(one.accepted for one in found) == 1200 and sum(one.refused for one in found) == 1
    assert [one.door for one in dead_letters.letters(store)] == ["file"]


@pytest.mark.parametrize("url", ["redis://host/0", "http://host/0/events", "redis://host/x/events", "events"])
def test_a_malformed_address_is_refused(url):
    with pytest.raises(StoreError, match="redis://localhost:6379/0/events"):
        connect(url)


def consumer(folder, url, name):
    """``moon ingest`` in a process of its own."""
    command = [sys.executable, "-m", "moon", "ingest", url, "--run", str(folder), "--consumer", name]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_of_the_consumer_or_of_redis_loses_nothing_and_counts_nothing_twice(tmp_path):
    """The stream and the online store live in one Redis that appends to a file; both sides are killed at random."""
    world = make_world(seed=5, users=30, events=600)
    # By default Redis answers before it writes, for up to two seconds where the disk is slow to sync: what it had
    # accepted is then lost with it, and no consumer can know.
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path))
    store = tmp_path / "run" / "store"
    create_store(store, world.dataset, world.split, "redis", server.url())
    materialize(store, known_until(store))
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({"data": "marketplace", "size_name": "nano", "seed": 0, "profile": "redis"})
    )
    stamps = tmp_path / "run" / "stages"
    stamps.mkdir()
    from moon import journey
    from moonstore.files import write_json

    run = journey.load(tmp_path / "run")
    for verb in ("dataset", "split", "store"):
        write_json(stamps / f"{verb}.json", {"key": journey._key(run, verb), "seconds": 0.0})
    clock = ShopClock(store, END)
    client = redis.Redis(port=server.port, retry=None)
    rng = np.random.default_rng(0)
    events, sent, lives = some_events(world, 1500, first_id=10**6), 0, 0
    workers = [consumer(tmp_path / "run", f"{server.url()}/{STREAM}", name) for name in ("one", "two")]
    try:
        while sent < len(events):
            try:
                send(client, STREAM, events[sent : sent + 5])
                sent += 5
            except redis.exceptions.ConnectionError:
                time.sleep(0.02)  # sent or not: sent again
                continue
            if sent % 250 == 0:
                pending = client.xlen(STREAM)
                until(lambda: journal_rows(store) >= sent * 0.5)  # noqa: B023
                assert pending
                time.sleep(float(rng.random()) * 0.05)
                if lives % 3 == 2:
                    server.kill()
                    server.restart()
                else:
                    place = lives % 2
                    os.kill(workers[place].pid, signal.SIGKILL)
                    workers[place].wait()
                    name = ("one", "two")[place]
                    workers[place] = consumer(tmp_path / "run", f"{server.url()}/{STREAM}", name)
                lives += 1
        assert lives >= 5
        until(lambda: journal_rows(store) == len(events), 120)
        until(lambda: client.xpending(STREAM, "moon")["pending"] == 0)
        time.sleep(0.1)
        users = world.user_ids.tolist()
        seen = [online(store, user, clock()) for user in users]
        assert fold(store) == len(events)
        assert seen == offline(store, users, clock())
        behaviour = sum(event.type != "impression" for event in events)
        before = sum(count for count, _ in offline(store, users, END))
        assert sum(count for count, _ in seen) == before + behaviour
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        server.kill()


def journal_rows(store):
    """How many events are in the journal."""
    return sum(path.read_bytes().count(b"\n") for path in (store / "data" / "events").glob("*.jsonl"))


def test_a_refused_event_alone_is_told_apart_from_its_batch(tiny_world, shop):
    store, _, _ = shop
    events = some_events(tiny_world, 3)
    late = events[1].model_copy(update={"event_time": END + timedelta(hours=1)})
    with pytest.raises(DataError):
        Ingestor(store, Clock()).ingest([events[0], late, events[2]])
    assert Journal(store).table().num_rows == 0
