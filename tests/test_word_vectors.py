"""Latent semantic analysis of the catalogue's words."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import TruncatedSVD

from retrieval.word_vectors import WordVectors
from retrieval.words import Words
from run.artifacts import open_artifact

WORDS = np.array(["red", "blue", "mug", "lamp", "cotton", "steel", "round", "tall", "small", "striped"])


def items(count, first=0, seed=0):
    draw = np.random.default_rng(seed)
    texts = [" ".join(draw.choice(WORDS, draw.integers(1, 6))) for _ in range(count)]
    texts[0] = None  # it says nothing
    return pa.table(
        {
            "item_id": pa.array(np.arange(first, first + count)),
            "title": pa.array(texts, pa.string()),
            "description": pa.nulls(count, pa.string()),
            "attributes": pa.array(
                [[]] * count, pa.list_(pa.struct({"name": pa.string(), "value": pa.string()}))
            ),
        }
    )


@pytest.fixture(scope="module")
def words():
    return Words.of(items(80))


def test_cosines_are_those_of_a_truncated_svd(words, tmp_path):
    made = WordVectors.of(words, 4).save(tmp_path / "word_vectors", {})
    vectors = WordVectors.open(open_artifact(tmp_path / "word_vectors", "word_vectors")).vectors(words)
    expected = TruncatedSVD(4, algorithm="arpack").fit_transform(words.rows.astype(np.float64))[1:]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert vectors.ids.tolist() == list(range(1, 80)) and vectors.id == made.id
    assert vectors.matrix.dtype == np.float32 and made.config["width"] == vectors.width == 4
    np.testing.assert_allclose(vectors.matrix @ vectors.matrix.T, expected @ expected.T, atol=1e-3)


def test_all_directions_keep_every_cosine(words, tmp_path):
    WordVectors.of(words).save(tmp_path / "word_vectors", {})
    vectors = WordVectors.open(open_artifact(tmp_path / "word_vectors", "word_vectors")).vectors(words)
    assert vectors.width == len(WORDS), "no more than there are words"
    ids = np.arange(1, 80)
    np.testing.assert_allclose(vectors.matrix @ vectors.matrix.T, words.between(ids, ids), atol=1e-5)


def test_items_that_come_later_are_placed_by_their_words_and_move_no_other(words, tmp_path):
    WordVectors.of(words, 4).save(tmp_path / "word_vectors", {})
    opened = WordVectors.open(open_artifact(tmp_path / "word_vectors", "word_vectors"))
    before, later = opened.vectors(words), items(80).slice(5, 1)
    later = later.set_column(0, "item_id", pa.array([1000]))
    after = opened.vectors(words.with_items(later))
    assert after.ids.tolist() == [*before.ids.tolist(), 1000]
    np.testing.assert_allclose(after.matrix[:-1], before.matrix, atol=1e-6)
    np.testing.assert_allclose(after.matrix[-1], before.gather(np.array([5]))[0][0], atol=1e-6)


def test_of_a_catalogue_that_says_nothing_there_are_no_vectors(tmp_path):
    silent = Words.of(items(1))
    WordVectors.of(silent).save(tmp_path / "word_vectors", {})
    assert WordVectors.open(open_artifact(tmp_path / "word_vectors", "word_vectors")).vectors(silent) is None
