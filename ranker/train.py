"""Train the click model from point-in-time frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dataset.contracts import DataError
from feature_repo.frame import StoredRequests
from feature_repo.vectors import Vectors
from ranker.before import learn_content, train_alone
from ranker.calibration import calibrated, require_both, require_method
from ranker.fit import Outcome, Plan, fit
from ranker.inputs.batch import Batch
from ranker.inputs.columns import LABEL, chunks, learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, size_groups
from ranker.learner import Learner
from ranker.memory import require_memory
from ranker.model import ClickModel, WithPosition
from ranker.ranks import Share, in_ranks
from ranker.recipes import Recipe, cube
from ranker.score import CALIBRATION, CONFIG, CtrConfig, Ranker
from ranker.settings import Settings
from ranker.steps import CLICK, entire_space_loss
from ranker.weights import save_weights
from run.artifacts import Artifact, open_artifact, write_artifact
from run.resume import Checkpoints, remove_checkpoints
from run.sizes import Size

EPOCHS = 12
PATIENCE = 2
# Fast tables memorise ids before content is learned, and the sooner the fewer times each item occurs; slow ones learn
# nothing from a small log; where most items were taken a few times, tables that stay as they began are best. So a
# ranker is trained with each pair of rates, of dense weights and of tables; the validation requests decide
# (docs/log/ranker.md#learning-rate-of-the-tables, docs/log/ranker.md#places-in-the-towers-space,
# docs/log/ranker.md#a-users-taste).
LEARNING_RATES = {"pointwise": ((1e-3, 0.00003), (2e-3, 0.005)), "listwise": ((2e-3, 0.0005), (2e-3, 0.0))}
POOL = 64  # batches are cut from pools of so many shuffled batches' requests, sorted by number of candidates
VALID_REQUESTS = 512  # requests read at once when validating
ALL = Share()  # of one process
Logits = Callable[[Batch], Tensor]


def train_ctr(
    train: StoredRequests,
    valid: StoredRequests,
    vectors: Vectors | None,
    size: Size,
    out: Path,
    parents: Mapping[str, Artifact],
    seed: int = 0,
    epochs: int | None = None,
    loss: str = "pointwise",
    recipe: Recipe | None = None,
    without: Collection[str] = (),
    ranks: int | None = None,
    settings: Settings | None = None,
    after: Callable[[int, float], None] | None = None,
    calibrate: str | None = None,
    rank_by: str = CLICK,
    position_tower: bool = False,
    plainer: Recipe | None = None,
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
        seed: equal seeds give equal weights.
        epochs: at most so many passes, 12 by default.
        loss: ``pointwise`` for logged impressions, ``listwise`` for one positive among sampled negatives.
        recipe: what the model is made of; ``recipes.cube()`` unless given.
        without: features of the service that the model does without.
        ranks: how many processes train it together, on GPUs if there are enough; None: this one does, on CPU. The
            weights are the same but for rounding, and an interrupted run resumes with any number.
        settings: of the model; None: the size's width, and the better of the pairs of learning rates.
        after: told of every epoch and its validation loss; may raise to end the training.
        calibrate: method by which the validation impressions calibrate the scores (``ranker.calibration``); None:
            they do not.
        rank_by: what the scores are of: the click, or a step that ``label_<step>`` columns of ``train`` say.
        position_tower: learn the chance that a logged place is looked at (``ranker.places``), not a number for each.
        plainer: another recipe, trained with the better rates of ``recipe``; the validation requests choose.

    Raises:
        DataError: no training requests, columns missing, a feature to do without that is not in the service,
            nothing to calibrate with, an unknown calibration, a step that the log does not say, or no place that was
            logged for a position tower.
        TrainingError: the loss or a gradient is not finite, a rank ended early, or the tables would outgrow memory.
        RecipeError: the recipe cannot be built on these inputs.
        ValueError: unknown loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: expected one of {', '.join(LOSSES)}")
    if calibrate is not None:
        require_method(calibrate)
        _require_impressions(valid, loss)
    if vectors is None:
        without = {*without, *(one.name for one in train.signature.features if one.kind == "vector")}
    inputs, counts = learn_inputs(train, size.behaviours, without=without)
    pairs = LEARNING_RATES[loss][: None if len(valid) else 1]
    tries = [Settings(size.id_width, *pair) for pair in pairs] if settings is None else [settings]
    config = CtrConfig(
        **tries[0].settings(),
        recipe=recipe or cube(),
        inputs=inputs,
        content_width=0 if vectors is None else vectors.width,
        embedding_id=None if vectors is None else vectors.id,
        loss=loss,
        rank_by=rank_by,
        position_tower=position_tower,
    )
    if position_tower and not inputs.position_share:
        raise DataError(
            "expected candidates with a logged position, found none. Train without --position-tower."
        )
    if rank_by not in (CLICK, *inputs.steps):
        raise DataError(f"cannot rank by {rank_by!r}: expected one of {', '.join((CLICK, *inputs.steps))}")
    rival = plainer if len(valid) else None
    require_memory(config.shape.rows, config.id_width, ranks, kept=len(tries) - (rival is None))

    def tried(settings: Settings, recipe: Recipe, number: int) -> Trained:
        place = out if number == 1 else out.with_name(f"{out.name}.{number}")
        own = replace(config, **settings.settings(), recipe=recipe)
        encoder = FrameEncoder(inputs, vectors, recipe.search)
        plan = Plan(EPOCHS if epochs is None else epochs, PATIENCE, own.learning_rate, seed, averaged=True)
        job = {
            "service": inputs.signature.service,
            "features": [one.name for one in inputs.signature.features],
            "embedding_version": None if vectors is None else vectors.version,
            "config": own.to_json(),
            "plan": asdict(plan) | {"epochs": None},
            "requests": len(train),
        }
        checkpoints = Checkpoints(place, job, parents)
        torch.manual_seed(seed)
        model = own.build()
        if vectors is not None:
            learn_content(model, train, vectors, seed)

        def batches(epoch: int, done: int, share: Share = ALL) -> Iterator[Batch]:
            return epoch_batches(train, counts, encoder, size.ranker_slots, (seed, epoch), share, done)

        def of_module(name: str) -> Checkpoints:
            return Checkpoints(place.with_name(f"{place.name}.{name}"), job, parents)

        def fitted(model: nn.Module, logits: Logits, share: Share, learner: type[Learner]) -> Outcome:
            return fit(
                model,
                plan,
                batches=lambda epoch, done: batches(epoch, done, share),
                loss=lambda batch: training_loss(logits, batch, loss, own.other_loss, share),
                validate=(lambda: _validate(logits, valid, encoder, loss, share)) if len(valid) else None,
                checkpoints=checkpoints,
                description=f"train {place.name}",
                learner=partial(learner, weight_decay=own.weight_decay),
                after=after,
            )

        train_alone(model, plan, batches, LOSSES[loss], of_module)
        if ranks is not None:
            train_in_ranks(ranks, model, fitted)
        # After ranks, nothing is left to train: this reads the best epoch from their last checkpoint.
        outcome = fitted(model, WithPosition(model), ALL, Learner)
        return Trained(own, model, encoder, outcome)

    trained = [tried(one, config.recipe, number) for number, one in enumerate(tries, 1)]
    if rival is not None:
        rates = Settings(**best_of(trained).config.settings())
        trained.append(tried(rates, rival, len(tries) + 1))
    best = best_of(trained)
    config, model, outcome = best.config, best.model, best.outcome
    manifest: dict[str, Any] = {
        "recipe": config.recipe.name,
        "size": size.name,
        "history": inputs.history,
        "seed": seed,
        "loss": loss,
        "embedding_id": config.embedding_id,
        "outcome": asdict(outcome),
    }
    with write_artifact(out, "ranker", manifest, parents) as folder:
        save_weights(model, folder)
        (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2) + "\n")
        if calibrate is not None:
            logits, label = _scored(Ranker(model, best.encoder, step=config.step), valid, rank_by)
            content = vars(calibrated(calibrate, logits, label))
            (folder / CALIBRATION).write_text(json.dumps(content, indent=2) + "\n")
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


@dataclass(frozen=True)
class Trained:
    """A click model trained with some settings, and what reads frames for it."""

    config: CtrConfig
    model: ClickModel
    encoder: FrameEncoder
    outcome: Outcome


def best_of(trained: Sequence[Trained]) -> Trained:
    """The one with the smallest validation loss, the first of equals."""
    return min(trained, key=lambda one: min(one.outcome.valid_loss, default=0.0))


def train_in_ranks(ranks: int, model: ClickModel, fitted: Callable[..., Outcome]) -> None:
    """Train in so many processes, and leave the result in the checkpoint of the last epoch."""
    from ranker.sharded import ShardedLearner, ShardedModel

    def rank(share: Share) -> None:
        sharded = ShardedModel(model, share)
        fitted(sharded, sharded, share, ShardedLearner)

    in_ranks(ranks, rank)


def training_loss(logits: Logits, batch: Batch, loss: str, other: float = 0.0, share: Share = ALL) -> Tensor:
    """Loss of a rank's part of a batch, of logits with the effect of the logged position.

    Args:
        logits: of the model.
        batch: its part.
        loss: the data's own, of weight ``1 - other``.
        other: weight of the other one.
        share: its mean over the ranks is the mean over the whole batch.
    """
    every = logits(batch)
    logit = every if every.dim() == 2 else every[..., 0]
    weights = {name: 1 - other if name == loss else other for name in LOSSES}
    parts = [
        weight * share.weigh(LOSSES[name](logit, batch.label, batch.candidate_mask), counted(batch, name))
        for name, weight in weights.items() if weight
    ]  # fmt: skip
    if every.dim() == 3:
        later = entire_space_loss(every, batch.later, batch.candidate_mask)
        parts.append(share.weigh(later, counted(batch, "pointwise")))
    return torch.stack(parts).sum()


def counted(batch: Batch, loss: str) -> int:
    """How many things the loss of a batch is a mean over: candidates, or requests that have a positive."""
    return int(batch.candidate_mask.sum()) if loss == "pointwise" else int((batch.label.sum(1) > 0).sum())


def pointwise(logit_RN: Tensor, label_RN: Tensor, filled_RN: Tensor) -> Tensor:
    """Binary cross-entropy, mean over candidates."""
    total = functional.binary_cross_entropy_with_logits(
        logit_RN[filled_RN], label_RN[filled_RN], reduction="sum"
    )
    return total / filled_RN.sum().clamp(min=1)


def listwise(logit_RN: Tensor, label_RN: Tensor, filled_RN: Tensor) -> Tensor:
    """Softmax cross-entropy over each request's candidates, mean over the requests that have a positive."""
    log_fraction = torch.log_softmax(logit_RN.masked_fill(~filled_RN, -1e9), dim=1)
    total = label_RN.sum(1)
    per_request = -(log_fraction * label_RN).sum(1) / total.clamp(min=1e-9)
    return per_request.sum() / (total > 0).sum().clamp(min=1)


LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "pointwise": pointwise,
    "listwise": listwise,
}


def epoch_batches(
    train: StoredRequests,
    counts: np.ndarray,
    encoder: FrameEncoder,
    slots_per_batch: int,
    seed: tuple[int, int],
    share: Share = ALL,
    done: int = 0,
) -> Iterator[Batch]:
    """The batches of an epoch in an order drawn from ``seed``; the first ``done`` are left out."""
    draw = np.random.default_rng(seed)
    pool = max(1, int(POOL * slots_per_batch / max(counts.mean(), 1)))
    windows = _windows(np.flatnonzero(counts > 0), train.windows, draw)
    for rows in windows:
        order = draw.permutation(rows)
        groups = [
            rows for start in range(0, len(order), pool)
            for rows in size_groups(counts, order[start : start + pool], slots_per_batch)
        ]  # fmt: skip
        if len(windows) > 1 or len(order) > pool:
            groups = _without_small(groups, counts, slots_per_batch)
        for group in draw.permutation(len(groups))[done:]:
            yield share.batch(train, encoder, groups[group])
        done = max(done - len(groups), 0)


def _windows(rows: np.ndarray, windows: np.ndarray | None, draw: np.random.Generator) -> list[np.ndarray]:
    """The requests that are shuffled together, in random order: those of a window, or all where all are in memory."""
    if windows is None or not len(rows):
        return [rows]
    parts = np.split(rows, np.flatnonzero(np.diff(windows[rows])) + 1)
    return [parts[one] for one in draw.permutation(len(parts))] if len(parts) > 1 else parts


def _without_small(groups: Sequence[np.ndarray], counts: np.ndarray, slots: int) -> list[np.ndarray]:
    """The batches of a window, or of several pools, those less than half full joined to the one before.

    A batch of few requests moves the weights as far as a full one does, and each window and pool ends with one: they
    cost quality (docs/log/ranker.md#a-whole-training-in-windows). A joined batch has at most half as many slots
    again; where it would have more, the small one stays.
    """
    kept: list[np.ndarray] = []
    for rows in groups:
        both = np.concatenate([*kept[-1:], rows])
        small = len(rows) * counts[rows].max() < slots / 2
        if kept and small and len(both) * counts[both].max() <= 1.5 * slots:
            kept[-1] = both
        else:
            kept.append(rows)
    return kept


def _validate(
    logits: Logits, valid: StoredRequests, encoder: FrameEncoder, loss: str, share: Share = ALL
) -> float:
    total, weight = 0.0, 0
    for start in range(0, len(valid), VALID_REQUESTS):
        batch = share.batch(valid, encoder, np.arange(start, min(start + VALID_REQUESTS, len(valid))))
        with torch.no_grad():
            value = float(training_loss(logits, batch, loss))
        units = counted(batch, loss)
        total, weight = total + value * units, weight + units
    return share.total(total) / max(share.total(weight), 1)
