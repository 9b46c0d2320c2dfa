"""The contrastive objective: in-batch InfoNCE with false negatives masked, averaged over Matryoshka prefixes.

Negatives are the other items of the batch and, optionally, further vectors shared by all anchors: hard negatives and
the queue of vectors from earlier steps.

Shapes: B pairs, D vector width, N further negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.05  # not recovered for MOON Embedding §1.4; published encoders of this kind use .02 to .07


def false_negatives(anchor_B: Tensor, item_B: Tensor, spu_B: Tensor, anchor_spu_B: Tensor) -> Tensor:
    """Which in-batch items are false negatives of which anchors.

    A false negative is another copy of the anchor's positive, a variant of it (same SPU), a positive of the same
    anchor in another pair or a variant of one, or a variant of the anchor item itself.

    Args:
        anchor_B: int64, identity of each pair's anchor (query or item).
        item_B: int64, item of each pair.
        spu_B: int64, product code of each item.
        anchor_spu_B: int64, product code of each anchor that is an item; a unique negative number otherwise.

    Returns:
        bool (B, B): [anchor, item]; false on the diagonal, which is the positive.
    """
    same = false_extra_negatives(anchor_B, item_B, spu_B, anchor_spu_B, item_B, spu_B)
    return same & ~torch.eye(len(item_B), dtype=torch.bool, device=item_B.device)


def false_extra_negatives(
    anchor_B: Tensor,
    item_B: Tensor,
    spu_B: Tensor,
    anchor_spu_B: Tensor,
    negative_item_N: Tensor,
    negative_spu_N: Tensor,
) -> Tensor:
    """Which of N further vectors are false negatives of which anchors.

    As in ``false_negatives``: any positive of the anchor in this batch or a variant of one, or a variant of the
    anchor item itself.

    Args:
        anchor_B, item_B, spu_B, anchor_spu_B: int64, the keys of ``false_negatives``.
        negative_item_N, negative_spu_N: int64, item and product code of each further vector.

    Returns:
        bool (B, N): [anchor, negative].
    """
    same_BN = (item_B[:, None] == negative_item_N) | (spu_B[:, None] == negative_spu_N)
    anchors, row_B = torch.unique(anchor_B, return_inverse=True)
    if len(anchors) < len(anchor_B):  # an anchor with several pairs: the positives of one hold for all
        pair, negative = same_BN.nonzero(as_tuple=True)
        known = same_BN.new_zeros((len(anchors), same_BN.shape[1]))
        known[row_B[pair], negative] = True
        same_BN = known[row_B]
    return same_BN | (anchor_spu_B[:, None] == negative_spu_N)


def candidates(
    anchor_BD: Tensor,
    item_BD: Tensor,
    masked_BB: Tensor,
    negatives_ND: Tensor | None = None,
    masked_negatives_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine of every anchor with every item and every further negative, and which of these are masked.

    Args:
        anchor_BD, item_BD: float, any norm; row b of both is a positive pair.
        masked_BB: bool, true where the item must not be a negative of the anchor; false on the diagonal.
        negatives_ND: float, any norm, further negatives of every anchor.
        masked_negatives_BN: bool, the same for the further negatives; None masks none.

    Returns:
        float and bool, both (B, B + N).
    """
    if negatives_ND is not None:
        if masked_negatives_BN is None:
            masked_negatives_BN = masked_BB.new_zeros((len(masked_BB), len(negatives_ND)))
        item_BD = torch.cat([item_BD, negatives_ND])
        masked_BB = torch.cat([masked_BB, masked_negatives_BN], 1)
    return F.normalize(anchor_BD, dim=-1) @ F.normalize(item_BD, dim=-1).T, masked_BB


def weighted_mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Weighted mean of the pairs' losses, sum w L / sum w."""
    return loss_B.mean() if weight_B is None else (weight_B * loss_B).sum() / weight_B.sum()


def one_way_info_nce(
    anchor_BD: Tensor,
    item_BD: Tensor,
    masked_BB: Tensor,
    temperature: float = TEMPERATURE,
    negatives_ND: Tensor | None = None,
    masked_negatives_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE of anchors choosing their item (MOON Embedding §1.4, the formula as printed).

    L = -log exp(s(q,p)/t) / (exp(s(q,p)/t) + sum over negatives n of exp(s(q,n)/t)), s the cosine.

    Args:
        anchor_BD, item_BD, masked_BB, negatives_ND, masked_negatives_BN: as in ``candidates``.
        temperature: t.
        weight_B: float, weight of each pair's loss, not all 0; as a negative each item counts in full.
    """
    score, masked = candidates(anchor_BD, item_BD, masked_BB, negatives_ND, masked_negatives_BN)
    score = (score / temperature).masked_fill(masked, float("-inf"))
    target = torch.arange(len(score), device=score.device)
    return weighted_mean(F.cross_entropy(score, target, reduction="none"), weight_B)


def info_nce(
    anchor_BD: Tensor,
    item_BD: Tensor,
    masked_BB: Tensor,
    temperature: float = TEMPERATURE,
    negatives_ND: Tensor | None = None,
    masked_negatives_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE of anchors choosing their item and items choosing their anchor (MOON Embedding §1.4).

    Arguments as in ``one_way_info_nce``. Further negatives are items, so they are used in the first direction only.
    """
    to_item = one_way_info_nce(
        anchor_BD, item_BD, masked_BB, temperature, negatives_ND, masked_negatives_BN, weight_B
    )
    to_anchor = one_way_info_nce(item_BD, anchor_BD, masked_BB.T, temperature, weight_B=weight_B)
    return (to_item + to_anchor) / 2


def over_widths(loss_at: Callable[[int], Tensor], widths: Sequence[int]) -> Tensor:
    """Matryoshka: mean of a loss over prefixes of the vectors (2205.13147; MOON Embedding §1.4).

    L = sum_m c_m L(normalise(r[:m])) with equal weights c_m = 1/M: the paper's weights are not recovered.

    Args:
        loss_at: from a width to the loss with every vector cut to its first ``width`` numbers.
        widths: M prefixes.
    """
    return torch.stack([loss_at(width) for width in widths]).mean()


def over_prefixes(
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    anchor_BD: Tensor,
    item_BD: Tensor,
    negatives_ND: Tensor | None,
    widths: Sequence[int],
) -> Tensor:
    """``over_widths`` for a loss of anchors, items and, where there are some, further negatives."""

    def loss_at(width: int) -> Tensor:
        extra_NW = None if negatives_ND is None else negatives_ND[:, :width]
        return loss(anchor_BD[:, :width], item_BD[:, :width], extra_NW)

    return over_widths(loss_at, widths)


def matryoshka_info_nce(
    anchor_BD: Tensor,
    item_BD: Tensor,
    masked_BB: Tensor,
    widths: Sequence[int],
    temperature: float = TEMPERATURE,
    negatives_ND: Tensor | None = None,
    masked_negatives_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Mean of ``info_nce`` over the prefixes of ``widths``, each normalised."""

    def loss(anchor_BW: Tensor, item_BW: Tensor, negatives_NW: Tensor | None) -> Tensor:
        return info_nce(
            anchor_BW, item_BW, masked_BB, temperature, negatives_NW, masked_negatives_BN, weight_B
        )

    return over_prefixes(loss, anchor_BD, item_BD, negatives_ND, widths)
