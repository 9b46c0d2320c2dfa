"""What orders an answer where the log has ratings, and who is answered without a ranker; evaluation as the service.

Run: pytest tests/test_rated_order.py
"""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import DAY, START
from fake_shop import EVEN, NOW, recommender
from test_retrieval_build import NANO, built, opened  # noqa: F401  (built is a fixture)
from test_split import FakeDataset, events_table, items_table

from dataset.contracts import TIME
from dataset.split import Split, split_dataset
from evaluation import replay
from evaluation.baselines import Popularity
from evaluation.plain import PlainMethods
from evaluation.shop_baselines import positive_events
from ranker.order import Order
from retrieval import build
from retrieval.examples import requests_frame
from retrieval.fusion import Weights
from retrieval.proposals import proposed
from retrieval.requests import Request, Requests, history_of, interests
from retrieval.retriever import Retriever, open_retrieval
from retrieval.sources import propose

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("liked", [0.0, 2.0])
@pytest.mark.parametrize("rated", [False, True])
def test_the_service_answers_in_the_order_that_the_ranker_learned(rated, liked):
    shop = recommender()
    shop.retriever = replace(shop.retriever, weights=Weights(rated=rated))
    candidates, scores = {}, {}

    class Ranker:
        history, order = 6, Order(0.5, liked) if rated else None

        def score(self, frame, query_vectors=None):
            items = frame.candidates["item_id"].to_numpy()
            candidates["ids"], scores["of"] = items, np.sin(items % 97).astype(np.float32) * 3
            return scores["of"]

    shop.ranker = Ranker()
    answer = shop.recommend(4, 8)
    fused = dict(zip(*asked(shop, 4), strict=True))
    worth = [
        0.5 * fused[item] - liked * np.log(1 + np.exp(-score)) if rated else score
        for item, score in zip(candidates["ids"].tolist(), scores["of"].tolist(), strict=True)
    ]
    expected = candidates["ids"][np.argsort(-np.array(worth), kind="stable")][:8].tolist()
    assert [hit.card.item_id for hit in answer.hits] == expected


def asked(shop, user):
    """Ids and fused scores of the candidates of a user of even taste."""
    request = Request(user, history_of(EVEN[:3]), NOW, exclude=EVEN[:3])
    ids, fused = propose(shop.retriever.recommending, Requests.of([request]), shop.per_source)[0]
    return ids.tolist(), fused.tolist()


def test_what_was_rated_weighs_the_sources_as_what_was_taken(built, tmp_path):  # noqa: F811
    whole, split = built
    reached = {}
    for name, changes in (("taken", {"shows": False}), ("rated", {"rated": True})):
        run = shutil.copytree(whole, tmp_path / name)
        build.weigh_sources(run, SimpleNamespace(**vars(split) | changes), NANO, 5)
        config = opened(run, "fusion").config
        assert config["measure"] == "ndcg"
        reached[name] = config["reached"]
        assert Weights.open(opened(run, "fusion")).rated == (name == "rated")
    assert reached["rated"] == reached["taken"]
    assert not Weights.open(opened(whole, "fusion")).rated


def test_evaluation_proposes_only_popular_items_to_who_is_not_known_as_the_service_does(
    built,  # noqa: F811
    monkeypatch,
):
    whole, split = built
    retriever = Retriever.open(open_retrieval(whole))
    later = split.retrieval.filter(pc.equal(split.retrieval["part"], "test")).slice(0, 6)
    before = pa.array([START - DAY] * 6, later["time"].type)  # nobody has done anything yet
    early = later.set_column(later.column_names.index("time"), "time", before)
    early = early.set_column(0, "request_id", pa.array(range(900, 906), pa.int64()))
    both = pa.concat_tables([later, early.cast(later.schema)]).combine_chunks()
    found = proposed(whole, both, NANO, retriever)
    frame = requests_frame(whole, both, NANO)
    known = (np.diff(frame.take(0, len(both)).history.offsets) > 0).tolist()
    assert set(known) == {False, True}
    asked = retriever.asking(Requests.from_frame(frame.take(0, len(both))))
    served = {
        False: propose((retriever.popular,), asked, weights=retriever.weights),
        True: propose(retriever.recommending, asked, weights=retriever.weights),
    }
    for request, one in enumerate(known):
        for found_of, of_service in zip(found.candidates[request], served[one][request], strict=True):
            assert found_of.tolist() == of_service.tolist()
        assert found.candidates[request][0].tolist() != served[not one][request][0].tolist()

    def by_id(stored, *_):  # a ranker that prefers smaller ids
        return {"full": -stored.given["item_id"].to_numpy().astype(np.float32)}

    monkeypatch.setattr(replay, "scores_of", by_id)
    rankers = {"full": SimpleNamespace(order=Order(0.0, 1.0))}
    for rated in (False, True):
        again = replace(retriever, weights=replace(retriever.weights, rated=rated))
        lists = dict(replay.rank_requests(whole, both, NANO, again, rankers, found, 20))
        for request, (ids, _) in enumerate(found.candidates):
            best = lists["ranker_full"][request]
            assert best[best >= 0].tolist() == np.sort(ids)[:20].tolist()
    rankers["full"].order = Order()
    lists = dict(replay.rank_requests(whole, both, NANO, again, rankers, found, 20))
    np.testing.assert_array_equal(lists["ranker_full"], lists["candidates"])


def test_a_split_says_whether_all_that_was_shown_are_ratings(tmp_path):
    rated = [
        {"user_id": n % 9, "item_id": n % 31, "type": "rating", "minute": 10 * n, "value": float(1 + n % 5)}
        for n in range(200)
    ]
    shown = [*rated, {"user_id": 1, "item_id": 2, "type": "impression", "minute": 5}]
    for name, rows, expected in (("ratings", rated, True), ("both", shown, False), ("clicks", [], False)):
        rows = rows or [{**row, "type": "click", "value": None} for row in rated]
        data = FakeDataset(
            events_table([dict(row) for row in rows]), items_table(dict.fromkeys(range(31), True))
        )
        split = Split.open(split_dataset(data, tmp_path / name, "time"))
        assert split.rated == expected and split.shows == (name != "clicks")


def test_who_liked_only_what_may_not_be_answered_is_known_all_the_same(built):  # noqa: F811
    whole, split = built
    asked = split.retrieval.filter(pc.equal(split.retrieval["part"], "test")).combine_chunks()
    history = requests_frame(whole, asked, NANO).take(0, len(asked)).history
    every = Retriever.open(open_retrieval(whole))
    liked = interests(history)
    others = np.setdiff1d(every.index.ids, liked.item_id)
    few = Retriever.open(open_retrieval(whole), only=others)
    assert not np.isin(liked.item_id, few.index.ids).any() and every.knows(history).any()
    assert np.array_equal(few.knows(history), every.knows(history))
    gone = replace(history, item_id=history.item_id + 10**6)
    assert not every.knows(gone).any()


@pytest.fixture
def rated_again():
    """Users rate 2 of 5 and years later 5; every third pair is liked at once. Nobody is shown what they rated."""
    draw = np.random.default_rng(0)
    rows = [
        {"user_id": user, "item_id": int(item), "type": "rating", "minute": minute, "value": value}
        for user in range(20)
        for item in draw.permutation(40)[:15]
        for minute, value in (
            [(int(draw.integers(0, 900)), 2.0), (int(draw.integers(900, 1000)), 5.0)]
            if item % 3
            else [(int(draw.integers(0, 1000)), 4.0)]
        )
    ]
    return events_table(sorted(rows, key=lambda row: row["minute"]))


@pytest.mark.parametrize("by", ["time", "last", "users"])
def test_what_was_rated_before_is_not_asked_for_as_new(rated_again, by, tmp_path):
    dataset = FakeDataset(rated_again, items_table(dict.fromkeys(range(40), True)))
    asked = Split.open(split_dataset(dataset, tmp_path / "split", by=by)).retrieval.to_pylist()
    assert asked and all(item % 3 == 0 for row in asked for item in row["relevant"])


def test_plain_methods_do_not_list_what_was_disliked_as_the_service_does_not(rated_again):
    """The truth is a loop over the log."""
    ids = np.arange(40)
    liked = positive_events(rated_again)["item_id"].to_numpy()
    plain = PlainMethods({"popularity": Popularity(ids, liked)}, None, ids, rated_again, False)
    moment = rated_again["event_time"][len(rated_again) // 2].as_py()
    asked = pa.table({"user_id": pa.array(range(20)), "time": pa.array([moment] * 20, TIME)})
    (_, found), *_ = plain.lists(asked, 40)
    popular = [item for item in np.argsort(-np.bincount(liked, minlength=40), kind="stable") if item in liked]
    for user, listed in enumerate(found.new.tolist()):
        known = {
            row["item_id"]
            for row in rated_again.to_pylist()
            if row["user_id"] == user and row["available_time"] < moment
        }
        assert [item for item in listed if item >= 0] == [item for item in popular if item not in known]
