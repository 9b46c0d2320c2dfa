"""SIM (search-based interest model, Qi, CIKM 2020), hard and soft.

    hard: kept = the behaviours whose item is of the candidate's category
    soft: kept = the ``keep`` behaviours of the largest cosine of content vectors
    interest = multi-head target attention over what was kept

SIM's own soft search compares embeddings of ids that it trained; frozen content vectors in their place are the search
unit that the MUSE paper calls SIM-soft (arXiv 2512.07216), and they serve items that nobody has met.

Legend: R requests, N candidates, L behaviours, D id width, V vector width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ranker.modules.module import Module, Output, Widths
from ranker.modules.search import ExactSearch, nearest


class SimHard(Module):
    """Interest among the behaviours of the candidate's category, and how many there are.

    Args:
        widths: of the inputs.
        heads: of the exact unit.
    """

    def __init__(self, widths: Widths, heads: int = 2) -> None:
        super().__init__()
        self.exact = ExactSearch(widths.ids, heads)
        self.per_candidate = 2 * widths.ids + 1

    def forward(
        self, target_RND: Tensor, history_RLD: Tensor, history_mask_RL: Tensor, same_category_RNL: Tensor
    ) -> Output:
        """Interest, interest x target, and the logarithm of how many were kept, float32 [R, N, 2 D + 1]."""
        return _searched(self.exact, target_RND, history_RLD, same_category_RNL & history_mask_RL[:, None])


class SimSoft(Module):
    """Interest among the behaviours most alike by content.

    Args:
        widths: of the inputs.
        keep: behaviours that the search unit keeps.
        heads: of the exact unit.
    """

    def __init__(self, widths: Widths, keep: int = 15, heads: int = 2) -> None:
        super().__init__()
        self.keep = keep
        self.exact = ExactSearch(widths.ids, heads)
        self.per_candidate = 2 * widths.ids + 1

    def forward(
        self,
        target_RND: Tensor,
        history_RLD: Tensor,
        target_content_RNV: Tensor,
        history_content_RLV: Tensor,
        history_known_RL: Tensor,
    ) -> Output:
        """Interest, interest x target, and the logarithm of how many were kept, float32 [R, N, 2 D + 1]."""
        cosine = target_content_RNV @ history_content_RLV.transpose(1, 2)
        return _searched(self.exact, target_RND, history_RLD, nearest(cosine, history_known_RL, self.keep))


def _searched(exact: ExactSearch, target_RND: Tensor, history_RLD: Tensor, kept_RNL: Tensor) -> Output:
    interest = exact(target_RND, history_RLD, kept_RNL)
    count = kept_RNL.to(interest.dtype).sum(-1, keepdim=True).log1p()
    return Output(torch.cat([interest, interest * target_RND, count], dim=-1))
