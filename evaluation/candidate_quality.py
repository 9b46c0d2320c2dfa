"""What each source of candidates finds, what only it finds, and how much of it the candidates keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dataset.jagged import owners
from evaluation.metrics import Measurement
from evaluation.retrieval_quality import Relevant
from retrieval.jagged import Retrieved

DEPTHS = (50, 200, 500)
ABSENT = np.iinfo(np.int64).max


def candidate_quality(
    alone: Mapping[str, Retrieved], candidates: Retrieved, relevant: Relevant, split: str = "test"
) -> Iterator[Measurement]:
    """Measure the sources' answers and the candidates made of them.

    Args:
        alone: source -> its answers to R requests, as deep as the largest of DEPTHS.
        candidates: the same fused, in their order.
        relevant: the relevant items of the same requests. Requests without any are ignored.
        split: the part of the data that the requests are from.

    Yields:
        ``candidates/<source>/recall@k``: the mean share of a request's relevant items that are among the source's
        first k; ``candidates/<source>/unique@k``: that are in no other source's first k;
        ``candidates/union/recall@k``: in any source's first k; ``candidates/fused/recall@k``: among the first k
        candidates. n = requests with a relevant item; nothing without one.
    """
    count = np.diff(relevant.offsets)
    requests = int((count > 0).sum())
    if not requests:
        return
    share = 1 / count[owners(relevant.offsets)] / requests
    place = {name: places(found, relevant) for name, found in alone.items()}
    every = np.stack(list(place.values()))
    fused = places(candidates, relevant)
    for k in DEPTHS:
        sources = (every < k).sum(axis=0)
        for name, own in place.items():
            found = own < k
            yield Measurement(f"candidates/{name}/recall@{k}", float(share @ found), requests, split)
            unique = float(share @ (found & (sources == 1)))
            yield Measurement(f"candidates/{name}/unique@{k}", unique, requests, split)
        yield Measurement(f"candidates/union/recall@{k}", float(share @ (sources > 0)), requests, split)
        yield Measurement(f"candidates/fused/recall@{k}", float(share @ (fused < k)), requests, split)


def places(found: Retrieved, relevant: Relevant) -> np.ndarray:
    """The place from 0 of each relevant item in its request's answers, int64; ABSENT where it is not there."""
    out = np.full(len(relevant.item_id), ABSENT)
    for request, (ids, _) in enumerate(found):
        for row in range(relevant.offsets[request], relevant.offsets[request + 1]):
            at = np.flatnonzero(ids == relevant.item_id[row])
            out[row] = at[0] if len(at) else ABSENT
    return out
