"""Vectors that may not serve are refused with their figure and the first offenders; sound ones are measured right.

Run: pytest tests/test_embedding_check.py
"""

import numpy as np
import pyarrow as pa
import pytest
from encoder_world import START

from dataset.contracts import ITEMS
from encoder.content import item_content
from feature_repo.embedding_check import EmbeddingError, anisotropy, examine, overlap, with_content
from feature_repo.vectors import VectorTable

WIDTH, COUNT = 16, 1500


def table(matrix, ids=None):
    matrix = np.asarray(matrix, np.float32)
    ids = np.arange(len(matrix)) * 3 + 5 if ids is None else ids
    return VectorTable(ids, matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


def clusters(seed, noise=0.3, count=COUNT, width=WIDTH):
    """Items in 50 groups; the groups are the same for every seed, and turned into the width asked for."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(50, WIDTH))
    turn = np.linalg.qr(rng.normal(size=(max(width, WIDTH), max(width, WIDTH))))[0][:WIDTH, :width]
    return (centre[np.arange(count) % 50] + noise * rng.normal(size=(count, WIDTH))) @ turn


def test_sound_vectors_of_another_encoder_pass_and_are_measured(tmp_path):
    before, now = table(clusters(0)), table(clusters(1, width=32))
    found = examine(now, now.ids, 32, before)
    assert (found.items, found.width, found.coverage, found.common) == (COUNT, 32, 1.0, COUNT)
    cosine = now.matrix.astype(np.float64) @ now.matrix.T
    by_hand = (cosine.sum() - np.trace(cosine)) / (COUNT * (COUNT - 1))
    assert found.anisotropy == pytest.approx(by_hand, abs=1e-6) == anisotropy(now.matrix)
    assert found.chance == 10 / (COUNT - 1) and 0.1 < found.overlap < 0.9


def test_overlap_is_that_of_brute_force():
    one, other = table(clusters(0, count=300)), table(clusters(3, count=300))
    asked, agree, _ = overlap(one, other, one.ids, seed=4)
    assert sorted(asked.tolist()) == one.ids.tolist()

    def near(vectors, item):
        row = vectors.rows([item])[0]
        cosine = vectors.matrix @ vectors.matrix[row]
        cosine[row] = -2
        return set(vectors.ids[np.argsort(-cosine)[:10]].tolist())

    for item, share in list(zip(asked.tolist(), agree.tolist(), strict=True))[:40]:
        assert share == len(near(one, item) & near(other, item)) / 10
    assert overlap(one, one, one.ids, seed=0)[1].min() == 1.0


def shuffled(vectors):
    return VectorTable(vectors.ids, np.random.default_rng(5).permutation(vectors.matrix))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            shuffled,
            r"items have different neighbours than before: .* kept none \(item_id \[\d+.*overlap 0\.0",
        ),
        (lambda v: table(v.matrix * 0.1 + np.ones(WIDTH)), "collapsed: mean cosine of two items 0.9[5-9]"),
        (
            lambda v: VectorTable(v.ids[16:], v.matrix[16:]),
            r"16 of 1500 items with content have no vector \(item_id \[5, 8, 11\]\): coverage 0.9893",
        ),
        (lambda v: table(v.matrix[:, :8]), "vectors of width 8, expected 16"),
    ],
)
def test_vectors_that_may_not_serve_are_refused_with_their_figure(damage, named):
    before = table(clusters(0))
    with pytest.raises(EmbeddingError, match=named) as error:
        examine(damage(table(clusters(1))), before.ids, WIDTH, before)
    assert "Run 'moon embed'" in str(error.value) and str(error.value).count("\n  ") == 1


def test_every_fault_is_named_at_once():
    before = table(clusters(0))
    broken = table(np.ones((COUNT - 100, 8)) + 0.01 * clusters(1)[100:, :8], before.ids[100:])
    with pytest.raises(EmbeddingError) as error:
        examine(broken, before.ids, WIDTH, before)
    assert str(error.value).count("\n  ") >= 3


def test_a_share_of_items_may_lack_a_vector_and_few_common_ones_are_not_judged():
    now = table(clusters(0))
    assert examine(VectorTable(now.ids[15:], now.matrix[15:]), now.ids, WIDTH, None).coverage == 0.99
    few = VectorTable(now.ids[:999], now.matrix[:999])
    found = examine(shuffled(few), few.ids, WIDTH, few)
    assert found.common == 999 and found.overlap is None


def test_items_with_content_are_those_the_encoder_reads():
    base = {"external_id": "x", "price": None, "spu": 1, "first_seen": START}
    texts, categories = (None, "", " \t", "a mug"), (None, [], [""], ["shop"])
    attributes = (None, [], [("colour", "")], [("", "red")], [("a", ""), ("colour", "red")], [("a", " ")])
    rows = [
        {**base, "item_id": n, "title": title, "description": text, "category": category,
         "attributes": pairs, "image_id": image}
        for n, (title, text, category, pairs, image) in enumerate(
            (title, text, category, pairs, image)
            for title in texts for text in texts for category in categories for pairs in attributes
            for image in (None, "abc")
        )
    ]  # fmt: skip
    items = pa.Table.from_pylist(rows, ITEMS)
    expected = [
        row["item_id"] for row in items.to_pylist()
        if not item_content(row, b"picture" if row["image_id"] else None).is_empty
    ]  # fmt: skip
    assert with_content(items).tolist() == expected and 0 < len(expected) < len(rows)
    assert with_content(items.slice(40, 50)).tolist() == [one for one in expected if 40 <= one < 90]
