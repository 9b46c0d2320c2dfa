"""What a behaviour knows of its item is what the store knew at that moment, whatever is written later."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, make_world, write_embedding
from ranker_world import auc

from dataset.contracts import TIME
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.frames.join import training_frame
from feature_repo.frames.shards import open_frame, write_frame
from feature_repo.frames.source import FrameSource
from feature_repo.online import OnlineReader
from feature_repo.services import CTR
from feature_repo.side_information import open_side_information
from feature_repo.signature import Feature, open_signature
from feature_repo.store import materialize, open_store
from feature_repo.vectors import Vectors
from moonstore.freshness import EPOCH, US
from ranker.explain import explain
from ranker.score import Ranker
from ranker.train import Training, train_ctr
from retrieval.requests import Requests
from run.sizes import size
from serving.visit import newest_of, with_session

HOUR = timedelta(hours=1)
MOMENT = START + 40 * DAY
HISTORY = 5
TTL = 3 * DAY
TINY = replace(size("nano"), id_width=8, history=HISTORY, ranker_slots=96)
FILE = """
from datetime import timedelta
from pathlib import Path
from feast import FeatureService, FeatureView, Field, FileSource
from feast.types import Float32, String
from feature_repo.entities import item

shelf = FeatureView(
    name="shelf", entities=[item], ttl=timedelta(days=3),
    schema=[
        Field(name="deal", dtype=Float32, tags={"role": "behaviour"}),
        Field(name="tag", dtype=String, tags={"role": "candidate, behaviour"}),
    ],
    source=FileSource(
        name="shelf", path=str(Path(__file__).parent / "shelf.parquet"), timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
)
ctr_v1 = FeatureService(name="ctr_v1", features=[shelf])
"""


def write_shelf(folder, rows):
    """Rows of (item, time, created, deal, tag)."""
    names = ("item_id", "event_timestamp", "created", "deal", "tag")
    types = (pa.int64(), TIME, TIME, pa.float32(), pa.string())
    columns = zip(names, types, zip(*rows, strict=True), strict=True)
    pq.write_table(
        pa.table({name: pa.array(list(of), kind) for name, kind, of in columns}), folder / "shelf.parquet"
    )


def requests_of(users, items):
    """A request of each user at MOMENT with the same candidates."""
    count = len(users) * len(items)
    return pa.table(
        {
            "request_id": np.repeat(np.arange(len(users)), len(items)),
            "user_id": np.repeat(users, len(items)),
            "time": pa.array([MOMENT] * count, TIME),
            "query_id": pa.nulls(count, pa.int64()),
            "item_id": np.tile(items, len(users)),
        }
    )


def whole(frame):
    return frame.take(0, len(frame))


def joined(store_dir, world):
    return training_frame(store_dir, requests_of(world.user_ids, world.item_ids[:1]), HISTORY)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A store whose view ``shelf`` says for each item, at each behaviour's moment, what was written just before."""
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    world, mine = make_world(seed=1), tmp_path / "repository" / "mine"
    mine.mkdir(parents=True)
    (mine / "shelf.py").write_text(FILE)
    events = world.split.log
    moments = {
        (i, t) for i, t in zip(events["item_id"].to_pylist(), events["event_time"].to_pylist(), strict=True)
    }
    rows = [(item, when - US, when, float(n), f"t{n % 3}") for n, (item, when) in enumerate(sorted(moments))]
    write_shelf(mine, rows)
    create_store(tmp_path / "store", world.dataset, world.split)
    return world, mine, rows, tmp_path / "store"


def told(frame):
    return [
        (row["item_id"], EPOCH + int(when) * US, row["behaviour_deal"], row["behaviour_tag"])
        for row, when in zip(frame.history.table().to_pylist(), frame.history.time_us, strict=True)
    ]


def test_a_behaviour_sees_the_row_just_before_it_and_nothing_written_later(shop):
    world, mine, rows, store_dir = shop
    known = {(item, stamp + US): (deal, tag) for item, stamp, _, deal, tag in rows}
    first = told(whole(joined(store_dir, world)))
    assert len(first) > 20
    for item, when, deal, tag in first:
        assert (deal, tag) == known[item, when]
    # written at the moment itself, or later: unseen
    late = [
        (item, stamp + US + n % 2 * HOUR, when, -1.0, "late")
        for n, (item, stamp, when, *_) in enumerate(rows)
    ]
    write_shelf(mine, [*rows, *(row for row in late if (row[0], row[1] + US) not in known)])
    assert told(whole(joined(store_dir, world))) == first
    # a correction of the same moment, whenever it was created, replaces what it corrects
    write_shelf(mine, [*((i, s, c + 9 * DAY, d + 1000, t) for i, s, c, d, t in rows), *rows])
    after = told(whole(joined(store_dir, world)))
    assert after == [(item, when, deal + 1000, tag) for item, when, deal, tag in first]


@pytest.mark.parametrize(("age", "seen"), [(TTL, True), (TTL + US, False)])
def test_a_row_counts_for_as_long_as_its_view_says_before_the_behaviour(shop, age, seen):
    world, mine, rows, store_dir = shop
    write_shelf(
        mine, [(item, stamp + US - US - age, when, deal, tag) for item, stamp, when, deal, tag in rows[:1]]
    )
    side = opened(store_dir)
    item, stamp = rows[0][:2]
    moment = np.array([(stamp + US - EPOCH) // US])
    (deal,) = side.columns(np.array([item]), moment)["behaviour_deal"].to_pylist()
    assert (deal is not None) == seen
    assert side.columns(np.array([item + 1]), moment)["behaviour_deal"].null_count == 1


def opened(store_dir):
    store = open_store(store_dir)
    return open_side_information(store, open_signature(store, CTR).features)


def test_the_category_of_a_behaviour_is_known_without_being_a_feature_of_it(shop):
    """Beside features of the same view, whose file stays; as of the behaviour, and read when it is asked for."""
    world, _, _, store_dir = shop
    store = open_store(store_dir)
    category = Feature("category", "item_profile", "category", "candidate", "category", pa.string())
    price = Feature("behaviour_price", "item_profile", "price", "behaviour", "number", pa.float32())
    side = open_side_information(store, [category, price])
    folder = store_dir / "data" / "side_information"
    assert [path.name.partition("@")[0] for path in folder.iterdir()] == ["item_profile"]
    items = np.array([*world.item_ids, 7])
    late, early = (np.full(len(items), (when - EPOCH) // US) for when in (MOMENT, START - 999 * DAY))
    source = store.get_feature_view("item_profile").batch_source
    stored = {row["item_id"]: row for row in pq.read_table(store_dir / source.path).to_pylist()}
    assert side.category(items, late).to_pylist() == [
        *(stored[item]["category"] for item in world.item_ids),
        None,
    ]
    assert side.category(items, early).null_count == len(items)
    assert {path.name.partition("@")[0] for path in folder.iterdir()} == {
        "item_profile",
        "item_profile.category",
    }
    priced = side.columns(items, late)["behaviour_price"].to_pylist()
    assert priced == [*(stored[item]["price"] for item in world.item_ids), None]
    assert open_side_information(store, [price]).category(items, late) is None


def test_bisection_is_a_loop_over_the_rows(shop):
    world, mine, _, store_dir = shop
    rng = np.random.default_rng(0)
    stamps = {(int(rng.choice(world.item_ids)), int(hour)) for hour in rng.integers(0, 400, 300)}
    rows = [
        (item, START + hour * HOUR, START, float(n), "x") for n, (item, hour) in enumerate(sorted(stamps))
    ]
    write_shelf(mine, [rows[n] for n in rng.permutation(len(rows))])
    side = opened(store_dir)
    items = rng.choice([*world.item_ids, 7, 2**62], 500)
    moments = [START + int(hour) * HOUR for hour in rng.integers(-5, 420, 500)]
    found = side.columns(items, np.array([(one - EPOCH) // US for one in moments]))[
        "behaviour_deal"
    ].to_pylist()
    for item, moment, deal in zip(items.tolist(), moments, found, strict=True):
        before = [row for row in rows if row[0] == item and moment - US - TTL <= row[1] < moment]
        assert deal == (max(before, key=lambda row: row[1])[3] if before else None)


def test_a_reader_takes_another_load_when_it_is_given_one_and_a_frame_keeps_its_own(shop, tmp_path):
    world, mine, rows, store_dir = shop
    materialize(store_dir, MOMENT)
    reader, user = OnlineReader(store_dir, HISTORY), world.user_ids[0]
    frame = joined(store_dir, world).take(0, 1)
    first = told(reader.read(user, world.item_ids, MOMENT))
    assert first == told(frame) and first
    write_shelf(mine, [(item, stamp, when, deal + 1, tag) for item, stamp, when, deal, tag in rows])
    assert told(reader.read(user, world.item_ids, MOMENT)) == first
    again = told(reader.with_items(None).read(user, world.item_ids, MOMENT))
    assert again == [(item, when, deal + 1, tag) for item, when, deal, tag in first]
    assert told(frame) == first
    assert len(list((store_dir / "data" / "side_information").glob("shelf@*"))) == 1


def test_side_information_goes_wherever_a_history_goes(shop, tmp_path):
    world, _, _, store_dir = shop
    count, items = len(world.user_ids), world.item_ids
    source = FrameSource(store_dir, lambda: iter([requests_of(world.user_ids, items[:1])]), HISTORY, {})
    write_frame(source, tmp_path / "frame")
    training, stored = joined(store_dir, world), open_frame(tmp_path / "frame", store_dir)
    frame = whole(training)
    assert told(whole(stored)) == told(frame)
    turned = np.arange(count)[::-1]
    ends = frame.history.offsets
    expected = [row for one in turned for row in told(frame)[ends[one] : ends[one + 1]]]
    assert told(training.select(turned)) == expected
    assert told(Requests.from_frame(frame).select(turned).two_tower_frame()) == expected
    one = training.take(0, 1)
    visit = replace(one, history=newest_of(with_session(one.history, items[:2].tolist(), MOMENT), HISTORY))
    assert told(visit)[:-2] == told(one)[-len(told(visit)) + 2 :] and len(told(visit)) >= 2


def test_the_ranker_learns_from_what_was_known_at_the_behaviours(shop, tmp_path):
    """Users click everything if the deals of their behaviours were good, nothing if they were not."""
    world, mine, rows, store_dir = shop
    events = world.split.log
    good = {user: n % 2 for n, user in enumerate(world.user_ids.tolist())}
    of = {
        (item, when): good[user]
        for item, when, user in zip(
            *(events[name].to_pylist() for name in ("item_id", "event_time", "user_id")), strict=True
        )
    }
    write_shelf(mine, [(i, s, c, float(of[i, s + US]), "t") for i, s, c, _, _ in rows])
    artifact = write_embedding(tmp_path / "e", world, 4, START)
    publish_embedding(store_dir, artifact)
    vectors, draw = Vectors.open(artifact), np.random.default_rng(0)

    def frame_of(users, count):
        user = np.repeat(draw.choice(users, count), 5)
        table = {
            "request_id": np.repeat(np.arange(count), 5),
            "user_id": user,
            "time": pa.array([MOMENT] * 5 * count, TIME),
            "query_id": pa.nulls(5 * count, pa.int64()),
            "item_id": draw.choice(world.item_ids, 5 * count),
            "label": np.array([good[one] for one in user.tolist()], np.float32),
        }
        return training_frame(store_dir, pa.table(table), HISTORY)

    some, others = world.user_ids[:8], world.user_ids[8:]
    train, valid, test = frame_of(some, 120), frame_of(some, 30), frame_of(others, 40)
    frame = whole(test)
    label = frame.candidates["label"].to_numpy() > 0
    ranker = Ranker.open(train_ctr(train, valid, vectors, TINY, tmp_path / "r", {}), vectors, train.signature)
    assert auc(label, ranker.score(frame)) > 0.8
    assert auc(label, explain(ranker, frame)["behaviour_deal"]) > 0.8
    blind = train_ctr(train, valid, vectors, TINY, tmp_path / "b", {}, Training(without=["behaviour_deal"]))
    assert auc(label, Ranker.open(blind, vectors).score(frame)) < 0.7
