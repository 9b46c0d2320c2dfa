"""The leak-free split into the log that features may read, training requests and test requests.

Protocol "time" cuts the log at two moments. Everything before ``fit_until`` trains the encoder, co-occurrence
and the two-tower model; ranking requests between ``fit_until`` and ``test_from`` train the ranker; later ones
test it. Protocol "holdout" hides the last event of sampled users, for logs whose clock is too coarse to cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.contracts import EVENTS, TIME, DataError, completed
from dataset.log import Log, pairs
from dataset.slates import clicks_explained
from run.artifacts import Artifact, open_artifact, write_artifact

if TYPE_CHECKING:
    from dataset.tables import Dataset

RANKING = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("query_id", pa.int64()),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("position", pa.int32()),
        pa.field("label", pa.float32(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # "train", "valid" or "test"
        pa.field("event_id", pa.int64()),
    ]
)
RETRIEVAL = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("part", pa.string(), nullable=False),  # "train" or "test"
        pa.field("relevant", pa.list_(pa.int64()), nullable=False),  # ascending item ids
    ]
)
FIT_FRACTION, TEST_FRACTION = 0.6, 0.8  # quantiles of the impression times at which the log is cut
VALID_FRACTION = 0.1  # of the ranker's training requests, the latest ones
MOST = {"test": 6_000, "train": 12_000}  # retrieval requests
POOL_ITEMS = 1_000  # most items held out from the encoder's training, to test it on
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """An opened split artifact; tables are read when first used."""

    artifact: Artifact

    @classmethod
    def open(cls, artifact: Artifact) -> Split:
        """Open an artifact of kind "split"."""
        return cls(artifact)

    @property
    def protocol(self) -> str:
        """``"time"`` or ``"holdout"``."""
        return str(self.artifact.config["protocol"])

    @property
    def fit_until(self) -> datetime:
        """Encoder and retrieval models are trained on data available before this moment (UTC)."""
        return datetime.fromisoformat(self.artifact.config["fit_until"])

    @property
    def test_from(self) -> datetime:
        """Test requests happen at or after this moment (UTC)."""
        return datetime.fromisoformat(self.artifact.config["test_from"])

    @cached_property
    def log(self) -> pa.Table:
        """Events that features may read (EVENTS), ordered by (available_time, sequence)."""
        return completed(pq.read_table(self.artifact.file("log.parquet")), EVENTS)

    @cached_property
    def ranking(self) -> pa.Table:
        """One row per (request, candidate) (RANKING), grouped by request, ordered by time."""
        return pq.read_table(self.artifact.file("ranking.parquet"))

    @cached_property
    def retrieval(self) -> pa.Table:
        """One row per retrieval request (RETRIEVAL)."""
        return pq.read_table(self.artifact.file("retrieval.parquet"))

    @cached_property
    def pool(self) -> np.ndarray:
        """Items held out from the encoder's training to test it on, int64 ascending.

        Whole products (SPU) with picture and title that have no event before ``fit_until``.
        """
        return pq.read_table(self.artifact.file("pool.parquet")).column("item_id").to_numpy()

    def encoder_items(self, items: pa.Table) -> np.ndarray:
        """Items the encoder may train on, int64 ascending: first seen before ``fit_until``, not in the pool."""
        known = pc.less(items.column("first_seen"), pa.scalar(self.fit_until, TIME))
        return np.setdiff1d(items.filter(known).column("item_id").to_numpy(), self.pool)

    @cached_property
    def fit_log(self) -> pa.Table:
        """Events available strictly before ``fit_until``."""
        return self._known_before(self.fit_until)

    @cached_property
    def test_log(self) -> pa.Table:
        """Events available strictly before ``test_from``: what test requests may use."""
        return self._known_before(self.test_from)

    def _known_before(self, moment: datetime) -> pa.Table:
        return self.log.filter(pc.less(self.log.column("available_time"), pa.scalar(moment, TIME)))


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=time_us % 1_000_000)


def split_dataset(dataset: Dataset, out: Path, seed: int = 0, pool: np.ndarray | None = None) -> Artifact:
    """Split a dataset by its protocol and write the artifact of kind "split".

    Args:
        dataset: its manifest's ``protocol`` is "time" or "holdout".
        out: where to write.
        seed: of the sample of held-out users, and of retrieval requests beyond 6,000 for test or 12,000 for
            training.
        pool: items that may be held out from the encoder's training, int64; None: all.

    Raises:
        DataError: no events to split, too little time between them, an unknown protocol, or too few users to
            hold out.
    """
    where = dataset.artifact.path
    if dataset.events.num_rows == 0:
        raise DataError(
            f"{where}: expected events to split, found 0 "
            f"(and {dataset.judgements.num_rows} judgements, which carry their own 'part'). "
            f"A dataset without events can only train and test the encoder and relevance."
        )
    protocol = dataset.artifact.config["protocol"]
    if protocol not in ("time", "holdout"):
        raise DataError(f"{where}: expected protocol 'time' or 'holdout', found {protocol!r}")
    log = Log.of(dataset.events)
    rng = np.random.default_rng(seed)
    if protocol == "time":
        fit_us, test_us = _cuts(log, where)
        ranking = _ranking(log, fit_us, test_us)
        retrieval = _retrieval_by_time(log, fit_us, test_us, rng)
        kept = log.table
    else:
        kept, retrieval = _hold_out(log, dataset.items, rng, where)
        ranking = RANKING.empty_table()
        fit_us = test_us = int(log.available_us[-1]) + 1_000_000
    config = {
        "protocol": protocol,
        "fit_until": _moment(fit_us).isoformat(),
        "test_from": _moment(test_us).isoformat(),
        "seed": seed,
    }
    if protocol == "time" and (clicks := clicks_explained(log.table)):
        config["clicks"] = clicks
    with write_artifact(out, "split", config, {"dataset": dataset.artifact}) as folder:
        pq.write_table(kept.cast(EVENTS), folder / "log.parquet", compression="zstd")
        pq.write_table(ranking, folder / "ranking.parquet", compression="zstd")
        pq.write_table(retrieval, folder / "retrieval.parquet", compression="zstd")
        held = _pool(dataset.items, log.item[log.available_us < fit_us], pool, rng)
        pq.write_table(pa.table({"item_id": held}), folder / "pool.parquet")
    return open_artifact(out, "split")


def _pool(
    items: pa.Table, acted_on: np.ndarray, allowed: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Items with picture and title of products without events, in random order of products, at most POOL_ITEMS."""
    spu, item_id = items.column("spu").to_numpy(), items.column("item_id").to_numpy()
    used = acted_on if allowed is None else np.union1d(acted_on, np.setdiff1d(item_id, allowed))
    untouched = ~np.isin(spu, spu[np.isin(item_id, used)])
    whole = pc.and_(items.column("image_id").is_valid(), items.column("title").is_valid()).to_numpy()
    products = rng.permutation(np.unique(spu[untouched & whole]))
    place = np.full(len(spu), len(products))
    order = np.argsort(products)
    candidate = np.flatnonzero(untouched & whole)
    place[candidate] = order[np.searchsorted(products[order], spu[candidate])]
    candidate = candidate[np.argsort(place[candidate], kind="stable")]
    return np.sort(item_id[candidate[:POOL_ITEMS]])


def _cuts(log: Log, where: Path) -> tuple[int, int]:
    """``fit_until`` and ``test_from``: quantiles of the times of impressions and ratings, else of all events."""
    shown = log.is_type("impression") | log.is_type("rating")
    times = np.sort(log.event_us[shown] if shown.any() else log.event_us)
    first, last = times[0], times[-1]
    fit_us, test_us = (int(times[int(fraction * len(times))]) for fraction in (FIT_FRACTION, TEST_FRACTION))
    if not first < fit_us < test_us <= last:
        raise DataError(
            f"{where}: expected events spread over time, found {len(times)} between {_moment(int(first))} "
            f"and {_moment(int(last))} whose 60 % and 80 % quantiles leave a part empty. "
            f"Use protocol 'holdout'."
        )
    return fit_us, test_us


def _ranking(log: Log, fit_us: int, test_us: int) -> pa.Table:
    """Impressions (label: clicked) and ratings (label: liked) from ``fit_us`` on, as requests."""
    impression, rating = log.is_type("impression"), log.is_type("rating")
    rows = np.flatnonzero(impression | rating)
    if len(rows) == 0:
        return RANKING.empty_table()
    request, time_us = _requests(log, rows)
    label = np.where(
        rating[rows],
        log.positive[rows],
        _clicked(log, np.flatnonzero(log.is_type("click")), rows),
    )
    late = time_us >= fit_us
    rows, request, time_us, label = rows[late], request[late], time_us[late], label[late]
    position = log.table.column("position").fill_null(-1).to_numpy()[rows]
    order = np.lexsort((position, request, time_us))  # stable: without positions the order of the log
    rows, request, time_us, label = rows[order], request[order], time_us[order], label[order]
    logged = log.table.take(pa.array(rows))
    columns = {
        "request_id": pa.array(request),
        "user_id": logged.column("user_id"),
        "time": pa.array(time_us).cast(TIME),
        "query_id": logged.column("query_id"),
        "item_id": logged.column("item_id"),
        "position": logged.column("position"),
        "label": pa.array(label.astype(np.float32)),
        "part": pa.array(PARTS).take(pa.array(_ranking_part(request, time_us, test_us))),
        "event_id": logged.column("event_id"),
    }
    return pa.table(columns, schema=RANKING)


def _requests(log: Log, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Request id and request time of each row; a row without a request id becomes its own request.

    The time of a request is that of its first event.
    """
    column = log.table.column("request_id")
    own = column.is_null().to_numpy()[rows]
    request = column.fill_null(-1).to_numpy()[rows].copy()
    request[own] = request.max() + 1 + np.arange(own.sum())
    _, inverse = np.unique(request, return_inverse=True)
    first = np.full(inverse.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, log.event_us[rows])
    return request, first[inverse]


def _clicked(log: Log, clicks: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether the (request, item) of each of ``rows`` was clicked, bool."""
    request = log.table.column("request_id").fill_null(-1).to_numpy()
    pair = pairs(
        np.concatenate([request[rows], request[clicks]]), np.concatenate([log.item[rows], log.item[clicks]])
    )
    known = request[rows] >= 0
    return np.isin(pair[: len(rows)], pair[len(rows) :]) & known


def _ranking_part(request: np.ndarray, time_us: np.ndarray, test_us: int) -> np.ndarray:
    """Number in PARTS of each row; the last tenth of the requests before ``test_us`` is "valid"."""
    change = np.concatenate(
        [[True], request[1:] != request[:-1]]
    )  # rows are grouped by request, in time order
    number = np.cumsum(change) - 1
    before = int(np.sum(change & (time_us < test_us)))
    part = np.where(number >= before - int(round(VALID_FRACTION * before)), 1, 0)
    return np.where(time_us >= test_us, 2, part)


def _retrieval_by_time(log: Log, fit_us: int, test_us: int, rng: np.random.Generator) -> pa.Table:
    """One request per user and window, at its start, whose relevant items are those newly liked in the window."""
    end_us = int(log.event_us.max()) + 1
    found = []
    for part, start_us, stop_us in (("train", fit_us, test_us), ("test", test_us, end_us)):
        pair = pairs(log.user, log.item)
        inside = log.positive & (log.event_us >= start_us) & (log.event_us < stop_us)
        before = log.positive & (log.event_us < start_us)
        new = np.flatnonzero(inside)[~np.isin(pair[inside], pair[before])]
        _, first = np.unique(pair[new], return_index=True)
        new = new[first]
        users = np.unique(log.user[new])
        users = np.sort(rng.permutation(users)[: MOST[part]])
        new = new[np.isin(log.user[new], users)]
        found.append((part, start_us, log.user[new], log.item[new]))
    return _retrieval_table(found)


def _retrieval_table(found: list[tuple[str, int, np.ndarray, np.ndarray]]) -> pa.Table:
    """Group (user, item) rows of each (part, time) into requests numbered from 1."""
    tables = []
    next_id = 1
    for part, time_us, user, item in found:
        order = np.lexsort((item, user))
        user, item = user[order], item[order]
        users, start = np.unique(user, return_index=True)
        offsets = pa.array(np.append(start, len(user)), pa.int32())
        columns = [
            pa.array(np.arange(next_id, next_id + len(users))),
            pa.array(users),
            pa.array(np.full(len(users), time_us)).cast(TIME),
            pa.array(np.full(len(users), part), pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(item)),
        ]
        tables.append(pa.table(columns, schema=RETRIEVAL))
        next_id += len(users)
    return pa.concat_tables(tables).combine_chunks()


def _hold_out(log: Log, items: pa.Table, rng: np.random.Generator, where: Path) -> tuple[pa.Table, pa.Table]:
    """Hide the last like of sampled users; returns the log without those events and the retrieval requests.

    Eligible are users who liked at least two items with pictures, and whose last like is their only one of its item,
    which has a picture. A third of them, at most 6,000, are test users; at most 12,000 others are train users.
    """
    pictured = items.filter(items.column("image_id").is_valid()).column("item_id").to_numpy()
    likes = np.flatnonzero(log.positive)
    pair = pairs(log.user, log.item)
    seen = likes[np.isin(log.item[likes], pictured)]
    _, first = np.unique(pair[seen], return_index=True)
    users, distinct = np.unique(log.user[seen[first]], return_counts=True)

    last_of, from_end = np.unique(log.user[likes][::-1], return_index=True)
    last = likes[::-1][from_end]
    _, code, times = np.unique(pair[likes], return_inverse=True, return_counts=True)
    once = likes[times[code] == 1]
    eligible = last[
        np.isin(last_of, users[distinct >= 2]) & np.isin(log.item[last], pictured) & np.isin(last, once)
    ]
    if len(eligible) < 2:
        raise DataError(
            f"{where}: expected users with two or more pictured items to hold one out, found {len(eligible)} "
            f"among {len(last_of)} users with likes."
        )
    eligible = rng.permutation(eligible)
    tests = min(MOST["test"], max(1, len(eligible) // 3))
    chosen = {"train": eligible[tests : tests + MOST["train"]], "test": eligible[:tests]}
    time_us = int(log.available_us[-1]) + 1_000_000
    found = [(part, time_us, log.user[rows], log.item[rows]) for part, rows in chosen.items()]
    kept = np.ones(len(log.user), dtype=bool)
    kept[np.concatenate(list(chosen.values()))] = False
    return log.table.filter(pa.array(kept)), _retrieval_table(found)
