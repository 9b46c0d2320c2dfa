"""MUSE (Taobao display advertising, arXiv 2512.07216): search by content, then SimTier and SA-TA.

    kept = the ``keep`` behaviours of the largest cosine of content vectors
    output = SimTier over all behaviours, SimTier over kept, SA-TA over kept

The paper keeps 50 of up to 100,000 behaviours and takes both histograms of its short and its searched sequence.

Legend: R requests, N candidates, L behaviours, D id width, V vector width, T tiers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.module import Module, Output, Widths
from ranker.modules.sata import SemanticAttention
from ranker.modules.search import is_sparse, listed, nearest
from ranker.modules.simtier import tiers


class Muse(Module):
    """Interest and histograms over the behaviours most alike by content.

    Args:
        widths: of the inputs.
        keep: behaviours that the search unit keeps.
        count: of tiers.
    """

    def __init__(self, widths: Widths, keep: int = 15, count: int = 20) -> None:
        super().__init__()
        self.keep, self.count = keep, count
        self.attention = SemanticAttention(widths.ids)
        self.weight = nn.Parameter(torch.rand(2 * count))
        self.per_candidate = 2 * widths.ids + 2 * count

    def forward(
        self,
        target_RND: Tensor,
        history_RLD: Tensor,
        target_content_RNV: Tensor,
        history_content_RLV: Tensor,
        history_known_RL: Tensor,
        target_known_RN: Tensor,
    ) -> Output:
        """Interest, interest x target and two weighted histograms, float32 [R, N, 2 D + 2 T]."""
        cosine = target_content_RNV @ history_content_RLV.transpose(1, 2)
        kept = nearest(cosine, history_known_RL, self.keep)
        if is_sparse(kept):
            interest = self.attention.of_listed(target_RND, history_RLD, cosine, listed(kept))
        else:
            interest = self.attention(target_RND, history_RLD, cosine, kept)
        known = target_known_RN[..., None]
        every, near = (tiers(cosine, one & known, self.count) for one in (history_known_RL[:, None], kept))
        counts = self.weight * torch.cat([every, near], dim=-1).log1p()
        return Output(torch.cat([interest, interest * target_RND, counts], dim=-1))
