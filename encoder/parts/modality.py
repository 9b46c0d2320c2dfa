"""Which expert serves which alignment objective: the dual-alignment matrix of MOON2.0 §3.2.

Shapes: Z experts, M alignment objectives, B_m sequences that objective m is computed on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Queries of text, image and both against the product; image against text of the positive and negative item.
OBJECTIVES = ("text", "image", "both", "positive", "negative")
SPREAD = 0.1  # standard deviation of W* at the start; not recovered


class DualAlignment(nn.Module):
    """Weights of the alignment objectives, learned with the experts (MOON2.0 §3.2).

    p_(z,m) = softmax over m of W*_(z,m) says how much expert z stands for objective m, and objective m weighs
    as much as the experts that answered its sequences stand for it. W* starts near zero: almost equal weights,
    and rows different enough for sparsity to send experts to different objectives.

    The weights multiply losses and are learned, so gradient descent favours the smallest loss; the softmax
    bounds their total and nothing bounds one of them from below. With fewer experts than objectives, rows as
    sparse as L_sparsity wants leave an objective without any weight. Log ``watch`` in training.

    Args:
        experts: Z.
        objectives: names of the M objectives, in the order of ``gates`` and of the weights.
    """

    def __init__(self, experts: int, objectives: Sequence[str] = OBJECTIVES) -> None:
        super().__init__()
        self.objectives = tuple(objectives)
        self.affinity_ZM = nn.Parameter(torch.randn(experts, len(self.objectives)) * SPREAD)

    @property
    def share_ZM(self) -> Tensor:
        """p_(z,m), rows sum to 1."""
        return self.affinity_ZM.softmax(dim=1)

    def objective_weights(self, gates: Sequence[Tensor]) -> Tensor:
        """omega_m = 1/|B_m| sum over b in B_m, sum over z, of p_(z,m) G~_(z,b).

        Args:
            gates: for each objective the gates (B_m, Z) of its sequences, as ``per_sequence`` gives them.

        Returns:
            float (M,), each in 0..1; 0 for an objective without sequences. They sum to 1 when all objectives
            share their sequences.
        """
        mean_MZ = torch.stack([gate_BZ.sum(dim=0) / max(len(gate_BZ), 1) for gate_BZ in gates])
        return (mean_MZ * self.share_ZM.T).sum(dim=1)

    def sparsity(self) -> Tensor:
        """L_sparsity = 1/Z sum_z [ -sum_m p_(z,m) log p_(z,m) ]: 0 when every expert serves one objective."""
        log_ZM = self.affinity_ZM.log_softmax(dim=1)
        return -(log_ZM.exp() * log_ZM).sum(dim=1).mean()

    def watch(self, weight_M: Tensor) -> dict[str, float]:
        """Objective weights by name for the training log, with their total and how many still count.

        ``effective`` is the perplexity of the weights: M when they are equal, 1 when one objective took all;
        0 when no weight is left.
        """
        weights = weight_M.detach().double()
        share = weights / weights.sum().clamp(min=1e-12)
        spread = torch.special.entr(share).sum().exp() * (weights.sum() > 0)
        named = dict(zip(self.objectives, weights.tolist(), strict=True))
        return {**named, "total": float(weights.sum()), "effective": float(spread)}
