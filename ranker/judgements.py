"""What the relevance head learns from: judged pairs of a query and an item, and the features of the items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from dataset.tables import Dataset
from dataset.withheld import withheld_queries
from feature_repo.columns import in_frames
from feature_repo.frames.join import join_features
from feature_repo.on_demand import reads_of
from feature_repo.signature import Feature, Signature
from feature_repo.vectors import Vectors
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US


@dataclass(frozen=True)
class JudgedPairs:
    """P pairs of a query and an item.

    Attributes:
        query, item: their vectors, float32 [P, V], unit norm.
        relevance: float32 [P], 0 to 1.
        item_id: int64 [P].
    """

    query: np.ndarray
    item: np.ndarray
    relevance: np.ndarray
    item_id: np.ndarray

    def __len__(self) -> int:
        return len(self.relevance)


def judged_pairs(dataset: Dataset, vectors: Vectors, part: str, seed: int) -> JudgedPairs:
    """Judged (query, item) pairs of a part, and as many with items drawn at random, which count as irrelevant.

    Judges see what a search engine proposed; without the drawn ones the head would never see an irrelevant item.
    Pairs without a vector on either side are left out, and queries that are withheld from learning.
    """
    judged = dataset.judgements.filter(pc.equal(dataset.judgements["part"], part))
    withheld = pa.array(withheld_queries(dataset.judgements))
    judged = judged.filter(pc.invert(pc.is_in(judged["query_id"], value_set=withheld)))
    rng = np.random.default_rng(seed)
    query_id = np.tile(judged["query_id"].to_numpy(), 2)
    item_id = np.concatenate([judged["item_id"].to_numpy(), rng.choice(vectors.ids, len(judged))])
    relevance = np.concatenate([judged["relevance"].to_numpy(), np.zeros(len(judged), np.float32)])
    query, asked = vectors.queries.gather(query_id)
    item, found = vectors.gather(item_id)
    known = asked & found
    return JudgedPairs(query[known], item[known], relevance[known], item_id[known])


def features_of_items(signature: Signature) -> tuple[Feature, ...]:
    """What the head reads of an item beside its vector: the item features of its service, without timestamps.

    A judgement has no time, so nothing has an age.
    """
    return tuple(one for one in in_frames(signature.features, "candidate") if one.kind != "timestamp")


def require_judgeable(store: FeatureStore, signature: Signature) -> None:
    """Refuse a service with features that a relevance head cannot read.

    A search is a text or a picture without an id, asked by anybody: nothing is stored about it.

    Raises:
        StoreError: the service lacks the vectors of items or queries, or names features of queries, users or
            requests, or features that are computed on demand.
    """
    compared = {one.role for one in signature.features if one.of_embedding}
    if compared != {"candidate", "query"}:
        raise StoreError(
            f'service {signature.service}: expected the tag vectors: "item, query", because the relevance head '
            f"compares both, found vectors of {', '.join(sorted(compared)) or 'nothing'}."
        )
    computed = {one.name for _, some in reads_of(store, signature.features).computed for one in some}
    wrong = [
        one
        for one in signature.features
        if not one.of_embedding and (one.role != "candidate" or one.name in computed)
    ]
    if wrong:
        raise StoreError(
            f"service {signature.service}: expected vectors and stored features of items, found "
            f"{', '.join(f'{one.name} (of the {one.role})' for one in wrong)}. A search has no id in the store, so "
            f"nothing more is known when it is answered: take them out of the service."
        )


def items_as_stored(
    store: FeatureStore, signature: Signature, item_id: np.ndarray, end: datetime
) -> Mapping[str, pa.Array]:
    """The features of ``features_of_items`` of N items, as the store had them before a moment.

    Args:
        store: the run's store.
        signature: of the head's service.
        item_id: int64 [N].
        end: the moment, with a time zone.
    """
    known, place = np.unique(item_id, return_inverse=True)
    times = np.full(len(known), (end - EPOCH) // US)
    found = join_features(store, "item_id", known, times, features_of_items(signature))
    return {name: column.take(pa.array(place)) for name, column in found.items()}
