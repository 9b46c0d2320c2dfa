"""Replay test requests through the serving path: the same sources, features and scoring function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.split import Split
from feature_repo.embeddings import as_stored
from feature_repo.frames.join import TrainingFrame
from feature_repo.frames.logged import logged_frames
from feature_repo.vectors import Vectors
from ranker.controls import rankers as controls
from ranker.order import RETRIEVED
from ranker.score import Ranker, score_together
from retrieval.examples import (
    chunks,
    match_names,
    matched,
)
from retrieval.explore import with_rare
from retrieval.fusion import fuse
from retrieval.jagged import Retrieved, best_first
from retrieval.proposals import Proposed
from retrieval.retriever import Retriever
from run.artifacts import open_artifact
from run.sizes import Size

EXPLORED = {f"explore_{height}": height for height in (0.1, 0.2, 0.5, 1.0, 1.5)}


def open_rankers(folder: Path, vectors: Vectors, seed: int) -> dict[str, Ranker]:
    """The ranker of a run and its controls, each with the vectors it was trained with."""
    vectors = as_stored(vectors, folder / "store")
    return {
        name: Ranker.open(open_artifact(folder / f"ranker_{name}", "ranker"), reads.vectors)
        for name, reads in controls(vectors, seed).items()
    }


@dataclass(frozen=True)
class Impressions:
    """Logged test impressions and every ranker's logits for them.

    Attributes:
        item_id, user_id, event_id: int64 of shape (C).
        position: int64 of shape (C), position in the logged slate, 0 when not logged.
        label: float32 of shape (C), 1 clicked, 0 not.
        known_user: bool of shape (C), whether the user had a history.
        logits: ranker -> float32 of shape (C).
    """

    item_id: np.ndarray
    user_id: np.ndarray
    event_id: np.ndarray
    position: np.ndarray
    label: np.ndarray
    known_user: np.ndarray
    logits: Mapping[str, np.ndarray]


def score_impressions(
    folder: Path, split: Split, size: Size, retriever: Retriever, rankers: Mapping[str, Ranker]
) -> Impressions:
    """Score the test impressions of a split; it must have some."""
    rows = split.ranking.filter(pc.equal(split.ranking["part"], "test"))
    (stored,) = logged_frames(folder, split, size, ("test",))
    behaved = np.repeat(stored.positions > 0, np.diff(stored.offsets))
    return Impressions(
        item_id=rows["item_id"].to_numpy(),
        user_id=rows["user_id"].to_numpy(),
        event_id=rows["event_id"].to_numpy(),
        position=rows["position"].fill_null(0).to_numpy(),
        label=rows["label"].to_numpy(),
        known_user=behaved,
        logits=scores_of(stored, retriever, rankers),
    )


def scores_of(
    stored: TrainingFrame, retriever: Retriever, rankers: Mapping[str, Ranker]
) -> dict[str, np.ndarray]:
    """Every ranker's logits, float32 (C); one that learned from fewer columns reads those that hold them all."""
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.float32)] for name in rankers}
    readers = [retriever.without_content(), retriever.without_vectors(), retriever]
    known = [set(match_names(reader)) for reader in readers]
    first = {
        name: next((number for number, names in enumerate(known) if one.matches <= names), len(readers) - 1)
        for name, one in rankers.items()
    }
    for number, reader in enumerate(readers):
        reading = {name: one for name, one in rankers.items() if first[name] == number}
        if not reading:
            continue
        history = max(one.history for one in reading.values())
        for frame in chunks(matched(stored, reader, history), "score candidates"):
            for name, scores in score_together(reading, frame).items():
                parts[name].append(scores)
    return {name: np.concatenate(scores) for name, scores in parts.items()}


def rank_requests(
    folder: Path,
    requests: pa.Table,
    size: Size,
    retriever: Retriever,
    rankers: Mapping[str, Ranker],
    found: Proposed,
    k: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Answer retrieval requests with single sources, combinations of them and rankers, for comparison.

    Args:
        folder: folder of the run.
        requests: R rows of RETRIEVAL.
        size: gives the length of histories.
        retriever: the sources.
        rankers: name -> ranker.
        found: what the sources propose to these requests.
        k: length of the lists.

    Yields:
        name and int64 item ids of shape (R, k), best first, -1 after the end of a list: ``source_<name>`` for every
        source alone, ``without_<name>`` for all other sources fused, ``candidates`` for all sources fused, then
        ``ranker_<name>`` for the answers of the service with each ranker; and ``explore_<height>`` for those with
        ``full`` where what almost nobody acted on is raised by so much (``retrieval.explore``).
    """
    for name, answered in found.alone.items():
        yield f"source_{name}", lists(answered, k)
        others = [other for other in found.alone if other != name]
        fused = fuse([found.alone[other] for other in others], retriever.weights.of(others), k)
        yield f"without_{name}", lists(fused, k)
    yield "candidates", lists(found.candidates, k)
    stored, offsets = found.frame(folder, requests, size)
    item_id, retrieved = (stored.given[name].to_numpy() for name in ("item_id", RETRIEVED))
    for name, scores in scores_of(stored, retriever, rankers).items():
        order = retriever.weights.order(retrieved, scores, rankers[name].order)
        scored = Retrieved(offsets, item_id, order)
        yield f"ranker_{name}", lists(scored, k)
        if name == "full":
            rare = retriever.popular.rare(item_id)
            for explored, height in EXPLORED.items():
                yield explored, explored_lists(scored, rare, k, height)


def lists(retrieved: Retrieved, k: int) -> np.ndarray:
    """The k best of each request as int64 of shape (R, k), -1 after the end of a list."""
    out = np.full((len(retrieved), k), -1, dtype=np.int64)
    for request, (ids, scores) in enumerate(retrieved):
        best, _ = best_first(ids, scores, k)
        out[request, : len(best)] = best
    return out


def explored_lists(scored: Retrieved, rare: np.ndarray, k: int, height: float) -> np.ndarray:
    """``lists`` with rare items, bool of shape (C), raised."""
    out = np.full((len(scored), k), -1, dtype=np.int64)
    for request, (ids, scores) in enumerate(scored):
        own = slice(scored.offsets[request], scored.offsets[request + 1])
        best, _, _ = with_rare(ids, scores, rare[own], k, height)
        out[request, : len(best)] = best
    return out
