"""Target attention: which behaviours of a history matter for a candidate.

Grouped form: a history is projected once per request and all its candidates attend to it in one matrix
product, instead of repeating the history for every candidate.

Legend: R requests, N candidates, L behaviours, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def masked_softmax(score_RNL: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed behaviours; all zeros where there is none, never NaN.

    Args:
        score_RNL: of every behaviour for every candidate.
        allowed: bool [R, 1, L] or [R, N, L].
    """
    # Added, not filled in: a mask that broadcasts is filled in several times slower, and again in backward. Half of
    # the least number, which no score makes infinite.
    barred = (~allowed).to(score_RNL.dtype) * (torch.finfo(score_RNL.dtype).min / 2)
    return torch.softmax(score_RNL + barred, dim=-1) * allowed


def masked_mean(values_RLD: Tensor, allowed_RL: Tensor) -> Tensor:
    """Mean over the allowed behaviours, [R, D]; zeros where a request has none."""
    count = allowed_RL.sum(1, keepdim=True).clamp(min=1)
    return (values_RLD * allowed_RL[..., None]).sum(1) / count


def alike(width: int) -> nn.Linear:
    """A projection of queries or keys that begins as the identity: what is alike attracts from the first step."""
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer


class TargetAttention(nn.Module):
    """Cross-attention, query = candidate, keys = values = behaviours (DIN, KDD 2018, in dot form).

    Args:
        width: D of candidates and behaviours.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = alike(width), alike(width)

    def forward(self, target_RND: Tensor, history_RLD: Tensor, allowed_RL: Tensor) -> Tensor:
        """The interest of each request in the light of each candidate, float32 [R, N, D].

        Args:
            target_RND: candidate embeddings.
            history_RLD: behaviour embeddings.
            allowed_RL: bool, real behaviours.
        """
        score = self.query(target_RND) @ self.key(history_RLD).transpose(1, 2)
        return masked_softmax(score / history_RLD.shape[-1] ** 0.5, allowed_RL[:, None]) @ history_RLD
