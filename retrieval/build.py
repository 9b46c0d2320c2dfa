"""Build the retrieval artifacts of a run: co-occurrence, the item index, the two-tower model and its index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import TIME
from dataset.split import Split
from dataset.tables import Dataset
from feature_repo.frames.join import TrainingFrame, training_frame
from feature_repo.services import RETRIEVAL
from feature_repo.vectors import Vectors
from ranker.two_tower.train import TwoTower, train_two_tower
from retrieval.cooccurrence import build_cooccurrence
from retrieval.index import ItemIndex, category_path
from run.artifacts import open_artifact
from run.sizes import Size

NO_USER = -1


def build_retrieval(folder: Path, dataset: Dataset, split: Split, size: Size, seed: int) -> None:
    """Write the artifacts ``cooccurrence``, ``cooccurrence_fit``, ``index``, ``two_tower``, ``two_tower_index``.

    ``cooccurrence`` counts what was known before ``test_from`` and answers requests after it;
    ``cooccurrence_fit`` counts what was known before ``fit_until`` and scores the ranker's training requests,
    which come after that: no count is newer than the request it is used for.
    """
    embedding = open_artifact(folder / "embedding", "embedding")
    vectors = Vectors.open(embedding)
    parents = {"split": split.artifact}
    build_cooccurrence(split.test_log, folder / "cooccurrence", parents)
    build_cooccurrence(split.fit_log, folder / "cooccurrence_fit", parents)

    paths = _category_paths(dataset, vectors.ids)
    ItemIndex.build(vectors.ids, vectors.matrix, paths).save(folder / "index", {"embedding": embedding})

    catalogue = catalogue_frame(folder, split, vectors.ids, size).take(0, 1).candidates
    towers = train_two_tower(
        training_frame(folder / "store", _positives(split), size.history, RETRIEVAL),
        vectors,
        catalogue,
        size,
        folder / "two_tower",
        parents={"split": split.artifact, "embedding": embedding},
        seed=seed,
    )
    matrix = TwoTower.open(towers, vectors).item_vectors(catalogue)
    ItemIndex.build(vectors.ids, matrix, paths).save(folder / "two_tower_index", {"two_tower": towers})


def catalogue_frame(folder: Path, split: Split, item_ids: np.ndarray, size: Size) -> TrainingFrame:
    """One request without a user for every item, at the end of the log: the items' features as in serving."""
    end = pc.max(split.log["available_time"]).cast(pa.int64()).as_py() + 1_000_000
    count = len(item_ids)
    rows = pa.table(
        {
            "request_id": pa.array(np.zeros(count, np.int64)),
            "user_id": pa.array(np.full(count, NO_USER)),
            "time": pa.array(np.full(count, end)).cast(TIME),
            "query_id": pa.nulls(count, pa.int64()),
            "item_id": pa.array(item_ids),
        }
    )
    return training_frame(folder / "store", rows, size.history, RETRIEVAL)


def _positives(split: Split) -> pa.Table:
    """What users took in the ranker's training requests: the two-tower model's positives, one request each.

    They lie after ``fit_until``, because a two-tower model that reads an embedding must not learn from
    events older than the embedding.
    """
    if split.protocol == "time":
        rows = split.ranking.filter(pc.and_(pc.equal(split.ranking["part"], "train"), _liked(split.ranking)))
    else:
        train = split.retrieval.filter(pc.equal(split.retrieval["part"], "train"))
        place = pc.list_parent_indices(train["relevant"])
        rows = train.take(place).append_column("item_id", pc.list_flatten(train["relevant"]))
        rows = rows.append_column("query_id", pa.nulls(len(rows), pa.int64()))
    rows = rows.select(["user_id", "time", "query_id", "item_id"])
    rows = rows.append_column("label", pa.array(np.ones(len(rows), np.float32)))
    return rows.append_column("request_id", pa.array(np.arange(len(rows))))


def _liked(ranking: pa.Table) -> pa.ChunkedArray:
    return pc.greater(ranking["label"], 0.5)


def _category_paths(dataset: Dataset, item_ids: np.ndarray) -> list[str]:
    path = dict(
        zip(
            dataset.items["item_id"].to_pylist(),
            (category_path(parts) for parts in dataset.items["category"].to_pylist()),
            strict=True,
        )
    )
    return [path[item_id] for item_id in item_ids.tolist()]
