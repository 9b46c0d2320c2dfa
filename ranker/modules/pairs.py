"""Factorisation machine (FM, Rendle, ICDM 2010): every pair of fields by the product of their embeddings.

    pairs = sum over i < j of v_i . v_j = 1/2 sum over d of ((sum_i v_id)^2 - sum_i v_id^2)

The fields v_i are the ids of candidate and request and the mean of the behaviours. With ``Logistic``, which has the
linear part, it is FM; with the embeddings beside it for the perceptron, DeepFM (Guo, IJCAI 2017).

Legend: R requests, N candidates, L behaviours, D id width, I and U: D times the fields of a candidate and of a
request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ranker.modules.attention import masked_mean
from ranker.modules.module import Module, Output, Widths


class Pairs(Module):
    """The products of all pairs of fields, summed: one number, and no weight of its own."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.width = widths.ids
        self.per_candidate = 1

    def forward(
        self, item_RNI: Tensor, user_RU: Tensor, history_RLD: Tensor, history_mask_RL: Tensor
    ) -> Output:
        """The sum over pairs, float32 [R, N, 1]."""
        request = torch.cat([user_RU, masked_mean(history_RLD, history_mask_RL)], dim=-1)
        mine, theirs = (one.unflatten(-1, (-1, self.width)) for one in (item_RNI, request[:, None]))
        total = mine.sum(-2) + theirs.sum(-2)
        squares = mine.square().sum(-2) + theirs.square().sum(-2)
        return Output(0.5 * (total.square() - squares).sum(-1, keepdim=True))
