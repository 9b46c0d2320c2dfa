"""Events from a Redis stream or a file: read by a consumer group, ingested, and only then acknowledged.

An entry that was delivered but not acknowledged is delivered again: to the same consumer when it returns, or to
another one if it stays away. Invalid entries go to the dead letter with a reason (``feature_repo.dead_letters``).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import redis

from dataset.contracts import DataError
from dataset.records import Event, Rule
from dataset.shop_ids import Kinds
from feature_repo import dead_letters
from feature_repo.dead_letters import DeadLetter
from feature_repo.ingest.arrivals import parsed
from feature_repo.ingest.ingestor import Ingested, Ingestor
from feature_repo.online import StoreUnavailable
from feature_repo.shop_ids import shop_ids
from moonstore.errors import StoreError

log = logging.getLogger(__name__)

GROUP, FIELD = "moon", b"event"
AT_ONCE = 500  # entries per read
WAIT_MS, CLAIM_AFTER_MS, CLAIM_EVERY_S = 200, 5000, 1.0
RETRY_S = 0.05  # between tries while stream or store does not answer
MAX_LENGTH = 1_000_000  # entries a stream keeps, approximately
UNREACHABLE = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
Entry = tuple[Any, bytes]  # name to acknowledge it by, JSON
Refused = tuple[str, str]  # reason, JSON or whatever came


class Source(Protocol):
    """A source of events with at-least-once delivery.

    Attributes:
        door: name of this way in, for refused events.
    """

    door: str

    def receive(self) -> list[Entry]:
        """The next entries, possibly none; redis' ConnectionError or TimeoutError if the source does not answer."""

    def acknowledge(self, names: Sequence[Any]) -> None:
        """Mark entries as processed; they are not delivered again."""

    def redeliver(self) -> None:
        """Deliver unacknowledged entries again."""

    def ended(self) -> bool:
        """Whether the source is exhausted."""


class RedisStream:
    """A stream of a Redis server, read as one consumer of a group.

    Args:
        url: ``redis://host:port/db/stream``.
        consumer: name of this consumer; one that restarts under the same name resumes where it was.

    Raises:
        StoreError: malformed address.
    """

    door = "stream"

    def __init__(self, url: str, consumer: str) -> None:
        self._client, self._stream = connect(url)
        self._consumer = consumer
        self._pending: bytes | None = b"0"  # resume after this one of our own entries; None: read new ones
        self._claimed_at = 0.0

    def receive(self) -> list[Entry]:
        """Our own unacknowledged entries first, then those of consumers that went away, then new ones."""
        try:
            return self._receive()
        except redis.exceptions.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._client.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
            return []

    def acknowledge(self, names: Sequence[Any]) -> None:
        """Remove entries from the group's pending list."""
        if names:
            self._client.xack(self._stream, GROUP, *names)

    def redeliver(self) -> None:
        """Resume at the first unacknowledged entry."""
        self._pending = b"0"

    def ended(self) -> bool:
        """Never: a stream has no end."""
        return False

    def _receive(self) -> list[Entry]:
        if self._pending is not None:
            found = self._read(self._pending, None)
            self._pending = found[-1][0] if found else None
            return found
        if time.monotonic() - self._claimed_at > CLAIM_EVERY_S:
            self._claimed_at = time.monotonic()
            claimed: Any = self._client.xautoclaim(
                self._stream, GROUP, self._consumer, CLAIM_AFTER_MS, count=AT_ONCE
            )
            if claimed[1]:
                return self._whole(claimed[1])
        return self._read(b">", WAIT_MS)

    def _read(self, after: bytes, wait_ms: int | None) -> list[Entry]:
        answer: Any = self._client.xreadgroup(
            GROUP, self._consumer, {self._stream: after}, count=AT_ONCE, block=wait_ms
        )
        return self._whole(answer[0][1]) if answer else []

    def _whole(self, entries: Sequence[tuple[bytes, dict[bytes, bytes] | None]]) -> list[Entry]:
        """Entries the stream still holds; entries it has trimmed are lost, and acknowledged."""
        self.acknowledge([name for name, fields in entries if not fields])
        return [(name, fields.get(FIELD, b"")) for name, fields in entries if fields]


class EventFile:
    """A file with one event as JSON per line, read from its beginning.

    Args:
        path: of the file.
    """

    door = "file"

    def __init__(self, path: Path) -> None:
        self._lines = [
            (number, line) for number, line in enumerate(path.read_bytes().splitlines(), 1) if line
        ]

    def receive(self) -> list[Entry]:
        """The next lines, named by their line numbers."""
        return self._lines[:AT_ONCE]

    def acknowledge(self, names: Sequence[Any]) -> None:
        """Advance past these lines."""
        self._lines = self._lines[len(names) :]

    def redeliver(self) -> None:
        """Nothing to do: lines are delivered until they are acknowledged."""

    def ended(self) -> bool:
        """Whether all lines are acknowledged."""
        return not self._lines


def connect(url: str) -> tuple[redis.Redis, str]:
    """A client and the stream's name for ``redis://host:port/db/stream``.

    Raises:
        StoreError: malformed address.
    """
    parts = urlsplit(url)
    database, _, stream = parts.path.strip("/").partition("/")
    if parts.scheme != "redis" or not parts.hostname or not database.isdigit() or not stream:
        raise StoreError(f"expected an address like redis://localhost:6379/0/events, found {url!r}")
    timeouts = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0}
    return redis.Redis.from_url(url.removesuffix(f"/{stream}"), **timeouts), stream


def send(client: redis.Redis, stream: str, events: Sequence[Event]) -> None:
    """Append events to a stream, as a producer does."""
    with client.pipeline(transaction=False) as pipe:
        for one in events:
            text = one.model_dump_json(exclude_none=True)
            pipe.xadd(stream, {FIELD: text}, maxlen=MAX_LENGTH, approximate=True)
        pipe.execute()


def consume(source: Source, ingestor: Ingestor, store_dir: Path) -> Iterator[Ingested]:
    """Ingest a source until it ends; waits while the source or the store does not answer.

    Yields:
        the counts of each delivery.
    """
    while not source.ended():
        try:
            entries = source.receive()
            if not entries:
                continue
            good, bad = _parsed(entries, shop_ids(store_dir).kinds)
            found = _ingested(ingestor, source.door, good, bad)
            for reason, event in bad:
                dead_letters.put(store_dir, dead_letters.EVENTS, source.door, reason, event)
            source.acknowledge([name for name, _ in entries])
            yield replace(found, refused=len(bad))
        except (StoreUnavailable, *UNREACHABLE) as error:
            log.warning("waiting: %s", error)
            source.redeliver()
            time.sleep(RETRY_S)


def retry_event(letter: DeadLetter, ingestor: Ingestor, kinds: Kinds) -> None:
    """Ingest an event of the dead letter, and remove it from there.

    Args:
        letter: a record of the kind ``events``.
        ingestor: of the store.
        kinds: what the shop's ids are.

    Raises:
        DataError: it still is no event, or is refused.
        StoreUnavailable: the online store does not answer.
    """
    text = letter.record if isinstance(letter.record, str) else json.dumps(letter.record)
    found = ingestor.ingest([parsed(Event, text, kinds)], letter.door)
    if found.conflicts:
        raise DataError(f"{letter.id}: {Rule.USED_ID.format('event_id')}")


def _parsed(entries: Sequence[Entry], kinds: Kinds) -> tuple[list[Event], list[Refused]]:
    good: list[Event] = []
    bad: list[Refused] = []
    for _, text in entries:
        try:
            good.append(parsed(Event, text, kinds))
        except DataError as error:
            bad.append((str(error), text.decode(errors="replace")))
    return good, bad


def _ingested(ingestor: Ingestor, door: str, events: list[Event], bad: list[Refused]) -> Ingested:
    """Ingest all events in one call; if one is refused, one by one."""
    if not events:
        return Ingested(0, 0, 0)
    try:
        return ingestor.ingest(events, door)
    except DataError as error:
        if len(events) == 1:
            bad.append((str(error), events[0].model_dump_json(exclude_defaults=True)))
            return Ingested(0, 0, 0)
    total = Ingested(0, 0, 0)
    for one in events:
        total = total.plus(_ingested(ingestor, door, [one], bad))
    return total
