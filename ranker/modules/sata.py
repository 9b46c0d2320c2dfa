"""SA-TA, semantic-aware target attention (MUSE, arXiv 2512.07216).

    a_id = (E W_k) (e_t W_q)^T / sqrt(D);    R = cos(r_t, r_b)
    a = g1 a_id + g2 R + g3 (a_id * R);      interest = softmax(a) (E W_v)

so that content decides where ids know nothing, and strengthens or weakens what ids say. The released code divides the
cosine by .1 and has g = 1 to begin with: here that is g2 = g3 = 10. Where a vector is unknown the cosine is 0.

Legend: R requests, N candidates, L behaviours, D id width, V vector width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.attention import alike, masked_softmax
from ranker.modules.module import Module, Output, Widths


class SemanticAttention(nn.Module):
    """Target attention whose scores know the cosine of content.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = alike(width), alike(width)
        self.value = nn.Linear(width, width, bias=False)
        self.mix = nn.Parameter(torch.tensor([1.0, 10.0, 10.0]))

    def forward(self, target_RND: Tensor, history_RLD: Tensor, cosine_RNL: Tensor, allowed: Tensor) -> Tensor:
        """Interest, float32 [R, N, D]; ``allowed`` bool [R, 1, L] or [R, N, L]."""
        alike = self.query(target_RND) @ self.key(history_RLD).transpose(1, 2) / history_RLD.shape[-1] ** 0.5
        return masked_softmax(self._score(alike, cosine_RNL), allowed) @ self.value(history_RLD)

    def of_found(
        self, target_RND: Tensor, found_RNKD: Tensor, cosine_RNK: Tensor, found_mask_RNK: Tensor
    ) -> Tensor:
        """Interest where each candidate has behaviours of its own, [R, N, D]; keys and values as in ``sim``."""
        asked = self.query(target_RND) @ self.key.weight
        alike = (found_RNKD @ asked[..., None])[..., 0] / found_RNKD.shape[-1] ** 0.5
        weight = masked_softmax(self._score(alike, cosine_RNK), found_mask_RNK)
        return self.value((weight[:, :, None] @ found_RNKD)[:, :, 0])

    def _score(self, alike: Tensor, cosine: Tensor) -> Tensor:
        by_id, by_content, both = self.mix
        return by_id * alike + by_content * cosine + both * alike * cosine


class SaTa(Module):
    """Interest by ids and content together."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.attention = SemanticAttention(widths.ids)
        self.per_candidate = 2 * widths.ids

    def forward(
        self,
        target_RND: Tensor,
        history_RLD: Tensor,
        history_mask_RL: Tensor,
        target_content_RNV: Tensor,
        history_content_RLV: Tensor,
    ) -> Output:
        """Interest and interest x target, float32 [R, N, 2 D]."""
        cosine = target_content_RNV @ history_content_RLV.transpose(1, 2)
        interest = self.attention(target_RND, history_RLD, cosine, history_mask_RL[:, None])
        return Output(torch.cat([interest, interest * target_RND], dim=-1))
