"""A model while it trains: its weights and what its optimizers remember, as whole tensors by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from ranker.inputs.id_tables import is_table
from ranker.weights import put_tensors, tensors_of

WEIGHTS, BEST, ADAM = "model/", "best/", "adam/"  # how the names of a checkpoint's tensors begin


class TrainingError(RuntimeError):
    """Training diverged, or cannot go on."""


class Saved(Protocol):
    """An open file of tensors by name, as ``safetensors.safe_open`` gives it."""

    def keys(self) -> Iterable[str]:
        """Names of the tensors."""
        ...

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        ...

    def get_slice(self, name: str) -> Any:
        """A tensor of which only the rows asked for are read."""
        ...


class Learner:
    """A model in one process: AdamW moves its dense weights, its tables update themselves in ``backward``.

    Args:
        model: changed in place.
        learning_rate: of the dense weights; the tables have their own.
        weight_decay: of the dense weights.

    Attributes:
        saves: whether this process writes the checkpoints.
    """

    saves = True

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float = 0.01) -> None:
        self.model = model
        self.dense = [(name, p) for name, p in model.named_parameters() if not is_table(name)]
        self.adam = adam_of(self.dense, learning_rate, weight_decay)

    def weights(self) -> dict[str, Tensor]:
        """Copies of all parameters by name."""
        return tensors_of(self.model)

    def put(self, weights: dict[str, Tensor]) -> None:
        """Copy these into the parameters."""
        put_tensors(self.model, weights)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the weights, the tables' accumulators and AdamW's moments: all that ``restore`` needs."""
        found = {WEIGHTS + name: tensor for name, tensor in self.weights().items()}
        found |= {name: tensor.detach().clone() for name, tensor in accumulators(self.model).items()}
        return found | self._moments()

    def restore(self, saved: Saved) -> None:
        """Go on from ``tensors`` of a learner of an equal model, in one process or in many."""
        self.put(named(saved, WEIGHTS))
        with torch.no_grad():
            for name, live in accumulators(self.model).items():
                live.copy_(saved.get_tensor(name))
        self._put_moments(saved)

    def step(self, value: Tensor, where: str) -> float:
        """One step down the gradient of a loss; the loss.

        Raises:
            TrainingError: the loss or a gradient is not finite; no dense weight was updated with it.
        """
        # Before backward, because that is where the tables update themselves.
        if not torch.isfinite(value):
            raise TrainingError(f"loss is {value.item()} in {where}: lower the learning rate")
        self._zero_grad()
        value.backward()
        norms = torch._foreach_norm([p.grad for _, p in self.dense if p.grad is not None])
        if not torch.isfinite(torch.stack(norms)).all():
            bad = [name for name, p in self.dense if p.grad is not None and not p.grad.isfinite().all()]
            raise TrainingError(f"gradients are not finite in {where}: {bad[:3]}")
        self._move()
        return float(value.detach())

    def mean(self, value: float) -> float:
        """The mean of a number over the processes that train together."""
        return value

    def agreed(self, due: bool) -> bool:
        """Whether something is due, as the processes that train together agree: each has a clock of its own."""
        return due

    def _zero_grad(self) -> None:
        self.adam.zero_grad()

    def _move(self) -> None:
        self.adam.step()

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"{ADAM}{number}/{key}": tensor.cpu().clone()
            for number, state in self.adam.state_dict()["state"].items()
            for key, tensor in state.items()
        }

    def _put_moments(self, saved: Saved) -> None:
        state = self.adam.state_dict()
        for name, tensor in named(saved, ADAM).items():
            number, key = name.split("/")
            state["state"].setdefault(int(number), {})[key] = tensor
        self.adam.load_state_dict(state)


class FallingLearner(Learner):
    """A learner whose rates, those of the tables too, fall linearly from step to step and are zero after ``steps``.

    Args:
        model: changed in place.
        learning_rate: of the first step.
        steps: of the whole training.
    """

    def __init__(self, model: nn.Module, learning_rate: float, steps: int) -> None:
        super().__init__(model, learning_rate)
        self.steps = steps
        self._tables = [one.fused_optimizer() for one in _collections(model).values()]
        self._first = [one.param_groups[0]["lr"] for one in (self.adam, *self._tables)]

    def restore(self, saved: Saved) -> None:
        """As of ``Learner``; the rates go on where they were."""
        super().restore(saved)
        self._fall()

    def step(self, value: Tensor, where: str) -> float:
        """As of ``Learner``; the rates are then those of the next step, whose forward pass reads the tables' own."""
        loss = super().step(value, where)
        self._fall()
        return loss

    def _fall(self) -> None:
        done = max(int(one["step"]) for one in self.adam.state.values())  # saved with AdamW's moments
        for one, rate in zip((self.adam, *self._tables), self._first, strict=True):
            for group in one.param_groups:
                group["lr"] = rate * max(1 - done / self.steps, 0)
        for table in self._tables:
            table.step()  # tells the kernel its rate; the rows move in ``backward``


def adam_of(
    dense: list[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """The optimizer of the dense weights, in one process or in many."""
    weights = [parameter for _, parameter in dense]
    return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=True)


def named(saved: Saved, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin with ``prefix``, under the rest of their names."""
    return {n.removeprefix(prefix): saved.get_tensor(n) for n in saved.keys() if n.startswith(prefix)}  # noqa: SIM118


def accumulators(model: nn.Module) -> dict[str, Tensor]:
    """Row-wise Adagrad's accumulators, the live tensors, float32 [rows] of each table."""
    found: dict[str, Tensor] = {}
    for place, module in _collections(model).items():
        for config in module.embedding_bag_configs():
            state = module.fused_optimizer().state_dict()["state"][f"{config.name}.weight"]
            found[accumulator(place, config.name)] = state[f"{config.name}.weight.momentum_1"]
    return found


def _collections(model: nn.Module) -> dict[str, FusedEmbeddingBagCollection]:
    """The collections of tables that update themselves, by place."""
    return {n: one for n, one in model.named_modules() if isinstance(one, FusedEmbeddingBagCollection)}


def accumulator(place: str, table: str) -> str:
    """Name of a table's accumulator; ``place`` is where its collection is in the model."""
    return f"tables/{place}/{table}.weight/{table}.weight.momentum_1"
