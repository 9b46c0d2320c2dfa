"""TWIN-like interest (two-stage interest network, Chang, KDD 2023): both stages measure relevance alike.

    a = (K_h W_h) (q W_q)^T / sqrt(D) + (K_c W_c)
    kept = the ``keep`` behaviours of the largest a;    interest = softmax(a over kept) K_h W_v

K_h is what a behaviour's item is, which can be computed once for all users; K_c what this behaviour was (its kind,
how long ago), which enters as one number, so that searching costs no product of its own. The same weights search and
weigh: what the exact unit would like, the search unit finds. Like, not equal: the paper's four heads are one here,
and its 10,000 behaviours our history.

Legend: R requests, N candidates, L behaviours, D id width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.attention import alike, masked_softmax
from ranker.modules.module import Module, Output, Widths
from ranker.modules.nearest import at_places, nearest


class Twin(Module):
    """Interest over the behaviours that its own attention ranks first.

    Args:
        widths: of the inputs.
        keep: behaviours that the search unit keeps.
    """

    def __init__(self, widths: Widths, keep: int = 15) -> None:
        super().__init__()
        self.keep = keep
        self.query, self.key = alike(widths.ids), alike(widths.ids)
        self.value = nn.Linear(widths.ids, widths.ids, bias=False)
        self.cross = nn.Linear(widths.ids, 1, bias=False)
        self.per_candidate = 2 * widths.ids

    def forward(
        self, target_RND: Tensor, behaved_RLD: Tensor, history_RLD: Tensor, history_mask_RL: Tensor
    ) -> Output:
        """Interest and interest x target, float32 [R, N, 2 D]."""
        asked = self.query(target_RND) @ self.key.weight / behaved_RLD.shape[-1] ** 0.5
        was = self.cross(history_RLD - behaved_RLD)
        one = was.new_ones(*asked.shape[:2], 1)
        query, key = torch.cat([asked, one], dim=-1), torch.cat([behaved_RLD, was], dim=-1)
        found = nearest(query, key, history_mask_RL, self.keep)
        kept = at_places(key, found.place_RNK)
        score = (kept @ query[..., None])[..., 0]
        summed = masked_softmax(score, found.real_RNK)[:, :, None] @ kept[..., :-1]
        interest = self.value(summed[:, :, 0])
        return Output(torch.cat([interest, interest * target_RND], dim=-1))
