"""HSTU-like sequence encoder (hierarchical sequential transduction units, Zhai, ICML 2024).

    U, V, Q, K = split(silu(W1 norm(X)))
    A = silu(Q K^T + bias of how far apart) / n,    causal
    X' = X + W2 (norm(A V) * U)

The weights are not normalised over the history, so that how often an interest shows is kept; n is the longest
history. Like, not equal: actions are part of a behaviour's embedding instead of tokens of their own, time enters
through it as well, and a candidate attends to the encoded history in the same way instead of being its last token,
so that a history is encoded once for all candidates.

Legend: R requests, N candidates, L behaviours, D id width, n most behaviours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranker.modules.module import Module, Output, Widths


class Unit(nn.Module):
    """One transduction unit.

    Args:
        width: D.
        history: n.
    """

    def __init__(self, width: int, history: int) -> None:
        super().__init__()
        self.history = history
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inside = nn.Linear(width, 4 * width)
        self.outside = nn.Linear(width, width)
        self.distance = nn.Parameter(torch.zeros(history))

    def forward(self, history_RLD: Tensor, mask_RL: Tensor) -> Tensor:
        """The history after this unit, [R, L, D]; rows of padding are undefined."""
        gate, value, query, key = functional.silu(self.inside(self.before(history_RLD))).chunk(4, dim=-1)
        place = torch.arange(history_RLD.shape[1], device=history_RLD.device)
        distance = place[:, None] - place
        bias = self.distance[distance.clamp(min=0)]
        score = functional.silu(query @ key.transpose(1, 2) + bias) / self.history
        read = (score * ((distance >= 0) & mask_RL[:, None])) @ value
        return history_RLD + self.outside(self.between(read) * gate)


class Hstu(Module):
    """Interest over an encoded history.

    Args:
        widths: of the inputs.
        layers: units.
    """

    longest = 1000  # of a batch of fifty requests, a number for each two behaviours is then 200 MB

    def __init__(self, widths: Widths, layers: int = 2) -> None:
        super().__init__()
        self.history = widths.history
        self.units = nn.ModuleList(Unit(widths.ids, widths.history) for _ in range(layers))
        self.query, self.key, self.value = (nn.Linear(widths.ids, widths.ids) for _ in range(3))
        self.norm = nn.LayerNorm(widths.ids)
        self.per_candidate = 2 * widths.ids

    def forward(self, target_RND: Tensor, history_RLD: Tensor, history_mask_RL: Tensor) -> Output:
        """Interest and interest x target, float32 [R, N, 2 D]."""
        x = history_RLD
        for unit in self.units:
            x = unit(x, history_mask_RL)
        score = functional.silu(self.query(target_RND) @ self.key(x).transpose(1, 2)) / self.history
        interest = self.norm((score * history_mask_RL[:, None]) @ self.value(x))
        return Output(torch.cat([interest, interest * target_RND], dim=-1))
