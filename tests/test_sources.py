"""Every source: one request answers as in a batch, filters hold, and pairs score as they are retrieved."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from test_cooccurrence import log_of

from dataset.contracts import TIME
from feature_repo.frame import Frame
from retrieval import sources as module
from retrieval.cooccurrence import Cooccurrence, build_cooccurrence
from retrieval.index import ItemIndex
from retrieval.requests import Request, Requests, history_of
from retrieval.sources import (
    CooccurrenceSource,
    Matches,
    PopularSource,
    SimilarSource,
    add_matches,
    match_scores,
    profile_source,
    propose,
    query_source,
    two_tower_source,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WIDTH = 6
ITEMS = 80


class Towers:
    """A two-tower model whose user vector is read from the user's features."""

    def user_vectors(self, frame: Frame) -> np.ndarray:
        assert len(frame.candidates) == 0 and len(frame.history) == len(frame)
        angle = frame.requests["angle"].to_numpy()
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Sources over 80 items, of which 70 may be answered; some share one vector."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(10**12, ITEMS, replace=False))
    matrix = unit(rng.normal(size=(ITEMS, WIDTH)))[rng.integers(0, 60, ITEMS)]
    everything = ItemIndex.build(ids, matrix)
    paths = [["a", "a > b", "c"][place] for place in rng.integers(0, 3, 70)]
    index = ItemIndex.build(ids[:70], matrix[:70], paths)
    tower_index = ItemIndex.build(ids[:70], unit(rng.normal(size=(70, 2))), paths)
    rows = [(int(rng.integers(0, 50)), int(ids[rng.integers(0, ITEMS)]), "click", s) for s in range(600)]
    path = tmp_path_factory.mktemp("run") / "cooccurrence"
    graph = Cooccurrence.open(build_cooccurrence(log_of(rows), path, {}))
    sources = (
        SimilarSource(index, everything),
        profile_source(index, everything),
        CooccurrenceSource(graph, index),
        two_tower_source(Towers(), tower_index),
        PopularSource(graph.item_ids, graph.popularity, index),
        query_source(index),
    )
    return ids, matrix, index, sources


def requests_of(ids, count, seed=1, users=True):
    rng = np.random.default_rng(seed)
    out = []
    for user in range(count):
        query = unit(rng.normal(size=(1, WIDTH)))[0] if user % 3 == 0 else None
        row = pa.table(
            {
                "request_id": [user],
                "user_id": [user],
                "time": pa.array([NOW], TIME),
                "query_id": pa.nulls(1, pa.int64()),
                "angle": [user * 0.7],
            }
        )
        out.append(
            Request(
                user_id=user,
                history=history_of(rng.choice(ids, rng.integers(0, 30))),
                time=NOW,
                query_vector=query,
                category=[None, "a", "a > b", "nowhere"][rng.integers(0, 4)],
                exclude=rng.choice(ids, rng.integers(0, 20), replace=False),
                user=row if users else None,
            )
        )
    return out


@pytest.mark.parametrize("chunk", [4096, 5])
def test_one_request_answers_as_in_a_batch(shop, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_REQUESTS", chunk)
    monkeypatch.setattr(module, "CHUNK_PAIRS", 64 if chunk == 5 else 65_536)
    ids, _, _, sources = shop
    requests = requests_of(ids, 40)
    for source in sources:
        batch = source.retrieve_batch(Requests.of(requests), 7)
        assert len(batch) == 40
        for request, (batch_ids, batch_scores) in zip(requests, batch, strict=True):
            single_ids, single_scores = source.retrieve(request, 7)
            np.testing.assert_array_equal(single_ids, batch_ids, source.name)
            np.testing.assert_allclose(single_scores, batch_scores, atol=1e-6)
    together = propose(sources, Requests.of(requests), 7)
    names, matches = match_scores(sources, Requests.of(requests), together.item_id, together.offsets)
    assert names == tuple(f"match_{source.name}" for source in sources)
    for row, request in enumerate(requests):
        found, _ = propose(sources, Requests.of([request]), 7)[0]
        np.testing.assert_array_equal(found, together[row][0])
        alone = Matches.of(sources, request, found)
        assert alone.names == names
        rows = slice(together.offsets[row], together.offsets[row + 1])
        np.testing.assert_allclose(alone.scores, matches[rows], atol=1e-6)


def test_similar_is_the_largest_weighted_cosine_and_profile_the_mean(shop):
    ids, matrix, _, sources = shop
    history = ids[[3, 75, 11]]  # 75 may not be answered, but speaks
    request = Request(0, history_of(history), NOW)
    pairs = Requests.of([request]), ids[:70], np.array([0, 70])
    weights = 0.9 ** np.array([2, 1, 0])
    cosines = matrix[:70] @ matrix[[3, 75, 11]].T
    np.testing.assert_allclose(sources[0].score(*pairs), (cosines * weights).max(1), atol=1e-6)
    mean = weights @ matrix[[3, 75, 11]]
    np.testing.assert_allclose(sources[1].score(*pairs), matrix[:70] @ mean / np.linalg.norm(mean), atol=1e-6)


def test_sources_are_named_as_the_columns_they_make(shop):
    assert [source.name for source in shop[3]] == [
        "similar", "profile", "cooccurrence", "two_tower", "popular", "query"
    ]  # fmt: skip


def test_popularity_is_the_log_of_how_many_and_nothing_for_others():
    index = ItemIndex.build(np.array([3, 5, 9]), unit(np.eye(3)))
    source = PopularSource(np.array([9, 7, 3]), np.float32([4, 100, 1]), index)
    asked = np.array([3, 5, 7, 9, 10**12])
    found = source.score(Requests.of([Request(0, history_of([]), NOW)]), asked, np.array([0, 5]))
    np.testing.assert_allclose(found, [np.log(2), 0, 0, np.log(5), 0], rtol=1e-6)
    nothing = PopularSource(np.array([7]), np.float32([4]), index)
    assert not nothing.score(Requests.of([Request(0, history_of([]), NOW)]), asked, np.array([0, 5])).any()


def test_sources_with_nothing_to_go_by_answer_nothing(shop):
    ids, _, _, sources = shop
    stranger = Request(1, history_of([]), NOW)
    names = [source.name for source in sources if len(source.retrieve(stranger, 5)[0])]
    assert names == ["popular"]
    popular = next(source for source in sources if source.name == "popular")
    found = propose(sources, Requests.of([stranger]), 5)[0]
    np.testing.assert_array_equal(found[0], popular.retrieve(stranger, 5)[0])
    unheard = Request(1, history_of([-5, 10**15]), NOW, category="nowhere")
    assert len(propose(sources, Requests.of([unheard]), 5).item_id) == 0


def test_proposals_are_fused_by_reciprocal_ranks(shop):
    ids, _, _, sources = shop
    for request in requests_of(ids, 20, seed=8):
        fused = {}
        for source in sources:
            for rank, item in enumerate(source.retrieve(request, 6)[0].tolist(), start=1):
                fused[item] = fused.get(item, 0) + 61 / (60 + rank)
        best = sorted(fused, key=lambda item: (-np.float32(fused[item]), item))
        found, scores = propose(sources, Requests.of([request]), 6)[0]
        assert found.tolist() == best
        np.testing.assert_array_equal(scores, np.float32([fused[item] for item in best]))


def test_matches_are_read_by_item_in_any_order(shop):
    """The slow twin: every source asked about every candidate alone."""
    ids, _, _, sources = shop
    (request,) = requests_of(ids, 1, seed=8)
    candidates = np.random.default_rng(1).permutation(ids)[:25]
    matches = Matches.of(sources, request, candidates)
    asked = candidates[[4, 19, 0, 24, 7]]
    alone = [
        [source.score(Requests.of([request]), asked[[place]], np.array([0, 1]))[0] for source in sources]
        for place in range(len(asked))
    ]
    np.testing.assert_allclose(matches.rows(asked), alone, atol=1e-6)
    assert matches.named(asked) == [
        dict(zip(matches.names, row, strict=True)) for row in matches.rows(asked).tolist()
    ]
    assert matches.rows(candidates[:0]).shape == (0, len(sources))


def test_a_frame_gets_the_match_columns_that_serving_computes(shop):
    ids, _, _, sources = shop
    requests = requests_of(ids, 12, seed=5)
    batch = Requests.of(requests)
    candidates = np.random.default_rng(0).choice(ids, 36)
    frame = Frame(batch.users, pa.table({"item_id": candidates}), np.arange(0, 37, 3), batch.history)
    asked = replace(Requests.from_frame(frame), query_vectors=batch.query_vectors)
    scored = match_scores(sources, asked, candidates, frame.offsets)
    out = add_matches(frame, *scored)
    assert out.candidates.column_names == ["item_id", *(f"match_{source.name}" for source in sources)]
    for row, request in enumerate(requests):
        for source in sources:
            column = out.candidates[f"match_{source.name}"].to_numpy()[3 * row : 3 * row + 3]
            alone = source.score(Requests.of([request]), candidates[3 * row : 3 * row + 3], np.array([0, 3]))
            np.testing.assert_allclose(column, alone, atol=1e-6)


def test_requests_of_one_category_are_not_copied(shop, monkeypatch):
    ids, _, _, sources = shop
    copied, real = [], Requests.select
    monkeypatch.setattr(Requests, "select", lambda all, rows: copied.append(rows.tolist()) or real(all, rows))
    batch = Requests.of([replace(one, category="a") for one in requests_of(ids, 5)])
    for source in sources:
        source.retrieve_batch(batch, 3)
    assert not copied
    mixed = Requests.of(
        [replace(one, category=["a", "c"][n % 2]) for n, one in enumerate(requests_of(ids, 5))]
    )
    sources[-1].retrieve_batch(mixed, 3)
    assert copied == [[0, 2, 4], [1, 3]]


def test_answers_and_scores_are_of_the_promised_types(shop):
    ids, _, _, sources = shop
    for requests in (requests_of(ids, 4), [Request(1, history_of([]), NOW)]):
        batch = Requests.of(requests)
        offsets = np.arange(len(requests) + 1) * 2
        for source in sources:
            found = source.retrieve_batch(batch, 5)
            assert (found.offsets.dtype, found.item_id.dtype, found.score.dtype) == (
                np.int64,
                np.int64,
                np.float32,
            ), source.name
            assert source.score(batch, np.resize(ids, 2 * len(requests)), offsets).dtype == np.float32
        fused = propose(sources, batch, 5)
        assert (fused.offsets.dtype, fused.item_id.dtype, fused.score.dtype) == (
            np.int64,
            np.int64,
            np.float32,
        )
        asked = Requests.from_frame(
            Frame(batch.users, pa.table({"item_id": ids[:0]}), offsets * 0, batch.history)
        ) if batch.users is not None else batch  # fmt: skip
        assert all(one.dtype == np.int64 for one in asked.exclude)
