"""A user's taste: what of an item's properties makes this user like it more than others do.

Bayesian regression of what the user made of everything they were shown on the properties of the items (a mixed model
with random effects per user, as GLMix, KDD 2016): skips count as well as likes, and what brand explains is not
explained again by words. Each property has two prior variances, of a lasting taste and of one that fades: the
likeliest given what all users made of what they were shown (``retrieval.variances``). Looks, and vectors
beside or in place of them, are one space, of what they show beyond the fields (``retrieval.content``), in the
directions in which users differ (``retrieval.directions``).

Legend: R requests, C candidates, n candidates and H shown items of one request, S properties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from scipy.linalg import solve

from dataset.contracts import POSITIVE_CODES
from retrieval.content import Content
from retrieval.directions import Slopes, better, directions
from retrieval.evidence import Evidence, drawn, faded
from retrieval.properties import LOOKS_SPACE, VECTORS_SPACE, Picture, Properties
from retrieval.requests import Requests
from retrieval.shown import NEVER, PRIOR, Shown, log_odds
from retrieval.variances import likeliest

MOST_SHOWN = 512  # the latest that a taste is inferred from
KEPT = 64  # tastes that were inferred last
LEARNED_SHOWN = 128  # the latest of a user that variances are learned from
ANYTHING = "anything"  # the property that all items share: some users like more than others
COUNTS = ("taste_shown", "taste_rate", "taste_category_shown", "taste_category_rate")


@dataclass(frozen=True)
class Taste:
    """Infers tastes and judges candidates by them.

    Attributes:
        properties: of all items.
        shown: what every user was shown.
        lasting, fading: float32 (S), prior variances of each of ``of``.
        usual: share of what is shown that is liked.
        content: what is read in place of looks and vectors; None: looks are read as they are, vectors not.
        gain: mean of that of ``Directions``; 0 without content.
        noise: variance of surprises over what chance alone would give; ``lasting`` and ``fading`` are relative to it.

    What was inferred last is kept: a request asks for its user's taste three times, of other candidates each time.
    """

    properties: Properties
    shown: Shown
    lasting: np.ndarray
    fading: np.ndarray
    usual: float
    content: Content | None = None
    gain: float = 0.0
    noise: float = 1.0
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
        empty = cls(properties.without_vectors(), shown, np.empty(0), np.empty(0), usual)
        users = list(drawn(properties, learned))
        latest = [past.latest(LEARNED_SHOWN) for past in users]
        (lasting, fading), noise = likeliest(latest, empty.alike, len(empty.of))
        told = replace(empty, lasting=lasting, fading=fading, noise=noise)
        return told._reading([LOOKS_SPACE], properties, users)

    def with_vectors(self, properties: Properties, learned: Shown, apart: int = 0) -> Taste:
        """The same reading vectors, too, if they say more of users from whom it was not learned than looks alone.

        Args:
            properties: the same with vectors.
            learned: as in ``fit``.
            apart: so many last numbers of a vector tell pictures apart. Unless they are all 0 they are read alone and
                in place of looks: among the others, of which there are many, what they show is lost.
        """
        users = list(drawn(properties, learned))
        if apart and properties.spaces[VECTORS_SPACE][:, -apart:].any():
            return self._reading([VECTORS_SPACE], properties, users, apart)
        return self._reading([LOOKS_SPACE, VECTORS_SPACE], properties, users)

    def _reading(
        self, names: Sequence[str], properties: Properties, users: Sequence[Evidence], last: int = 0
    ) -> Taste:
        names = [name for name in names if name in properties.spaces]
        if not names:
            return self
        content, before = Content.of(properties, names, last), self._looks(properties)
        alone = dict(zip(self.of, np.stack([self.lasting, self.fading], axis=1), strict=True))
        lasting, fading = (float(one) for one in alone.pop(LOOKS_SPACE, np.zeros(2)))
        unread = self._with({**alone, LOOKS_SPACE: np.zeros(2)})
        rows = np.concatenate([content.rows(properties), before], axis=1)
        slopes = Slopes.of(rows, (unread._told(one.latest(MOST_SHOWN)) for one in users))
        width = rows.shape[1] - before.shape[1]
        found, known = directions(slopes.of_numbers(slice(width))), slopes.of_numbers(slice(width, None))
        if self.content is None:
            gain = known.likelihood(np.sqrt(lasting * self.noise) * np.eye(before.shape[1]))
        else:
            learned = directions(known)
            gain = np.zeros(len(users)) if learned is None else learned.gain
        if found is None or not better(found.gain, gain):
            return self
        vectors = VECTORS_SPACE in names
        kept = properties if vectors else self.properties
        made = replace(
            self,
            properties=kept,
            content=content.turned(found.root / np.sqrt(self.noise)),
            gain=float(found.gain.mean()),
        )
        again = (
            min(fading / lasting, 1.0) if lasting else 0.0
        )  # what a visit adds, as for looks read as they are
        return made._with({**alone, VECTORS_SPACE if vectors else LOOKS_SPACE: np.array([1.0, again])})

    def _looks(self, properties: Properties) -> np.ndarray:
        """What this taste reads of looks, before it is turned, float32 (M, D)."""
        if LOOKS_SPACE not in properties.spaces:
            return np.zeros((len(properties.item_ids), 0), np.float32)
        if self.content is None:
            return properties.spaces[LOOKS_SPACE]
        return Content.of(properties, [LOOKS_SPACE]).rows(properties)

    def _with(self, variances: Mapping[str, np.ndarray]) -> Taste:
        """The same with these lasting and fading variances."""
        lasting, fading = np.array([variances[name] for name in self.of], np.float32).T
        return replace(self, lasting=lasting, fading=fading)

    def _told(self, past: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows, the prior covariance of surprises at them, noise included, and the surprises."""
        prior = self._prior(past.item, past.faded).astype(np.float64)
        prior[np.diag_indices(len(prior))] += 1 / past.weight
        return past.item, prior * self.noise, past.surprise

    def with_items(self, items: pa.Table, picture: Picture, vectors: np.ndarray | None = None) -> Taste:
        """The same tastes for a catalogue with ITEMS rows added or replaced, as in ``Properties.with_items``."""
        return replace(self, properties=self.properties.with_items(items, picture, vectors))

    @cached_property
    def spaces(self) -> Mapping[str, np.ndarray]:
        """The spaces that tastes are about, float32 (M, D) each."""
        if self.content is None:
            return self.properties.without_vectors().spaces
        seen = (LOOKS_SPACE, VECTORS_SPACE)
        others = {name: rows for name, rows in self.properties.spaces.items() if name not in seen}
        name = VECTORS_SPACE if VECTORS_SPACE in self.content.parts else LOOKS_SPACE
        return {**others, name: self.content.rows(self.properties)}

    @property
    def of(self) -> tuple[str, ...]:
        """The S properties."""
        return (*self.properties.fields, *self.spaces, ANYTHING)

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
        for number, rows in enumerate(self.spaces.values(), len(self.properties.fields)):
            wanted = self._mixed(number, weight @ rows[past.item])
            out[:, number] = rows[item] @ wanted
        out[:, -1] = self._mixed(-1, weight.sum(axis=1))
        return out

    def _weight(self, past: Evidence, time_us: int) -> np.ndarray:
        """What each of H items says of a lasting and of a fading taste, (2, H)."""
        key = b"".join([*(one.tobytes() for one in vars(past).values()), np.int64(time_us).tobytes()])
        found = self._inferred.get(key)
        if found is None:
            prior = self._prior(past.item, past.faded)
            prior[np.diag_indices(len(prior))] += 1 / past.weight
            lasting = solve(prior, past.surprise, assume_a="pos", overwrite_a=True, check_finite=False)
            found = np.stack([lasting, lasting * faded(time_us - past.time_us)])
            if len(self._inferred) >= KEPT:
                self._inferred.clear()
            self._inferred[key] = found
        return found

    def alike(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """How alike items are in every property, float32 (S, len(left), len(right))."""
        out = np.ones((len(self.of), len(left), len(right)), dtype=np.float32)
        for number, codes in enumerate(self.properties.codes.T):
            out[number] = _same(codes[left], codes[right])
        for number, rows in enumerate(self.spaces.values(), len(self.properties.fields)):
            out[number] = rows[left] @ rows[right].T
        return out

    def _prior(self, item: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Prior covariance of the user's log-odds of H items, float32 (H, H)."""
        out = self.lasting[-1] + self.fading[-1] * left
        count = len(self.properties.fields)
        for number, codes in enumerate(self.properties.codes.T):
            if self.lasting[number] or self.fading[number]:
                out += _same(codes[item], codes[item]) * (self.lasting[number] + self.fading[number] * left)
        for variance, time in ((self.lasting, None), (self.fading, left)):
            parts = [
                rows[item] * np.sqrt(variance[number])
                for number, rows in enumerate(self.spaces.values(), count)
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
