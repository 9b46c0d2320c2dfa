"""The click model: id interest, content interest (CUBE), profiles, statistics and matches -> one logit.

A candidate's logit depends on its request and itself only, never on the other candidates.

Legend: R requests, N candidates, L behaviours, D id width, V vector width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranker.inputs.batch import Batch
from ranker.inputs.id_tables import IdTables
from ranker.modules.attention import TargetAttention
from ranker.modules.cube import Content, Cube

PLACE_SPEED = 10.0  # places learn so many times faster than other weights: one epoch must reach a logit of 2


@dataclass(frozen=True)
class ModelShape:
    """Everything that fixes the click model's tensors.

    Attributes:
        item_rows, candidate_rows, request_rows, behaviour_rows: rows of the id tables, by name.
        id_width: D.
        content_width: V; 0 leaves the content branches out (the id-only control).
        history: most behaviours per request.
        candidate_numbers: how many numbers a candidate has.
        request_numbers: how many a request has.
        position_share: share of the training candidates at each logged position.
        table_learning_rate: of the tables' row-wise Adagrad.
    """

    item_rows: Mapping[str, int]
    candidate_rows: Mapping[str, int]
    request_rows: Mapping[str, int]
    behaviour_rows: Mapping[str, int]
    id_width: int
    content_width: int
    history: int
    candidate_numbers: int
    request_numbers: int
    position_share: tuple[float, ...]
    table_learning_rate: float


class ClickModel(nn.Module):
    """The ranker's network."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width = shape.id_width
        self.tables = IdTables(
            shape.item_rows,
            shape.candidate_rows,
            shape.request_rows,
            shape.behaviour_rows,
            width,
            shape.table_learning_rate,
        )
        item_side = (1 + len(shape.candidate_rows)) * width
        user_side = len(shape.request_rows) * width
        self.item_mix = nn.Linear(item_side, width)
        self.user_mix = nn.Linear(user_side, width)
        self.interest = TargetAttention(width)
        from_candidate = item_side + 3 * width + shape.candidate_numbers
        from_request = user_side + shape.request_numbers + 1
        self.cube: Cube | None = None
        if shape.content_width:
            self.cube = Cube(shape.history)
            self.content_mix = nn.Linear(shape.content_width, 2 * width)
            from_candidate += shape.history + 3 + 2 * width + 3 * 2 * width + 2
            from_request += 2 * width + shape.history
        hidden = 8 * width
        self.candidate_input = nn.Linear(from_candidate, hidden)
        self.request_input = nn.Linear(from_request, hidden, bias=False)
        self.head = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, 1)
        )
        self.position = nn.Parameter(torch.zeros(max(len(shape.position_share), 1)))
        share = torch.tensor(shape.position_share or (0.0,))
        self.register_buffer("position_share", share, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Position-free logits, float32 [R, N]; those of empty slots mean nothing."""
        target, behaved = self.tables.item_and_history(batch)
        history = behaved + self.tables.behaviour(batch)
        item = torch.cat([target, self.tables.candidate(batch)], dim=-1)
        user = self.tables.request(batch)
        interest = self.interest(target, history, batch.remembered)
        affinity = self.user_mix(user)[:, None] * self.item_mix(item)
        candidate = [item, interest, interest * target, affinity, batch.candidate_numbers]
        asked = batch.query_known[:, None].float()  # searchers click more: the controls may know that, too
        request = [user, batch.request_numbers, asked]
        if self.cube is not None:
            self._add_content(self.cube, batch, target, history, candidate, request)
        first = self.candidate_input(torch.cat(candidate, dim=-1))
        first = first + self.request_input(torch.cat(request, dim=-1))[:, None]
        return self.head(first)[..., 0]

    def position_logit(self, batch: Batch) -> Tensor:
        """What the logged place adds, float32 [R, N], for training only: 0 when not logged, 0 on average.

        The average is taken out, so the position-free logit stays the log-odds at an average place.
        """
        share: Tensor = self.get_buffer("position_share")
        bias = PLACE_SPEED * (self.position - share @ self.position)
        return bias[batch.position.clamp(0, len(bias) - 1)] * (batch.position >= 0)

    def _add_content(
        self,
        cube: Cube,
        batch: Batch,
        target: Tensor,
        history: Tensor,
        candidate: list[Tensor],
        request: list[Tensor],
    ) -> None:
        content = Content(
            batch.target_content,
            batch.history_content,
            batch.history_known,
            batch.query_content,
            batch.query_known,
        )
        branch = cube(content, history)
        liked, item = self.content_mix(branch.content_RNV), self.content_mix(branch.target_RNV)
        candidate += [
            branch.similarity_RNK,
            branch.summary_RN3,
            branch.fusion_RND,
            branch.fusion_RND * target,
            liked,
            item,
            liked * item,
            branch.query_target_RN1,
            batch.target_known[..., None].float(),
        ]
        asked = batch.query_known[:, None].float()
        request += [self.content_mix(branch.query_RV) * asked, branch.query_behaviour_RK]
