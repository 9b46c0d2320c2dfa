"""A generated click log whose best possible AUC is known, as one parquet file that every library can read.

A user likes a few categories and mostly takes items of these. A shown item is clicked by the mean of its five largest
cosines with the behaviours, in a latent space that no library is shown, and by its popularity. As the probability of
each click is known, so is the AUC of the best scorer (Bayes); how near a model comes shows what it learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.auc import auc

LATENT, LIKED, NEAREST = 16, 3, 5  # width of the latent space; categories a user likes; cosines that decide
LOYAL, AIMED = 0.8, 0.4  # share of the behaviours, and of the shown items, that are of a liked category
LIKENESS, POPULARITY, OFFSET = 0.9, 0.5, -2.4  # of the log-odds of a click
PARTS = {"train": 10, "valid": 1, "test": 2}  # tenths of the requests to train on


@dataclass(frozen=True)
class Impressions:
    """What to train on, to choose learning rates by, and to be examined by.

    Attributes:
        train, valid, test: one row per impression, those of a request together: request_id, user_id, item_id and
            category int64, ids from 1; history list of int64, oldest first; label float32.
        users, items, categories: how many there are.
        longest: most behaviours of a history.
        best: AUC on ``test`` of the probabilities that the clicks were drawn with.
    """

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    users: int
    items: int
    categories: int
    longest: int
    best: float


def write_impressions(path: Path, made: pa.Table) -> None:
    """Write the impressions as parquet, in the order of requests."""
    pq.write_table(made, path, compression="lz4", row_group_size=1 << 16)


def generate(
    requests: int, shown: int, users: int, items: int, categories: int, longest: int, seed: int = 0
) -> tuple[pa.Table, np.ndarray]:
    """Draw a log.

    Args:
        requests: how many requests.
        shown: impressions of each.
        users, items, categories: how many there are.
        longest: behaviours per request are drawn evenly from a tenth of it up to it.
        seed: of everything.

    Returns:
        one row per impression as of ``Impressions``, and the probability of its click, float64.
    """
    draw = np.random.default_rng(seed)
    category = draw.integers(0, categories, items)
    centre = _unit(draw.normal(size=(categories, LATENT)))
    latent = _unit(centre[category] + 0.2 * draw.normal(size=(items, LATENT)))
    weight = 1 / (1 + draw.permutation(items)) ** 0.7
    shelves = _Shelves(category, weight)
    liked = draw.integers(0, categories, (users, LIKED))
    user = draw.integers(0, users, requests)
    counts = draw.integers(max(longest // 10, 1), longest + 1, requests)
    owner = np.repeat(user, counts)
    history = shelves.draw(draw, liked[owner], LOYAL)
    item = shelves.draw(draw, liked[np.repeat(user, shown)], AIMED).reshape(requests, shown)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    likeness = np.empty((requests, shown))
    for one in range(requests):
        cosine = latent[item[one]] @ latent[history[offsets[one] : offsets[one + 1]]].T
        likeness[one] = np.sort(cosine, axis=1)[:, -NEAREST:].mean(axis=1)
    popularity = np.log(weight[item])
    popularity = (popularity - popularity.mean()) / popularity.std()
    odds = OFFSET + LIKENESS * (likeness - likeness.mean()) / likeness.std() + POPULARITY * popularity
    probability = (1 / (1 + np.exp(-odds))).ravel()
    each = np.repeat(np.arange(requests), shown)
    taken = np.repeat(counts, shown)
    starts = np.concatenate([[0], np.cumsum(taken)])
    place = np.repeat(offsets[each] - starts[:-1], taken) + np.arange(starts[-1])
    made = pa.table(
        {
            "request_id": each,
            "user_id": user[each] + 1,
            "item_id": item.ravel() + 1,
            "category": category[item.ravel()] + 1,
            "history": pa.ListArray.from_arrays(starts.astype(np.int32), history[place] + 1),
            "label": (draw.random(len(probability)) < probability).astype(np.float32),
        }
    )
    return made, probability


def read_impressions(path: Path, probability: np.ndarray, shown: int, **sizes: int) -> Impressions:
    """Read what ``write_impressions`` wrote, cut into parts; the other arguments as of ``generate``."""
    made = pq.read_table(path)
    requests = len(made) // shown
    ends = np.cumsum(list(PARTS.values())) * requests // sum(PARTS.values()) * shown
    train, valid, test = (
        made.slice(start, stop - start).combine_chunks()
        for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    )
    best = auc(test["label"].to_numpy(), probability[ends[1] : ends[2]])
    return Impressions(train, valid, test, best=best, **sizes)


class _Shelves:
    """Draws items of a category, or of all, by their weight."""

    def __init__(self, category: np.ndarray, weight: np.ndarray) -> None:
        self.order = np.argsort(category, kind="stable")
        self.bounds = np.searchsorted(category[self.order], np.arange(category.max() + 2))
        self.upto = np.concatenate([[0], np.cumsum(weight[self.order])])

    def draw(self, draw: np.random.Generator, liked: np.ndarray, share: float) -> np.ndarray:
        """An item for each row of ``liked``: with probability ``share`` of one of its categories, else of any."""
        one = liked[np.arange(len(liked)), draw.integers(0, liked.shape[1], len(liked))]
        aimed = draw.random(len(liked)) < share
        low = np.where(aimed, self.upto[self.bounds[one]], 0)
        high = np.where(aimed, self.upto[self.bounds[one + 1]], self.upto[-1])
        at = np.searchsorted(self.upto, low + draw.random(len(liked)) * (high - low), side="right") - 1
        return self.order[at.clip(0, len(self.order) - 1)]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
