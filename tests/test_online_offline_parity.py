"""What is served equals what was trained on: the online frame at T is the offline frame at T.

Run: pytest tests/test_online_offline_parity.py
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, TinySplit, make_world
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from dataset.contracts import TIME
from feature_repo.create import create_store
from feature_repo.frames.join import training_frame
from feature_repo.ingest.ingestor import HistoryWriter
from feature_repo.online import OnlineReader
from feature_repo.store import materialize, open_store, use_profile
from moonstore.errors import FutureRowError, StoreError
from moonstore.freshness import US

HISTORY = 7
MOMENT = START + 35 * DAY
UNKNOWN_USER, UNKNOWN_ITEM = 77, 99


@pytest.fixture(scope="module", params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def store(request, tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    url = request.getfixturevalue("redis_server").url(1) if request.param == "redis" else None
    create_store(folder / "store", tiny_world.dataset, tiny_world.split, request.param, url)
    materialize(folder / "store", MOMENT)
    return folder / "store"


def offline_frames(store, users, items, when, query=None):
    """The offline frame of each user with all these items, joined together because a join takes a while."""
    count = len(users) * len(items)
    rows = pa.table(
        {
            "request_id": pa.array(np.repeat(np.arange(len(users)), len(items))),
            "user_id": pa.array(np.repeat(np.array(users, dtype=np.int64), len(items))),
            "time": pa.array([when] * count, TIME),
            "query_id": pa.array([query] * count, pa.int64()),
            "item_id": pa.array(np.tile(np.array(items, dtype=np.int64), len(users))),
        }
    )
    frames = training_frame(store, rows, HISTORY)
    return [frames.take(row, row + 1) for row in range(len(users))]


def assert_same(online, offline):
    assert online.requests.schema == offline.requests.schema
    assert online.candidates.schema == offline.candidates.schema
    assert online.requests.to_pylist() == [{**row, "request_id": 0} for row in offline.requests.to_pylist()]
    assert online.candidates.to_pylist() == offline.candidates.to_pylist()
    assert online.offsets.tolist() == offline.offsets.tolist()
    for name in ("offsets", "item_id", "code", "time_us"):
        assert getattr(online.history, name).tolist() == getattr(offline.history, name).tolist(), name
        assert getattr(online.history, name).dtype == np.int64


def test_online_equals_offline_for_every_user_and_item(tiny_world, store):
    reader = OnlineReader(store, HISTORY)
    items = [*tiny_world.item_ids.tolist(), UNKNOWN_ITEM]
    users = [*tiny_world.user_ids.tolist(), UNKNOWN_USER]
    for user, offline in zip(users, offline_frames(store, users, items, MOMENT, query=3), strict=True):
        online = reader.read(user, items, MOMENT, query_id=3)
        assert_same(online, offline)
    assert online.requests.column("user_found").to_pylist() == [False]
    assert online.candidates.column("item_found").to_pylist()[-1] is False
    assert any(online.candidates.column("item_found").to_pylist())


def test_a_user_alone_reads_as_a_request_without_candidates(tiny_world, store):
    reader = OnlineReader(store, HISTORY)
    user = int(tiny_world.user_ids[2])
    alone, whole = reader.read_user(user, MOMENT), reader.read(user, tiny_world.item_ids, MOMENT)
    assert alone.requests.equals(whole.requests) and alone.candidates.num_rows == 0
    assert alone.candidates.schema == whole.candidates.schema and alone.offsets.tolist() == [0, 0]
    assert reader.read(user, [], MOMENT).candidates.schema == whole.candidates.schema


def test_an_earlier_request_does_not_see_later_behaviour(tiny_world, store):
    reader = OnlineReader(store, HISTORY)
    earlier = MOMENT - 20 * DAY
    users = tiny_world.user_ids.tolist()
    for user, offline in zip(users, offline_frames(store, users, [1], earlier), strict=True):
        online = reader.read_user(user, earlier)
        assert online.requests.column("user_events") == offline.requests.column("user_events")
        assert online.history.item_id.tolist() == offline.history.item_id.tolist()


def test_found_masks_say_what_is_stored(tiny_world, store):
    reader = OnlineReader(store, HISTORY)
    stored = reader.read_items(np.append(tiny_world.item_ids, UNKNOWN_ITEM), MOMENT)
    seen = [i["first_seen"] for i in tiny_world.dataset.items.to_pylist()]
    np.testing.assert_array_equal(stored.found["item_profile"], [*(when < MOMENT for when in seen), False])


@pytest.mark.parametrize("profile", ["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def test_statistics_beyond_their_time_to_live_count_neither_online_nor_offline(
    profile, request, tiny_world, tmp_path, monkeypatch
):
    server = request.getfixturevalue("redis_server") if profile == "redis" else None
    user, items = int(tiny_world.user_ids[0]), tiny_world.item_ids.tolist()
    counted = []
    # Rows are of midnights, and so is the request: one microsecond decides.
    for database, ttl in ((13, DAY), (14, DAY - US)):
        monkeypatch.setattr("feature_repo.features.item_stats.ttl", ttl)
        store = tmp_path / f"{ttl.total_seconds()}"
        url = server and server.url(database)
        create_store(store, tiny_world.dataset, tiny_world.split, profile, url)
        stamps = pq.read_table(store / "data" / "item_stats.parquet").to_pylist()
        for when in (MOMENT, MOMENT + US):
            materialize(store, when)
            online = OnlineReader(store, HISTORY).read(user, items, when)
            assert_same(online, offline_frames(store, [user], items, when)[0])
            alive = {row["item_id"] for row in stamps if when - US - ttl <= row["event_timestamp"] < when}
            columns = (online.candidates.column(name).to_pylist() for name in ("shown_all", "positive_all"))
            known = {item for item, *counts in zip(items, *columns, strict=True) if any(counts)}
            assert known == alive and all(online.candidates.column("item_found").to_pylist()[:-1])
            counted.append(len(known))
    assert 0 < counted[3] < counted[1] < len(items)


def test_an_unknown_entity_is_reported_as_not_found(tiny_world, store):
    answer = open_store(store).get_online_features(
        features=["item_profile:spu"], entity_rows=[{"item_id": UNKNOWN_ITEM}]
    )
    result = answer.proto.results[list(answer.proto.metadata.feature_names.val).index("spu")]
    assert list(result.statuses) == [FieldStatus.NOT_FOUND]


@pytest.mark.parametrize("profile", ["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def test_pushed_behaviour_equals_a_later_materialization(profile, request, tmp_path):
    world = make_world(seed=2, events=900)
    url = request.getfixturevalue("redis_server").url(2) if profile == "redis" else None
    create_store(tmp_path / "store", world.dataset, world.split, profile, url)
    materialize(tmp_path / "store", MOMENT)
    reader = OnlineReader(tmp_path / "store", HISTORY)
    log = world.split.log
    available = log.column("available_time")
    later = MOMENT + 3 * DAY
    new = log.filter(
        pc.and_(
            pc.greater_equal(available, pa.scalar(MOMENT, TIME)), pc.less(available, pa.scalar(later, TIME))
        )
    )
    assert new.num_rows > 20
    shuffled = new.take(np.random.default_rng(0).permutation(new.num_rows))
    writer = HistoryWriter(tmp_path / "store")
    writer.push(shuffled.slice(0, 25))
    writer.push(shuffled)  # the first ones again
    writer.push(shuffled.slice(3, 9))
    users = world.user_ids.tolist()
    for when in (later, MOMENT):
        for user, offline in zip(users, offline_frames(tmp_path / "store", users, [1], when), strict=True):
            online = reader.read_user(user, when)
            assert online.requests.column("user_events") == offline.requests.column("user_events")
            assert online.history.item_id.tolist() == offline.history.item_id.tolist()


def test_an_event_of_the_future_is_refused(tiny_world, store):
    reader = OnlineReader(store, HISTORY)
    user = int(tiny_world.user_ids[2])
    event = tiny_world.split.log.filter(pc.equal(tiny_world.split.log.column("type"), "click")).slice(0, 1)
    future = pa.array([datetime.now(UTC) + timedelta(days=2)], TIME)
    wrong = event.set_column(event.schema.get_field_index("available_time"), "available_time", future)
    before = reader.read_user(user, MOMENT)
    with pytest.raises(FutureRowError, match="1 of 1 in the future"):
        HistoryWriter(store).push(wrong)
    assert reader.read_user(user, MOMENT).requests.equals(before.requests)


@pytest.mark.parametrize("bad", [True, 1.0, 1.9, "1", None, 2**63, np.bool_(True), np.float64(2)])
def test_an_id_that_is_not_an_integer_is_refused(tiny_world, store, bad):
    reader = OnlineReader(store, HISTORY)
    with pytest.raises(ValueError, match="expected (user|item)_ids"):
        reader.read(int(tiny_world.user_ids[0]), [1, bad], MOMENT)
    with pytest.raises(ValueError, match="expected user_ids"):
        reader.read_user(bad, MOMENT)


def test_a_time_without_a_zone_is_refused(tiny_world, store):
    with pytest.raises(ValueError, match="zone"):
        OnlineReader(store, HISTORY).read_user(1, datetime(2026, 1, 1))
    with pytest.raises(StoreError, match="zone"):
        materialize(store, datetime(2026, 1, 1))


def test_a_store_of_an_empty_log_materializes_what_there_is(tiny_world, tmp_path):
    nothing = TinySplit(tiny_world.split.log.slice(0, 0))
    create_store(tmp_path / "store", tiny_world.dataset, nothing)
    reports = materialize(tmp_path / "store", MOMENT)
    assert {view for view, report in reports.items() if report.written} == {"item_profile", "user_profile"}
    frame = OnlineReader(tmp_path / "store", HISTORY).read(
        int(tiny_world.user_ids[0]), tiny_world.item_ids, MOMENT
    )
    assert frame.candidates.column("shown_all").null_count == len(tiny_world.item_ids)


def test_wrong_profiles_and_addresses_are_refused(tmp_path):
    with pytest.raises(StoreError, match="unknown profile 'memcached'"):
        use_profile(tmp_path, "memcached")
    for address in ("localhost:6379", "http://x/0", "redis://host/zero"):
        with pytest.raises(StoreError, match="redis://localhost:6379/0"):
            use_profile(tmp_path, "redis", address)
    with pytest.raises(StoreError, match="moon demo"):
        open_store(tmp_path)
