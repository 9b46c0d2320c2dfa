"""The requests the ranker learns from and is measured on, out of the feature store, with match columns.

Where slates were logged, its examples are those impressions. Where none were (a log of purchases only), they are
retrieved candidates: each request's next item among ``NEGATIVES`` others that retrieval proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.split import Split
from dataset.tables import Dataset
from feature_repo.offline import TrainingFrame, training_frame
from feature_repo.vectors import Vectors
from moon.sizes import Size
from retrieval.examples import MatchedFrames, chunks, example_rows, matched
from retrieval.jagged import Retrieved, stack
from retrieval.requests import Requests
from retrieval.retriever import Retriever
from retrieval.sources import CooccurrenceSource, PopularSource, Source, propose

NEGATIVES = 50
PER_SOURCE = 100
VALID_SHARE = 0.1


def match_sources(retriever: Retriever) -> tuple[Source, ...]:
    """The sources whose scores the ranker reads: behaviour only, so that content reaches it by one way (CUBE).

    The two-tower model is left out as well: it learned from the same requests as the ranker, which would trust
    a score that is better there than anywhere else.
    """
    behaviour = (CooccurrenceSource, PopularSource)
    return tuple(source for source in retriever.sources if isinstance(source, behaviour))


def ranker_frames(
    folder: Path, split: Split, size: Size, seed: int
) -> tuple[MatchedFrames, MatchedFrames, str]:
    """Training and validation requests of the ranker, and the loss that fits them.

    Returns:
        train, valid, and ``pointwise`` for logged impressions or ``listwise`` for retrieved candidates.
    """
    retriever = Retriever.open(folder, cooccurrence="cooccurrence_fit")
    sources = match_sources(retriever)
    if split.protocol == "time":
        train, valid = (_part(split.ranking, part) for part in ("train", "valid"))
        loss = "pointwise"
    else:
        requests = _part(split.retrieval, "train")
        found = retrieve(requests_frame(folder, requests, size), _unbiased(retriever), PER_SOURCE)
        rows = _with_positive(example_rows(requests, found, NEGATIVES, seed))
        chance = np.random.default_rng(seed).permutation(requests["request_id"].to_numpy())
        apart = np.isin(rows["request_id"].to_numpy(), chance[: int(VALID_SHARE * len(chance))])
        train, valid = rows.filter(pa.array(~apart)), rows.filter(pa.array(apart))
        loss = "listwise"
    frames = [training_frame(folder / "store", rows, size.history) for rows in (train, valid)]
    return matched(frames[0], sources), matched(frames[1], sources), loss


def _with_positive(rows: pa.Table) -> pa.Table:
    """The requests whose next item was retrieved: from the others a softmax over candidates learns nothing."""
    found = rows.filter(pc.greater(rows["label"], 0.5))["request_id"]
    return rows.filter(pc.is_in(rows["request_id"], pc.unique(found)))


def _unbiased(retriever: Retriever) -> tuple[Source, ...]:
    """The sources that did not learn from the ranker's training requests: all but the two-tower model.

    It would propose what these users took from memory, as it cannot for anyone else.
    """
    return tuple(source for source in retriever.recommending if source.name != "two_tower")


def requests_frame(folder: Path, requests: pa.Table, size: Size) -> TrainingFrame:
    """Requests with their users' features and histories; their one candidate is a stand-in nobody looks at.

    Args:
        folder: of the run.
        requests: RETRIEVAL rows.
        size: fixes the length of histories.
    """
    rows = requests.select(["request_id", "user_id", "time"])
    rows = rows.append_column("query_id", pa.nulls(len(rows), pa.int64()))
    first = requests["relevant"].combine_chunks()
    rows = rows.append_column("item_id", pc.list_element(first, 0))
    return training_frame(folder / "store", rows, size.history)


def retrieve(frames: TrainingFrame, sources: Sequence[Source], k: int) -> Retrieved:
    """The union of every source's k best items for each request, without what the user already took."""
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    for frame in chunks(frames, "retrieve"):
        requests = Requests.from_frame(frame, exclude_history=True)
        answers.extend(propose(sources, requests, k))
    return stack(answers)


def _part(table: pa.Table, part: str) -> pa.Table:
    return table.filter(pc.equal(table["part"], part))


def judged_pairs(dataset: Dataset, vectors: Vectors, part: str, seed: int) -> tuple[np.ndarray, ...]:
    """Judged (query, item) pairs of a part, and as many with items drawn at random, which count as irrelevant.

    Judges see what a search engine proposed; without the drawn ones the head would never meet a wrong item.

    Returns:
        query vectors and item vectors float32 [P, D], and relevance float32 [P]; empty without judgements.
    """
    judged = dataset.judgements.filter(pc.equal(dataset.judgements["part"], part))
    rng = np.random.default_rng(seed)
    query_id = np.tile(judged["query_id"].to_numpy(), 2)
    item_id = np.concatenate([judged["item_id"].to_numpy(), rng.choice(vectors.ids, len(judged))])
    relevance = np.concatenate([judged["relevance"].to_numpy(), np.zeros(len(judged), np.float32)])
    query, asked = vectors.queries.gather(query_id)
    item, found = vectors.gather(item_id)
    known = asked & found
    return query[known], item[known], relevance[known]
