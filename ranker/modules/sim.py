"""SIM (search-based interest model, Qi, CIKM 2020): attention to what a search found in a long history.

    hard: found = the latest behaviours whose item is of the candidate's category
    soft: found = the behaviours of the largest cosine of content vectors
    interest = multi-head target attention over what was found

The search itself is the recipe's. SIM's own soft search compares embeddings of ids that it trained; frozen content
vectors in their place are the search unit that the MUSE paper calls SIM-soft (arXiv 2512.07216), and they serve items
that nobody has met. As scores are products, keys are projected on the side of the queries, and values once they are
summed up: (W_q t) (W_k f) = (W_k^T W_q t) f, so that no projection is computed of every found behaviour.

Legend: R requests, N candidates, K found behaviours, D id width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ranker.modules.attention import alike, masked_softmax
from ranker.modules.module import Module, Output, Widths


class Sim(Module):
    """Interest among the behaviours that were found, and how many matched.

    Args:
        widths: of the inputs.
        heads: of the attention; they divide D.
    """

    def __init__(self, widths: Widths, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = alike(widths.ids), alike(widths.ids)
        self.value = torch.nn.Linear(widths.ids, widths.ids, bias=False)
        self.per_candidate = 2 * widths.ids + 1

    def forward(
        self, target_RND: Tensor, found_RNKD: Tensor, found_mask_RNK: Tensor, found_count_RN: Tensor
    ) -> Output:
        """Interest, interest x target, and the logarithm of how many matched, float32 [R, N, 2 D + 1]."""
        key, value = (layer.weight.unflatten(0, (self.heads, -1)) for layer in (self.key, self.value))
        asked = torch.einsum("rnhd,hde->rnhe", self.query(target_RND).unflatten(-1, (self.heads, -1)), key)
        score = asked @ found_RNKD.transpose(2, 3) / key.shape[1] ** 0.5
        summed = masked_softmax(score, found_mask_RNK[:, :, None]) @ found_RNKD
        interest = torch.einsum("rnhe,hde->rnhd", summed, value).flatten(2)
        count = found_count_RN.to(interest.dtype).log1p()[..., None]
        return Output(torch.cat([interest, interest * target_RND, count], dim=-1))
