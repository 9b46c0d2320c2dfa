"""Cross-rank negatives: the vectors of all ranks (MOON Embedding §1.5, MOON §2.1).

Every rank gathers anchors, items, further negatives and keys, and computes the loss of the joined batch, so losses
need not know about ranks. The gradient of a row is summed over ranks; averaged over ranks by data-parallel training
it equals the gradient of a single process with the joined batch.

All ranks must gather the same number of rows the same number of times: a missing rank blocks the others.

Shapes: B rows of one rank, D vector width, W ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """W, the number of ranks; 1 when training is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_keys(key_B: Tensor) -> Tensor:
    """Keys, masks or weights of all ranks, (W * B, ...) in order of rank, without gradient."""
    if ranks() == 1:
        return key_B
    key_B = key_B.contiguous()  # required by NCCL
    parts = [torch.empty_like(key_B) for _ in range(ranks())]
    dist.all_gather(parts, key_B)
    return torch.cat(parts)


def gather_with_gradient(vector_BD: Tensor) -> Tensor:
    """Vectors of all ranks, (W * B, D) in order of rank; gradients flow back to the rank that owns each row.

    ``torch.distributed.nn.functional.all_gather`` does the same but is deprecated in torch 2.13.
    """
    return vector_BD if ranks() == 1 else _Gather.apply(vector_BD)


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients of our rows over all ranks."""

    @staticmethod
    def forward(ctx: Any, vector_BD: Tensor) -> Tensor:
        return gather_keys(vector_BD)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = (
            gradient.contiguous().clone()
        )  # all_reduce works in place, and the gradient must not be changed
        dist.all_reduce(total)
        return total.chunk(ranks())[dist.get_rank()]
