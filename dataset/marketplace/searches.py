"""Queries of the simulated shop: distinct text and image queries, and graded relevance judgements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataset.contracts import JUDGEMENTS, QUERIES, content_hash
from dataset.marketplace.browsing import IMAGE_QUERY, PHRASES, TEXT_QUERY, Requests, asked_facets
from dataset.marketplace.catalogue import FACETS, Catalogue

JUDGED = {"exact": 10, "partial": 10, "irrelevant": 10}  # at most this many judged items per query


@dataclass(frozen=True)
class Searches:
    """Q distinct queries; equal texts are one query.

    Attributes:
        of_request: int64 (R), query_id of each request, 0 without a query.
        table: the QUERIES table, query_id from 1.
        asked: bool (Q, 6), mask of the FACETS that a query asks for.
        wanted: int64 (Q), catalogue row of an item with the requested values.
    """

    of_request: np.ndarray
    table: pa.Table
    asked: np.ndarray
    wanted: np.ndarray


def image_requests(requests: Requests) -> np.ndarray:
    """The request rows that carry a picture, int64."""
    return np.flatnonzero(requests.query_kind == IMAGE_QUERY)


def find_searches(catalogue: Catalogue, requests: Requests, pictures: list[bytes]) -> Searches:
    """Deduplicate queries and number them; ``pictures`` are those of ``image_requests``, in its order."""
    texts = _texts(catalogue, requests)
    keys = np.array([""] * len(requests.user), dtype=object)
    written = np.flatnonzero(requests.query_kind == TEXT_QUERY)
    keys[written] = ["text " + text for text in texts]
    keys[image_requests(requests)] = ["image " + content_hash(picture) for picture in pictures]
    asking = np.flatnonzero(requests.query_kind)
    unique, first, inverse = np.unique(keys[asking].astype(str), return_index=True, return_inverse=True)
    of_request = np.zeros(len(keys), dtype=np.int64)
    of_request[asking] = inverse + 1
    kind = [key.split(" ", 1) for key in unique.tolist()]
    table = pa.table(
        [
            pa.array(np.arange(1, len(unique) + 1)),
            pa.array([value if name == "text" else None for name, value in kind], pa.string()),
            pa.array([value if name == "image" else None for name, value in kind], pa.string()),
            pa.nulls(len(unique), pa.string()),
        ],
        schema=QUERIES,
    )
    rows = asking[first]
    return Searches(of_request, table, asked_facets(requests)[rows], requests.wanted[rows])


def _texts(catalogue: Catalogue, requests: Requests) -> list[str]:
    """The text of each text query, e.g. ``"red striped mug"``."""
    written = np.flatnonzero(requests.query_kind == TEXT_QUERY)
    names = list(FACETS)
    texts = []
    for row, phrase in zip(requests.wanted[written].tolist(), requests.phrase[written].tolist(), strict=True):
        facet = catalogue.facet[row]
        words = (FACETS[name][facet[names.index(name)]] for name in PHRASES[phrase][0])
        texts.append(" ".join(words).lower())
    return texts


def judgements_table(catalogue: Catalogue, searches: Searches, rng: np.random.Generator) -> pa.Table:
    """Grade items for every query: the fraction of requested facets that match; 0 for another category.

    Up to ten items of each of three kinds are judged: exact, partial match in the category, another category.
    """
    asked, wanted, queries = searches.asked, searches.wanted, searches.table
    start = np.searchsorted(catalogue.facet[:, 0], np.arange(len(FACETS["leaf"]) + 1))
    items, grades, owners = [], [], []
    for query in range(len(wanted)):
        leaf = catalogue.facet[wanted[query], 0]
        rows = np.arange(start[leaf], start[leaf + 1])
        same = catalogue.facet[rows][:, asked[query]] == catalogue.facet[wanted[query], asked[query]]
        grade = same.mean(axis=1)
        exact, partial = rows[grade == 1], rows[grade < 1]
        elsewhere = rng.integers(0, len(catalogue) - len(rows), size=JUDGED["irrelevant"])
        elsewhere = np.unique(np.where(elsewhere >= start[leaf], elsewhere + len(rows), elsewhere))
        exact = rng.permutation(exact)[: JUDGED["exact"]]
        partial = rng.permutation(partial)[: JUDGED["partial"]]
        chosen = np.concatenate([exact, partial, elsewhere])
        items.append(chosen)
        grades.append(
            np.concatenate([grade[exact - rows[0]], grade[partial - rows[0]], np.zeros(len(elsewhere))])
        )
        owners.append(np.full(len(chosen), query))
    owner = np.concatenate(owners) if owners else np.zeros(0, dtype=np.int64)
    names = (
        queries.column("text").fill_null("").to_pylist(),
        queries.column("image_id").fill_null("").to_pylist(),
    )
    keys = np.array(
        [int(content_hash(f"q {text}{image}".encode()), 16) >> 1 for text, image in zip(*names, strict=True)],
        dtype=np.int64,
    )
    part = np.where(
        keys % 10 < 7, "train", "test"
    )  # by hash of the content, so a query is in the same part in every run
    columns = [
        queries.column("query_id").take(pa.array(owner)),
        pa.array(catalogue.item_id[np.concatenate(items)] if items else [], pa.int64()),
        pa.array(np.concatenate(grades) if grades else [], pa.float32()),
        pa.array(part[owner], pa.string()),
    ]
    return pa.table(columns, schema=JUDGEMENTS)
