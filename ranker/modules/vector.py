"""Vector concatenation: the content vectors as they are, the first way that was tried.

The baseline "Vector" of the SimTier paper (arXiv 2407.19467) gives the network the candidate's frozen vector; here
the mean of the behaviours' vectors and the query's stand beside it, so that the network could find their likeness.

Legend: R requests, N candidates, L behaviours, V vector width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ranker.modules.attention import masked_mean
from ranker.modules.module import Module, Output, Widths


class Vector(Module):
    """The vectors of candidate, history and query."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.per_candidate, self.per_request = widths.content, 2 * widths.content

    def forward(
        self,
        target_content_RNV: Tensor,
        history_content_RLV: Tensor,
        history_known_RL: Tensor,
        query_content_RV: Tensor,
    ) -> Output:
        """The candidate's vector [R, N, V]; mean of the behaviours' and the query's, [R, 2 V]."""
        mean = masked_mean(history_content_RLV, history_known_RL)
        return Output(target_content_RNV, torch.cat([mean, query_content_RV], dim=-1))
