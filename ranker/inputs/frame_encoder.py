"""Frame -> Batch: the rules of the features applied to Arrow columns, frozen vectors gathered by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from dataset.contracts import DataError
from dataset.jagged import entries
from feature_repo.frame import Frame, History
from feature_repo.vectors import Vectors
from ranker.inputs.bags import Bags
from ranker.inputs.batch import Batch
from ranker.inputs.columns import (
    BOOKKEEPING,
    ITEM,
    LABEL,
    QUERY_ID,
    SIDES,
    Inputs,
    column_of,
    request_time_us,
    require_columns,
    require_complete,
)
from ranker.inputs.encoded import Encoded, content_at
from ranker.inputs.hashing import hash_integers
from ranker.inputs.padding import placed
from ranker.inputs.rules.side_by_side import SideBySide
from ranker.inputs.search import Found, Search, shortened

AGE_BUCKETS = 32  # bucket b holds behaviours 2^b - 1 to 2^(b+1) - 1 minutes old
CODES = 6  # dataset.contracts.BEHAVIOUR_CODES and 0
BEHAVIOUR_ROWS = {"code": CODES, "age": AGE_BUCKETS}


class FrameEncoder:
    """Makes the batches of one model.

    Args:
        inputs: what the model learned about the columns.
        vectors: the embedding it was trained with; None: a control without.
        search: how it reads a long history; None: it reads all of it.
    """

    def __init__(self, inputs: Inputs, vectors: Vectors | None, search: Search | None = None) -> None:
        self.inputs, self.vectors, self.search = inputs, vectors, search
        self._ids = {side: inputs.ids(side) for side in SIDES}
        self._numbers = {side: SideBySide(inputs.numbers(side)) for side in SIDES}
        self._features = {side: inputs.features(side) for side in SIDES}

    def makes_the_same(self, other: FrameEncoder) -> bool:
        """Whether another one makes the same batches of any frame."""
        return self.vectors is other.vectors and self.search == other.search and self.inputs == other.inputs

    def batch(self, frame: Frame, query_vectors: np.ndarray | None = None) -> Batch:
        """Encode R requests as one batch; arguments and errors as of ``encoded``."""
        return self.encoded(frame, query_vectors).batch(0, len(frame))

    def encoded(self, frame: Frame, query_vectors: np.ndarray | None = None) -> Encoded:
        """Encode R requests.

        Args:
            frame: with every column the model was trained with; ``label`` and ``position`` may be absent.
            query_vectors: float32 [R, V] of searches that have no ``query_id`` yet, rows of zeros where there
                is none; None: query vectors are found by ``query_id``.

        Raises:
            DataError: missing columns, numbers that are not finite, or histories longer than in training.
        """
        longest = int(np.diff(frame.history.offsets).max(initial=0))
        if longest > self.inputs.history:
            raise DataError(
                f"frame history: expected at most {self.inputs.history} behaviours per request, found {longest}. "
                f"Read the frame with the history length of this model's size."
            )
        for side, table in (("request", frame.requests), ("candidate", frame.candidates)):
            self.require(side, table)
        requests, time_us = frame.requests, request_time_us(frame.requests)
        found = Found.nothing(len(frame.candidates))
        age = found.place
        if self.search is not None:
            found = self.search.of(frame, time_us, self.vectors)
            history, age = shortened(frame.history, frame.offsets, found, self.search.recent)
            frame = replace(frame, history=history)
        candidates, history = frame.candidates, frame.history
        item_id = candidates[ITEM].to_numpy()
        asked_us = np.repeat(time_us, np.diff(frame.offsets))
        behaved_us = np.repeat(time_us, np.diff(history.offsets))
        behaviours, behaviour_numbers = self._behaviours(history, behaved_us)
        query_content, query_known = self.queries(requests, query_vectors)
        return Encoded(
            offsets=frame.offsets,
            history_offsets=history.offsets,
            items=self._items(np.concatenate([item_id, history.item_id])),
            candidates=self._bags("candidate", candidates),
            requests=self._bags("request", requests),
            behaviours=behaviours,
            of_candidates={
                "candidate_numbers": self.numbers("candidate", candidates, asked_us),
                "found_mask": found.real,
                "found_cosine": found.cosine,
                "found_times": found.times,
                "found_count": found.count,
                "position": _optional(candidates, "position", np.int64, -1),
                "label": _optional(candidates, "label", np.float32, 0),
                "later": self.later(candidates),
            },
            of_requests={
                "request_numbers": self.numbers("request", requests, time_us),
                "query_content": query_content,
                "query_known": query_known,
            },
            of_behaviours={"behaviour_numbers": behaviour_numbers},
            vectors=self.vectors,
            target_row=self._rows(item_id, asked_us),
            history_row=self._rows(history.item_id, behaved_us),
            found_age=age,
        )

    def later(self, candidates: pa.Table) -> np.ndarray:
        """Which steps followed the click on each candidate, float32 [C, T]; zeros where the frame does not say."""
        out = np.empty((len(candidates), len(self.inputs.steps)), np.float32)
        for place, step in enumerate(self.inputs.steps):
            out[:, place] = _optional(candidates, LABEL + step, np.float32, 0)
        return out

    def require(self, side: str, table: pa.Table) -> None:
        """Refuse a table of a side that lacks columns of the model, or numbers that are always known.

        Raises:
            DataError: naming them.
        """
        features = self._features[side]
        require_columns(table, (*BOOKKEEPING[side], *map(column_of, features)), f"{side}s")
        require_complete(table, features)

    def ids(self, side: str, table: pa.Table, where: np.ndarray) -> KeyedJaggedTensor:
        """All ids of a side, a key per feature, in the slots of ``where`` bool; other slots are empty bags."""
        return self._bags(side, table).jagged((slice(0, len(table)), where))

    def behaviours(
        self, history: History, time_us: np.ndarray, where: np.ndarray
    ) -> tuple[KeyedJaggedTensor, Tensor]:
        """What the behaviours of R requests were, and what was known of their items then.

        Args:
            history: of the requests.
            time_us: int64 [R], when the requests were made.
            where: bool [R, L], slots that hold a behaviour.

        Returns:
            keys ``code``, ``age`` and those of the behaviours' features that enter as ids, R·L slots; their numbers
            float32 [R, L, F], zero in empty slots.

        Raises:
            DataError: the history has not the features of the model.
        """
        bags, numbers = self._behaviours(history, np.repeat(time_us, np.diff(history.offsets)))
        return bags.jagged((slice(0, len(history.item_id)), where)), torch.from_numpy(placed(numbers, where))

    def _behaviours(self, history: History, asked_us: np.ndarray) -> tuple[Bags, np.ndarray]:
        """The same without padding; ``asked_us`` int64 [T]: when the request of each behaviour was made."""
        table = history.table() if self._features["behaviour"] else pa.table({ITEM: history.item_id})
        self.require("behaviour", table)
        kinds = [history.code.astype(np.int64), _age_buckets(asked_us - history.time_us)]
        known = self._bags("behaviour", table)
        one_each = np.ones((len(BEHAVIOUR_ROWS), len(table)), np.int32)
        bags = Bags(
            (*BEHAVIOUR_ROWS, *known.keys), [*kinds, *known.values], np.concatenate([one_each, known.counts])
        )
        return bags, self.numbers("behaviour", table, history.time_us)

    def _bags(self, side: str, table: pa.Table) -> Bags:
        """The features of a side that enter as ids."""
        counts = np.zeros((len(self._ids[side]), len(table)), np.int32)
        values = []
        for row, (column, rule) in enumerate(self._ids[side].values()):
            rows, counts[row] = rule.ids(table[column].combine_chunks())
            values.append(rows)
        return Bags(tuple(self._ids[side]), values, counts)

    def numbers(self, side: str, table: pa.Table, time_us: np.ndarray) -> np.ndarray:
        """All numbers of a side side by side, float32 [rows, W]; ``time_us`` int64: the moment of each row."""
        return self._numbers[side].numbers(table, time_us)

    def item_ids(
        self, item_id: np.ndarray, behaved: np.ndarray, candidate_mask: np.ndarray, history_mask: np.ndarray
    ) -> KeyedJaggedTensor:
        """Key ``item_id``: the slots of ``candidate_mask`` [R, N], then those of ``history_mask`` [R, L].

        The slot of an item that has no row is an empty bag, as a slot without an item is.
        """
        first, both = len(item_id), np.concatenate([item_id, behaved])
        return self._items(both).jagged(
            (slice(0, first), candidate_mask), (slice(first, len(both)), history_mask)
        )

    def _items(self, item_id: np.ndarray) -> Bags:
        """Key ``item_id``; the bag of an item that has no row is empty."""
        hashes = hash_integers(item_id)
        known = self.inputs.items.known(hashes)
        return Bags((ITEM,), [self.inputs.items.of(hashes[known])], known[None].astype(np.int32))

    def content(
        self, ids: np.ndarray, where: np.ndarray, time_us: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Item vectors in the slots of ``where`` bool [R, N], float32 [R, N, V], and which are known.

        Args:
            ids: int64, of the items in these slots.
            where: which slots.
            time_us: int64, when the request of each was made; None: an item of no request.
        """
        return content_at(self.vectors, self._rows(ids, time_us), where)

    def _rows(self, ids: np.ndarray, time_us: np.ndarray | None) -> np.ndarray:
        """The row of each item's vector, int64; -1 where there is none, or was none yet."""
        return np.full(len(ids), -1) if self.vectors is None else self.vectors.known_rows(ids, time_us)

    def queries(self, requests: pa.Table, given: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Query vectors float32 [R, V], and which requests have one, bool [R]."""
        column = requests[QUERY_ID.name].combine_chunks()
        asked = column.is_valid().to_numpy(zero_copy_only=False)
        if self.vectors is None:
            return np.zeros((len(requests), 0), np.float32), asked
        if given is not None:
            content = np.ascontiguousarray(given, dtype=np.float32)
            return content, np.any(content != 0, axis=1)
        content = np.zeros((len(requests), self.vectors.width), dtype=np.float32)
        known = np.zeros(len(requests), dtype=bool)
        if asked.any():
            ids = column.drop_null().to_numpy(zero_copy_only=False)
            time_us = request_time_us(requests)[asked]
            content[asked], known[asked] = self.vectors.queries.gather(ids, time_us)
        return content, known


def select_requests(frame: Frame, rows: np.ndarray) -> Frame:
    """The requests of a frame at ``rows`` int64, in that order, with their candidates and histories."""
    candidate, offsets = _entries(frame.offsets, rows)
    behaviour, history_offsets = _entries(frame.history.offsets, rows)
    return Frame(
        requests=frame.requests.take(pa.array(rows)),
        candidates=frame.candidates.take(pa.array(candidate)),
        offsets=offsets,
        history=frame.history.rows(behaviour, history_offsets),
    )


def size_groups(counts: np.ndarray, order: np.ndarray, slots_per_batch: int) -> Iterator[np.ndarray]:
    """Cut requests into batches of similar candidate counts, so that little is padded.

    Args:
        counts: int64 [R], candidates of each request.
        order: int64, the requests to cut, any order; it decides among requests of equal count.
        slots_per_batch: padded candidates per batch; a request with more makes a batch of its own.
    """
    order = order[np.argsort(counts[order], stable=True)]
    start = 0
    while start < len(order):
        guess = max(1, slots_per_batch // max(int(counts[order[start]]), 1))
        stop = min(start + guess, len(order))
        while stop > start + 1 and (stop - start) * int(counts[order[stop - 1]]) > slots_per_batch:
            stop = start + max(1, min(stop - start - 1, slots_per_batch // int(counts[order[stop - 1]])))
        yield order[start:stop]
        start = stop


def _entries(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return entries(offsets[rows], offsets[rows + 1] - offsets[rows])


def _age_buckets(age_us: np.ndarray) -> np.ndarray:
    buckets: np.ndarray = (
        np.log2(1 + np.maximum(age_us / 1e6, 0) / 60).astype(np.int64).clip(max=AGE_BUCKETS - 1)
    )
    return buckets


def _optional(table: pa.Table, name: str, kind: type, absent: float) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), absent, dtype=kind)
    return pc.fill_null(table[name].combine_chunks(), absent).to_numpy(zero_copy_only=False).astype(kind)
