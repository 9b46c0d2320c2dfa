"""Simulated behaviour: requests, slates, clicks, carts, purchases, and the true click probability.

A shopper's interest is a vector over facet values and traits, such that

    click probability = sigmoid(intercept + quality of the item + interest . item) * examination(position)

where interest = lasting taste + shift by recent clicks (which decays) + what the query asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dataset.marketplace.catalogue import (
    DAY_US,
    DAYS,
    FACET_START,
    FACETS,
    LEAVES,
    START_US,
    TRAITS,
    WORDS,
    Catalogue,
)
from dataset.marketplace.shoppers import Shoppers, affinity

SLATE = 10
POOL = 40  # candidates that the shop ranks for a slate
TARGET_CTR = 0.12  # without recent clicks, which add about one percentage point
EXAMINATION = (1.0 + np.arange(SLATE)) ** -0.35  # probability that a position is examined
SESSION_FADE_S = 3 * 3600.0

# What a click adds to the interest, per facet and per unit of a trait.
CLICK_SHIFT = {"leaf": 0.35, "colour": 0.2, "pattern": 0.15, "material": 0.1, "brand": 0.1, "style": 0.1}
CLICK_TRAIT_SHIFT = 0.12
# What a query adds for a match. An image query asks for what it shows, except the backdrop.
ASKED = {"leaf": 2.2, "colour": 1.2, "pattern": 1.0, "material": 1.2, "brand": 1.2, "style": 0.9}
ASKED_TRAIT = (0.0, 0.0, 0.7, 0.6, 0.0)
SEARCH_RESTRAINT = 1.0  # log-odds by which items are clicked less when searching
# The shop ranks by a rougher relevance: the fraction of the true interest it knows, per facet.
SHOP_KNOWS = {"leaf": 0.6, "colour": 0.4, "pattern": 0.3, "material": 0.1, "brand": 0.2, "style": 0.1}
SHOP_NOISE = 0.9

# Text queries: the facets they name, in order, and the fraction of text queries.
PHRASES = (
    (("colour", "leaf"), 0.30),
    (("colour", "pattern", "leaf"), 0.30),
    (("material", "leaf"), 0.18),
    (("style", "colour", "leaf"), 0.12),
    (("brand", "leaf"), 0.10),
)
PICTURE_ASKS = ("leaf", "colour", "pattern")
NO_QUERY, TEXT_QUERY, IMAGE_QUERY = 0, 1, 2
QUERY_FRACTIONS = (0.75, 0.125, 0.125)


@dataclass(frozen=True)
class Requests:
    """R requests ordered by (user, time).

    Attributes:
        user: int64 (R), row in Shoppers.
        time_us: int64 (R).
        turn: int64 (R), number of earlier requests of the user.
        query_kind: int64 (R), NO_QUERY, TEXT_QUERY or IMAGE_QUERY.
        wanted: int64 (R), catalogue row of the item that the query describes, -1 without a query.
        phrase: int64 (R), index in PHRASES for a text query, else -1.
    """

    user: np.ndarray
    time_us: np.ndarray
    turn: np.ndarray
    query_kind: np.ndarray
    wanted: np.ndarray
    phrase: np.ndarray

    def wanting(self, wanted: np.ndarray) -> Requests:
        """The same requests, with queries that describe the items in these catalogue rows."""
        return replace(self, wanted=wanted)


@dataclass(frozen=True)
class Slates:
    """Slates and the behaviours on them, arrays of shape (R, SLATE).

    Attributes:
        item: int64, catalogue row, -1 for padding.
        probability: float32, true click probability, 0 for padding.
        clicked, carted, purchased: bool.
        intercept: of the click probability, in log-odds.
    """

    item: np.ndarray
    probability: np.ndarray
    clicked: np.ndarray
    carted: np.ndarray
    purchased: np.ndarray
    intercept: float


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Logistic function."""
    return 1.0 / (1.0 + np.exp(-logit))


def _per_column(by_facet: dict[str, float], traits: tuple[float, ...]) -> np.ndarray:
    """Expand a number per facet to the columns of an interest vector."""
    parts = [np.full(len(values), by_facet[name]) for name, values in FACETS.items()]
    return np.concatenate([*parts, traits]).astype(np.float32)


_SHOP_WEIGHT = _per_column(SHOP_KNOWS, (0.1,) * len(TRAITS))


class Shelf:
    """Samples items available at a time, by leaf category and popularity."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._earliest = int(catalogue.first_seen_us.min())
        self._span = 2 * (START_US + DAYS * DAY_US - self._earliest)
        self._key = catalogue.facet[:, 0] * self._span + catalogue.first_seen_us - self._earliest
        self._start = np.searchsorted(self._key, np.arange(len(LEAVES)) * self._span)
        weight = catalogue.popularity + 0.3 * catalogue.popularity.mean()
        self._mass = np.concatenate([[0.0], np.cumsum(weight)])

    def draw(self, leaf: np.ndarray, time_us: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sample an item per entry of ``leaf`` (R, P), first seen by ``time_us`` (R); int64 catalogue rows."""
        now = np.minimum(time_us - self._earliest, self._span - 1)[:, None]
        start = self._start[leaf]
        stop = np.searchsorted(self._key, leaf * self._span + now, side="right")
        low, high = self._mass[start], self._mass[stop]
        drawn = np.searchsorted(self._mass, low + rng.random(leaf.shape) * (high - low), side="right") - 1
        return np.clip(drawn, start, stop - 1)


def _browsed_leaves(interest: np.ndarray, pool: int, rng: np.random.Generator) -> np.ndarray:
    """Sample leaf categories of a pool, half by the user's taste and half uniformly; int64 (R, pool)."""
    weight = np.exp(interest[:, : len(LEAVES)])
    chance = 0.5 * weight / weight.sum(axis=1, keepdims=True) + 0.5 / len(LEAVES)
    reached = rng.random((len(interest), pool, 1), dtype=np.float32) > np.cumsum(chance, axis=1)[:, None, :]
    return np.minimum(reached.sum(axis=2), len(LEAVES) - 1)


def make_requests(count: int, shoppers: Shoppers, rng: np.random.Generator) -> Requests:
    """Distribute ``count`` requests over users, days and hours; half of them continue a session."""
    chance = shoppers.activity / shoppers.activity.sum()
    user = np.sort(rng.choice(len(chance), p=chance, size=count))
    continues = np.concatenate([[False], (user[1:] == user[:-1]) & (rng.random(count - 1) < 0.5)])
    day = rng.integers(0, DAYS, size=count)
    hour = np.clip(rng.normal(16, 4.5, size=count), 0, 23.9) + rng.random(count) * 0.09
    opened = START_US + ((day + hour / 24) * DAY_US).astype(np.int64)
    session = np.cumsum(~continues) - 1
    gap = np.where(continues, 240_000_000 + rng.exponential(300e6, size=count).astype(np.int64), 0)
    elapsed = np.cumsum(gap)
    first = np.flatnonzero(~continues)
    time_us = opened[first][session] + elapsed - elapsed[first][session]
    order = np.lexsort((time_us, user))
    kind = rng.choice(3, p=QUERY_FRACTIONS, size=count)
    phrase = rng.choice(len(PHRASES), p=[fraction for _, fraction in PHRASES], size=count)
    user = user[order]
    turn = np.arange(count) - np.searchsorted(user, user)
    nothing = np.full(count, -1)
    return Requests(user, time_us[order], turn, kind, nothing, np.where(kind == TEXT_QUERY, phrase, -1))


def choose_wanted(
    requests: Requests, shoppers: Shoppers, catalogue: Catalogue, shelf: Shelf, rng: np.random.Generator
) -> np.ndarray:
    """Sample the item each query describes by the user's taste; int64 (R), -1 without a query."""
    wanted = np.full(len(requests.user), -1)
    asking = np.flatnonzero(requests.query_kind != NO_QUERY)
    interest = shoppers.interest[requests.user[asking]]
    pool = shelf.draw(_browsed_leaves(interest, 12, rng), requests.time_us[asking], rng)
    liking = affinity(interest, catalogue, pool) + rng.gumbel(0, 1, size=pool.shape)
    wanted[asking] = np.take_along_axis(pool, liking.argmax(axis=1)[:, None], axis=1)[:, 0]
    return wanted


def asked_facets(requests: Requests) -> np.ndarray:
    """Mask of the facets that each request's query names or shows, bool (R, 6)."""
    names = list(FACETS)
    table = np.array([[name in phrase for name in names] for phrase, _ in PHRASES] + [[False] * len(names)])
    asked = table[requests.phrase]
    asked[requests.query_kind == IMAGE_QUERY] = [name in PICTURE_ASKS for name in names]
    return asked


def query_interest(
    requests: Requests, rows: np.ndarray, asked: np.ndarray, catalogue: Catalogue
) -> np.ndarray:
    """What the queries of these request rows add to interest, float32 (len(rows), WORDS + 5)."""
    added = np.zeros((len(rows), WORDS + len(TRAITS)), dtype=np.float32)
    wanted = requests.wanted[rows]
    for number, (name, start) in enumerate(FACET_START.items()):
        asking = np.flatnonzero(asked[rows, number])
        added[asking, start + catalogue.facet[wanted[asking], number]] = ASKED[name]
    pictured = np.flatnonzero(requests.query_kind[rows] == IMAGE_QUERY)
    added[pictured, WORDS:] = catalogue.trait[wanted[pictured]] * np.array(ASKED_TRAIT, dtype=np.float32)
    return added


@dataclass(frozen=True)
class Shop:
    """The shop's slate policy: a pool by taste or query, ranked by rough relevance, popularity and noise."""

    catalogue: Catalogue
    shelf: Shelf

    def slates(
        self, interest: np.ndarray, time_us: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Choose up to SLATE distinct items per request, best first; int64 (R, SLATE), padded with -1."""
        leaf = _browsed_leaves(interest, POOL, rng)
        asking = wanted >= 0
        leaf[asking, : 3 * POOL // 4] = self.catalogue.facet[wanted[asking], 0][:, None]
        pool = np.sort(self.shelf.draw(leaf, time_us, rng), axis=1)
        score = affinity(interest * _SHOP_WEIGHT, self.catalogue, pool)
        score += 0.3 * np.log(self.catalogue.popularity)[pool].astype(np.float32)
        score += rng.gumbel(0, SHOP_NOISE, size=score.shape).astype(np.float32)
        score[:, 1:][pool[:, 1:] == pool[:, :-1]] = -np.inf
        best = np.argsort(-score, axis=1, kind="stable")[:, :SLATE]
        chosen = np.take_along_axis(pool, best, axis=1)
        return np.where(np.isfinite(np.take_along_axis(score, best, axis=1)), chosen, -1)

    def liking(self, interest: np.ndarray, slate: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Log-odds of a click on an examined item, without the intercept, float32 (R, SLATE)."""
        restraint = np.where(wanted >= 0, np.float32(SEARCH_RESTRAINT), np.float32(0))[:, None]
        return affinity(interest, self.catalogue, slate) + self.catalogue.quality[slate] - restraint


def _intercept(liking: np.ndarray, shown: np.ndarray) -> float:
    """The intercept at which the mean click probability is TARGET_CTR, by bisection."""
    low, high = -20.0, 20.0
    examined = np.broadcast_to(EXAMINATION, liking.shape)[shown]
    for _ in range(50):
        middle = (low + high) / 2
        rate = (sigmoid(liking[shown] + middle) * examined).mean()
        low, high = (middle, high) if rate < TARGET_CTR else (low, middle)
    return (low + high) / 2


def turns(requests: Requests, most: int = 20_000) -> Iterator[np.ndarray]:
    """Batches of request rows, in time order for each user: all first requests, then all second, ..."""
    order = np.argsort(requests.turn, kind="stable")
    bounds = np.flatnonzero(np.diff(requests.turn[order], prepend=-1))
    for rows in np.split(order, bounds[1:]):
        for start in range(0, len(rows), most):
            yield rows[start : start + most]


def cart_chance(logit: np.ndarray) -> np.ndarray:
    """Probability that a clicked item goes into the cart, by the log-odds of its click when examined."""
    return sigmoid(0.7 * logit - 0.8)


def purchase_chance(logit: np.ndarray) -> np.ndarray:
    """Probability that an item in the cart is bought, by the log-odds of its click when examined."""
    return sigmoid(0.7 * logit + 0.2)


class Session:
    """How recent clicks shift the interest of each of U users; the shift fades by the hour.

    Args:
        users: U.
        catalogue: the items that are clicked.
    """

    def __init__(self, users: int, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._shift = np.zeros((users, WORDS + len(TRAITS)), dtype=np.float32)
        self._last_us = np.full(users, START_US)

    def shift(self, user: np.ndarray, now_us: np.ndarray) -> np.ndarray:
        """The shift of these users at these times, float32 (len(user), WORDS + 5); times never go back."""
        self._shift[user] *= faded(now_us - self._last_us[user])
        self._last_us[user] = now_us
        return self._shift[user]

    def remember(self, user: np.ndarray, slate: np.ndarray, clicked: np.ndarray) -> np.ndarray:
        """Add the clicks on these users' slates and return their shift from now on.

        Args:
            user: int64 (B), each at most once.
            slate: int64 (B, P), catalogue rows.
            clicked: bool (B, P).
        """
        row, place = np.nonzero(clicked)
        who, items = user[row], slate[row, place]
        for number, (name, start) in enumerate(FACET_START.items()):
            columns = start + self._catalogue.facet[items, number]
            np.add.at(self._shift, (who, columns), np.float32(CLICK_SHIFT[name]))
        np.add.at(self._shift[:, WORDS:], who, self._catalogue.trait[items] * np.float32(CLICK_TRAIT_SHIFT))
        self._shift[user] = np.clip(self._shift[user], -1.0, 1.0)
        return self._shift[user]


def faded(elapsed_us: np.ndarray) -> np.ndarray:
    """The fraction of a shift that is left after this time, float32 (R, 1)."""
    return np.exp(-elapsed_us / (SESSION_FADE_S * 1e6)).astype(np.float32)[:, None]


def replay(requests: Requests, slates: Slates, catalogue: Catalogue, users: int) -> np.ndarray:
    """The shift of each request's user right after its slate, float32 (R, WORDS + 5)."""
    session = Session(users, catalogue)
    after = np.empty((len(requests.user), WORDS + len(TRAITS)), dtype=np.float32)
    for rows in turns(requests):
        session.shift(requests.user[rows], requests.time_us[rows])
        after[rows] = session.remember(requests.user[rows], slates.item[rows], slates.clicked[rows])
    return after


def browse(
    requests: Requests,
    shoppers: Shoppers,
    catalogue: Catalogue,
    shelf: Shelf,
    slate_rng: np.random.Generator,
    click_rng: np.random.Generator,
) -> Slates:
    """Simulate all requests; a user's clicks shift the interest in that user's later requests."""
    shop = Shop(catalogue, shelf)
    asked = asked_facets(requests)
    count = len(requests.user)

    pilot = slate_rng.permutation(count)[:3000]
    interest = shoppers.interest[requests.user[pilot]]
    interest = interest + query_interest(requests, pilot, asked, catalogue)
    slate = shop.slates(interest, requests.time_us[pilot], requests.wanted[pilot], slate_rng)
    intercept = _intercept(shop.liking(interest, slate, requests.wanted[pilot]), slate >= 0)

    item = np.empty((count, SLATE), dtype=np.int64)
    probability = np.empty((count, SLATE), dtype=np.float32)
    clicked, carted, purchased = (np.zeros((count, SLATE), dtype=bool) for _ in range(3))
    session = Session(len(shoppers.age), catalogue)
    for rows in turns(requests):
        user, now = requests.user[rows], requests.time_us[rows]
        interest = (
            shoppers.interest[user]
            + session.shift(user, now)
            + query_interest(requests, rows, asked, catalogue)
        )
        slate = shop.slates(interest, now, requests.wanted[rows], slate_rng)
        logit = shop.liking(interest, slate, requests.wanted[rows]) + intercept
        shown = slate >= 0
        item[rows] = slate
        probability[rows] = np.where(shown, sigmoid(logit) * EXAMINATION, 0.0)
        draws = click_rng.random((3, len(rows), SLATE), dtype=np.float32)
        clicked[rows] = draws[0] < probability[rows]
        carted[rows] = clicked[rows] & (draws[1] < cart_chance(logit))
        purchased[rows] = carted[rows] & (draws[2] < purchase_chance(logit))
        session.remember(user, slate, clicked[rows])
    return Slates(item, probability, clicked, carted, purchased, intercept)
