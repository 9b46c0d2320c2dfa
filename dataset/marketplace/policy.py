"""How the simulated shop chooses what it shows: a pool by taste or query, roughly ranked, and sometimes at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.marketplace.catalogue import DAY_US, DAYS, FACETS, LEAVES, START_US, TRAITS, Catalogue
from dataset.marketplace.shoppers import affinity

SLATE = 10
POOL = 40  # candidates that the shop ranks for a slate
# The shop ranks by a rougher relevance: the fraction of the true interest it knows, per facet.
SHOP_KNOWS = {"leaf": 0.6, "colour": 0.4, "pattern": 0.3, "material": 0.1, "brand": 0.2, "style": 0.1}
SHOP_NOISE = 0.9


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


def browsed_leaves(interest: np.ndarray, pool: int, rng: np.random.Generator) -> np.ndarray:
    """Sample leaf categories of a pool, half by the user's taste and half uniformly; int64 (R, pool)."""
    weight = np.exp(interest[:, : len(LEAVES)])
    chance = 0.5 * weight / weight.sum(axis=1, keepdims=True) + 0.5 / len(LEAVES)
    reached = rng.random((len(interest), pool, 1), dtype=np.float32) > np.cumsum(chance, axis=1)[:, None, :]
    return np.minimum(reached.sum(axis=2), len(LEAVES) - 1)


@dataclass(frozen=True)
class Shop:
    """The shop's slate policy: a pool by taste or query, ranked by rough relevance, popularity and noise."""

    catalogue: Catalogue
    shelf: Shelf

    def slates(
        self, interest: np.ndarray, time_us: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Choose up to SLATE distinct items per request, best first; int64 (R, SLATE), padded with -1."""
        leaf = browsed_leaves(interest, POOL, rng)
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

    def random(self, time_us: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Slates of ten items drawn uniformly among those available at these times (R).

        Returns:
            int64 (R, SLATE), padded with -1, and float32 (R), the probability of every available item to be shown.
        """
        late = self.catalogue.first_seen_us > time_us[:, None]
        drawn = np.where(late, np.inf, rng.random(late.shape))
        chosen = np.argsort(drawn, axis=1, kind="stable")[:, :SLATE]
        there = np.isfinite(np.take_along_axis(drawn, chosen, axis=1))
        available = (~late).sum(axis=1)
        return np.where(there, chosen, -1), np.minimum(SLATE / available, 1).astype(np.float32)
