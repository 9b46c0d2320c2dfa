"""Model-free baselines of the encoder table: random, colours, words. Each encodes contents like an encoder.

Contents that a baseline cannot encode (a histogram of a text, TF-IDF of a picture) get zeros, which the tasks skip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from dataset.pictures import decoded
from encoder.content import Content
from evaluation.facets import reduced
from retrieval.colours import colours
from retrieval.words import WORD, Vocabulary

HUE_BINS, SATURATION_BINS, VALUE_BINS = 12, 4, 4
RANDOM_WIDTH = 128


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalise each row; rows of zeros stay."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm > 0, norm, 1)).astype(np.float32)


def random_vectors(seed: int) -> Callable[[Sequence[Content]], np.ndarray]:
    """A new random direction for every content: the result of chance in each task."""
    rng = np.random.default_rng(seed)
    return lambda contents: unit(rng.standard_normal((len(contents), RANDOM_WIDTH)))


def histogram(contents: Sequence[Content]) -> np.ndarray:
    """Joint HSV histogram of the whole picture, 12 x 4 x 4 bins, unit rows: float32 (n, 192).

    Ignores where a colour is: the classic colour histogram (Swain and Ballard 1991), here in HSV and with cosine
    instead of intersection.
    """
    out = np.zeros((len(contents), HUE_BINS * SATURATION_BINS * VALUE_BINS))
    for row, content in enumerate(contents):
        if content.image is None:
            continue
        picture = decoded(content.image).convert("HSV")
        hue, saturation, value = np.moveaxis(np.asarray(picture, dtype=np.int64), -1, 0)
        cell = hue * HUE_BINS // 256 * SATURATION_BINS + saturation * SATURATION_BINS // 256
        cell = cell * VALUE_BINS + value * VALUE_BINS // 256
        out[row] = np.bincount(cell.reshape(-1), minlength=out.shape[1])
    return unit(out)


def thumbnail(contents: Sequence[Content]) -> np.ndarray:
    """``retrieval.colours.colours``: a 12 x 16 thumbnail with a little of the histogram."""
    return colours([content.image for content in contents])


@dataclass(frozen=True)
class TfIdf:
    """Unit rows of the words that occur in the training items' texts.

    Equal to scikit-learn's ``TfidfVectorizer(token_pattern="[a-z0-9]+")`` fitted on those texts: count times
    ln((1 + M) / (1 + df)) + 1. Words never seen in training are left out.

    Attributes:
        column: word -> column.
        idf: float64 (V).
    """

    column: dict[str, int]
    idf: np.ndarray

    @classmethod
    def fit(cls, contents: Sequence[Content]) -> TfIdf:
        """Learn words and their document frequencies from the training items."""
        words = [set(WORD.findall(content.words.lower())) for content in contents]
        frequency = Counter(word for one in words for word in one)
        column = {word: place for place, word in enumerate(sorted(frequency))}
        counts = np.array([frequency[word] for word in column], dtype=np.float64)
        return cls(column, np.log((1 + len(contents)) / (1 + counts)) + 1)

    def __call__(self, contents: Sequence[Content]) -> np.ndarray:
        """float32 (n, V), unit rows."""
        out = np.zeros((len(contents), len(self.column)))
        for row, content in enumerate(contents):
            for word, times in Counter(WORD.findall(content.words.lower())).items():
                if word in self.column:
                    out[row, self.column[word]] = times * self.idf[self.column[word]]
        return unit(out)


def both(
    first: Callable[[Sequence[Content]], np.ndarray], second: Callable[[Sequence[Content]], np.ndarray]
) -> Callable[[Sequence[Content]], np.ndarray]:
    """Concatenate two encoders with equal weight: where both encode something, the cosine is the mean of theirs."""
    return lambda contents: unit(np.concatenate([first(contents), second(contents)], axis=1))


def svd(learnable: Sequence[Content], width: int, looks: bool) -> Callable[[Sequence[Content]], np.ndarray]:
    """TF-IDF, with thumbnails beside it if ``looks``, reduced to ``width`` numbers: as long as a model's vectors."""
    words = Vocabulary.of([content.words for content in learnable])

    def rows(contents: Sequence[Content]) -> Any:
        found = words.rows([content.words for content in contents])
        return sparse.hstack([found, sparse.csr_array(thumbnail(contents))]).tocsr() if looks else found

    project = reduced(rows(learnable), width)
    return lambda contents: project(rows(contents)) if len(contents) else np.zeros((0, width), np.float32)


def model_free(learnable: Sequence[Content], width: int) -> dict[str, Callable[[], Callable]]:
    """The model-free rows of the table by name, each made when it is asked for.

    Args:
        learnable: complete training items, for TF-IDF.
        width: numbers of the reduced rows.
    """

    def words() -> TfIdf:
        return TfIdf.fit(learnable)

    return {
        "random": lambda: random_vectors(0),
        "colour_histogram": lambda: histogram,
        "colour_thumbnail": lambda: thumbnail,
        "tf_idf": words,
        "colour_tf_idf": lambda: both(thumbnail, words()),
        "histogram_tf_idf": lambda: both(histogram, words()),
        "tf_idf_svd": lambda: svd(learnable, width, looks=False),
        "colour_tf_idf_svd": lambda: svd(learnable, width, looks=True),
    }
