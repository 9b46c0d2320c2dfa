"""The leak-free split into the log that features may read, training requests and test requests.

What comes first trains the encoder, co-occurrence and the two-tower model; requests after that train the ranker; the
last ones test it. What "first" and "last" mean is the protocol's choice (``dataset.protocols``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.contracts import EVENTS, TIME, DataError
from dataset.first_seen import LOG as FIRST_EVENT
from dataset.given import by_given
from dataset.log import Log, among, distinct, microseconds
from dataset.months import Month, months_of, stored_months, write_months
from dataset.protocols import BY, NEVER, NONE, Moments, by_last, by_time, by_users, choose, spaced
from dataset.repeats import are_usual
from dataset.requests import RANKING, RETRIEVAL, asked, says_what_was_not_liked, shown, taken
from dataset.slates import clicks_explained
from run.artifacts import Artifact, ArtifactError, open_artifact, write_artifact

if TYPE_CHECKING:
    from dataset.tables import Dataset

POOL_ITEMS, POOL_SHARE = 1_000, 5  # most items held out from the encoder's training, and one in how many
LOG = "log.parquet"  # a folder of the log's months
CUTS = "cuts.parquet"  # of the users whose events are learned from or counted until a moment of their own
SECOND_US = 1_000_000
EARLIER = {"holdout": "users"}  # a protocol's name in release 0.1.0


@dataclass(frozen=True)
class Split:
    """An opened split artifact; tables are read when first used."""

    artifact: Artifact

    @classmethod
    def open(cls, artifact: Artifact) -> Split:
        """Open an artifact of kind "split"."""
        return cls(artifact)

    @property
    def by(self) -> str:
        """The protocol: one of ``protocols.BY``, or ``"none"`` of a catalogue without a log."""
        config = self.artifact.config
        return str(config["by"]) if "by" in config else EARLIER.get(config["protocol"], config["protocol"])

    @property
    def shows(self) -> bool:
        """Whether ``ranking`` holds what was shown, liked or not; else it holds what was taken, and nothing else."""
        return bool(self.artifact.config.get("shows", self.by == "time"))

    @property
    def rated(self) -> bool:
        """Whether ``ranking`` holds ratings alone: of what users chose themselves, how they liked it."""
        return bool(self.artifact.config.get("rated", False))

    @property
    def repeats(self) -> bool:
        """Whether what a user likes again is asked for, and may be recommended (``dataset.repeats``)."""
        return bool(self.artifact.config.get("repeats", False))

    @property
    def said(self) -> list[str]:
        """The protocol, what is asked for, and why, for whoever splits."""
        config = self.artifact.config
        lines = [f"by {config['by']}: {config['why']}"]
        if "repeats" in config:
            asked = (
                "new likes and repeated ones" if self.repeats else "new likes only, all with '--repeats yes'"
            )
            lines.append(f"{asked}: {config['why_repeats']}")
        return lines

    @property
    def ranks(self) -> bool:
        """Whether anything was taken in the ranker's training requests; without it there is no ranker."""
        return bool(self.artifact.config.get("ranks", True))

    @property
    def end(self) -> datetime:
        """A second after all of ``log`` was available, without a log after the newest item was first seen (UTC)."""
        last = pc.max(self.months[-1].table(["available_time"]).column(0)).as_py()
        return self.test_from if last is None else last + timedelta(seconds=1)

    @property
    def fit_until(self) -> datetime:
        """Encoder and retrieval models are trained on data available before this moment (UTC)."""
        return datetime.fromisoformat(self.artifact.config["fit_until"])

    @property
    def test_from(self) -> datetime:
        """Protocol "time": test requests happen at or after this moment (UTC); else the end of the log."""
        return datetime.fromisoformat(self.artifact.config["test_from"])

    @property
    def known_from(self) -> datetime:
        """From when on requests may read the encoder's vectors (UTC).

        Protocol "time": ``fit_until``. Else requests are spread over the log and none of them was learned from, so
        it is the moment before the log begins.
        """
        return datetime.fromisoformat(
            self.artifact.config.get("known_from", self.artifact.config["fit_until"])
        )

    @property
    def months(self) -> list[Month]:
        """The log in months, to be read one after the other."""
        return stored_months(self.artifact.file(LOG))

    @cached_property
    def log(self) -> pa.Table:
        """Events that features may read (EVENTS), ordered by (available_time, sequence)."""
        return pa.concat_tables([month.table() for month in self.months])

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

        Whole products (SPU) with picture and title that have no event in ``fit_log``.
        """
        return pq.read_table(self.artifact.file("pool.parquet")).column("item_id").to_numpy()

    def encoder_items(self, items: pa.Table) -> np.ndarray:
        """Items the encoder may train on, int64 ascending: first seen before ``fit_until``, not in the pool."""
        known = pc.less(items.column("first_seen"), pa.scalar(self.fit_until, TIME))
        return np.setdiff1d(items.filter(known).column("item_id").to_numpy(), self.pool)

    @cached_property
    def fit_log(self) -> pa.Table:
        """Events of ``log`` from before every request of the ranker: encoder and co-occurrence learn from them."""
        return self._known_before("fit_until")

    @cached_property
    def test_log(self) -> pa.Table:
        """Events of ``log`` that may be counted to answer test requests."""
        return self._known_before("test_from")

    def _known_before(self, name: str) -> pa.Table:
        moment = pa.scalar(datetime.fromisoformat(self.artifact.config[name]), TIME)
        if not self.artifact.file(CUTS).exists():
            return self.log.filter(pc.less(self.log.column("available_time"), moment))
        cuts = pq.read_table(self.artifact.file(CUTS))
        row = pc.index_in(self.log.column("user_id"), value_set=cuts.column("user_id"))
        until = pc.fill_null(cuts.column(name).take(row), NEVER)
        return self.log.filter(pc.less(self.log.column("available_time").cast(pa.int64()), until))


def split_dataset(
    dataset: Dataset,
    out: Path,
    by: str | None = None,
    seed: int = 0,
    pool: np.ndarray | None = None,
    repeats: bool | None = None,
) -> Artifact:
    """Split a dataset by a protocol and write the artifact of kind "split".

    Args:
        dataset: with or without events.
        out: where to write.
        by: one of ``protocols.BY``; None: what the data set asks for ("protocol" in its manifest), else chosen from
            the data. The manifest says which, and why.
        pool: items that may be held out from the encoder's training, int64; None: all.
        seed: of the hash of users, and of requests where there are more than ``protocols.MOST``.
        repeats: whether what a user likes again is asked for; None: what the data set says ("repeats" in its
            manifest), else whether most likes are such.

    Raises:
        DataError: an unknown protocol, or one that this log cannot be split by.
    """
    where = dataset.artifact.path
    if by is not None and by not in BY:
        raise DataError(f"{where}: expected to split by one of {', '.join(BY)}, found {by!r}")
    rng = np.random.default_rng(seed)
    if dataset.events.num_rows == 0:
        if by is not None:
            raise DataError(
                f"{where}: expected events to split by {by}, found 0. Run 'moon split' without '--by'."
            )
        end_us = _us(pc.max(dataset.items["first_seen"])) + SECOND_US
        tables = {
            "log": EVENTS.empty_table(),
            "ranking": RANKING.empty_table(),
            "retrieval": RETRIEVAL.empty_table(),
        }
        config: dict[str, Any] = {"by": NONE, "why": "there are no events", "shows": False}
        config["known_from"] = _moment(_us(pc.min(dataset.items["first_seen"])) - SECOND_US).isoformat()
        config |= {name: _moment(end_us).isoformat() for name in ("fit_until", "test_from")} | {"seed": seed}
        return _write(dataset, out, tables, config, _used(dataset, np.empty(0, np.int64), pool), rng)
    log = Log.of(dataset.events)
    shows = says_what_was_not_liked(log)
    why = "asked for"
    if by is None and (by := dataset.artifact.config.get("protocol")) not in BY:
        timed = dataset.artifact.config.get("timed", True)  # else the order of the rows stands for time
        by, why = choose(log, shows and timed)
    again = "asked for"
    if repeats is None and (repeats := dataset.artifact.config.get("repeats")) is None:
        repeats, again = are_usual(log)
    if by in ("last", "users"):
        log = spaced(log)
    moments, known = _moments(log, by, dataset, seed, shows, repeats), _known(log, dataset)
    kept = log.table.filter(pa.array(log.available_us < moments.kept))
    tables = {
        "log": kept.cast(EVENTS),
        "ranking": shown(log, moments) if shows else taken(log, moments, rng, known, repeats),
        "retrieval": asked(log, moments, rng, known, repeats),
    }
    rated = shows and not log.is_type("impression").any()
    config = {"by": by, "why": why, "shows": shows, "rated": bool(rated), "seed": seed}
    config |= {"repeats": repeats, "why_repeats": again}
    if by == "time":
        fit_us, test_us = int(moments.fit[0]), int(moments.test[0])
    else:
        fit_us = test_us = int(log.available_us[-1]) + SECOND_US
        config["known_from"] = _moment(int(log.event_us.min()) - SECOND_US).isoformat()
        tables["cuts"] = _cuts(log, moments)
    config |= {"fit_until": _moment(fit_us).isoformat(), "test_from": _moment(test_us).isoformat()}
    if clicks := clicks_explained(log.table):
        config["clicks"] = clicks
    used = _used(dataset, log.item[log.available_us < moments.fit], pool)
    return _write(dataset, out, tables, config, used, rng)


def measured_items(dataset: Dataset) -> np.ndarray:
    """Items that may be asked for and answered when recommendations are measured, int64 ascending: the catalogue.

    A source whose benchmark is of items with a picture that were acted on says so in its manifest.
    """
    items = dataset.items
    if dataset.artifact.config.get("candidates") != "pictured":
        return np.sort(items["item_id"].to_numpy())
    pictured = items.filter(items["image_id"].is_valid())["item_id"].to_numpy()
    return np.sort(pictured[among(pictured, dataset.events["item_id"].to_numpy())])


def _moments(log: Log, by: str, dataset: Dataset, seed: int, shows: bool, repeats: bool) -> Moments:
    where = dataset.artifact.path
    if by == "time":
        return by_time(log, where)
    if by == "last":
        return by_last(log, where, repeats)
    if by == "given":
        return by_given(log, dataset.extra.get("event"), where)
    return by_users(log, measured_items(dataset), seed, shows, repeats)


def _known(log: Log, dataset: Dataset) -> np.ndarray:
    """Whether the item of each event was there before it, bool.

    Where the log alone says when an item was first seen, one that the asked event is the first to name is the only
    one that is a moment old: its age tells the answer (docs/log/evaluation.md#an-items-age-told-the-answer).
    """
    if dataset.artifact.config.get("first_seen", {}).get("items") != FIRST_EVENT:
        return np.ones(len(log.user), bool)
    items = dataset.items.sort_by("item_id")
    row = np.searchsorted(items["item_id"].to_numpy(), log.item)
    return microseconds(items["first_seen"])[row] < log.event_us


def _cuts(log: Log, moments: Moments) -> pa.Table:
    """Until when the events of each user are learned from and counted; users without a limit are left out."""
    users, first = np.unique(log.user, return_index=True)
    fit, counted = moments.fit[first], moments.counted[first]
    limited = (fit < NEVER) | (counted < NEVER)
    columns = {"user_id": users, "fit_until": fit, "test_from": counted}
    return pa.table({name: values[limited] for name, values in columns.items()})


def _write(
    dataset: Dataset,
    out: Path,
    tables: dict[str, pa.Table],
    config: dict[str, Any],
    used: np.ndarray,
    rng: np.random.Generator,
) -> Artifact:
    ranking = tables["ranking"]
    learned = pc.and_(pc.equal(ranking["part"], "train"), pc.greater(ranking["label"], 0.5))
    config["ranks"] = bool(pc.any(learned, min_count=0).as_py())
    with write_artifact(out, "split", config, {"dataset": dataset.artifact}) as folder:
        write_months(folder / LOG, months_of(tables.pop("log")), _months_before(out))
        for name, table in tables.items():
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        pool = _pool(dataset.items, used, rng)
        pq.write_table(pa.table({"item_id": pool}), folder / "pool.parquet")
    return open_artifact(out, "split")


def _months_before(out: Path) -> list[Month]:
    """The months of the log of the split that lies there, if it is whole."""
    try:
        return Split.open(open_artifact(out, "split")).months
    except ArtifactError:
        return []


def _used(dataset: Dataset, fitted: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """Items that may not be held out from the encoder: with events that it learns from, or not ``allowed``."""
    if allowed is None:
        return fitted
    return np.append(fitted, np.setdiff1d(dataset.items["item_id"].to_numpy(), allowed))


def _pool(items: pa.Table, used: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Items with picture and title of products of which none is used, whole products in random order.

    At most POOL_ITEMS, and at most a fifth of the items with picture and title: the others are to be learned from.
    """
    spu, item_id = items.column("spu").to_numpy(), items.column("item_id").to_numpy()
    untouched = ~among(spu, spu[among(item_id, used)])
    whole = pc.and_(items.column("image_id").is_valid(), items.column("title").is_valid()).to_numpy()
    products = rng.permutation(distinct(spu[untouched & whole]))
    place = np.full(len(spu), len(products))
    order = np.argsort(products)
    candidate = np.flatnonzero(untouched & whole)
    place[candidate] = order[np.searchsorted(products[order], spu[candidate])]
    candidate = candidate[np.argsort(place[candidate], kind="stable")]
    return np.sort(item_id[candidate[: min(POOL_ITEMS, int(whole.sum()) // POOL_SHARE)]])


def _us(time: pa.Scalar) -> int:
    return int(time.cast(pa.int64()).as_py())


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=time_us % 1_000_000)
