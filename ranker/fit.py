"""The training loop of every ranker model: epochs, early stopping, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ranker.learner import BEST, Learner, named
from run.progress import track
from run.resume import Checkpoints

B = TypeVar("B")
EPOCH, STATE = "epoch", "state.safetensors"  # name of the checkpoint, and its file


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        epochs: at most so many passes.
        patience: epochs without a better validation loss before stopping.
        learning_rate: of AdamW on the dense weights; the tables have their own.
        seed: of everything random; epoch e draws from (seed, e), so a resumed run is the uninterrupted one.
    """

    epochs: int
    patience: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """The result of training: the epochs run, the one kept (from 1) and the losses by epoch."""

    epochs: int
    best: int
    train_loss: tuple[float, ...]
    valid_loss: tuple[float, ...]


def fit(
    model: nn.Module,
    plan: Plan,
    batches: Callable[[int], Iterable[B]],
    loss: Callable[[B], Tensor],
    validate: Callable[[], float] | None,
    checkpoints: Checkpoints,
    description: str,
    learner: Callable[[nn.Module, float], Learner] = Learner,
    after: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Train ``model`` in place and leave the best epoch's weights in it.

    Args:
        model: its tables update themselves in ``backward``.
        plan: epochs, patience, rate, seed.
        batches: the batches of an epoch, in order; drawn from (seed, epoch) only.
        loss: mean loss of a batch.
        validate: loss on held-out data after an epoch; None: the last epoch is kept.
        checkpoints: of this run, one saved after every epoch; the caller removes them once the artifact is
            written.
        description: for the progress line.
        learner: of a model and a learning rate; another one where several processes train together.
        after: told of every validated epoch, from 1, and its loss, before its checkpoint; may raise to end it all.

    Raises:
        TrainingError: a loss or gradient is not finite; no dense weight was updated with it, and the last epoch's
            checkpoint is as it was.
    """
    learns = learner(model, plan.learning_rate)
    best, best_loss, best_epoch = learns.weights(), math.inf, 0
    trained: list[float] = []
    checked: list[float] = []
    if (saved := checkpoints.find(EPOCH)) is not None:
        trained, checked, best_epoch = saved.state["train"], saved.state["valid"], saved.state["best"]
        best_loss = checked[best_epoch - 1] if checked else math.inf
        with safe_open(saved.file(STATE), "pt") as tensors:
            best = named(tensors, BEST)
            learns.restore(tensors)
    while len(trained) < plan.epochs and len(trained) - best_epoch < plan.patience:
        epoch = len(trained)
        torch.manual_seed(plan.seed * 100_003 + epoch)
        model.train()
        total, steps = 0.0, 0
        for batch in track(batches(epoch), f"{description} epoch {epoch + 1}/{plan.epochs}", unit="batches"):
            total += learns.step(loss(batch), f"epoch {epoch + 1}, step {steps + 1}")
            steps += 1
        trained.append(learns.mean(total) / max(steps, 1))
        model.eval()
        checked += [validate()] if validate else []
        if after is not None and checked:
            after(epoch + 1, checked[-1])
        if not validate or checked[-1] < best_loss:
            best_loss, best_epoch, best = (checked[-1] if checked else math.inf), epoch + 1, learns.weights()
        _save(checkpoints, learns, best, {"train": trained, "valid": checked, "best": best_epoch})
    model.eval()
    learns.put(best)
    return Outcome(len(trained), best_epoch, tuple(trained), tuple(checked))


def _save(
    checkpoints: Checkpoints, learner: Learner, best: dict[str, Tensor], progress: dict[str, Any]
) -> None:
    tensors = learner.tensors() | {BEST + name: tensor for name, tensor in best.items()}
    if learner.saves:
        with checkpoints.save(EPOCH, progress) as folder:
            save_file(tensors, folder / STATE)
