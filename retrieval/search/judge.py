"""The relevance head of a run as the judge of a search, with the items' features as they were stored at the end."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np

from feature_repo.services import RELEVANCE
from feature_repo.signature import open_signature
from feature_repo.store import open_store
from ranker.judgements import items_as_stored
from ranker.relevance import Relevance
from retrieval.search.search import Judge
from run.artifacts import Artifact


def open_judge(head: Artifact, store_dir: Path, end: datetime) -> Judge:
    """What the head says of items, read as the store had them before ``end``.

    Raises:
        ArtifactError: the head was trained with other features than its service names.
    """
    store = open_store(store_dir)
    signature = open_signature(store, RELEVANCE)
    relevance = Relevance.open(head, signature)

    def judge(query: np.ndarray, item_id: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        items = items_as_stored(store, signature, item_id, end) if relevance.features else {}
        return relevance.score(query, vectors, items)

    return judge
