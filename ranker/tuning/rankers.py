"""Tune the click model of a recipe: the validation requests decide, nothing of the test part is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_repo.frame import StoredRequests
from feature_repo.vectors import Vectors
from moonstore.files import write_json, write_text
from ranker.learner import TrainingError
from ranker.recipes import Recipe
from ranker.settings import Settings
from ranker.train import LEARNING_RATES, Training, train_ctr
from ranker.tuning.space import Space, ranker_space
from ranker.tuning.study import Pruned, Report, Study, TuningError
from ranker.tuning.table import markdown, to_json
from run.artifacts import Artifact, discard
from run.sizes import Size

TUNING = "tuning"  # of a run: a folder per recipe
BEST, TABLE = "best.json", "table.md"


def tune_ctr(
    out: Path,
    trials: int,
    frames: tuple[StoredRequests, StoredRequests, str],
    vectors: Vectors,
    size: Size,
    parents: Mapping[str, Artifact],
    recipe: Recipe,
    seed: int = 0,
    space: Space | None = None,
) -> Settings:
    """Begin or go on with the study of a recipe, and write ``table.md``, ``table.json`` and ``best.json``.

    The shipped settings are tried first. No trial's weights are kept: training with the best settings and the same
    seed makes them again.

    Args:
        out: the study's folder.
        trials: in all, those of an earlier call among them.
        frames: training and validation requests, and the loss that fits them.
        vectors: the embedding.
        size: fixes the history, the batch, and what is tried first.
        parents: what the frames were made from, by role.
        recipe: of the click model.
        seed: of what is proposed and of every training.
        space: what may be tried; None: ``ranker_space``.

    Returns:
        the best settings of the first ``trials``, however many there are: of equal budgets in a comparison.

    Raises:
        TuningError: there are no validation requests, Optuna is missing, the folder holds a study of another search,
            or no trial could be completed.
    """
    train, valid, loss = frames
    if not len(valid):
        raise TuningError(f"{out}: expected validation requests to choose settings by, found none")
    space = space or ranker_space(size.id_width)
    shipped = [Settings(size.id_width, *rates).settings() for rates in LEARNING_RATES[loss]]
    first = [{name: one.nearest(values[name]) for name, one in space.items()} for values in shipped]
    terms = {
        "recipe": recipe.to_json(),
        "loss": loss,
        "size": size.name,
        "seed": seed,
        "features": [one.name for one in train.signature.features],
        "requests": {"train": len(train), "valid": len(valid)},
        **({} if size.ranker_history is None else {"history": size.ranker_history}),
        **{role: parent.id for role, parent in parents.items()},
    }
    study = Study(out, space, terms, first, seed)

    def attempt(values: Mapping[str, Any], number: int, report: Report) -> float:
        place = out / f"trial_{number}"
        try:
            training = Training(seed=seed, loss=loss, recipe=recipe, settings=Settings(**values))
            made = train_ctr(train, valid, vectors, size, place, parents, training, after=report)
        except (Pruned, TrainingError):  # one that was cut short keeps its checkpoint
            _discard(place)
            raise
        _discard(place)
        return float(min(made.config["outcome"]["valid_loss"]))

    study.run(trials, attempt)
    importances = study.importances()
    write_text(out / TABLE, markdown(study, importances, len(first)))
    write_text(out / "table.json", to_json(study, importances))
    write_json(out / BEST, Settings(**study.best.values).settings())
    return Settings(**study.best_of(trials).values)


def _discard(trial: Path) -> None:
    for folder in (trial, *trial.parent.glob(f"{trial.name}.*")):
        discard(folder)
