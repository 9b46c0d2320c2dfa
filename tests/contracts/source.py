"""What every candidate source keeps. A new one inherits it by a line:

class TestSimilar(SourceContract): source = SimilarSource

``source`` is the class or ``staticmethod(factory)``; it is called with the attributes of ``Shop`` that its parameters
name. The planted truth: users of one side act on, search for and have vectors of items of their own side,
which share a word.
"""

import inspect
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from test_cooccurrence import log_of

from dataset.contracts import EVENTS, TIME, completed
from dataset.contracts import ITEMS as ITEM_COLUMNS
from retrieval import sources as module
from retrieval.cooccurrence import Cooccurrence, build_cooccurrence
from retrieval.index import ItemIndex
from retrieval.properties import Properties
from retrieval.requests import Request, Requests, history_of
from retrieval.shown import Shown
from retrieval.taken import Taken
from retrieval.taste import Taste
from retrieval.words import Words

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WIDTH, ITEMS, ANSWERABLE, USERS = 6, 80, 70, 60
IDS = np.sort(np.random.default_rng(0).choice(10**12, ITEMS, replace=False))
SIDE = np.arange(ITEMS) % 2  # of each item
CATEGORIES = [None, "a", "a > b", "nowhere"]
NOBODY = np.array([-5, 10**15])  # ids of no item


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


class Towers:
    """A two-tower model that reads the user's side from the user's features."""

    def user_vectors(self, frame):
        assert len(frame.candidates) == 0 and len(frame.history) == len(frame)
        return np.eye(WIDTH, dtype=np.float32)[frame.requests["side"].to_numpy()]


@dataclass(frozen=True)
class Shop:
    """What a source may be made of."""

    index: ItemIndex  # ANSWERABLE of the items
    vectors: ItemIndex  # all of them
    cooccurrence: Cooccurrence
    item_ids: np.ndarray
    popularity: np.ndarray
    trend: np.ndarray  # float32, the same, the old ones less
    towers: Towers
    words: Words  # of all items
    taste: Taste  # of the users, for all items
    taken: Taken  # all items of their side, by every user
    half_life: float = 1e9  # so that what was taken as often is a tie


def opened(kind, artifact):
    return kind.open(artifact)


def acted():
    """(user, place of the item): eight items of the user's side each; the first ones oftener."""
    draw = np.random.default_rng(1)
    rows = []
    for user in range(USERS):
        own = np.flatnonzero(user % 2 == SIDE)
        share = 1 / (2 + np.arange(len(own)))
        chosen = draw.choice(own, 8, replace=False, p=share / share.sum())
        rows += [(user, place) for place in chosen.tolist()]
    return rows


def shown_rows():
    """Each user was shown what they acted on and as many items of the other side, which they passed over."""
    rows = []
    for user, place in acted():
        for item in (place, place ^ 1):
            rows.append((user, int(IDS[item]), item == place))
    return rows


def taste_of(items, order):
    """Tastes of the users for all items, from what they were shown, read in the order of a seed."""
    rows = shown_rows()
    read = np.arange(len(rows)) if order is None else np.random.default_rng(order).permutation(len(rows))
    events = []
    for number in read.tolist():
        user, item, liked = rows[number]
        row = {
            "user_id": user,
            "item_id": item,
            "request_id": number,
            "position": 0,
            "query_id": None,
            "value": None,
        }
        events.append(
            row | {"type": "impression", "available_time": NOW - timedelta(seconds=2 * len(rows) - number)}
        )
        if liked:
            events.append(
                row | {"type": "click", "available_time": NOW - timedelta(seconds=len(rows) - number)}
            )
    log = completed(pa.Table.from_pylist(events), EVENTS)
    shown = Shown.of(log, log)
    return Taste.fit(Properties.of(items, lambda image: None), shown, shown)


def taken_of(order):
    """Every user took every item of their side, read in the order of a seed."""
    rows = [(user, int(item)) for user in range(USERS) for item in IDS[user % 2 == SIDE]]
    read = np.arange(len(rows)) if order is None else np.random.default_rng(order).permutation(len(rows))
    events = [
        {
            "user_id": rows[number][0],
            "item_id": rows[number][1],
            "type": "click",
            "available_time": NOW - timedelta(seconds=len(rows) - number),
        }
        for number in read.tolist()
    ]
    return Taken.of(completed(pa.Table.from_pylist(events), EVENTS))


def make_shop(folder, order=None, save=False):
    """A shop whose items and events are handed over in the order of a seed; ``save``: with an index from disk."""
    draw = np.random.default_rng(2)
    matrix = 0.15 * draw.normal(size=(ITEMS, WIDTH))
    matrix[np.arange(ITEMS), SIDE] += 1
    matrix = unit(matrix)[np.arange(ITEMS) // 4 * 4 + SIDE]  # two and two share one vector
    paths = np.array(["a", "a > b", "c"])[draw.integers(0, 3, ITEMS)]
    rows = [(user, int(IDS[place]), "click", second) for second, (user, place) in enumerate(acted())]
    mixed = np.arange(ITEMS) if order is None else np.random.default_rng(order).permutation(ITEMS)
    if order is not None:
        rows = [rows[row] for row in np.random.default_rng(order).permutation(len(rows))]
    some = mixed[mixed < ANSWERABLE]
    index = ItemIndex.build(IDS[some], matrix[some], paths[some].tolist())
    vectors = ItemIndex.build(IDS[mixed], matrix[mixed])
    twins = np.arange(ITEMS) // 4 * 4 + SIDE  # two and two say the same
    titles = [f"{('hot', 'cold')[SIDE[place]]} kind{twins[place]}" for place in mixed]
    told = {"item_id": IDS[mixed], "title": titles, "spu": IDS[mixed], "category": [[]] * ITEMS}
    items = completed(pa.table(told), ITEM_COLUMNS)
    words, taste = Words.of(items), taste_of(items, order)
    if save:
        words = opened(Words, words.save(folder / "words", {}))
        index, vectors = (
            opened(ItemIndex, one.save(folder / name, {}))
            for name, one in (("index", index), ("all", vectors))
        )
    graph = opened(Cooccurrence, build_cooccurrence(log_of(rows), folder / "cooccurrence", {}))
    place = np.arange(len(graph.item_ids))
    place = place if order is None else np.random.default_rng(order).permutation(place)
    counts = graph.popularity[place], graph.trend[place]
    return Shop(
        index, vectors, graph, graph.item_ids[place], *counts, Towers(), words, taste, taken_of(order)
    )


def row_of(user):
    return pa.table(
        {"request_id": [user], "user_id": [user], "time": pa.array([NOW], TIME), "side": [user % 2]}
    )


def known(user, draw, **changes):
    """A request of somebody with a history, a query and features, all of one side; filters and exclusions."""
    own = IDS[user % 2 == SIDE]
    query = 0.1 * draw.normal(size=(1, WIDTH))
    query[0, user % 2] += 1
    values = {
        "user_id": user,
        "history": history_of(draw.choice(own, draw.integers(3, 30))),
        "time": NOW,
        "query_vector": unit(query)[0],
        "category": CATEGORIES[draw.integers(0, len(CATEGORIES))],
        "exclude": np.append(draw.choice(IDS, draw.integers(0, 20), replace=False), NOBODY),
        "user": row_of(user),
    }
    return Request(**{**values, **changes})


def known_requests(count=40, seed=3, **changes):
    draw = np.random.default_rng(seed)
    return [known(user, draw, **changes) for user in range(count)]


def allowed(shop, request):
    ids = shop.index.ids[shop.index.contains(shop.index.ids, request.category)]
    return np.setdiff1d(ids, request.exclude)


def score(source, requests, items):
    """Scores of the same ``items`` for every request, [R, I]."""
    offsets = np.arange(len(requests) + 1) * len(items)
    found = source.score(Requests.of(requests), np.tile(items, len(requests)), offsets)
    assert (found.dtype, found.shape) == (np.float32, (len(requests) * len(items),))
    return found.reshape(len(requests), len(items))


def same(one, other, atol=0.0):
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.item_id, other.item_id)
    np.testing.assert_allclose(one.score, other.score, rtol=0, atol=atol)


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


class SourceContract:
    source = None
    personal = True  # False: everybody is answered alike, what most users act on

    def make(self, shop):
        wanted = inspect.signature(self.source).parameters
        return self.source(**{name: getattr(shop, name) for name in wanted})

    @pytest.fixture
    def made(self, shop):
        return self.make(shop)

    def test_everyone_is_given_what_was_planted(self, made, shop):
        if self.personal:
            for request in known_requests(category=None, exclude=IDS[:10]):
                found, _ = made.retrieve(request, 15)
                assert len(found) == 15
                assert (SIDE[np.searchsorted(IDS, found)] == request.user_id % 2).all()
                pairs = score(made, [request], shop.index.ids)[0]
                own = SIDE[np.searchsorted(IDS, shop.index.ids)] == request.user_id % 2
                assert pairs[own].mean() > pairs[~own].mean()
        else:
            users = {int(IDS[place]): set() for place in range(ANSWERABLE)}
            for user, place in acted():
                users.get(int(IDS[place]), set()).add(user)
            best = sorted((-len(users[item]), item) for item in users if users[item])
            for request in known_requests(4, category=None, exclude=NOBODY):
                found, _ = made.retrieve(request, len(best) + 5)
                assert found.tolist() == [item for _, item in best]

    @pytest.mark.parametrize("k", [1, 8, 1000])
    def test_the_best_are_found_by_scoring_everything(self, made, shop, k):
        """The slow twin; what is left out scores less, and where fewer than k are found it scores nothing."""
        for request in known_requests(seed=4):
            items = allowed(shop, request)
            scores = score(made, [request], items)[0]
            found, found_scores = made.retrieve(request, k)
            assert found.dtype == np.int64 and found_scores.dtype == np.float32
            assert len(set(found.tolist())) == len(found) <= k and np.isin(found, items).all()
            place = np.searchsorted(items, found)
            np.testing.assert_allclose(found_scores, scores[place], rtol=0, atol=1e-6)
            left = np.delete(scores, place)
            if len(found) == k and len(left):
                assert left.max() <= found_scores.min() + 1e-6
            elif len(found) < k:
                assert not left.any()

    def test_the_best_come_first_and_of_equals_the_smaller_id(self, made):
        tied = 0
        for request in known_requests(seed=5):
            found, scores = made.retrieve(request, 60)
            assert list(zip(-scores, found, strict=True)) == sorted(zip(-scores, found, strict=True))
            tied += int((np.diff(scores) == 0).sum())
            few, few_scores = made.retrieve(request, 9)
            np.testing.assert_array_equal(few, found[:9])
            np.testing.assert_allclose(few_scores, scores[:9], rtol=0, atol=1e-6)
        assert tied

    @pytest.mark.parametrize("chunk", [4096, 5])
    def test_a_batch_is_its_requests_one_by_one(self, made, monkeypatch, chunk):
        monkeypatch.setattr(module, "CHUNK_REQUESTS", chunk)
        monkeypatch.setattr(module, "CHUNK_PAIRS", 64 if chunk == 5 else module.CHUNK_PAIRS)
        requests = known_requests()
        requests[3:5] = known_requests(2, history=history_of([]), query_vector=None)  # nothing beside much
        batch = made.retrieve_batch(Requests.of(requests), 7)
        scores = score(made, requests, IDS)
        assert len(batch) == len(requests)
        for row, request in enumerate(requests):
            ids, values = made.retrieve(request, 7)
            np.testing.assert_array_equal(ids, batch[row][0])
            np.testing.assert_allclose(values, batch[row][1], rtol=0, atol=1e-6)
            np.testing.assert_allclose(score(made, [request], IDS)[0], scores[row], rtol=0, atol=1e-6)

    def test_the_order_of_requests_and_candidates_changes_nothing(self, made):
        requests, order = known_requests(), np.random.default_rng(6).permutation(40)
        straight = made.retrieve_batch(Requests.of(requests), 7)
        mixed = made.retrieve_batch(Requests.of([requests[row] for row in order]), 7)
        for row, place in enumerate(order):
            np.testing.assert_array_equal(mixed[row][0], straight[place][0])
        items = np.random.default_rng(7).permutation(IDS)
        scores = score(made, requests, IDS)[order][:, np.searchsorted(IDS, items)]
        np.testing.assert_allclose(score(made, [requests[row] for row in order], items), scores, atol=1e-6)

    def test_the_order_in_which_the_shop_was_read_changes_nothing(self, made, tmp_path):
        other = self.make(make_shop(tmp_path, order=8))
        requests = known_requests()
        batch = Requests.of(requests)
        same(other.retrieve_batch(batch, 9), made.retrieve_batch(batch, 9), atol=1e-6)
        np.testing.assert_allclose(score(other, requests, IDS), score(made, requests, IDS), rtol=0, atol=1e-6)

    def test_candidates_of_different_numbers_score_as_alone(self, made):
        requests, draw = known_requests(6), np.random.default_rng(9)
        counts = [3, 0, 80, 1, 0, 12]
        items = [draw.choice(IDS, count, replace=False) for count in counts]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        together = made.score(Requests.of(requests), np.concatenate(items), offsets)
        alone = [score(made, [request], some)[0] for request, some in zip(requests, items, strict=True)]
        np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-6)

    def test_no_requests_and_no_candidates_have_no_answers(self, made):
        none = Requests.of([])
        empty = made.retrieve_batch(none, 5)
        assert len(empty) == len(empty.item_id) == len(empty.score) == 0
        assert made.score(none, np.empty(0, np.int64), np.zeros(1, np.int64)).shape == (0,)
        assert score(made, known_requests(2), np.empty(0, np.int64)).shape == (2, 0)

    @pytest.mark.parametrize("history", [[], NOBODY], ids=["no history", "unknown items"])
    def test_of_a_stranger_nothing_is_made_up(self, made, history):
        stranger = Request(USERS, history_of(history), NOW)
        found, _ = made.retrieve(stranger, 5)
        if self.personal:
            assert len(found) == 0 and not score(made, [stranger], IDS).any()
        else:
            np.testing.assert_array_equal(
                found, made.retrieve(known_requests(1, category=None, exclude=NOBODY)[0], 5)[0]
            )

    def test_unknown_items_and_categories_are_neither_scored_nor_answered(self, made):
        requests = known_requests(4)
        assert not score(made, requests, NOBODY).any()
        nowhere = replace(requests[0], category="nowhere")
        assert len(made.retrieve(nowhere, 5)[0]) == 0

    def test_fewer_than_k_where_fewer_may_be_answered(self, made, shop):
        (request,) = known_requests(1, category=None)
        first, _ = made.retrieve(replace(request, exclude=np.empty(0, np.int64)), 3)
        alone = replace(request, exclude=np.setdiff1d(IDS, first[1:2]))
        assert made.retrieve(alone, 5)[0].tolist() == first[1:2].tolist()
        assert len(made.retrieve(replace(request, exclude=IDS), 5)[0]) == 0
        closed = self.make(replace(shop, index=shop.index.only(np.empty(0, np.int64))))
        assert len(closed.retrieve_batch(Requests.of(known_requests()), 5).item_id) == 0

    def test_made_twice_asked_twice_it_answers_the_same(self, made, tmp_path):
        requests, again = Requests.of(known_requests()), self.make(make_shop(tmp_path))
        first = made.retrieve_batch(requests, 9)
        same(first, made.retrieve_batch(requests, 9))
        same(first, again.retrieve_batch(requests, 9))

    def test_made_of_what_was_saved_and_opened_it_answers_the_same(self, made, tmp_path):
        requests, other = Requests.of(known_requests()), self.make(make_shop(tmp_path, save=True))
        same(made.retrieve_batch(requests, 9), other.retrieve_batch(requests, 9))
        np.testing.assert_array_equal(score(made, known_requests(), IDS), score(other, known_requests(), IDS))

    def test_it_leaves_requests_and_shop_as_they_were(self, made, shop):
        requests = known_requests()
        batch = Requests.of(requests)
        arrays = [shop.index.matrix, shop.vectors.matrix, batch.history.item_id, batch.query_vectors, IDS]
        before = [array.copy() for array in arrays]
        made.retrieve_batch(batch, 9)
        score(made, requests, IDS)
        for array, was in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, was)
