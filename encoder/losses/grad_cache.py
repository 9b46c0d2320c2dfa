"""Batches larger than memory: the gradient of a whole batch, with the graph of one chunk at a time.

GradCache (Gao et al., 2101.06983): a contrastive loss needs all vectors at once but only their values, so
encode without a graph, differentiate the loss by the vectors, and encode again to carry that gradient on.
It buys memory with one more forward pass. The papers do not say how they reach their batches.

Shapes: B sequences, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input")


def cached_backward(
    encode: Callable[[Sequence[Input]], Tensor],
    samples: Sequence[Input],
    loss_of: Callable[[Tensor], Tensor],
    chunk: int,
) -> Tensor:
    """Add the gradient of ``loss_of(encode(samples))`` to the ``.grad`` of all that ``encode`` uses.

    Equal to the plain backward when the row of a sample does not depend on the samples beside it. Dropout may
    be on: the second pass of a chunk draws what its first pass drew.

    What the loss needs besides vectors goes into further columns, e.g. the gates of the experts. A balance
    loss of experts, one number per call of ``encode``, can ride along in a column of equal entries; it is then
    the mean of the chunks' balances, which is not the balance of the batch, being a product of means.

    ``loss_of`` runs once and may hold parameters of its own and gather from other ranks. When ``encode`` is
    data-parallel, its gradients must be averaged after this function, not chunk by chunk.

    Args:
        encode: float (b, D) rows of b samples, in their order.
        samples: B, at least one.
        loss_of: scalar loss of all rows (B, D).
        chunk: most samples whose graph is held at once.

    Returns:
        The loss, detached.
    """
    chunks = [samples[start : start + chunk] for start in range(0, len(samples), chunk)]
    states, parts = [], []
    with torch.no_grad():
        for part in chunks:
            states.append(_random_state())
            parts.append(encode(part))
    rows = torch.cat(parts).requires_grad_()
    loss = loss_of(rows)
    loss.backward()
    assert rows.grad is not None
    with torch.random.fork_rng(_devices()):
        for part, state, gradient in zip(chunks, states, rows.grad.split(chunk), strict=True):
            _set_random_state(state)
            encode(part).backward(gradient)
    return loss.detach()


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
