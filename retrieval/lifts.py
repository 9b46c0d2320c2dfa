"""A user's taste where the log says only what was taken: how much more of a value they take than anybody does.

Nothing says what was passed over, so what a user takes is compared with what everybody takes. Of each property of the
catalogue, the value that a user takes next is drawn from what all users take and from what this one took before (a
Dirichlet-multinomial distribution, Polya's urn, whose prior is fitted to the log: empirical Bayes). With n the weight
of the user's likes, c that of those with the value, share the value's among all users, and strength how many likes
the prior is worth,

    lift = log((strength * share + c) / (strength + n)) - log(share)

and a like after which k others came has the weight recency^k. A price is a normal number around the user's mean,
itself normal, with the same two settings. Those of each property are the likeliest by the log before the ranker's
requests (docs/log/ranker.md#tastes-from-purchases).

Legend: C candidates, n candidates and H likes of one request, M items, V values of a field, T likes of the log,
S properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize_scalar

from dataset.jagged import owners
from retrieval.likes import Likes
from retrieval.properties import Picture, Properties
from retrieval.properties_files import (
    open_properties,
    property_config,
    property_tensors,
    write_property_tables,
)
from retrieval.requests import HISTORY_ITEMS, Requests, interests
from run.artifacts import Artifact, open_artifact, write_artifact

TENSORS = "lifts.safetensors"
PRICE = "price"
LEARNED_USERS, LEARNED_LIKES = 5_000, 64  # that settings are learned from, and the latest of each
RECENCIES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)  # tried
STRENGTHS = (0.01, 100_000.0)  # between which the likeliest is looked for


class Property(Protocol):
    """What is taken in likes and judged in candidates; items are rows of the catalogue, of any shape."""

    def known(self, item: np.ndarray) -> np.ndarray:
        """Whether items have the property, bool."""
        ...

    def said(self, item: np.ndarray, liked: np.ndarray) -> np.ndarray:
        """What a like of one item says of another, float64; arguments are broadcast; 0 if nothing."""
        ...

    def lift(self, item: np.ndarray, said: np.ndarray, weight: np.ndarray, strength: float) -> np.ndarray:
        """How much likelier items are to be taken, in natural logarithms.

        Args:
            item: that have the property.
            said: the weighted sum of what the user's likes say of each.
            weight: of those likes that have the property.
            strength: how many likes the prior is worth.
        """
        ...


@dataclass(frozen=True)
class Values:
    """A field: ``codes`` int32 (M), UNKNOWN where an item has no value, ``share`` float64 (V) of the values."""

    codes: np.ndarray
    share: np.ndarray

    def known(self, item: np.ndarray) -> np.ndarray:
        """See ``Property``."""
        known: np.ndarray = self.codes[item] >= 0
        return known

    def said(self, item: np.ndarray, liked: np.ndarray) -> np.ndarray:
        """1 if both have the same value."""
        value = self.codes[item]
        return ((value == self.codes[liked]) & (value >= 0)).astype(np.float64)

    def lift(self, item: np.ndarray, said: np.ndarray, weight: np.ndarray, strength: float) -> np.ndarray:
        """See ``Property``; the formula is at the top of the file."""
        lift: np.ndarray = np.log((strength + said / self.share[self.codes[item]]) / (strength + weight))
        return lift


@dataclass(frozen=True)
class Numbers:
    """``number`` float64 (M), of mean 0 and variance 1 among likes, NaN where an item has none.

    A user's numbers vary by strength / (1 + strength) around their mean, and the means of users by the rest.
    """

    number: np.ndarray

    def known(self, item: np.ndarray) -> np.ndarray:
        """See ``Property``."""
        return ~np.isnan(self.number[item])

    def said(self, item: np.ndarray, liked: np.ndarray) -> np.ndarray:
        """The number of the liked item."""
        number = np.nan_to_num(self.number[liked])
        return np.broadcast_to(number, np.broadcast_shapes(item.shape, liked.shape))

    def lift(self, item: np.ndarray, said: np.ndarray, weight: np.ndarray, strength: float) -> np.ndarray:
        """See ``Property``: the log of the posterior predictive density over that of any like."""
        number, mean = self.number[item], said / (strength + weight)
        variance = strength / (1 + strength) * (1 + 1 / (strength + weight))
        lift: np.ndarray = (number**2 - (number - mean) ** 2 / variance - np.log(variance)) / 2
        return lift


@dataclass(frozen=True)
class Lifts:
    """Columns ``match_taste_<property>`` of a log that says only what was taken.

    Attributes:
        properties: of all items, without words and looks.
        shares: of each field in which some items were alike, float64 (V): the share of each value among all likes,
            each item of the catalogue counted as one more.
        price: mean and deviation of prices of likes, in the units of ``properties``; None: they tell nothing apart.
        strength, recency: float64 (S), see the top of the file.
    """

    properties: Properties
    shares: Mapping[str, np.ndarray]
    price: tuple[float, float] | None
    strength: np.ndarray
    recency: np.ndarray

    @classmethod
    def fit(cls, properties: Properties, log: pa.Table) -> Lifts:
        """Learn shares and settings.

        Args:
            properties: of all items.
            log: EVENTS, what may be learned from before any request of the ranker.
        """
        likes, properties = Likes.of(log), properties.without_content()
        row = properties.rows(likes.items)[likes.column]
        shares = {
            field: _share(codes, row)
            for field, codes in zip(properties.fields, properties.codes.T, strict=True)
            if np.bincount(codes[codes >= 0]).max(initial=0) > 1  # so not the item, which is taken once
        }
        empty = cls(properties, shares, _usual(properties, row), np.empty(0), np.empty(0))
        past = Past.of(likes, row)
        settings = np.array([likeliest(one, past) for one in empty._parts]).reshape(-1, 2)
        return replace(empty, strength=settings[:, 0], recency=settings[:, 1])

    def with_items(self, items: pa.Table, picture: Picture) -> Lifts:
        """The same for a catalogue with ITEMS rows added or replaced, as in ``Properties.with_items``."""
        return replace(self, properties=self.properties.with_items(items, picture))

    @property
    def of(self) -> tuple[str, ...]:
        """The S properties."""
        return tuple(self.shares) if self.price is None else (*self.shares, PRICE)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns. There is no sum: what properties have in common would count twice."""
        return tuple(f"match_taste_{name}" for name in self.of)

    @cached_property
    def _parts(self) -> tuple[Property, ...]:
        codes = dict(zip(self.properties.fields, self.properties.codes.T, strict=True))
        fields = tuple(Values(codes[field], share) for field, share in self.shares.items())
        if self.price is None:
            return fields
        mean, deviation = self.price
        return (*fields, Numbers((_prices(self.properties) - mean) / deviation))

    def columns(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The lift of every candidate in every property, float32 (C, S), 0 where nothing is known.

        Args:
            requests: R requests.
            item_id: int64 (C), grouped by request.
            offsets: int64 (R + 1).
        """
        out = np.zeros((len(item_id), len(self.of)), dtype=np.float32)
        spoken, rows = interests(requests.history), self.properties.rows(item_id)
        liked = self.properties.rows(spoken.item_id)
        for r in range(len(requests)):
            past = liked[spoken.offsets[r] : spoken.offsets[r + 1]]
            mine = np.arange(offsets[r], offsets[r + 1])
            mine = mine[rows[mine] >= 0]
            newer = np.flatnonzero(past >= 0)
            if len(newer) and len(mine):
                out[mine] = self._judged(rows[mine], past[newer], newer)
        return out

    def _judged(self, item: np.ndarray, liked: np.ndarray, newer: np.ndarray) -> np.ndarray:
        """Lifts float64 (n, S) of items by H likes, ``newer`` of each known."""
        out = np.zeros((len(item), len(self.of)))
        for number, part in enumerate(self._parts):
            weight = np.where(part.known(liked), self.recency[number] ** newer, 0)
            judged = part.known(item)
            said = part.said(item[judged][:, None], liked) @ weight
            out[judged, number] = part.lift(item[judged], said, weight.sum(), self.strength[number])
        return out

    def save(self, out: Path, parents: Mapping[str, Artifact]) -> Artifact:
        """Write an artifact of kind "lifts"."""
        tensors = property_tensors(self.properties)
        tensors |= {"strength": self.strength, "recency": self.recency}
        tensors |= {f"share/{field}": share for field, share in self.shares.items()}
        config = {
            **property_config(self.properties),
            "shared": list(self.shares),
            "liked_price": self.price,
        }
        with write_artifact(out, "lifts", config, parents) as folder:
            save_file(
                {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / TENSORS
            )
            write_property_tables(self.properties, folder)
        return open_artifact(out, "lifts")

    @classmethod
    def open(cls, artifact: Artifact) -> Lifts:
        """Open an artifact of kind "lifts"."""
        tensors, price = load_file(artifact.file(TENSORS)), artifact.config["liked_price"]
        properties = open_properties(artifact, tensors)
        shares = {field: tensors[f"share/{field}"] for field in artifact.config["shared"]}
        liked = None if price is None else (price[0], price[1])
        return cls(properties, shares, liked, tensors["strength"], tensors["recency"])


@dataclass(frozen=True)
class Past:
    """Likes of some users, each after those before it.

    Attributes:
        item: int64 (T), rows of the catalogue.
        place: int64 (T), how many likes of the same user come right before it.
    """

    item: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, likes: Likes, row: np.ndarray) -> Past:
        """The latest LEARNED_LIKES of LEARNED_USERS drawn at random of those who liked several items.

        Args:
            likes: of all users.
            row: int64, the item of each like in the catalogue, -1 where it is not there.
        """
        count = np.diff(likes.offsets)
        several = np.flatnonzero(count > 1)
        drawn = np.zeros(len(count), dtype=bool)
        drawn[np.random.default_rng(0).permutation(several)[:LEARNED_USERS]] = True
        user = owners(likes.offsets)
        newer = likes.offsets[user + 1] - 1 - np.arange(len(user))
        kept = drawn[user] & (newer < LEARNED_LIKES) & (row >= 0)
        user = user[kept]
        return cls(row[kept], np.arange(len(user)) - np.searchsorted(user, user))

    def summed(self, part: Property, recency: float) -> tuple[np.ndarray, np.ndarray]:
        """What those before each like say of it, and their weight, float64 (T) each."""
        said, weight = np.zeros(len(self.item)), np.zeros(len(self.item))
        for newer in range(HISTORY_ITEMS):
            later = np.flatnonzero(self.place > newer)
            before = self.item[later - newer - 1]
            worth = np.where(part.known(before), recency**newer, 0)
            said[later] += part.said(self.item[later], before) * worth
            weight[later] += worth
        return said, weight


def likeliest(part: Property, past: Past) -> tuple[float, float]:
    """The strength and recency under which likes are likeliest; of no likes, a prior that nothing moves."""
    known, tried = part.known(past.item), [(0.0, STRENGTHS[1], 1.0)]
    for recency in RECENCIES:
        said, weight = past.summed(part, recency)
        told = known & (weight > 0)
        if told.any():
            given = (part, past.item[told], said[told], weight[told])
            found = minimize_scalar(_unlikely, bounds=np.log(STRENGTHS), args=given, method="bounded")
            tried.append((found.fun, float(np.exp(found.x)), recency))
    _, strength, recency = min(tried)
    return strength, recency


def _unlikely(power: float, part: Property, item: np.ndarray, said: np.ndarray, weight: np.ndarray) -> float:
    return -float(part.lift(item, said, weight, float(np.exp(power))).sum())


def _share(codes: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """The share of each value among likes, each item counted as one more, float64 (V)."""
    every = np.concatenate([codes, codes[liked[liked >= 0]]])
    count = np.bincount(every[every >= 0]).astype(np.float64)
    share: np.ndarray = count / count.sum()
    return share


def _prices(properties: Properties) -> np.ndarray:
    """Prices of all items, float64 (M), NaN where there is none, for which properties hold 0."""
    price = properties.spaces[PRICE][:, 0].astype(np.float64)
    return np.where(price == 0, np.nan, price)


def _usual(properties: Properties, liked: np.ndarray) -> tuple[float, float] | None:
    """Mean and deviation of the prices of likes, None where there are none or all are the same."""
    price = _prices(properties)[liked[liked >= 0]]
    price = price[~np.isnan(price)]
    deviation = float(price.std()) if len(price) else 0.0
    return (float(price.mean()), deviation) if deviation > 0 else None
