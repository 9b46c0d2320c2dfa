"""How well ranked lists find the items that users took next: recall, NDCG, MRR, coverage, by slice of items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import Measurement, coverage_at, hits, ndcg_at, recall_at, reciprocal_rank

RECALL_DEPTHS = (10, 20, 50)
NDCG_DEPTHS = (10, 20)
COVERAGE_DEPTH = 20
HIT_DEPTH = 10  # of tables of sequential recommenders: HR@10, NDCG@10
COLD_EVENTS = 1  # an item with at most this many positive training events is cold
HEAD_FRACTION = 0.8  # of positive training events: the most popular items that have it are the head


@dataclass(frozen=True)
class Relevant:
    """The relevant items of R requests.

    Attributes:
        offsets: int64 of shape (R + 1); request r owns item_id[offsets[r]:offsets[r + 1]].
        item_id: int64, distinct within a request.
    """

    offsets: np.ndarray
    item_id: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def only(self, items: np.ndarray) -> Relevant:
        """The same requests with only those relevant items that are among ``items``."""
        kept = np.isin(self.item_id, items)
        running = np.concatenate([[0], np.cumsum(kept)])
        return Relevant(running[self.offsets], self.item_id[kept])


def item_slices(
    item_ids: np.ndarray,
    positive_items: np.ndarray,
    first_seen_us: np.ndarray,
    fit_until_us: int,
    has_image: np.ndarray,
) -> dict[str, np.ndarray]:
    """Slices of items for which retrieval is hard.

    Args:
        item_ids: int64 of shape (N), the catalogue.
        positive_items: int64, the item of each positive training event.
        first_seen_us: int64 of shape (N), microseconds since 1970 UTC.
        fit_until_us: end of the training log in the same unit.
        has_image: bool of shape (N).

    Returns:
        ``cold``: at most one positive training event; ``new``: first seen at or after the end of training;
        ``no_image``: no picture; ``tail``: not among the most popular items that together have 80 % of positive
        training events. Each an int64 array of item ids.
    """
    ids, count = np.unique(positive_items, return_counts=True)
    events = np.zeros(len(item_ids), dtype=np.int64)
    if len(ids):
        place = np.minimum(np.searchsorted(ids, item_ids), len(ids) - 1)
        events = np.where(ids[place] == item_ids, count[place], 0)
    order = np.lexsort((item_ids, -events))
    before = np.cumsum(events[order]) - events[order]
    tail = np.zeros(len(item_ids), dtype=bool)
    tail[order] = before >= HEAD_FRACTION * events.sum()
    return {
        "cold": item_ids[events <= COLD_EVENTS],
        "new": item_ids[first_seen_us >= fit_until_us],
        "no_image": item_ids[~has_image],
        "tail": item_ids[tail],
    }


def retrieval_quality(
    ranked: np.ndarray,
    relevant: Relevant,
    catalogue: int,
    slices: Mapping[str, np.ndarray] | None = None,
    split: str = "test",
    prefix: str = "retrieval",
) -> Iterator[Measurement]:
    """Measure ranked lists against the relevant items.

    Args:
        ranked: int64 item ids of shape (R, K), best first, -1 after the end of a list; K at least max(RECALL_DEPTHS).
        relevant: the relevant items of the same R requests. Requests without any are ignored.
        catalogue: number of items that could have been listed.
        slices: name -> item ids. Only relevant items of the slice count, and requests that have one; the lists are
            the same, so that the slice's items compete with all others.
        split: the part of the data that the requests are from.
        prefix: first part of the names, e.g. ``retrieval`` or ``retrieval/popularity``.

    Yields:
        recall@k, ndcg@k, hit_rate@10 (requests of which any relevant item is listed) and mrr with n = requests with a
        relevant item, coverage@20 with n = catalogue; then ``prefix/slice/...`` recall@k and ndcg@k. Metrics without
        data are not yielded.

    Raises:
        ValueError: the lists are shorter than max(RECALL_DEPTHS), are not one per request, or repeat an item.
    """
    if ranked.ndim != 2 or len(ranked) != len(relevant) or ranked.shape[1] < max(RECALL_DEPTHS):
        raise ValueError(
            f"expected ranked ids of shape ({len(relevant)}, at least {max(RECALL_DEPTHS)}), found {ranked.shape}"
        )
    yield from _measure(ranked, relevant, split, prefix, whole=True)
    if len(ranked) and catalogue:
        yield Measurement(
            f"{prefix}/coverage@{COVERAGE_DEPTH}",
            coverage_at(ranked, COVERAGE_DEPTH, catalogue),
            catalogue,
            split,
        )
    for name, items in (slices or {}).items():
        yield from _measure(ranked, relevant.only(items), split, f"{prefix}/{name}", whole=False)


def _measure(
    ranked: np.ndarray, relevant: Relevant, split: str, prefix: str, whole: bool
) -> Iterator[Measurement]:
    count = np.diff(relevant.offsets)
    counted = count > 0
    requests = int(counted.sum())
    if requests == 0:
        return
    hit = hits(ranked, relevant.offsets, relevant.item_id)[counted]
    count = count[counted]
    for k in RECALL_DEPTHS:
        yield Measurement(f"{prefix}/recall@{k}", float(recall_at(hit, count, k).mean()), requests, split)
    for k in NDCG_DEPTHS:
        yield Measurement(f"{prefix}/ndcg@{k}", float(ndcg_at(hit, count, k).mean()), requests, split)
    if whole:
        found = float(hit[:, :HIT_DEPTH].any(axis=1).mean())
        yield Measurement(f"{prefix}/hit_rate@{HIT_DEPTH}", found, requests, split)
        yield Measurement(f"{prefix}/mrr", float(reciprocal_rank(hit).mean()), requests, split)
