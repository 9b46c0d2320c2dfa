"""Two towers: users and items are embedded in one space, so retrieval is a nearest-neighbour search.

The score of a pair is the inner product of what they are, plus how often the item is taken at all: the last column
of the vectors, 1 for users, the bias for items. The id of an item that nobody took in training means nothing, and
neither does its bias: it is placed by its content and its features, with the bias of ids that are hidden.

Legend: R requests, M items, L behaviours, D id width, V vector width, E width of what they are (2 D).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec import KeyedJaggedTensor

from ranker.inputs.columns import ITEM
from ranker.inputs.id_tables import collection, lookup


@dataclass(frozen=True)
class UserSide:
    """R requests as the user tower reads them; padded as in ``ranker.inputs.batch``.

    Attributes:
        requests: a key per feature of the user or request that enters as ids, R rows.
        behaviours: keys ``code``, ``age`` and those of the behaviours' features that enter as ids, R·L slots.
        behaviour_numbers: float32 [R, L, B].
        numbers: float32 [R, F].
        history_mask: bool [R, L].
        history_content: float32 [R, L, V].
    """

    requests: KeyedJaggedTensor
    behaviours: KeyedJaggedTensor
    behaviour_numbers: Tensor
    numbers: Tensor
    history_mask: Tensor
    history_content: Tensor


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
        self.inner = 2 * ids
        self.width = self.inner + 1
        self.id_dropout = shape.id_dropout
        self.items = collection(shape.item_rows, self.inner, rate)
        self.candidates = collection(shape.candidate_rows, self.inner, rate)
        self.requests = collection(shape.request_rows, self.inner, rate)
        self.behaviours = collection(shape.behaviour_rows, self.inner, rate)
        self.taken = nn.Parameter(torch.zeros(shape.item_rows[ITEM]), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(shape.item_rows[ITEM]))
        self.hidden_bias = nn.Parameter(torch.zeros(()))
        self.content = nn.Linear(shape.content_width, self.inner, bias=False) if shape.content_width else None
        if self.content is not None:  # a projected vector has about the norm of the vector
            nn.init.normal_(self.content.weight, std=self.inner**-0.5)
        self.item_numbers = (
            nn.Linear(shape.item_numbers, self.inner, bias=False) if shape.item_numbers else None
        )
        if self.item_numbers is not None:
            nn.init.zeros_(
                self.item_numbers.weight
            )  # like an untrained id, an untrained number has no effect
        self.behaviour_numbers = (
            nn.Linear(shape.behaviour_numbers, self.inner, bias=False) if shape.behaviour_numbers else None
        )
        self.attend = nn.Parameter(torch.zeros(self.inner))
        self.recency = nn.Linear(self.inner, 1, bias=False)
        context = self.inner * (1 + len(shape.request_rows)) + shape.request_numbers
        first, last = nn.Linear(context, 2 * self.inner), nn.Linear(2 * self.inner, self.inner)
        nn.init.zeros_(last.weight)  # an untrained user is the pooled history
        self.user_mix = nn.Sequential(first, nn.SiLU(), last)

    def count(self, rows: Tensor, taken: Tensor) -> None:
        """Start from how often items were taken in training.

        Args:
            rows: int64 [N], rows of the item table.
            taken: float32 [N].
        """
        with torch.no_grad():
            self.taken.index_add_(0, rows, taken)
            self.bias.copy_((self.taken + 0.5).log())

    def item_ids(self, ids: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Id embeddings float32 [bags, E] and biases [bags]; some ids are hidden while training, unknown ones always.

        Args:
            ids: key ``item_id``, bags of one or none.
        """
        rows = ids.values()
        shown = torch.rand(len(rows)) >= self.id_dropout if self.training else self.taken[rows] > 0
        filled = ids.lengths() > 0
        bias, visible = torch.zeros(len(filled)), torch.zeros(len(filled), 1)
        bias[filled] = torch.where(shown, self.bias[rows], self.hidden_bias)
        visible[filled, 0] = shown.float()
        return lookup(self.items, ids) * visible, bias

    def user(self, side: UserSide, behaved_RLE: Tensor) -> Tensor:
        """User vectors, float32 [R, E + 1].

        A history is pooled by attention over what the items are, how long ago they were seen and what was known of
        them then; the pooled item is a first estimate of the user, which the profile corrects.

        Args:
            side: the requests.
            behaved_RLE: id embeddings of the behaviours.
        """
        requests, memory = side.history_mask.shape
        kind = lookup(self.behaviours, side.behaviours).view(requests, memory, -1, self.inner).sum(2)
        if self.behaviour_numbers is not None:
            kind = kind + self.behaviour_numbers(side.behaviour_numbers)
        score = behaved_RLE @ self.attend + self.recency(kind)[..., 0]
        if self.content is not None:
            score = score + side.history_content @ (self.content.weight.T @ self.attend)
        score = score.masked_fill(~side.history_mask, torch.finfo(score.dtype).min)
        weight = torch.softmax(score, dim=1) * side.history_mask
        pooled = (weight[:, None] @ behaved_RLE)[:, 0]
        if self.content is not None:
            pooled = pooled + self.content((weight[:, None] @ side.history_content)[:, 0])
        context = [pooled, lookup(self.requests, side.requests), side.numbers]
        user = pooled + self.user_mix(torch.cat(context, dim=1))
        return torch.cat([user, torch.ones(requests, 1)], dim=1)

    def item(self, side: ItemSide, ids_ME: Tensor, bias_M: Tensor) -> Tensor:
        """Item vectors, float32 [M, E + 1]: the sum of its ids, projected numbers and content, and its bias."""
        parts = lookup(self.candidates, side.candidates)
        whole = ids_ME + parts.view(len(ids_ME), -1, self.inner).sum(1)
        if self.item_numbers is not None:
            whole = whole + self.item_numbers(side.numbers)
        if self.content is not None:
            whole = whole + self.content(side.content)
        return torch.cat([whole, bias_M[:, None]], dim=1)


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
