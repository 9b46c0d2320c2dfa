"""The ranker and its controls over several seeds: is a difference larger than chance?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from dataset.contracts import DataError
from dataset.split import Split
from evaluation.ctr_quality import ctr_quality, probabilities
from evaluation.replay import CONTROLS, score_impressions
from feature_repo.vectors import Vectors
from moon.artifacts import open_artifact
from moon.sizes import Size
from ranker.controls import shuffled
from ranker.score import Ranker
from ranker.train import train_ctr
from retrieval.ranking import ranker_frames
from retrieval.retriever import Retriever

SEEDS = (0, 1, 2)
METRICS = ("auc", "gauc", "ne")


def measure_seeds(folder: Path, split: Split, size: Size) -> dict[str, dict[str, float | int]]:
    """Train every control once per seed on the same frames and vectors, and measure it on the test impressions.

    Returns:
        ``ctr/<control>/<metric>`` -> mean, sd (over seeds, n - 1), n (seeds); also written to ``seeds.json``.

    Raises:
        DataError: the log has no impressions to measure on.
    """
    if not pc.any(pc.equal(split.ranking["part"], "test")).as_py():
        raise DataError(
            f"{folder}: expected logged impressions or ratings to test click prediction on, found none: "
            f"this log holds positive events only. Run 'moon seeds' on another dataset."
        )
    embedding = open_artifact(folder / "embedding", "embedding", "moon embed")
    vectors = Vectors.open(embedding)
    train, valid, loss = ranker_frames(folder, split, size, seed=0)
    retriever = Retriever.open(folder)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        content = {"full": vectors, "id_only": None, "shuffled": shuffled(vectors, seed)}
        rankers: dict[str, Ranker] = {}
        for control in CONTROLS:
            out, table = folder / "seeds" / f"{control}_{seed}", content[control]
            parents = {"split": split.artifact} | ({} if table is None else {"embedding": embedding})
            train_ctr(train, valid, table, size, out, parents, seed=seed, loss=loss)
            rankers[control] = Ranker.open(out, table)
        scored = score_impressions(folder, split, size, retriever, rankers)
        for control, logits in scored.logits.items():
            for one in ctr_quality(
                scored.label, probabilities(logits), scored.user_id, prefix=f"ctr/{control}"
            ):
                if one.name.rsplit("/", 1)[1] in METRICS:
                    found.setdefault(one.name, []).append(one.value)
    result: dict[str, dict[str, float | int]] = {
        name: {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)), "n": len(values)}
        for name, values in found.items()
    }
    (folder / "seeds.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    return result
