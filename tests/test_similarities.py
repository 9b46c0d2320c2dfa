"""What the ranker reads of a history and a candidate: summaries of similarity, against slow twins.

Run: pytest tests/test_similarities.py
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from fake_shop import ODD, recommender
from sklearn.feature_extraction.text import TfidfVectorizer

from dataset.contracts import EVENTS, ITEMS, completed
from feature_repo.frame import History
from retrieval import words_source
from retrieval.cooccurrence import Cooccurrence, build_cooccurrence
from retrieval.index import ItemIndex
from retrieval.places import Places
from retrieval.requests import Request, Requests, history_of
from retrieval.similarities import BEHAVIOURS, FADE_US, KINDS, Categories, Similarities
from retrieval.words import Vocabulary, Words
from retrieval.words_source import WordsSource

NOW = datetime(2025, 6, 1, tzinfo=UTC)
NOW_US = 1_748_736_000_000_000
TITLES = ["red mug", "red red vase", "Blue mug!", None, "чашка Blue", "café vase"]
PATHS = ["home", "home", "kitchen", "", "kitchen", "home"]
IDS = np.arange(6, dtype=np.int64) * 10 + 5


def items(ids=IDS, titles=TITLES):
    return completed(pa.table({"item_id": pa.array(ids), "title": pa.array(titles, pa.string())}), ITEMS)


def spaces(folder):
    rng = np.random.default_rng(0)
    count = 80
    columns = {
        "event_id": pa.array(np.arange(count)),
        "user_id": pa.array(rng.integers(0, 12, count)),
        "item_id": pa.array(rng.choice(IDS[:5], count)),
        "type": pa.array(["click"] * count),
        "event_time": pa.array([NOW] * count, EVENTS.field("event_time").type),
        "available_time": pa.array([NOW] * count, EVENTS.field("available_time").type),
    }
    graph = Cooccurrence.open(build_cooccurrence(completed(pa.table(columns), EVENTS), folder / "c", {}))
    index = ItemIndex.build(IDS, np.eye(6, dtype=np.float32), PATHS)
    return {"category": Categories.of(index), "co_occurrence": graph, "words": Words.of(items())}


def asked(item_id, code, age_us):
    time_us = NOW_US - np.asarray(age_us, np.int64)
    history = History(
        np.array([0, len(item_id)]), np.asarray(item_id, np.int64), np.asarray(code, np.int64), time_us
    )
    return Request(1, history, NOW)


def slow(space, item, request):
    """The KINDS of one candidate, from similarities of single pairs."""
    history = request.history
    past = list(zip(history.item_id, history.code, history.time_us, strict=True))[-BEHAVIOURS:]
    one = np.array([item])
    alike = [float(space.between(one, np.array([seen]))[0, 0]) for seen, _, _ in past]
    good = [a for a, (_, code, _) in zip(alike, past, strict=True) if code != 5]
    faded = sum(
        a * np.exp(-(NOW_US - when) / FADE_US)
        for a, (_, code, when) in zip(alike, past, strict=True)
        if code != 5
    )
    signed = sum(a if code != 5 else -a for a, (_, code, _) in zip(alike, past, strict=True))
    top = sorted(good)[-3:]
    if not good:
        return [0, 0, 0, 0, signed / max(len(past), 1)]
    return [np.mean(good), max(good), np.mean(top), faded, signed / len(past)]


def test_a_batch_has_the_summaries_of_single_pairs(tmp_path):
    rng = np.random.default_rng(1)
    strange = np.append(IDS, 999)  # an item that no space knows
    requests = [
        asked(rng.choice(strange, n), rng.choice([1, 2, 5], n), np.sort(rng.integers(0, 10**11, n))[::-1])
        for n in (7, 0, 1, BEHAVIOURS + 9)
    ] + [asked(IDS[:2], [5, 5], [9, 8])]
    known, offsets = spaces(tmp_path), np.array([0, 7, 9, 9, 16, 18])
    candidates = rng.choice(strange, 18)
    similarities = Similarities(known)
    found = similarities.of(Requests.of(requests), candidates, offsets)
    assert similarities.names[-1] == "match_behaviours" and len(similarities.names) == 3 * len(KINDS) + 1
    for r, request in enumerate(requests):
        for c in range(offsets[r], offsets[r + 1]):
            expected = [one for space in known.values() for one in slow(space, candidates[c], request)]
            np.testing.assert_allclose(found[c, :-1], expected, rtol=1e-4, atol=1e-6)
            assert found[c, -1] == pytest.approx(np.log1p(min(len(request.history.item_id), BEHAVIOURS)))
    assert np.abs(found).max(axis=0).all(), "every column says something"


def test_co_occurrence_of_a_pair_is_its_score_in_a_history_of_one(tmp_path):
    graph = spaces(tmp_path)["co_occurrence"]
    pairs = graph.between(IDS, IDS)
    for column, seen in enumerate(IDS):
        history = asked([seen], [1], [0]).history
        np.testing.assert_allclose(pairs[:, column], graph.score(history, IDS, np.array([0, 6])), rtol=1e-6)
    assert pairs.any() and not pairs[5].any()


def test_words_are_those_of_scikit_learn_in_every_script():
    rows = Words.of(items()).take(IDS).toarray()
    theirs = TfidfVectorizer(token_pattern=r"[^\W_]+").fit_transform([one or "" for one in TITLES]).toarray()
    np.testing.assert_allclose(rows @ rows.T, theirs @ theirs.T, atol=1e-6)
    blue = Words.of(items()).between(IDS, IDS[[4]])[:, 0]
    assert (blue > 0).tolist() == [False, False, True, False, True, False], "чашка and Blue"
    assert Vocabulary.of(["café"]).column_of == {"café": 0}


def test_words_have_the_same_columns_in_every_process():
    """In the order in which they are met, not in that of a set, which differs from process to process."""
    met = [f"w{number}" for number in range(50)]
    found = Vocabulary.of([" ".join(met[:20]), " ".join(met[10:])])
    assert list(found.column_of.items()) == [(word, column) for column, word in enumerate(met)]


def test_words_that_are_saved_and_items_that_come_later_are_found(tmp_path):
    words = Words.of(items())
    opened = Words.open(words.save(tmp_path / "words", {}))
    np.testing.assert_array_equal(opened.between(IDS, IDS), words.between(IDS, IDS))
    later = opened.with_items(items([7, 25], ["red mug", "red mug unheard"]))
    assert later.item_ids.tolist() == [5, 7, 15, 25, 35, 45, 55]
    np.testing.assert_allclose(later.between(np.array([5, 7, 25]), np.array([5]))[:, 0], 1, rtol=1e-6)
    assert opened.between(np.array([7]), IDS).max() == 0, "unknown there"
    nothing = Words.of(items([], []))
    assert nothing.between(IDS, IDS).tolist() == np.zeros((6, 6)).tolist()


def test_the_source_of_words_finds_items_that_nobody_acted_on_by_the_cosine_with_the_fading_mean(monkeypatch):
    """The slow twin: dense rows of every item."""
    monkeypatch.setattr(words_source, "BLOCK_REQUESTS", 2)
    words, index = Words.of(items()), ItemIndex.build(IDS, np.zeros((6, 2), np.float32), PATHS)
    source, rows = WordsSource(words, index), words.rows.toarray()
    histories = [[5, 35], [45], [], [35], [25, 999, 15, 25], [35, 5]]
    asked_of = [Request(1, history_of(history), NOW) for history in histories]
    offsets = np.arange(len(histories) + 1) * len(IDS)
    scores = source.score(Requests.of(asked_of), np.tile(IDS, len(histories)), offsets).reshape(-1, len(IDS))
    batch = source.retrieve_batch(Requests.of(asked_of), 6)
    for history, request, found, scored in zip(histories, asked_of, batch, scores, strict=True):
        mean = np.zeros(rows.shape[1])
        newest_first = list(dict.fromkeys(reversed(history)))
        for rank, item in enumerate(newest_first):
            mean += 0.9**rank * rows[IDS == item].sum(axis=0)
        cosine = rows @ mean / max(np.linalg.norm(mean), 1e-9)
        np.testing.assert_allclose(scored, cosine, atol=1e-6)
        alike = np.flatnonzero(cosine > 0)
        expected = IDS[alike[np.lexsort((IDS[alike], -np.float32(cosine[alike])))]].tolist()
        assert found[0].tolist() == source.retrieve(request, 6)[0].tolist()
        assert sorted(found[0].tolist()) == sorted(expected)
        np.testing.assert_allclose(found[1], np.sort(cosine[alike])[::-1], atol=1e-6)
    assert 0 < len(batch[0][0]) < 6 and len(batch[2][0]) == len(batch[3][0]) == 0, "no history; no words"


def test_categories_know_items_that_may_not_be_answered():
    index = ItemIndex.build(IDS, np.eye(6, dtype=np.float32), PATHS)
    alike = Categories.of(index).between(np.array([5, 25, 999]), IDS)
    assert alike.tolist() == [[1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0], [0] * 6]


def test_places_are_compared_by_direction_and_the_bias_is_a_column_of_its_own():
    placed = np.array([[3, 4, 9], [0, 2, -1], [-6, -8, 5], [0, 0, 2]], np.float32)
    places = Places(ItemIndex.build(IDS[:4][::-1], placed[::-1], [""] * 4))
    alike = places.between(np.array([5, 15, 35, 999]), IDS[:4])
    expected = [[1, 0.8, -1, 0], [0.8, 1, -0.8, 0], [0] * 4, [0] * 4]
    np.testing.assert_allclose(alike, expected, atol=1e-6)
    spaced = Similarities({"two_tower": places}, (places,))
    request = asked([15, 5], [1, 1], [20, 10])
    found = spaced.of(Requests.of([request]), np.array([25, 999, 5]), np.array([0, 3]))
    assert found[:, spaced.names.index("match_two_tower_bias")].tolist() == [5, 0, 9]
    largest = found[:, spaced.names.index("match_two_tower_largest")]
    np.testing.assert_allclose(largest, [-0.8, 0, 1], atol=1e-6)


def test_a_request_is_asked_at_its_own_time():
    times = [NOW, NOW + timedelta(microseconds=7)]
    requests = Requests.of([Request(1, asked([], [], []).history, time) for time in times])
    assert requests.time_us.tolist() == [NOW_US, NOW_US + 7]
    assert requests.select(np.array([1])).time_us.tolist() == [NOW_US + 7]


@pytest.mark.parametrize("session", [(), tuple(ODD[5:8].tolist())])
def test_the_service_ranks_by_the_columns_that_training_reads(session):
    moon = recommender()
    spaces = {"category": Categories.of(moon.retriever.index)}
    moon.retriever = replace(moon.retriever, similarities=Similarities(spaces))
    moon.recommend(4, 5, session=session)
    frame = moon.ranker.frame
    item_id = frame.candidates["item_id"].to_numpy()
    trained = moon.retriever.similarities.of(Requests.from_frame(frame), item_id, frame.offsets)
    for number, name in enumerate(moon.retriever.similarities.names):
        np.testing.assert_array_equal(frame.candidates[name].to_numpy(), trained[:, number])
    assert trained[:, 0].any()
