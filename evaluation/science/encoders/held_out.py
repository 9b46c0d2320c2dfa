"""The benchmark's split: all items of some products are held out of catalogue and log; determined by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.log import microseconds
from dataset.split import RANKING, RETRIEVAL, Split
from dataset.tables import Dataset
from evaluation.encoder_tasks import together
from run.artifacts import Artifact, open_artifact, write_artifact

POOL_ITEMS = 1_000
USERS = 2  # least number of users who bought two items on one trip, for the items to count as bought together


@dataclass(frozen=True)
class BenchmarkSplit:
    """Which items an encoder is trained on and which it is tested on.

    Attributes:
        split: for ``encoder.train.train_encoder``: its log has no event of a held-out item, its ``pool`` is every
            item of the held-out products.
        train_items: int64 ascending, every item that is not held out.
        pool_items: int64 ascending, held-out items with picture and title; empty where only queries are held out (new
            photos of known products).
    """

    split: Split
    train_items: np.ndarray
    pool_items: np.ndarray

    @classmethod
    def open(cls, artifact: Artifact, dataset: Dataset) -> BenchmarkSplit:
        """Open the split that ``hold_out`` wrote."""
        split = Split.open(artifact)
        whole = whole_items(dataset.items)
        return cls(split, split.encoder_items(dataset.items), np.intersect1d(split.pool, whole))


def hold_out(dataset: Dataset, out: Path, seed: int = 0, items: int = POOL_ITEMS) -> BenchmarkSplit:
    """Choose the benchmark's items and write the artifact of kind "split" that training takes.

    With a log, or without judgements: complete products (SPU) are held out, until exactly ``items`` items with
    picture and title are, if the sizes of products allow. Products are taken in random order, each followed by the
    product most often bought with it on one trip (by at least two users, not held out yet). A purely random choice
    has too few co-purchases: on H&M 129 queries and 208 pairs, instead of 401 and 1,785.
    With judgements and no log: the source's own division, the products whose judged items are judged in part "test"
    only. Grocery Store's products are judged in both parts, so that only queries are held out.

    Args:
        dataset: an imported dataset.
        out: where to write.
        seed: for the random order of products.
        items: number of items to hold out.
    """
    table = dataset.items
    item_id, spu = table["item_id"].to_numpy(), table["spu"].to_numpy()
    events = dataset.events
    if events.num_rows or not dataset.judgements.num_rows:
        products = _products(
            dataset, np.isin(item_id, whole_items(table)), np.random.default_rng(seed), items
        )
    else:
        products = _judged_in_test_only(dataset)
    held = np.sort(item_id[np.isin(spu, products)])
    log = events.filter(pc.invert(pc.is_in(events["item_id"], pa.array(held))))
    known = [pc.max(table["first_seen"]).as_py(), pc.max(events["available_time"]).as_py()]
    until = max(moment for moment in known if moment is not None) + timedelta(seconds=1)
    config = {
        "by": "none",
        "why": "whole products are held out",
        "shows": False,
        "fit_until": until.astimezone(UTC).isoformat(),
        "test_from": until.astimezone(UTC).isoformat(),
        "seed": seed,
        "items": items,
    }
    with write_artifact(out, "split", config, {"dataset": dataset.artifact}) as folder:
        order = [("available_time", "ascending"), ("sequence", "ascending")]
        pq.write_table(log.sort_by(order), folder / "log.parquet", compression="zstd")
        pq.write_table(RANKING.empty_table(), folder / "ranking.parquet")
        pq.write_table(RETRIEVAL.empty_table(), folder / "retrieval.parquet")
        pq.write_table(pa.table({"item_id": held}), folder / "pool.parquet")
    return BenchmarkSplit.open(open_artifact(out, "split"), dataset)


def whole_items(items: pa.Table) -> np.ndarray:
    """Items with picture and title, int64."""
    whole = pc.and_(items["image_id"].is_valid(), items["title"].is_valid())
    return items.filter(whole)["item_id"].to_numpy()


def _products(dataset: Dataset, whole: np.ndarray, rng: np.random.Generator, items: int) -> np.ndarray:
    """Products to hold out, so that ``items`` of the items marked ``whole`` are among them."""
    item_id, spu = dataset.items["item_id"].to_numpy(), dataset.items["spu"].to_numpy()
    product, size = np.unique(spu[whole], return_counts=True)
    pairs, users = together(*purchases(dataset.events, item_id[whole], spu[whole]))
    both_ways = np.concatenate([pairs, pairs[:, ::-1]])[np.tile(users >= USERS, 2)]
    weight = np.tile(users[users >= USERS], 2)
    partner: dict[int, int] = {}
    for row in np.lexsort((both_ways[:, 1], -weight)):
        partner.setdefault(*both_ways[row].tolist())
    room, size_of, chosen = items, dict(zip(product.tolist(), size.tolist(), strict=True)), set()
    for one in rng.permutation(product).tolist():
        for candidate in (one, partner.get(one, one)):
            if candidate not in chosen and size_of[candidate] <= room:
                chosen.add(candidate)
                room -= size_of[candidate]
        if room == 0:
            break
    return np.array(sorted(chosen), dtype=np.int64)


def purchases(
    events: pa.Table, item_id: np.ndarray, code: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, time and code of every purchase of the items; ``code`` gives each item's."""
    bought = events.filter(
        pc.and_(pc.equal(events["type"], "purchase"), pc.is_in(events["item_id"], pa.array(item_id)))
    )
    order = np.argsort(item_id)
    row = order[np.searchsorted(item_id[order], bought["item_id"].to_numpy())] if len(order) else []
    return bought["user_id"].to_numpy(), microseconds(bought["event_time"]), code[row]


def _judged_in_test_only(dataset: Dataset) -> np.ndarray:
    """Products with judged items, none of which is judged in part "train"."""
    spu_of = dict(zip(dataset.items["item_id"].to_pylist(), dataset.items["spu"].to_pylist(), strict=True))
    judged = {"train": set(), "test": set()}  # type: dict[str, set[int]]
    for item, part in zip(
        dataset.judgements["item_id"].to_pylist(), dataset.judgements["part"].to_pylist(), strict=True
    ):
        judged[part].add(spu_of[item])
    return np.array(sorted(judged["test"] - judged["train"]), dtype=np.int64)
