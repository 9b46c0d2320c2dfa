"""The index answers what brute force answers, under every filter, and never an id it does not hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import approximation
from retrieval.index import ItemIndex, category_path
from run.artifacts import ArtifactError, open_artifact

PATHS = ["", "a", "a > b", "a > b > c", "a > d", "ab", "e"]


def brute(index_ids, matrix, paths, query, k, category=None, exclude=()):
    rows = []
    for row, item in enumerate(index_ids):
        inside = category is None or paths[row] == category or paths[row].startswith(category + " > ")
        if inside and item not in set(exclude):
            score = np.float32(matrix[row].astype(np.float64) @ query.astype(np.float64))
            rows.append((-score, int(item)))
    rows.sort()
    return [item for _, item in rows[:k]], [-score for score, _ in rows[:k]]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_filters_equal_brute_force_ties_included(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    count, width = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([1, 3, 8]))
    ids = rng.choice(10**12, size=count, replace=False)
    distinct = data.draw(st.integers(1, count))  # few distinct vectors: many exact ties
    matrix = rng.normal(size=(distinct, width)).astype(np.float32)[rng.integers(0, distinct, count)]
    paths = [PATHS[i] for i in rng.integers(0, len(PATHS), count)]
    queries = rng.normal(size=(data.draw(st.integers(1, 30)), width)).astype(np.float32)
    k = data.draw(st.integers(1, 70))
    category = data.draw(st.sampled_from([None, "a", "a > b", "e", "nowhere"]))
    exclude = rng.choice(ids, data.draw(st.integers(0, count)), replace=False)
    hidden = rng.choice(ids, data.draw(st.integers(0, count)), replace=False)
    half = len(hidden) // 2
    index = ItemIndex.build(ids, matrix, paths).without(hidden[:half]).without(np.append(hidden[half:], 5))
    found, scores = index.search(queries, k, category=category, exclude=exclude)
    assert index.contains(ids).tolist() == (~np.isin(ids, hidden)).tolist() and index.gather(ids)[1].all()
    for row, query in enumerate(queries):
        wanted, wanted_scores = brute(ids, matrix, paths, query, k, category, [*exclude, *hidden])
        assert found[row].tolist() == wanted
        np.testing.assert_array_equal(scores[row], np.array(wanted_scores, np.float32))
        single, single_scores = index.search(query, k, category=category, exclude=exclude)
        np.testing.assert_array_equal(single, found[row])
        np.testing.assert_array_equal(single_scores, scores[row])


def test_fewer_than_k_when_fewer_exist_and_never_a_filler():
    index = ItemIndex.build(np.array([7, 3]), np.eye(2, dtype=np.float32))
    ids, scores = index.search(np.array([1, 0], np.float32), 10)
    assert ids.tolist() == [7, 3] and scores.tolist() == [1, 0]
    ids, scores = index.search(np.array([1, 0], np.float32), 10, exclude=np.array([3, 7, 99]))
    assert len(ids) == len(scores) == 0
    empty = ItemIndex.build(np.empty(0, np.int64), np.empty((0, 2), np.float32))
    assert len(empty.search(np.array([1, 0], np.float32), 3)[0]) == 0


def test_equal_vectors_answer_the_smaller_id_first_however_the_scan_adds_up():
    rng = np.random.default_rng(0)
    vector = rng.normal(size=64).astype(np.float32)
    ids = rng.permutation(5000)
    index = ItemIndex.build(ids, np.tile(vector, (5000, 1)))
    queries = rng.normal(size=(40, 64)).astype(np.float32)
    found, _ = index.search(queries, 5)
    assert (found == np.arange(5)).all()


def test_items_that_are_alike_are_not_scanned_for_again_and_again(monkeypatch):
    """Of a log without content most items may have one vector; scanning on until they are told apart never ends."""
    rng = np.random.default_rng(0)
    matrix = np.tile(rng.normal(size=16).astype(np.float32), (5000, 1))
    matrix[:40] = rng.normal(size=(40, 16))
    ids = rng.permutation(10**6)[:5000]
    index = ItemIndex.build(ids, matrix)
    scan, fetched = index._flat.search, []
    monkeypatch.setattr(index._flat, "search", lambda q, k, **how: fetched.append(k) or scan(q, k, **how))
    monkeypatch.setattr("retrieval.index.BLOCK", 512)
    queries = rng.normal(size=(70, 16)).astype(np.float32)
    found, scores = index.search(queries, 50)
    for row, query in enumerate(queries):
        wanted, wanted_scores = brute(ids, matrix, [""] * 5000, query, 50)
        assert found[row].tolist() == wanted
        np.testing.assert_array_equal(scores[row], np.array(wanted_scores, np.float32))
    assert fetched == [58, 232]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(bad):
    index = ItemIndex.build(np.array([1]), np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        index.search(np.array([bad, 0], np.float32), 1)


def test_bad_catalogues_are_refused_with_the_offenders():
    good = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"repeat or are negative \(item_id \[4\]\)"):
        ItemIndex.build(np.array([4, 4, 5]), good)
    with pytest.raises(ValueError, match=r"repeat or are negative \(item_id \[-1\]\)"):
        ItemIndex.build(np.array([4, -1, 5]), good)
    with pytest.raises(ValueError, match=r"item_id \[5\]\). Run 'moon embed'"):
        ItemIndex.build(np.array([3, 4, 5]), np.array([[1, 1], [1, 1], [np.nan, 1]], np.float32))
    with pytest.raises(ValueError, match="expected one each"):
        ItemIndex.build(np.array([3, 4]), good)
    with pytest.raises(ValueError, match="at least 1"):
        ItemIndex.build(np.array([3, 4, 5]), good).search(np.ones(2, np.float32), 0)
    with pytest.raises(ValueError, match="shape"):
        ItemIndex.build(np.array([3, 4, 5]), good).search(np.ones(3, np.float32), 1)


def test_gather_and_contains_go_by_id():
    index = ItemIndex.build(np.array([20, 10]), np.array([[1, 0], [0, 1]], np.float32), ["z", "a > b"])
    vectors, found = index.gather(np.array([10, 99, 20, -1]))
    assert vectors.tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    assert found.tolist() == [True, False, True, False]
    assert index.contains(np.array([10, 20, 99]), "a").tolist() == [True, False, False]
    assert index.categories == ["a", "a > b", "z"]
    assert category_path(["a", "b"]) == "a > b"


@pytest.mark.parametrize(
    "parts, path",
    [
        ([], ""), (["a->b", "c>d"], "a->b > c>d"), (["a > b", "c"], "a > b > c"), ([">"], ""), ([" > "], ""),
        (["a >", "b"], "a > b"), (["a", "> b"], "a > b"), (["a", ">", "b"], "a > b"), (["> >", ">a"], ">a"),
    ],
)  # fmt: skip
def test_a_part_of_a_category_with_the_separator_in_it_is_several(parts, path):
    """Of two lists that look alike as a path, one would be answered under the other's category."""
    assert category_path(parts) == path
    index = ItemIndex.build(np.array([7]), np.ones((1, 2), np.float32), [path])
    for depth in range(1, path.count(" > ") + 2):
        above = " > ".join(path.split(" > ")[:depth])
        assert not path or index.contains(np.array([7]), above).tolist() == [True]


def clustered(count, rng):
    centres = rng.normal(size=(50, 16))
    matrix = centres[rng.integers(0, 50, count)] + 0.3 * rng.normal(size=(count, 16))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def test_large_catalogues_pass_the_recall_gate_and_stay_exact_under_filters(tmp_path):
    rng = np.random.default_rng(0)
    matrix = clustered(4000, rng)
    ids = rng.choice(10**9, 4000, replace=False)
    paths = [PATHS[i] for i in rng.integers(0, len(PATHS), 4000)]
    index = ItemIndex.build(ids, matrix, paths, exact_limit=1000)
    exact = ItemIndex.build(ids, matrix, paths)
    assert index.approximation is not None and index.approximation.recall >= 0.99
    queries = matrix[:100] + 0.1 * rng.normal(size=(100, 16)).astype(np.float32)
    found, _ = index.search(queries, 10)
    truth, _ = exact.search(queries, 10)
    assert np.mean([len(set(f) & set(t)) / 10 for f, t in zip(found, truth, strict=True)]) >= 0.97
    for filters in ({"category": "a > b"}, {"exclude": ids[:7]}, {"exclude": ids[900:]}):
        np.testing.assert_array_equal(
            index.search(queries, 20, **filters)[0], exact.search(queries, 20, **filters)[0]
        )
    hidden = found[:, 0]  # what every query would have answered first
    visible, _ = index.without(hidden).search(queries, 10)
    truth, _ = exact.without(hidden).search(queries, 10)
    assert not np.isin(visible, hidden).any()
    assert np.mean([len(set(f) & set(t)) / 10 for f, t in zip(visible, truth, strict=True)]) >= 0.97
    everything, _ = index.search(queries[0], 4000)  # more than the probed lists hold
    assert sorted(everything) == sorted(ids)
    saved = index.save(tmp_path / "index", {})
    np.testing.assert_array_equal(ItemIndex.open(saved).search(queries, 10)[0], found)
    assert saved.config["recall"] >= 0.99 and saved.config["probes"] >= 8
    assert (saved.config["items"], saved.config["width"]) == (4000, 16)


def test_a_catalogue_that_fails_the_gate_is_scanned(monkeypatch):
    monkeypatch.setattr(approximation, "RECALL_GATE", 1.01)
    rng = np.random.default_rng(0)
    assert ItemIndex.build(np.arange(2000), clustered(2000, rng), exact_limit=1000).approximation is None


def test_a_saved_index_answers_the_same_and_a_damaged_one_is_refused(tmp_path):
    rng = np.random.default_rng(1)
    ids, matrix = rng.choice(10**15, 300, replace=False), rng.normal(size=(300, 8)).astype(np.float32)
    paths = [PATHS[i] for i in rng.integers(0, len(PATHS), 300)]
    built = ItemIndex.build(ids, matrix, paths)
    opened = ItemIndex.open(built.save(tmp_path / "index", {}))
    for category in (None, "a"):
        for ours, theirs in zip(
            opened.search(matrix[:5], 9, category=category),
            built.search(matrix[:5], 9, category=category),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
    assert opened.artifact.kind == "index" and opened.paths == built.paths
    file = tmp_path / "index" / "items.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="sha256"):
        open_artifact(tmp_path / "index", "index")


def test_an_index_of_only_some_items_answers_as_if_all_others_were_excluded():
    rng = np.random.default_rng(2)
    ids, matrix = rng.choice(10**12, 50, replace=False), rng.normal(size=(50, 4)).astype(np.float32)
    index = ItemIndex.build(ids, matrix, [PATHS[i] for i in rng.integers(0, len(PATHS), 50)])
    some = np.concatenate([ids[:20], ids[:3], [-1, 5]])
    assert index.only(None) is index and len(index.only(some)) == 20
    for category in (None, "a"):
        for ours, theirs in zip(
            index.only(some).search(matrix, 9, category=category),
            index.search(matrix, 9, category=category, exclude=np.setdiff1d(ids, some)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)


def added_world(seed, limit, width=16):
    """An index, items that are added or replaced in it, and the index built of all of them at once."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(900, width)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    ids = rng.permutation(5000)[:900].astype(np.int64)
    paths = [["Women", "Women > Shoes", "Men", ""][row % 4] for row in range(900)]
    old = ItemIndex.build(ids[:800], matrix[:800], paths[:800], exact_limit=limit)
    changed = np.append(np.arange(800, 900), np.arange(0, 800, 40))  # new ones, and some that were there
    fresh = rng.normal(size=(len(changed), width)).astype(np.float32)
    fresh /= np.linalg.norm(fresh, axis=1, keepdims=True)
    names = ["Men > Hats"] * len(changed)
    new = old.with_items(ids[changed], fresh, names)
    whole, all_paths = matrix.copy(), list(paths)
    whole[changed] = fresh
    for row, name in zip(changed.tolist(), names, strict=True):
        all_paths[row] = name
    return (
        old,
        new,
        ItemIndex.build(ids, whole, all_paths),
        rng.normal(size=(40, width)).astype(np.float32),
        ids[changed],
    )


def test_an_index_with_items_added_and_replaced_is_the_index_of_all_of_them():
    old, new, whole, queries, changed = added_world(0, limit=10_000)
    before = [old.search(query, 10)[0].tolist() for query in queries]
    for filters in ({}, {"category": "Men"}, {"category": "Men > Hats"}, {"exclude": changed[:30]}):
        for query in queries:
            for ours, theirs in zip(
                new.search(query, 10, **filters), whole.search(query, 10, **filters), strict=True
            ):
                assert ours.tolist() == theirs.tolist()
    assert len(new) == len(whole) == 900 and new.categories == whole.categories
    assert [old.search(query, 10)[0].tolist() for query in queries] == before


def test_inverted_lists_hold_what_was_added_and_forget_what_was_replaced():
    old, new, whole, queries, changed = added_world(1, limit=100, width=3)
    assert old.approximation is not None and new.approximation is not None
    vectors, _ = new.gather(changed)
    for item_id, vector in zip(changed.tolist(), vectors, strict=True):
        ids, scores = new.search(vector, 5)
        assert ids[0] == item_id and scores[0] == pytest.approx(1.0, abs=1e-6)
        assert len(set(ids.tolist())) == 5
    hits = sum(len(np.intersect1d(new.search(query, 10)[0], whole.search(query, 10)[0])) for query in queries)
    assert hits >= 0.95 * 10 * len(queries)
    again = new.with_items(changed[:3], vectors[:3], ["Men"] * 3)
    assert len(again) == 900 and again.search(vectors[0], 1)[0][0] == changed[0]


def test_an_empty_index_knows_no_item_and_no_category():
    empty = ItemIndex.build(np.empty(0, np.int64), np.empty((0, 2), np.float32))
    assert empty.rows(np.array([5, -1])).tolist() == [-1, -1]
    vectors, found = empty.gather(np.array([5, 7]))
    assert vectors.tolist() == [[0, 0], [0, 0]] and found.tolist() == [False, False]
    assert vectors.dtype == np.float32 and not empty.contains(np.array([5])).any()
    assert empty.categories == []


def test_an_item_without_a_category_makes_none_that_can_be_asked_for():
    index = ItemIndex.build(np.array([1, 2]), np.eye(2, dtype=np.float32), ["", "a"])
    assert index.categories == ["a"] and index.has_category("a") and not index.has_category("")
    assert ItemIndex.build(np.array([1, 2]), np.eye(2, dtype=np.float32)).categories == []


def test_only_an_unfiltered_query_is_answered_from_the_lists():
    """With one list probed of many, the nearest item of another list is not found."""
    rng = np.random.default_rng(0)
    matrix = clustered(2000, rng)
    index = ItemIndex.build(np.arange(2000), matrix, exact_limit=1000)
    queries = matrix[:50] + 0.3 * rng.normal(size=(50, 16)).astype(np.float32)
    exact = ItemIndex.build(np.arange(2000), matrix).search(queries, 1)[0]
    index.approximation.lists.nprobe = 1
    assert (index.search(queries, 1)[0] != exact).any()
    far = np.array([int(row) for row in range(2000) if row not in exact])[:1]
    np.testing.assert_array_equal(index.search(queries, 1, exclude=far)[0], exact)


def test_lists_are_made_only_for_catalogues_above_the_limit():
    matrix = clustered(2000, np.random.default_rng(0))
    assert ItemIndex.build(np.arange(2000), matrix, exact_limit=2000).approximation is None
    assert ItemIndex.build(np.arange(2000), matrix, exact_limit=1999).approximation is not None


def test_queries_that_are_not_finite_are_counted_and_their_rows_named():
    index = ItemIndex.build(np.array([1]), np.ones((1, 2), np.float32))
    bad = np.array([[0, 0], [np.nan, 0], [1, 1], [0, np.inf]], np.float32)
    with pytest.raises(ValueError, match=r"^2 of 4 queries are not finite \(rows \[1, 3\]\)$"):
        index.search(bad, 1)


def test_the_lists_are_trained_on_distinct_items(monkeypatch):
    trained, real = [], approximation.faiss.index_factory

    def factory(*arguments):
        lists = real(*arguments)
        train = lists.train
        lists.train = lambda rows: trained.append(rows) or train(rows)
        return lists

    monkeypatch.setattr(approximation.faiss, "index_factory", factory)
    matrix = clustered(1500, np.random.default_rng(0))
    ItemIndex.build(np.arange(1500), matrix, exact_limit=1000)
    assert {row.tobytes() for row in trained[0]} == {row.tobytes() for row in matrix}


def test_three_hundred_thousand_items_are_scanned_and_one_more_gets_lists(monkeypatch):
    given = []
    monkeypatch.setattr("retrieval.index.approximate", lambda matrix, ids: given.append(len(ids)))
    vectors = np.ones((300_001, 1), np.float32)
    ItemIndex.build(np.arange(300_000), vectors[1:])
    assert not given
    ItemIndex.build(np.arange(300_001), vectors)
    assert given == [300_001]


@pytest.mark.parametrize("limit", [100, 10_000], ids=["lists", "scanned"])
def test_answers_are_of_the_promised_types_and_shapes(limit):
    rng = np.random.default_rng(0)
    index = ItemIndex.build(np.arange(600), clustered(600, rng), ["a", "b > c"] * 300, exact_limit=limit)
    assert (index.approximation is not None) == (limit == 100)
    queries = clustered(3, rng).astype(np.float64)
    for filters in ({}, {"category": "a"}, {"category": "nowhere"}, {"exclude": np.arange(600)}):
        k = {"nowhere": 0}.get(filters.get("category"), 0 if "exclude" in filters else 4)
        for asked, shape in ((queries, (3, k)), (queries[0], (k,))):
            ids, scores = index.search(asked, 4, **filters)
            assert (ids.dtype, scores.dtype, ids.shape, scores.shape) == (np.int64, np.float32, shape, shape)
    vectors, found = index.gather(np.array([5, 10**6]))
    assert (vectors.dtype, found.dtype, index.rows(np.array([5])).dtype) == (np.float32, bool, np.int64)
    assert index.ids.dtype == np.int64 and index.matrix.dtype == np.float32
    built = ItemIndex.build([3, 1], np.eye(2), ["b", "a"])  # of whatever numbers it is built
    assert built.ids.dtype == np.int64 and built.matrix.dtype == np.float32 and built.ids.tolist() == [1, 3]


def test_a_scanned_index_says_that_it_is_exact(tmp_path):
    saved = ItemIndex.build(np.array([7, 3]), np.eye(2, dtype=np.float32)).save(tmp_path / "index", {})
    assert saved.config == {"items": 2, "width": 2, "recall": 1.0, "probes": 0}
    opened = ItemIndex.open(saved)
    assert opened.approximation is None and opened.artifact is saved and opened.paths == ["", ""]
