"""Training and test requests of the ranker, from the feature store, with match columns.

Where the log says what was shown, its examples are those impressions. Where it says only what was taken, each item
taken stands among others that could have been shown (``others``).

Legend: R requests, C candidates, S match columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import TIME, DataError
from dataset.jagged import owners
from dataset.later import followed, steps_of
from dataset.log import microseconds, pairs
from dataset.split import Split
from feature_repo.frame import Frame, StoredRequests
from feature_repo.frames.join import TrainingFrame, training_frame
from feature_repo.frames.logged import logged_frames, logged_streams, of_part
from feature_repo.frames.stream import FrameStream
from feature_repo.services import RETRIEVAL
from feature_repo.signature import Signature
from moonstore.disk import writing
from ranker.inputs.columns import LABEL
from retrieval.jagged import Retrieved, stack
from retrieval.requests import Requests
from retrieval.retriever import Retriever
from retrieval.sources import (
    PER_SOURCE,
    Source,
    add_matches,
    match_scores,
    propose,
)
from run.progress import track
from run.sizes import Size

PARTS = ("train", "valid")  # of the requests that the ranker learns from
VALID_SHARE = 5  # where training requests are drawn, one in how many of them validates
CHUNK_REQUESTS = 128  # so that progress shows where each has hundreds of candidates
NEGATIVES, FEWEST = 50, 20  # others of an item taken, at most and at least
MOST_OTHERS = 720_000  # of all items taken, where that leaves each at least FEWEST
ENOUGH = 100  # requests whose item retrieval found, to learn from them alone
BEHAVIOUR = ("cooccurrence", "two_tower", "repeats", "popular")  # sources whose scores the ranker reads


@dataclass(frozen=True)
class MatchedFrames:
    """Stored requests whose candidates also carry ``match_*`` columns, computed once.

    Attributes:
        stored: the requests, with the histories that retrieval reads.
        names: the S columns.
        matches: float32 [C, S], in the order of the candidates.
        offsets: int64 [R + 1].
        history: most behaviours that its frames hold; None: as ``stored``.
    """

    stored: TrainingFrame | FrameStream
    names: tuple[str, ...]
    matches: np.ndarray
    offsets: np.ndarray
    history: int | None = None

    @cached_property
    def read(self) -> TrainingFrame | FrameStream:
        """The requests with the histories that the ranker reads."""
        return self.stored if self.history is None else self.stored.reading(self.history)

    @property
    def signature(self) -> Signature:
        """The features of the store that the frames hold."""
        return self.stored.signature

    @property
    def windows(self) -> np.ndarray | None:
        """The part of the frame that each request is read with, see ``StoredRequests``."""
        return self.stored.windows

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, start: int, stop: int) -> Frame:
        """Requests ``start`` to ``stop`` with their match columns."""
        return add_matches(
            self.read.take(start, stop),
            self.names,
            self.matches[self.offsets[start] : self.offsets[stop]],
        )

    def select(self, request_rows: np.ndarray) -> Frame:
        """The requests at these rows, in this order, with their match columns."""
        counts = self.offsets[request_rows + 1] - self.offsets[request_rows]
        first = np.cumsum(counts) - counts
        place = np.repeat(self.offsets[request_rows] - first, counts) + np.arange(counts.sum())
        return add_matches(self.read.select(request_rows), self.names, self.matches[place])

    def only(self, request_rows: np.ndarray, label: np.ndarray) -> MatchedFrames:
        """The requests at these rows, with other labels, float32 of as many as they have candidates."""
        assert isinstance(self.stored, TrainingFrame)
        candidate, offsets = self.stored.candidates_of(request_rows)
        stored = self.stored.only(request_rows).labelled(label)
        return MatchedFrames(stored, self.names, self.matches[candidate], offsets, self.history)


def chunks(stored: StoredRequests, description: str) -> Iterator[Frame]:
    """Some requests at a time, in order, with progress."""
    starts = range(0, len(stored), CHUNK_REQUESTS)
    for start in track(starts, description, unit=f"x {CHUNK_REQUESTS} requests"):
        yield stored.take(start, min(start + CHUNK_REQUESTS, len(stored)))


def matched(
    stored: TrainingFrame | FrameStream, retriever: Retriever, history: int | None = None
) -> MatchedFrames:
    """Every (request, candidate) pair with the scores of ``match_sources`` and all similarities, as in serving.

    Args:
        stored: the requests, with the histories that retrieval reads.
        retriever: whose scores.
        history: most behaviours that the ranker reads; None: as retrieval.
    """
    sources, similarities, names = match_sources(retriever), retriever.similarities, match_names(retriever)
    counts = [np.zeros(1, np.int64)]

    def pieces() -> Iterator[np.ndarray]:
        for frame in chunks(stored, "match candidates"):
            item_id = frame.candidates["item_id"].to_numpy()
            requests = Requests.from_frame(frame)
            scores = match_scores(sources, requests, item_id, frame.offsets)[1]
            counts.append(np.diff(frame.offsets))
            yield np.concatenate([scores, similarities.of(requests, item_id, frame.offsets)], axis=1)

    if isinstance(stored, FrameStream):
        matches = _on_disk(pieces(), len(names), stored.folder)
    else:
        matches = np.concatenate([np.empty((0, len(names)), np.float32), *pieces()])
    return MatchedFrames(stored, names, matches, np.cumsum(np.concatenate(counts)), history)


def _on_disk(pieces: Iterator[np.ndarray], width: int, folder: Path) -> np.ndarray:
    """The pieces one after the other, float32 [C, width], in a file that is gone when nobody reads it any more."""
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        for piece in pieces:
            file.write(piece.astype(np.float32).tobytes())
        file.flush()
        rows = file.tell() // (width * np.dtype(np.float32).itemsize) if width else 0
        if not rows:
            return np.empty((0, width), np.float32)
        return np.asarray(np.memmap(file, np.float32, "r", shape=(rows, width)))


def example_rows(
    requests: pa.Table, retrieved: Retrieved, negatives: int | None = None, seed: int = 0
) -> pa.Table:
    """Rows of (request, candidate, label) from retrieved candidates.

    Relevant items that were not retrieved are not added: no source scores them, and a ranker that saw them as
    positives would learn that items without match scores are good
    (docs/log/ranker.md#positives-that-were-not-retrieved).

    Args:
        requests: R rows with request_id, user_id, time and relevant (list of the items taken next).
        retrieved: candidates of the same R requests.
        negatives: how many negative candidates to keep of each request, drawn uniformly; None: all.
        seed: of the drawing.

    Returns:
        request_id, user_id, time, query_id (null), item_id, label float32; grouped by request, in order.
    """
    rng = np.random.default_rng(seed)
    request = owners(retrieved.offsets)
    relevant = requests["relevant"].combine_chunks()
    wanted = relevant.flatten().to_numpy()
    taken = owners(relevant.offsets.to_numpy() - relevant.offsets[0].as_py())
    pair = pairs(np.concatenate([request, taken]), np.concatenate([retrieved.item_id, wanted]))
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


def found_ones(taken: pa.Table, found: Retrieved) -> tuple[pa.Table, Retrieved]:
    """The requests whose item retrieval found, if they are ENOUGH; else all.

    A ranker orders what retrieval found. An item that it did not find stands among the whole catalogue, most of which
    is hardly known or long gone: who learns to tell those orders candidates worse
    (docs/log/ranker.md#only-what-was-found). So few as teach nothing alone are joined by the others.

    Args:
        taken: R rows of one request each, with item_id.
        found: candidates of the same R requests.
    """
    answered = [item in ids for item, (ids, _) in zip(taken["item_id"].to_numpy(), found, strict=True)]
    rows = np.flatnonzero(answered)
    if len(rows) < ENOUGH:
        return taken, found
    return taken.take(pa.array(rows)), stack(found[row] for row in rows.tolist())


def among_others(
    taken: pa.Table, found: Retrieved, item_ids: np.ndarray, most: int, seed: int = 0
) -> pa.Table:
    """Training rows of requests of which only the item taken is known: it among at most ``most`` others.

    The others are of the same kind as the item: where retrieval found it, other items that retrieval found; where it
    did not, items of the catalogue that it did not find either. Were it otherwise, the ranker would learn from the
    mixture that items no source speaks for are good (docs/log/ranker.md#positives-that-were-not-retrieved).

    Args:
        taken: R rows of one request each, with request_id, user_id, time and item_id.
        found: candidates of the same R requests.
        item_ids: int64, the catalogue.
        most: how many others, see ``others``.
        seed: of the drawing.

    Returns:
        as ``example_rows``: every request has its item, label 1.
    """
    rng, answers = np.random.default_rng((seed, 3)), []
    for item, (ids, scores) in zip(taken["item_id"].to_numpy(), found, strict=True):
        if item not in ids:
            drawn = np.unique(rng.choice(item_ids, 2 * most))
            drawn = rng.permutation(drawn[~np.isin(drawn, ids) & (drawn != item)])[:most]
            ids = np.append(drawn, item)
            scores = np.zeros(len(ids), np.float32)
        answers.append((ids, scores))
    each = pa.array(np.arange(len(taken) + 1), pa.int32())
    relevant = pa.ListArray.from_arrays(each, taken["item_id"].combine_chunks())
    return example_rows(taken.append_column("relevant", relevant), stack(answers), most, seed)


def others(requests: int) -> int:
    """Among how many others each item taken stands: where there are many requests, 20 teach as much as 50."""
    return min(NEGATIVES, max(FEWEST, MOST_OTHERS // max(requests, 1)))


def match_sources(retriever: Retriever) -> tuple[Source, ...]:
    """The sources whose scores the ranker reads: those that learned from behaviour.

    MOON's vectors are in none of them, and reach the ranker only through the modules of its recipe.
    """
    return tuple(source for source in retriever.sources if source.name in BEHAVIOUR)


def match_names(retriever: Retriever) -> tuple[str, ...]:
    """The S columns."""
    scores = (f"match_{source.name}" for source in match_sources(retriever))
    return (*scores, *retriever.similarities.names)


def ranker_frames(
    folder: Path,
    split: Split,
    size: Size,
    seed: int,
    retriever: Retriever,
    with_steps: bool = False,
    stream: bool = False,
    most: int | None = None,
) -> tuple[MatchedFrames, MatchedFrames, str]:
    """Training and validation requests of the ranker, and the loss that fits them.

    Args:
        folder: of the run.
        split: of the run.
        size: fixes the length of histories, of retrieval and of the ranker.
        seed: of what is drawn.
        retriever: whose sources learned from the log before the training requests (``open_retrieval``, fitted).
        with_steps: whether candidates say what followed the click, as far as it was known before the test.
        stream: whether they are read in windows from the run's frame, which is written if need be; without steps,
            and all of them.
        most: training requests at most, and validation requests a fifth as many, drawn at random; None: all.

    Returns:
        train, valid, and ``pointwise`` for logged impressions or ``listwise`` for retrieved candidates.

    Raises:
        DataError: nothing was shown, or nothing that follows a click was logged.
    """
    for asked, why in ((with_steps, "learn from what follows clicks"), (stream, "read in windows")):
        if asked and not split.shows:
            raise DataError(
                f"{folder}: expected logged impressions to {why}, found what was taken only: its candidates are "
                f"drawn in memory. Run 'moon ranker' without this option."
            )
    frames: Sequence[TrainingFrame | FrameStream]
    if stream:
        frames, loss = logged_streams(folder, split, size, PARTS), "pointwise"
    elif split.shows:
        logged = [
            one if most is None else one.only(_drawn(len(one), part, most, seed))
            for part, one in zip(PARTS, logged_frames(folder, split, size, PARTS), strict=True)
        ]
        frames = [and_steps(one, split.test_log) for one in logged] if with_steps else logged
        loss = "pointwise"
    else:
        drawn: list[TrainingFrame] = []
        for part in PARTS:
            every = of_part(split.ranking, part)
            taken = every.take(pa.array(_drawn(len(every), part, most, seed)))
            stored = training_frame(folder / "store", taken, size.history)
            taken, found = found_ones(taken, candidates(stored, retriever))
            rows = among_others(taken, found, retriever.index.ids, others(len(every)), seed)
            drawn.append(training_frame(folder / "store", rows, size.history))
        frames, loss = drawn, "listwise"
    train, valid = (matched(one, retriever, size.behaviours) for one in frames)
    return train, valid, loss


def _drawn(rows: int, part: str, most: int | None, seed: int) -> np.ndarray:
    """The rows of a part that ``ranker_frames`` reads, int64, ascending."""
    every = np.arange(rows)
    if most is None:
        return every
    wanted = most if part == "train" else most // VALID_SHARE
    return np.sort(np.random.default_rng((seed, 5)).permutation(every)[:wanted])


def and_steps(frame: TrainingFrame, log: pa.Table) -> TrainingFrame:
    """The same requests with a column ``label_<step>`` of the candidates for each step that the log has events of.

    Raises:
        DataError: it has none.
    """
    count = np.diff(frame.offsets)
    found = followed(
        log,
        steps_of(log),
        np.repeat(frame.requests["user_id"].to_numpy(), count),
        frame.given["item_id"].to_numpy(),
        np.repeat(microseconds(frame.requests["time"]), count),
        frame.given["label"].to_numpy() > 0.5,
    )
    return frame.carrying({LABEL + step: label.astype(np.float32) for step, label in found.items()})


def requests_frame(folder: Path, requests: pa.Table, size: Size) -> TrainingFrame:
    """Requests with their users' features and histories; their one candidate is an unused placeholder.

    Args:
        folder: of the run.
        requests: RETRIEVAL rows.
        size: fixes the length of histories.
    """
    return training_frame(folder / "store", placeholders(requests), size.history, RETRIEVAL)


def placeholders(requests: pa.Table) -> pa.Table:
    """A row of ``training_frame`` for each of the RETRIEVAL rows, with the first relevant item as its candidate."""
    rows = requests.select(["request_id", "user_id", "time"])
    rows = rows.append_column("query_id", pa.nulls(len(rows), pa.int64()))
    return rows.append_column("item_id", pc.list_element(requests["relevant"].combine_chunks(), 0))


def candidates(frames: TrainingFrame, retriever: Retriever) -> Retrieved:
    """The candidates of every request, as the service proposes them.

    Without what the user already took, unless the retriever proposes that, too.
    """
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    for frame in chunks(frames, "retrieve candidates"):
        requests = retriever.asking(Requests.from_frame(frame))
        answers.extend(propose(retriever.recommending, requests, weights=retriever.weights))
    return stack(answers)


def answers_of(frames: TrainingFrame, source: Source, retriever: Retriever, k: int = PER_SOURCE) -> Retrieved:
    """The k best items of one of the retriever's sources for every request; with what the user took as above."""
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    for frame in chunks(frames, f"retrieve by {source.name}"):
        answers.extend(source.retrieve_batch(retriever.asking(Requests.from_frame(frame)), k))
    return stack(answers)
