"""Simulated behaviour: requests, slates, clicks, carts, purchases, and the true click probability.

A shopper's interest is a vector over facet values and traits, such that

    click probability = sigmoid(intercept + quality of the item + interest . item) * examination(position)

where interest = lasting taste + shift by recent clicks (which decays) + what the query asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dataset.marketplace.catalogue import (
    DAY_US,
    DAYS,
    FACET_START,
    FACETS,
    START_US,
    WIDTH,
    WORDS,
    Catalogue,
)
from dataset.marketplace.policy import SLATE, Shelf, Shop, browsed_leaves
from dataset.marketplace.shoppers import Shoppers, affinity

TARGET_CTR = 0.12  # without recent clicks, which add about one percentage point
EXAMINATION = (1.0 + np.arange(SLATE)) ** -0.35  # probability that a position is examined
SESSION_FADE_S = 3 * 3600.0

# What a click adds to the interest, per facet and per unit of a trait.
CLICK_SHIFT = {"leaf": 0.35, "colour": 0.2, "pattern": 0.15, "material": 0.1, "brand": 0.1, "style": 0.1}
CLICK_TRAIT_SHIFT = 0.12
# What a query adds for a match. An image query asks for what it shows, except the backdrop.
ASKED = {"leaf": 2.2, "colour": 1.2, "pattern": 1.0, "material": 1.2, "brand": 1.2, "style": 0.9}
ASKED_TRAIT = (0.0, 0.0, 0.7, 0.6, 0.0, 0.0, 0.0, 0.0)
SEARCH_RESTRAINT = 1.0  # log-odds by which items are clicked less when searching
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
        propensity: float32 (R), with which a random slate shows any available item; 0 where the shop chose.
    """

    item: np.ndarray
    probability: np.ndarray
    clicked: np.ndarray
    carted: np.ndarray
    purchased: np.ndarray
    intercept: float
    propensity: np.ndarray


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Logistic function."""
    return 1.0 / (1.0 + np.exp(-logit))


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
    pool = shelf.draw(browsed_leaves(interest, 12, rng), requests.time_us[asking], rng)
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
    """What the queries of these request rows add to interest, float32 (len(rows), WIDTH)."""
    added = np.zeros((len(rows), WIDTH), dtype=np.float32)
    wanted = requests.wanted[rows]
    for number, (name, start) in enumerate(FACET_START.items()):
        asking = np.flatnonzero(asked[rows, number])
        added[asking, start + catalogue.facet[wanted[asking], number]] = ASKED[name]
    pictured = np.flatnonzero(requests.query_kind[rows] == IMAGE_QUERY)
    added[pictured, WORDS:] = catalogue.trait[wanted[pictured]] * np.array(ASKED_TRAIT, dtype=np.float32)
    return added


def liking(interest: np.ndarray, catalogue: Catalogue, slate: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Log-odds of a click on an examined item, without the intercept, float32 (R, SLATE)."""
    restraint = np.where(wanted >= 0, np.float32(SEARCH_RESTRAINT), np.float32(0))[:, None]
    return affinity(interest, catalogue, slate) + catalogue.quality[slate] - restraint


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
        self._shift = np.zeros((users, WIDTH), dtype=np.float32)
        self._last_us = np.full(users, START_US)

    def shift(self, user: np.ndarray, now_us: np.ndarray) -> np.ndarray:
        """The shift of these users at these times, float32 (len(user), WIDTH); times never go back."""
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
    """The shift of each request's user right after its slate, float32 (R, WIDTH)."""
    session = Session(users, catalogue)
    after = np.empty((len(requests.user), WIDTH), dtype=np.float32)
    for rows in turns(requests):
        session.shift(requests.user[rows], requests.time_us[rows])
        after[rows] = session.remember(requests.user[rows], slates.item[rows], slates.clicked[rows])
    return after


def browse(
    requests: Requests,
    shoppers: Shoppers,
    catalogue: Catalogue,
    shelf: Shelf,
    rng: Mapping[str, np.random.Generator],
    random_share: float,
) -> Slates:
    """Simulate all requests; a user's clicks shift the interest in that user's later requests.

    Args:
        requests, shoppers, catalogue, shelf: the world so far.
        rng: of ``slates``, ``clicks`` and ``random`` slates.
        random_share: fraction of the requests without a query that are answered at random.
    """
    shop = Shop(catalogue, shelf)
    asked = asked_facets(requests)
    count = len(requests.user)

    pilot = rng["slates"].permutation(count)[:3000]
    interest = shoppers.interest[requests.user[pilot]]
    interest = interest + query_interest(requests, pilot, asked, catalogue)
    slate = shop.slates(interest, requests.time_us[pilot], requests.wanted[pilot], rng["slates"])
    intercept = _intercept(liking(interest, catalogue, slate, requests.wanted[pilot]), slate >= 0)

    item = np.empty((count, SLATE), dtype=np.int64)
    probability = np.empty((count, SLATE), dtype=np.float32)
    clicked, carted, purchased = (np.zeros((count, SLATE), dtype=bool) for _ in range(3))
    drawn = (rng["random"].random(count) < random_share) & (requests.wanted < 0)
    propensity = np.zeros(count, dtype=np.float32)
    session = Session(len(shoppers.age), catalogue)
    for rows in turns(requests):
        user, now = requests.user[rows], requests.time_us[rows]
        interest = (
            shoppers.interest[user]
            + session.shift(user, now)
            + query_interest(requests, rows, asked, catalogue)
        )
        slate = shop.slates(interest, now, requests.wanted[rows], rng["slates"])
        at_random = np.flatnonzero(drawn[rows])
        slate[at_random], propensity[rows[at_random]] = shop.random(now[at_random], rng["random"])
        logit = liking(interest, catalogue, slate, requests.wanted[rows]) + intercept
        shown = slate >= 0
        item[rows] = slate
        probability[rows] = np.where(shown, sigmoid(logit) * EXAMINATION, 0.0)
        draws = rng["clicks"].random((3, len(rows), SLATE), dtype=np.float32)
        clicked[rows] = draws[0] < probability[rows]
        carted[rows] = clicked[rows] & (draws[1] < cart_chance(logit))
        purchased[rows] = carted[rows] & (draws[2] < purchase_chance(logit))
        session.remember(user, slate, clicked[rows])
    return Slates(item, probability, clicked, carted, purchased, intercept, propensity)
