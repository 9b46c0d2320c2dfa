"""How much the chance of a like counts in an answer: planted truths, brute force, and who reads the weights.

Run: pytest tests/test_taken_and_liked.py
"""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ranker_world import Requests, make_world
from test_retrieval_build import FIT, NANO, built  # noqa: F401  (built is a fixture)
from test_split import FakeDataset, events_table, items_table

from dataset.split import Split, split_dataset
from feature_repo.frame import Frame
from feature_repo.frames.join import training_frame
from ranker.order import RETRIEVED, Order
from ranker.order_weights import Asked, learn_order
from ranker.recipes import simtier
from ranker.score import Ranker
from ranker.train import Training, train_ctr
from retrieval.examples import matched
from retrieval.fusion import Weights
from retrieval.proposals import ordering_frame, proposed, validating
from retrieval.readings import Readings
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import ArtifactError

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, CANDIDATES = 300, 40


def world(seed, users=USERS, known=1.0, noise=0.0, likes=2):
    """Users take one of their candidates by a log-odds that retrieval knows, and like it by a chance of its own.

    ``known``: how much of the log-odds retrieval says; ``noise``: of what is said of the chance, in log-odds.
    """
    draw = np.random.default_rng(seed)
    shape = (users, CANDIDATES)
    taken, odds = draw.normal(0, 1.5, shape), draw.normal(-0.5, 1.5, shape)
    share = np.exp(taken) / (1 + np.exp(-odds))
    share /= share.sum(axis=1, keepdims=True)
    liked = np.zeros(shape, bool)
    for row, one in enumerate(share):
        liked[row, draw.choice(CANDIDATES, likes, replace=False, p=one)] = True
    said = odds * (noise < 9) + noise * draw.normal(size=shape)
    retrieved = known * taken + (1 - known) * draw.normal(0, 1.5, shape)
    offsets = np.arange(users + 1) * CANDIDATES
    return Asked(offsets, retrieved.ravel(), -np.logaddexp(0, -said.ravel()), liked.ravel(), True), share


def found(share, score, k=5):
    """What the first k by a score hold of what is taken and liked."""
    order = np.argsort(-score.reshape(share.shape), axis=1)[:, :k]
    return np.take_along_axis(share, order, axis=1).sum(axis=1).mean()


def scored(asked, order):
    odds = -np.log(np.expm1(-asked.said))  # of the chance, as a ranker says it
    return order(asked.retrieved.astype(np.float32), odds.astype(np.float32))


def test_where_both_chances_are_known_their_logarithms_count_alike():
    asked, _ = world(0, users=2_000, likes=1)
    order = learn_order(asked, 0)
    assert order.retrieved == pytest.approx(1, abs=0.08) and order.liked == pytest.approx(1, abs=0.12)
    unseen, share = world(1)
    both, taken, liked = (
        found(share, scored(unseen, one)) for one in (order, Order(), Order(retrieved=0.0, liked=1.0))
    )
    assert both > 1.08 * taken and both > 2 * liked


@pytest.mark.parametrize("seed", range(4))
def test_a_chance_that_is_noise_leaves_the_candidates_order_as_it_is(seed):
    asked, _ = world(seed, noise=10.0)
    assert learn_order(asked, seed) == Order()
    np.testing.assert_array_equal(
        np.argsort(-scored(asked, learn_order(asked, seed)), kind="stable"),
        np.argsort(-asked.retrieved.astype(np.float32), kind="stable"),
    )


def test_the_noisier_the_less_it_counts_and_an_order_that_is_noise_gives_way():
    weights = [learn_order(world(2, noise=noise)[0], 0).liked for noise in (0.0, 1.5, 4.0)]
    assert weights[0] > 1.2 * weights[1] > 1.2 * weights[2] >= 0
    asked, share = world(3, known=0.0)
    order = learn_order(asked, 0)
    assert order.liked > 4 * order.retrieved
    assert found(share, scored(asked, order)) > 1.2 * found(share, asked.retrieved)


def test_the_weights_are_the_likeliest_of_a_grid_counted_by_loops():
    asked, _ = world(4, users=12)
    own = np.arange(12) != 5
    order = asked.likeliest(own, True)

    def loss(retrieved, liked):
        total = 0.0
        for user in np.flatnonzero(own):
            rows = range(asked.offsets[user], asked.offsets[user + 1])
            score = {row: retrieved * asked.retrieved[row] + liked * asked.said[row] for row in rows}
            whole = sum(math.exp(one) for one in score.values())
            total -= sum(score[row] - math.log(whole) for row in rows if asked.liked[row])
        return total

    assert asked.losses(order)[own].sum() == pytest.approx(loss(order.retrieved, order.liked))
    best = loss(order.retrieved, order.liked)
    for step in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05), (0.05, 0.05), (-0.05, -0.05)):
        assert loss(order.retrieved + step[0], order.liked + step[1]) > best
    alone = asked.likeliest(own, False)
    assert alone.liked == 0
    assert min(loss(alone.retrieved + step, 0) for step in (-0.05, 0.05)) > loss(alone.retrieved, 0) > best


def test_where_nothing_says_better_retrievals_order_stays():
    whole, _ = world(5)
    nobody = replace(whole, liked=np.zeros(len(whole.liked), bool))
    one = Asked(np.array([0, 40]), whole.retrieved[:40], whole.said[:40], whole.liked[:40], True)
    empty = Asked(np.zeros(4, np.int64), *(np.empty(0) for _ in range(2)), np.empty(0, bool), True)
    for asked in (nobody, one, empty):
        assert learn_order(asked, 0) == Order()
    clearly = learn_order(whole, 0)
    silent = np.repeat(
        np.arange(USERS) % 2 == 0, CANDIDATES
    )  # half of the users like nothing that was proposed
    some = learn_order(replace(whole, liked=whole.liked & ~silent), 0)
    assert some.liked == pytest.approx(clearly.liked, abs=0.3) and some.liked > 0


def of_purchases(seed, users=USERS, noise=0.0):
    """Users take one of their candidates; retrieval knows one half of why, the ranker the other, and makes noise."""
    draw = np.random.default_rng(seed)
    known, said = draw.normal(0, 1.0, (2, users, CANDIDATES))
    share = np.exp(known + said)
    share /= share.sum(axis=1, keepdims=True)
    taken = np.zeros(share.shape, bool)
    for row, one in enumerate(share):
        taken[row, draw.choice(CANDIDATES, p=one)] = True
    said = said * (noise == 0) + noise * draw.normal(size=said.shape)
    return Asked(np.arange(users + 1) * CANDIDATES, known.ravel(), said.ravel(), taken.ravel(), False), share


def test_of_purchases_the_rankers_score_itself_counts_as_much_as_it_knows():
    asked, _ = of_purchases(0, users=2_000)
    order = learn_order(asked, 0)
    assert (order.retrieved, order.taken) == (
        pytest.approx(1, abs=0.1),
        pytest.approx(1, abs=0.1),
    ) and not order.liked
    unseen, share = of_purchases(1)
    best = found(share, order(unseen.retrieved, unseen.said))
    assert best > 1.2 * found(share, unseen.retrieved) and best > 1.2 * found(share, unseen.said)
    for seed in range(4):
        assert learn_order(of_purchases(seed, noise=3.0)[0], seed) == Order()


def test_what_fewer_than_twenty_users_took_says_nothing_of_an_order():
    asked, _ = of_purchases(2, users=20)
    assert learn_order(asked, 0).taken > 0
    first = np.repeat(np.arange(20) > 0, CANDIDATES)
    assert learn_order(replace(asked, liked=asked.liked & first), 0) == Order()


TRAIN, VALID = (make_world(requests=count, seed=seed) for count, seed in ((150, 0), (120, 1)))


def asked_frame():
    """The validation requests with a column of what retrieval says: noise."""
    frame = VALID.frame
    said = np.random.default_rng(0).normal(size=len(frame.candidates)).astype(np.float32)
    candidates = frame.candidates.append_column(RETRIEVED, pa.array(said))
    return Requests(Frame(frame.requests, candidates, frame.offsets, frame.history))


def trained(out, asked, **how):
    training = Training(recipe=simtier(), epochs=2, **how)
    return train_ctr(
        Requests(TRAIN.frame), Requests(VALID.frame), TRAIN.vectors, NANO, out, {}, training, asked=asked
    )


@pytest.mark.parametrize("calibrate", [None, "platt"])
def test_the_weights_are_in_the_artifact_and_of_what_the_ranker_says(calibrate, tmp_path):
    asked = asked_frame()
    made = trained(tmp_path / "r", asked, calibrate=calibrate)
    ranker = Ranker.open(made, TRAIN.vectors)
    assert vars(ranker.order) == pytest.approx(vars(learn_order(Asked.of(ranker, asked, 7, True), 0)))
    assert ranker.order.liked > 0 and ranker.with_vectors(TRAIN.vectors).order == ranker.order
    assert Ranker.open(trained(tmp_path / "s", None), TRAIN.vectors).order is None


@pytest.mark.parametrize(
    "content",
    [{}, {"retrieved": 1.0}, {"retrieved": 1.0, "liked": -0.5}, {"retrieved": 1.0, "liked": None}]
    + [{"retrieved": 1.0, "liked": 1.0, "more": 1.0}, {"retrieved": float("inf"), "liked": 1.0}, [1.0, 1.0]],
)
def test_weights_that_are_none_are_refused_with_the_command_that_makes_others(content, tmp_path):
    path = tmp_path / "order.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="order.json: expected weights .* 'moon ranker'"):
        Order.read(path)
    path.write_text(json.dumps({"retrieved": 0.25, "liked": 2.0}))
    assert Order.read(path) == Order(0.25, 2.0), "of an earlier release"
    path.write_text(json.dumps({"retrieved": 0.25, "liked": 0.0, "taken": 1.5}))
    assert Order.read(path) == Order(0.25, taken=1.5)


@pytest.fixture(scope="module")
def ratings():
    """40 users rate 20 of 60 items each, at any time."""
    draw = np.random.default_rng(0)
    rows = [
        {"user_id": user, "item_id": int(item), "type": "rating", "minute": int(draw.integers(0, 9000))}
        | {"value": float(draw.integers(1, 6))}
        for user in range(40)
        for item in draw.permutation(60)[:20]
    ]
    return FakeDataset(
        events_table(sorted(rows, key=lambda row: row["minute"])), items_table(dict.fromkeys(range(60), True))
    )


@pytest.mark.parametrize("by", ["time", "users"])
def test_validation_users_are_asked_as_test_users_are(ratings, by, tmp_path):
    """The truth is a loop over the ratings that validate."""
    split = Split.open(split_dataset(ratings, tmp_path / "split", by))
    rows = [row for row in split.ranking.to_pylist() if row["part"] == "valid"]
    asked = validating(split, 0)
    expected = {}
    for row in rows:
        if row["label"] > 0:
            expected.setdefault(row["user_id"], []).append(row["item_id"])
    assert asked["user_id"].to_pylist() == sorted(expected) and len(expected) > 1
    for row in asked.to_pylist():
        own = [one["time"] for one in rows if by == "time" or one["user_id"] == row["user_id"]]
        assert row["relevant"] == sorted(expected[row["user_id"]]) and row["time"] == min(own)


def test_few_of_many_users_are_drawn(ratings, tmp_path, monkeypatch):
    split = Split.open(split_dataset(ratings, tmp_path / "split", "time"))
    whole = {row["user_id"]: row["relevant"] for row in validating(split, 0).to_pylist()}
    monkeypatch.setattr("retrieval.proposals.ORDERED", 4)
    some = validating(split, 0)
    assert len(some) == 4 and some.equals(validating(split, 0)) and not some.equals(validating(split, 1))
    assert all(whole[row["user_id"]] == row["relevant"] for row in some.to_pylist())


@pytest.fixture
def rated(built):  # noqa: F811
    """The run, its split as one of ratings, and the rows that validate."""
    run, split = built
    part = np.where(np.arange(len(split.ranking)) % 2 == 0, "valid", "train")
    ranking = split.ranking.set_column(split.ranking.column_names.index("part"), "part", pa.array(part))
    return run, SimpleNamespace(**vars(split) | {"ranking": ranking, "rated": True})


def test_every_candidate_carries_the_score_of_the_order_that_the_service_asks_of_it(rated):
    run, split = rated
    retriever = Retriever.open(open_retrieval(run, fitted=True))
    requests = validating(split, 3)
    frame = ordering_frame(run, split, NANO, 3, retriever)
    candidates = proposed(run, requests, NANO, retriever).candidates
    assert len(frame) == len(requests) > 3 and len(candidates.item_id) == len(frame.given)
    for row, (ids, scores) in enumerate(candidates):
        some = frame.given.slice(frame.offsets[row], len(ids))
        told = dict(zip(*(some[name].to_pylist() for name in ("item_id", RETRIEVED)), strict=True))
        assert told == dict(zip(ids.tolist(), scores.tolist(), strict=True))
        wanted = set(requests["relevant"][row].as_py())
        assert [one in wanted for one in some["item_id"].to_pylist()] == (
            some["label"].to_numpy() > 0
        ).tolist()
    assert pc.sum(frame.given["label"]).as_py() > 0
    split.rated = False
    assert ordering_frame(run, split, NANO, 3, retriever) is None
    split.rated, split.ranking = True, split.ranking.slice(0, 0)
    assert ordering_frame(run, split, NANO, 3, retriever) is None


def test_every_control_is_asked_with_the_columns_that_it_reads(rated, monkeypatch):
    run, split = rated
    retriever = Retriever.open(open_retrieval(run, fitted=True))
    logged = [matched(training_frame(run / "store", split.ranking, 20), retriever, 20) for _ in range(2)]
    monkeypatch.setattr("retrieval.readings.ranker_frames", lambda *_: (*logged, "pointwise"))
    readings = Readings.open(run, split, NANO, 3, retriever, steps=False, stream=False)
    for read in (readings.whole, readings.plain, readings.blind):
        assert read.asked.names == read.train.names == read.valid.names
        frame = read.asked.take(0, len(read.asked))
        assert {RETRIEVED, "label", *read.train.names} <= set(frame.candidates.column_names)
    assert readings.loss == "pointwise" and set(readings.blind.asked.names) < set(readings.whole.asked.names)


def test_a_log_without_ratings_and_a_ranker_that_learned_no_weights():
    fused, odds = np.array([3, 2, 1], np.float32), np.array([-1, 0, 4], np.float32)
    np.testing.assert_array_equal(Weights().order(fused, odds, None), odds)
    np.testing.assert_array_equal(Weights().order(fused, odds, Order(0.5, taken=2.0)), 0.5 * fused + 2 * odds)
    np.testing.assert_array_equal(Weights(rated=True).order(fused, odds, None), fused)
    made = Weights(rated=True).order(fused, odds, Order(0.5, 2.0))
    np.testing.assert_allclose(made, 0.5 * fused + 2 * np.log(1 / (1 + np.exp(-odds))), rtol=1e-6)
    extreme = Weights(rated=True).order(fused, np.array([-200, 0, 200], np.float32), Order(1.0, 1.0))
    assert np.isfinite(extreme).all()
