"""Quantised codes trained end to end (QARM, Kuaishou, arXiv 2411.11739).

    RQ: c_1(r) = nearest centre of level 1 to r, c_2(r) = nearest centre of level 2 to what is left, ...
    VQ: the ``near`` items most alike r among a sample of the training items
    q(r) = sum over levels of E_l[c_l(r)] + mean over near items of E_0[item]

A frozen vector tells little to a model of ids; its codes are ids again, whose embeddings E learn from clicks. The
centres are found by k-means over the vectors of the training items, each level over what the levels before left
(``learn``), and stay. q serves as an item's feature, over the behaviours by target attention, and crossed: the
product of both, and the share of behaviours that have the candidate's code of the first level.

Legend: R requests, N candidates, L behaviours, D id width, V vector width, J levels, C centres, S sampled items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.modules.attention import TargetAttention
from ranker.modules.module import Module, Output, Widths

SPREAD = 0.01  # of initial embeddings: those of ids begin so as well


class Codes(Module):
    """Embeddings of an item's codes.

    Args:
        widths: of the inputs.
        levels: J of the residual codes; the paper has 6.
        centres: C of each level.
        sample: S.
        near: of the sampled items; the paper has 25.
    """

    def __init__(
        self, widths: Widths, levels: int = 4, centres: int = 64, sample: int = 256, near: int = 25
    ) -> None:
        super().__init__()
        self.near = near
        drawn = torch.randn(levels, centres, widths.content) / widths.content**0.5
        self.centres = nn.Parameter(drawn, requires_grad=False)
        items = nn.functional.normalize(torch.randn(sample, widths.content), dim=-1)
        self.items = nn.Parameter(items, requires_grad=False)
        self.of_level = nn.ModuleList(nn.Embedding(centres, widths.ids) for _ in range(levels))
        self.of_item = nn.Embedding(sample, widths.ids)
        for table in (*self.of_level, self.of_item):
            nn.init.uniform_(table.weight, -SPREAD, SPREAD)
        self.attention = TargetAttention(widths.ids)
        self.per_candidate = 3 * widths.ids + 1

    def learn(self, content_MV: Tensor, seed: int) -> None:
        """Draw the sample, and find the centres level by level; those that too few vectors leave over are zeros."""
        from sklearn.cluster import KMeans  # a second to import, which a service need not wait for

        left = content_MV.unique(dim=0)  # equal vectors would stand in each other's way
        drawn = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(left), generator=drawn)[: len(self.items)]
        self.items.zero_()[: len(chosen)] = left[chosen]
        for centres in self.centres:
            count = min(len(centres), len(left.unique(dim=0)))
            means = KMeans(count, n_init=1, random_state=seed).fit(left.numpy()).cluster_centers_
            centres.zero_()[:count] = torch.from_numpy(means)
            left = left - centres[nearest_centre(left, centres)]

    def forward(
        self,
        target_content_RNV: Tensor,
        target_known_RN: Tensor,
        history_content_RLV: Tensor,
        history_known_RL: Tensor,
    ) -> Output:
        """q of the candidate, interest over q of the behaviours, their product, shared codes: [R, N, 3 D + 1]."""
        target, first = self._embedded(target_content_RNV, target_known_RN)
        history, behaved = self._embedded(history_content_RLV, history_known_RL)
        interest = self.attention(target, history, history_known_RL)
        same = (first[:, :, None] == behaved[:, None]) & history_known_RL[:, None]
        share = same.sum(-1) * target_known_RN / history_known_RL.sum(-1, keepdim=True).clamp(min=1)
        return Output(torch.cat([target, interest, target * interest, share[..., None]], dim=-1))

    def _embedded(self, content: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """q, zeros where unknown, and the code of the first level."""
        with torch.no_grad():
            codes, left = [], content
            for centres in self.centres:
                codes.append(nearest_centre(left, centres))
                left = left - centres[codes[-1]]
            near = (content @ self.items.T).topk(min(self.near, len(self.items)), dim=-1).indices
        levels = sum(table(code) for table, code in zip(self.of_level, codes, strict=True))
        return (levels + self.of_item(near).mean(-2)) * known[..., None], codes[0]


def nearest_centre(vectors: Tensor, centres: Tensor) -> Tensor:
    """Which centre is nearest by Euclidean distance, int64 [...].

    Args:
        vectors: float32 [..., V].
        centres: float32 [C, V].
    """
    return (vectors @ centres.T - 0.5 * centres.square().sum(-1)).argmax(-1)
