"""What item vectors remember: every category, attribute and price of an item, and the tastes of a simulated shop.

A shopper's taste is made of what an item is: its brand, material, style, colour. What a vector has forgotten no model
that reads it can learn. So a linear model reads each of these from the vectors of complete items, whose picture and
text the encoder has seen in full, and is asked about items that neither it nor the encoder was trained on.

Shapes: T training items, N test items, D vector width, Q targets, U users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import RidgeCV

from dataset.marketplace.catalogue import FACET_START, FACETS, TRAITS, WORDS
from dataset.marketplace.shoppers import SHOWS
from encoder.content import attribute_pairs
from evaluation.classifiers import LinearProbe
from evaluation.encoder_tasks import Labels, labels
from evaluation.metrics import Measurement
from evaluation.truth import Judge

PENALTIES = np.geomspace(1e-3, 1e2, 6)  # of the ridge, per training item; chosen by leave-one-out
CONTENT = tuple(where for where in SHOWS if where != "behaviour")


def questions(train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> list[Labels]:
    """Category at every level of the path, then every attribute, of ITEMS rows as Python values."""
    sides = (train, test)
    depth = max((len(row["category"] or ()) for row in train), default=0)
    asked = [
        labels(
            f"category_{level}",
            *([" ".join(row["category"][:level]) if len(row["category"] or ()) >= level else None for row in side]
              for side in sides),
        )
        for level in range(1, depth + 1)
    ]  # fmt: skip
    known = [[dict(attribute_pairs(row)) for row in side] for side in sides]
    for name in sorted({name for row in known[0] for name in row}):
        asked.append(labels(f"attribute_{name}", *([row.get(name) for row in side] for side in known)))
    return [question for question in asked if question is not None]


@dataclass(frozen=True)
class Facets:
    """What is read from the vectors of complete items.

    Attributes:
        labels: categories and attributes.
        price: log(1 + price) of the training and of the test items, float64 (T) and (N), NaN where unknown.
    """

    labels: list[Labels]
    price: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> Facets:
        """Of ITEMS rows as Python values."""
        price = [np.array([row["price"] for row in side], dtype=np.float64) for side in (train, test)]
        return cls(questions(train, test), (np.log1p(price[0]), np.log1p(price[1])))


def remembered(
    facets: Facets, train_TD: np.ndarray, test_ND: np.ndarray, split: str, prefix: str = "encoder"
) -> Iterator[Measurement]:
    """Read every facet from frozen vectors of complete items by a linear model.

    Args:
        facets: of the training and the test items.
        train_TD, test_ND: float32, zeros where the encoder cannot encode an item.
        split: description of the test items.
        prefix: first part of the names.

    Yields:
        ``prefix/facets/<name>/accuracy`` of a linear classifier for each category level and attribute, beside
        ``prefix/chance/facets/<name>/accuracy`` of always answering the commonest class; their mean
        ``prefix/facets/accuracy``; and ``prefix/facets/price/r2``, the share of the prices' variance that is linear
        in the vectors.
    """
    there_T, there_N = train_TD.any(axis=1), test_ND.any(axis=1)
    found: list[Measurement] = []
    for question in facets.labels:
        learn, asked = (question.train >= 0) & there_T, (question.test >= 0) & there_N
        seen, truth = question.train[learn], question.test[asked]
        classes = len(question.classes)
        if not len(truth) or len(np.unique(seen)) < classes:
            continue
        probe = LinearProbe.fit(train_TD[learn], seen, classes)
        hit = float(np.mean(probe.predict(test_ND[asked]) == truth))
        usual = float(np.mean(truth == np.bincount(seen).argmax()))
        name = f"facets/{question.name.removeprefix('attribute_')}/accuracy"
        found.append(Measurement(f"{prefix}/{name}", hit, len(truth), split))
        yield from (found[-1], Measurement(f"{prefix}/chance/{name}", usual, len(truth), split))
    if found:
        mean = float(np.mean([one.value for one in found]))
        yield Measurement(f"{prefix}/facets/accuracy", mean, len(found), split)
    learn, asked = (np.isfinite(side) for side in facets.price)
    learn, asked = learn & there_T, asked & there_N
    price_T, price_N = facets.price[0][learn], facets.price[1][asked]
    if len(price_T) > 1 and len(price_N) > 1 and np.ptp(price_T) > 0 and np.ptp(price_N) > 0:
        share = linear_share(train_TD[learn], price_T[:, None], test_ND[asked], price_N[:, None])
        yield Measurement(f"{prefix}/facets/price/r2", share, len(price_N), split)


def linear_share(
    train_TD: np.ndarray, target_TQ: np.ndarray, test_ND: np.ndarray, target_NQ: np.ndarray
) -> float:
    """The share of the targets' variance over the test items that ridge regression reads from their vectors.

    1: the targets are linear in the vectors; 0: the vectors say no more than the targets' means; below 0: less.

    Args:
        train_TD, test_ND: float32.
        target_TQ, target_NQ: float64; targets of larger variance count more.
    """
    centre = train_TD.mean(axis=0)
    scale = max(float(np.mean(np.sum((train_TD - centre) ** 2, axis=1))), 1e-12) ** -0.5
    ridge = RidgeCV(PENALTIES * len(train_TD) / train_TD.shape[1])
    ridge.fit((train_TD - centre) * scale, target_TQ)
    left = target_NQ - ridge.predict((test_ND - centre) * scale).reshape(target_NQ.shape)
    spread = target_NQ - target_NQ.mean(axis=0)
    return float(1 - np.square(left).sum() / np.square(spread).sum())


@dataclass(frozen=True)
class Tastes:
    """How much every user of a simulated shop likes every item, in log-odds, by where the taste shows.

    Attributes:
        item_ids: int64 (M), ascending.
        likes: "pixels", "words", "both" or "behaviour" -> float32 (M, U); only what some user cares for.
    """

    item_ids: np.ndarray
    likes: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, judge: Judge) -> Tastes:
        """From the truth."""
        world, by_id = judge.world, np.argsort(judge.items)
        properties = world.catalogue.properties()[by_id]
        likes = {}
        for where, names in SHOWS.items():
            columns = np.concatenate([_columns(name) for name in names])
            liked = properties[:, columns] @ world.shoppers.interest[:, columns].T
            if np.ptp(liked) > 0:
                likes[where] = liked
        return cls(judge.items[by_id], likes)

    def linear(
        self,
        vectors_MD: np.ndarray,
        learn: np.ndarray,
        asked: np.ndarray,
        split: str,
        prefix: str = "encoder",
    ) -> Iterator[Measurement]:
        """The share of the tastes' variance over unseen items that is linear in the vectors.

        Args:
            vectors_MD: of the items in ``item_ids``, float32; zeros: no vector.
            learn, asked: bool (M), training and test items.
            split: description of the test items.
            prefix: first part of the names.

        Yields:
            ``prefix/taste/<where>/linear`` for tastes that show in pixels, in words, in both, in behaviour only; and
            ``prefix/taste/content/linear`` for the sum of the first three, all that an encoder can know. n = items.
        """
        there = vectors_MD.any(axis=1)
        learn, asked = learn & there, asked & there
        if learn.sum() < 2 or asked.sum() < 2:
            return
        content = [self.likes[where] for where in CONTENT if where in self.likes]
        tastes = {**self.likes, **({"content": np.sum(content, axis=0)} if content else {})}
        for where, liked in tastes.items():
            share = linear_share(vectors_MD[learn], liked[learn], vectors_MD[asked], liked[asked])
            yield Measurement(f"{prefix}/taste/{where}/linear", share, int(asked.sum()), split)


def _columns(name: str) -> np.ndarray:
    """The numbers of an interest that belong to a facet or a trait."""
    if name in FACETS:
        return FACET_START[name] + np.arange(len(FACETS[name]))
    return np.array([WORDS + TRAITS.index(name)])


def reduced(rows: Any, width: int) -> Callable[[Any], np.ndarray]:
    """A singular value decomposition of rows, which gives vectors of at most ``width`` numbers.

    Args:
        rows: float32 (M, V), scipy's csr_array or an array, of the items that it learns from.
        width: numbers to keep.

    Returns:
        From rows (n, V) to float32 (n, at most ``width``), unit rows; zeros for rows of zeros.
    """
    svd = TruncatedSVD(min(width, min(rows.shape) - 1), random_state=0).fit(rows)

    def project(asked: Any) -> np.ndarray:
        vectors = svd.transform(asked)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(norm > 1e-6, norm, np.inf)).astype(np.float32)

    return project
