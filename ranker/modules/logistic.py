"""Logistic regression (LR): a weight for each id and each number, the plainest click model.

    logit = w_item . item + w_user . user + w . numbers + b

An id's weight is a learned direction of its embedding.

Legend: R requests, N candidates, I and U widths of their embeddings, F and G of their numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.module import Module, Output, Widths


class Logistic(Module):
    """One logit, linear in ids and numbers."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.candidate = nn.Linear(widths.item + widths.candidate_numbers, 1)
        self.request = nn.Linear(widths.user + widths.request_numbers, 1, bias=False)
        self.per_candidate = 1

    def forward(
        self, item_RNI: Tensor, user_RU: Tensor, candidate_numbers_RNF: Tensor, request_numbers_RG: Tensor
    ) -> Output:
        """The logit of each candidate, float32 [R, N, 1]."""
        candidate = self.candidate(torch.cat([item_RNI, candidate_numbers_RNF], dim=-1))
        request = self.request(torch.cat([user_RU, request_numbers_RG], dim=-1))
        return Output(candidate + request[:, None])
