"""Interest by id: how well a candidate fits the history and the profile."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.attention import TargetAttention
from ranker.modules.module import Module, Output, Widths


class Interest(Module):
    """Target attention over the behaviours, and the affinity of a profile to an item: two projected products."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.item_mix = nn.Linear(widths.item, widths.ids)
        self.user_mix = nn.Linear(widths.user, widths.ids)
        self.attention = TargetAttention(widths.ids)
        self.per_candidate = 3 * widths.ids

    def forward(
        self,
        target_RND: Tensor,
        item_RNI: Tensor,
        user_RU: Tensor,
        history_RLD: Tensor,
        history_mask_RL: Tensor,
    ) -> Output:
        """Interest, interest x target and affinity, side by side."""
        interest = self.attention(target_RND, history_RLD, history_mask_RL)
        affinity = self.user_mix(user_RU)[:, None] * self.item_mix(item_RNI)
        return Output(torch.cat([interest, interest * target_RND, affinity], dim=-1))
