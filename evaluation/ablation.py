"""What a feature is worth: the ranker with all features against the ranker without it, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.split import Split
from dataset.tables import Dataset
from evaluation.seeds import SEEDS, measured_rankers
from feature_repo.embeddings import as_stored
from ranker.recipes import Recipe
from ranker.score import Ranker
from ranker.train import Training, train_ctr
from retrieval.examples import matched, ranker_frames
from retrieval.proposals import ordering_frame
from retrieval.retriever import Retriever, open_retrieval
from run.sizes import Size

ALL = "all"


@dataclass(frozen=True)
class Worth:
    """What one feature adds to a metric of the ranker.

    Attributes:
        metric: its name.
        with_all: mean over the seeds with all features.
        without: mean over the seeds without the feature.
        deviation: of the difference, from seed to seed (n - 1); every pair has the same seed.
        seeds: how many.
    """

    metric: str
    with_all: float
    without: float
    deviation: float
    seeds: int


def measure_worth(
    folder: Path, dataset: Dataset, split: Split, size: Size, names: Sequence[str], recipe: Recipe
) -> Mapping[str, list[Worth]]:
    """Train the ranker with all features and without each of these, on the same frames, vectors and seeds.

    The artifacts lie in ``<folder>/ablation``; the run's own ranker stays.

    Args:
        folder: of a run with its retrieval artifacts.
        dataset, split: of the run.
        size: of the run.
        names: features of the ranker's service; one at a time is left out, the embedding with all vectors.
        recipe: of the ranker.

    Returns:
        feature -> what it adds to each metric.

    Raises:
        DataError: a feature is not in the service.
    """
    retriever = Retriever.open(open_retrieval(folder, fitted=True))
    embedding, vectors = retriever.artifacts["embedding"], as_stored(retriever.vectors, folder / "store")
    train, valid, loss = ranker_frames(folder, split, size, 0, retriever)
    asked = ordering_frame(folder, split, size, 0, retriever)
    ordered = None if asked is None else matched(asked, retriever, train.history)
    parents = {"split": split.artifact, "embedding": embedding}
    embedded = {one.name for one in train.signature.features if one.of_embedding}
    rankers: dict[str, Ranker] = {}
    for seed in SEEDS:
        for left_out in (None, *names):
            name = f"{ALL if left_out is None else left_out}_{seed}"
            table = None if left_out in embedded else vectors
            without = () if left_out is None else (left_out,)
            training = Training(seed=seed, loss=loss, recipe=recipe, without=without)
            out = folder / "ablation" / name
            made = train_ctr(train, valid, table, size, out, parents, training, asked=ordered)
            rankers[name] = Ranker.open(made, table)
    values: dict[tuple[str, str], list[float]] = {}
    for measured, value in measured_rankers(folder, dataset, split, size, rankers):
        _, name, metric = measured.split("/", 2)
        values.setdefault((name, metric), []).append(value)
    return {
        name: [
            _worth(metric, values[ALL, metric], values[name, metric]) for one, metric in values if one == ALL
        ]
        for name in names
    }


def _worth(metric: str, with_all: Sequence[float], without: Sequence[float]) -> Worth:
    gained = np.subtract(with_all, without)
    deviation = float(gained.std(ddof=1)) if len(gained) > 1 else 0.0
    return Worth(metric, float(np.mean(with_all)), float(np.mean(without)), deviation, len(gained))
