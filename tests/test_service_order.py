"""Every rule that orders an answer, against a slow twin or a planted truth.

Run: pytest tests/test_service_order.py
"""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from inspect import signature

import numpy as np
import pyarrow as pa
import pytest
from fake_shop import BEHAVIOURS, EVEN, ITEM_IDS, NOW, ODD, WIDTH, namespace, picture, recommender, vectors_of

from feature_repo.frame import History
from moonstore.freshness import EPOCH, US
from retrieval.jagged import stack
from retrieval.requests import Request, Requests, history_of
from retrieval.sources import Matches, PopularSource, SimilarSource, VectorSource, match_scores, propose
from serving import opening, recommend
from serving.recommend import UnknownCategory, UnknownItem

VECTORS = dict(zip(ITEM_IDS.tolist(), vectors_of(len(ITEM_IDS)), strict=True))
BOUGHT = {0: EVEN[:3], 1: ODD[:3]}  # by a user's parity


@pytest.fixture
def moon():
    return recommender()


def ids_of(answer):
    return [hit.card.item_id for hit in answer.hits]


def scores_of(answer):
    return [hit.score for hit in answer.hits]


def retrieved(moon, user, session=(), category=None):
    """Candidates best first, from the sources themselves."""
    history = np.concatenate([BOUGHT[user % 2], np.asarray(session, np.int64)])
    request = Request(user, history_of(history), NOW, category=category, exclude=history)
    return propose(moon.retriever.recommending, Requests.of([request]), moon.per_source)[0]


def fused(*orders):
    """Item -> sum over orders of 1 / (60 + rank), rank from 1."""
    worth = Counter()
    for order in orders:
        for rank, item in enumerate(order, start=1):
            worth[item] += 1 / (60 + rank)
    return worth


def best(worth, k):
    """The k of largest worth as float32, then smallest id: what an answer should be."""
    return sorted(worth, key=lambda item: (-np.float32(worth[item]), item))[:k]


def test_the_rankers_order_decides(moon):
    candidates, _ = retrieved(moon, 4)
    answer = moon.recommend(4, 7)
    assert answer.order == "ranker"
    assert ids_of(answer) == sorted(candidates.tolist(), reverse=True)[:7]
    assert scores_of(answer) == [np.float32(item / 1e15) for item in ids_of(answer)]


def test_without_the_ranker_retrieval_decides(moon):
    candidates, scores = retrieved(moon, 4)
    moon.ranker.fails = "raises"
    answer = moon.recommend(4, 8)
    assert answer.order == "retrieval"
    assert ids_of(answer) == candidates[:8].tolist() and scores_of(answer) == scores[:8].tolist()


def test_at_least_k_are_asked_of_every_source(moon):
    moon.per_source = 2
    assert len(moon.recommend(4, 20).hits) == 20
    assert len(moon.recommend(999, 20).hits) == 20


def test_every_source_proposes_its_share_and_no_more(moon):
    moon.per_source = 3
    proposed = [
        source.retrieve(Request(4, history_of(BOUGHT[0]), NOW, exclude=BOUGHT[0]), 3)[0].tolist()
        for source in moon.retriever.recommending
    ]
    assert set(ids_of(moon.recommend(4, 3))) <= set(sum(proposed, []))
    assert set(moon.ranker.frame.candidates["item_id"].to_pylist()) == set(sum(proposed, []))


class Alike:
    """A ranker that prefers what is like the last item of the history it reads."""

    history, order = BEHAVIOURS, None

    def score(self, frame, query_vectors=None):
        self.frame = frame
        last = VECTORS[int(frame.history.item_id[-1])]
        return np.array([VECTORS[item] @ last for item in frame.candidates["item_id"].to_pylist()])


@pytest.mark.parametrize("parity", [0, 1])
def test_the_session_reaches_the_ranker(moon, parity):
    """A visitor of even taste looks at an item: its likes come first, whichever taste it is of."""
    moon.ranker = Alike()
    seen = int((EVEN if parity == 0 else ODD)[9])
    answer = moon.recommend(4, 8, session=[seen])
    expected = sorted(
        retrieved(moon, 4, [seen])[0].tolist(), key=lambda item: -(VECTORS[item] @ VECTORS[seen])
    )
    assert ids_of(answer) == expected[:8]
    assert all(item in (EVEN if parity == 0 else ODD) for item in ids_of(answer))


def test_the_ranker_reads_what_the_store_knows_and_then_the_session_as_clicks(moon):
    session = [int(ODD[7]), int(EVEN[8])]
    moon.recommend(4, 5, session=session)
    history = moon.ranker.frame.history
    assert history.item_id.tolist() == [*EVEN[:3].tolist(), *session]
    assert history.code.tolist() == [3, 3, 3, 1, 1] and history.offsets.tolist() == [0, 5]
    moon.recommend(4, 5)
    assert moon.ranker.frame.history.item_id.tolist() == EVEN[:3].tolist()


def test_session_items_are_of_the_moment_of_the_request(moon):
    stored = History(np.array([0, 2]), EVEN[:2], np.array([1, 1]), np.array([5, 70]))
    moon.reader.read_user = lambda user, time, context=None, read=moon.reader.read_user: with_history(
        read(user, time), stored
    )
    for asked, moment in ((None, NOW), (NOW + timedelta(hours=3), NOW + timedelta(hours=3))):
        moon.recommend(4, 5, session=[int(ODD[7]), int(ODD[8])], time=asked)
        assert moon.ranker.frame.history.time_us.tolist() == [5, 70, *[(moment - EPOCH) // US] * 2]


def with_history(frame, history):
    return type(frame)(frame.requests, frame.candidates, frame.offsets, history)


def test_a_long_history_and_a_session_are_cut_to_what_the_ranker_can_read(moon):
    session = [int(item) for item in ODD[4 : 4 + BEHAVIOURS - 1]]
    answer = moon.recommend(4, 5, session=session)
    assert answer.fallbacks == () and answer.order == "ranker"
    history = moon.ranker.frame.history
    assert history.item_id.tolist() == [int(EVEN[2]), *session] and history.offsets.tolist() == [
        0,
        BEHAVIOURS,
    ]
    assert history.code.tolist() == [3, *[1] * (BEHAVIOURS - 1)] and len(history.time_us) == BEHAVIOURS
    assert not set(ids_of(moon.recommend(4, 40, session=session))) & {*EVEN[:3].tolist(), *session}


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_nothing_of_the_history_is_answered_whatever_was_done_with_it(moon, code):
    """What was only clicked neither: the ranker learned from, and is measured on, what is new to a user."""
    stored = replace(history_of(EVEN[:3]), code=np.full(3, code))
    moon.reader.read_user = lambda user, time, context=None, read=moon.reader.read_user: with_history(
        read(user, time), stored
    )
    found = set(ids_of(moon.recommend(4, 40)))
    assert found and not set(EVEN[:3].tolist()) & found


def test_the_ranker_reads_the_match_of_every_source_with_every_candidate(moon):
    session = [int(ODD[7])]
    moon.recommend(4, 5, session=session)
    frame = moon.ranker.frame
    ids = frame.candidates["item_id"].to_numpy()
    request = Request(4, history_of([*EVEN[:3], *session]), NOW)
    names, alone = match_scores(moon.retriever.sources, Requests.of([request]), ids, np.array([0, len(ids)]))
    for column, name in enumerate(names):
        np.testing.assert_allclose(frame.candidates[name].to_numpy(), alone[:, column], atol=1e-6)
    seen = np.stack([VECTORS[item] for item in [*session, *EVEN[:3][::-1].tolist()]])
    cosines = np.stack([VECTORS[item] for item in ids.tolist()]) @ seen.T
    similar = (cosines * 0.9 ** np.arange(4)).max(axis=1)
    np.testing.assert_allclose(frame.candidates["match_similar"].to_numpy(), similar, atol=1e-6)


@pytest.mark.parametrize("ask", ["recommend", "search"])
def test_hits_carry_the_matches_the_ranker_read(moon, ask):
    answer = moon.recommend(4, 6) if ask == "recommend" else moon.search("even", None, 6, user_id=4)
    shown = moon.ranker.frame.candidates
    row = {item: place for place, item in enumerate(shown["item_id"].to_pylist())}
    for hit in answer.hits:
        assert hit.matches == {
            name: shown[name][row[hit.card.item_id]].as_py()
            for name in shown.column_names
            if name != "item_id" and name not in moon.retriever.similarities.names
        }


@pytest.mark.parametrize(
    ("ask", "searches"),
    [
        (lambda moon: moon.recommend(4, 5), 1),
        (lambda moon: moon.recommend(999, 5), 1),
        (lambda moon: moon.recommend(4, 5, session=[int(ODD[7])]), 1),
        (lambda moon: moon.search("even", None, 5, user_id=4), 1),
        (lambda moon: moon.search("even", None, 5), 1),
        (lambda moon: moon.similar(int(ODD[0]), 5), 0),
    ],
)
def test_a_request_scores_its_candidates_once(moon, monkeypatch, ask, searches):
    asked = Counter()
    for kind in (SimilarSource, VectorSource, PopularSource):

        def counting(source, *arguments, real=kind.score):
            asked[source.name] += 1
            return real(source, *arguments)

        monkeypatch.setattr(kind, "score", counting)
    assert ask(moon).hits
    assert asked == Counter({source.name: searches for source in moon.retriever.sources if searches})


class Backwards:
    """A relevance head that calls small ids relevant; remembers what it was asked."""

    features = ()

    def score(self, query_vector, item_vectors, items):
        self.query, self.items = query_vector, item_vectors
        ids = [next(i for i, v in VECTORS.items() if np.array_equal(v, row)) for row in item_vectors]
        return -np.array(ids) / 1e15


def test_the_relevance_head_decides_the_order_of_a_search(moon):
    moon.relevance = head = Backwards()
    answer = moon.search("even", None, 7)
    assert answer.order == "relevance" and ids_of(answer) == ITEM_IDS[:7].tolist()
    chances = [1 / (1 + np.exp(item / 1e15)) for item in ids_of(answer)]
    assert scores_of(answer) == pytest.approx(chances, abs=1e-6)
    np.testing.assert_array_equal(head.query, [1, 0, 0, 0])
    assert head.items.shape == (len(ITEM_IDS), WIDTH)
    hit = answer.hits[3]
    assert hit.matches["match_query"] == pytest.approx(VECTORS[hit.card.item_id][0], abs=1e-6)


def test_relevance_and_the_ranker_decide_together_for_a_known_searcher(moon):
    moon.relevance = Backwards()
    worth = fused(ITEM_IDS.tolist(), sorted(ITEM_IDS.tolist(), reverse=True))
    answer = moon.search("even", None, 9, user_id=4)
    assert answer.order == "relevance+ranker" and ids_of(answer) == best(worth, 9)
    np.testing.assert_array_equal(moon.ranker.query_vectors, [[1, 0, 0, 0]])
    assert moon.ranker.frame.history.item_id.tolist() == EVEN[:3].tolist()


def test_a_known_searchers_features_reach_the_sources(moon, monkeypatch):
    asked, real = [], Matches.of
    monkeypatch.setattr(
        "serving.recommend.Matches.of",
        lambda sources, request, ids: asked.append(request) or real(sources, request, ids),
    )
    moon.search("even", None, 3, user_id=4)
    moon.search("even", None, 3, user_id=10**9)
    moon.search("even", None, 3)
    known, stranger, nobody = asked
    assert known.user["user_id"].to_pylist() == [4] and known.history.item_id.tolist() == EVEN[:3].tolist()
    assert [one.user_id for one in asked] == [4, 10**9, -1]
    assert stranger.user is nobody.user is None and not len(stranger.history.item_id)


def test_without_a_head_the_cosine_decides_the_order_of_a_search(moon):
    answer = moon.search(None, picture(), 12)
    cosine = {item: float(vector[1]) for item, vector in VECTORS.items()}
    assert ids_of(answer) == sorted(cosine, key=lambda item: -cosine[item])[:12]
    assert scores_of(answer) == pytest.approx([cosine[item] for item in ids_of(answer)], abs=1e-6)
    worth = fused(sorted(cosine, key=lambda item: -cosine[item]), sorted(cosine, reverse=True))
    assert ids_of(moon.search(None, picture(), 12, user_id=1)) == best(worth, 12)


def test_a_search_orders_as_many_candidates_as_the_head_may_judge(moon, monkeypatch):
    monkeypatch.setattr("serving.recommend.SEARCH_DEPTH", 10)
    moon.relevance = head = Backwards()
    nearest = sorted(VECTORS, key=lambda item: -VECTORS[item][0])[:10]
    assert ids_of(moon.search("even", None, 4)) == sorted(nearest)[:4] and len(head.items) == 10
    assert len(moon.search("even", None, 15).hits) == 15


def test_similar_items_are_ordered_by_cosine(moon):
    item = int(ODD[4])
    cosine = {other: float(vector @ VECTORS[item]) for other, vector in VECTORS.items() if other != item}
    answer = moon.similar(item, 30)
    assert answer.order == "similarity"
    assert ids_of(answer) == sorted(cosine, key=lambda other: (-np.float32(cosine[other]), other))[:30]
    assert scores_of(answer) == pytest.approx([cosine[other] for other in ids_of(answer)], abs=1e-6)
    assert [hit.matches for hit in answer.hits] == [{}] * 30
    with pytest.raises(UnknownItem, match="no item 5"):
        moon.similar(5, 3)


def test_popular_items_come_first_for_a_stranger_where_nobody_ranks(moon):
    moon.ranker = None
    answer = moon.recommend(999, 6)
    assert ids_of(answer) == ITEM_IDS[:6].tolist()
    matches = [hit.matches["match_popular"] for hit in answer.hits]
    assert matches == pytest.approx(np.log1p(np.arange(30, 24, -1)).tolist())


def test_an_unknown_category_is_refused_with_those_that_exist(moon):
    with pytest.raises(UnknownCategory, match="no item has category 'Pets'; 3 have, e.g. .*Men"):
        moon.recommend(4, 3, category="Pets")


def test_a_category_narrows_every_source(moon):
    candidates, _ = retrieved(moon, 4, category="Women > Shoes")
    assert sorted(candidates.tolist()) == ITEM_IDS[10:20].tolist()
    assert ids_of(moon.recommend(4, 40, category="Women > Shoes")) == ITEM_IDS[10:20].tolist()[::-1]


def test_history_is_shown_newest_first(moon):
    assert [card.item_id for card in moon.history(1)] == ODD[:3].tolist()[::-1]
    assert moon.history(999) == []


def test_answers_and_what_they_lacked_are_counted(moon):
    moon.recommend(999, 3)
    moon.recommend(50, 3)
    moon.recommend(4, 3)
    assert dict(moon.counts) == {"answers": 3, "unknown_user": 1, "empty_history": 1, "empty": 0}


def test_what_makes_answers_poorer_is_said_and_is_not_what_prevents_them(moon):
    assert moon.degraded() == []
    moon.example_users = (777,)
    assert moon.degraded() == ["the online store has no user 777: run 'moon materialize'"]
    moon.reader.available = False
    (problem,) = moon.degraded()
    assert problem.startswith("the online store does not answer")
    assert moon.unready() == []
    moon.example_users = ()
    assert moon.degraded() == []
    moon.retriever = replace(moon.retriever, index=())
    assert moon.unready() == ["the index holds no item"]


def test_the_time_of_a_request_is_the_services_unless_it_is_given(moon):
    times = []
    moon.reader.read_user = lambda user, time, context=None, read=moon.reader.read_user: (
        times.append(time) or read(user, time)
    )
    moon.recommend(4, 3)
    moon.search("even", None, 3, user_id=4)
    later = NOW.replace(year=2027)
    moon.recommend(4, 3, time=later)
    moon.search("even", None, 3, user_id=4, time=later)
    assert times == [NOW, NOW, later, later]


class Fond:
    """A source that always finds something: towers answer for everyone whose features they can read."""

    name = "fond"

    def retrieve_batch(self, requests, k):
        return stack([(ITEM_IDS[-1:], np.ones(1, np.float32)) for _ in range(len(requests))])

    def score(self, requests, item_id, offsets):
        return np.zeros(len(item_id), np.float32)


def test_only_popular_items_are_proposed_to_those_who_have_not_acted_yet(moon):
    moon.retriever = replace(moon.retriever, personal=(*moon.retriever.personal, Fond()))
    assert ITEM_IDS[-1] in ids_of(moon.recommend(4, 5))
    for user in (50, 999):  # known without a history, and unknown
        answer = moon.recommend(user, 5)
        assert answer.order == "ranker" and ITEM_IDS[-1] not in ids_of(answer)


def test_500_candidates_are_asked_of_every_source_and_100_of_a_search(moon):
    asked = []

    def counted(source):
        real = source.retrieve_batch
        source.retrieve_batch = lambda requests, k: asked.append(k) or real(requests, k)

    for source in moon.retriever.recommending:
        counted(source)
    moon.per_source = signature(recommend.Recommender).parameters["per_source"].default
    moon.recommend(4, 3)
    assert asked == [500] * len(moon.retriever.recommending)
    asked.clear()
    find = moon.finder.find
    moon.finder = namespace(find=lambda query, depth, judge: asked.append(depth) or find(query, depth, judge))
    moon.search("even", None, 3)
    moon.search("even", None, 101)
    assert asked == [100, 101]


def test_the_page_offers_the_first_fifty_users_with_test_requests_once_each():
    users = [7, 7, *range(100, 160), 7]
    split = namespace(retrieval=pa.table({"user_id": [5, *users], "part": ["train", *["test"] * len(users)]}))
    assert opening._example_users(split) == [7, *range(100, 149)]
