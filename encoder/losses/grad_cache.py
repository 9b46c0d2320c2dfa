"""Batches larger than memory: the gradient of a whole batch, holding the graph of one chunk at a time.

GradCache (Gao et al., 2101.06983): a contrastive loss needs all vectors at once but only their values, so encode
without a graph, differentiate the loss with respect to the vectors, and encode again chunk by chunk to back-propagate
that gradient. It saves memory for one more forward pass. The papers do not say how they reach their batch sizes.

Shapes: B samples, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input")


def cached(encode: Callable[[Sequence[Input]], Tensor], samples: Sequence[Input], chunk: int) -> Tensor:
    """``encode(samples)`` whose backward pass encodes again, chunk by chunk, so that no graph is kept.

    Gradients equal those of a plain call if the row of a sample does not depend on the other samples. Dropout may be
    on: the second pass restores the random state of the first.

    Whatever else a loss needs, such as the gates of the experts, goes into further columns. The experts' balance
    loss, one number per call of ``encode``, can be a column of equal entries; its mean is then the mean of the
    chunks' balance losses, which differs from the balance loss of the batch, a product of means.

    When ``encode`` is data-parallel, its gradients must be averaged after the backward pass, not chunk by chunk.

    Args:
        encode: from samples to float rows (samples, D), in their order.
        samples: B samples, at least one.
        chunk: most samples whose graph is held at once.

    Returns:
        float (B, D).
    """
    return _Cached.apply(torch.zeros((), requires_grad=True), encode, samples, chunk)


class _Cached(torch.autograd.Function):
    """Forward without a graph; backward adds to the ``.grad`` of every parameter that ``encode`` uses."""

    @staticmethod
    def forward(ctx: Any, switch: Tensor, encode: Callable, samples: Sequence, chunk: int) -> Tensor:
        ctx.encode, ctx.chunk, ctx.states = encode, chunk, []
        ctx.chunks = [samples[start : start + chunk] for start in range(0, len(samples), chunk)]
        parts = []
        for part in ctx.chunks:  # autograd functions run without a graph
            ctx.states.append(_random_state())
            parts.append(encode(part))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        with torch.random.fork_rng(_devices()), torch.enable_grad():
            for part, state, its in zip(ctx.chunks, ctx.states, gradient.split(ctx.chunk), strict=True):
                _set_random_state(state)
                ctx.encode(part).backward(its)
        return None, None, None, None


def _devices() -> list[int]:
    """The GPU in use, if any."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def _random_state() -> tuple[Tensor, list[Tensor]]:
    """State of torch's generators for the CPU and the GPU in use."""
    return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in _devices()]


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Restore what ``_random_state`` returned."""
    torch.set_rng_state(state[0])
    for device, of_device in zip(_devices(), state[1], strict=True):
        torch.cuda.set_rng_state(of_device, device)
