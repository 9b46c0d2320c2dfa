"""Deep interest network (DIN, Zhou, KDD 2018): a small perceptron weighs each behaviour for each candidate.

    a(q, k) = MLP([q, k, q - k, q * k]),    interest = sum over behaviours of a(q, k_b) k_b

The weights are not normalised, so that a strong interest is larger than a weak one. The first layer is split: with
W = [Wq, Wk, Wd, Wp], W [q, k, q - k, q * k] = (Wq + Wd) q + (Wk - Wd) k + Wp (q * k), the same function without four
copies of every pair.

Legend: R requests, N candidates, L behaviours, D width, H width of the first hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.module import Module, Output, Widths


class PairWeights(nn.Module):
    """a(q, k) for every pair of a candidate and a behaviour.

    Args:
        width: D.
        hidden: H; the second hidden layer is a quarter of it.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, hidden)
        self.key = nn.Linear(width, hidden, bias=False)
        self.difference = nn.Linear(width, hidden, bias=False)
        self.product = nn.Linear(width, hidden, bias=False)
        self.rest = nn.Sequential(
            nn.PReLU(), nn.Linear(hidden, hidden // 4), nn.PReLU(), nn.Linear(hidden // 4, 1)
        )

    def forward(self, target_RND: Tensor, history_RLD: Tensor) -> Tensor:
        """Weights, float32 [R, N, L]."""
        query = self.query(target_RND) + self.difference(target_RND)
        key = self.key(history_RLD) - self.difference(history_RLD)
        product = self.product(target_RND[:, :, None] * history_RLD[:, None])
        return self.rest(query[:, :, None] + key[:, None] + product)[..., 0]


class Din(Module):
    """Interest by a perceptron's weights, and its product with the candidate.

    Args:
        widths: of the inputs.
        hidden: width of the attention's first hidden layer.
    """

    def __init__(self, widths: Widths, hidden: int = 64) -> None:
        super().__init__()
        self.weights = PairWeights(widths.ids, hidden)
        self.per_candidate = 2 * widths.ids

    def forward(self, target_RND: Tensor, history_RLD: Tensor, history_mask_RL: Tensor) -> Output:
        """Interest and interest x target, float32 [R, N, 2 D]."""
        weight = self.weights(target_RND, history_RLD) * history_mask_RL[:, None]
        interest = weight @ history_RLD
        return Output(torch.cat([interest, interest * target_RND], dim=-1))
