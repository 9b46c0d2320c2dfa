"""Two towers: users and items are embedded in one space, so retrieval is a nearest-neighbour search.

Legend: R requests, M items, L behaviours, D id width, V vector width, E tower width (2 D).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec import KeyedJaggedTensor

from ranker.inputs.id_tables import collection, lookup

TEMPERATURE = 0.07
LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class UserSide:
    """R requests as the user tower reads them; padded as in ``ranker.inputs.batch``.

    Attributes:
        requests: a key per feature of the user, query or request that enters as ids, R rows.
        behaviours: keys ``code``, ``age`` and those of the behaviours' features that enter as ids, R·L slots.
        behaviour_numbers: float32 [R, L, B].
        numbers: float32 [R, F].
        history_mask: bool [R, L].
        history_content: float32 [R, L, V].
        query_content: float32 [R, V], zeros without a query.
    """

    requests: KeyedJaggedTensor
    behaviours: KeyedJaggedTensor
    behaviour_numbers: Tensor
    numbers: Tensor
    history_mask: Tensor
    history_content: Tensor
    query_content: Tensor


@dataclass(frozen=True)
class ItemSide:
    """M items as the item tower reads them.

    Attributes:
        candidates: a key per feature that enters as ids, M rows.
        numbers: float32 [M, G].
        content: float32 [M, V], zeros where unknown.
    """

    candidates: KeyedJaggedTensor
    numbers: Tensor
    content: Tensor


@dataclass(frozen=True)
class TowerShape:
    """Everything that fixes the two towers' tensors.

    Attributes:
        item_rows, candidate_rows, request_rows, behaviour_rows: rows of the id tables, by name.
        id_width: D.
        content_width: V; 0: id-only.
        request_numbers: F, how many numbers a request has.
        behaviour_numbers: B, how many a behaviour has.
        item_numbers: G, how many an item has.
        id_dropout: fraction of items whose id is hidden in training, so that content carries cold items.
        table_learning_rate: of the tables' row-wise Adagrad.
    """

    item_rows: Mapping[str, int]
    candidate_rows: Mapping[str, int]
    request_rows: Mapping[str, int]
    behaviour_rows: Mapping[str, int]
    id_width: int
    content_width: int
    request_numbers: int
    behaviour_numbers: int
    item_numbers: int
    id_dropout: float
    table_learning_rate: float


class TwoTowerModel(nn.Module):
    """The network; ids of both towers come from one item table, looked up once per batch."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        ids, rate = shape.id_width, shape.table_learning_rate
        self.width = 2 * ids
        self.id_dropout = shape.id_dropout
        self.items = collection(shape.item_rows, self.width, rate)
        self.candidates = collection(shape.candidate_rows, self.width, rate)
        self.requests = collection(shape.request_rows, self.width, rate)
        self.behaviours = collection(shape.behaviour_rows, self.width, rate)
        self.content = nn.Linear(shape.content_width, self.width, bias=False) if shape.content_width else None
        self.item_numbers = (
            nn.Linear(shape.item_numbers, self.width, bias=False) if shape.item_numbers else None
        )
        if self.item_numbers is not None:
            nn.init.zeros_(
                self.item_numbers.weight
            )  # like an untrained id, an untrained number has no effect
        self.behaviour_numbers = (
            nn.Linear(shape.behaviour_numbers, self.width, bias=False) if shape.behaviour_numbers else None
        )
        self.attend = nn.Parameter(torch.zeros(self.width))
        self.recency = nn.Linear(self.width, 1, bias=False)
        context = self.width * (2 + len(shape.request_rows)) + shape.request_numbers
        self.user_mix = nn.Sequential(
            nn.Linear(context, 2 * self.width), nn.SiLU(), nn.Linear(2 * self.width, self.width)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def item_ids(self, ids: KeyedJaggedTensor) -> Tensor:
        """Id embeddings, float32 [bags, E], some hidden while training."""
        found = lookup(self.items, ids)
        if self.training and self.id_dropout:
            found = found * (torch.rand(len(found), 1) >= self.id_dropout)
        return found

    def user(self, side: UserSide, behaved_RLE: Tensor) -> Tensor:
        """User vectors, float32 [R, E], unit norm.

        A history is pooled by attention over what the items are, how long ago they were seen and what was known of
        them then; the pooled item is a first estimate of the user, which profile and query correct.

        Args:
            side: the requests.
            behaved_RLE: id embeddings of the behaviours.
        """
        requests, memory = side.history_mask.shape
        kind = lookup(self.behaviours, side.behaviours).view(requests, memory, -1, self.width).sum(2)
        if self.behaviour_numbers is not None:
            kind = kind + self.behaviour_numbers(side.behaviour_numbers)
        score = behaved_RLE @ self.attend + self.recency(kind)[..., 0]
        if self.content is not None:
            score = score + side.history_content @ (self.content.weight.T @ self.attend)
        score = score.masked_fill(~side.history_mask, torch.finfo(score.dtype).min)
        weight = torch.softmax(score, dim=1) * side.history_mask
        pooled = (weight[:, None] @ behaved_RLE)[:, 0]
        asked = torch.zeros_like(pooled)
        if self.content is not None:
            pooled = pooled + self.content((weight[:, None] @ side.history_content)[:, 0])
            asked = self.content(side.query_content)
        context = [pooled, asked, lookup(self.requests, side.requests), side.numbers]
        return functional.normalize(pooled + asked + self.user_mix(torch.cat(context, dim=1)), dim=1)

    def item(self, side: ItemSide, ids_ME: Tensor) -> Tensor:
        """Item vectors, float32 [M, E], unit norm: the sum of its ids, projected numbers and content."""
        parts = lookup(self.candidates, side.candidates)
        whole = ids_ME + parts.view(len(ids_ME), -1, self.width).sum(1)
        if self.item_numbers is not None:
            whole = whole + self.item_numbers(side.numbers)
        if self.content is not None:
            whole = whole + self.content(side.content)
        return functional.normalize(whole, dim=1)

    def scale(self) -> Tensor:
        """One over the temperature, at most 100."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)


def sampled_softmax(
    score_PM: Tensor, positive_P: Tensor, chance_M: Tensor, excluded_PM: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy over sampled items, unbiased towards popular ones.

    Every logit is lowered by the logarithm of its item's chance of being in the sample (Yi et al., RecSys
    2019, section 3), so that scores come to rank by log p(item | user), not by its ratio to popularity. The
    sampled items are distinct, so that chance, not the number of draws, over-represents an item.

    Args:
        score_PM: float32, P positives against M sampled items.
        positive_P: int64, the column of each positive.
        chance_M: float32 in (0, 1], each sampled item's chance of being in a sample.
        excluded_PM: bool, columns that are positives of the same request in other rows.
    """
    logit = score_PM - chance_M.log()
    if excluded_PM is not None:
        logit = logit.masked_fill(excluded_PM, torch.finfo(logit.dtype).min)
    return functional.cross_entropy(logit, positive_P)
