"""The baselines computed from a shop's tables: purchases, texts and colours."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.jagged import entries, offsets_of
from evaluation.baselines import Baseline, Chance, Popularity, Repeats, Requests, Similarity
from evaluation.content import PlainContent, buyers
from evaluation.earlier import rows_before
from evaluation.retrieval_quality import Relevant


def positive_events(log: pa.Table) -> pa.Table:
    """The rows of an EVENTS table that say a user liked an item (click, cart, purchase, liked rating)."""
    return _behaviours(log, POSITIVE_CODES)


def _behaviours(log: pa.Table, codes: Collection[int]) -> pa.Table:
    """The rows of an EVENTS table that are behaviours of these codes."""
    return log.filter(pa.array(np.isin(behaviour_codes(log["type"], log["value"]), list(codes))))


def requests_of(log: pa.Table, retrieval: pa.Table, codes: Collection[int] = POSITIVE_CODES) -> Requests:
    """The items of the behaviours of the request's user that were available before the request, oldest first.

    Args:
        log: EVENTS rows, in any order; behaviours with available_time < request time are used.
        retrieval: rows of user_id and time, one per request (a user may have several).
        codes: of the behaviours that are used, if not the positive ones.

    Returns:
        Requests in the order of ``retrieval``.
    """
    events = _behaviours(log, codes).sort_by(
        [("user_id", "ascending"), ("available_time", "ascending"), ("sequence", "ascending")]
    )
    user, item = events["user_id"].to_numpy(), events["item_id"].to_numpy()
    available = pc.cast(events["available_time"], pa.int64()).to_numpy()
    asked_by = retrieval["user_id"].to_numpy()
    asked_at = pc.cast(pc.cast(retrieval["time"], pa.timestamp("us", tz="UTC")), pa.int64()).to_numpy()
    start, stop = rows_before(user, available, asked_by, asked_at)
    row, offsets = entries(start, stop - start)
    return Requests(offsets, item[row])


def relevant_of(retrieval: pa.Table) -> Relevant:
    """The ``relevant`` column (list of int64) of a retrieval table as ragged arrays."""
    column = retrieval["relevant"].combine_chunks()
    length = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    return Relevant(offsets_of(length), pc.list_flatten(column).to_numpy())


def shop_baselines(
    content: PlainContent, log: pa.Table, candidates: np.ndarray, repeats: bool, seed: int = 0
) -> dict[str, Baseline]:
    """Every named baseline over the candidates.

    Args:
        content: of all items; histories may hold any of them.
        log: EVENTS rows that baselines may use; only positive ones count.
        candidates: int64 item ids that may be recommended.
        repeats: whether what a user took before may be.
        seed: for the random baseline.

    Returns:
        popularity, chance, item_knn, tf_idf and, where the shop has pictures, colour, and where users take things
        again, repeats. (``baselines.tune_mix`` makes the mix from all but the first two.)
    """
    candidates, item_ids = np.sort(candidates), content.item_ids
    positive = positive_events(log)
    users, bought = positive["user_id"].to_numpy(), positive["item_id"].to_numpy()
    baselines: dict[str, Baseline] = {
        "popularity": Popularity(candidates, bought),
        "chance": Chance(candidates, seed),
        "item_knn": Similarity(candidates, item_ids, buyers(item_ids, users, bought)),
        "tf_idf": Similarity(candidates, item_ids, content.tf_idf),
    }
    if content.colour is not None:
        baselines["colour"] = Similarity(candidates, item_ids, content.colour)
    if repeats:
        baselines["repeats"] = Repeats(candidates)
    return baselines
