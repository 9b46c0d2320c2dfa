"""Items like another one."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from retrieval.requests import Request, history_of
from retrieval.retriever import Retriever

NOBODY = -1


def alike(retriever: Retriever, item_id: int, k: int, now: datetime) -> tuple[str, np.ndarray, np.ndarray]:
    """The k items most like an item that the index holds.

    Returns:
        ``similarity``, the cosine of vectors, or ``cooccurrence`` for an item with neither words nor a picture: what
        its users took besides; ids int64 and scores float32, best first.
    """
    itself = np.array([item_id], dtype=np.int64)
    vectors, found = retriever.index.gather(itself)
    if found[0]:
        return "similarity", *retriever.index.search(vectors[0], k, exclude=itself)
    (together,) = (one for one in retriever.personal if one.name == "cooccurrence")
    request = Request(NOBODY, history_of([item_id]), now, exclude=itself)
    return "cooccurrence", *together.retrieve(request, k)
