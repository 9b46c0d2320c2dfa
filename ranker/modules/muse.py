"""MUSE (Taobao display advertising, arXiv 2512.07216): SA-TA and SimTier over what a search by content found.

    found = the behaviours of the largest cosine of content vectors
    output = SA-TA over found, SimTier over found

SimTier counts every behaviour on an item that was found. The paper finds 50 of up to 100,000 behaviours, and takes
both histograms of its short and its found sequence: the recipe has ``SimTier`` beside this module for the short one.

Legend: R requests, N candidates, K found behaviours, D id width, T tiers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.module import Module, Output, Widths
from ranker.modules.sata import SemanticAttention
from ranker.modules.simtier import tiers


class Muse(Module):
    """Interest and histogram over the behaviours that were found.

    Args:
        widths: of the inputs.
        count: of tiers.
    """

    def __init__(self, widths: Widths, count: int = 20) -> None:
        super().__init__()
        self.count = count
        self.attention = SemanticAttention(widths.ids)
        self.weight = nn.Parameter(torch.rand(count))
        self.per_candidate = 2 * widths.ids + count

    def forward(
        self,
        target_RND: Tensor,
        found_RNKD: Tensor,
        found_cosine_RNK: Tensor,
        found_mask_RNK: Tensor,
        found_times_RNK: Tensor,
    ) -> Output:
        """Interest, interest x target and a weighted histogram, float32 [R, N, 2 D + T]."""
        interest = self.attention.of_found(target_RND, found_RNKD, found_cosine_RNK, found_mask_RNK)
        counts = self.weight * tiers(found_cosine_RNK, found_times_RNK, self.count).log1p()
        return Output(torch.cat([interest, interest * target_RND, counts], dim=-1))
