"""An item that comes in is encoded, stored, indexed and recommended within seconds, by every service, for good.

Run: pytest tests/test_new_items.py
"""

import base64
import io
import json
import shutil
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from conftest import TinyDataset, TinySplit
from fastapi.testclient import TestClient
from PIL import Image

from dataset.contracts import EVENTS, ITEMS, TIME, DataError
from dataset.records import Event, Item
from encoder.encode import Encoder
from feature_repo import dead_letters
from feature_repo.check import check_store
from feature_repo.create import create_store
from feature_repo.frames.join import training_frame
from feature_repo.ingest.arrivals import parsed
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.item_rows import fold_items
from feature_repo.ingest.new_items import fingerprint, keep_item, new_items
from feature_repo.online import OnlineReader
from feature_repo.store import known_until, materialize, open_store, use_profile
from feature_repo.views import EmbeddingRecord
from moon import journey
from moonstore.errors import StoreError
from moonstore.matrix import read_matrix
from run.sizes import size
from serving.app import create_app
from serving.live import Live
from serving.settings import Settings

NEW, SOON_S = 10**15 + 1, 10.0
SECOND = timedelta(seconds=1)


@pytest.fixture
def run(finished_run, tmp_path):
    """A run of its own."""
    shutil.copytree(finished_run[0], tmp_path / "run")
    return tmp_path / "run"


def known_item(run):
    """A catalogue row with a title and its picture."""
    items = pq.read_table(run / "dataset" / "items.parquet").to_pylist()
    images = pq.read_table(run / "dataset" / "images.parquet").to_pylist()
    content = {one["image_id"]: one["bytes"] for one in images}
    row = next(one for one in items if one["title"] and one["image_id"] in content)
    return row, content[row["image_id"]]


def like(row, image, **changes):
    """What is told of an item like this one."""
    told = {
        "item_id": NEW,
        "title": row["title"],
        "description": row["description"],
        "category": row["category"],
        "attributes": dict(row["attributes"]),
        "price": 12.5,
        "image_base64": base64.b64encode(image).decode(),
    }
    return {name: value for name, value in (told | changes).items() if value is not None}


def until_found(client, item_id):
    began = time.monotonic()
    while (answer := client.get(f"/similar?item_id={item_id}&k=5")).status_code != 200:
        assert time.monotonic() - began < SOON_S, client.get("/readyz").json()
        time.sleep(0.02)
    return answer.json()["hits"]


@pytest.mark.slow
def test_a_pushed_item_is_found_searched_and_recommended_without_a_restart(run):
    row, image = known_item(run)
    with TestClient(create_app(Settings(run=run))) as client:
        assert client.get(f"/similar?item_id={NEW}").status_code == 404
        assert client.post("/items", json=like(row, image)).status_code == 202
        hits = until_found(client, NEW)
        assert (
            hits[0]["item_id"] == row["item_id"] and hits[0]["score"] > 0.999
        )  # the same content, the same vector
        found = client.post("/search", json={"text": row["title"], "k": 200}).json()["hits"]
        assert NEW in [hit["item_id"] for hit in found]
        session = client.get(f"/recommend?user_id=1&k=200&session={row['item_id']}").json()
        card = next(hit for hit in session["hits"] if hit["item_id"] == NEW)
        assert card["title"] == row["title"] and card["price"] == 12.5
        assert session["fallbacks"] == [] and card["matches"]["match_similar"] > 0.99
        assert client.get(f"/image/{card['image_id']}").content == image
        asked = {"user_id": 1, "k": 200, "session": row["item_id"], "category": " > ".join(row["category"])}
        inside = client.get("/recommend", params=asked).json()["hits"]
        assert NEW in [hit["item_id"] for hit in inside]
        ready = client.get("/readyz").json()
        assert ready["items"]["problem"] == "" and ready["status"] == "ready"
        before = ready["generation"]["served"]
    with TestClient(create_app(Settings(run=run))) as client:  # another service, or the same one later
        assert client.get(f"/similar?item_id={NEW}&k=5").json()["hits"] == hits
        assert client.get("/readyz").json()["generation"]["served"] == before
        assert "moon_items_behind 0.0" in client.get("/metrics").text


@pytest.mark.slow
def test_an_item_that_comes_again_is_replaced(run):
    row, image = known_item(run)
    live = Live.open(Settings(run=run))
    keep_item(run / "store", Item(**like(row, image)), live.current.now())
    live.look()
    assert live.stale_reason == "" and live.current.similar(NEW, 1).hits[0].card.item_id == row["item_id"]
    before = live.current.items.vectors.gather(np.array([NEW]))[0]
    other = io.BytesIO()
    Image.new("RGB", (40, 40), "magenta").save(other, "PNG")
    changed = like(row, other.getvalue(), title="Something else entirely", category=["Elsewhere"], price=1.0)
    keep_item(run / "store", Item(**changed), live.current.now() + SECOND)
    held = live.current
    live.look()
    after = live.current.items.vectors.gather(np.array([NEW]))[0]
    assert float((before @ after.T)[0, 0]) < 0.99
    assert live.current.catalogue.cards([NEW])[0].title == "Something else entirely"
    assert live.current.retriever.index.has_category("Elsewhere")
    assert held.catalogue.cards([NEW])[0].title == row["title"]  # a request under way keeps what it had
    assert len(live.current.retriever.index) == len(held.retriever.index)
    existing = Item(**like(row, image, item_id=row["item_id"], title="Renamed"))
    keep_item(run / "store", existing, live.current.now() + SECOND)
    live.look()
    assert live.current.catalogue.cards([row["item_id"]])[0].title == "Renamed"
    assert len(live.current.retriever.index) == len(held.retriever.index)


@pytest.mark.slow
def test_an_item_is_encoded_once_whoever_comes_after_it(run, monkeypatch):
    row, image = known_item(run)
    encoded, pictures = [], []
    encode = Encoder.encode

    def counted(self, contents, pixels=None):
        encoded.extend(content.text for content in contents if content.text is not None)
        pictures.extend(content.image for content in contents if content.text is None)
        return encode(self, contents, pixels)

    monkeypatch.setattr(Encoder, "encode", counted)
    live = Live.open(Settings(run=run))
    for number, title in enumerate(("first", "second", "third")):
        told = Item(**like(row, image, item_id=NEW + number, title=title))
        keep_item(run / "store", told, live.current.now() + number * timedelta(microseconds=1))
        live.look()
    assert encoded == ["first", "second", "third"] and pictures == [
        image
    ]  # by itself once, whatever shows it
    assert Live.open(Settings(run=run)).current.similar(NEW + 2, 1).hits and len(encoded) == 3
    keep_item(run / "store", Item(**like(row, image, title="changed")), live.current.now() + 2 * SECOND)
    live.look()
    assert encoded[3:] == ["changed"] and live.stale_reason == ""
    assert pictures == [image] * 2, (
        "vectors of pictures by themselves are not stored: every process makes them once"
    )


@pytest.mark.slow
@pytest.mark.redis
def test_a_service_starts_and_goes_on_while_redis_is_gone(run, own_redis):
    use_profile(run / "store", "redis", own_redis.url())
    materialize(run / "store", known_until(run / "store"))
    choices = json.loads((run / "run.json").read_text()) | {"profile": "redis"}
    (run / "run.json").write_text(json.dumps(choices))
    settings = Settings(run=run, profile="redis")
    live = Live.open(settings)
    assert live.stale_reason == ""
    own_redis.kill()
    row, image = known_item(run)
    keep_item(run / "store", Item(**like(row, image)), live.current.now())
    live.look()
    assert "does not answer" in live.stale_reason and live.current.recommend(1, 5).hits
    assert "does not answer" in Live.open(settings).stale_reason


@pytest.mark.slow
def test_what_training_reads_of_it_is_what_serving_read(run):
    row, image = known_item(run)
    store_dir, live = run / "store", Live.open(Settings(run=run))
    kept = live.current.now()
    keep_item(store_dir, Item(**like(row, image)), kept)
    live.look()
    when, history = live.current.now() + SECOND, size("nano").history
    served = live.current.reader.read(1, np.array([NEW, row["item_id"]]), when)
    by_one = OnlineReader(store_dir, history).read(1, [NEW, row["item_id"]], when)
    assert served.candidates.equals(by_one.candidates)
    record = EmbeddingRecord.load(store_dir)
    assert fold_items(open_store(store_dir), record.embeddings) == 1
    assert fold_items(open_store(store_dir), record.embeddings) == 0
    rows = pa.table(
        {
            "request_id": [0, 0],
            "user_id": [1, 1],
            "time": pa.array([when] * 2, TIME),
            "query_id": pa.nulls(2, pa.int64()),
            "item_id": [NEW, row["item_id"]],
        }
    )
    frame = training_frame(store_dir, rows, history).take(0, 1)
    assert frame.candidates.to_pylist() == served.candidates.to_pylist()
    assert frame.candidates["item_found"].to_pylist() == [True, True]
    early = training_frame(
        store_dir, rows.set_column(2, "time", pa.array([kept - SECOND] * 2, TIME)), history
    ).take(0, 1)
    assert early.candidates["item_found"].to_pylist() == [False, True]
    view = record.embeddings[0].item_view
    online = read_matrix(open_store(store_dir), view, np.array([NEW]), ["vector"])["vector"][0]
    offline = pq.read_table(store_dir / "data" / f"{view}.parquet").to_pylist()
    assert next(one for one in offline if one["item_id"] == NEW)["vector"] == online.tolist()
    materialize(store_dir, known_until(store_dir) + timedelta(days=1))
    assert not [one.problems for one in check_store(store_dir) if one.problems]
    live.look()
    assert live.stale_reason == "" and NEW in live.current.retriever.index.ids


@pytest.mark.slow
@pytest.mark.redis
def test_on_redis_it_is_the_same(run, redis_server):
    """A service over Redis takes an item and an event, and answers the next request with both."""
    client = redis.Redis.from_url(redis_server.url(15))
    client.flushdb()
    use_profile(run / "store", "redis", redis_server.url(15))
    materialize(run / "store", known_until(run / "store"))
    choices = json.loads((run / "run.json").read_text()) | {"profile": "redis"}
    (run / "run.json").write_text(json.dumps(choices))
    row, image = known_item(run)
    settings = Settings(run=run, profile="redis")
    with TestClient(create_app(settings)) as web:
        assert web.get("/readyz").json()["status"] == "ready"
        assert web.post("/items", json=like(row, image)).status_code == 202
        assert until_found(web, NEW)[0]["item_id"] == row["item_id"]
        told = [{"event_id": 10**15, "user_id": 1, "item_id": NEW, "type": "click"}]
        assert web.post("/events", json=told).json() == {"accepted": 1, "duplicates": 0}
        time.sleep(0.05)
        hits = web.get("/recommend?user_id=1&k=200").json()
        alike = next(hit for hit in hits["hits"] if hit["item_id"] == row["item_id"])
        assert alike["matches"]["match_similar"] > 0.99 and hits["fallbacks"] == []
    live = Live.open(settings)
    by_one = OnlineReader(run / "store", size("nano").history)
    ids, when = np.array([NEW, row["item_id"]]), live.current.now() + SECOND
    assert live.current.reader.read(1, ids, when).candidates.equals(by_one.read(1, ids, when).candidates)
    assert by_one.read_user(1, when).history.item_id[-1] == NEW


@pytest.mark.slow
@pytest.mark.parametrize("poison", ["picture", "row"])
def test_an_item_that_cannot_be_processed_costs_itself_only(run, poison):
    """One poisoned item in the middle of twenty: the others are answered with, it is set aside with its reason."""
    store, bad = run / "store", NEW + 10
    row, image = known_item(run)
    good = like(row, image)
    live = Live.open(Settings(run=run))
    now = live.current.now()
    for number in range(20):
        keep_item(store, Item(**good | {"item_id": NEW + number}), now)
    path = store / "data" / "new_items" / f"{bad}.json"
    content = json.loads(path.read_text())
    if poison == "picture":  # as an earlier release would have let it in
        content["item"]["image_base64"] = base64.b64encode(image[: len(image) // 2]).decode()
    else:  # of the future: no reader could be given a newer one
        content["available_us"] += 10**15
    path.write_text(json.dumps(content))
    live.look()
    live.look()
    assert live.stale_reason == "" and live.count_refused() == {"new_items": 1}
    contained = live.current.retriever.index.contains(np.array([NEW + n for n in range(20)]))
    assert contained.tolist() == [number != 10 for number in range(20)]
    (letter,) = dead_letters.letters(store)
    assert letter.id == f"new_items/{bad}" and letter.record["item"]["item_id"] == bad and letter.reason
    with TestClient(create_app(Settings(run=run))) as client:  # a service that starts later, too
        assert client.get(f"/similar?item_id={NEW + 11}&k=1").status_code == 200
        assert client.get(f"/similar?item_id={bad}&k=1").status_code == 404
        assert client.get("/readyz").json()["dead_letters"] == {"new_items": 1}
        assert 'moon_dead_letters{kind="new_items"} 1.0' in client.get("/metrics").text
        assert client.post("/items", json=good | {"item_id": bad}).status_code == 202  # mended, it comes in
        until_found(client, bad)
    assert dead_letters.counts(store) == {}


@pytest.mark.slow
def test_vectors_that_are_not_online_are_missed_and_the_service_goes_on(run):
    import sqlite3

    with sqlite3.connect(run / "store" / "data" / "online.db") as connection:
        connection.execute("DELETE FROM moon_item_embedding_v1 WHERE rowid % 2")
    live = Live.open(Settings(run=run))
    assert "moon materialize" in live.stale_reason and live.current.items is None
    assert live.current.recommend(1, 5).hits
    materialize(run / "store", known_until(run / "store"))
    live.look()
    assert live.stale_reason == "" and live.current.items is not None


def test_a_store_with_what_came_in_is_not_replaced(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    keep_item(tmp_path / "store", Item(item_id=NEW, title="x"), tiny_world.end)
    with pytest.raises(StoreError, match="0 events and 1 items"):
        create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    assert len(new_items(tmp_path / "store")) == 1
    Ingestor(tmp_path / "store").ingest([Event(event_id=NEW, user_id=1, item_id=1, type="click")])
    with pytest.raises(StoreError, match="1 events and 1 items"):
        create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    row = tiny_world.dataset.items.slice(0, 1).set_column(0, "item_id", pa.array([NEW]))
    event = tiny_world.split.log.slice(0, 1).set_column(0, "event_id", pa.array([NEW]))
    items = pa.concat_tables([tiny_world.dataset.items, row.cast(ITEMS)])
    imported = TinyDataset(items, tiny_world.dataset.users, tiny_world.dataset.queries)
    log = TinySplit(pa.concat_tables([tiny_world.split.log, event.cast(EVENTS)]))
    create_store(tmp_path / "store", imported, log)
    assert new_items(tmp_path / "store") == []


@pytest.mark.slow
def test_a_store_that_may_not_be_replaced_leaves_the_run_finished(run):
    keep_item(run / "store", Item(item_id=NEW, title="x"), known_until(run / "store"))
    before = sorted(path.name for path in (run / "stages").iterdir())
    with pytest.raises(StoreError, match="0 events and 1 items"):
        journey.do(journey.load(run), "store")
    assert sorted(path.name for path in (run / "stages").iterdir()) == before


def test_an_item_is_kept_whole_and_the_state_changes_with_it(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    assert fingerprint(tmp_path / "store") == () and new_items(tmp_path / "store") == []
    item = Item(item_id=NEW, title="x", attributes={"colour": "red"}, category=["a", "b"])
    keep_item(tmp_path / "store", item, tiny_world.end)
    before = fingerprint(tmp_path / "store")
    (one,) = new_items(tmp_path / "store")
    assert one.item == item and one.row["spu"] == NEW and one.row["attributes"] == [("colour", "red")]
    keep_item(tmp_path / "store", item, tiny_world.end + SECOND)
    assert fingerprint(tmp_path / "store") != before and len(new_items(tmp_path / "store")) == 1


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, "missing item_id"),
        ({"item_id": 1}, "neither title nor picture"),
        ({"item_id": 1, "title": "  "}, "neither title nor picture"),
        ({"item_id": "1", "title": "x"}, "item_id is not an integer of 64 bits"),
        ({"item_id": -1, "title": "x"}, "negative item_id"),
        ({"item_id": 1, "title": "x", "price": -1}, "price is negative or infinite"),
        ({"item_id": 1, "title": "x", "price": "NaN"}, "price is not a number"),
        ({"item_id": 1, "title": "x", "price": 1e39}, "price is negative or infinite"),
        ({"item_id": 1, "title": "x", "category": "a"}, "category is not a list of texts"),
        ({"item_id": 1, "title": "x", "category": [""]}, "empty text inside category"),
        ({"item_id": 1, "title": "x" * 100_001}, "title is too long"),
        ({"item_id": 1, "title": "x", "colour": "red"}, "unknown field colour"),
    ],
)
def test_what_is_no_item_is_refused(told, says):
    with pytest.raises(DataError, match=says):
        parsed(Item, json.dumps(told))


@pytest.mark.slow
def test_a_picture_that_is_none_is_refused_at_the_door(run):
    with TestClient(create_app(Settings(run=run)), raise_server_exceptions=False) as client:
        for image, status in (("!!", 422), (base64.b64encode(b"no picture").decode(), 422)):
            answer = client.post("/items", json={"item_id": 1, "title": "x", "image_base64": image})
            assert answer.status_code == status and answer.json()["error"]
        assert (
            client.post("/items", content=b"{", headers={"content-type": "application/json"}).status_code
            == 422
        )
    assert new_items(run / "store") == []
