"""Compare recipes of rankers at equal budget: the same frames, vectors, epochs and tried rates, over several seeds.

Every (recipe, seed) is trained into ``<folder>/recipes``; one that is there is not trained again unless its recipe
has changed, so that an interrupted comparison goes on where it was. The run's own ranker stays.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from dataset.split import Split
from dataset.tables import Dataset
from evaluation.measurements import read_measurements, write_measurements
from evaluation.metrics import Measurement
from evaluation.science.encoders.table import EncoderTable
from evaluation.science.rankers.measured import PLAIN, by_clicks, by_lists
from feature_repo.embeddings import as_stored
from feature_repo.vectors import Vectors
from moonstore.disk import make_folder
from moonstore.files import write_json, write_text
from ranker.recipes import Recipe, RecipeError, recorded
from ranker.score import CONFIG, Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from ranker.tuning.rankers import TUNING, tune_ctr
from retrieval.examples import MatchedFrames, ranker_frames
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import Artifact, discard, open_artifact, read_json
from run.sizes import Size

COLUMNS = {
    "ctr/auc": "AUC",
    "ctr/gauc": "GAUC",
    "ctr/ne": "NE",
    "ctr/ece": "ECE",
    "ctr/cold/auc": "cold AUC",
    "ctr/cold/gauc": "cold GAUC",
    "ctr/warm/auc": "warm AUC",
    "ctr/warm/gauc": "warm GAUC",
    "ctr/new_user/auc": "new users' AUC",
    "retrieval/recall@20": "recall@20",
    "retrieval/ndcg@20": "NDCG@20",
    "retrieval/cold/recall@20": "cold recall@20",
    "retrieval/warm/recall@20": "warm recall@20",
    "ranker/cpu_seconds": "CPU-s",
    "ranker/parameters": "parameters",
}
MADE_BY = "moon ranker --compare"


class ComparisonError(ValueError):
    """The folder holds a comparison of another run; the message says which."""


def compare(
    folder: Path,
    dataset: Dataset,
    split: Split,
    size: Size,
    recipes: Mapping[str, Recipe],
    seeds: int,
    trials: int | None = None,
    requests: int | None = None,
) -> EncoderTable:
    """Train every recipe with every seed, and measure all on the test part; write ``table.md`` and ``table.json``.

    Where impressions were logged, click prediction: AUC, GAUC, normalised entropy and calibration error, of all, of
    cold and of warm items, beside logistic regression and boosting. Where none were, recall and NDCG of test
    requests, beside the same two, the fused order of the candidates and the tuned mix of baselines. CPU-seconds are
    of training with every tried learning rate.

    Args:
        folder: of a run with its retrieval artifacts.
        dataset, split, size: of the run.
        recipes: name -> recipe; the rows of the table.
        seeds: how many, from 0 on.
        trials: of a study of each recipe (``ranker.tuning``), whose best settings every seed is trained with; None:
            every training tries the shipped learning rates.
        requests: training requests, and validation requests, that every training has at most, the same for all; None:
            all of the run's.

    Raises:
        ComparisonError: the folder holds a comparison of another dataset, split, embedding, number of trials or of
            requests, or length of histories.
        RecipeError: histories are too long for a recipe.
    """
    for one in recipes.values():
        one.require_history(size.behaviours)
    out = folder / "recipes"
    make_folder(out)
    retriever = Retriever.open(open_retrieval(folder, fitted=True))
    embedding, vectors = retriever.artifacts["embedding"], as_stored(retriever.vectors, folder / "store")
    asked = {"trials": trials, "requests": requests, "history": size.ranker_history}
    told = {name: str(value) for name, value in asked.items() if value is not None}
    _same_terms(out, {"split": split.artifact.id, "embedding": embedding.id, "size": size.name, **told})
    parents = {"split": split.artifact, "embedding": embedding}
    jobs = [(name, seed) for seed in range(seeds) for name in recipes]
    for job in jobs:
        _forget_changed(out, *job)
    missing = [job for job in jobs if not _costs(out, *job).exists()]
    if missing:
        frames = ranker_frames(folder, split, size, 0, retriever, most=requests)
        chosen: dict[str, Settings | None] = {
            name: None
            if trials is None
            else tune_ctr(folder / TUNING / name, trials, frames, vectors, size, parents, recipes[name])
            for name in dict.fromkeys(name for name, _ in missing)
        }
        for name, seed in missing:
            _train(out, recipes[name], seed, frames, vectors, size, parents, chosen[name])
    unmeasured = [job for job in jobs if not _file(out, *job).exists()]
    rankers = {
        f"{name}_{seed}": Ranker.open(open_artifact(out / f"{name}_{seed}", "ranker"), vectors)
        for name, seed in unmeasured
    }
    measure = by_clicks if split.shows else by_lists
    plain = not any((out / f"{name}.json").exists() for name in PLAIN)
    for name, found in measure(folder, dataset, split, size, rankers, plain) if rankers else ():
        costs = [] if name in PLAIN else list(read_measurements(out / f"{name}.costs.json").values())
        write_measurements(out / f"{name}.json", [*found, *costs])
    files = {name: [_file(out, name, seed) for seed in range(seeds)] for name in recipes}
    table = EncoderTable.read({n: [p] for n in PLAIN if (p := out / f"{n}.json").exists()} | files)
    write_text(out / "table.md", table.markdown(COLUMNS, "ranker"))
    write_text(out / "table.json", table.to_json())
    return table


def _forget_changed(out: Path, name: str, seed: int) -> None:
    """Remove what was measured of a recipe whose name means another ranker by now."""
    place = out / f"{name}_{seed}"
    if not place.exists():
        return
    try:
        recorded(read_json(place / CONFIG, f"Remove {out} and run '{MADE_BY}'.")["recipe"])
    except RecipeError:
        for measured in (_costs(out, name, seed), _file(out, name, seed)):
            measured.unlink(missing_ok=True)
        discard(place)


def _train(
    out: Path,
    recipe: Recipe,
    seed: int,
    frames: tuple[MatchedFrames, MatchedFrames, str],
    vectors: Vectors,
    size: Size,
    parents: Mapping[str, Artifact],
    settings: Settings | None,
) -> None:
    """Train one recipe, and write what it cost; one that was cut short begins again, so that it is timed whole."""
    train, valid, loss = frames
    place = out / f"{recipe.name}_{seed}"
    for partial in out.glob(f"{place.name}*.partial"):
        discard(partial)
    before = time.process_time()
    training = Training(seed=seed, loss=loss, recipe=recipe, settings=settings)
    made = train_ctr(train, valid, vectors, size, place, parents, training)
    seconds = time.process_time() - before
    model = Ranker.open(made, vectors).model
    learned = sum(one.numel() for one in model.parameters() if one.requires_grad)
    costs = {"ranker/cpu_seconds": seconds, "ranker/parameters": learned}
    write_measurements(
        _costs(out, recipe.name, seed), [Measurement(n, v, len(train), "train") for n, v in costs.items()]
    )


def _same_terms(out: Path, terms: Mapping[str, str]) -> None:
    path = out / "terms.json"
    if not path.exists():
        write_json(path, terms)
    elif (found := read_json(path, f"Remove {out} and run '{MADE_BY}'.")) != terms:
        raise ComparisonError(
            f"{out}: holds a comparison of {found}, this run is {dict(terms)}. Remove it and run '{MADE_BY}'."
        )


def _file(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}_{seed}.json"


def _costs(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}_{seed}.costs.json"
