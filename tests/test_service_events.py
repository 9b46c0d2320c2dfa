"""POST /events: kept once, seen by the next request, refused with the place that is wrong.

Run: pytest tests/test_service_events.py
"""

import time
import tracemalloc
from datetime import timedelta

import pytest
from fake_shop import recommender
from fastapi.testclient import TestClient
from test_ingest import END, Clock, online, some_events

from dataset.contracts import DataError
from feature_repo.create import create_store
from feature_repo.ingest.arrivals import MOST_EVENTS, parse_events
from feature_repo.ingest.fold import fold
from feature_repo.ingest.journal import Journal
from serving.app import create_app
from serving.intake import Intake
from serving.settings import Settings

JSON = {"content-type": "application/json"}


@pytest.fixture()
def shop(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    clock = Clock()
    app = create_app(Settings(run=tmp_path), recommender(), Intake(tmp_path / "store", clock))
    return TestClient(app, raise_server_exceptions=False), tmp_path / "store", clock


def body(events):
    return "[" + ",".join(one.model_dump_json(exclude_none=True) for one in events) + "]"


def test_events_are_kept_once_and_seen_at_once(tiny_world, shop):
    client, store, clock = shop
    events = some_events(tiny_world, 60)
    assert client.post("/events", content=body(events), headers=JSON).json() == {
        "accepted": 60,
        "duplicates": 0,
    }
    assert client.post("/events", content=body(events[:7]), headers=JSON).json() == {
        "accepted": 0,
        "duplicates": 7,
    }
    assert client.post("/events", content="[]", headers=JSON).json() == {"accepted": 0, "duplicates": 0}
    clock.pass_()
    for user in tiny_world.user_ids.tolist():
        mine = [e.item_id for e in events if e.user_id == user and e.type != "impression"]
        assert online(store, user, clock.now)[1] == mine
    metrics = client.get("/metrics").text
    assert (
        'moon_events_total{what="accepted"} 60.0' in metrics
        and 'moon_events_total{what="duplicates"} 7.0' in metrics
    )
    assert fold(store) == 60


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "list"),
        ("{}", "list"),
        ("[1]", "the first fault is at 0"),
        ('[{"event_id": NaN}]', "0.event_id"),
        ('[{"event_id": 1, "user_id": 2, "item_id": 3, "type": "click", "x": 1}]', "0.x"),
        ('[{"event_id": 1, "user_id": "2", "item_id": 3, "type": "click"}]', "0.user_id"),
        ('[{"event_id": 99999, "user_id": 2, "item_id": 3, "type": "click", "event_time": "2199-01-01T00:00:00Z"}]',
         "event_time outside sane bounds: before 1990 or in the future"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_events_is_refused_and_nothing_is_kept(shop, content, says):
    client, store, _ = shop
    answer = client.post("/events", content=content, headers=JSON)
    assert answer.status_code == 422 and says in answer.json()["error"]
    assert Journal(store).table().num_rows == 0


@pytest.mark.parametrize("one", ["{}", "1", "[[[]]]", "null", '"x"'])
def test_a_long_list_of_nonsense_costs_no_more_than_reading_it(one):
    content = f"[{','.join([one] * 200_000)}]".encode()
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(DataError, match="first fault"):
        parse_events(content)
    peak, took = tracemalloc.get_traced_memory()[1], time.process_time() - began
    tracemalloc.stop()
    assert took < 1 and peak < 2_000_000  # a fault of each of them took a minute and gigabytes


def test_more_events_than_one_call_takes_are_refused_whole(shop):
    client, store, _ = shop
    one = {"user_id": 2, "item_id": 3, "type": "click"}
    many = [{"event_id": 10**6 + n, **one} for n in range(MOST_EVENTS + 1)]
    answer = client.post("/events", json=many)
    assert answer.status_code == 413 and str(MOST_EVENTS) in answer.json()["error"]
    assert Journal(store).table().num_rows == 0
    assert client.post("/events", json=many[1:]).status_code == 200
    assert Journal(store).table().num_rows == MOST_EVENTS


def test_a_service_without_a_store_takes_no_events(tmp_path):
    client = TestClient(create_app(Settings(run=tmp_path), recommender()))
    assert client.post("/events", content="[]", headers=JSON).status_code == 503


@pytest.mark.redis
def test_events_are_kept_while_redis_is_gone_and_online_when_it_is_back(tiny_world, tmp_path, own_redis):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split, "redis", own_redis.url())
    clock = Clock()
    app = create_app(Settings(run=tmp_path), recommender(), Intake(tmp_path / "store", clock))
    client = TestClient(app, raise_server_exceptions=False)
    own_redis.kill()
    events = some_events(tiny_world, 30)
    answer = client.post("/events", content=body(events[:29]), headers=JSON)
    assert answer.status_code == 503 and "telling it again is safe" in answer.json()["error"]
    own_redis.restart()
    assert client.post("/events", content=body(events[25:]), headers=JSON).json() == {
        "accepted": 1,
        "duplicates": 4,
    }
    later = END + timedelta(seconds=1)
    seen = [online(tmp_path / "store", user, later)[1] for user in tiny_world.user_ids.tolist()]
    assert sum(map(len, seen)) == sum(event.type != "impression" for event in events)
