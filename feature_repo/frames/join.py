"""Offline features: a point-in-time join of logged requests, one complete row for each row given.

Features are joined once per distinct (user, time) and (item, time), at one microsecond before the request
because Feast's join includes equal times; behaviour sequences are gathered from the event log by position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from dataset.contracts import TIME, DataError
from dataset.jagged import entries
from feature_repo.columns import as_read, item_columns, nothing, user_columns
from feature_repo.event_log import EventLog, open_event_log
from feature_repo.frame import Frame
from feature_repo.frames.context import with_context
from feature_repo.on_demand import compute, reads_of, request_table
from feature_repo.services import CTR
from feature_repo.side_information import SideInformation, open_side_information
from feature_repo.signature import Feature, Signature, open_signature
from feature_repo.store import open_store
from moonstore.errors import StoreError

POINTER = (
    Feature("position", "user_events", "position", "user", "number", pa.int64()),
    Feature("log_version", "user_events", "log_version", "user", "category", pa.string()),
)
REQUEST_COLUMNS = ("request_id", "user_id", "time", "query_id")
CANDIDATE_TYPES = {"item_id": pa.int64(), "label": pa.float32(), "position": pa.int64()}


@dataclass(frozen=True)
class TrainingFrame:
    """Joined requests, from which frames are cut; item features are kept once per distinct (item, time).

    Attributes:
        requests: R rows, the columns of ``Frame.requests``.
        given: C rows, the candidate columns that were given (item_id, label, position and any other), and those that
            were computed of request and candidate together.
        items: distinct item feature rows.
        item_row: int64 of shape (C), each candidate's row of ``items``.
        offsets: int64 of shape (R + 1); request r owns candidates offsets[r]:offsets[r + 1].
        log: the event log.
        positions: int64 of shape (R), how much of the log each request's user had.
        history: K, most behaviours in a frame's history.
        side: the features of the behaviours.
        signature: the features that it holds.
    """

    requests: pa.Table
    given: pa.Table
    items: pa.Table
    item_row: np.ndarray
    offsets: np.ndarray
    log: EventLog
    positions: np.ndarray
    history: int
    side: SideInformation
    signature: Signature

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def windows(self) -> None:
        """All requests are in memory."""
        return None

    def take(self, start: int, stop: int) -> Frame:
        """The frame of requests start:stop."""
        return self.select(np.arange(start, min(stop, len(self))))

    def candidates_of(self, request_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The candidates of these requests, request after request, and how they are grouped, int64."""
        starts = self.offsets[request_rows]
        return entries(starts, self.offsets[request_rows + 1] - starts)

    def only(self, request_rows: np.ndarray) -> TrainingFrame:
        """These requests, in this order."""
        candidate, offsets = self.candidates_of(request_rows)
        return replace(
            self,
            requests=self.requests.take(request_rows),
            given=self.given.take(candidate),
            item_row=self.item_row[candidate],
            offsets=offsets,
            positions=self.positions[request_rows],
        )

    def reading(self, history: int) -> TrainingFrame:
        """The same requests with longer or shorter histories: at most so many behaviours."""
        return replace(self, history=history)

    def labelled(self, label: np.ndarray) -> TrainingFrame:
        """The same requests with other labels, float32 of shape (C)."""
        place = self.given.column_names.index("label")
        return replace(self, given=self.given.set_column(place, "label", pa.array(label, pa.float32())))

    def carrying(self, columns: Mapping[str, np.ndarray]) -> TrainingFrame:
        """The same requests with further columns of the candidates, each of shape (C)."""
        given = self.given
        for name, values in columns.items():
            given = given.append_column(name, pa.array(values))
        return replace(self, given=given)

    def select(self, request_rows: np.ndarray) -> Frame:
        """The frame of these requests, in this order."""
        rows = np.asarray(request_rows, dtype=np.int64)
        candidate, offsets = self.candidates_of(rows)
        candidates = self.given.take(candidate)
        features = self.items.take(self.item_row[candidate])
        for name in features.column_names:
            candidates = candidates.append_column(name, features.column(name))
        requests = self.requests.take(rows)
        users = requests.column("user_id").to_numpy()
        history = self.log.gather(users, self.positions[rows], self.history)
        return Frame(requests, candidates, offsets, replace(history, side=self.side))


def training_frame(store_dir: Path, rows: pa.Table, history: int, service: str = CTR) -> TrainingFrame:
    """Join logged requests with the features available strictly before each.

    Args:
        store_dir: the run's store.
        rows: one per (request, candidate), grouped by request: request_id, user_id, time, query_id
            (nullable), item_id, optionally label and position; what was sent with each request, in columns named
            as in the ``RequestSource`` that reads it, else that of the event where there is an event_id
            (``frames.context``); further columns are carried along to the candidates.
        history: K, most behaviours in a frame's history.
        service: the FeatureService whose features are joined.

    Raises:
        DataError: a column is missing, a request is not contiguous or has two users or times.
        StoreError: there is no store, it returned other rows than were asked for, or the service is missing or wrong.
    """
    store = open_store(store_dir)
    signature = open_signature(store, service)
    reads = reads_of(store, signature.features)
    rows = with_context(store_dir, rows, reads.context)
    first, offsets = _requests(rows)
    user = rows.column("user_id").to_numpy()[first]
    row_time_us = rows.column("time").cast(TIME).cast(pa.int64()).to_numpy()
    item = rows.column("item_id").to_numpy()

    users, user_time_us, user_row = distinct(user, row_time_us[first])
    stored = join_features(store, "user_id", users, user_time_us, (*reads.stored["user"], *POINTER))
    log = open_event_log(store_dir, stored["log_version"].drop_null().unique().to_pylist())
    position = stored["position"].fill_null(0).to_numpy()
    of_user = {one.name: stored[one.name].take(user_row) for one in reads.stored["user"]}

    items, item_time_us, item_row = distinct(item, row_time_us)
    item_stored = join_features(store, "item_id", items, item_time_us, reads.stored["candidate"])
    item_features = pa.table(item_columns(reads.asked["candidate"], item_stored))

    logged = rows.take(first)
    identity = {name: logged.column(name).combine_chunks() for name in REQUEST_COLUMNS}
    identity["time"] = identity["time"].cast(TIME)
    identity["query_id"] = identity["query_id"].cast(pa.int64())
    requests = request_table(
        reads,
        identity,
        user_columns(reads.asked["user"], of_user, position[user_row]),
        of_user | _of_queries(store, identity, reads.stored["query"]) | reads.logged(logged),
    )
    given = _given(rows.drop_columns([name for name in reads.context if name in rows.column_names]))
    if reads.of_candidates():
        of_request = requests.take(pa.array(np.repeat(np.arange(len(first)), np.diff(offsets))))
        inputs = {name: of_request.column(name).combine_chunks() for name in of_request.column_names}
        inputs |= {name: column.take(item_row) for name, column in item_stored.items()}
        for name, column in compute(reads, True, inputs, row_time_us).items():
            given = given.append_column(name, column)
    return TrainingFrame(
        requests=requests.combine_chunks(),
        given=given,
        items=item_features,
        item_row=item_row,
        offsets=offsets,
        log=log,
        positions=position[user_row],
        history=history,
        side=open_side_information(store, signature.features),
        signature=signature,
    )


def _of_queries(
    store: FeatureStore, requests: Mapping[str, pa.Array], features: Sequence[Feature]
) -> dict[str, pa.Array]:
    """Features of the requests' queries; null where there is none."""
    query = requests["query_id"]
    asked = np.flatnonzero(query.is_valid().to_numpy(zero_copy_only=False))
    if not features or not len(asked):
        return nothing(features, len(query))
    time_us = requests["time"].cast(pa.int64()).to_numpy()[asked]
    queries, query_time_us, pair = distinct(query.drop_null().to_numpy(), time_us)
    row = np.full(len(query), -1)
    row[asked] = pair
    take = pa.array(row, mask=row < 0)
    found = join_features(store, "query_id", queries, query_time_us, features)
    return {name: column.take(take) for name, column in found.items()}


def _requests(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """First row of each request, int64 (R), and offsets, int64 (R + 1)."""
    check_columns(rows)
    request = rows.column("request_id").to_numpy()
    new = np.append(True, request[1:] != request[:-1])[: len(request)]
    first = np.flatnonzero(new)
    check_grouped(request[first])
    number = np.cumsum(new) - 1
    for name in ("user_id", "time"):
        values = rows.column(name).cast(pa.int64()).to_numpy()
        mixed = np.unique(request[values != values[first][number]])
        if len(mixed):
            raise DataError(
                f"expected one {name} per request, found {len(mixed)} with several "
                f"(first {mixed[:3].tolist()})"
            )
    return first, np.append(first, len(request)).astype(np.int64)


def check_columns(rows: pa.Table) -> None:
    """Refuse request rows that lack a column.

    Raises:
        DataError: naming it.
    """
    missing = [name for name in (*REQUEST_COLUMNS, "item_id") if name not in rows.column_names]
    if missing:
        raise DataError(f"expected request rows with {', '.join(missing)}, found {rows.column_names}")


def check_grouped(request_ids: np.ndarray) -> None:
    """Refuse requests whose rows do not follow each other.

    Args:
        request_ids: of the first row of each stretch of one request.

    Raises:
        DataError: a request is there twice.
    """
    again, count = np.unique(request_ids, return_counts=True)
    if (count > 1).any():
        raise DataError(
            f"expected rows grouped by request_id, found {int((count > 1).sum())} requests in several places "
            f"(first {again[count > 1][:3].tolist()}). Sort the rows by request_id."
        )


def distinct(ids: np.ndarray, time_us: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (id, time) pairs and, for each input row, its pair."""
    order = np.lexsort((time_us, ids))
    sorted_ids, sorted_time = ids[order], time_us[order]
    new = np.append(True, (sorted_ids[1:] != sorted_ids[:-1]) | (sorted_time[1:] != sorted_time[:-1]))[
        : len(ids)
    ]
    pair = np.empty(len(ids), dtype=np.int64)
    pair[order] = np.cumsum(new) - 1
    return sorted_ids[new], sorted_time[new], pair


def join_features(
    store: FeatureStore, key: str, ids: np.ndarray, time_us: np.ndarray, features: Sequence[Feature]
) -> dict[str, pa.Array]:
    """Point-in-time values strictly before ``time_us``, in the order given; null where there are none.

    Args:
        store: an open feature store.
        key: join key of the entity the features are of.
        ids, time_us: int64 (N), of each row; microseconds since 1970 UTC.
        features: to read.

    Raises:
        StoreError: the store returned other rows than were asked for.
    """
    if not len(ids) or not features:
        return nothing(features, len(ids))
    asked = pd.DataFrame(
        {
            key: ids,
            "event_timestamp": pd.to_datetime(time_us - 1, unit="us", utc=True),
            "row_id": np.arange(len(ids)),
        }
    )
    references = list(dict.fromkeys(one.reference for one in features))
    job = store.get_historical_features(asked, features=references, full_feature_names=True)
    joined = job.to_arrow().sort_by("row_id")
    if not np.array_equal(joined.column("row_id").to_numpy(), asked["row_id"].to_numpy()):
        raise StoreError(f"asked the store for {len(ids)} rows by {key}, got {joined.num_rows} or other ones")
    return {
        one.name: as_read(joined.column(f"{one.view}__{one.field}").combine_chunks(), one.dtype)
        for one in features
    }


def _given(rows: pa.Table) -> pa.Table:
    kept = [name for name in rows.column_names if name not in REQUEST_COLUMNS]
    return pa.table(
        {
            name: rows.column(name).cast(CANDIDATE_TYPES.get(name, rows.schema.field(name).type))
            for name in kept
        }
    ).combine_chunks()
