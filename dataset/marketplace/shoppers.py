"""Users of the simulated shop and their tastes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.marketplace.catalogue import (
    DAY_US,
    DAYS,
    FACET_START,
    FACETS,
    START_US,
    TRAITS,
    WORDS,
    Catalogue,
)
from dataset.marketplace.rules import FIRST, Rules

SEGMENTS = ("homemaker", "fashion", "gift")  # weakly tied to the three top categories

# facet -> (number of liked values, mean of the liked, spread of the others), in log-odds
TASTE = {
    "leaf": (3, 1.2, 0.3),
    "colour": (2, 0.8, 0.2),
    "pattern": (1, 0.8, 0.25),
    "material": (2, 1.5, 0.2),
    "brand": (3, 1.3, 0.2),
    "style": (1, 0.6, 0.2),
}
LIKED_SPREAD = 0.2  # of the liked values about their mean
# Spread per trait; the first two make a preferred backdrop hue, the last three a preferred circle.
TRAIT_TASTE = (0.95, 0.95, 0.65, 0.75, 0.2, 1.2, 1.2, 1.2)
SHOWS = {  # where a taste shows -> its facets and traits
    "pixels": ("background_x", "background_y", "elongation", "density"),
    "words": ("material", "brand", "style", "price"),
    "both": ("leaf", "colour", "pattern"),
    "behaviour": ("circle_x", "circle_y", "circle_z"),
}


@dataclass(frozen=True)
class Shoppers:
    """True properties of U users.

    Attributes:
        interest: float32 (U, WIDTH), lasting taste over facet values, then traits, in log-odds.
        age: float32 (U), years, NaN where unknown.
        segment: int64 (U), index in SEGMENTS.
        registered_us: int64 (U), microseconds since 1970 UTC; the tables cap it at the first request.
        activity: float64 (U), relative number of requests.
    """

    interest: np.ndarray
    age: np.ndarray
    segment: np.ndarray
    registered_us: np.ndarray
    activity: np.ndarray


def strengths(rules: Rules) -> np.ndarray:
    """By how much the rules multiply each number of an interest, float32 (WIDTH)."""
    of = {name: getattr(rules, way) for way, names in SHOWS.items() for name in names}
    facets = [np.full(len(values), of[name]) for name, values in FACETS.items()]
    return np.concatenate([*facets, [of[name] for name in TRAITS]]).astype(np.float32)


def make_shoppers(users: int, rng: np.random.Generator, rules: Rules = FIRST) -> Shoppers:
    """Generate users with a few strong likes per facet; age and segment are only weakly related to them."""
    parts = []
    for name, values in FACETS.items():
        liked, strength, spread = TASTE[name]
        taste = rng.normal(0, spread, size=(users, len(values)))
        chosen = np.argsort(rng.random((users, len(values))), axis=1)[:, :liked]
        np.put_along_axis(taste, chosen, strength + rng.normal(0, LIKED_SPREAD, size=chosen.shape), axis=1)
        parts.append(taste - taste.mean(axis=1, keepdims=True))
    leaf = parts[0].reshape(users, len(SEGMENTS), -1).sum(axis=2)
    segment = np.argmax(leaf + rng.gumbel(0, 1.5, size=leaf.shape), axis=1)
    style = parts[-1]
    age = 38 + 5 * (style[:, 2] - style[:, 3]) + rng.normal(0, 11, size=users)  # vintage up, sporty down
    age = np.where(rng.random(users) < 0.1, np.nan, np.clip(np.round(age), 16, 85))
    early = START_US - (rng.uniform(1, 365, size=users) * DAY_US).astype(np.int64)
    traits = rng.normal(0, 1, size=(users, TRAITS.index("circle_x")))
    registered = rng.random(users) < 0.7
    activity = np.exp(rng.normal(0, 0.9, size=users))
    traits = np.concatenate([traits, rng.normal(0, 1, size=(users, 3))], axis=1) * TRAIT_TASTE
    interest = np.concatenate([*parts, traits], axis=1).astype(np.float32)
    return Shoppers(
        interest=interest * strengths(rules),
        age=age.astype(np.float32),
        segment=segment,
        registered_us=np.where(registered, early, START_US + DAYS * DAY_US),
        activity=activity,
    )


def affinity(interest: np.ndarray, catalogue: Catalogue, items: np.ndarray) -> np.ndarray:
    """Interest of each row in its items, in log-odds.

    Args:
        interest: float32 (R, WIDTH).
        catalogue: the items.
        items: int64 (R, P), catalogue rows.

    Returns:
        float32 (R, P).
    """
    row = np.arange(len(interest))[:, None]
    facet, trait = catalogue.facet[items], catalogue.trait[items]
    total = np.einsum("rpt,rt->rp", trait, interest[:, WORDS:])
    for number, start in enumerate(FACET_START.values()):
        total += interest[row, start + facet[:, :, number]]
    return total
