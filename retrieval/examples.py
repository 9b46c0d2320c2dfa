"""What the ranker learns from: logged slates where there are some, retrieved candidates where there are none.

Legend: R requests, C candidates, S match columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from dataset.contracts import TIME
from feature_repo.frame import Frame
from moon.progress import track
from retrieval.jagged import Retrieved, owners
from retrieval.requests import Requests
from retrieval.sources import Source, add_matches, match_scores

CHUNK_REQUESTS = 2048


class StoredRequests(Protocol):
    """Requests with candidates, read from the feature store (``feature_repo.offline.TrainingFrame``)."""

    @property
    def num_candidates(self) -> int:
        """C."""
        ...

    def __len__(self) -> int:
        """R."""
        ...

    def take(self, start: int, stop: int) -> Frame:
        """Requests ``start`` to ``stop``."""
        ...

    def select(self, request_rows: np.ndarray) -> Frame:
        """The requests at these rows, in this order."""
        ...


@dataclass(frozen=True)
class MatchedFrames:
    """Stored requests whose candidates also carry ``match_*`` columns, computed once.

    Attributes:
        stored: the requests.
        names: the S columns.
        matches: float32 [C, S], in the order of the candidates.
        offsets: int64 [R + 1].
    """

    stored: StoredRequests
    names: tuple[str, ...]
    matches: np.ndarray
    offsets: np.ndarray

    @property
    def num_candidates(self) -> int:
        """C."""
        return self.stored.num_candidates

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, start: int, stop: int) -> Frame:
        """Requests ``start`` to ``stop`` with their match columns."""
        return add_matches(
            self.stored.take(start, stop),
            self.names,
            self.matches[self.offsets[start] : self.offsets[stop]],
        )

    def select(self, request_rows: np.ndarray) -> Frame:
        """The requests at these rows, in this order, with their match columns."""
        counts = self.offsets[request_rows + 1] - self.offsets[request_rows]
        first = np.cumsum(counts) - counts
        place = np.repeat(self.offsets[request_rows] - first, counts) + np.arange(counts.sum())
        return add_matches(self.stored.select(request_rows), self.names, self.matches[place])

    def without(self, prefix: str) -> MatchedFrames:
        """The same without the match columns that start with ``prefix``."""
        kept = [column for column, name in enumerate(self.names) if not name.startswith(prefix)]
        names = tuple(self.names[column] for column in kept)
        return MatchedFrames(self.stored, names, self.matches[:, kept], self.offsets)


def chunks(stored: StoredRequests, description: str) -> Iterator[Frame]:
    """The requests a few thousand at a time, in order, with progress."""
    starts = range(0, len(stored), CHUNK_REQUESTS)
    for start in track(starts, description, unit=f"x {CHUNK_REQUESTS} requests"):
        yield stored.take(start, min(start + CHUNK_REQUESTS, len(stored)))


def matched(stored: StoredRequests, sources: Sequence[Source]) -> MatchedFrames:
    """Score every (request, candidate) pair with every source, as serving does."""
    names: tuple[str, ...] = tuple(f"match_{source.name}" for source in sources)
    parts, counts = [np.empty((0, len(names)), np.float32)], [np.zeros(1, np.int64)]
    for frame in chunks(stored, "match candidates"):
        item_id = frame.candidates["item_id"].to_numpy()
        parts.append(match_scores(sources, Requests.from_frame(frame), item_id, frame.offsets)[1])
        counts.append(np.diff(frame.offsets))
    return MatchedFrames(stored, names, np.concatenate(parts), np.cumsum(np.concatenate(counts)))


def example_rows(
    requests: pa.Table, retrieved: Retrieved, negatives: int | None = None, seed: int = 0
) -> pa.Table:
    """Rows of (request, candidate, label) out of retrieved candidates.

    Relevant items that were not retrieved are not added: no source speaks for them, and a ranker that met them as
    positives would learn that what no source speaks for is good (measured in LOG.md).

    Args:
        requests: R rows with request_id, user_id, time and relevant (list of the items taken next).
        retrieved: candidates of the same R requests.
        negatives: how many candidates that were not taken to keep of each request, drawn uniformly; None: all.
        seed: of the drawing.

    Returns:
        request_id, user_id, time, query_id (null), item_id, label float32; grouped by request, in order.
    """
    rng = np.random.default_rng(seed)
    request = owners(retrieved.offsets)
    relevant = requests["relevant"].combine_chunks()
    wanted = relevant.flatten().to_numpy()
    taken = owners(relevant.offsets.to_numpy() - relevant.offsets[0].as_py())
    _, code = np.unique(np.concatenate([retrieved.item_id, wanted]), return_inverse=True)
    pair = np.concatenate([request, taken]) * (code.max(initial=0) + 1) + code
    label = np.isin(pair[: len(request)], pair[len(request) :])
    order = np.lexsort((rng.random(len(request)), label, request))
    place = np.arange(len(order)) - retrieved.offsets[request[order]]
    kept = order if negatives is None else order[(place < negatives) | label[order]]
    order = kept[np.lexsort((rng.random(len(kept)), request[kept]))]
    rows = pa.array(request[order])
    return pa.table(
        {
            "request_id": requests["request_id"].take(rows),
            "user_id": requests["user_id"].take(rows),
            "time": requests["time"].take(rows).cast(TIME),
            "query_id": pa.nulls(len(order), pa.int64()),
            "item_id": pa.array(retrieved.item_id[order]),
            "label": pa.array(label[order].astype(np.float32)),
        }
    )
