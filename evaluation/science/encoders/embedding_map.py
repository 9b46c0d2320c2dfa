"""Maps of item vectors: exact t-SNE (van der Maaten and Hinton 2008), for a few thousand points.

Shapes: N items, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.encoder_tasks import Labels

NEIGHBOURS = 10  # nearest neighbours whose category is compared with the item's
COLOURED = 7  # categories with their own colour
PERPLEXITY = 30.0  # the paper uses 5 to 50
STEPS, EXAGGERATED, EXAGGERATION = 1000, 250, 12.0
SPREAD = 1e-4  # deviation of the initial positions: small, so that the result depends on the gradient


@dataclass(frozen=True)
class Map:
    """Items on a plane, coloured by category.

    Attributes:
        name: name of the encoder.
        points: (x, y, category) with x, y in 0..1 and the category's index in ``categories``.
        categories: the most frequent categories; points of all others have the index after the last.
        agreement: fraction of nearest neighbours by vector that have the item's category, and the same for random
            items.
    """

    name: str
    points: list[tuple[float, float, int]]
    categories: list[str]
    agreement: tuple[float, float]

    @property
    def others(self) -> bool:
        """Whether there are points of other categories."""
        return any(code == len(self.categories) for _, _, code in self.points)


def embedding_map(name: str, vectors_ND: np.ndarray, question: Labels) -> Map:
    """A t-SNE map of the pool, coloured by category.

    Args:
        name: name of the encoder.
        vectors_ND: float32, unit rows.
        question: the category of each item.
    """
    label = question.test
    known = label >= 0
    counted = np.bincount(label[known], minlength=len(question.classes))
    commonest = np.argsort(-counted, kind="stable")[:COLOURED]
    colour = {int(code): place for place, code in enumerate(commonest)}
    place_N2 = tsne(vectors_ND)
    points = [
        (float(x), float(y), colour.get(int(code), len(commonest)))
        for (x, y), code in zip(place_N2, label, strict=True)
    ]
    score = vectors_ND[known] @ vectors_ND[known].T
    np.fill_diagonal(score, -np.inf)
    nearest = np.argsort(-score, axis=1)[:, :NEIGHBOURS]
    same = float((label[known][nearest] == label[known][:, None]).mean())
    items = int(known.sum())
    chance = float((counted * (counted - 1)).sum() / (items * (items - 1)))
    return Map(name, points, [question.classes[code] for code in commonest], (same, chance))


def tsne(vectors_ND: np.ndarray, perplexity: float = PERPLEXITY, steps: int = STEPS) -> np.ndarray:
    """t-SNE positions of vectors; deterministic.

    Minimises KL(P || Q) by gradient descent with momentum: P from ``affinities`` made symmetric, Q from the Student t
    kernel on the plane (§3 of the paper), with adaptive step sizes (Jacobs 1988). Starts from the first two principal
    components; the learning rate is N / EXAGGERATION / 4, at least 50 (Belkina et al. 2019).

    Args:
        vectors_ND: float, more than three rows.
        perplexity: lowered to (N - 1) / 3 for few items.
        steps: steps of gradient descent.

    Returns:
        float64 (N, 2) in 0..1; the longer side fills the interval.
    """
    count = len(vectors_ND)
    near = affinities(vectors_ND, min(perplexity, (count - 1) / 3))
    near = (near + near.T) / (2 * count)
    # In double precision: with single precision the minimum found depended on the processor's rounding.
    middle = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0)
    plane = np.linalg.svd(middle, full_matrices=False)[0][:, :2]
    plane *= np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])  # otherwise the sign is arbitrary
    place = SPREAD * plane / plane.std(axis=0)
    speed, gain = np.zeros_like(place), np.ones_like(place)
    rate = max(count / EXAGGERATION / 4, 50.0)
    for step in range(steps):
        close = 1 / (1 + squared_distances(place))
        np.fill_diagonal(close, 0)
        pull = near * (EXAGGERATION if step < EXAGGERATED else 1.0)
        force = (pull - close / close.sum()) * close
        gradient = 4 * (force.sum(axis=1)[:, None] * place - force @ place)
        gain = np.where(speed * gradient < 0, gain + 0.2, gain * 0.8).clip(0.01)
        speed = (0.5 if step < EXAGGERATED else 0.8) * speed - rate * gain * gradient
        place = place + speed
    place = place - place.min(axis=0)
    return place / place.max()


def affinities(vectors_ND: np.ndarray, perplexity: float) -> np.ndarray:
    """p(j | i): Gaussian similarities of item i to all others, with the width that gives ``perplexity``.

    Each row's precision is found by bisection, so that 2 to the power of the row's entropy in bits is ``perplexity``.

    Returns:
        float64 (N, N), rows add up to 1, the diagonal is 0.
    """
    distance = squared_distances(vectors_ND.astype(np.float64))
    np.fill_diagonal(distance, np.inf)
    distance -= distance.min(axis=1, keepdims=True)
    low, high = np.zeros(len(distance)), np.full(len(distance), np.inf)
    precision = np.ones(len(distance))
    for _ in range(64):
        weight = np.exp(-distance * precision[:, None])
        probability = weight / weight.sum(axis=1, keepdims=True)
        entropy = -np.sum(probability * np.log(np.maximum(probability, 1e-300)), axis=1)
        flat = entropy > np.log(perplexity)
        low, high = np.where(flat, precision, low), np.where(flat, high, precision)
        precision = np.where(np.isinf(high), 2 * precision, (low + np.where(np.isinf(high), 0, high)) / 2)
    return probability


def squared_distances(vectors_ND: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, N), never negative."""
    square = np.sum(vectors_ND**2, axis=1)
    return np.maximum(square[:, None] + square[None] - 2 * vectors_ND @ vectors_ND.T, 0)
