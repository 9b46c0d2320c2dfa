"""The requests the ranker learns from and is measured on, out of the feature store, with match columns.

Where slates were logged, its examples are those impressions. Where none were (a log of purchases only), they are
retrieved candidates: each request's next item among ``NEGATIVES`` others that retrieval proposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.split import Split
from dataset.tables import Dataset
from feature_repo.frame_shards import find_frame
from feature_repo.frame_source import FrameSource
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
LOGGED = "frames/logged"  # of a run: its frame of logged requests
BATCH_ROWS = 1 << 16  # of logged rows in memory at once, beside those that are kept


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
        frames = logged_frames(folder, split, size, ("train", "valid"))
        loss = "pointwise"
    else:
        requests = _part(split.retrieval, "train")
        found = retrieve(requests_frame(folder, requests, size), _unbiased(retriever), PER_SOURCE)
        rows = _with_positive(example_rows(requests, found, NEGATIVES, seed))
        chance = np.random.default_rng(seed).permutation(requests["request_id"].to_numpy())
        apart = np.isin(rows["request_id"].to_numpy(), chance[: int(VALID_SHARE * len(chance))])
        parts = rows.filter(pa.array(~apart)), rows.filter(pa.array(apart))
        frames = [training_frame(folder / "store", part, size.history) for part in parts]
        loss = "listwise"
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


def logged_frames(folder: Path, split: Split, size: Size, parts: Sequence[str]) -> list[TrainingFrame]:
    """The logged impressions of some parts: out of the frame that ``moon frame`` left, or joined now.

    A frame of another store, split or history is not looked at.
    """
    frame = find_frame(logged_source(folder, split, size), folder / LOGGED)
    if frame is None:
        rows = [_part(split.ranking, part) for part in parts]
        return [training_frame(folder / "store", some, size.history) for some in rows]
    part = frame.given["part"].take(frame.offsets[:-1])
    return [frame.only(np.flatnonzero(pc.equal(part, one).to_numpy())) for one in parts]


def logged_source(folder: Path, split: Split, size: Size) -> FrameSource:
    """What the run's frame of logged requests is made from."""
    rows = partial(logged_rows, split)
    return FrameSource(folder / "store", rows, size.history, {"split": split.artifact})


def logged_rows(split: Split) -> Iterator[pa.Table]:
    """What the log itself asked and answered, as request rows for ``training_frame``, a few at a time.

    Yields:
        impressions (RANKING) where there are some; of a log of purchases only, each retrieval request with what was
        taken next, label 1. ``part`` says which are train, valid and test.
    """
    logged = split.protocol == "time"
    file = pq.ParquetFile(split.artifact.file("ranking.parquet" if logged else "retrieval.parquet"))
    yield _taken(file.schema_arrow.empty_table())
    for batch in file.iter_batches(BATCH_ROWS):
        yield _taken(pa.Table.from_batches([batch]))


def _taken(requests: pa.Table) -> pa.Table:
    """A row per item taken next, of RETRIEVAL rows; RANKING rows as they are."""
    if "relevant" not in requests.column_names:
        return requests
    rows = requests.take(pc.list_parent_indices(requests["relevant"])).drop_columns(["relevant"])
    rows = rows.append_column("query_id", pa.nulls(len(rows), pa.int64()))
    rows = rows.append_column("item_id", pc.list_flatten(requests["relevant"]))
    return rows.append_column("label", pa.array(np.ones(len(rows), np.float32)))


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
