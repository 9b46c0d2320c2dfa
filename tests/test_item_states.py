"""An item that is deleted, inactive or out of stock is in no answer, of any process, and others take its place.

Run: pytest tests/test_item_states.py
"""

import time

import numpy as np
import pytest
from conftest import DAY, make_requests, write_embedding
from fastapi.testclient import TestClient
from shop_world import NOW, ids_of, make_shop

from dataset.records import DELETED, Item
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.frames.join import training_frame
from feature_repo.ingest.item_rows import fold_items
from feature_repo.ingest.item_states import (
    UnknownItem,
    change_state,
    changes,
    set_state,
    withdrawn,
)
from feature_repo.ingest.new_items import keep_item
from feature_repo.store import materialize, open_store
from feature_repo.views import EmbeddingRecord
from moonstore.errors import StoreError
from moonstore.files import write_json
from retrieval.requests import Requests
from serving.app import create_app
from serving.live import Live
from serving.settings import Settings

NEW, SECOND_S = 2**50 + 1, 1.0
UNKNOWN_USER = 7


@pytest.fixture(scope="module")
def made(tiny_world, tmp_path_factory):
    """A loaded shop; tests copy it."""
    return make_shop(tmp_path_factory.mktemp("states"), tiny_world)


@pytest.fixture
def shop(made, tmp_path):
    return made.copied(tmp_path / "run")


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def any_shop(request, tiny_world, tmp_path):
    """A loaded shop on either store."""
    if request.param == "embedded":
        return request.getfixturevalue("shop")
    return make_shop(tmp_path / "run", tiny_world, request.getfixturevalue("redis_server").url(24))


def questions(shop, moon):
    """Many answers and what was asked."""
    users = [*shop.world.user_ids[:5].tolist(), UNKNOWN_USER]
    for user in users:
        for category in (None, "shop"):
            for k in (3, 50):
                yield (user, category, k), moon.recommend(user, k, category)
    for text in ("red", "blue thing"):
        yield text, moon.search(text, None, 30, users[0])
    for item in shop.world.item_ids[:4].tolist():
        if moon.withdrawn.get(item) != DELETED:
            yield item, moon.similar(item, 30)


def answers(shop, moon):
    return {
        asked: [(hit.card.item_id, hit.score) for hit in one.hits] for asked, one in questions(shop, moon)
    }


def popular_and_acted_on(shop):
    """The item that is answered first to somebody unknown, and a user whose history holds it."""
    moon = shop.opened()
    item = ids_of(moon.recommend(UNKNOWN_USER, 1))[0]
    users = shop.world.user_ids.tolist()
    return item, next(one for one in users if item in moon.reader.read_user(one, NOW).history.item_id)


def test_a_deleted_item_is_in_no_answer_and_others_take_its_place(shop):
    """Its slow twin: a recommender whose indexes were built without the item."""
    item, user = popular_and_acted_on(shop)
    others = shop.world.item_ids[shop.world.item_ids != item]
    one, two = shop.live(), shop.live()
    before = answers(shop, one.current)
    assert any(item in dict(hits) for hits in before.values())
    change_state(shop.store, item, DELETED, NOW)
    for live in (one, two):
        live.look()
        assert live.current.withdrawn == {item: DELETED}
    gone, rebuilt = answers(shop, one.current), answers(shop, shop.live(only=others).current)
    assert gone == answers(shop, two.current)
    rebuilt.pop(item, None)
    assert gone == rebuilt and not any(item in dict(hits) for hits in gone.values())
    everything = (UNKNOWN_USER, None, 50)
    assert len(gone[everything]) == len(before[everything]) - 1
    assert len(gone[UNKNOWN_USER, None, 3]) == 3
    history = one.current.reader.read_user(user, NOW).history.item_id
    assert item in history and one.current.recommend(user, 3).order == "ranker"
    with pytest.raises(UnknownItem, match=f"item {item} was deleted"):
        one.current.similar(item, 3)


def test_no_source_proposes_it(shop):
    item, user = popular_and_acted_on(shop)
    moon = shop.live().current
    frame = moon.reader.read_user(user, NOW)
    hidden, twin = (
        one.retriever
        for one in (
            moon.without({item: "inactive"}),
            shop.opened(only=shop.world.item_ids[shop.world.item_ids != item]),
        )
    )
    asked = Requests.from_frame(frame)
    proposed = 0
    for ours, theirs, whole in zip(
        hidden.recommending, twin.recommending, moon.retriever.recommending, strict=True
    ):
        found, wanted = ours.retrieve_batch(asked, 50), theirs.retrieve_batch(asked, 50)
        np.testing.assert_array_equal(found.item_id, wanted.item_id)
        np.testing.assert_array_equal(found.score, wanted.score)
        proposed += item in whole.retrieve_batch(asked, 50).item_id
    assert proposed == 6  # similar, profile, cooccurrence, words, two-tower, popular: each did before


@pytest.mark.parametrize("came_in", [False, True])
def test_it_stays_gone_after_fold_load_new_vectors_and_restart_until_it_is_posted_again(
    any_shop, came_in, tmp_path
):
    shop = any_shop
    item = NEW if came_in else int(shop.world.item_ids[4])
    told = Item(item_id=item, title="red thing", category=["shop"])
    if came_in:
        keep_item(shop.store, told, NOW)
        assert item in ids_of(shop.live().current.search("red", None, 5))
    change_state(shop.store, item, DELETED, NOW)

    def is_gone(live):
        moon = live.current
        everything = ids_of(moon.recommend(UNKNOWN_USER, 50)) + ids_of(moon.search("red", None, 50))
        return item not in everything and bool(everything)

    live = shop.live()
    assert is_gone(live)
    embeddings = EmbeddingRecord.load(shop.store).embeddings
    assert fold_items(open_store(shop.store), embeddings) == int(came_in)
    live.look()
    assert is_gone(live) and is_gone(shop.live())
    materialize(shop.store, NOW + DAY)
    live.look()
    assert live.stale_reason == "" and is_gone(live) and is_gone(shop.live())
    other = write_embedding(tmp_path / "other", shop.world, 8, NOW - 40 * DAY, seed=1)
    publish_embedding(shop.store, other)
    materialize(shop.store, NOW + DAY)
    assert is_gone(shop.live(embedding=other))
    keep_item(shop.store, told, NOW)
    live.look()
    assert item in ids_of(live.current.search("red", None, 5)) and withdrawn(shop.store) == {}


def test_over_http_within_a_second(shop, monkeypatch):
    live, other = shop.live(), shop.live()
    monkeypatch.setattr(Live, "open", classmethod(lambda cls, settings: live))
    item = int(shop.world.item_ids[3])
    with TestClient(create_app(Settings(run=shop.run))) as client:

        def until(holds):
            began = time.monotonic()
            while not holds():
                assert time.monotonic() - began < SECOND_S, client.get("/readyz").json()
            other.look()

        def similar_to(one):
            answer = client.get(f"/similar?item_id={one}&k=50")
            return [hit["item_id"] for hit in answer.json().get("hits", [])]

        neighbour = similar_to(item)[0]
        assert client.put(f"/items/{item}/state", json={"state": "out_of_stock"}).status_code == 202
        until(lambda: item not in similar_to(neighbour))
        assert item not in ids_of(other.current.similar(neighbour, 50))
        assert similar_to(item)[0] == neighbour  # a page of it may still be open
        assert client.put(f"/items/{item}/state", json={"state": "active"}).json()["state"] == "active"
        until(lambda: item in similar_to(neighbour))
        for _ in range(2):
            answer = client.delete(f"/items/{item}")
            assert (answer.status_code, answer.json()) == (202, {"item_id": item, "state": "deleted"})
        until(lambda: item not in similar_to(neighbour))
        answer = client.get(f"/similar?item_id={item}")
        assert (answer.status_code, answer.json()) == (404, {"error": f"item {item} was deleted"})
        assert client.get("/readyz").json()["items"]["withdrawn"] == 1
        assert "moon_items_withdrawn 1.0" in client.get("/metrics").text
        answer = client.put(f"/items/{item}/state", json={"state": "active"})
        assert answer.status_code == 404 and "post it again" in answer.json()["error"]
        assert client.put(f"/items/{item}/state", json={"state": "deleted"}).status_code == 422
        assert client.delete(f"/items/{NEW}").status_code == 404
        assert client.delete("/items/x").status_code == 422
        told = {"item_id": NEW, "title": "red", "state": "inactive"}
        assert client.post("/items", json=told).status_code == 202
        until(lambda: client.get(f"/similar?item_id={NEW}").status_code == 200)
        assert NEW not in similar_to(neighbour)
        active = {"item_id": NEW, "title": "red"}
        assert client.post("/items", json=active).status_code == 409
        assert client.post("/items?overwrite=true", json=active).status_code == 202
        until(lambda: NEW in similar_to(neighbour))
        for one in (active, {"item_id": item, "title": "red"}):  # of those that came in, of the catalogue
            assert client.delete(f"/items/{one['item_id']}").status_code == 202
            until(lambda gone=one["item_id"]: gone not in similar_to(neighbour))
            assert client.post("/items", json=one).status_code == 202  # the same again: it is back
            until(lambda back=one["item_id"]: back in similar_to(neighbour))
            assert client.post("/items", json=one).status_code == 202  # which changes nothing
            assert client.post("/items", json=one | {"title": "blue"}).status_code == 409
        assert client.post("/items", json=told | {"state": "deleted"}).status_code == 422


def test_states_are_counted_once_and_survive_a_new_store(tiny_world, tmp_path):
    store = tmp_path / "store"
    create_store(store, tiny_world.dataset, tiny_world.split)
    item = int(tiny_world.item_ids[0])
    assert (changes(store), withdrawn(store)) == (0, {})
    set_state(store, item, "active", NOW)
    assert changes(store) == 0
    for _ in range(2):
        change_state(store, item, "inactive", NOW)
    assert (changes(store), withdrawn(store)) == (1, {item: "inactive"})
    set_state(store, 5, DELETED, NOW)
    set_state(store, item, "active", NOW)
    assert (changes(store), withdrawn(store)) == (3, {5: DELETED})
    create_store(store, tiny_world.dataset, tiny_world.split)
    assert withdrawn(store) == {5: DELETED}
    with pytest.raises(UnknownItem, match="no item 6"):
        change_state(store, 6, DELETED, NOW)
    with pytest.raises(ValueError, match="expected one of active, inactive"):
        set_state(store, item, "sold", NOW)


def test_while_the_states_cannot_be_read_what_was_deleted_stays_hidden(shop):
    item = int(shop.world.item_ids[2])
    change_state(shop.store, item, DELETED, NOW)
    live = shop.live()
    path, folder = shop.store / "data" / "item_states.db", shop.store / "data" / "new_items"
    folder.mkdir()
    whole = path.read_bytes()
    path.write_bytes(b"not a database" * 100)
    live.look()
    assert "item_states.db: expected the states" in live.stale_reason
    write_json(folder / f"{NEW}.json", {"item": {"item_id": NEW, "title": "red"}, "available_us": 1})
    live.look()
    everything = ids_of(live.current.search("red", None, 50))
    assert NEW in everything and item not in everything
    with pytest.raises(StoreError, match="restore the file"):
        shop.live()
    path.write_bytes(whole)
    live.look()
    assert live.stale_reason == "" and item not in ids_of(live.current.search("red", None, 50))


def test_training_reads_what_it_read_before(shop):
    rows = make_requests(shop.world, seed=3)
    frames = []
    for state in ("active", DELETED):
        set_state(shop.store, int(shop.world.item_ids[1]), state, NOW)
        frame = training_frame(shop.store, rows, 7)
        frames.append(frame.take(0, len(frame)))
    assert frames[0].candidates.equals(frames[1].candidates)
    assert frames[0].requests.equals(frames[1].requests)
    np.testing.assert_array_equal(frames[0].history.item_id, frames[1].history.item_id)
