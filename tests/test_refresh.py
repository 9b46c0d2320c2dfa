"""What answers knows what the store holds: the features of the last load, and the items that came in since.

Run: pytest tests/test_refresh.py
"""

import base64
from dataclasses import replace

import numpy as np
import pytest
from conftest import DAY, START, write_embedding
from fake_shop import picture

from dataset.contracts import content_hash
from dataset.records import Item
from feature_repo import dead_letters
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.ingest import new_items
from feature_repo.ingest.item_rows import RowsRefused
from feature_repo.ingest.new_items import keep_item
from feature_repo.item_matrix import embedding_of, open_item_matrix
from feature_repo.online import UNREACHABLE, OnlineReader, StoreUnavailable
from feature_repo.store import materialize, open_store
from feature_repo.vectors import Vectors, VectorTable
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US
from retrieval.cooccurrence import Cooccurrence, build_cooccurrence
from retrieval.index import ItemIndex, category_path
from retrieval.retriever import Parts, Retriever
from retrieval.search.search import Search, no_pictures
from retrieval.similarities import Categories
from retrieval.words import Words
from serving import refresh
from serving.catalogue import Catalogue
from serving.recommend import Recommender
from serving.refresh import refreshed

WIDTH, LOADED, NOW = 8, START + 35 * DAY, START + 40 * DAY
NEW, FIRST, SECOND = 2**50 + 1, 2**50 + 2, 2**50 + 3


class Encoder:
    """Everything is like one item of the shop, whose vector it answers; remembers what it was given."""

    def __init__(self, vector):
        self.vector, self.given = vector, []

    def encode(self, contents):
        self.given.extend(contents)
        return np.stack([self.vector] * len(contents))


class Ranker:
    """Scores nothing; knows which vectors it was given."""

    vectors = None
    history, order = 50, None

    def with_vectors(self, vectors):
        other = Ranker()
        other.vectors = vectors
        return other

    def score(self, frame, query_vectors=None):
        self.frame = frame
        return np.arange(len(frame.candidates), dtype=np.float32)


class Towers:
    """Users and items on a circle: an item's place is its age."""

    items = None

    def item_vectors(self, items):
        self.items = items
        return np.tile(np.float32([0.6, 0.8]), (len(items), 1))

    def user_vectors(self, frame):
        return np.tile(np.float32([0.6, 0.8]), (len(frame), 1))


@pytest.fixture(scope="module")
def loaded(tiny_world, tmp_path_factory):
    """A loaded store with one embedding, and its artifact."""
    folder = tmp_path_factory.mktemp("refresh")
    create_store(folder / "store", tiny_world.dataset, tiny_world.split)
    artifact = write_embedding(folder / "e", tiny_world, WIDTH, START + 10 * DAY)
    publish_embedding(folder / "store", artifact)
    materialize(folder / "store", LOADED)
    graph = Cooccurrence.open(build_cooccurrence(tiny_world.split.log, folder / "c", {}))
    return folder / "store", artifact, graph


@pytest.fixture
def opened(tiny_world, loaded):
    """A recommender as it is opened, before it knows what the store holds."""
    store_dir, artifact, graph = loaded
    vectors = Vectors.open(artifact)
    paths = [category_path(parts) for parts in tiny_world.dataset.items["category"].to_pylist()]
    index = ItemIndex.build(vectors.ids, vectors.matrix, paths)
    placed = ItemIndex.build(vectors.ids, np.tile(np.float32([1, 0]), (len(vectors.ids), 1)), paths)
    parts = Parts(graph, Towers(), placed, Categories.of(index), Words.of(tiny_world.dataset.items))
    retriever = Retriever._of(index, vectors, parts, {})
    return Recommender(
        retriever=retriever,
        reader=OnlineReader(store_dir, 7),
        ranker=Ranker(),
        encoder=Encoder(vectors.matrix[3]),
        finder=Search.of(tiny_world.dataset.items, no_pictures(index), index),
        relevance=None,
        catalogue=Catalogue(tiny_world.dataset.items, {}.get),
        artifacts={"embedding": artifact.id},
        now=lambda: NOW,
        behaviours=7,
    )


@pytest.fixture
def shop(loaded):
    """The store's folder, the open store, and the snapshot of its last load; nothing came in yet."""
    store_dir, artifact, _ = loaded
    for path in new_items._files(store_dir):
        path.unlink()
    store = open_store(store_dir)
    return store_dir, store, open_item_matrix(store, embedding_of(store_dir, artifact.id))


def came(store_dir, item_id=NEW, **told):
    """An item comes in; all that came in."""
    told = {"title": "a new one", "category": ["fresh", "made"], "price": 2.5} | told
    keep_item(store_dir, Item(item_id=item_id, **told), NOW)
    return new_items.new_items(store_dir)


def ids_of(answer):
    return [hit.card.item_id for hit in answer.hits]


def test_after_a_load_candidates_are_read_from_memory_and_answers_stay(tiny_world, opened, shop):
    _, store, matrix = shop
    moon = refreshed(opened, store, matrix, [])
    user = int(tiny_world.user_ids[0])
    assert moon.items is matrix and opened.items is None
    assert moon.ranker.vectors is moon.retriever.vectors and opened.ranker.vectors is None
    known = opened.retriever.vectors
    np.testing.assert_array_equal(moon.retriever.vectors.matrix, matrix.vectors.matrix)
    assert moon.retriever.vectors.queries is known.queries and moon.retriever.vectors.id == known.id
    assert ids_of(moon.recommend(user, 9)) == ids_of(opened.recommend(user, 9)) != []
    assert moon.ranker.frame.candidates.equals(opened.ranker.frame.candidates)
    assert not opened.encoder.given


def test_a_new_item_is_encoded_stored_and_answered_with(tiny_world, opened, shop):
    store_dir, store, matrix = shop
    image = picture()
    items = came(store_dir, image_base64=base64.b64encode(image).decode())
    moon = refreshed(opened, store, matrix, items)
    alike = int(opened.retriever.vectors.ids[3])

    content, alone = opened.encoder.given
    assert content.image == alone.image == image and "a new one" in content.text and alone.text is None
    refreshed(opened, store, matrix, items)
    assert len(opened.encoder.given) == 2  # neither it nor its picture is encoded again
    hits = moon.similar(NEW, 3).hits
    assert hits[0].card.item_id == alike and hits[0].score == pytest.approx(1, abs=1e-6)
    assert set(ids_of(moon.search("like the fourth", None, 2))) == {NEW, alike}
    assert NEW in ids_of(moon.recommend(int(tiny_world.user_ids[0]), 40, session=[alike]))
    assert ids_of(
        moon.recommend(int(tiny_world.user_ids[0]), 5, category="fresh > made", session=[alike])
    ) == [NEW]

    (card,) = moon.catalogue.cards([NEW])
    assert (card.title, card.category, card.price) == ("a new one", "fresh > made", 2.5)
    assert card.image_id == content_hash(image) and moon.catalogue.image_bytes(card.image_id) == image

    placed = moon.retriever.parts.tower_index.gather(np.array([NEW]))[0]
    np.testing.assert_allclose(placed, [[0.6, 0.8]], atol=1e-6)
    told = moon.retriever.parts.towers.items
    assert told["item_id"].to_pylist() == [NEW] and told["first_seen_us"].to_pylist() == [(NOW - EPOCH) // US]
    assert moon.retriever.vectors.ids.tolist() == [*opened.retriever.vectors.ids.tolist(), NEW]
    assert moon.ranker.vectors is moon.retriever.vectors
    assert opened.items is None and not opened.retriever.index.contains(np.array([NEW])).any()
    assert opened.catalogue.cards([NEW])[0].title == ""


def test_what_is_online_is_not_encoded_again(opened, shop):
    store_dir, store, matrix = shop
    refreshed(opened, store, matrix, came(store_dir, FIRST, title="first"))
    moon = refreshed(opened, store, matrix, came(store_dir, SECOND, title="second"))
    assert ["first" in one.text for one in opened.encoder.given] == [True, False]
    assert ["second" in one.text for one in opened.encoder.given] == [False, True]
    assert {FIRST, SECOND} <= set(moon.retriever.index.ids.tolist())
    assert [card.title for card in moon.catalogue.cards([FIRST, SECOND])] == ["first", "second"]


def test_an_item_seen_days_ago_keeps_the_time_of_its_first_sight(opened, shop):
    store_dir, store, matrix = shop
    items = came(store_dir)
    opened.now = lambda: NOW + 2 * DAY
    moon = refreshed(opened, store, matrix, items)
    seen_us = moon.retriever.parts.towers.items["first_seen_us"].to_pylist()
    assert seen_us == [(NOW - EPOCH) // US] == [items[0].available_us]


def test_a_snapshot_without_some_vectors_is_refused_by_name(opened, shop):
    _, store, matrix = shop
    lost = matrix.vectors.ids[[2, 5]].tolist()
    kept = ~np.isin(matrix.vectors.ids, lost)
    short = replace(matrix, vectors=VectorTable(matrix.vectors.ids[kept], matrix.vectors.matrix[kept]))
    with pytest.raises(
        StoreError, match=rf"expected {len(kept)} vectors online, 2 are missing .item_id .{lost[0]}"
    ):
        refreshed(opened, store, short, [])


def test_while_the_store_is_away_nothing_new_is_known(opened, shop, monkeypatch):
    store_dir, store, matrix = shop
    error = UNREACHABLE[0] if isinstance(UNREACHABLE, tuple) else UNREACHABLE

    def away(*_):
        raise error("gone")

    monkeypatch.setattr(refresh, "are_online", away)
    with pytest.raises(StoreUnavailable, match="does not answer: .*gone"):
        refreshed(opened, store, matrix, came(store_dir))


class Choosy(Encoder):
    """Cannot encode an item that says so; counts what it was given at once."""

    def __init__(self, vector, error):
        super().__init__(vector)
        self.error, self.sizes = error, []

    def encode(self, contents):
        self.sizes.append(len(contents))
        if any("bad" in content.text for content in contents):
            raise self.error
        return super().encode(contents)


def reasons(store_dir):
    """Item id -> why it is in the dead letter."""
    return {int(one.id.split("/")[1]): one.reason for one in dead_letters.letters(store_dir, "new_items")}


def test_items_at_fault_are_found_by_halving_and_set_aside_with_the_reason(opened, shop, caplog):
    store_dir, store, matrix = shop
    opened.encoder = Choosy(opened.encoder.vector, ValueError("no picture"))
    first = 2**51  # five items of which the second and the last cannot be encoded
    for number, title in enumerate(["one", "bad two", "three", "four", "bad five"]):
        items = came(store_dir, first + number, title=title)
    moon = refreshed(opened, store, matrix, items)
    assert opened.encoder.sizes == [5, 2, 1, 1, 3, 1, 2, 1, 1]
    good = [first, first + 2, first + 3]
    assert moon.retriever.index.contains(np.arange(first, first + 5)).tolist() == [1, 0, 1, 1, 0]
    assert [one.item_id for one in new_items.new_items(store_dir)] == good
    said = "1 items cannot be encoded: ValueError: no picture"
    refused = reasons(store_dir)
    assert {item: refused[item] for item in refused if item >= first} == {first + 1: said, first + 4: said}
    assert [record.getMessage() for record in caplog.records if record.name == "moon.serving"] == [
        f"item {first + 1} is set aside: {said}",
        f"item {first + 4} is set aside: {said}",
    ]
    opened.encoder.sizes.clear()
    refreshed(opened, store, matrix, new_items.new_items(store_dir))
    assert not opened.encoder.sizes, "all that are left are online"


@pytest.mark.parametrize("error", [MemoryError("full"), OSError("disk")])
def test_where_the_machine_is_at_fault_no_item_is_set_aside(opened, shop, error):
    store_dir, store, matrix = shop
    opened.encoder = Choosy(opened.encoder.vector, error)
    items = came(store_dir, 2**52, title="bad luck")
    with pytest.raises(type(error)):
        refreshed(opened, store, matrix, items)
    assert [one.item_id for one in new_items.new_items(store_dir)] == [2**52]


def test_a_row_that_the_store_refuses_is_set_aside_too(opened, shop, monkeypatch):
    store_dir, store, matrix = shop

    def refuse(*_):
        raise RowsRefused("price below zero")

    monkeypatch.setattr(refresh, "put_online", refuse)
    moon = refreshed(opened, store, matrix, came(store_dir, 2**53))
    assert reasons(store_dir)[2**53] == "price below zero"
    assert moon.items is matrix and not moon.retriever.index.contains(np.array([2**53])).any()
