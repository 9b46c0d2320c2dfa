"""A ranker that reads thousands of behaviours: what is older than the online store keeps comes from the event log.

Run: pytest tests/test_long_histories_served.py
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from conftest import DAY, START, TinyDataset, TinySplit, TinyWorld, make_world, times, write_embedding
from ranker_world import auc
from test_ingest import Clock, offline, online, some_events
from test_training_requests import Silent, split_of

from dataset import contracts
from dataset.contracts import TIME
from dataset.split import RANKING
from evaluation.replay import scores_of
from feature_repo.create import create_store
from feature_repo.embeddings import as_stored, publish_embedding
from feature_repo.frames.join import training_frame
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.online import OnlineReader
from feature_repo.shop_ids import shop_ids
from feature_repo.store import materialize, open_store
from feature_repo.vectors import Vectors
from ranker.recipes import RecipeError, hstu, sim_soft
from ranker.recipes import recipe as named
from ranker.score import Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from retrieval.examples import ranker_frames
from retrieval.index import ItemIndex
from retrieval.retriever import Retriever
from retrieval.sources import PopularSource
from run.sizes import size
from serving.catalogue import Catalogue
from serving.recommend import Recommender

pytestmark = pytest.mark.usefixtures("one_thread")
KEPT, LONG = 5, 300  # behaviours that the online store keeps of a user in these tests, and that are read


@pytest.fixture
def store(tiny_world, tmp_path, monkeypatch):
    """A loaded store that keeps few behaviours online."""
    for module in ("history", "behaviour", "offline_store", "online"):
        monkeypatch.setattr(f"feature_repo.{module}.HISTORY", KEPT)
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    open_store(tmp_path / "store").materialize(
        START, tiny_world.end, feature_views=["user_history", "user_profile"]
    )
    return tmp_path / "store"


def test_a_long_history_is_served_as_the_next_training_frame_has_it(tiny_world, store):
    """While events arrive and are folded; a reader that opened the log before the fold reads the same."""
    users, clock = tiny_world.user_ids.tolist(), Clock(tiny_world.end)
    ingestor, seen = Ingestor(store, clock), []
    opened = OnlineReader(store, LONG)
    for round_ in range(3):
        arriving = some_events(tiny_world, 24, seed=round_, first_id=10_000 * (round_ + 1))
        ingestor.ingest(arriving)
        clock.pass_()
        for user in users:
            seen.append((user, clock.now, online(store, user, clock.now, LONG)))
            frame = opened.read_user(user, clock.now)
            assert frame.history.item_id.tolist() == seen[-1][2][1]
        fold(store)
        opened = opened.with_items(None)
        assert online(store, users[0], clock.now, LONG) == seen[-len(users)][2]
        clock.pass_(DAY)
    expected = {
        (user, moment): row
        for moment in {when for _, when, _ in seen}
        for user, row in zip(users, offline(store, users, moment, LONG), strict=True)
    }
    assert max(len(items) for _, items in expected.values()) > 5 * KEPT
    for user, when, saw in seen:
        assert saw == expected[user, when]


def test_a_long_history_of_the_past_does_not_see_later_behaviour(tiny_world, store):
    users, reader = tiny_world.user_ids.tolist(), OnlineReader(store, LONG)
    for back in (1, 20, 50):
        moment = tiny_world.end - back * DAY
        for user, (_, items) in zip(users, offline(store, users, moment, LONG), strict=True):
            assert reader.read_user(user, moment).history.item_id.tolist() == items
    for most in (1, KEPT, KEPT + 1, 12):
        expected = [items for _, items in offline(store, users, tiny_world.end, most)]
        again = reader.reading(most)
        assert [again.read_user(one, tiny_world.end).history.item_id.tolist() for one in users] == expected


def test_of_behaviours_that_were_known_at_once_none_is_read_twice_or_left_out(tmp_path, monkeypatch):
    """The border between log and online store lies among events of one moment."""
    for module in ("history", "behaviour", "offline_store", "online"):
        monkeypatch.setattr(f"feature_repo.{module}.HISTORY", KEPT)
    world = make_world(seed=2, users=3, events=200, days=2)
    create_store(tmp_path / "store", world.dataset, world.split)
    open_store(tmp_path / "store").materialize(START, world.end, feature_views=["user_history"])
    users, reader = world.user_ids.tolist(), OnlineReader(tmp_path / "store", LONG)
    expected = [items for _, items in offline(tmp_path / "store", users, world.end, LONG)]
    assert [reader.read_user(one, world.end).history.item_id.tolist() for one in users] == expected
    assert max(map(len, expected)) > 50


# A shop whose users loved two topics of eight long ago, and since then acted on items of four others.
USERS, TOPICS, LOVED, EACH, OLD, SINCE, REQUESTS, SHOWN = 40, 12, 8, 20, 120, 1_500, 360, 10
ITEMS = np.arange(TOPICS * EACH, dtype=np.int64) + 1_000
TOPIC = np.arange(len(ITEMS)) % TOPICS
NOW = START + 40 * DAY


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A run folder with a loaded store, its split, its embedding, and what was loved."""
    draw, run = np.random.default_rng(5), tmp_path_factory.mktemp("long")
    loved = np.array([draw.choice(LOVED, 2, replace=False) for _ in range(USERS)])
    world = _world(draw, loved)
    create_store(run / "store", world.dataset, world.split)
    vectors = np.eye(TOPICS, 16)[TOPIC] + 0.1 * draw.normal(size=(len(ITEMS), 16))
    embedding = write_embedding(run / "embedding", world, 16, START, vectors=vectors)
    publish_embedding(run / "store", embedding)
    materialize(run / "store", NOW)
    return SimpleNamespace(
        run=run, world=world, embedding=embedding, split=split_of(run / "split", True, _shown(draw, loved))
    )


def _world(draw, loved):
    tiny = make_world(0, events=0)
    items = tiny.dataset.items.take(pa.array(np.arange(len(ITEMS)) % len(tiny.dataset.items)))
    named_items = {"item_id": pa.array(ITEMS), "category": pa.array([["shop", f"t{one}"] for one in TOPIC])}
    named_items["first_seen"] = times([START] * len(ITEMS))
    for name, column in named_items.items():
        place = items.column_names.index(name)
        items = items.set_column(place, items.schema.field(name), column)
    users = tiny.dataset.users.take(pa.array(np.zeros(USERS, np.int64)))
    users = users.set_column(0, users.schema.field(0), pa.array(np.arange(USERS)))
    count = OLD + SINCE
    topic = np.concatenate(
        [loved[:, draw.integers(0, 2, OLD)], draw.integers(LOVED, TOPICS, (USERS, SINCE))], axis=1
    )
    item = ITEMS[topic + TOPICS * draw.integers(0, EACH, topic.shape)]
    step = pa.array(np.tile(np.arange(count) * 1_000_000, USERS)).cast(pa.duration("us"))
    when = pa.compute.add(pa.scalar(START, TIME), step)
    event = pa.array(np.arange(USERS * count) + 1)
    columns = {
        "event_id": event,
        "user_id": pa.array(np.repeat(np.arange(USERS), count)),
        "item_id": pa.array(item.ravel()),
        "type": pa.array(["click"] * (USERS * count)),
        "event_time": when,
        "available_time": when,
    }
    rest = {one.name: pa.nulls(USERS * count, one.type) for one in contracts.EVENTS}
    log = pa.table([({**rest, **columns})[one.name] for one in contracts.EVENTS], schema=contracts.EVENTS)
    log = log.sort_by([("available_time", "ascending"), ("event_id", "ascending")])
    return TinyWorld(TinyDataset(items, users, tiny.dataset.queries), TinySplit(log))


def _shown(draw, loved):
    """Slates after all behaviours: of the loved topics half of the time, and then clicked eight times in ten."""
    user = np.arange(REQUESTS) % USERS
    aimed = draw.random((REQUESTS, SHOWN)) < 0.5
    topic = np.where(
        aimed, loved[user[:, None], draw.integers(0, 2, aimed.shape)], draw.integers(0, LOVED, aimed.shape)
    )
    chance = np.where((topic[..., None] == loved[user][:, None]).any(-1), 0.8, 0.1)
    rows, each = REQUESTS * SHOWN, np.repeat(np.arange(REQUESTS), SHOWN)
    part = np.where(each < 220, "train", np.where(each < 260, "valid", "test"))
    return pa.table(
        {
            "request_id": each,
            "user_id": user[each],
            "time": pa.array([NOW] * rows),
            "query_id": pa.nulls(rows, pa.int64()),
            "item_id": ITEMS[topic + TOPICS * draw.integers(0, EACH, topic.shape)].ravel(),
            "position": pa.nulls(rows, pa.int32()),
            "label": (draw.random(rows) < chance.ravel()).astype(np.float32),
            "part": part,
            "event_id": np.arange(rows),
        },
        schema=RANKING,
    )


class Mute(Silent):
    """A source that says nothing of any item."""

    def score(self, requests, item_id, offsets):
        return np.zeros(len(item_id), np.float32)


class Plain(Retriever):
    """A retriever whose columns read no content."""

    def without_content(self):
        return replace(self)


def retriever_of(shop):
    vectors = as_stored(Vectors.open(shop.embedding), shop.run / "store")
    index = ItemIndex.build(vectors.ids, vectors.matrix)
    popular = PopularSource(ITEMS, np.ones(len(ITEMS), np.float32), index)
    own = Plain(index, vectors, (Mute(),), popular, Mute(), {})
    return SimpleNamespace(whole=own, vectors=vectors)


def trained(shop, history):
    sized, found = replace(size("nano"), ranker_history=history), retriever_of(shop)
    train, valid, loss = ranker_frames(shop.run, shop.split, sized, 0, found.whole)
    settings = Settings(8, learning_rate=5e-3, table_learning_rate=1e-3)
    training = Training(recipe=sim_soft(), settings=settings, loss=loss, epochs=5)
    out = shop.run / f"ranker_{history}"
    made = train_ctr(train, valid, found.vectors, sized, out, {}, training)
    return Ranker.open(made, found.vectors)


@pytest.fixture(scope="module")
def long_ranker(shop):
    return trained(shop, 2_000)


def test_what_matters_happened_long_ago(shop, long_ranker):
    """Of 1,620 behaviours the first 120 tell; the requests' frames are read once, whatever the ranker's length."""
    short = trained(shop, 50)
    assert (short.history, long_ranker.history) == (50, 2_000)
    assert long_ranker.artifact.config["history"] == 2_000
    test = shop.split.ranking.filter(pa.compute.equal(shop.split.ranking["part"], "test"))
    stored = training_frame(shop.run / "store", test, 50)
    retriever = retriever_of(shop).whole
    label = test["label"].to_numpy()
    found = {
        name: auc(label, scores_of(stored, retriever, {name: one})[name])
        for name, one in {"long": long_ranker, "short": short}.items()
    }
    assert found["long"] > 0.78 and found["short"] < 0.58, found


class Listening:
    """A ranker that keeps what it read and said."""

    def __init__(self, ranker):
        self.ranker, self.history, self.order = ranker, ranker.history, None

    def score(self, frame, query_vectors=None):
        self.frame, self.scores = frame, self.ranker.score(frame, query_vectors)
        return self.scores


def test_a_long_history_is_served_with_the_scores_of_the_training_frame(shop, long_ranker):
    found, ids = retriever_of(shop), shop_ids(shop.run / "store")
    ranker = Listening(long_ranker)
    moon = Recommender(
        retriever=found.whole, reader=OnlineReader(shop.run / "store", 2_000), ranker=ranker, encoder=None,
        finder=None, relevance=None, catalogue=Catalogue(shop.world.dataset.items, {}.get, ids), artifacts={},
        now=lambda: NOW, behaviours=50, ids=ids,
    )  # fmt: skip
    answer = moon.recommend(3, 10)
    assert answer.order == "ranker" and answer.fallbacks == ()
    frame = ranker.frame
    assert len(frame.history.item_id) == OLD + SINCE
    rows = pa.table(
        {
            "request_id": np.zeros(len(frame.candidates), np.int64),
            "user_id": np.full(len(frame.candidates), 3),
            "time": pa.array([NOW] * len(frame.candidates), TIME),
            "query_id": pa.nulls(len(frame.candidates), pa.int64()),
            "item_id": frame.candidates["item_id"],
        }
    )
    stored = training_frame(shop.run / "store", rows, 50)
    offline_scores = scores_of(stored, found.whole, {"full": long_ranker})["full"]
    np.testing.assert_allclose(ranker.scores, offline_scores, atol=1e-5)
    assert np.ptp(ranker.scores) > 1
    visited = [int(ITEMS[0]), int(ITEMS[1])]
    moon.recommend(3, 10, session=visited)
    assert ranker.frame.history.item_id[-2:].tolist() == visited
    assert len(moon.history(3)) == 50, "retrieval and the page read what they did"
    ranker.history = 1_000
    moon.recommend(3, 10, session=visited)
    assert len(ranker.frame.history.item_id) == 1_000


def test_a_recipe_that_compares_all_behaviours_refuses_long_histories():
    hstu().require_history(1_000)
    with pytest.raises(
        RecipeError,
        match=r"module hstu .* at most 1,000, found 1,001.*moon ranker --recipe twin --history 1001",
    ):
        hstu().require_history(1_001)
    for name in ("cube", "muse", "twin"):
        named(name).require_history(10_000)
