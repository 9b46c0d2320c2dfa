"""Build the retrieval artifacts of a run: co-occurrence, the item index, the two-tower model and its index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import TIME
from dataset.split import Split
from dataset.tables import Dataset
from feature_repo.embeddings import as_stored
from feature_repo.frames.join import TrainingFrame, training_frame
from feature_repo.services import RETRIEVAL
from feature_repo.vectors import Vectors
from ranker.two_tower.train import TwoTower, train_two_tower
from retrieval.asked import Queries
from retrieval.cooccurrence import build_cooccurrence
from retrieval.index import ItemIndex, category_path
from retrieval.properties import Properties
from retrieval.shown import Shown
from retrieval.taste import Taste
from retrieval.taste_files import save_taste
from retrieval.words import Words
from run.artifacts import discard, open_artifact
from run.sizes import Size

NO_USER = -1


def build_retrieval(folder: Path, dataset: Dataset, split: Split, size: Size, seed: int) -> None:
    """Write ``cooccurrence``, ``cooccurrence_fit``, ``index``, ``words``, ``taste``, and the two-tower's artifacts.

    The index holds every item of the catalogue, with or without a vector. ``taste`` is left out
    where nothing says what was not liked; ``two_tower`` and ``two_tower_index`` where nothing says what users took.

    ``cooccurrence`` counts the split's ``test_log`` and answers test requests; ``cooccurrence_fit`` counts its
    ``fit_log`` and scores the ranker's training requests: nothing is counted that a request asks for.
    """
    embedding = open_artifact(folder / "embedding", "embedding")
    vectors = as_stored(Vectors.open(embedding), folder / "store")
    parents = {"split": split.artifact}
    build_cooccurrence(split.test_log, folder / "cooccurrence", parents)
    build_cooccurrence(split.fit_log, folder / "cooccurrence_fit", parents)

    items = np.sort(dataset.items["item_id"].to_numpy())
    paths = _category_paths(dataset, items)
    ItemIndex.build(items, vectors.gather(items)[0], paths).save(folder / "index", {"embedding": embedding})
    Words.of(dataset.items).save(folder / "words", parents)
    if split.shows:
        build_taste(dataset, split, folder / "taste")
    else:
        discard(folder / "taste")

    positives = _positives(split)
    if not len(positives):  # nothing to learn from: there is no two-tower source
        for name in ("two_tower", "two_tower_index"):
            discard(folder / name)
        return
    catalogue = catalogue_frame(folder, split, items, size).take(0, 1).candidates
    towers = train_two_tower(
        training_frame(folder / "store", positives, size.history, RETRIEVAL),
        vectors,
        catalogue,
        size,
        folder / "two_tower",
        parents={"split": split.artifact, "embedding": embedding},
        seed=seed,
    )
    matrix = TwoTower.open(towers, vectors).item_vectors(catalogue)
    ItemIndex.build(items, matrix, paths).save(folder / "two_tower_index", {"two_tower": towers})


def build_taste(dataset: Dataset, split: Split, out: Path) -> None:
    """Write the artifact ``taste``: its variances and rates are learned from ``fit_log`` only."""
    properties = Properties.of(dataset.items, dataset.image_bytes)
    shown, learned = (Shown.of(log, split.fit_log) for log in (split.log, split.fit_log))
    queries = Queries.of(dataset.queries, properties, dataset.image_bytes)
    save_taste(Taste.fit(properties, shown, learned), queries, out, {"split": split.artifact})


def catalogue_frame(folder: Path, split: Split, item_ids: np.ndarray, size: Size) -> TrainingFrame:
    """One request without a user for every item, at the end of the log: the items' features as in serving."""
    count = len(item_ids)
    rows = pa.table(
        {
            "request_id": pa.array(np.zeros(count, np.int64)),
            "user_id": pa.array(np.full(count, NO_USER)),
            "time": pa.array([split.end] * count, TIME),
            "query_id": pa.nulls(count, pa.int64()),
            "item_id": pa.array(item_ids),
        }
    )
    return training_frame(folder / "store", rows, size.history, RETRIEVAL)


def _positives(split: Split) -> pa.Table:
    """What users took in the ranker's training requests: the two-tower model's positives, one request each.

    None of them is in ``fit_log``, because a two-tower model that reads an embedding must not learn from what the
    embedding has learned from.
    """
    rows = split.ranking.filter(pc.and_(pc.equal(split.ranking["part"], "train"), _liked(split.ranking)))
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
