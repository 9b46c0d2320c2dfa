"""Slow work keeps nobody else waiting: the event loop answers on, queues are bounded, pictures are decoded once.

Run: pytest tests/test_nothing_waits_for_slow_work.py
"""

import asyncio
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from fake_shop import ITEM_IDS, picture, recommender
from fastapi.testclient import TestClient
from PIL import Image
from test_ingest import Clock, some_events

import dataset.pictures
from feature_repo.create import create_store
from serving import intake as intake_module
from serving.app import create_app
from serving.endpoints import arrivals
from serving.intake import Intake
from serving.questions import Refused
from serving.settings import Settings
from serving.work import Work

SOON_S = 20  # long enough for a busy machine: what is blocked would wait for ever
EVENT = {"event_id": 10**6, "user_id": 2, "item_id": 3, "type": "click"}


class Gate:
    """Replaces a function by one that waits until it is opened."""

    def __init__(self):
        self.entered, self.open = threading.Semaphore(0), threading.Event()

    def before(self, call):
        def gated(*args, **kwargs):
            self.entered.release()
            assert self.open.wait(SOON_S)
            return call(*args, **kwargs)

        return gated

    def wait_until_entered(self):
        assert self.entered.acquire(timeout=SOON_S)


@pytest.fixture
def gate():
    one = Gate()
    yield one
    one.open.set()


@pytest.fixture
def moon():
    return recommender()


@pytest.fixture
def store(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    return tmp_path / "store"


@pytest.fixture
def elsewhere():
    """Runs requests in other threads; their results are awaited for a limited time."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


def slow_answer(monkeypatch, gate, moon):
    moon.recommend = gate.before(moon.recommend)
    return lambda client: client.get("/recommend?user_id=4&k=2")


def slow_page(monkeypatch, gate, moon):
    moon.recommend = gate.before(moon.recommend)
    return lambda client: client.get("/?user_id=4")


def slow_similar(monkeypatch, gate, moon):
    moon.similar = gate.before(moon.similar)
    return lambda client: client.get("/similar", params={"item_id": int(ITEM_IDS[0])})


def slow_encoder(monkeypatch, gate, moon):
    moon.encoder.encode = gate.before(moon.encoder.encode)
    return lambda client: client.post("/search", files={"image": ("a", picture())})


def slow_picture(monkeypatch, gate, moon):
    moon.catalogue.image_bytes = gate.before(moon.catalogue.image_bytes)
    return lambda client: client.get(f"/image/{0:016x}")


def slow_parsing(monkeypatch, gate, moon):
    monkeypatch.setattr(arrivals, "parse_events", gate.before(arrivals.parse_events))
    return lambda client: client.post("/events", json=[EVENT])


def slow_disk(monkeypatch, gate, moon):
    monkeypatch.setattr(intake_module, "keep_item", gate.before(intake_module.keep_item))
    return lambda client: client.post("/items", json={"item_id": 8, "title": "a", "category": ["b"]})


def slow_store(monkeypatch, gate, moon):
    moon.reader.read_user = gate.before(moon.reader.read_user)
    return lambda client: client.get("/readyz")


SLOW = [
    slow_answer, slow_page, slow_similar, slow_encoder, slow_picture, slow_parsing, slow_disk, slow_store
]  # fmt: skip


@pytest.mark.parametrize("slow", SLOW)
def test_the_event_loop_answers_while_something_is_slow(monkeypatch, gate, moon, store, elsewhere, slow):
    ask = slow(monkeypatch, gate, moon)
    app = create_app(Settings(run=store.parent), moon, Intake(store, Clock()))
    with TestClient(app) as client:
        blocked = elsewhere.submit(ask, client)
        gate.wait_until_entered()
        alive = elsewhere.submit(client.get, "/healthz").result(SOON_S / 2)
        assert alive.status_code == 200 and not blocked.done()
        gate.open.set()
        assert blocked.result(SOON_S).status_code in (200, 202)


def test_more_requests_than_may_wait_are_refused_at_once_and_counted(gate, moon, tmp_path, elsewhere):
    moon.recommend = gate.before(moon.recommend)
    with TestClient(create_app(Settings(run=tmp_path, most_waiting=3), moon)) as client:
        ask = partial(client.get, "/recommend?user_id=4&k=2")
        waiting = [elsewhere.submit(ask) for _ in range(3)]
        gate.wait_until_entered()
        wait_for(lambda: 'moon_inside{thread="answering"} 3.0' in client.get("/metrics").text)
        refused = elsewhere.submit(ask).result(SOON_S / 2)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert "at most 3" in refused.json()["error"]
        assert 'moon_busy_total{thread="answering"} 1.0' in client.get("/metrics").text
        gate.open.set()
        assert [one.result(SOON_S).status_code for one in waiting] == [200] * 3
        assert ask().status_code == 200


def test_work_is_done_in_order_and_who_gives_up_makes_room():
    gate, order = Gate(), []

    async def main():
        work = Work("some", most=2)
        first = asyncio.create_task(work.run(gate.before(order.append), 1))
        second = asyncio.create_task(work.run(order.append, 2))
        await asyncio.to_thread(gate.wait_until_entered)
        with pytest.raises(Refused, match="at most 2"):
            await work.run(order.append, 3)
        second.cancel()
        while work.inside > 1:
            await asyncio.sleep(0.001)
        fourth = asyncio.create_task(work.run(order.append, 4))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, fourth)
        while work.inside:
            await asyncio.sleep(0.001)
        work.close()

    asyncio.run(asyncio.wait_for(main(), SOON_S))
    assert order == [1, 4]


def test_what_cannot_be_kept_is_refused_said_and_counted_until_something_is(tiny_world, moon, store):
    app = create_app(Settings(run=store.parent), moon, Intake(store, Clock()))
    events = [one.model_dump(mode="json", exclude_none=True) for one in some_events(tiny_world, 4)]
    with TestClient(app) as client:
        assert client.get("/readyz").json()["status"] == "ready"
        journal = store / "data" / "events"
        journal.rename(store / "away")
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "nothing can be written" in ready.json()["problems"][0]
        answer = client.post("/events", json=events)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        assert "cannot be kept" in answer.json()["error"] and str(store) not in answer.text
        (store / "away").rename(journal)
        ready = client.get("/readyz").json()
        assert ready["status"] == "degraded" and ready["writes"]["failed"] == 1 and ready["writes"]["problem"]
        assert "moon_writes_failed_total 1.0" in client.get("/metrics").text
        assert "moon_writes_failing 1.0" in client.get("/metrics").text
        assert client.post("/events", json=events).json() == {"accepted": 4, "duplicates": 0}
        assert client.get("/readyz").json()["status"] == "ready"
        assert "moon_writes_failing 0.0" in client.get("/metrics").text


def encoded(kind, size, **options):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (encoded("PNG", (6300, 6300)), 422),
        (encoded("PNG", (2100, 1900)), 200),
        (encoded("JPEG", (4000, 3000)), 200),
        (encoded("JPEG", (4000, 3000), progressive=True), 422),
        (encoded("JPEG", (6000, 4000)), 422),
        (encoded("JPEG", (40_000, 300)), 422),
    ],
    ids=["39 Mpx PNG", "4 Mpx PNG", "12 Mpx JPEG", "12 Mpx progressive", "24 Mpx JPEG", "a narrow JPEG"],
)
def test_a_picture_is_decoded_once_or_refused_by_its_header(monkeypatch, moon, store, content, status):
    decodes = []
    to_rgb = dataset.pictures.to_rgb
    monkeypatch.setattr(dataset.pictures, "to_rgb", lambda one: decodes.append(one.size) or to_rgb(one))
    client = TestClient(create_app(Settings(run=store.parent), moon, Intake(store, Clock())))
    answer = client.post("/search", files={"image": ("a", content)})
    assert answer.status_code == status, answer.text
    assert len(decodes) == (status == 200)


def wait_for(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
