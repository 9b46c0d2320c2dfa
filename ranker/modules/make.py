"""MAKE, multimodal knowledge extractor (Taobao display advertising, arXiv 2407.19467).

    v = sum over behaviours of a(r_t, r_b) r_b          a: DIN's perceptron, on content vectors
    h = MLP([v, r_t, v * r_t]);    logit = w . h
    output = [v, h, logit]

A model of ids over-fits after an epoch, one of content needs several: so this module first trains alone, as a click
model of its own, and then with all others.

Legend: R requests, N candidates, L behaviours, V vector width, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.din import PairWeights
from ranker.modules.module import Module, Output, Widths


class Make(Module):
    """A click model of content vectors alone, all of whose layers are given on.

    Args:
        widths: of the inputs.
        hidden: width of the attention's first hidden layer, and of h.
        pretraining: epochs that it trains alone.
    """

    def __init__(self, widths: Widths, hidden: int = 32, pretraining: int = 4) -> None:
        super().__init__()
        self.pretraining = pretraining
        self.weights = PairWeights(widths.content, hidden)
        self.hidden = nn.Sequential(
            nn.Linear(3 * widths.content, 2 * hidden), nn.PReLU(), nn.Linear(2 * hidden, hidden), nn.PReLU()
        )
        self.logit = nn.Linear(hidden, 1)
        self.per_candidate = widths.content + hidden + 1

    def forward(
        self, target_content_RNV: Tensor, history_content_RLV: Tensor, history_known_RL: Tensor
    ) -> Output:
        """v, h and the logit, float32 [R, N, V + H + 1]."""
        weight = self.weights(target_content_RNV, history_content_RLV, history_known_RL)
        interest = weight @ history_content_RLV
        hidden = self.hidden(torch.cat([interest, target_content_RNV, interest * target_content_RNV], dim=-1))
        return Output(torch.cat([interest, hidden, self.logit(hidden)], dim=-1))
