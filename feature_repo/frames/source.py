"""The source of a training frame, read request by request to keep few rows in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView, FileSource

from dataset.contracts import TIME
from dataset.months import parts_of
from feature_repo.columns import in_frames
from feature_repo.event_log import open_event_log
from feature_repo.frames.join import POINTER, check_columns, check_grouped
from feature_repo.on_demand import reads_of
from feature_repo.services import CTR
from feature_repo.signature import Signature, open_signature
from feature_repo.sources import CONTEXT, DATA
from feature_repo.store import open_store
from moonstore.files import sha256
from run.artifacts import Artifact
from run.shards import Shard

KEYS = ("request_id", "user_id", "time_us")
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio: neighbouring ids fall far apart


@dataclass(frozen=True)
class FrameSource:
    """What a frame is made from; recorded in frames and shards, so that those of another store or log are refused.

    Attributes:
        store_dir: the run's store.
        rows: gives the request rows as ``training_frame`` takes them, in the same order every time, table after
            table; at least one, which may be empty.
        history: K, most behaviours in a frame's history.
        parents: artifacts the rows come from: equal parents mean equal rows.
        service: the FeatureService whose features are joined.
    """

    store_dir: Path
    rows: Callable[[], Iterable[pa.Table]]
    history: int
    parents: Mapping[str, Artifact]
    service: str = CTR

    @cached_property
    def requests(self) -> dict[str, np.ndarray]:
        """request_id, user_id and time_us of the first row of each request, int64 of shape (R).

        Raises:
            DataError: a column is missing, or a request is not contiguous.
        """
        parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int64)] for name in KEYS}
        known = 0
        for table, number in self.numbered():
            first = np.flatnonzero(np.diff(number, prepend=known - 1))
            known += len(first)
            time_us = table.column("time").cast(TIME).cast(pa.int64())
            for name, column in zip(KEYS, (table["request_id"], table["user_id"], time_us), strict=True):
                parts[name].append(column.to_numpy()[first])
        keys = {name: np.concatenate(some) for name, some in parts.items()}
        check_grouped(keys["request_id"])
        return keys

    @cached_property
    def config(self) -> dict[str, Any]:
        """What every frame and shard of this source has in its manifest."""
        keys = hashlib.sha256(b"".join(self.requests[name].tobytes() for name in KEYS))
        store = open_store(self.store_dir)
        signature = open_signature(store, self.service)
        return {
            "store": store_id(store, signature),
            "signature": signature.to_json(),
            "log": open_event_log(self.store_dir).version,
            "requests": keys.hexdigest()[:16],
            "history": self.history,
        }

    def places(self, shard: Shard, by: str) -> np.ndarray:
        """Which requests are a shard's, int64 ascending."""
        number, count = shard
        if by == "users":
            spread = self.requests["user_id"].astype(np.uint64) * SPREAD  # wraps around
            owner = (spread >> np.uint64(32)).astype(np.int64) % count
        else:
            place = np.argsort(np.argsort(self.requests["time_us"], stable=True))
            owner = place * count // len(place)
        return np.flatnonzero(owner == number - 1)

    def rows_of(self, places: np.ndarray) -> pa.Table:
        """The rows of some requests, in order."""
        own = np.zeros(len(self.requests["request_id"]), bool)
        own[places] = True
        return pa.concat_tables(table.filter(pa.array(own[number])) for table, number in self.numbered())

    def numbered(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The rows, and the number of each row's request, int64."""
        last, number = None, -1
        for table in self.rows():
            check_columns(table)
            request = table.column("request_id").to_numpy()
            numbers = number + np.cumsum(np.append(request[:1] != last, request[1:] != request[:-1]))
            if len(request):
                last, number = request[-1], int(numbers[-1])
            yield table, numbers


def store_id(store: FeatureStore, signature: Signature) -> str:
    """16 hex digits that change with anything a frame reads of a store: the event log and its features' sources."""
    folder = Path(store.config.repo_path or ".")
    digest = hashlib.sha256(open_event_log(folder).version.encode())
    reads = reads_of(store, signature.features)
    stored = chain.from_iterable(reads.stored.values())
    behaved = in_frames(signature.features, "behaviour")
    for path in sorted(
        {source_path(store.get_feature_view(one.view)) for one in (*POINTER, *stored, *behaved)}
    ):
        for part in parts_of(folder / path):
            digest.update(sha256(part))
    if reads.context and (folder / DATA / CONTEXT).exists():
        digest.update((folder / DATA / CONTEXT).read_bytes())
    return digest.hexdigest()[:16]


def source_path(view: FeatureView) -> str:
    """The file or folder of a view; its path is relative to the repository unless it is absolute."""
    source = view.batch_source
    assert isinstance(source, FileSource)
    return str(source.path)
