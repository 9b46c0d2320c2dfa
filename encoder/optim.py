"""Muon for the matrices, AdamW for the rest, one schedule for both; a step is refused if not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MUON_LR, MOMENTUM, ADAMW_LR = 0.02, 0.95, 2e-3
CHECKPOINT_LR_SCALE = 0.02  # fine-tuning a pretrained checkpoint: AdamW then runs at 4e-5
WARM_UP_STEPS = 20
FINAL_LR = 0.05  # fraction of the peak learning rate at the end of the cosine
CLIP_NORM = 1.0
# The first layer of Qwen's patch merger reads 2 x 2 patches side by side. Orthogonalising it as four matrices, one
# per patch, costs a fifth of orthogonalising the one wide matrix; the difference is a sixth of a training step at
# size small (docs/log/encoder_speed.md#speed-beside-a-plain-loop).
MERGED = 4
# Names of matrices that AdamW trains: embedding tables, the output layer, and W* of MOON2.0, which orthogonal steps
# drive to a single objective (docs/log/encoder_papers.md#weights-of-objectives-collapse).
ADAMW_MATRICES = ("embed", "lm_head", "affinity")


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix near 1 (Newton-Schulz quintic of K. Jordan's Muon post).

    Args:
        matrices: float (..., rows, columns), each matrix orthogonalised by itself.
        steps: number of iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = wide.reshape(-1, *wide.shape[-2:])
    if matrices.is_cuda:
        x = x.bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(wide.shape).to(matrices.dtype)
    return x if matrices.shape[-2] <= matrices.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised: ``torch.optim.Muon`` without weight decay.

    torch's version runs Newton-Schulz in bfloat16 on every device; on a CPU without bfloat16 arithmetic one step at
    size small then takes 5.8 s instead of 0.05 s. A test checks that both agree.

    Args:
        params: matrices.
        lr: learning rate; scaled by sqrt(rows / columns) where a matrix is taller than wide.
        momentum: decay of the running mean of gradients.
        side_by_side: parameters that consist of several matrices of equal width side by side -> how many; each is
            orthogonalised by itself.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: float = MUON_LR,
        momentum: float = MOMENTUM,
        side_by_side: Mapping[Tensor, int] | None = None,
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})
        self._side_by_side = dict(side_by_side or {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient, matrices of equal shape in one batch."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                nesterov = matrix.grad.lerp(state["momentum"], group["momentum"])
                count = self._side_by_side.get(matrix, 1)
                for part, direction in zip(matrix.chunk(count, 1), nesterov.chunk(count, 1), strict=True):
                    alike.setdefault(tuple(part.shape), []).append((part, direction))
            for (rows, columns), parts in alike.items():
                length = group["lr"] * math.sqrt(max(1.0, rows / columns))
                directions = orthogonalise(torch.stack([direction for _, direction in parts]))
                for (part, _), direction in zip(parts, directions, strict=True):
                    part.add_(direction, alpha=-length)


def _is_merger(name: str, weight: Tensor) -> bool:
    """Whether this is the first layer of a patch merger: square, unlike the second."""
    return "merger" in name and weight.ndim == 2 and weight.shape[0] == weight.shape[1]


class Optimizers:
    """Muon on the hidden matrices and AdamW on embeddings, norms, biases, convolutions and the output.

    Args:
        model: the model to train.
        steps: length of the schedule: linear warm-up, then cosine to ``FINAL_LR``.
        learning_rate_scale: factor on both peak learning rates.
    """

    def __init__(self, model: nn.Module, steps: int, learning_rate_scale: float = 1.0) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [
            p for name, p in named if p.ndim == 2 and not any(word in name for word in ADAMW_MATRICES)
        ]
        taken = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in taken]
        self.params = [p for _, p in named]
        self.steps = steps
        self.peaks = {"muon": MUON_LR * learning_rate_scale, "adamw": ADAMW_LR * learning_rate_scale}
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            mergers: dict[Tensor, int] = {p: MERGED for name, p in named if _is_merger(name, p)}
            self.parts["muon"] = Muon(matrices, lr=self.peaks["muon"], side_by_side=mergers)
        if rest:  # none when only adapters learn
            self.parts["adamw"] = torch.optim.AdamW(
                rest, lr=self.peaks["adamw"], betas=(0.9, 0.98), weight_decay=0.01, fused=True
            )

    def schedule(self, step: int) -> float:
        """The learning rate at ``step`` (0-based) as a fraction of its peak."""
        warm = min(WARM_UP_STEPS, max(self.steps // 5, 1))
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(self.steps - warm, 1)
        return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done))

    def update(self, loss: Tensor, stage: str, step: int, batch: Sequence[int] | np.ndarray = ()) -> None:
        """Back-propagate and step, unless the loss or the gradient is not finite.

        Args:
            loss: scalar.
            stage, step: where training is, for the error message.
            batch: ids of the items in the batch, for the error message.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; no weight has been changed. The message
                names every item of the batch, as one or several of them are the cause.
        """
        items = f", {len(batch)} items {list(map(int, batch))}" if len(batch) else ""
        where = f"{stage} step {step}{items}"
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{where}: expected a finite loss, found {loss.item()}; weights kept.")
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.params, CLIP_NORM)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{where}: the gradient norm is {norm.item()}; weights kept.")
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = self.peaks[name] * self.schedule(step)
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """Every state tensor, named ``optimizer.parameter.name``, for safetensors."""
        return {
            f"{name}.{index}.{key}": value.clone()
            for name, part in self.parts.items()
            for index, state in part.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that ``tensors`` returned."""
        for name, part in self.parts.items():
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                owner, index, field = key.split(".")
                if owner == name:
                    state.setdefault(int(index), {})[field] = value
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
