"""Two stages over a long history (SIM, Qi, CIKM 2020): a search unit keeps behaviours, an exact one weighs them.

What the search unit left out has no weight at all. The exact unit computes on all behaviours and masks, which equals
gathering a short history for every candidate, and needs no copy of any.

Legend: R requests, N candidates, L behaviours, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.attention import alike, masked_softmax

TIE = 1e-5  # repeated behaviours differ by rounding alone


def nearest(score_RNL: Tensor, allowed_RL: Tensor, keep: int) -> Tensor:
    """The ``keep`` behaviours of the highest score, bool [R, N, L].

    Those that equal the last of them stay as well: an item met twice is kept twice or not at all, so that the answer
    depends on no order.

    Args:
        score_RNL: of every behaviour for every candidate.
        allowed_RL: bool, those among which is searched.
        keep: how many; fewer are kept where fewer are allowed.
    """
    allowed = allowed_RL[:, None].expand_as(score_RNL)
    if score_RNL.shape[-1] <= keep:
        return allowed
    score = score_RNL.detach().masked_fill(~allowed, torch.finfo(score_RNL.dtype).min)
    return allowed & (score >= score.topk(keep, dim=-1).values[..., -1:] - TIE)


class ExactSearch(nn.Module):
    """Target attention with several heads over what a search unit kept.

    Args:
        width: D.
        heads: H, which divides D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = alike(width), alike(width)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, target_RND: Tensor, history_RLD: Tensor, kept_RNL: Tensor) -> Tensor:
        """The interest of each request in the light of each candidate, float32 [R, N, D]."""
        query, key, value = (
            layer(one).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, one in ((self.query, target_RND), (self.key, history_RLD), (self.value, history_RLD))
        )
        score = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
        weight = masked_softmax(score, kept_RNL[:, None])
        return (weight @ value).transpose(1, 2).flatten(2)
