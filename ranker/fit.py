"""The training loop of every ranker model: epochs, early stopping, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from ranker.inputs.id_tables import is_table
from ranker.weights import put_tensors, tensors_of
from run.progress import track
from run.resume import Checkpoints

B = TypeVar("B")
EPOCH, STATE = "epoch", "state.safetensors"  # name of the checkpoint, and its file


class TrainingError(RuntimeError):
    """Training diverged."""


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

    Raises:
        TrainingError: a loss or gradient is not finite; no dense weight was updated with it, and the last epoch's
            checkpoint is as it was.
    """
    dense = [(name, p) for name, p in model.named_parameters() if not is_table(name)]
    optimizer = torch.optim.AdamW([p for _, p in dense], lr=plan.learning_rate, foreach=True)
    best, best_loss, best_epoch = tensors_of(model), math.inf, 0
    trained: list[float] = []
    checked: list[float] = []
    if (saved := checkpoints.find(EPOCH)) is not None:
        tensors = load_file(saved.file(STATE))
        trained, checked, best_epoch = saved.state["train"], saved.state["valid"], saved.state["best"]
        best_loss = checked[best_epoch - 1] if checked else math.inf
        best = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
        _restore(model, optimizer, tensors)
    while len(trained) < plan.epochs and len(trained) - best_epoch < plan.patience:
        epoch = len(trained)
        torch.manual_seed(plan.seed * 100_003 + epoch)
        model.train()
        total, steps = 0.0, 0
        for batch in track(batches(epoch), f"{description} epoch {epoch + 1}/{plan.epochs}", unit="batches"):
            value = loss(batch)
            total, steps = total + _step(value, dense, optimizer, epoch, steps), steps + 1
        trained.append(total / max(steps, 1))
        model.eval()
        checked += [validate()] if validate else []
        if not validate or checked[-1] < best_loss:
            best_loss, best_epoch, best = (checked[-1] if checked else math.inf), epoch + 1, tensors_of(model)
        progress = {"train": trained, "valid": checked, "best": best_epoch}
        _save(checkpoints, model, optimizer, best, progress)
    model.eval()
    put_tensors(model, best)
    return Outcome(len(trained), best_epoch, tuple(trained), tuple(checked))


def _step(
    value: Tensor,
    dense: list[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    epoch: int,
    step: int,
) -> float:
    # Before backward, because that is where the tables update themselves.
    if not torch.isfinite(value):
        raise TrainingError(
            f"loss is {value.item()} in epoch {epoch + 1}, step {step + 1}: lower the learning rate"
        )
    optimizer.zero_grad()
    value.backward()
    norms = torch._foreach_norm([p.grad for _, p in dense if p.grad is not None])
    if not torch.isfinite(torch.stack(norms)).all():
        bad = [name for name, p in dense if p.grad is not None and not p.grad.isfinite().all()]
        raise TrainingError(f"gradients are not finite in epoch {epoch + 1}, step {step + 1}: {bad[:3]}")
    optimizer.step()
    return float(value.detach())


def _accumulators(model: nn.Module) -> dict[str, Tensor]:
    """Row-wise Adagrad's accumulators, the live tensors."""
    found: dict[str, Tensor] = {}
    for place, module in model.named_modules():
        if isinstance(module, FusedEmbeddingBagCollection):
            for table, state in module.fused_optimizer().state_dict()["state"].items():
                found |= {f"tables/{place}/{table}/{key}": tensor for key, tensor in state.items()}
    return found


def _save(
    checkpoints: Checkpoints,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: dict[str, Any],
) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in tensors_of(model).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {name: tensor.detach().clone() for name, tensor in _accumulators(model).items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{number}/{key}": tensor.clone() for key, tensor in state.items()}
    with checkpoints.save(EPOCH, progress) as folder:
        save_file(tensors, folder / STATE)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    put_tensors(model, {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    with torch.no_grad():
        for name, live in _accumulators(model).items():
            live.copy_(tensors[name])
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("adam/"):
            _, number, key = name.split("/")
            state["state"].setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(state)
