"""How soon an event is in its user's online history, and ingested events per second; Redis persists to a file (AOF).

A producer appends events to a stream at a steady rate, a consumer in its own process ingests them, and a reader polls
the histories of some of the users, as a request would read them, until the events are there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import redis

from dataset.records import Event
from evaluation.bench.frame import simulated
from evaluation.bench.lines import Line, line, line_below
from evaluation.bench.local_redis import RedisServer
from feature_repo.create import create_store
from feature_repo.ingest.clock import wall
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.stream import RedisStream, consume, send
from feature_repo.online import OnlineReader
from feature_repo.store import materialize
from feature_repo.views import HISTORY

CLICKS, RATE, SECONDS, BACKLOG = 100_000, 500, 10.0, 20_000
EVERY, AT_ONCE = 10, 5  # every how many events one is looked for; events per message
P99_GOAL_MS = 100.0
STREAM, START_S, LONG_S = "events", 60.0, 300.0


def bench_ingest(folder: Path, seconds: float = SECONDS, backlog: int = BACKLOG) -> Iterator[Line]:
    """Measure freshness at ``RATE`` events a second, then the rate at which a backlog is ingested.

    Args:
        folder: an empty folder.
        seconds: duration of the steady stream.
        backlog: number of events in the backlog.

    Raises:
        RuntimeError: an event has not arrived within ``LONG_S``.
    """
    with RedisServer("--appendonly", "yes", "--dir", str(folder)) as server:
        store_dir, shop = folder / "ingest_store", simulated(CLICKS)
        create_store(store_dir, shop, shop, "redis", server.url())  # type: ignore[arg-type]
        materialize(store_dir, wall(), ("user_history", "user_profile"))
        users = int(shop.users.num_rows)
        client = server.client()
        consumer = multiprocessing.get_context("spawn").Process(
            target=_consume, args=(store_dir, f"{server.url()}/{STREAM}")
        )
        consumer.start()
        try:
            reader = OnlineReader(store_dir, HISTORY)
            _seen(client, reader, users, 1, RATE)  # the first one waits for the process to start
            took_ms = _seen(client, reader, users, int(seconds * RATE), RATE)
            title = f"events at {RATE} a second"
            yield line(f"{title}: ms until one is in its user's online history, median", took_ms)
            p99 = float(np.quantile(took_ms, 0.99))
            yield line_below(f"{title}: the same, p99 of {len(took_ms)}", [p99], P99_GOAL_MS)
            began = time.monotonic()
            send(client, STREAM, _events(2 * 10**9, backlog, users))
            _until(lambda: not _left(client), LONG_S)
            yield line(
                "a backlog of events: ingested per second, one consumer",
                [backlog / (time.monotonic() - began)],
            )
        finally:
            assert consumer.pid is not None
            os.kill(consumer.pid, signal.SIGKILL)
            consumer.join()


def _consume(store_dir: Path, url: str) -> None:
    for _ in consume(RedisStream(url, "bench"), Ingestor(store_dir), store_dir):
        pass


def _events(first: int, count: int, users: int) -> list[Event]:
    """Clicks on distinct items, so that an event can be recognised by its item."""
    user = np.random.default_rng(first).integers(0, users, count).tolist()
    return [Event(event_id=first + n, user_id=user[n], item_id=first + n, type="click") for n in range(count)]


def _seen(client: redis.Redis, reader: OnlineReader, users: int, count: int, rate: float) -> list[float]:
    """Milliseconds from sending some of ``count`` events until their users' histories have them."""
    events = _events(10**9 + count, count, users)
    began, sent = time.monotonic(), 0
    waiting: dict[int, tuple[int, float]] = {}  # by item
    took = []
    while sent < count or waiting:
        due = min(int((time.monotonic() - began) * rate) + 1, count)
        if due - sent >= AT_ONCE or sent < due == count:
            some = events[sent:due]
            send(client, STREAM, some)
            now = time.monotonic()
            waiting |= {int(one.item_id): (int(one.user_id), now) for one in some[-sent % EVERY :: EVERY]}
            sent = due
        for item, (user, at) in list(waiting.items()):
            if item in reader.read_user(user, wall()).history.item_id:
                took.append((time.monotonic() - at) * 1e3)
                del waiting[item]
            elif time.monotonic() - at > START_S:
                raise RuntimeError(f"the event of item {item} was not online within {START_S:g} s")
        time.sleep(0.001)
    return took


def _left(client: redis.Redis) -> bool:
    """Whether the consumer group has unread or unacknowledged events."""
    groups: Any = client.xinfo_groups(STREAM)
    return bool(groups[0]["pending"]) or groups[0]["lag"] != 0


def _until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the backlog was not ingested within {seconds:g} s")
        time.sleep(0.01)
