"""The simulated marketplace: a seeded shop whose true click probabilities are known.

Some tastes depend only on pictures and some only on text (see ``catalogue``), so a model needs both modalities; new
items appear during the log, so ids are not enough. One argument scales it to millions of events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataset.auc import auc
from dataset.contracts import EVENTS, QUARANTINE, TIME, USERS, DataError, Tables, content_hash
from dataset.identity import IMPORTED
from dataset.marketplace.browsing import Requests, Slates, browse, choose_wanted, make_requests
from dataset.marketplace.catalogue import (
    FACET_START,
    FACETS,
    NOISE,
    TRAITS,
    WIDTH,
    WORDS,
    Catalogue,
    images_table,
    item_pictures,
    items_table,
    make_catalogue,
    query_pictures,
)
from dataset.marketplace.policy import SLATE, Shelf
from dataset.marketplace.rules import DEFAULT, Rules
from dataset.marketplace.searches import find_searches, image_requests, judgements_table
from dataset.marketplace.shoppers import SEGMENTS, SHOWS, Shoppers, make_shoppers

SMALLEST = 500
STREAMS = (
    "catalogue",
    "pictures",
    "text",
    "users",
    "requests",
    "queries",
    "drawings",
    "slates",
    "clicks",
    "judges",
    "clock",
    "random",
)
TRUTH = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),  # of an impression
        pa.field("click_probability", pa.float32(), nullable=False),
    ]
)

PROPENSITIES = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),  # of an impression of a random slate
        pa.field("propensity", pa.float32(), nullable=False),  # with which the slate showed this item
    ]
)


@dataclass(frozen=True)
class World:
    """The true properties behind the tables."""

    rules: Rules
    catalogue: Catalogue
    shoppers: Shoppers
    requests: Requests
    slates: Slates


def _seeds(seed: int) -> dict[str, np.random.SeedSequence]:
    return {name: np.random.SeedSequence(seed, spawn_key=(number,)) for number, name in enumerate(STREAMS)}


def play(events: int, seed: int, rules: Rules = DEFAULT) -> World:
    """Generate items and users and simulate all requests; ``simulate`` then adds pictures and tables."""
    if events < SMALLEST:
        raise DataError(f"expected at least {SMALLEST} events, which fill every category; found {events}")
    rng = {name: np.random.default_rng(sequence) for name, sequence in _seeds(seed).items()}
    items = round(1000 * (events / 60_000) ** 0.6)
    catalogue = make_catalogue(items, rng["catalogue"], circles=rules.behaviour > 0)
    shoppers = make_shoppers(rules.user_count(events), rng["users"], rules)
    shelf = Shelf(catalogue)
    requests = make_requests(round(events / SLATE), shoppers, rng["requests"])
    requests = requests.wanting(choose_wanted(requests, shoppers, catalogue, shelf, rng["queries"]))
    slates = browse(requests, shoppers, catalogue, shelf, rng, rules.random_share)
    return World(rules, catalogue, shoppers, requests, slates)


def simulate(events: int = 120_000, seed: int = 0, rules: Rules = DEFAULT) -> tuple[Tables, dict[str, Any]]:
    """Simulate 30 days of the shop.

    Args:
        events: approximate number of impressions; items grow with its power 0.6, users with its power 0.8.
        seed: equal seeds give bitwise equal tables. Every table has its own random stream.
        rules: of this world.

    Returns:
        The canonical tables with ``truth`` (one row per impression), and the dataset's configuration: seed,
        rules, counts, noise rates, click-through rate, ``taste_shares`` and ``bayes_auc``, the AUC of the true click
        probability
        against the clicks: the Bayes-optimal ranking, which no ranker can beat except by chance.

    Raises:
        DataError: fewer than 500 events, too few to fill every category.
    """
    world = play(events, seed, rules)
    catalogue, requests = world.catalogue, world.requests
    seeds = _seeds(seed)
    rng = {name: np.random.default_rng(seeds[name]) for name in ("text", "judges", "clock")}
    missing = rng["text"].random(len(catalogue)) < NOISE["image_missing"]
    pictures = item_pictures(catalogue, seeds["pictures"], missing)
    asked_pictures = query_pictures(catalogue, requests.wanted[image_requests(requests)], seeds["drawings"])
    searches = find_searches(catalogue, requests, asked_pictures)
    log, truth, propensities = _events(world, searches.of_request, rng["clock"])
    tables = Tables(
        items=items_table(
            catalogue,
            [None if picture is None else content_hash(picture) for picture in pictures],
            rng["text"],
        ),
        images=images_table([picture for picture in pictures if picture is not None] + asked_pictures),
        users=_users(world.shoppers, requests),
        events=log,
        queries=searches.table,
        judgements=judgements_table(catalogue, searches, rng["judges"]),
        quarantine=QUARANTINE.empty_table(),
        truth=truth,
        propensities=propensities if len(propensities) else None,
    )
    return tables, _config(tables, world, seed, events)


def _config(tables: Tables, world: World, seed: int, events: int) -> dict[str, Any]:
    slates = world.slates
    shown = slates.item >= 0
    names = ("items", "images", "users", "events", "queries", "judgements")
    return {
        "name": "marketplace",
        "source": "simulated",
        "seed": seed,
        "requested_events": events,
        "repeats": False,  # to find what is new to a user is the harder task, and the one that needs content
        "rules": world.rules.record(),
        "taste_shares": taste_shares(world),
        "counts": {name: getattr(tables, name).num_rows for name in names},
        "noise": dict(NOISE),
        "click_through_rate": round(float(slates.clicked[shown].mean()), 6),
        "bayes_auc": round(auc(slates.clicked[shown], slates.probability[shown]), 6),
    }


def taste_shares(world: World) -> dict[str, float]:
    """Where the lasting tastes show: fractions of their variance over items, averaged over users; they sum to 1."""
    properties = world.catalogue.properties()
    column = dict(zip([*FACETS, *TRAITS], [*FACET_START.values(), *range(WORDS, WIDTH)], strict=True))
    size = {name: len(values) for name, values in FACETS.items()}
    variance = {}
    for way, names in SHOWS.items():
        own = np.concatenate([np.arange(column[name], column[name] + size.get(name, 1)) for name in names])
        variance[way] = float((properties[:, own] @ world.shoppers.interest[:, own].T).var(axis=0).mean())
    return {way: round(value / sum(variance.values()), 4) for way, value in variance.items()}


def _users(shoppers: Shoppers, requests: Requests) -> pa.Table:
    n = len(shoppers.age)
    first_request = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first_request, requests.user, requests.time_us)
    seen = np.minimum(shoppers.registered_us, first_request)
    columns = [
        pa.array(user_ids(np.arange(n))),
        pa.array(map(str, user_ids(np.arange(n)).tolist())),
        pa.array(shoppers.age, pa.float32(), from_pandas=True),
        pa.array(SEGMENTS).take(pa.array(shoppers.segment)),
        pa.array(seen).cast(TIME),
    ]
    return pa.table(columns, schema=USERS)


def user_ids(rows: np.ndarray) -> np.ndarray:
    """The ids of the users in these rows of Shoppers."""
    return rows + 1


def _events(
    world: World, query_of_request: np.ndarray, rng: np.random.Generator
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """EVENTS ordered by event time, the true click probability of each impression, propensities of random ones."""
    catalogue, requests, slates = world.catalogue, world.requests, world.slates
    shown, place = np.nonzero(slates.item >= 0)
    behaviours = np.zeros(len(shown), dtype=np.int64)
    for happened in (slates.clicked, slates.carted, slates.purchased):  # each implies the one before
        behaviours += happened[shown, place]
    delay = np.cumsum(
        np.stack(
            [
                np.zeros(len(shown)),
                rng.uniform(3, 60, size=len(shown)) + 4 * place,
                rng.uniform(10, 60, size=len(shown)),
                rng.uniform(10, 60, size=len(shown)),
            ],
            axis=1,
        ),
        axis=1,
    )
    source = np.repeat(np.arange(len(shown)), behaviours + 1)
    step = np.arange(len(source)) - np.repeat(np.cumsum(behaviours + 1) - behaviours - 1, behaviours + 1)
    request = shown[source]
    time_us = requests.time_us[request] + (delay[source, step] * 1e6).astype(np.int64)
    order = np.lexsort((place[source], request, time_us))
    source, step, request, time_us = source[order], step[order], request[order], time_us[order]
    event_id = np.arange(1, len(source) + 1) + IMPORTED
    lag_us = (rng.uniform(1, 30, size=len(source)) * 1e6).astype(np.int64)
    query = query_of_request[request]
    columns = [
        pa.array(event_id),
        pa.array(user_ids(requests.user[request])),
        pa.array(catalogue.item_id[slates.item[request, place[source]]]),
        pa.array(["impression", "click", "cart", "purchase"]).take(pa.array(step)),
        pa.array(time_us).cast(TIME),
        pa.array(time_us + lag_us).cast(TIME),
        pa.array(query, mask=query == 0),
        pa.array(place[source], pa.int32()),
        pa.array(request_ids(requests)[request]),
        pa.nulls(len(source), pa.float32()),
        pa.array(event_id),
    ]
    impression = step == 0
    probability = slates.probability[request[impression], place[source[impression]]]
    truth = pa.table([pa.array(event_id[impression]), pa.array(probability)], schema=TRUTH)
    propensity = slates.propensity[request[impression]]
    random = propensity > 0
    known = [pa.array(event_id[impression][random]), pa.array(propensity[random])]
    return pa.table(columns, schema=EVENTS), truth, pa.table(known, schema=PROPENSITIES)


def request_ids(requests: Requests) -> np.ndarray:
    """Number requests by time, from 1."""
    ids = np.empty(len(requests.user), dtype=np.int64)
    ids[np.argsort(requests.time_us, kind="stable")] = np.arange(1, len(ids) + 1)
    return ids
