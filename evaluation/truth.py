"""The simulated shop as a judge: what any list would bring for any user, time and query, whatever the log showed.

The world is made again from the seed in the dataset's manifest. Only measurements may ask it: no model, feature or
service may import this module or read what is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow.compute as pc

from dataset.contracts import DataError
from dataset.marketplace.browsing import (
    EXAMINATION,
    SEARCH_RESTRAINT,
    asked_facets,
    cart_chance,
    faded,
    purchase_chance,
    query_interest,
    replay,
    sigmoid,
)
from dataset.marketplace.policy import SLATE, Shelf, Shop
from dataset.marketplace.rules import Rules
from dataset.marketplace.shoppers import affinity
from dataset.marketplace.simulate import World, play, request_ids, user_ids
from dataset.tables import Dataset
from evaluation.earlier import NO_QUERY, Moments, rows_before

REDRAWN = 20  # slates of the shop's noisy policy that are averaged for a request
RESAMPLED = 1_000  # bootstrap samples of an interval
INTERVAL = (2.5, 97.5)  # percentiles
SERVED = "served"
# Names of lists elsewhere -> names of methods here; other lists keep theirs.
METHOD_OF = {
    "moon": SERVED, "ranker_plain_content": "served_plain_content", "ranker_id_only": "served_id_only",
    "ranker_shuffled": "served_shuffled",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What R slates bring on average, float64 (R) each: clicks, purchases, and revenue in the shop's currency."""

    clicks: np.ndarray
    purchases: np.ndarray
    revenue: np.ndarray


_played = lru_cache(maxsize=1)(play)  # an evaluation asks several times for the same world


@dataclass(frozen=True)
class Judge:
    """Knows the true tastes of a simulated dataset.

    Attributes:
        world: tastes, catalogue, requests and slates.
        query_of_request: the query of each row of ``world.requests``, int64, NO_QUERY where nothing is asked.
    """

    world: World
    query_of_request: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> Judge:
        """Make the world of a simulated dataset again.

        Raises:
            DataError: the dataset is not simulated, or this release simulates another world from its seed.
        """
        config = dataset.artifact.config
        if dataset.truth is None:
            raise DataError(
                f"{dataset.artifact.path}: expected a simulated dataset, whose truth is known, "
                f"found {config['name']!r}"
            )
        world = _played(config["requested_events"], config["seed"], Rules.of(config))
        _is_of(world, dataset)
        asked = dataset.events.filter(dataset.events["query_id"].is_valid())
        query_of_request = np.full(len(world.requests.user), NO_QUERY)
        row_of = np.argsort(request_ids(world.requests))
        query_of_request[row_of[asked["request_id"].to_numpy() - 1]] = asked["query_id"].to_numpy()
        return cls(world, query_of_request)

    @cached_property
    def items(self) -> np.ndarray:
        """All item ids, int64 (N), in the order of the catalogue's rows."""
        return self.world.catalogue.item_id

    @cached_property
    def _asking(self) -> dict[int, int]:
        """Query id -> a row of ``world.requests`` that asks for it."""
        rows = np.flatnonzero(self.query_of_request != NO_QUERY)
        return dict(zip(self.query_of_request[rows].tolist(), rows.tolist(), strict=True))

    @cached_property
    def _by_id(self) -> np.ndarray:
        return np.argsort(self.items)

    @cached_property
    def _shift_after(self) -> np.ndarray:
        world = self.world
        return replay(world.requests, world.slates, world.catalogue, len(world.shoppers.age))

    def rows(self, item_id: np.ndarray) -> np.ndarray:
        """Catalogue rows of these ids, same shape.

        Raises:
            KeyError: an id is not in the catalogue.
        """
        place = np.searchsorted(self.items, item_id, sorter=self._by_id)
        row = self._by_id[np.minimum(place, len(self.items) - 1)]
        unknown = item_id[self.items[row] != item_id]
        if len(unknown):
            raise KeyError(f"{len(unknown)} items are not in the catalogue, first {unknown[:3].tolist()}")
        return row

    def passing(self, moments: Moments) -> np.ndarray:
        """The part of the interest that passes: shift by earlier clicks, and the query, float32 (R, WIDTH)."""
        return self._shift(moments) + self._asked(moments)

    def interest(self, moments: Moments) -> np.ndarray:
        """The whole true interest, float32 (R, WIDTH)."""
        return self.world.shoppers.interest[self.user_rows(moments)] + self.passing(moments)

    def user_rows(self, moments: Moments) -> np.ndarray:
        """Rows of ``world.shoppers``, int64 (R).

        Raises:
            KeyError: a user is not of this world.
        """
        row = moments.user_id - user_ids(np.zeros(1, dtype=np.int64))
        unknown = moments.user_id[(row < 0) | (row >= len(self.world.shoppers.age))]
        if len(unknown):
            raise KeyError(f"{len(unknown)} users are not of this world, first {unknown[:3].tolist()}")
        return row

    def requests_before(self, user: np.ndarray, time_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The users' requests before these times: rows start to stop of ``world.requests``, int64 (R) each."""
        requests = self.world.requests
        return rows_before(requests.user, requests.time_us, user, time_us)

    def levels(self, moments: Moments, rows: np.ndarray) -> np.ndarray:
        """What the log-odds of a click have besides the interest, float32 (R, P), for catalogue rows (R, P)."""
        restraint = np.where(moments.query_id == NO_QUERY, 0, SEARCH_RESTRAINT).astype(np.float32)
        return (
            self.world.catalogue.quality[rows] + np.float32(self.world.slates.intercept) - restraint[:, None]
        )

    def log_odds(self, moments: Moments, item_id: np.ndarray) -> np.ndarray:
        """True log-odds of a click on items that the user looks at, float32 (R, P), for item ids (R, P)."""
        rows = self.rows(item_id)
        return affinity(self.interest(moments), self.world.catalogue, rows) + self.levels(moments, rows)

    def click_chances(self, moments: Moments, slates: np.ndarray) -> np.ndarray:
        """The true probability of a click at each of the first ten places, (R, at most 10); see ``judge``."""
        return self._chances(moments, slates)[1]

    def judge(self, moments: Moments, slates: np.ndarray) -> Verdict:
        """What slates bring on average, by the true probabilities of click, cart and purchase.

        Args:
            moments: R requests.
            slates: int64 item ids (R, P), best first; the first ten places are shown, -1 shows nothing.

        Raises:
            KeyError: a user, a query or an item is not of this world.
        """
        logit, click = self._chances(moments, slates)
        shown = slates[:, :SLATE]
        there = shown >= 0
        bought = click * cart_chance(logit) * purchase_chance(logit)
        price = self.world.catalogue.price[self.rows(np.where(there, shown, self.items[0]))]
        return Verdict(*(one.sum(axis=1, dtype=np.float64) for one in (click, bought, bought * price)))

    def _chances(self, moments: Moments, slates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-odds of a click on what is looked at, and the probability of one, of the places that are shown."""
        shown = slates[:, :SLATE]
        there = shown >= 0
        logit = self.log_odds(moments, np.where(there, shown, self.items[0]))
        return logit, np.where(there, sigmoid(logit) * EXAMINATION[: shown.shape[1]], 0)

    def shop(self, moments: Moments, seed: int) -> Verdict:
        """What the shop's own policy brings, the mean of REDRAWN slates of each request."""
        catalogue, interest = self.world.catalogue, self.interest(moments)
        policy = Shop(catalogue, Shelf(catalogue))
        asking = moments.query_id != NO_QUERY
        wanted = np.full(len(moments), -1)
        wanted[asking] = self.world.requests.wanted[self._rows_asking(moments.query_id[asking])]
        rng = np.random.default_rng(seed)
        drawn = []
        for _ in range(REDRAWN):
            rows = policy.slates(interest, moments.time_us, wanted, rng)
            drawn.append(self.judge(moments, np.where(rows < 0, -1, self.items[rows])))
        parts = ([getattr(one, name) for one in drawn] for name in ("clicks", "purchases", "revenue"))
        return Verdict(*(np.mean(part, axis=0) for part in parts))

    def _shift(self, moments: Moments) -> np.ndarray:
        """What is left of the shift that the user's last earlier request left behind."""
        start, stop = self.requests_before(self.user_rows(moments), moments.time_us)
        elapsed_us = moments.time_us - self.world.requests.time_us[stop - 1]
        left = self._shift_after[stop - 1] * faded(np.maximum(elapsed_us, 0))
        return np.where((stop > start)[:, None], left, np.float32(0))

    def _rows_asking(self, query_id: np.ndarray) -> np.ndarray:
        unknown = [query for query in query_id.tolist() if query not in self._asking]
        if unknown:
            raise KeyError(f"{len(unknown)} queries are not of this world, first {unknown[:3]}")
        return np.array([self._asking[query] for query in query_id.tolist()], dtype=np.int64)

    def _asked(self, moments: Moments) -> np.ndarray:
        requests, catalogue = self.world.requests, self.world.catalogue
        asking = np.flatnonzero(moments.query_id != NO_QUERY)
        added = np.zeros((len(moments), catalogue.properties().shape[1]), dtype=np.float32)
        rows = self._rows_asking(moments.query_id[asking])
        added[asking] = query_interest(requests, rows, asked_facets(requests), catalogue)
        return added


def methods_of(lists: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The lists that are judged, by method: all but those that leave one source out."""
    return {METHOD_OF.get(name, name): ids for name, ids in lists.items() if not name.startswith("without_")}


def resampled_means(values: np.ndarray, user_id: np.ndarray, seed: int = 0) -> np.ndarray:
    """Paired bootstrap over users: the same resampled users for every column.

    Args:
        values: float64 (R, M), M numbers for each of R requests.
        user_id: int64 (R), whose request it was.
        seed: of the resampling.

    Returns:
        Means of RESAMPLED samples, float64 (RESAMPLED, M).
    """
    _, user = np.unique(user_id, return_inverse=True)
    users = int(user.max()) + 1
    total = np.zeros((users, values.shape[1]))
    np.add.at(total, user, values)
    drawn = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), size=RESAMPLED)
    return (drawn @ total) / (drawn @ np.bincount(user))[:, None]


def _is_of(world: World, dataset: Dataset) -> None:
    """Refuse a world whose click probabilities are not those that were written with the dataset."""
    assert dataset.truth is not None
    truth = dataset.truth.sort_by("event_id")
    logged = dataset.events.filter(pc.is_in(dataset.events["event_id"], truth["event_id"])).sort_by(
        "event_id"
    )
    row_of = np.argsort(request_ids(world.requests))
    request = logged["request_id"].to_numpy()
    if request.max() <= len(row_of):
        at = row_of[request - 1], logged["position"].to_numpy()
        same_items = np.array_equal(
            world.catalogue.item_id[world.slates.item[at]], logged["item_id"].to_numpy()
        )
        if same_items and np.array_equal(world.slates.probability[at], truth["click_probability"].to_numpy()):
            return
    raise DataError(
        f"{dataset.artifact.path}: expected the shop that this release simulates from seed "
        f"{dataset.artifact.config['seed']}, found another: its truth is not known here. Run 'moon dataset' again."
    )
