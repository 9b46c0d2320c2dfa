"""Baselines are the textbook's: equal to brute force and scikit-learn, right in worlds of known answer."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer

from dataset.contracts import EVENTS, TIME
from evaluation.baselines import Chance, Mix, Popularity, Requests, Similarity, rank, top_k, tune_mix
from evaluation.content import PlainContent, SparseRows, buyers, tf_idf
from evaluation.metrics import hits, recall_at
from evaluation.shop_baselines import relevant_of, requests_of, shop_baselines
from retrieval.colours import colours
from retrieval.words import item_text


def dense(rows: SparseRows) -> np.ndarray:
    out = np.zeros((len(rows.offsets) - 1, rows.width), dtype=np.float32)
    out[np.repeat(np.arange(len(out)), np.diff(rows.offsets)), rows.column] = rows.value
    return out


def requests(*histories: list[int]) -> Requests:
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in histories])]).astype(np.int64)
    return Requests(offsets, np.array([item for one in histories for item in one], dtype=np.int64))


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float32, (3, 9), elements=st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.0])), st.integers(1, 12)
)
def test_top_k_equals_sorting_by_score_then_id_and_never_fills(scores, k):
    ids = np.arange(9) * 10
    ours = top_k(scores, ids, k)
    for row in range(3):
        order = sorted(range(9), key=lambda column, row=row: (-scores[row, column], column))
        expected = [int(ids[column]) for column in order if scores[row, column] > -np.inf][:k]
        assert ours[row].tolist() == expected + [-1] * (k - len(expected))


def test_top_k_excludes_the_history_and_tolerates_unknown_items():
    scores = np.array([[3.0, 2.0, 1.0]], dtype=np.float32)
    ranked = top_k(scores, np.array([5, 6, 7]), 3, requests([5, 404]))
    assert ranked.tolist() == [[6, 7, -1]]
    assert scores[0, 0] == 3.0  # the caller's array is not touched


def test_popularity_counts_events_and_never_lists_an_unsold_item():
    baseline = Popularity(np.array([1, 2, 3, 4]), np.array([3, 3, 1, 99, 2, 2]))
    assert rank(baseline, requests([], [1]), 4).tolist() == [[2, 3, 1, -1]] * 2


def test_item_knn_equals_brute_force_cosine():
    generator = np.random.default_rng(0)
    items = np.sort(generator.choice(1000, 30, replace=False))
    log_users, log_items = generator.integers(0, 40, 200) + 7, generator.choice(items, 200)
    candidates = items[::2]
    baseline = Similarity(candidates, items, buyers(items, log_users, log_items))
    histories = [generator.choice(items, n).tolist() for n in (1, 4, 0, 9)] + [[-5, 10**9]]
    histories.append(histories[1] + histories[1][:2])  # bought again: counts once
    scores = baseline.scores(requests(*histories))
    bought = {item: set(log_users[log_items == item].tolist()) for item in items}
    for row, history in enumerate(histories):
        for column, candidate in enumerate(candidates):
            expected = 0.0
            for item in {item for item in history if item in bought}:
                size = np.sqrt(len(bought[item]) * len(bought[candidate]))
                expected += len(bought[item] & bought[candidate]) / size if size else 0
            found = scores[row, column]
            assert found == pytest.approx(expected, abs=1e-5) if expected else found == -np.inf


def test_item_knn_finds_the_withheld_half_of_a_planted_world():
    # users of even (odd) number buy even (odd) items, one withheld each: implicit's checkerboard
    users = np.repeat(np.arange(20), 10)
    items = (np.tile(np.arange(0, 20, 2), 20) + users % 2).astype(np.int64)
    withheld = np.arange(20)
    log = items != users
    baseline = Similarity(np.arange(20), np.arange(20), buyers(np.arange(20), users[log], items[log]))
    histories = requests(*[items[(users == user) & log].tolist() for user in range(20)])
    assert rank(baseline, histories, 1, repeats=False)[:, 0].tolist() == withheld.tolist()


def test_tf_idf_equals_sklearn():
    texts = ["Red dress, red belt", "blue dress 501", None, "", "Red-hot chili 501 501"]
    ours = dense(tf_idf(texts))
    theirs = (
        TfidfVectorizer(token_pattern="[a-z0-9]+").fit_transform([text or "" for text in texts]).toarray()
    )
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-6)
    assert ours.shape == theirs.shape


def test_tf_idf_baseline_finds_the_item_with_the_same_words():
    texts = ["striped wool scarf", "blue denim jeans", "striped wool hat", "steel pan"]
    baseline = Similarity(np.arange(4), np.arange(4), tf_idf(texts))
    assert rank(baseline, requests([0], [3]), 2, repeats=False).tolist() == [[2, -1], [-1, -1]]


def test_item_text_joins_what_there_is():
    assert item_text("Hat", None, [("colour", "red"), ("size", "m")]).split() == ["Hat", "red", "m"]


def picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    image = Image.new("RGB", (40, 60), "white")
    image.paste(colour, (10, 10, 30, 50))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def test_colours_put_like_beside_like_and_missing_pictures_nowhere():
    rows = colours([picture((200, 0, 0)), picture((0, 0, 200)), picture((190, 10, 10), "JPEG"), None])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert rows[0] @ rows[2] > rows[0] @ rows[1] + 0.1
    baseline = Similarity(np.arange(4), np.arange(4), rows)
    assert rank(baseline, requests([0]), 4, repeats=False).tolist() == [[2, 1, -1, -1]]


def test_chance_is_seeded_and_recalls_k_over_n():
    candidates, histories = np.arange(200), requests(*[[] for _ in range(500)])
    ranked = rank(Chance(candidates, seed=1), histories, 20)
    np.testing.assert_array_equal(ranked, rank(Chance(candidates, seed=1), histories, 20))
    recall = recall_at(hits(ranked, np.arange(501), np.arange(500) % 200), np.ones(500), 20).mean()
    assert recall == pytest.approx(0.1, abs=0.04)


class Planted:
    """Ranks the item after the user's last first in the known share of requests, else last."""

    def __init__(self, knows: np.ndarray) -> None:
        self.candidates = np.arange(10)
        self.knows = knows

    def scores(self, asked: Requests) -> np.ndarray:
        out = np.ones((len(asked), 10), dtype=np.float32)
        for row in range(len(asked)):
            last = int(asked.history[asked.offsets[row + 1] - 1])
            out[row, (last + 1) % 10] = 5 if self.knows[last] else -5
        return out


def test_the_tuned_mix_trusts_the_part_that_is_right():
    good, bad = Planted(np.arange(10) < 9), Planted(np.arange(10) >= 9)
    asked = requests(*[[user % 10] for user in range(40)])
    relevant = (np.arange(40) + 1) % 10
    mix = tune_mix({"good": good, "bad": bad}, asked, np.arange(41), relevant, k=1)
    assert mix.weights["good"] > mix.weights["bad"]
    assert recall_at(hits(rank(mix, asked, 1), np.arange(41), relevant), np.ones(40), 1).mean() == 0.9


def test_requests_whose_items_are_gone_do_not_decide_the_mix():
    good, bad = Planted(np.arange(10) < 9), Planted(np.arange(10) >= 9)
    asked = requests(*[[user % 10] for user in range(40)])
    offsets = np.concatenate([np.arange(40), [39]])  # the last request's item is gone
    for parts in ({"good": good, "bad": bad}, {"bad": bad, "good": good}):
        mix = tune_mix(parts, asked, offsets, (np.arange(39) + 1) % 10, k=1)
        assert mix.weights["good"] > mix.weights["bad"]


def test_the_mix_is_the_weighted_sum_of_standardised_scores():
    generator = np.random.default_rng(3)
    items = np.arange(12)
    rows = generator.random((12, 5)).astype(np.float32)
    log = generator.integers(0, 12, 60)
    parts = {"content": Similarity(items, items, rows), "popular": Popularity(items, log[log != 4])}
    asked = requests([1, 2], [7])
    mixed = Mix(parts, {"content": 0.25, "popular": 0.75}).scores(asked)
    expected = 0
    for weight, part in ((0.25, parts["content"]), (0.75, parts["popular"])):
        score = np.nan_to_num(part.scores(asked), neginf=0)
        expected = expected + weight * (score - score.mean(1, keepdims=True)) / score.std(1, keepdims=True)
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    unknown = {"words": Similarity(items, items, tf_idf(["hat", "hat", *["cup"] * 10]))}
    assert Mix(unknown, {"words": 1.0}).scores(requests([0]))[0, 2] == -np.inf  # nothing speaks for a cup
    with pytest.raises(ValueError, match="a weight for each"):
        Mix(parts, {"content": 1.0})


def test_blocks_do_not_change_the_answer(monkeypatch):
    generator = np.random.default_rng(5)
    items = np.arange(50)
    baseline = Similarity(
        items, items, buyers(items, generator.integers(0, 30, 300), generator.integers(0, 50, 300))
    )
    asked = requests(*[generator.integers(0, 50, 3).tolist() for _ in range(23)])
    whole = rank(baseline, asked, 10)
    monkeypatch.setattr("evaluation.baselines.CHUNK_FLOATS", 150)
    np.testing.assert_array_equal(rank(baseline, asked, 10), whole)


# --- the shop's own tables ---

US = 1_000_000


def events(*rows):
    """(user, item, type, available second, value)"""
    columns = {
        "event_id": range(len(rows)),
        "user_id": [row[0] for row in rows],
        "item_id": [row[1] for row in rows],
        "type": [row[2] for row in rows],
        "event_time": [row[3] * US for row in rows],
        "available_time": [row[3] * US for row in rows],
        "value": [row[4] if len(row) > 4 else None for row in rows],
    }
    arrays = [
        pa.array(list(columns[field.name]), field.type)
        if field.name in columns
        else pa.nulls(len(rows), field.type)
        for field in EVENTS
    ]
    return pa.Table.from_arrays(arrays, schema=EVENTS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 4),
            st.integers(10, 15),
            st.sampled_from(["click", "impression", "rating"]),
            st.integers(0, 6),
            st.sampled_from([3.0, 4.5]),
        ),
        max_size=25,
    ),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=6),
)
def test_histories_hold_what_was_liked_strictly_before_the_request(log, asked):
    retrieval = pa.table(
        {"user_id": pa.array([user for user, _ in asked]), "time": pa.array([t * US for _, t in asked], TIME)}
    )
    ours = requests_of(events(*log), retrieval)
    for row, (user, time) in enumerate(asked):
        expected = [
            item
            for _, (who, item, kind, when, value) in sorted(
                enumerate(log), key=lambda pair: (pair[1][3], pair[0])
            )
            if who == user and when < time and (kind == "click" or (kind == "rating" and value >= 4))
        ]
        assert ours.history[ours.offsets[row] : ours.offsets[row + 1]].tolist() == expected


def test_shop_baselines_read_the_canonical_tables():
    red, red_again, blue = picture((200, 0, 0)), picture((190, 5, 5)), picture((0, 0, 200))
    images = pa.table({"image_id": ["r", "s", "b"], "bytes": [red, red_again, blue]})
    items = pa.table(
        {
            "item_id": [30, 10, 20, 40],
            "title": ["wool hat", "red cup", "steel pan", "red jug"],
            "description": [None] * 4,
            "attributes": pa.array([[("fibre", "wool")], [], [], []], pa.map_(pa.string(), pa.string())),
            "image_id": ["b", "r", None, "s"],
        }
    )
    log = events((1, 10, "click", 1), (1, 20, "click", 2), (2, 10, "click", 3), (2, 30, "impression", 4))
    found = shop_baselines(PlainContent.of(items, images), log, np.array([40, 20, 10, 30]), False)
    assert set(found) == {"popularity", "chance", "item_knn", "tf_idf", "colour"}
    first = {name: rank(one, requests([10]), 4, repeats=False)[0].tolist() for name, one in found.items()}
    assert first["popularity"] == [20, -1, -1, -1]  # an impression is no vote
    assert first["item_knn"] == [20, -1, -1, -1]
    assert first["tf_idf"] == [40, -1, -1, -1]
    assert first["colour"] == [40, 30, -1, -1]
    assert "colour" not in shop_baselines(
        PlainContent.of(items, images.slice(0, 0)), log, np.array([10]), False
    )


def test_relevant_lists_become_ragged_arrays():
    table = pa.table({"relevant": pa.chunked_array([pa.array([[5, 6], []]), pa.array([[7]])])})
    found = relevant_of(table)
    assert (found.offsets.tolist(), found.item_id.tolist()) == ([0, 2, 2, 3], [5, 6, 7])
