"""An event is its sender, its id and what it says: told again it changes nothing, another under its id is refused.

Run: pytest tests/test_event_identity.py
"""

import hashlib
import json
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from fake_shop import recommender
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest import END, Clock, offline, online
from test_stream import drain

from dataset.contracts import EVENT_TYPES, EVENTS
from dataset.identity import event_content, event_key
from dataset.records import Event
from feature_repo.create import create_store
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.journal import Journal
from feature_repo.ingest.known import LoggedEvents, told
from feature_repo.ingest.stream import FIELD, EventFile, RedisStream, consume
from feature_repo.sources import DATA, LOG
from serving.app import create_app
from serving.intake import Intake
from serving.settings import Settings

DOORS = ["call", "file", "HTTP", pytest.param("stream", marks=pytest.mark.redis)]
REASON = "another event has this event_id"
FREE = 9_000_003
ONE = {"event_id": 9_000_001, "user_id": 1, "item_id": 2, "type": "click"}
OTHERS = [
    {"user_id": 3},
    {"item_id": 3},
    {"type": "cart"},
    {"type": "rating", "value": 0.0},
    {"query_id": 0},
    {"request_id": 0},
    {"position": 0},
    {"event_time": "2026-02-01T10:00:00Z"},
]


class Shop:
    """A store, and events told at one of its doors."""

    def __init__(self, store, door, server=None):
        self.store, self.door, self.clock = store, door, Clock()
        self._server, self._ingestor = server, Ingestor(store, self.clock)

    def tell(self, *events):
        """(accepted, duplicates, conflicts)."""
        self.clock.pass_()
        if self.door == "HTTP":
            return self._post(events)
        if self.door == "call":
            found = [self._ingestor.ingest([Event(**one) for one in events])]
        elif self.door == "file":
            path = self.store.parent / "events.jsonl"
            path.write_text("\n".join(map(json.dumps, events)))
            found = list(consume(EventFile(path), self._ingestor, self.store))
        else:
            client = redis.Redis.from_url(self._server.url(20))
            for one in events:
                client.xadd("events", {FIELD: json.dumps(one)})
            source = RedisStream(f"{self._server.url(20)}/events", "one")
            found = [drain(source, self._ingestor, self.store, deliveries=1)]
        counts = [(one.accepted, one.duplicates, len(one.conflicts)) for one in found]
        return tuple(np.sum(counts, axis=0).tolist())

    def _post(self, events):
        app = create_app(Settings(run=self.store.parent), recommender(), Intake(self.store, self.clock))
        client = TestClient(app)
        answer = client.post("/events", json=events)
        said = answer.json()
        conflicts = said.get("conflicts", 0)
        assert answer.status_code == (409 if conflicts else 200)
        assert f'moon_events_total{{what="conflicts"}} {float(conflicts)}' in client.get("/metrics").text
        if conflicts:
            assert REASON in said["error"] and str(events[-1]["event_id"]) in said["error"]
        return said["accepted"], said["duplicates"], conflicts

    def letters(self):
        """The records of the dead letter."""
        folder = self.store / "data" / "dead_letter" / "events"
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.fixture
def store(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    return tmp_path / "store"


@pytest.fixture(params=DOORS)
def shop(request, store):
    server = request.getfixturevalue("redis_server") if request.param == "stream" else None
    if server is not None:
        redis.Redis.from_url(server.url(20)).flushdb()
    return Shop(store, request.param, server)


def test_told_again_it_is_a_duplicate_and_another_under_its_id_is_refused(shop):
    more = {**ONE, "event_id": 9_000_002}
    assert shop.tell(ONE) == (1, 0, 0)
    assert shop.tell(ONE) == (0, 1, 0)
    for other in OTHERS:
        assert shop.tell({**ONE, **other}) == (0, 0, 1), other
    assert shop.tell(more, {**ONE, "item_id": 3}) == (1, 0, 1)  # the others of a batch are taken
    free = {**ONE, "event_id": FREE}
    assert shop.tell(free, free, {**free, "item_id": 9}) == (1, 1, 1)
    kept = Journal(shop.store).table()
    assert sorted(kept["event_id"].to_pylist()) == [9_000_001, 9_000_002, FREE]
    assert set(kept["item_id"].to_pylist()) == {2}
    letters = shop.letters()
    assert len(letters) == len(OTHERS) + 1  # one of them was told twice
    assert {(one["door"], one["reason"]) for one in letters} == {(shop.door, REASON)}
    assert {**ONE, "item_id": 3} in [one["record"] for one in letters] and all(one["time"] for one in letters)


def test_two_senders_may_use_one_id(shop):
    told_by = [ONE, {**ONE, "sender": "app", "item_id": 3}, {**ONE, "sender": "till", "item_id": 4}]
    assert shop.tell(*told_by) == (3, 0, 0)
    assert shop.tell(*told_by) == (0, 3, 0)
    assert shop.tell({**told_by[1], "item_id": 4}) == (0, 0, 1)
    assert shop.letters()[0]["record"]["sender"] == "app"
    shop.clock.pass_()  # what arrives together keeps its order, whatever the ids are
    assert online(shop.store, 1, shop.clock.now)[1] == [2, 3, 4]
    assert fold(shop.store) == 3
    assert offline(shop.store, [1], shop.clock.now)[0][1] == [2, 3, 4]


def test_a_folded_event_and_one_of_the_imported_log_are_known_by_what_they_say(tiny_world, store):
    shop = Shop(store, "call")
    assert shop.tell(ONE) == (1, 0, 0)
    row = tiny_world.split.log.to_pylist()[0]
    imported = {name: value for name, value in row.items() if name != "available_time" and value is not None}
    other = {**imported, "request_id": 5}
    assert fold(store) == 1
    for again in (shop, Shop(store, "call")):  # the process that was there, and one that starts
        assert again.tell(ONE, imported) == (0, 2, 0)
        assert again.tell({**ONE, "item_id": 3}, other) == (0, 0, 2)
    assert Journal(store).table().num_rows == 0


def test_a_restart_and_another_process_know_what_was_told(store):
    here, there = Shop(store, "call"), Shop(store, "call")
    assert here.tell(ONE) == (1, 0, 0)
    assert there.tell(ONE, {**ONE, "item_id": 3}) == (0, 1, 1)
    assert Shop(store, "call").tell(ONE, {**ONE, "item_id": 3}) == (0, 1, 1)


def test_the_same_is_the_same_however_it_is_written(store):
    shop = Shop(store, "call")
    rating = {**ONE, "type": "rating", "value": 0.1, "event_time": "2026-02-01T10:00:00+08:00"}
    assert shop.tell(rating) == (1, 0, 0)
    same = [
        {"value": float(np.float32(0.1))},
        {"event_time": "2026-02-01T02:00:00.000000Z"},
        {"event_time": None},  # says less, nothing else
    ]
    for other in same:
        assert shop.tell({**rating, **other}) == (0, 1, 0), other
    assert shop.tell({**rating, "value": 0.2}) == (0, 0, 1)
    assert shop.tell({**rating, "event_time": "2026-02-01T10:00:00.000001+08:00"}) == (0, 0, 1)


def test_an_event_of_a_clock_that_is_ahead_is_known_again(store):
    shop = Shop(store, "call")
    ahead = {**ONE, "event_time": (END + timedelta(minutes=4)).isoformat()}
    assert shop.tell(ahead) == (1, 0, 0)
    assert shop.tell(ahead) == (0, 1, 0)


def slow_content(row):
    """``event_content`` of one event, in Python's integers."""
    bits = -1
    if row["value"] is not None:
        bits = int(np.array([row["value"] or 0.0], "<f4").view("<i4")[0])
    ids = [row[name] for name in ("user_id", "item_id", "query_id", "request_id", "position")]
    mixed, most = 0, 2**64 - 1
    for number in [*(-1 if one is None else one for one in ids), EVENT_TYPES.index(row["type"]), bits]:
        mixed = (mixed + 0x9E3779B97F4A7C15 + number) & most
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & most
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & most
        mixed ^= mixed >> 31
    return mixed - 2**64 if mixed >= 2**63 else mixed


NUMBER = st.integers(0, 2**63 - 1)
ROW = st.fixed_dictionaries(
    {
        **{name: NUMBER for name in ("event_id", "user_id", "item_id")},
        **{name: st.none() | NUMBER for name in ("query_id", "request_id")},
        "type": st.sampled_from(EVENT_TYPES),
        "position": st.none() | st.integers(0, 2**31 - 1),
        "value": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "event_time": st.just(END),
        "available_time": st.just(END),
    }
)


@given(rows=st.lists(ROW, max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_content_of_columns_is_that_of_one_event_at_a_time(rows):
    table = pa.Table.from_pylist(rows, schema=EVENTS)
    assert event_content(table).tolist() == [slow_content(row) for row in rows]


def test_the_log_finds_what_a_loop_finds(tiny_world, store):
    logged = LoggedEvents.read(store / DATA / LOG)
    known = dict(told(pq.read_table(store / DATA / LOG)))
    assert len(known) == len(tiny_world.split.log) > 100
    for event_id in [*known, 0, 10**17, max(known) + 1]:
        assert logged.find(event_id) == known.get(event_id)


def test_the_id_of_a_named_sender_is_the_same_everywhere():
    assert event_key("", 7) == 7
    expected = int.from_bytes(hashlib.sha256(b'["app", 7]').digest()[:8], "big") // 2
    assert event_key("app", 7) == expected < 2**63
    ids = {event_key(sender, number) for sender in ("a", "b", "7") for number in range(1000)}
    assert len(ids) == 3000
