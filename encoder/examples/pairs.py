"""Positive pairs for post-training, from user behaviour before the encoder's cut-off time and from judgements.

Shapes: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.order import sequence_of
from dataset.withheld import withheld_queries
from encoder.examples.corpus import Corpus, Side

WINDOW_US = 24 * 3600 * 1_000_000  # two behaviours of a user less than a day apart count as one shopping trip
LAGS = 4  # each behaviour is paired with at most this many of the user's next ones
RELEVANT = 0.5  # judgements above this are positives


@dataclass(frozen=True)
class Pairs:
    """P positive pairs, as rows of the corpus.

    Attributes:
        anchor: int64 (P), rows of the queries or of the items.
        item: int64 (P), rows of the items.
    """

    anchor: np.ndarray
    item: np.ndarray

    def __len__(self) -> int:
        return len(self.item)


def positive_log(log: pa.Table, until: datetime) -> pa.Table:
    """Clicks, carts, purchases and liked ratings that were available before ``until``."""
    before = log.filter(pc.less(log["available_time"], pa.scalar(until, type=log["available_time"].type)))
    positive = np.isin(behaviour_codes(before["type"], before["value"]), POSITIVE_CODES)
    return before.filter(pa.array(positive))


def item_pairs(log: pa.Table, until: datetime, items: Side) -> Pairs:
    """Pairs of items that one user clicked or bought within a day, repeated as often as it happened.

    Args:
        log: EVENTS; those available at ``until`` or later are ignored.
        until: the encoder's cut-off time.
        items: turns ids into rows; events of unknown items are ignored.
    """
    events = positive_log(log, until)
    user = events["user_id"].to_numpy()
    time = events["event_time"].cast(pa.int64()).to_numpy()
    row = items.rows(events["item_id"].to_numpy())
    order = np.lexsort((sequence_of(events), time, user))
    order = order[row[order] >= 0]
    user, time, row = user[order], time[order], row[order]
    first, second = [], []
    for lag in range(1, min(LAGS, len(row) - 1) + 1):
        together = (
            (user[:-lag] == user[lag:]) & (time[lag:] - time[:-lag] < WINDOW_US) & (row[:-lag] != row[lag:])
        )
        first.append(row[:-lag][together])
        second.append(row[lag:][together])
    empty = np.empty(0, dtype=np.int64)
    return Pairs(np.concatenate([empty, *first]), np.concatenate([empty, *second]))


def query_pairs(log: pa.Table, until: datetime, judgements: pa.Table, queries: Side, items: Side) -> Pairs:
    """Distinct (query, item) pairs where the item was clicked or bought from the query, or judged relevant to it.

    Args:
        log: EVENTS; those available at ``until`` or later are ignored.
        until: the encoder's cut-off time.
        judgements: JUDGEMENTS; only part "train" is read, without the queries withheld from learning.
        queries, items: turn ids into rows.
    """
    events = positive_log(log, until)
    events = events.filter(pc.is_valid(events["query_id"]))
    judged = judgements.filter(
        pc.and_(pc.equal(judgements["part"], "train"), pc.greater(judgements["relevance"], RELEVANT))
    )
    query_id = np.concatenate([t["query_id"].to_numpy() for t in (events, judged)]).astype(np.int64)
    anchor = queries.rows(query_id)
    item = items.rows(np.concatenate([t["item_id"].to_numpy() for t in (events, judged)]).astype(np.int64))
    known = (anchor >= 0) & (item >= 0) & ~np.isin(query_id, withheld_queries(judgements))
    both = np.unique(np.stack([anchor[known], item[known]], axis=1), axis=0)
    return Pairs(both[:, 0], both[:, 1])


def own_pairs(items: Side) -> Pairs:
    """Every item that has text or a picture, paired with itself."""
    rows = np.flatnonzero(items.has_text | items.has_image)
    return Pairs(rows, rows)


def variant_pairs(spu: np.ndarray) -> Pairs:
    """Every two items of one product, in both orders; items of large products are paired with the next LAGS only.

    Args:
        spu: int64, product code of each row.
    """
    order = np.argsort(spu, kind="stable")
    first, second = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for lag in range(1, LAGS + 1):
        left, right = order[:-lag], order[lag:]
        same = spu[left] == spu[right]
        first += [left[same], right[same]]
        second += [right[same], left[same]]
    return Pairs(np.concatenate(first), np.concatenate(second))


@dataclass(frozen=True)
class Relations:
    """All positive pairs, by relation.

    Attributes:
        own: an item with itself, in two views.
        variant: two items of one product.
        query: a query and an item clicked or bought from it, or judged relevant.
        bought: two items that one user took on one trip.
    """

    own: Pairs
    variant: Pairs
    query: Pairs
    bought: Pairs

    def counts(self) -> dict[str, int]:
        """Number of pairs of each relation."""
        return {name: len(getattr(self, name)) for name in ("own", "variant", "query", "bought")}


def read_relations(
    log: pa.Table, until: datetime, judgements: pa.Table, corpus: Corpus, purchases: bool = False
) -> Relations:
    """All positive pairs of a corpus.

    Args:
        log: EVENTS; those available at ``until`` or later are ignored.
        until: the encoder's cut-off time.
        judgements: JUDGEMENTS; only part "train" is read.
        corpus: turns ids into rows.
        purchases: use purchases only, if the log has any.
    """
    if purchases:
        bought = log.filter(pc.equal(log["type"], "purchase"))
        log = bought if len(bought) else log
    return Relations(
        own=own_pairs(corpus.items),
        variant=variant_pairs(corpus.spu),
        query=query_pairs(log, until, judgements, corpus.queries, corpus.items),
        bought=item_pairs(log, until, corpus.items),
    )
