"""The dual-alignment matrix of MOON2.0 §3.2: how much each expert serves each alignment objective.

Shapes: Z experts, M alignment objectives, B_m sequences that objective m is computed on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Text, image and text-and-image queries against products; image against text of the positive and of the negative
# item.
OBJECTIVES = ("text", "image", "both", "positive", "negative")
SPREAD = 0.1  # standard deviation of W* at the start; not recovered


class DualAlignment(nn.Module):
    """Loss weights of the alignment objectives, learned with the experts (MOON2.0 §3.2).

    p_(z,m) = softmax over m of W*_(z,m) is the affinity of expert z to objective m. The weight of objective m is the
    affinity to it of the experts that processed its sequences. W* starts near zero, so that weights are almost equal
    but rows differ enough for L_sparsity to assign experts to different objectives.

    As the weights multiply losses and are learned, gradient descent moves weight to the smallest loss: the softmax
    bounds the total, but no single weight from below. With fewer experts than objectives, rows as sparse as
    L_sparsity wants leave some objective without weight. Log ``watch`` in training.

    Args:
        experts: Z.
        objectives: names of the M objectives, in the order of their gates and weights.
    """

    def __init__(self, experts: int, objectives: Sequence[str] = OBJECTIVES) -> None:
        super().__init__()
        self.objectives = tuple(objectives)
        self.affinity_ZM = nn.Parameter(torch.randn(experts, len(self.objectives)) * SPREAD)

    @property
    def probability_ZM(self) -> Tensor:
        """p_(z,m), rows sum to 1."""
        return self.affinity_ZM.softmax(dim=1)

    def objective_weights(self, gates: Sequence[Tensor]) -> Tensor:
        """omega_m = 1/|B_m| sum over b in B_m, sum over z, of p_(z,m) G~_(z,b).

        Args:
            gates: for each objective the gates (B_m, Z) of its sequences, from ``per_sequence``.

        Returns:
            float (M), each in 0..1; 0 for an objective without sequences. They sum to 1 when all objectives use the
            same sequences.
        """
        mean_MZ = torch.stack([gate_BZ.sum(dim=0) / max(len(gate_BZ), 1) for gate_BZ in gates])
        return (mean_MZ * self.probability_ZM.T).sum(dim=1)

    def sparsity(self) -> Tensor:
        """L_sparsity = 1/Z sum_z [ -sum_m p_(z,m) log p_(z,m) ]: 0 when every expert serves one objective."""
        log_ZM = self.affinity_ZM.log_softmax(dim=1)
        return -(log_ZM.exp() * log_ZM).sum(dim=1).mean()

    def watch(self, weight_M: Tensor) -> dict[str, float]:
        """Objective weights by name for the training log, with their total and effective number.

        ``effective`` is the perplexity of the weights: M when they are equal, 1 when one objective has all the
        weight, 0 when all weights are 0.
        """
        weights = weight_M.detach().double()
        fraction = weights / weights.sum().clamp(min=1e-12)
        spread = torch.special.entr(fraction).sum().exp() * (weights.sum() > 0)
        named = dict(zip(self.objectives, weights.tolist(), strict=True))
        return {**named, "total": float(weights.sum()), "effective": float(spread)}
