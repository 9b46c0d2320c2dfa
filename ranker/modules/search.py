"""Two stages over a long history (SIM, Qi, CIKM 2020): a search unit keeps behaviours, an exact one weighs them.

What the search unit left out has no weight at all. Of a long history, the exact unit computes on what was kept alone;
of a short one on all behaviours, which it masks: the same answer without a copy.

Legend: R requests, N candidates, L behaviours, K kept behaviours, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ranker.modules.attention import alike, masked_softmax

TIE = 1e-5  # repeated behaviours differ by rounding alone
SHORT = 256  # behaviours up to which masking costs less than gathering
SPARSE = 16  # of longer histories, one in so many may be kept for a candidate


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


class Kept(NamedTuple):
    """The kept behaviours of each candidate as a list.

    Attributes:
        place_RNK: int64, their places in the history, ascending.
        real_RNK: bool, false behind the last one.
    """

    place_RNK: Tensor
    real_RNK: Tensor

    def of(self, values_RLD: Tensor) -> Tensor:
        """Their values, [R, N, K, D]; behind the last one anything."""
        requests, memory = values_RLD.shape[:2]
        first = torch.arange(0, requests * memory, memory, device=self.place_RNK.device)[:, None, None]
        rows = (self.place_RNK + first).flatten()
        return values_RLD.flatten(0, 1).index_select(0, rows).unflatten(0, self.place_RNK.shape)


def is_sparse(kept_RNL: Tensor) -> bool:
    """Whether listing what is kept costs less than masking the rest."""
    memory = kept_RNL.shape[-1]
    return memory > SHORT and float(kept_RNL.float().sum(-1).max()) * SPARSE <= memory


def listed(kept_RNL: Tensor) -> Kept:
    """A mask as lists, K the longest of them, at least one."""
    requests, slots, memory = kept_RNL.shape
    found = kept_RNL.flatten().nonzero()[:, 0]
    owner = found // memory
    count = owner.bincount(minlength=requests * slots)
    column = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    width = max(int(count.max()), 1)
    place = owner.new_zeros(requests * slots, width)
    place[owner, column] = found % memory
    real = torch.arange(width, device=owner.device) < count[:, None]
    return Kept(place.view(requests, slots, width), real.view(requests, slots, width))


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
        if is_sparse(kept_RNL):
            return self.of_listed(target_RND, history_RLD, listed(kept_RNL))
        query, key, value = (
            layer(one).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, one in ((self.query, target_RND), (self.key, history_RLD), (self.value, history_RLD))
        )
        score = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
        weight = masked_softmax(score, kept_RNL[:, None])
        return (weight @ value).transpose(1, 2).flatten(2)

    def of_listed(self, target_RND: Tensor, history_RLD: Tensor, kept: Kept) -> Tensor:
        """The same of a list."""
        query = self.query(target_RND).unflatten(-1, (self.heads, -1))
        key, value = (
            kept.of(layer(history_RLD)).unflatten(-1, (self.heads, -1)) for layer in (self.key, self.value)
        )
        score_RNKH = (key * query[:, :, None]).sum(-1) / key.shape[-1] ** 0.5
        weight = masked_softmax(score_RNKH.transpose(2, 3), kept.real_RNK[:, :, None])
        return torch.einsum("rnhk,rnkhd->rnhd", weight, value).flatten(2)
