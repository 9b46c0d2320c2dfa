"""Frame -> Batch: jagged tensors straight from Arrow buffers, frozen vectors gathered by id."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from dataset.contracts import DataError
from feature_repo.frame import Frame, History
from feature_repo.vectors import Vectors
from ranker.inputs.batch import Batch
from ranker.inputs.columns import (
    BAG,
    CANDIDATE_IDS,
    ITEM,
    REQUEST_IDS,
    REQUEST_NUMBERS,
    Inputs,
    number,
    require_columns,
)
from ranker.inputs.constants import filled
from ranker.inputs.hashing import hash_column, hash_integers

AGE_BUCKETS = 32  # bucket b holds behaviours 2^b - 1 to 2^(b+1) - 1 minutes old
CODES = 6  # dataset.contracts.BEHAVIOUR_CODES and 0
CLIP = 5.0  # standardised numbers are cut here: an old item must not drown the other inputs


class FrameEncoder:
    """Makes the batches of one model.

    Args:
        inputs: what the model learned about the columns.
        vectors: the embedding it was trained with; None: the id-only control.
    """

    def __init__(self, inputs: Inputs, vectors: Vectors | None) -> None:
        self.inputs, self.vectors = inputs, vectors

    def batch(self, frame: Frame, query_vectors: np.ndarray | None = None) -> Batch:
        """Encode R requests.

        Args:
            frame: with every column the model was trained with; ``label`` and ``position`` may be absent.
            query_vectors: float32 [R, V] of searches that have no ``query_id`` yet, rows of zeros where there
                is none; None: query vectors are found by ``query_id``.

        Raises:
            DataError: missing columns, numbers that are not finite, or histories longer than in training.
        """
        frame = filled(frame)
        require_columns(frame.requests, ("time", *REQUEST_IDS, *REQUEST_NUMBERS), "requests")
        names = (ITEM, BAG, *CANDIDATE_IDS, *self.inputs.candidate_numbers)
        require_columns(frame.candidates, names, "candidates")
        candidate_mask = slots(np.diff(frame.offsets), left=True)
        history_mask = slots(np.diff(frame.history.offsets), left=False)
        if history_mask.shape[1] > self.inputs.history:
            raise DataError(
                f"frame history: expected at most {self.inputs.history} behaviours per request, found "
                f"{history_mask.shape[1]}. Read the frame with the history length of this model's size."
            )
        item_id = frame.candidates[ITEM].to_numpy()
        target_content, target_known = self.content(item_id, candidate_mask)
        history_content, history_known = self.content(frame.history.item_id, history_mask)
        query_content, query_known = self.queries(frame.requests, query_vectors)
        return Batch(
            items=self.item_ids(item_id, frame.history.item_id, candidate_mask, history_mask),
            candidates=self.candidate_ids(frame.candidates, candidate_mask),
            requests=self.request_ids(frame.requests),
            behaviours=behaviour_ids(frame.history, request_time_us(frame.requests), history_mask),
            candidate_numbers=_place(
                self.numbers(frame.candidates, self.inputs.candidate_numbers), candidate_mask
            ),
            request_numbers=torch.from_numpy(self.numbers(frame.requests, REQUEST_NUMBERS)),
            candidate_mask=torch.from_numpy(candidate_mask),
            history_mask=torch.from_numpy(history_mask),
            target_content=target_content,
            target_known=target_known,
            history_content=history_content,
            history_known=history_known,
            query_content=query_content,
            query_known=query_known,
            position=_place(_optional(frame.candidates, "position", np.int64, -1), candidate_mask, -1),
            label=_place(_optional(frame.candidates, "label", np.float32, 0), candidate_mask),
        )

    def _table_rows(self, name: str, hashes: np.ndarray) -> np.ndarray:
        return (hashes % np.uint64(self.inputs.rows[name])).astype(np.int64)

    def item_ids(
        self, item_id: np.ndarray, behaved: np.ndarray, candidate_mask: np.ndarray, history_mask: np.ndarray
    ) -> KeyedJaggedTensor:
        """Key ``item_id``: the slots of ``candidate_mask`` [R, N], then those of ``history_mask`` [R, L]."""
        rows = self._table_rows(ITEM, hash_integers(np.concatenate([item_id, behaved])))
        return jagged((ITEM,), [rows], [np.concatenate([candidate_mask.ravel(), history_mask.ravel()])])

    def candidate_ids(self, candidates: pa.Table, candidate_mask: np.ndarray) -> KeyedJaggedTensor:
        """Keys ``CANDIDATE_IDS`` and ``attributes``, the slots of ``candidate_mask`` bool [R, N]."""
        values = [
            self._table_rows(name, hash_column(candidates[name].combine_chunks())) for name in CANDIDATE_IDS
        ]
        bags = candidates[BAG].combine_chunks()
        values.append(self._table_rows(BAG, hash_column(bags.flatten())))
        bag_lengths = np.zeros(candidate_mask.shape, dtype=np.int32)
        bag_lengths[candidate_mask] = pc.fill_null(pc.list_value_length(bags), 0).to_numpy(
            zero_copy_only=False
        )
        lengths = [candidate_mask.ravel()] * len(CANDIDATE_IDS) + [bag_lengths.ravel()]
        return jagged((*CANDIDATE_IDS, BAG), values, lengths)

    def request_ids(self, requests: pa.Table) -> KeyedJaggedTensor:
        """Keys ``REQUEST_IDS``, one row per request; a null id is an empty bag."""
        values, lengths = [], []
        for name in REQUEST_IDS:
            column = requests[name].combine_chunks()
            values.append(self._table_rows(name, hash_column(column.drop_null())))
            lengths.append(column.is_valid().to_numpy(zero_copy_only=False))
        return jagged(REQUEST_IDS, values, lengths)

    def numbers(self, table: pa.Table, names: tuple[str, ...]) -> np.ndarray:
        """Numeric columns standardised and cut at ``CLIP`` deviations, float32 [rows, names]."""
        out = np.empty((len(table), len(names)), dtype=np.float32)
        for column, name in enumerate(names):
            mean, deviation = self.inputs.scale[name]
            out[:, column] = (number(table, name) - mean) / deviation
        return out.clip(-CLIP, CLIP, out=out)

    def content(self, ids: np.ndarray, where: np.ndarray) -> tuple[Tensor, Tensor]:
        """Item vectors in the slots of ``where`` bool [R, N], float32 [R, N, V], and which are known."""
        width = 0 if self.vectors is None else self.vectors.width
        content = np.zeros((*where.shape, width), dtype=np.float32)
        known = np.zeros(where.shape, dtype=bool)
        if self.vectors is not None:
            content[where], known[where] = self.vectors.gather(ids)
        return torch.from_numpy(content), torch.from_numpy(known)

    def queries(self, requests: pa.Table, given: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Query vectors float32 [R, V], and which requests have one."""
        if self.vectors is None:
            asked = requests["query_id"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
            return torch.zeros(len(requests), 0), torch.from_numpy(asked)
        if given is not None:
            content = np.ascontiguousarray(given, dtype=np.float32)
            return torch.from_numpy(content), torch.from_numpy(np.any(content != 0, axis=1))
        column = requests["query_id"].combine_chunks()
        asked = column.is_valid().to_numpy(zero_copy_only=False)
        content = np.zeros((len(requests), self.vectors.width), dtype=np.float32)
        known = np.zeros(len(requests), dtype=bool)
        if asked.any():
            ids = column.drop_null().to_numpy(zero_copy_only=False)
            content[asked], known[asked] = self.vectors.queries.gather(ids)
        return torch.from_numpy(content), torch.from_numpy(known)


def jagged(keys: tuple[str, ...], values: list[np.ndarray], lengths: list[np.ndarray]) -> KeyedJaggedTensor:
    """One jagged tensor of several keys, each with values int64 and a length per bag."""
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.from_numpy(np.concatenate(values)),
        lengths=torch.from_numpy(np.concatenate(lengths).astype(np.int32)),
    )


def behaviour_ids(history: History, time_us: np.ndarray, history_mask: np.ndarray) -> KeyedJaggedTensor:
    """What a behaviour was and how long ago, keys ``code`` and ``age``, R·L slots.

    Args:
        history: behaviours of R requests.
        time_us: int64 [R], when the requests were made.
        history_mask: bool [R, L].
    """
    age_s = (np.repeat(time_us, np.diff(history.offsets)) - history.time_us) / 1e6
    buckets = np.log2(1 + np.maximum(age_s, 0) / 60).astype(np.int64).clip(max=AGE_BUCKETS - 1)
    return jagged(("code", "age"), [history.code.astype(np.int64), buckets], [history_mask.ravel()] * 2)


def request_time_us(requests: pa.Table) -> np.ndarray:
    """Request times, int64 microseconds since 1970 UTC."""
    return requests["time"].combine_chunks().cast(pa.int64()).to_numpy(zero_copy_only=False)


def slots(counts: np.ndarray, left: bool) -> np.ndarray:
    """Which slots of a padded row hold something, filled from the left or right.

    Returns:
        bool [R, max(counts)], at least one slot wide: TorchRec cannot hold a jagged tensor without bags.
    """
    width = int(counts.max(initial=1))
    place = np.arange(width)
    return place < counts[:, None] if left else place >= width - counts[:, None]


def select_requests(frame: Frame, rows: np.ndarray) -> Frame:
    """The requests of a frame at ``rows`` int64, in that order, with their candidates and histories."""
    offsets, candidate = _segments(frame.offsets, rows)
    history_offsets, behaviour = _segments(frame.history.offsets, rows)
    history = frame.history
    return Frame(
        requests=frame.requests.take(pa.array(rows)),
        candidates=frame.candidates.take(pa.array(candidate)),
        offsets=offsets,
        history=History(
            history_offsets, history.item_id[behaviour], history.code[behaviour], history.time_us[behaviour]
        ),
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


def _segments(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts, counts = offsets[rows], offsets[rows + 1] - offsets[rows]
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return bounds, np.repeat(starts - bounds[:-1], counts) + np.arange(bounds[-1])


def _place(values: np.ndarray, where: np.ndarray, empty: float = 0) -> Tensor:
    out = np.full((*where.shape, *values.shape[1:]), empty, dtype=values.dtype)
    out[where] = values
    return torch.from_numpy(out)


def _optional(table: pa.Table, name: str, kind: type, absent: float) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), absent, dtype=kind)
    return pc.fill_null(table[name].combine_chunks(), absent).to_numpy(zero_copy_only=False).astype(kind)
