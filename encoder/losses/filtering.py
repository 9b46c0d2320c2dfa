"""Dynamic sample filtering (MOON2.0 §3.5): a curriculum that gives implausible triplets less weight.

Shapes: B triplets (query, positive, negative).
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 0.6  # MOON2.0 §3.5: fixed
# The rest is not recovered. With kappa 10, phi reaches the threshold at a cosine gap of margin + .04. So a triplet
# has full weight from a gap of .24 at first, which an untrained model gives only to easy ones, and of .04 at the end.
KAPPA = 10.0
FIRST_MARGIN, LAST_MARGIN = 0.2, 0.0


def confidence(positive_B: Tensor, negative_B: Tensor, margin: float, kappa: float = KAPPA) -> Tensor:
    """Confidence in each triplet, phi = sigmoid(kappa (s_qp - s_qn - margin)) (MOON2.0 §3.5).

    Args:
        positive_B, negative_B: float, cosine of the query with its positive and with its negative.
        margin: cosine gap at which phi is one half.
        kappa: steepness of phi.
    """
    return torch.sigmoid(kappa * (positive_B - negative_B - margin))


def margin_at(progress: float) -> float:
    """The margin after a fraction ``progress``, 0 to 1, of training: it decays linearly (our choice)."""
    return FIRST_MARGIN + (LAST_MARGIN - FIRST_MARGIN) * progress


def triplet_weights(positive_B: Tensor, negative_B: Tensor, progress: float, kappa: float = KAPPA) -> Tensor:
    """Weight of each triplet, for ``weight_B`` of the losses; no gradient flows through it.

    1 where phi is at least the threshold, phi / threshold below. The paper's factor is not recovered; this one is
    continuous, has no further parameter and is smallest where the model contradicts the label most.

    Args:
        positive_B, negative_B: as in ``confidence``.
        progress: fraction of training done, 0 to 1.
        kappa: as in ``confidence``.

    Returns:
        float (B), in (0, 1].
    """
    phi_B = confidence(positive_B.detach(), negative_B.detach(), margin_at(progress), kappa)
    return (phi_B / THRESHOLD).clamp(max=1)
