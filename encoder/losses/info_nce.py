"""The contrastive objective: InfoNCE in batch, false negatives masked, summed over Matryoshka prefixes.

Shapes: B pairs, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.05  # MOON Embedding §1.4 does not recover it; published encoders of this kind use .02 to .07


def false_negatives(anchor_B: Tensor, item_B: Tensor, spu_B: Tensor, anchor_spu_B: Tensor) -> Tensor:
    """Which in-batch items must not be pushed away from which anchors.

    An item is no negative of an anchor when it is the anchor's own positive shown again, a variant of it
    (same SPU), a positive of the same anchor in another pair, or a variant of the anchor item itself.

    Args:
        anchor_B: int64, identity of each pair's anchor (query or item).
        item_B: int64, item of each pair.
        spu_B: int64, product code of each item.
        anchor_spu_B: int64, product code of each anchor that is an item; negative and unique otherwise.

    Returns:
        bool (B, B): [anchor, item]; false on the diagonal, which is the positive.
    """
    same = (
        (item_B[:, None] == item_B[None])
        | (spu_B[:, None] == spu_B[None])
        | (anchor_B[:, None] == anchor_B[None])
        | (anchor_spu_B[:, None] == spu_B[None])
    )
    return same & ~torch.eye(len(item_B), dtype=torch.bool, device=item_B.device)


def info_nce(
    anchor_BD: Tensor, item_BD: Tensor, masked_BB: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Mean InfoNCE of anchors choosing their item and items choosing their anchor (MOON Embedding §1.4).

    L = -log exp(s(q,p)/t) / (exp(s(q,p)/t) + sum over in-batch negatives n of exp(s(q,n)/t)), s the cosine.

    Args:
        anchor_BD, item_BD: float, any length; compared by cosine.
        masked_BB: bool, true where ``item`` is no negative of ``anchor``; false on the diagonal.
        temperature: t.
    """
    score = F.normalize(anchor_BD, dim=-1) @ F.normalize(item_BD, dim=-1).T / temperature
    score = score.masked_fill(masked_BB, float("-inf"))
    target = torch.arange(len(score), device=score.device)
    return (F.cross_entropy(score, target) + F.cross_entropy(score.T, target)) / 2


def matryoshka_info_nce(
    anchor_BD: Tensor,
    item_BD: Tensor,
    masked_BB: Tensor,
    widths: Sequence[int],
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Mean of ``info_nce`` over the prefixes of ``widths``, each normalised as a vector of its own.

    L = sum_m c_m L(normalise(r[:m])) with equal weights c_m = 1/M: the paper's weights are not recovered.
    """
    losses = [info_nce(anchor_BD[:, :w], item_BD[:, :w], masked_BB, temperature) for w in widths]
    return torch.stack(losses).mean()
