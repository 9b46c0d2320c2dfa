"""A queue of negatives: the item vectors of the last steps (MOON Embedding §1.5, MOON §2.1; SCL 2407.19467).

Shapes: B pairs, D vector width, S slots of the queue.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from encoder.losses.info_nce import false_extra_negatives

EMPTY = -1  # item of an unused slot


class VectorQueue:
    """A first-in-first-out queue of the newest S item vectors, with the keys that identify false negatives.

    A step computes its loss against the queue before it pushes its own items, which would otherwise count twice. With
    several ranks, every rank pushes the gathered items, so that all queues are equal.
    S is not recovered for MOON (about 200 times the batch); SCL keeps 196,800.

    Args:
        size: S.
        width: D, the full width; narrower Matryoshka losses use prefixes.
    """

    def __init__(self, size: int, width: int) -> None:
        self.vector_SD = torch.zeros(size, width)
        self.item_S = torch.full((size,), EMPTY, dtype=torch.int64)
        self.spu_S = torch.full((size,), EMPTY, dtype=torch.int64)
        self.pushed = 0

    def __len__(self) -> int:
        """Slots in use."""
        return min(self.pushed, len(self.item_S))

    @torch.no_grad()
    def push(self, vector_BD: Tensor, item_B: Tensor, spu_B: Tensor) -> None:
        """Replace the B oldest vectors by these; of more than S only the last S are kept.

        Args:
            vector_BD: float, any norm; gradients do not flow into the queue.
            item_B: int64, item of each; not negative.
            spu_B: int64, its product code.
        """
        size = len(self.item_S)
        end = self.pushed + len(item_B)
        # Write no slot twice: on a GPU the order of such writes is undefined.
        slot = torch.arange(max(self.pushed, end - size), end, device=self.item_S.device) % size
        self.vector_SD[slot] = vector_BD[-len(slot) :].to(self.vector_SD)
        self.item_S[slot] = item_B[-len(slot) :].to(self.item_S)
        self.spu_S[slot] = spu_B[-len(slot) :].to(self.spu_S)
        self.pushed = end

    def contents(self) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (S, D), items (S) and product codes (S) of all slots; unused slots have item ``EMPTY``."""
        return self.vector_SD, self.item_S, self.spu_S

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, for safetensors."""
        pushed = torch.tensor([self.pushed], dtype=torch.int64)
        state = {"vector": self.vector_SD, "item": self.item_S, "spu": self.spu_S, "pushed": pushed}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that ``tensors`` returned."""
        self.vector_SD.copy_(tensors["vector"])
        self.item_S.copy_(tensors["item"])
        self.spu_S.copy_(tensors["spu"])
        self.pushed = int(tensors["pushed"])


def false_queue_negatives(
    queue: VectorQueue, anchor_B: Tensor, item_B: Tensor, spu_B: Tensor, anchor_spu_B: Tensor
) -> Tensor:
    """Which slots of the queue must be masked for which anchors: false negatives and unused slots.

    Args:
        queue: after any number of pushes.
        anchor_B, item_B, spu_B, anchor_spu_B: int64, the keys of ``info_nce.false_negatives``.

    Returns:
        bool (B, S): [anchor, slot].
    """
    _, item_S, spu_S = queue.contents()
    return false_extra_negatives(anchor_B, item_B, spu_B, anchor_spu_B, item_S, spu_S) | (item_S == EMPTY)
