"""Circle loss: the second round of post-training (MOON Embedding §1.5; Sun et al., 2002.10857).

Shapes: B pairs, D vector width, N further negatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.losses.info_nce import candidates, over_prefixes, weighted_mean

# Both not recovered. With these values the gradient where scores settle, gamma / 2 = 32 at s_n = m, and that between
# unrelated vectors, gamma * m = 16 at s_n = 0, are those of InfoNCE at temperatures .03 and .06, the usual range.
GAMMA, MARGIN = 64.0, 0.25


def circle_loss(
    anchor_BD: Tensor,
    item_BD: Tensor,
    masked_BB: Tensor,
    negatives_ND: Tensor | None = None,
    masked_negatives_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
    gamma: float = GAMMA,
    margin: float = MARGIN,
) -> Tensor:
    """Mean circle loss of anchors, each with its one positive (2002.10857 eq. 6; MOON Embedding §1.5).

    L = log[1 + sum_j exp(g a_n^j (s_n^j - m)) exp(-g a_p (s_p - (1 - m)))], a_n = [s_n + m]_+,
    a_p = [1 + m - s_p]_+, s the cosine. The weights a measure how far a score is from its optimum (-m for negatives,
    1 + m for positives); no gradient flows through them, as in the original. As in the formula, only anchors choose
    among items, not items among anchors.

    Args:
        anchor_BD, item_BD, masked_BB, negatives_ND, masked_negatives_BN: as in ``info_nce.candidates``.
        weight_B: float, weight of each anchor's loss, not all 0.
        gamma: g, scale of the scores.
        margin: m; scores settle within s_p > 1 - m and s_n < m.

    Returns:
        Scalar; an anchor without negatives contributes 0.
    """
    score, masked = candidates(anchor_BD, item_BD, masked_BB, negatives_ND, masked_negatives_BN)
    positive_B = score.diagonal()
    own = torch.eye(*score.shape, dtype=torch.bool, device=score.device)
    far_B = (1 + margin - positive_B).detach().clamp(min=0)
    near_BN = (score + margin).detach().clamp(min=0)
    push_BN = (gamma * near_BN * (score - margin)).masked_fill(masked | own, float("-inf"))
    pull_B = -gamma * far_B * (positive_B - (1 - margin))
    return weighted_mean(F.softplus(push_BN.logsumexp(1) + pull_B), weight_B)


def matryoshka_circle_loss(
    anchor_BD: Tensor,
    item_BD: Tensor,
    masked_BB: Tensor,
    widths: Sequence[int],
    negatives_ND: Tensor | None = None,
    masked_negatives_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Mean of ``circle_loss`` over the prefixes of ``widths``, each normalised."""

    def loss(anchor_BW: Tensor, item_BW: Tensor, negatives_NW: Tensor | None) -> Tensor:
        return circle_loss(anchor_BW, item_BW, masked_BB, negatives_NW, masked_negatives_BN, weight_B)

    return over_prefixes(loss, anchor_BD, item_BD, negatives_ND, widths)
