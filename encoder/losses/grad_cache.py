"""Batches larger than memory: the gradient of a whole batch, with the graph of one chunk at a time.

GradCache (Gao et al., 2101.06983): a contrastive loss needs all vectors at once but only their values, so
encode without a graph, differentiate the loss by the vectors, and encode again to carry that gradient on.
It buys memory with one more forward pass. The papers do not say how they reach their batches.

Shapes: B sequences, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input")


def cached(encode: Callable[[Sequence[Input]], Tensor], samples: Sequence[Input], chunk: int) -> Tensor:
    """``encode(samples)`` whose backward pass encodes again, chunk by chunk, so that no graph is kept.

    Gradients equal the plain ones when the row of a sample does not depend on the samples beside it. Dropout
    may be on: the second pass of a chunk draws what its first pass drew.

    What a loss needs besides vectors goes into further columns, e.g. the gates of the experts. A balance loss
    of experts, one number per call of ``encode``, can ride along in a column of equal entries; it is then the
    mean of the chunks' balances, which is not the balance of the batch, being a product of means.

    When ``encode`` is data-parallel, its gradients must be averaged after the backward pass, not chunk by chunk.

    Args:
        encode: float (b, D) rows of b samples, in their order.
        samples: B, at least one.
        chunk: most samples whose graph is held at once.

    Returns:
        float (B, D).
    """
    return _Cached.apply(torch.zeros((), requires_grad=True), encode, samples, chunk)


class _Cached(torch.autograd.Function):
    """Forward without a graph; backward adds to the ``.grad`` of all that ``encode`` uses."""

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
    """The accelerator in use, if any."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def _random_state() -> tuple[Tensor, list[Tensor]]:
    """State of torch's generators, of the CPU and of the accelerator in use."""
    return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in _devices()]


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Put back what ``_random_state`` gave."""
    torch.set_rng_state(state[0])
    for device, of_device in zip(_devices(), state[1], strict=True):
        torch.cuda.set_rng_state(of_device, device)
