"""What the learned system must beat: popularity, chance, item-kNN, TF-IDF text, colour, and their tuned mix.

A baseline scores every candidate for every request. Scores are float32 of shape (R, N) over the N candidates in
ascending order of item id; larger is better, and a candidate with ``-inf`` is never recommended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch

from dataset.jagged import owners
from dataset.log import distinct
from evaluation.content import SparseRows
from evaluation.metrics import PADDING, hits, recall_at

STEPS = 5  # of the grid of a mix's weights
CHUNK_FLOATS = 16_000_000  # floats of one dense block: about 64 MB


@dataclass(frozen=True)
class Requests:
    """Input of the baselines: the items in the history of each request's user, oldest first.

    Attributes:
        offsets: int64 of shape (R + 1); request r owns history[offsets[r]:offsets[r + 1]].
        history: int64 item ids.
    """

    offsets: np.ndarray
    history: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, start: int, stop: int) -> Requests:
        """The requests start .. stop - 1."""
        offsets = self.offsets[start : stop + 1]
        return Requests(offsets - offsets[0], self.history[offsets[0] : offsets[-1]])


class Baseline(Protocol):
    """Scores all candidates for some requests."""

    candidates: np.ndarray  # int64 item ids of shape (N), ascending

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 of shape (R, N)."""
        ...


class Popularity:
    """Recommends the items with most positive events in the log to every user; items without any are never listed."""

    def __init__(self, candidates: np.ndarray, log_items: np.ndarray) -> None:
        self.candidates = candidates
        row = _rows(candidates, log_items)
        count = np.bincount(row[row >= 0], minlength=len(candidates))
        self._score = np.where(count > 0, count, -np.inf).astype(np.float32)

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 of shape (R, N): the item's number of events, the same for every request."""
        return np.broadcast_to(self._score, (len(requests), len(self.candidates)))


class Chance:
    """Recommends a random order to every user: the lower bound of every metric."""

    def __init__(self, candidates: np.ndarray, seed: int = 0) -> None:
        self.candidates = candidates
        self._generator = np.random.default_rng(seed)

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 of shape (R, N), uniform in [0, 1)."""
        return self._generator.random((len(requests), len(self.candidates)), dtype=np.float32)


class Repeats:
    """Recommends what the user took before, most often first, of equals the newest; nothing else is listed."""

    def __init__(self, candidates: np.ndarray) -> None:
        self.candidates = candidates

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 of shape (R, N): how often, and below 1 how recently."""
        out = np.full((len(requests), len(self.candidates)), -np.inf, dtype=np.float32)
        row, column = owners(requests.offsets), _rows(self.candidates, requests.history)
        place = (1 + np.arange(len(row)) - requests.offsets[row]) / (1 + np.diff(requests.offsets)[row])
        row, column, place = row[column >= 0], column[column >= 0], place[column >= 0]
        out[row, column] = 0
        np.add.at(out, (row, column), 1)
        newest = np.zeros_like(out)
        newest[row, column] = place  # the last one of a pair is the newest
        return out + newest


class Similarity:
    """Sum of the cosines between the candidate and the distinct items of the user's history.

    With rows of buyers this is the textbook item-kNN (Sarwar et al. 2001), with rows of TF-IDF terms or of colours
    the content baseline of that name. As the rows of a history can be summed first, many requests need one sparse
    product with the candidates instead of an item-by-item matrix.

    Args:
        candidates: int64 item ids of shape (N), ascending.
        item_ids: int64 of shape (M), ascending: the items that have a row; others in a history are ignored.
        rows: M unit rows.
    """

    def __init__(self, candidates: np.ndarray, item_ids: np.ndarray, rows: SparseRows | np.ndarray) -> None:
        self.candidates = candidates
        self._item_ids = item_ids
        self._rows = rows
        row = _rows(item_ids, candidates)
        self._width = rows.width if isinstance(rows, SparseRows) else rows.shape[1]
        self._candidate_rows = _tensor(rows, row)

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 of shape (R, N); ``-inf`` where the history has nothing in common with the candidate."""
        out = np.empty((len(requests), len(self.candidates)), dtype=np.float32)
        step = max(1, CHUNK_FLOATS // max(self._width, len(self.candidates)))
        for start in range(0, len(requests), step):
            part = requests.take(start, start + step)
            out[start : start + step] = (self._candidate_rows @ self._profiles(part)).T.numpy()
        out[out <= 0] = -np.inf
        return out

    def _profiles(self, requests: Requests) -> torch.Tensor:
        """Sum of the rows of each request's distinct items, one request per column: shape (F, R)."""
        count, request = len(requests), owners(requests.offsets)
        row = _rows(self._item_ids, requests.history)
        pair = distinct(request[row >= 0] * len(self._item_ids) + row[row >= 0])
        request, row = pair // max(len(self._item_ids), 1), pair % max(len(self._item_ids), 1)
        if isinstance(self._rows, SparseRows):
            taken = self._rows.take(row)
            cell = taken.column * count + np.repeat(request, np.diff(taken.offsets))
            summed = np.bincount(cell, weights=taken.value, minlength=self._width * count)
            return torch.from_numpy(summed.astype(np.float32).reshape(self._width, count))
        profile = torch.zeros(count, self._width)
        return profile.index_add_(0, torch.from_numpy(request), torch.from_numpy(self._rows[row])).T


class Mix:
    """Weighted sum of baselines after standardising each request's scores to mean 0 and deviation 1.

    ``-inf`` counts as 0 before standardising; a candidate with ``-inf`` in all parts keeps it.
    """

    def __init__(self, parts: Mapping[str, Baseline], weights: Mapping[str, float]) -> None:
        if set(parts) != set(weights):
            raise ValueError(f"expected a weight for each of {sorted(parts)}, found {sorted(weights)}")
        self.parts = dict(parts)
        self.weights = dict(weights)
        self.candidates = next(iter(self.parts.values())).candidates

    def scores(self, requests: Requests) -> np.ndarray:
        """float32 of shape (R, N)."""
        return _weighted([part.scores(requests) for part in self.parts.values()], list(self.weights.values()))


def tune_mix(
    parts: Mapping[str, Baseline],
    requests: Requests,
    offsets: np.ndarray,
    relevant: np.ndarray,
    k: int = 20,
    repeats: bool = True,
) -> Mix:
    """The mix whose weights (multiples of 1 / STEPS that sum to 1) have the best recall@k on these requests.

    Args:
        parts: the baselines to mix.
        requests: requests reserved for tuning, never those that are reported.
        offsets: int64 of shape (R + 1), into ``relevant``.
        relevant: int64 ids of the relevant items. A request without any says nothing: what was taken is gone by now.
        k: depth of the recall that is maximised; ties go to the first weights in grid order.
        repeats: as in ``rank``; use the same value for what is reported.
    """
    grid = [w for w in product(range(STEPS + 1), repeat=len(parts)) if sum(w) == STEPS]
    candidates = next(iter(parts.values())).candidates
    total = np.zeros(len(grid))
    for start, stop in blocks(len(requests), len(candidates)):
        block = requests.take(start, stop)
        scores = [_scaled(part.scores(block)) for part in parts.values()]
        own = offsets[start : stop + 1] - offsets[start]
        ids = relevant[offsets[start] : offsets[stop]]
        count = np.diff(own)
        asked = count > 0
        for place, weights in enumerate(grid):
            ranked = top_k(_sum(scores, weights), candidates, k, None if repeats else block)
            total[place] += recall_at(hits(ranked, own, ids)[asked], count[asked], k).sum()
    best = grid[int(np.argmax(total))]
    return Mix(parts, {name: weight / STEPS for name, weight in zip(parts, best, strict=True)})


@dataclass(frozen=True)
class Lists:
    """The best candidates of R requests, int64 item ids (R, k), -1 after the end of a list.

    Attributes:
        new: without what the user acted on before.
        any: with them.
    """

    new: np.ndarray
    any: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, candidates: np.ndarray, k: int, history: Requests) -> Lists:
        """By the scores of candidates, float32 (R, N), as in ``top_k``."""
        return cls(top_k(scores, candidates, k, history), top_k(scores, candidates, k))

    def answers(self, repeats: bool) -> np.ndarray:
        """Those that the service gives, which proposes what a user took before or does not."""
        return self.any if repeats else self.new

    @classmethod
    def joined(cls, parts: Sequence[Lists]) -> Lists:
        """The lists of all requests, from those of some each."""
        return cls(np.concatenate([one.new for one in parts]), np.concatenate([one.any for one in parts]))


def rank(baseline: Baseline, requests: Requests, k: int, repeats: bool = True) -> np.ndarray:
    """The k best candidates of each request, as ``Lists`` has them; int64 item ids (R, k)."""
    return lists(baseline, requests, k).answers(repeats)


def lists(baseline: Baseline, requests: Requests, k: int, left_out: Requests | None = None) -> Lists:
    """The k best candidates of each request, by descending score, then ascending id.

    ``left_out``: what ``Lists.new`` is without, where it is more than the histories.
    """
    left_out = requests if left_out is None else left_out
    none = Lists(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.int64))
    found = [none]
    for start, stop in blocks(len(requests), len(baseline.candidates)):
        block = requests.take(start, stop)
        scores = baseline.scores(block)
        found.append(Lists.of(scores, baseline.candidates, k, left_out.take(start, stop)))
    return Lists.joined(found)


def top_k(scores: np.ndarray, candidates: np.ndarray, k: int, exclude: Requests | None = None) -> np.ndarray:
    """Item ids of the k best scores of each row, by score descending then id ascending.

    Args:
        scores: float32 of shape (R, N); ``-inf`` is never listed.
        candidates: int64 item ids of shape (N), ascending.
        k: length of the lists.
        exclude: requests whose history must not be listed.

    Returns:
        int64 of shape (R, k), -1 after the end of a list.
    """
    if exclude is not None:
        scores = np.array(scores)
        row = owners(exclude.offsets)
        column = _rows(candidates, exclude.history)
        scores[row[column >= 0], column[column >= 0]] = -np.inf
    depth = min(k, scores.shape[1])
    out = np.full((len(scores), k), PADDING, dtype=np.int64)
    if depth == 0 or len(scores) == 0:
        return out
    worst = np.partition(scores, scores.shape[1] - depth, axis=1)[:, -depth, None]
    above = scores > worst
    tied = scores == worst
    wanted = depth - above.sum(axis=1, keepdims=True)
    column = np.nonzero(above | (tied & (np.cumsum(tied, axis=1) <= wanted)))[1].reshape(len(scores), depth)
    value = np.take_along_axis(scores, column, axis=1)
    order = np.argsort(-value, axis=1, kind="stable")  # columns ascend, so equal scores keep ids ascending
    ids = candidates[np.take_along_axis(column, order, axis=1)]
    listed = np.take_along_axis(value, order, axis=1) > -np.inf
    out[:, :depth] = np.where(listed, ids, PADDING)
    return out


def blocks(requests: int, candidates: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the requests whose scores are in memory at once."""
    step = max(1, CHUNK_FLOATS // max(candidates, 1))
    for start in range(0, requests, step):
        yield start, min(start + step, requests)


def _rows(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row of each wanted id among the ascending ``ids``, -1 where unknown."""
    if len(ids) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    row = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[row] == wanted, row, -1)


def _tensor(rows: SparseRows | np.ndarray, wanted: np.ndarray) -> torch.Tensor:
    """The wanted rows (-1: a row of zeros) as a matrix to multiply with."""
    if isinstance(rows, SparseRows):
        taken = rows.take(wanted)
        entry = np.stack([owners(taken.offsets), taken.column])
        return torch.sparse_coo_tensor(
            torch.from_numpy(entry),
            torch.from_numpy(taken.value),
            size=(len(wanted), rows.width),
            is_coalesced=True,
            check_invariants=True,
        )
    return torch.from_numpy(np.where((wanted >= 0)[:, None], rows[wanted], 0).astype(np.float32))


def _scaled(scores: np.ndarray) -> np.ndarray:
    """Standardise each row to mean 0 and deviation 1, with -inf as 0; a constant row becomes 0."""
    finite = np.where(np.isfinite(scores), scores, np.float32(0))
    deviation = finite.std(axis=1, keepdims=True)
    return (finite - finite.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)


def _sum(scaled: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return np.sum([np.float32(weight) * one for weight, one in zip(weights, scaled, strict=True)], axis=0)


def _weighted(scores: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    mixed = _sum([_scaled(one) for one in scores], weights)
    mixed[~np.any([np.isfinite(one) for one in scores], axis=0)] = -np.inf
    return mixed
