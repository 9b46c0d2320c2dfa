"""CUBE, the content-based user behaviour extractor (MOON, arXiv 2511.11305, figure 5).

Content similarity between a candidate and the user's behaviours weighs both the id embeddings and the content
vectors of those behaviours.

Legend: R requests, N candidates, L behaviours, K most behaviours, D id width, V vector width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranker.modules.attention import masked_softmax
from ranker.modules.module import Module, Output, Widths

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Content:
    """Frozen multimodal vectors of a batch, unit norm, zeros where unknown.

    Attributes:
        target_RNV: of the candidates, r_t.
        history_RLV: of the behaviours, r_b.
        history_known_RL: bool, behaviours that have a vector.
        query_RV: of the query, r_q.
        query_known_R: bool, requests that have one.
    """

    target_RNV: Tensor
    history_RLV: Tensor
    history_known_RL: Tensor
    query_RV: Tensor
    query_known_R: Tensor


@dataclass(frozen=True)
class Branches:
    """The content branches of CUBE (the id branches are id embeddings and target attention).

    Attributes:
        similarity_RNK: {s_b}, s_b = cos(r_b, r_t), last slot newest, zeros where unknown.
        summary_RN3: softmax-weighted, mean and largest s_b.
        fusion_RND: fusion-interest, sum of w(s_b) e_b.
        content_RNV: content-interest, sum of w(s_b) r_b.
        target_RNV: r_t.
        query_target_RN1: cos(r_t, r_q), 0 without a query.
        query_RV: r_q, zeros without a query.
        query_behaviour_RK: cos(r_q, r_b), zeros without a query.
    """

    similarity_RNK: Tensor
    summary_RN3: Tensor
    fusion_RND: Tensor
    content_RNV: Tensor
    target_RNV: Tensor
    query_target_RN1: Tensor
    query_RV: Tensor
    query_behaviour_RK: Tensor


class Extractor(nn.Module):
    """The branches of CUBE, in the paper's terms.

    The figure does not show what w is; here w = softmax(s / temperature) with a learned temperature over the
    behaviours that have a vector (our inference). cos(r_q, r_b) and the summaries of {s_b} are our reading of
    "interaction between any modality". A candidate without a vector has s_b = 0: its interests are means.

    Args:
        history: K.
    """

    def __init__(self, history: int) -> None:
        super().__init__()
        self.history = history
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE)))

    def forward(self, content: Content, history_RLD: Tensor) -> Branches:
        """All branches of a batch.

        Args:
            content: the batch's vectors.
            history_RLD: id embeddings of the behaviours, e_b.
        """
        known = content.history_known_RL
        query = content.query_RV * content.query_known_R[:, None]
        # In one product, since one with a single row takes as long as one with ten.
        both = torch.cat([content.target_RNV, query[:, None]], dim=1) @ content.history_RLV.transpose(1, 2)
        similarity, asked = both[:, :-1], both[:, -1]
        weight = masked_softmax(similarity / self.log_temperature.exp(), known[:, None])
        missing = self.history - similarity.shape[-1]
        return Branches(
            similarity_RNK=functional.pad(similarity, (missing, 0)),
            summary_RN3=_summary(similarity, weight, known),
            fusion_RND=weight @ history_RLD,
            content_RNV=weight @ content.history_RLV,
            target_RNV=content.target_RNV,
            query_target_RN1=content.target_RNV @ query[:, :, None],
            query_RV=query,
            query_behaviour_RK=functional.pad(asked, (missing, 0)),
        )


class Cube(Module):
    """The content side of CUBE as a ranker module: its branches, projected and multiplied."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        width = 2 * widths.ids
        self.extractor = Extractor(widths.history)
        self.content_mix = nn.Linear(widths.content, width)
        self.per_candidate = widths.history + 3 + 2 * widths.ids + 3 * width + 2
        self.per_request = width + widths.history

    def forward(
        self,
        target_RND: Tensor,
        history_RLD: Tensor,
        target_content_RNV: Tensor,
        target_known_RN: Tensor,
        history_content_RLV: Tensor,
        history_known_RL: Tensor,
        query_content_RV: Tensor,
        query_known_R: Tensor,
    ) -> Output:
        """All branches side by side; content enters projected, its interest also times the candidate's own."""
        content = Content(
            target_content_RNV, history_content_RLV, history_known_RL, query_content_RV, query_known_R
        )
        branch = self.extractor(content, history_RLD)
        liked, item = self.content_mix(branch.content_RNV), self.content_mix(branch.target_RNV)
        candidate = [
            branch.similarity_RNK,
            branch.summary_RN3,
            branch.fusion_RND,
            branch.fusion_RND * target_RND,
            liked,
            item,
            liked * item,
            branch.query_target_RN1,
            target_known_RN[..., None].float(),
        ]
        query = self.content_mix(branch.query_RV) * query_known_R[:, None].float()
        return Output(torch.cat(candidate, dim=-1), torch.cat([query, branch.query_behaviour_RK], dim=1))


def _summary(similarity_RNL: Tensor, weight_RNL: Tensor, known_RL: Tensor) -> Tensor:
    weighted = (weight_RNL * similarity_RNL).sum(-1)
    mean = similarity_RNL.sum(-1) / known_RL.sum(1).clamp(min=1)[:, None]
    largest = (similarity_RNL - (~known_RL).float()[:, None]).amax(-1)  # 0 - 1 where unknown
    return torch.stack([weighted, mean, largest * known_RL.any(1)[:, None]], dim=-1)
