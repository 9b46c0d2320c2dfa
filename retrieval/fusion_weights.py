"""Learn how much each place in each source's order counts in the fused one.

The weights are the likeliest given what became of items: those that were taken, against others that the sources
answered; or, where the log says what was shown, those that were liked against those that were passed over, given the
chance of a like at their place. What was shown is compared only with what was shown, so that a source gains nothing
by proposing what the shop would have shown anyway.
Never below the best source: requests that were not learned from decide between the fused order and that source alone.

Legend: R requests, S sources, K constants, E answered (request, item) pairs, T known rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import minimize
from scipy.special import expit, logit

from dataset.log import pairs
from retrieval.fusion import CONSTANTS, EQUAL, USUAL, Weights, curves, entries
from retrieval.jagged import Retrieved
from retrieval.sources import CANDIDATES

OTHERS = 200  # answered items that were not taken, on average of a request, that are learned from
RIDGE = 1e-3  # of squared weights, beside the loss per like
LEAST = 0.01  # of USUAL, that every source keeps: where the others have no answer, its order holds
ABSENT = -1


@dataclass(frozen=True)
class Known:
    """What became of T items of R requests.

    Attributes:
        request: int64 (T), row of the request.
        item_id: int64 (T), distinct within a request.
        liked: bool (T).
        expected: float32 (T), the chance of a like at its place, whatever the item; None: the log does not say what
            was passed over, and all rows are liked.
    """

    request: np.ndarray
    item_id: np.ndarray
    liked: np.ndarray
    expected: np.ndarray | None = None


def learn_weights(
    answers: Mapping[str, Retrieved], known: Known, seed: int
) -> tuple[Weights, dict[str, float]]:
    """The weights of the sources, and how well each order does.

    Args:
        answers: source -> its answers to the same R requests.
        known: what became of some items.
        seed: of the halves and of what is drawn.

    Returns:
        The weights; and of every source alone, and of the order ``fused`` on halves of the requests that it was not
        learned from, the likes among the first CANDIDATES, each counted 1 / log2(1 + place), over the number of likes
        (NDCG); or, where the log says what was shown, over the likes to be expected of the same rows, counted alike,
        those that are not among the first as the one after them.
        Without a like among the answers: EQUAL and nothing.
    """
    names, table = list(answers), _Table.of(answers, known)
    if not known.liked[table.row >= 0].any():
        return EQUAL, {}
    alone = np.eye(len(names))[:, :, None] * np.array(USUAL)
    every = np.ones(len(known.request), dtype=bool)
    placed = [table.places(one) for one in alone]
    figures = {name: table.worth(one, every) for name, one in zip(names, placed, strict=True)}
    half = np.random.default_rng(seed).permutation(len(answers[names[0]])) % 2
    fused, best = [], []
    for own in (half[known.request] == 0, half[known.request] == 1):
        fused.append(table.worth(table.places(table.likeliest(own, seed)), ~own))
        first = int(np.argmax([table.worth(one, own) for one in placed]))
        best.append(table.worth(placed[first], ~own))
    figures["fused"] = float(np.mean(fused))
    if figures["fused"] >= np.mean(best):
        weights = table.likeliest(every, seed)
    else:
        weights = alone[int(np.argmax([figures[name] for name in names]))]
    kept = weights + LEAST * np.array(USUAL)
    return Weights(dict(zip(names, kept.tolist(), strict=True))), figures


@dataclass(frozen=True)
class _Table:
    """Every answered (request, item) pair, in that order.

    Attributes:
        request: int64 (E).
        place: int32 (E, S), in each source's order, from 0; ABSENT.
        known: T rows.
        row: int64 (T), of each known pair among the E; ABSENT.
    """

    request: np.ndarray
    place: np.ndarray
    known: Known
    row: np.ndarray

    @classmethod
    def of(cls, answers: Mapping[str, Retrieved], known: Known) -> _Table:
        request, item_id, entry, source, at = entries(list(answers.values()))
        place = np.full((len(request), len(answers)), ABSENT, dtype=np.int32)
        place[entry, source] = at
        pair = pairs(np.concatenate([request, known.request]), np.concatenate([item_id, known.item_id]))
        row = pc.index_in(pa.array(pair[len(request) :]), value_set=pa.array(pair[: len(request)]))
        return cls(request, place, known, row.fill_null(ABSENT).to_numpy().astype(np.int64))

    def features(self, rows: np.ndarray) -> np.ndarray:
        """The curves of the sources at these pairs, float32 (n, S * K), 0 where a source has no answer."""
        out = np.zeros((len(rows), self.place.shape[1], len(CONSTANTS)), dtype=np.float32)
        place = self.place[rows]
        there = (place >= 0) & (rows >= 0)[:, None]
        out[there] = curves(place[there])
        return out.reshape(len(rows), -1)

    def likeliest(self, own: np.ndarray, seed: int) -> np.ndarray:
        """Logistic regression on the known rows ``own`` bool (T): weights that are not negative, float64 [S, K]."""
        row, liked, offset = self.row[own], self.known.liked[own], 0.0
        if self.known.expected is None:
            row, liked = self._among_others(row, own, seed)
        else:
            offset = logit(self.known.expected[own].astype(np.float64))
        x, y = self.features(row), liked.astype(np.float64)
        likes = max(y.sum(), 1.0)

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            z = x @ weights[:-1].astype(np.float32) + weights[-1] + offset
            off = expit(z) - y
            penalty = RIDGE * weights[:-1]
            slope = np.append(x.T @ off.astype(np.float32) / likes + 2 * penalty, off.sum() / likes)
            return float((np.logaddexp(0, z) - y * z).sum() / likes + penalty @ weights[:-1]), slope

        width = x.shape[1]
        bounds = [(0.0, None)] * width + [(None, None)]
        found = minimize(loss, np.zeros(width + 1), jac=True, method="L-BFGS-B", bounds=bounds)
        return np.asarray(found.x[:-1], dtype=np.float64).reshape(-1, len(CONSTANTS))

    def _among_others(self, row: np.ndarray, own: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that were taken, and some of the same requests that were not; which were, bool."""
        row = row[row >= 0]
        asked = np.zeros(int(self.request.max()) + 1, dtype=bool)
        asked[self.known.request[own]] = True
        other = asked[self.request]
        other[self.row[self.row >= 0]] = False
        others = np.flatnonzero(other)
        most = min(OTHERS * int(asked.sum()), len(others))
        drawn = np.random.default_rng((seed, 1)).choice(others, most, replace=False)
        return np.append(row, drawn), np.append(np.ones(len(row), bool), np.zeros(most, bool))

    def places(self, weights: np.ndarray) -> np.ndarray:
        """The place of each known row in its request's order by these weights, int64 (T); at most CANDIDATES."""
        score = np.zeros(len(self.request), dtype=np.float32)
        for place, own in zip(self.place.T, weights, strict=True):
            if own.any():
                worth = np.append(curves(np.arange(place.max(initial=0) + 1)) @ own, 0)  # the last: of ABSENT
                score += worth[place].astype(np.float32)
        place = np.full(len(self.row), CANDIDATES)
        firsts, lasts = np.searchsorted(self.request, [self.known.request, self.known.request + 1])
        for one in np.flatnonzero(self.row >= 0):
            own, first, last = self.row[one], firsts[one], lasts[one]
            before = np.count_nonzero(score[first:own] >= score[own])
            if score[own] > 0:
                place[one] = min(before + np.count_nonzero(score[own:last] > score[own]), CANDIDATES)
        return place

    def worth(self, place: np.ndarray, rows: np.ndarray) -> float:
        """How well an order by ``places`` does on the known ``rows`` bool (T); see ``learn_weights``."""
        gain, expected = 1 / np.log2(2 + place[rows]), self.known.expected
        liked = self.known.liked[rows]
        if (
            expected is not None
        ):  # not among the first: as the one after them, so that long lists lose nothing
            return float(gain @ liked / (gain @ expected[rows])) if len(gain) else 0.0
        listed = gain[place[rows] < CANDIDATES]  # all were taken
        return float(listed.sum() / len(liked)) if len(liked) else 0.0
