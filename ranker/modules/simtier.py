"""SimTier (Taobao display advertising, arXiv 2407.19467): how many behaviours are how alike the candidate.

    s_b = cos(r_t, r_b) in [-1, 1];    n_i = how many s_b lie in the i-th of N tiers of equal width
    output_i = w_i log(1 + n_i)

Tier i holds s with i < (s + 1) N / 2 <= i + 1, the lowest one -1 as well. Logarithm and weights w_i, drawn from [0,
1), are those of the code released with MUSE (arXiv 2512.07216); unlike there, padding and behaviours without a
vector are not counted. Cosines are computed in float32, cut to [-1, 1], and lowered by a hundredth of a per cent of
a tier: else rounding decides whether an item that is in the history is as alike as can be.

Legend: R requests, N candidates, L behaviours, V vector width, T tiers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.module import Module, Output, Widths

ROUNDING = 1e-4  # of a tier


def tiers(cosine_RNL: Tensor, counted: Tensor, count: int) -> Tensor:
    """How many behaviours lie in each tier, float32 [R, N, T].

    Args:
        cosine_RNL: similarities.
        counted: bool [R, 1, L] or [R, N, L], the behaviours that count, or numbers, how often each does.
        count: T.
    """
    scaled = (cosine_RNL.clamp(-1, 1) + 1) * (count / 2)
    tier = (scaled - ROUNDING).ceil().clamp(min=1).long() - 1
    requests, slots, _ = cosine_RNL.shape
    ones = counted.expand_as(cosine_RNL).to(cosine_RNL.dtype)
    return ones.new_zeros(requests, slots, count).scatter_add(2, tier, ones)


class SimTier(Module):
    """The histogram of similarities.

    Args:
        widths: of the inputs.
        count: of tiers.
    """

    def __init__(self, widths: Widths, count: int = 20) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.rand(count))
        self.per_candidate = count

    def forward(
        self,
        target_content_RNV: Tensor,
        history_content_RLV: Tensor,
        history_known_RL: Tensor,
        target_known_RN: Tensor,
    ) -> Output:
        """A weighted logarithm per tier, float32 [R, N, T]; zeros for a candidate without a vector."""
        cosine = target_content_RNV @ history_content_RLV.transpose(1, 2)
        counted = history_known_RL[:, None] & target_known_RN[..., None]
        return Output(self.weight * tiers(cosine, counted, self.count).log1p())
