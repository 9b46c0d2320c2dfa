"""SQLite keeps nobody waiting: a load blocks no reader, and a lock of another program costs an answer a moment.

Run: pytest tests/test_sqlite_locks.py
"""

import shutil
import sqlite3
import time
from contextlib import closing, contextmanager

import pytest
from fake_shop import recommender
from fastapi.testclient import TestClient
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from test_ingest import Clock, online, some_events

from feature_repo.create import create_store
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.journal import Journal
from feature_repo.online import OnlineReader, StoreUnavailable
from feature_repo.store import known_until, materialize, open_store
from moonstore.sqlite_store import READ_WAIT_MS
from serving.app import create_app
from serving.settings import Settings

LONG_S = 4.0  # of waiting: what Feast's own connection would wait is 5 s


@pytest.fixture(scope="module")
def loaded(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaded") / "store"
    create_store(folder, tiny_world.dataset, tiny_world.split)
    materialize(folder, known_until(folder))
    return folder


@pytest.fixture
def store(loaded, tmp_path):
    """A loaded store whose file is as an earlier release left it: not in write-ahead mode."""
    shutil.copytree(loaded, tmp_path / "store", ignore=shutil.ignore_patterns("online.db*"))
    with closing(sqlite3.connect(file(loaded))) as connection:
        connection.execute(f"VACUUM INTO '{file(tmp_path / 'store')}'")
    assert mode(tmp_path / "store") == "delete"
    return tmp_path / "store"


def file(store):
    return store / "data" / "online.db"


def mode(store):
    with closing(sqlite3.connect(file(store))) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]


@contextmanager
def locked(store):
    """Another program's exclusive lock, taken before the file was converted."""
    with closing(sqlite3.connect(file(store), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def test_a_store_of_an_earlier_release_is_converted_when_it_is_opened(tiny_world, store, loaded):
    user, now = int(tiny_world.user_ids[0]), known_until(store)
    before = OnlineReader(loaded, 5).read_user(user, now)
    assert OnlineReader(store, 5).read_user(user, now).requests.equals(before.requests)
    assert mode(store) == "wal"


def test_a_load_blocks_no_reader_and_nothing_half_loaded_is_read(tiny_world, store):
    user, now = int(tiny_world.user_ids[0]), known_until(store)
    reader = OnlineReader(store, 5)
    before = reader.read_user(user, now)
    with closing(sqlite3.connect(file(store), isolation_level=None)) as loading:
        loading.execute("BEGIN EXCLUSIVE")
        loading.execute("DELETE FROM moon_user_history")
        began = time.monotonic()
        assert reader.read_user(user, now).requests.equals(before.requests)
        assert time.monotonic() - began < LONG_S
        assert (
            OnlineReader(store, 5).read_user(user, now).requests.equals(before.requests)
        )  # a new connection
        loading.execute("ROLLBACK")


def test_a_read_waits_a_moment_for_a_foreign_lock_and_the_next_ones_not_at_all(tiny_world, store):
    user, now = int(tiny_world.user_ids[0]), known_until(store)
    with locked(store):
        reader = OnlineReader(store, 5)
        online_store = reader.store._get_provider().online_store
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="locked"):
            reader.read_user(user, now)
        assert time.monotonic() - began < LONG_S
        assert online_store._read_wait_ms == 0
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="locked"):
                reader.read_user(user, now)
    assert reader.read_user(user, now).requests["user_found"][0].as_py()
    assert online_store._read_wait_ms == READ_WAIT_MS


def test_answers_go_on_with_popular_items_while_the_store_is_locked(tiny_world, store):
    moon = recommender()
    now, user = known_until(store), int(tiny_world.user_ids[0])
    moon.now, moon.example_users = (lambda: now), (user,)
    with TestClient(create_app(Settings(run=store.parent), moon)) as client:
        with locked(store):
            moon.reader = OnlineReader(store, 5)
            began = time.monotonic()
            answers = [client.get("/recommend", params={"user_id": user, "k": 3}).json() for _ in range(5)]
            assert time.monotonic() - began < LONG_S
            assert [one["fallbacks"] for one in answers] == [["store_unavailable"]] * 5
            assert all(len(one["hits"]) == 3 for one in answers)
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        answer = client.get("/recommend", params={"user_id": user, "k": 3}).json()
        assert answer["fallbacks"] in ([], ["empty_history"])
        assert client.get("/readyz").json()["status"] == "ready"


def test_an_event_that_meets_a_load_is_kept_said_to_be_late_and_online_with_the_next(tiny_world, store):
    clock = Clock()
    ingestor = Ingestor(store, clock)
    events = some_events(tiny_world, 20)
    with closing(sqlite3.connect(file(store), isolation_level=None)) as loading:
        loading.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="locked"):
            ingestor.ingest(events[:19])
        assert time.monotonic() - began < LONG_S
        assert Journal(store).table().num_rows == 19
        loading.execute("ROLLBACK")
    assert ingestor.ingest(events[19:]).accepted == 1
    clock.pass_()
    for user in tiny_world.user_ids.tolist():
        mine = [e.item_id for e in events if e.user_id == user and e.type != "impression"]
        kept = online(store, user, clock.now)[1]
        assert kept[len(kept) - len(mine) :] == mine


def test_feasts_own_store_reads_the_converted_file(tiny_world, store):
    opened = open_store(store)
    ids = tiny_world.user_ids.tolist()
    asked = {"features": ["user_history:recent_position"], "entity_rows": [{"user_id": one} for one in ids]}
    ours = opened.get_online_features(**asked).to_dict()["recent_position"]
    assert mode(store) == "wal" and any(ours)
    keys = [EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=one)]) for one in ids]
    view = opened.get_feature_view("user_history")
    rows = SqliteOnlineStore().online_read(opened.config, view, keys, ["recent_position"])
    assert [None if row is None else row["recent_position"].int64_val for _, row in rows] == ours
