"""A user's taste: what of an item's properties makes this user like it more than others do.

Bayesian regression of what the user made of everything they were shown on the properties of the items (a mixed model
with random effects per user, as GLMix, KDD 2016): skips count as well as likes, and what brand explains is not
explained again by words. Each property has two prior variances, of a lasting taste and of one that fades, learned
from the products of residuals of all users (Haseman and Elston, 1972).

Legend: R requests, C candidates, n candidates and H shown items of one request, S properties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from scipy.linalg import solve, solve_triangular
from scipy.optimize import nnls

from dataset.contracts import POSITIVE_CODES
from dataset.log import distinct
from retrieval.properties import Picture, Properties
from retrieval.requests import Requests
from retrieval.shown import NEVER, PRIOR, Shown, log_odds
from retrieval.similarities import FADE_US

MOST_SHOWN = 512  # the latest that a taste is inferred from
KEPT = 64  # tastes that were inferred last
WIDEST = 1.0  # variance of a taste, in squared log-odds, that is not surprising
LEARNED_USERS, LEARNED_SHOWN = 1_000, 256  # that variances are learned from
ANYTHING = "anything"  # the property that all items share: some users like more than others
COUNTS = ("taste_shown", "taste_rate", "taste_category_shown", "taste_category_rate")


@dataclass(frozen=True)
class Evidence:
    """What one user was shown before a moment, H rows.

    Attributes:
        item: int64 (H), rows of the properties.
        time_us: int64 (H).
        liked: bool (H), as known at the moment.
        expected: float32 (H).
    """

    item: np.ndarray
    time_us: np.ndarray
    liked: np.ndarray
    expected: np.ndarray

    def latest(self, count: int) -> Evidence:
        """The last rows."""
        return Evidence(*(one[-count:] for one in vars(self).values()))

    @property
    def weight(self) -> np.ndarray:
        """By how much a log-odd more would raise the expected chance, float32 (H)."""
        return self.expected * (1 - self.expected)

    @property
    def surprise(self) -> np.ndarray:
        """What was made of it against what was expected, in log-odds, float32 (H)."""
        return (self.liked - self.expected) / self.weight


@dataclass(frozen=True)
class Taste:
    """Infers tastes and judges candidates by them.

    Attributes:
        properties: of all items.
        shown: what every user was shown.
        lasting, fading: float32 (S), prior variances of each of ``of``.
        usual: share of what is shown that is liked.

    What was inferred last is kept: a request asks for its user's taste three times, of other candidates each time.
    """

    properties: Properties
    shown: Shown
    lasting: np.ndarray
    fading: np.ndarray
    usual: float
    _inferred: dict[bytes, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def fit(cls, properties: Properties, shown: Shown, learned: Shown) -> Taste:
        """Learn the variances.

        Args:
            properties: of all items.
            shown: what may be known of users at their requests.
            learned: what may be learned from before any request of the ranker.
        """
        liked = learned.liked_us < NEVER
        usual = float((liked.sum() + 1) / (len(liked) + 20))
        count = len(properties.fields) + len(properties.spaces) + 1
        empty = cls(properties, shown, np.zeros(count, np.float32), np.zeros(count, np.float32), usual)
        square, product = np.zeros((2 * count, 2 * count)), np.zeros(2 * count)
        for past in _drawn(properties, learned):
            alike = empty.alike(past.item, past.item)
            faded = _faded(past.time_us[:, None] - past.time_us)
            weight = np.outer(past.weight, past.weight)
            np.fill_diagonal(weight, 0)  # an item's surprise at itself is noise
            root = np.sqrt(weight).ravel()
            terms = np.concatenate([alike, alike * faded]).reshape(2 * count, -1) * root
            square += terms @ terms.T
            product += terms @ (np.outer(past.surprise, past.surprise).ravel() * root)
        variance = _least_squares(square, product).astype(np.float32)
        return cls(properties, shown, variance[:count], variance[count:], usual)

    def with_items(self, items: pa.Table, picture: Picture) -> Taste:
        """The same tastes for a catalogue with ITEMS rows added or replaced, as in ``Properties.with_items``."""
        return replace(self, properties=self.properties.with_items(items, picture))

    @property
    def of(self) -> tuple[str, ...]:
        """The S properties."""
        return (*self.properties.fields, *self.properties.spaces, ANYTHING)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns: the part of each property in the log-odds of a like, their sum, and counts."""
        return (
            *(f"match_taste_{name}" for name in self.of),
            "match_taste",
            *(f"match_{one}" for one in COUNTS),
        )

    def columns(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Every (request, candidate) pair judged by the request's taste, float32 (C, len(names)).

        Args:
            requests: R requests.
            item_id: int64 (C), grouped by request.
            offsets: int64 (R + 1).
        """
        out = np.zeros((len(item_id), len(self.names)), dtype=np.float32)
        width, rows = len(self.of), self.properties.rows(item_id)
        for r in range(len(requests)):
            mine = slice(offsets[r], offsets[r + 1])
            past = self.evidence(requests, r)
            out[mine, width + 1 :] = self._counts(past, rows[mine])
            known = rows[mine] >= 0
            if not len(past.item) or not known.any():
                continue
            parts = self.parts(past.latest(MOST_SHOWN), rows[mine][known], int(requests.time_us[r]))
            out[np.arange(mine.start, mine.stop)[known], :width] = parts
        out[:, width] = out[:, :width].sum(axis=1)
        return out

    def evidence(self, requests: Requests, r: int) -> Evidence:
        """All that is known about the user of a request: what the log says, then what they did since it ends."""
        time_us = int(requests.time_us[r])
        own = self.shown.before(int(requests.user_id[r]), time_us)
        history = requests.history
        did = slice(history.offsets[r], history.offsets[r + 1])
        since = history.time_us[did] > self.shown.end_us
        item = np.append(self.shown.item_id[own], history.item_id[did][since])
        usual = np.full(int(since.sum()), self.usual, np.float32)
        liked = np.isin(history.code[did][since], POSITIVE_CODES)
        row = self.properties.rows(item)
        past = Evidence(
            row,
            np.append(self.shown.available_us[own], history.time_us[did][since]),
            np.append(self.shown.liked_us[own] < time_us, liked),
            np.append(self.shown.expected[own], usual),
        )
        return past if (row >= 0).all() else Evidence(*(one[row >= 0] for one in vars(past).values()))

    def parts(self, past: Evidence, item: np.ndarray, time_us: int) -> np.ndarray:
        """The part of each property in a candidate's log-odds, float32 (n, S).

        Args:
            past: at least one row.
            item: int64 (n), rows of the properties.
            time_us: of the request.
        """
        weight = self._weight(past, time_us)
        out = np.empty((len(item), len(self.of)), dtype=np.float32)
        for number, codes in enumerate(self.properties.codes.T):
            out[:, number] = self._of_values(number, codes[past.item], codes[item], weight)
        for number, rows in enumerate(self.properties.spaces.values(), len(self.properties.fields)):
            wanted = self._mixed(number, weight @ rows[past.item])
            out[:, number] = rows[item] @ wanted
        out[:, -1] = self._mixed(-1, weight.sum(axis=1))
        return out

    def _weight(self, past: Evidence, time_us: int) -> np.ndarray:
        """What each of H items says of a lasting and of a fading taste, (2, H)."""
        key = b"".join([*(one.tobytes() for one in vars(past).values()), np.int64(time_us).tobytes()])
        found = self._inferred.get(key)
        if found is None:
            faded = _faded(past.time_us[:, None] - past.time_us)
            prior = self._prior(past.item, faded)
            prior[np.diag_indices(len(prior))] += 1 / past.weight
            lasting = solve(prior, past.surprise, assume_a="pos", overwrite_a=True, check_finite=False)
            found = np.stack([lasting, lasting * _faded(time_us - past.time_us)])
            if len(self._inferred) >= KEPT:
                self._inferred.clear()
            self._inferred[key] = found
        return found

    def alike(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """How alike items are in every property, float32 (S, len(left), len(right))."""
        out = np.ones((len(self.of), len(left), len(right)), dtype=np.float32)
        for number, codes in enumerate(self.properties.codes.T):
            out[number] = _same(codes[left], codes[right])
        for number, rows in enumerate(self.properties.spaces.values(), len(self.properties.fields)):
            out[number] = rows[left] @ rows[right].T
        return out

    def _prior(self, item: np.ndarray, faded: np.ndarray) -> np.ndarray:
        """Prior covariance of the user's log-odds of H items, float32 (H, H)."""
        out = self.lasting[-1] + self.fading[-1] * faded
        count = len(self.properties.fields)
        for number, codes in enumerate(self.properties.codes.T):
            if self.lasting[number] or self.fading[number]:
                out += _same(codes[item], codes[item]) * (self.lasting[number] + self.fading[number] * faded)
        for variance, time in ((self.lasting, None), (self.fading, faded)):
            parts = [
                rows[item] * np.sqrt(variance[number])
                for number, rows in enumerate(self.properties.spaces.values(), count)
                if variance[number]
            ]
            if parts:
                space = np.concatenate(parts, axis=1)
                out += space @ space.T if time is None else (space @ space.T) * time
        return out

    def _of_values(self, number: int, past: np.ndarray, item: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """What a field's values of candidates get from those of the past, float32 (n)."""
        values, place = np.unique(past, return_inverse=True)
        sums = np.stack([np.bincount(place, weights=one) for one in weight])
        found = np.searchsorted(values, item).clip(max=len(values) - 1)
        there = (values[found] == item) & (item >= 0)
        return np.where(there, self._mixed(number, sums)[found], 0)

    def _mixed(self, number: int, sums: np.ndarray) -> np.ndarray:
        mixed: np.ndarray = self.lasting[number] * sums[0] + self.fading[number] * sums[1]
        return mixed

    def _counts(self, past: Evidence, item: np.ndarray) -> np.ndarray:
        """How much the user was shown, and of the candidate's category; the smoothed log-odds of liking it."""
        path = self.properties.paths
        count = int(path.max(initial=0)) + 1
        shown = np.bincount(path[past.item], minlength=count)
        liked = np.bincount(path[past.item], weights=past.liked, minlength=count)
        out = np.empty((len(item), 4), dtype=np.float32)
        of_path = np.where(item >= 0, path[item], 0)
        for first, seen, good in (
            (0, shown.sum(), liked.sum()),
            (2, np.where(item >= 0, shown[of_path], 0), np.where(item >= 0, liked[of_path], 0)),
        ):
            out[:, first] = np.log1p(seen)
            out[:, first + 1] = log_odds((good + PRIOR * self.usual) / (seen + PRIOR))
        return out


def _same(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return ((left[:, None] == right) & (left >= 0)[:, None]).astype(np.float32)


def _faded(age_us: np.ndarray) -> np.ndarray:
    age = np.abs(age_us).astype(np.float32)  # exp is half of the cost in double precision
    faded: np.ndarray = np.exp(age * np.float32(-1 / FADE_US))
    return faded


def _drawn(properties: Properties, learned: Shown) -> Iterator[Evidence]:
    """The latest rows of users drawn at random."""
    users = distinct(learned.user_id)
    for user in np.sort(np.random.default_rng(0).permutation(users)[:LEARNED_USERS]):
        own = learned.of_user(int(user))
        row = properties.rows(learned.item_id[own])
        past = Evidence(row, learned.available_us[own], learned.liked_us[own] < NEVER, learned.expected[own])
        yield Evidence(*(one[row >= 0] for one in vars(past).values())).latest(LEARNED_SHOWN)


def _least_squares(square: np.ndarray, product: np.ndarray) -> np.ndarray:
    """The x >= 0 that is likeliest given terms @ terms.T and terms @ target, float64 (2 S).

    The error of each target is 1, so ``square`` is the information about x; 1 / WIDEST^2 is known of any beforehand.
    Without that, a variance of which the log says next to nothing (a value that two rows share) may be any number.
    """
    root = np.linalg.cholesky(square + np.eye(len(square)) / WIDEST**2)
    found: np.ndarray = nnls(root.T, solve_triangular(root, product, lower=True))[0]
    return found
