"""Dynamic sample filtering (MOON2.0 §3.5): triplets the model finds implausible weigh less, from easy to hard.

Shapes: B triplets (query, positive, negative).
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 0.6  # MOON2.0 §3.5: fixed
# The rest is not recovered. With kappa 10 the threshold lies .04 above the margin in cosine. At first a triplet
# needs a gap of .24 to count in full, which an untrained model gives only the easy ones; at the end .04.
KAPPA = 10.0
FIRST_MARGIN, LAST_MARGIN = 0.2, 0.0


def confidence(positive_B: Tensor, negative_B: Tensor, margin: float, kappa: float = KAPPA) -> Tensor:
    """How surely each triplet is told apart, phi = sigmoid(kappa (s_qp - s_qn - margin)) (MOON2.0 §3.5).

    Args:
        positive_B, negative_B: float, cosine of the query with its positive and with its negative.
        margin: the gap at which phi is one half.
        kappa: how sharply phi rises there.
    """
    return torch.sigmoid(kappa * (positive_B - negative_B - margin))


def margin_at(progress: float) -> float:
    """The margin after a share ``progress``, 0 to 1, of training: it decays, in a straight line (our choice)."""
    return FIRST_MARGIN + (LAST_MARGIN - FIRST_MARGIN) * progress


def triplet_weights(positive_B: Tensor, negative_B: Tensor, progress: float, kappa: float = KAPPA) -> Tensor:
    """Weight of each triplet, for ``weight_B`` of the losses; no gradient flows through it.

    1 from the threshold on; below it phi / threshold: the paper's factor is not recovered, and this one has no
    jump, needs no further number and gives least to triplets whose labels contradict the model most.

    Args:
        positive_B, negative_B: as in ``confidence``.
        progress: share of training done, 0 to 1.
        kappa: as in ``confidence``.

    Returns:
        float (B), in (0, 1].
    """
    phi_B = confidence(positive_B.detach(), negative_B.detach(), margin_at(progress), kappa)
    return (phi_B / THRESHOLD).clamp(max=1)
