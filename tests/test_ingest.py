"""An event is kept once, seen at once, and trained on as it was seen, whoever tells of it and however often.

Run: pytest tests/test_ingest.py
"""

import json
import threading
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, TinySplit, make_world

from dataset.contracts import TIME, DataError
from dataset.records import Event
from feature_repo.create import create_store
from feature_repo.frames.join import training_frame
from feature_repo.ingest.arrivals import parse_events, parsed
from feature_repo.ingest.clock import ShopClock
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import VISIBLE_AFTER, HistoryWriter, Ingested, Ingestor
from feature_repo.ingest.journal import Journal
from feature_repo.online import OnlineReader, StoreUnavailable
from feature_repo.sources import LOG, read_source
from feature_repo.store import known_until, materialize, open_store
from feature_repo.views import HISTORY

END = START + 60 * DAY
SECOND = timedelta(seconds=1)
TYPES = ("impression", "click", "cart", "purchase", "rating")


class Clock:
    """Time that passes when told to."""

    def __init__(self, now=END):
        self.now = now

    def __call__(self):
        return self.now

    def pass_(self, by=SECOND):
        self.now += by
        return self.now


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def store(request, tiny_world, tmp_path):
    url = None
    if request.param == "redis":
        import redis

        url = request.getfixturevalue("redis_server").url(12)
        redis.Redis.from_url(url).flushdb()
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split, request.param, url)
    open_store(tmp_path / "store").materialize(START, END, feature_views=["user_history", "user_profile"])
    return tmp_path / "store"


def some_events(world, count, seed=0, first_id=10_000, users=None):
    rng = np.random.default_rng(seed)
    users = world.user_ids if users is None else users
    kinds = rng.choice(TYPES, count, p=[0.3, 0.3, 0.1, 0.1, 0.2]).tolist()
    return [
        Event(
            event_id=first_id + number,
            user_id=int(rng.choice(users)),
            item_id=int(rng.choice(world.item_ids)),
            type=kind,
            value=float(rng.integers(1, 6)) if kind == "rating" else None,
        )
        for number, kind in enumerate(kinds)
    ]


def online(store, user, when, history=HISTORY):
    frame = OnlineReader(store, history).read_user(int(user), when)
    return frame.requests.column("user_events").to_pylist()[0], frame.history.item_id.tolist()


def offline(store, users, when, history=HISTORY):
    rows = pa.table(
        {
            "request_id": np.arange(len(users)),
            "user_id": np.asarray(users, np.int64),
            "time": pa.array([when] * len(users), TIME),
            "query_id": pa.nulls(len(users), pa.int64()),
            "item_id": np.ones(len(users), np.int64),
        }
    )
    frame = training_frame(store, rows, history)
    counts = frame.requests.column("user_events").to_pylist()
    return [(count, frame.take(row, row + 1).history.item_id.tolist()) for row, count in enumerate(counts)]


def test_the_next_training_frame_has_what_serving_saw(tiny_world, store):
    """Requests in between arrivals, told of again and again, out of order and twice in a batch."""
    clock = Clock()
    ingestor = Ingestor(store, clock)
    events = some_events(tiny_world, 120)
    rng = np.random.default_rng(1)
    seen = []
    for start in range(0, 120, 12):
        batch = events[start : start + 12]
        again = [events[int(place)] for place in rng.integers(0, start + 12, 6)]
        told = [*batch, *again]
        found = ingestor.ingest([told[int(place)] for place in rng.permutation(len(told))])
        assert (found.accepted, found.duplicates) == (12, 6)
        for _ in range(2):
            clock.pass_()
            seen += [
                (user, clock.now, online(store, user, clock.now)) for user in tiny_world.user_ids.tolist()
            ]
    assert fold(store) == 120
    users = tiny_world.user_ids.tolist()
    expected = {}
    for moment in {when for _, when, _ in seen}:
        expected |= {
            (user, moment): row for user, row in zip(users, offline(store, users, moment), strict=True)
        }
    assert len({tuple(row[1]) for row in expected.values()}) > 50
    for user, when, saw in seen:
        assert saw == expected[user, when]


def test_an_event_is_seen_from_a_moment_on_and_not_before(tiny_world, store):
    clock = Clock()
    event = Event(event_id=1_000_000, user_id=int(tiny_world.user_ids[0]), item_id=7, type="click")
    before = online(store, event.user_id, clock.now)
    assert Ingestor(store, clock).ingest([event]) == Ingested(accepted=1, duplicates=0, late=0)
    available = clock.now + VISIBLE_AFTER
    assert online(store, event.user_id, available) == before
    count, items = online(store, event.user_id, available + timedelta(microseconds=1))
    assert (count, items[-1]) == (before[0] + 1, 7)


def test_an_event_that_is_online_after_it_became_available_is_counted(tiny_world, store):
    times = iter([END, END + VISIBLE_AFTER + SECOND])
    found = Ingestor(store, lambda: next(times)).ingest(some_events(tiny_world, 3))
    assert found == Ingested(accepted=3, duplicates=0, late=3)


def test_what_was_not_online_yet_goes_online_with_the_next_or_when_opened(tiny_world, store, monkeypatch):
    clock = Clock()
    user = int(tiny_world.user_ids[1])
    one, two, three = (
        Event(event_id=n, user_id=user, item_id=n, type="click") for n in (2_000_001, 2_000_002, 2_000_003)
    )
    ingestor = Ingestor(store, clock)
    before, _ = online(store, user, clock.now)

    def gone(self, events):
        raise StoreUnavailable("refused")

    with monkeypatch.context() as broken:
        broken.setattr(HistoryWriter, "push", gone)
        with pytest.raises(StoreUnavailable):
            ingestor.ingest([one])
    assert online(store, user, clock.pass_())[0] == before
    assert ingestor.ingest([two]).accepted == 1
    assert online(store, user, clock.pass_())[1][-2:] == [one.item_id, two.item_id]
    with monkeypatch.context() as broken:
        broken.setattr(HistoryWriter, "push", gone)
        with pytest.raises(StoreUnavailable):
            ingestor.ingest([three])
    Ingestor(store, clock)  # the process was killed; another one takes over
    count, items = online(store, user, clock.pass_())
    assert count == before + 3 and items[-3:] == [one.item_id, two.item_id, three.item_id]


def test_many_writers_of_the_same_users_lose_nothing(tiny_world, store):
    users, writers, each = tiny_world.user_ids[:3], 6, 40
    clock = Clock()
    before = {user: online(store, user, clock.now)[0] for user in users.tolist()}
    failures = []

    def work(number):
        try:
            ingestor = Ingestor(store, clock)
            events = some_events(tiny_world, each, seed=number, first_id=10_000 + number * each, users=users)
            for start in range(0, each, 4):
                ingestor.ingest(events[start : start + 4])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    told = [
        event
        for number in range(writers)
        for event in some_events(tiny_world, each, number, 10_000 + number * each, users)
    ]
    clock.pass_()
    for user in users.tolist():
        mine = sum(event.user_id == user and event.type != "impression" for event in told)
        assert online(store, user, clock.now)[0] == before[user] + mine > before[user] + 40
    assert fold(store) == len(told)
    assert [online(store, user, clock.now) for user in users.tolist()] == offline(store, users, clock.now)


def test_an_event_of_the_log_is_known(tiny_world, store):
    row = tiny_world.split.log.to_pylist()[0]
    event = Event(**{name: value for name, value in row.items() if name in Event.model_fields})
    before = online(store, event.user_id, END)
    clock = Clock()
    assert Ingestor(store, clock).ingest([event]) == Ingested(accepted=0, duplicates=1, late=0)
    assert online(store, event.user_id, clock.pass_()) == before
    assert Journal(store).table().num_rows == 0


def test_an_event_that_was_folded_is_known_to_all_and_nothing_is_folded_twice(tiny_world, store):
    clock = Clock()
    here, there = Ingestor(store, clock), Ingestor(store, clock)
    events = some_events(tiny_world, 10)
    assert here.ingest(events).accepted == 10
    assert fold(store) == 10 and fold(store) == 0
    assert (
        here.ingest(events).accepted
        == there.ingest(events).accepted
        == Ingestor(store, clock).ingest(events).accepted
        == 0
    )
    assert len(read_source(store / "data" / LOG, ["event_id"])) == len(tiny_world.split.log) + 10
    assert there.ingest(some_events(tiny_world, 5, seed=3, first_id=50_000)).accepted == 5
    assert fold(store) == 5


def test_a_fold_that_was_killed_is_completed_by_the_next(tiny_world, store, monkeypatch):
    clock = Clock()
    Ingestor(store, clock).ingest(some_events(tiny_world, 30))
    clock.pass_()
    users = tiny_world.user_ids.tolist()
    before, after = offline(store, users, clock.now), [online(store, user, clock.now) for user in users]
    assert before != after
    opened, survived = pq.ParquetWriter.__init__, 0

    def dies(*arguments, **rest):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        opened(*arguments, **rest)

    while True:  # killed before the first file, before the second, ...
        left = survived
        with monkeypatch.context() as broken:
            broken.setattr(pq.ParquetWriter, "__init__", dies)
            try:
                fold(store)
                break
            except KeyboardInterrupt:
                survived += 1
        assert offline(store, users, clock.now) in (before, after)
    assert survived == 13  # every file of all months: what a killed fold has half replaced is not kept
    assert offline(store, users, clock.now) == after and Journal(store).table().num_rows == 0


def test_materializing_a_folded_log_changes_no_history_and_counts_what_came(tiny_world, store):
    clock = Clock()
    item = int(tiny_world.item_ids[0])
    user = int(tiny_world.user_ids[0])
    shown = [Event(event_id=9000 + n, user_id=user, item_id=item, type="impression") for n in range(5)]
    Ingestor(store, clock).ingest([*shown, *some_events(tiny_world, 40)])
    clock.pass_()
    users = tiny_world.user_ids.tolist()
    seen = [online(store, one, clock.now) for one in users]
    fold(store)
    later = clock.pass_(2 * DAY)
    materialize(store, later)
    assert [online(store, one, later) for one in users] == seen
    reader = OnlineReader(store, HISTORY)
    counted = reader.read(user, [item], later).candidates.column("shown_all").to_pylist()[0]
    log = pq.read_table(store / "data" / LOG).to_pylist()
    assert counted == sum(e["item_id"] == item and e["type"] in ("impression", "rating") for e in log) >= 5


def test_the_journal_survives_a_line_that_was_cut_off(tiny_world, store):
    clock = Clock()
    events = some_events(tiny_world, 6)
    Ingestor(store, clock).ingest(events[:3])
    path = Journal(store).files()[-1]
    line = json.dumps({"event_id": 77, "user_id": 1, "item_id": 1, "type": "click", "available_time": 1})
    path.write_bytes(path.read_bytes() + line[:30].encode())
    assert Ingestor(store, clock).ingest(events).accepted == 3
    table = Journal(store).table()
    assert sorted(table.column("event_id").to_pylist()) == [one.event_id for one in events]


def test_a_clock_that_steps_back_does_not_reorder(tiny_world, store):
    clock = Clock()
    user = int(tiny_world.user_ids[0])
    ingestor = Ingestor(store, clock)
    ingestor.ingest([Event(event_id=5001, user_id=user, item_id=1, type="click")])
    clock.pass_(-5 * SECOND)
    ingestor.ingest([Event(event_id=5002, user_id=user, item_id=2, type="click")])
    available = Journal(store).table().column("available_time").to_pylist()
    assert available == sorted(available)
    assert online(store, user, clock.pass_(10 * SECOND))[1][-2:] == [1, 2]


BAD = [
    ({"event_id": "1"}, "event_id"),
    ({"event_id": 1.0}, "event_id"),
    ({"event_id": True}, "event_id"),
    ({"user_id": -1}, "user_id"),
    ({"user_id": 2**63}, "user_id"),
    ({"item_id": None}, "item_id"),
    ({"type": "look"}, "type"),
    ({"type": "rating"}, "rating without a value"),
    ({"value": 3.0}, "value of an event that is no rating"),
    ({"event_time": "2026-01-01T00:00:00"}, "event_time"),
    ({"position": -1}, "position"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("wrong", "says"), BAD)
def test_a_wrong_event_is_refused_with_its_place(wrong, says):
    good = {"event_id": 1, "user_id": 2, "item_id": 3, "type": "click"}
    with pytest.raises(DataError, match=says):
        parsed(Event, json.dumps(good | wrong))
    with pytest.raises(DataError, match=r"the first fault is at 1[.:]"):
        parse_events(json.dumps([good, good | wrong]))
    assert parse_events(json.dumps([good])) == [parsed(Event, json.dumps(good))]


def test_an_event_of_the_future_is_refused_and_nothing_is_kept(tiny_world, store):
    clock = Clock()
    good = Event(event_id=1, user_id=2, item_id=3, type="click")
    late = good.model_copy(update={"event_id": 2_000_000, "event_time": clock.now + timedelta(minutes=10)})
    with pytest.raises(DataError, match=r"1 of 1 events later than now \(event_id \[2000000\]\)"):
        Ingestor(store, clock).ingest([late])
    assert Journal(store).table().num_rows == 0


def test_an_event_of_a_clock_that_is_ahead_happened_when_it_came(tiny_world, store):
    clock = Clock()
    event = Event(
        event_id=3_000_000, user_id=2, item_id=3, type="click", event_time=clock.now + timedelta(minutes=4)
    )
    Ingestor(store, clock).ingest([event])
    row = Journal(store).table().to_pylist()[0]
    assert row["event_time"] < row["available_time"] == clock.now + VISIBLE_AFTER


def test_two_clocks_of_a_shop_agree_and_run(tmp_path):
    (tmp_path / "data").mkdir()
    one = ShopClock(tmp_path, START)
    set_to = (tmp_path / "data" / "clock.json").read_bytes()
    two = ShopClock(tmp_path, START)  # the second start finds it set
    ShopClock(tmp_path, START - 40 * DAY)  # and none moves it back
    assert (tmp_path / "data" / "clock.json").read_bytes() == set_to
    assert abs(one() - two()) < SECOND and START <= one() < START + SECOND
    ShopClock(tmp_path, START + 40 * DAY)  # the store has an event that the clock has not reached
    assert START + 40 * DAY <= one() < START + 40 * DAY + SECOND
    two.set(START + 50 * DAY)
    assert START + 50 * DAY <= one() < START + 50 * DAY + SECOND
    assert two() <= one() <= two()


def test_a_world_without_events_takes_its_first(tmp_path):
    world = make_world(seed=4, events=0)
    create_store(tmp_path / "store", world.dataset, world.split)
    materialize(tmp_path / "store", known_until(tmp_path / "store"))
    clock = Clock(datetime(2026, 3, 1, tzinfo=END.tzinfo))
    Ingestor(tmp_path / "store", clock).ingest(some_events(world, 20))
    clock.pass_()
    assert fold(tmp_path / "store") == 20
    users = world.user_ids.tolist()
    assert [online(tmp_path / "store", user, clock.now) for user in users] == offline(
        tmp_path / "store", users, clock.now
    )


def test_a_process_that_goes_on_over_a_new_store_takes_its_events(tiny_world, tmp_path):
    """The store is made anew of data that holds what came in; file names begin again."""
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    clock = Clock()
    ingestor = Ingestor(tmp_path / "store", clock)
    events = some_events(tiny_world, 40)
    ingestor.ingest(events)
    known = pa.concat_tables([tiny_world.split.log, Journal(tmp_path / "store").table()])
    create_store(tmp_path / "store", tiny_world.dataset, TinySplit(known))
    journal = Journal(tmp_path / "store")
    more = some_events(tiny_world, 35, seed=9, first_id=90_000)
    journal.append(more[:30], lambda: 1)
    found = ingestor._journal.append([*events, *more], lambda: 2)
    assert (len(found.rows), int(found.accepted.sum()), found.conflicts) == (35, 5, [])
    assert journal.table().num_rows == 35
