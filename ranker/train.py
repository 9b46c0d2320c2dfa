"""Train the click model from point-in-time frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset.contracts import DataError
from feature_repo.frame import StoredRequests
from feature_repo.vectors import Vectors
from ranker.attempt import VALID_REQUESTS, Attempt, Data, Trained
from ranker.calibration import calibrated, require_both, require_method
from ranker.choice import preferred
from ranker.fit import Plan
from ranker.inputs.columns import LABEL, Inputs, chunks, learn_inputs
from ranker.losses import LOSSES
from ranker.memory import require_memory
from ranker.order import ORDER
from ranker.order_weights import Asked, learn_order
from ranker.recipes import Recipe, cube
from ranker.score import CALIBRATION, CONFIG, CtrConfig, Ranker
from ranker.settings import Settings
from ranker.steps import CLICK
from ranker.weights import save_weights
from run.artifacts import Artifact, open_artifact, write_artifact
from run.resume import remove_checkpoints
from run.sizes import Size

EPOCHS = 12
# Epochs without a better validation loss, at least and at most, as many between them as make PATIENCE_STEPS: what an
# epoch of few steps gains is less than validation errs by. Where the patience is longer, so is the training
# (docs/log/ranker.md#when-training-stops).
PATIENCE, PATIENCE_STEPS = (2, 5), 50
# Fast tables memorise ids before content is learned, and the sooner the fewer times each item occurs; slow ones learn
# nothing from a small log; where most items were taken a few times, tables that stay as they began are best. So a
# ranker is trained with each pair of rates, of dense weights and of tables; the validation users decide
# (docs/log/ranker.md#learning-rate-of-the-tables, docs/log/ranker.md#places-in-the-towers-space,
# docs/log/ranker.md#a-users-taste).
LEARNING_RATES = {"pointwise": ((1e-3, 0.00003), (2e-3, 0.005)), "listwise": ((2e-3, 0.0005), (2e-3, 0.0))}


@dataclass(frozen=True)
class Training:
    """What a ranker is made of and how it is trained, beside the requests it learns from.

    Attributes:
        recipe: what the model is made of.
        plainer: another recipe, trained with the rates kept for ``recipe``, which stays only if it is clearly better.
        settings: of the model; None: the size's width, and the first pair of learning rates, or the second if it is
            clearly better (``ranker.choice``).
        without: features of the service that the model does without.
        loss: ``pointwise`` for logged impressions, ``listwise`` for one positive among sampled negatives.
        rank_by: what the scores are of: the click, or a step that ``label_<step>`` columns of the requests say.
        position_tower: learn the chance that a logged place is looked at (``ranker.places``), not a number for each.
        calibrate: method by which the validation impressions calibrate the scores (``ranker.calibration``); None:
            they do not.
        epochs: at most so many passes; None: 12, and up to 30 where a pass is of few steps.
        seed: equal seeds give equal weights.

    Raises:
        ValueError: unknown loss.
        DataError: unknown calibration.
    """

    recipe: Recipe = field(default_factory=cube)
    plainer: Recipe | None = None
    settings: Settings | None = None
    without: Collection[str] = ()
    loss: str = "pointwise"
    rank_by: str = CLICK
    position_tower: bool = False
    calibrate: str | None = None
    epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}: expected one of {', '.join(LOSSES)}")
        if self.calibrate is not None:
            require_method(self.calibrate)

    def tries(self, id_width: int, validated: bool) -> list[Settings]:
        """The settings to try, of which validation chooses; where there is none, the first alone."""
        if self.settings is not None:
            return [self.settings]
        return [Settings(id_width, *pair) for pair in LEARNING_RATES[self.loss][: None if validated else 1]]


SHIPPED = Training()


def train_ctr(
    train: StoredRequests,
    valid: StoredRequests,
    vectors: Vectors | None,
    size: Size,
    out: Path,
    parents: Mapping[str, Artifact],
    training: Training = SHIPPED,
    ranks: int | None = None,
    after: Callable[[int, float], None] | None = None,
    asked: StoredRequests | None = None,
) -> Artifact:
    """Train a click model and write an artifact of kind "ranker".

    Args:
        train: requests whose candidates carry ``label`` and, where logged, ``position``.
        valid: requests whose loss stops training and chooses the learning rates; none: all epochs are
            run, with the first rate.
        vectors: the embedding; None trains a control without, which reads no vector of the store either;
            ``controls.shuffled`` the other one.
        size: fixes widths, history and the batch.
        out: the artifact's path; an interrupted run resumes at its batch from ``<out>.partial``.
        parents: what it was made from, by role.
        training: what it is made of, and how.
        ranks: how many processes train it together, on GPUs if there are enough; None: this one does, on CPU. The
            weights are the same but for rounding, and an interrupted run resumes with any number.
        after: told of every epoch and its validation loss; may raise to end the training.
        asked: requests of validation users and their candidates, that teach what orders an answer where the log
            does not say what was shown (``ranker.order_weights``); None: nothing does.

    Raises:
        DataError: no training requests, columns missing, a feature to do without that is not in the service,
            nothing to calibrate with, a step that the log does not say, or no place that was logged for a position
            tower.
        TrainingError: the loss or a gradient is not finite, a rank ended early, or the tables would outgrow memory.
        RecipeError: the recipe cannot be built on these inputs.
    """
    if training.calibrate is not None:
        _require_impressions(valid, training.loss)
    without = set(training.without)
    if vectors is None:
        without |= {one.name for one in train.signature.features if one.kind == "vector"}
    inputs, counts = learn_inputs(train, size.behaviours, without=without)
    _require_logged(inputs, training)
    tries = training.tries(size.id_width, validated=len(valid) > 0)
    rival = training.plainer if len(valid) else None
    config = _config(training, tries[0], inputs, vectors)
    require_memory(config.shape.rows, config.id_width, ranks, kept=len(tries) - (rival is None))
    data = Data(train, valid if len(valid) else None, counts, vectors, size.ranker_slots, parents)
    trained: list[Trained] = []

    def attempt(settings: Settings, recipe: Recipe) -> None:
        own = replace(config, **settings.settings(), recipe=recipe)
        plan = planned(data, own.learning_rate, training.seed, training.epochs)
        place = out.with_name(f"{out.name}.{len(trained) + 1}") if trained else out
        one = Attempt(data, own, plan, place)
        line = trained[0].attempt.line if trained else one.regression(train)
        trained.append(replace(one, line=line).run(ranks, after))

    for one in tries:
        attempt(one, config.recipe)
    best = preferred(trained, valid)
    if rival is not None:
        attempt(Settings(**best.config.settings()), rival)
        best = preferred([trained[-1], best], valid)
    return _written(best, data, training, size, out, asked)


def planned(data: Data, learning_rate: float, seed: int, epochs: int | None = None) -> Plan:
    """How long a click model is trained on its data.

    Args:
        data: where something validates, an epoch of few steps counts for less.
        learning_rate, seed: of the plan.
        epochs: at most so many; None: EPOCHS, and more where the patience is longer than the least.
    """
    least, most = PATIENCE
    steps = max(int(data.counts.sum()) // data.slots, 1)
    patience = least if data.valid is None else int(np.clip(PATIENCE_STEPS // steps, least, most))
    longest = EPOCHS * patience // least if epochs is None else epochs
    return Plan(longest, patience, learning_rate, seed, averaged=True)


def _config(training: Training, settings: Settings, inputs: Inputs, vectors: Vectors | None) -> CtrConfig:
    return CtrConfig(
        **settings.settings(),
        recipe=training.recipe,
        inputs=inputs,
        content_width=0 if vectors is None else vectors.width,
        embedding_id=None if vectors is None else vectors.id,
        loss=training.loss,
        rank_by=training.rank_by,
        position_tower=training.position_tower,
        linear=training.loss == "pointwise",
    )


def _require_logged(inputs: Inputs, training: Training) -> None:
    """Refuse to learn what the log does not say: at which places items stood, or a step."""
    if training.position_tower and not inputs.position_share:
        raise DataError(
            "expected candidates with a logged position, found none. Train without --position-tower."
        )
    if training.rank_by not in (steps := (CLICK, *inputs.steps)):
        raise DataError(f"cannot rank by {training.rank_by!r}: expected one of {', '.join(steps)}")


def _written(
    best: Trained, data: Data, training: Training, size: Size, out: Path, asked: StoredRequests | None
) -> Artifact:
    """The artifact of the best attempt, calibrated if asked for; nothing is left of the checkpoints."""
    config = best.freed()
    ranker = Ranker(best.model, best.encoder, step=config.step)
    manifest: dict[str, Any] = {
        "recipe": config.recipe.name,
        "size": size.name,
        "history": config.inputs.history,
        "seed": training.seed,
        "loss": config.loss,
        "embedding_id": config.embedding_id,
        "outcome": asdict(best.outcome),
    }
    with write_artifact(out, "ranker", manifest, data.parents) as folder:
        save_weights(best.model, folder)
        (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2) + "\n")
        if training.calibrate is not None and data.valid is not None:
            ranker.calibration = calibrated(training.calibrate, *_scored(ranker, data.valid, config.rank_by))
            (folder / CALIBRATION).write_text(json.dumps(vars(ranker.calibration), indent=2) + "\n")
        if asked is not None:
            rated = config.loss == "pointwise"
            order = learn_order(Asked.of(ranker, asked, VALID_REQUESTS, rated), training.seed)
            (folder / ORDER).write_text(json.dumps(vars(order), indent=2) + "\n")
    remove_checkpoints(out)
    return open_artifact(out, "ranker")


def _require_impressions(valid: StoredRequests, loss: str) -> None:
    """Refuse to calibrate, before training, what has no probability or nothing to be calibrated with."""
    if loss != "pointwise":
        raise DataError(
            "expected logged impressions to calibrate with, found sampled negatives: no probabilities"
        )
    labels = [chunk.candidates["label"].to_numpy() for chunk in chunks(valid, VALID_REQUESTS)]
    require_both(np.concatenate([np.empty(0), *labels]))


def _scored(ranker: Ranker, valid: StoredRequests, of: str = CLICK) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all candidates, and what became of them, float32 [C] each."""
    label = "label" if of == CLICK else LABEL + of
    parts = [
        (ranker.score(chunk), chunk.candidates[label].to_numpy()) for chunk in chunks(valid, VALID_REQUESTS)
    ]
    logits, labels = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(labels)
