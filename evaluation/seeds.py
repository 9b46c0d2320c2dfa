"""The ranker and its controls over several seeds, to see whether a difference is larger than chance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import DataError
from dataset.split import Split
from dataset.tables import Dataset
from evaluation.baselines import rank
from evaluation.content import PlainContent
from evaluation.ctr_quality import ctr_quality, probabilities
from evaluation.plain import with_mix
from evaluation.replay import rank_requests, score_impressions
from evaluation.retrieval_quality import retrieval_quality
from evaluation.run import DEPTH, answerable
from evaluation.shop_baselines import relevant_of, requests_of
from feature_repo.embeddings import as_stored
from moonstore.files import write_text
from ranker.controls import rankers as controls
from ranker.score import CONFIG, CtrConfig, Ranker
from ranker.train import Training, train_ctr
from retrieval.examples import ranker_frames
from retrieval.proposals import ordering_frame, proposed
from retrieval.readings import Readings
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import open_artifact
from run.sizes import Size

SEEDS = (0, 1, 2)
METRICS = ("auc", "gauc", "ne")
REPLAYED = 2_000


def measure_seeds(
    folder: Path, dataset: Dataset, split: Split, size: Size
) -> dict[str, dict[str, float | int]]:
    """Train every control of the run's ranker once per seed on the same frames and vectors, and measure it.

    Where impressions were logged, click prediction on the test impressions; where none were, recall of
    ``REPLAYED`` test requests drawn at random, beside the tuned mix of baselines on the same requests.

    Returns:
        name -> mean, n (seeds) and, over several seeds, sd (n - 1); also written to ``seeds.json``.

    Raises:
        DataError: the run has no ranker.
    """
    if not split.ranks:
        raise DataError(
            f"{folder}: expected events that a ranker can learn from, found none, so there is no ranker"
        )
    retriever = Retriever.open(open_retrieval(folder, fitted=True))
    embedding, vectors = retriever.artifacts["embedding"], as_stored(retriever.vectors, folder / "store")
    made = config_of(folder)
    recipe, size = made.recipe, replace(size, ranker_history=made.inputs.history)
    train, valid, loss = ranker_frames(folder, split, size, 0, retriever)
    asked = ordering_frame(folder, split, size, 0, retriever)
    readings = Readings.of(train, valid, retriever, loss, asked)
    rankers: dict[str, Ranker] = {}
    for seed in SEEDS:
        for control, reads in controls(vectors, seed).items():
            name, table = f"{control}_{seed}", reads.vectors
            own, checked, ordered = readings.by(reads)
            parents = {"split": split.artifact} | ({} if table is None else {"embedding": embedding})
            out = folder / "seeds" / name
            training = Training(seed=seed, loss=loss, recipe=recipe)
            trained = train_ctr(own, checked, table, size, out, parents, training, asked=ordered)
            rankers[name] = Ranker.open(trained, table)
    found: dict[str, list[float]] = {}
    for name, value in measured_rankers(folder, dataset, split, size, rankers):
        found.setdefault(name, []).append(value)
    result: dict[str, dict[str, float | int]] = {}
    for name, values in found.items():
        result[name] = {"mean": float(np.mean(values)), "n": len(values)}
        if len(values) > 1:  # the mix has no seed
            result[name]["sd"] = float(np.std(values, ddof=1))
    write_text(folder / "seeds.json", json.dumps(result, indent=2, sort_keys=True) + "\n")
    return result


def config_of(folder: Path) -> CtrConfig:
    """What the ranker of a run is, its recipe and the length of its histories among it.

    Raises:
        ArtifactError: the run has no ranker.
    """
    return CtrConfig.read(open_artifact(folder / "ranker_full", "ranker").file(CONFIG))


def measured_rankers(
    folder: Path, dataset: Dataset, split: Split, size: Size, rankers: Mapping[str, Ranker]
) -> Iterator[tuple[str, float]]:
    """Measure rankers on the test part: their clicks where impressions were logged, else their recall.

    Args:
        folder, dataset, split, size: of the run.
        rankers: ``<name>_<seed>`` -> ranker.

    Yields:
        ``ctr/<name>/<metric>`` or ``retrieval/<name>/<metric>``, and its value, once per ranker of the name.
    """
    yield from (_clicks if split.shows else _recalls)(folder, dataset, split, size, rankers)


def _clicks(
    folder: Path, dataset: Dataset, split: Split, size: Size, rankers: Mapping[str, Ranker]
) -> Iterator[tuple[str, float]]:
    scored = score_impressions(folder, split, size, Retriever.open(open_retrieval(folder)), rankers)
    for name, logits in scored.logits.items():
        prefix = f"ctr/{name.rsplit('_', 1)[0]}"
        for one in ctr_quality(scored.label, probabilities(logits), scored.user_id, prefix=prefix):
            if one.name.rsplit("/", 1)[1] in METRICS:
                yield one.name, one.value


def _recalls(
    folder: Path, dataset: Dataset, split: Split, size: Size, rankers: Mapping[str, Ranker]
) -> Iterator[tuple[str, float]]:
    candidates = answerable(dataset, split)
    test = split.retrieval.filter(pc.equal(split.retrieval["part"], "test"))
    drawn = np.sort(np.random.default_rng(0).permutation(len(test))[:REPLAYED])
    test = test.take(pa.array(drawn))
    relevant = relevant_of(test).only(candidates)
    retriever = Retriever.open(open_retrieval(folder), only=candidates)
    found = proposed(folder, test, size, retriever)
    answers = dict(rank_requests(folder, test, size, retriever, rankers, found, DEPTH))
    mix = with_mix(PlainContent.of(dataset.items, dataset.images), split, candidates, seed=0)["mix"]
    answers["mix"] = rank(mix, requests_of(split.log, test), DEPTH, repeats=split.repeats)
    for name, ranked in answers.items():
        if name == "mix" or name.startswith("ranker_"):
            way = name.removeprefix("ranker_").rsplit("_", 1)[0]
            for one in retrieval_quality(ranked, relevant, len(candidates), prefix=f"retrieval/{way}"):
                if one.name.endswith(("recall@20", "ndcg@20")):
                    yield one.name, one.value
