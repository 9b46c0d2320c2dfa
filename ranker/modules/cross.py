"""Cross network of DCNv2 (Wang, WWW 2021): polynomials of all inputs, one degree higher with each layer.

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l,    * element by element

x_0 holds the ids of candidate and request, the mean of the behaviours, and all numbers. The perceptron behind the
modules is the deep part, so a recipe with the embeddings beside it is the parallel form of the paper.

Legend: R requests, N candidates, L behaviours, D id width, I and U widths of embeddings, F and G of numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.attention import masked_mean
from ranker.modules.module import Module, Output, Widths


class Cross(Module):
    """The last layer x of a cross network.

    Args:
        widths: of the inputs.
        layers: highest degree of the polynomials, less one.
    """

    def __init__(self, widths: Widths, layers: int = 2) -> None:
        super().__init__()
        width = widths.item + widths.candidate_numbers + widths.user + widths.ids + widths.request_numbers
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.per_candidate = width

    def forward(
        self,
        item_RNI: Tensor,
        candidate_numbers_RNF: Tensor,
        user_RU: Tensor,
        history_RLD: Tensor,
        history_mask_RL: Tensor,
        request_numbers_RG: Tensor,
    ) -> Output:
        """x of the last layer, float32 [R, N, I + F + U + D + G]."""
        request = torch.cat([user_RU, masked_mean(history_RLD, history_mask_RL), request_numbers_RG], dim=-1)
        request = request[:, None].expand(-1, item_RNI.shape[1], -1)
        first = x = torch.cat([item_RNI, candidate_numbers_RNF, request], dim=-1)
        for layer in self.layers:
            x = first * layer(x) + x
        return Output(x)
