"""Negatives over space: the vectors of all ranks (MOON Embedding §1.5, MOON §2.1).

Every rank gathers anchors, items, further negatives and keys, and computes the loss of the joined batch: no
loss knows about ranks. The gradient of a row is the sum over ranks; averaged over ranks, as data-parallel
training does, it is the gradient of one process that holds the joined batch.

Every rank must bring as many rows as the others and gather as often: a rank that stays away stalls them all.

Shapes: B rows of one rank, D vector width, W ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """W; 1 when training is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_keys(key_B: Tensor) -> Tensor:
    """Keys, masks or weights of all ranks, (W * B, ...) in order of rank, without gradient."""
    if ranks() == 1:
        return key_B
    key_B = key_B.contiguous()  # NCCL takes nothing else
    parts = [torch.empty_like(key_B) for _ in range(ranks())]
    dist.all_gather(parts, key_B)
    return torch.cat(parts)


def gather_with_gradient(vector_BD: Tensor) -> Tensor:
    """Vectors of all ranks, (W * B, D) in order of rank; each rank's share of the gradient finds its way back.

    ``torch.distributed.nn.functional.all_gather`` does the same and is deprecated in torch 2.13.
    """
    return vector_BD if ranks() == 1 else _Gather.apply(vector_BD)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums over ranks what each of them wants of our rows."""

    @staticmethod
    def forward(ctx: Any, vector_BD: Tensor) -> Tensor:
        return gather_keys(vector_BD)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()  # all_reduce writes in place, and the gradient is not ours
        dist.all_reduce(total)
        return total.chunk(ranks())[dist.get_rank()]
