"""Numbers: statistics, price, age and match scores, and whether something was searched for."""

from __future__ import annotations

import torch
from torch import Tensor

from ranker.modules.module import Module, Output, Widths


class Numbers(Module):
    """The standardised numbers of candidate and request, as they are."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.per_candidate, self.per_request = widths.candidate_numbers, widths.request_numbers + 1

    def forward(
        self, candidate_numbers_RNF: Tensor, request_numbers_RG: Tensor, query_known_R: Tensor
    ) -> Output:
        """The numbers, and 1 for a search: searchers click more, which the controls may know, too."""
        searched = query_known_R[:, None].float()
        return Output(candidate_numbers_RNF, torch.cat([request_numbers_RG, searched], dim=1))
