"""The training loop of every ranker model: epochs, early stopping, resuming.

A checkpoint is saved after every epoch, and within one every ``EVERY_S`` seconds: then it says how many batches of
the epoch are done, and holds the state of the random numbers. Batches are drawn from (seed, epoch) alone, so a job
that was killed goes on with the next batch, and its losses and weights are to the bit those of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ranker.learner import BEST, Learner, Saved, named
from run.progress import track
from run.resume import Checkpoints

B = TypeVar("B")
EPOCH, STATE = "epoch", "state.safetensors"  # name of the checkpoint, and its file
RANDOM, MEAN = (
    "random",
    "mean/",
)  # of a checkpoint within an epoch: the state of torch's random numbers, mean weights
EVERY_S = 600.0  # between two checkpoints


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        epochs: at most so many passes.
        patience: epochs without a better validation loss before stopping.
        learning_rate: of AdamW on the dense weights; the tables have their own.
        seed: of everything random; epoch e draws from (seed, e), so a resumed run is the uninterrupted one.
        averaged: the dense weights of an epoch are the mean over its steps, in validation and in the end; training
            itself goes on from the last step (docs/log/ranker.md#the-mean-of-an-epochs-weights).
    """

    epochs: int
    patience: int
    learning_rate: float
    seed: int
    averaged: bool = False


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
    batches: Callable[[int, int], Iterable[B]],
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
        batches: of an epoch, from a number on: its batches in order, drawn from (seed, epoch) only, the first so many
            left out.
        loss: mean loss of a batch.
        validate: loss on held-out data after an epoch; None: the last epoch is kept.
        checkpoints: of this run, one saved after every epoch and every ``EVERY_S`` seconds; the caller removes them
            once the artifact is written.
        description: for the progress line.
        learner: of a model and a learning rate; another one where several processes train together.
        after: told of every validated epoch, from 1, and its loss, before its checkpoint; may raise to end it all.

    Raises:
        TrainingError: a loss or gradient is not finite; no dense weight was updated with it, and the last
            checkpoint is as it was.
    """
    learns = learner(model, plan.learning_rate)
    best, best_loss, best_epoch = learns.weights(), math.inf, 0
    trained: list[float] = []
    checked: list[float] = []
    within = Within()
    if (saved := checkpoints.find(EPOCH)) is not None:
        trained, checked, best_epoch = saved.state["train"], saved.state["valid"], saved.state["best"]
        best_loss = checked[best_epoch - 1] if checked else math.inf
        with safe_open(saved.file(STATE), "pt") as tensors:
            best = named(tensors, BEST)
            learns.restore(tensors)
            within = Within.restored(saved.state, tensors)

    def save(tensors: dict[str, Tensor], **more: Any) -> None:
        progress = {"train": trained, "valid": checked, "best": best_epoch, **more}
        _save(checkpoints, learns, {BEST + name: tensor for name, tensor in best.items()} | tensors, progress)

    while len(trained) < plan.epochs and len(trained) - best_epoch < plan.patience:
        epoch = len(trained)
        within.begin(plan.seed * 100_003 + epoch)
        model.train()
        mean = Mean(learns.dense if plan.averaged else [], within.steps, within.mean)
        due = time.monotonic() + EVERY_S
        for batch in track(
            batches(epoch, within.steps), f"{description} epoch {epoch + 1}/{plan.epochs}", unit="batches"
        ):
            within.total += learns.step(loss(batch), f"epoch {epoch + 1}, step {within.steps + 1}")
            within.steps += 1
            mean.add()
            if learns.agreed(time.monotonic() >= due):
                random = {RANDOM: torch.get_rng_state()}
                save(random | mean.tensors(), steps=within.steps, total=within.total)
                due = time.monotonic() + EVERY_S
        trained.append(learns.mean(within.total) / max(within.steps, 1))
        within = Within()
        model.eval()
        with mean.in_place():
            checked += [validate()] if validate else []
            if after is not None and checked:
                after(epoch + 1, checked[-1])
            if not validate or checked[-1] < best_loss:
                best_loss, best_epoch = (checked[-1] if checked else math.inf), epoch + 1
                best = learns.weights()
        save({})
    model.eval()
    learns.put(best)
    return Outcome(len(trained), best_epoch, tuple(trained), tuple(checked))


class Mean:
    """The mean of weights over the steps of an epoch (Polyak and Juditsky, 1992).

    Args:
        weights: that are trained, in place, by name; none: there is no mean, and nothing takes their place.
        steps: of the epoch that are done.
        mean: over these, by name.
    """

    def __init__(self, weights: list[tuple[str, nn.Parameter]], steps: int, mean: dict[str, Tensor]) -> None:
        self._weights = {name: one.detach() for name, one in weights}
        self._mean = {name: mean[name] if steps else one.clone() for name, one in self._weights.items()}
        self._steps = steps

    def add(self) -> None:
        """Count the weights as they are now."""
        self._steps += 1
        for name, now in self._weights.items():
            self._mean[name].lerp_(now, 1 / self._steps)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the mean, as a checkpoint names them."""
        return {MEAN + name: mean.cpu().clone() for name, mean in self._mean.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean takes the place of the weights until the end of the block."""
        now = {name: one.clone() for name, one in self._weights.items()}
        self._put(self._mean)
        yield
        self._put(now)

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])


@dataclass
class Within:
    """Where an epoch is.

    Attributes:
        steps: batches done.
        total: sum of their losses.
        random: state of torch's random numbers after them; None: the epoch begins.
        mean: of the weights over them, by name, where it is kept.
    """

    steps: int = 0
    total: float = 0.0
    random: Tensor | None = None
    mean: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def restored(cls, state: dict[str, Any], tensors: Saved) -> Within:
        """Where the epoch was when a checkpoint was saved; at the beginning if that was after one."""
        if "steps" not in state:
            return cls()
        return cls(state["steps"], state["total"], tensors.get_tensor(RANDOM), named(tensors, MEAN))

    def begin(self, seed: int) -> None:
        """Set the random numbers: those of the epoch, or as they were."""
        if self.random is None:
            torch.manual_seed(seed)
        else:
            torch.set_rng_state(self.random)


def _save(
    checkpoints: Checkpoints, learner: Learner, others: dict[str, Tensor], progress: dict[str, Any]
) -> None:
    tensors = learner.tensors() | others
    if learner.saves:
        with checkpoints.save(EPOCH, progress) as folder:
            save_file(tensors, folder / STATE)
