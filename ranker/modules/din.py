"""Deep interest network (DIN, Zhou, KDD 2018): a small perceptron weighs each behaviour for each candidate.

    a(q, k) = MLP([q, k, q - k, q * k]),    interest = sum over behaviours of a(q, k_b) k_b

The weights are not normalised, so that a strong interest is larger than a weak one. The first layer is split: with
W = [Wq, Wk, Wd, Wp], W [q, k, q - k, q * k] = (Wq + Wd) q + (Wk - Wd) k + Wp (q * k), the same function without four
copies of every pair. Only pairs with a real behaviour are computed.

Legend: R requests, N candidates, L behaviours, T real behaviours of all requests, D width, H width of the first
hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranker.modules.module import Module, Output, Widths
from ranker.modules.prelu import Prelu


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
        self.rest = nn.Sequential(Prelu(), nn.Linear(hidden, hidden // 4), Prelu(), nn.Linear(hidden // 4, 1))

    def forward(self, target_RND: Tensor, history_RLD: Tensor, allowed_RL: Tensor) -> Tensor:
        """Weights, float32 [R, N, L], zero for behaviours that are not allowed."""
        requests, slots, _ = target_RND.shape
        real = allowed_RL.flatten().nonzero()[:, 0]
        owner = real // allowed_RL.shape[1]
        behaved_TD = history_RLD.flatten(0, 1).index_select(0, real)
        difference = self.difference.weight
        query = functional.linear(target_RND, self.query.weight + difference, self.query.bias)
        key = functional.linear(behaved_TD, self.key.weight - difference)
        hidden = self.product(target_RND.index_select(0, owner) * behaved_TD[:, None])
        hidden += key[:, None]  # in place: nothing reads the summands again
        hidden += query.index_select(0, owner)
        weight_TN = self.rest(hidden)[..., 0]
        every = weight_TN.new_zeros(allowed_RL.numel(), slots).index_copy(0, real, weight_TN)
        return every.view(requests, -1, slots).transpose(1, 2)


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
        interest = self.weights(target_RND, history_RLD, history_mask_RL) @ history_RLD
        return Output(torch.cat([interest, interest * target_RND], dim=-1))
