"""The click model as release 0.1.0 had it, in one piece: the twin of the recipe ``cube``."""

import torch
from torch import nn

from ranker.inputs.id_tables import IdTables
from ranker.model import QUIET
from ranker.modules.attention import TargetAttention
from ranker.modules.cube import Content, Extractor
from ranker.places import FAST


class ClickModel010(nn.Module):
    def __init__(self, shape):
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
        from_candidate = item_side + 3 * width + shape.widths.candidate_numbers
        from_request = user_side + shape.widths.request_numbers + 1
        self.cube = None
        if shape.content_width:
            self.cube = Extractor(shape.history)
            self.content_mix = nn.Linear(shape.content_width, 2 * width)
            from_candidate += shape.history + 3 + 2 * width + 3 * 2 * width + 2
            from_request += 2 * width + shape.history
        hidden = 8 * width
        self.candidate_input = nn.Linear(from_candidate, hidden)
        self.request_input = nn.Linear(from_request, hidden, bias=False)
        self.head = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, 1)
        )
        self.line = shape.line()  # a later release's beginning, not part of what it was
        if self.line is not None:
            for parameter in self.head[-1].parameters():
                parameter.data.mul_(QUIET)
        self.position = nn.Parameter(torch.zeros(max(len(shape.position_share), 1)))
        share = torch.tensor(shape.position_share or (0.0,))
        self.register_buffer("position_share", share, persistent=False)

    def forward(self, batch, logged=False):
        target, behaved = self.tables.item_and_history(batch)
        history = behaved + self.tables.behaviour(batch)
        item = torch.cat([target, self.tables.candidate(batch)], dim=-1)
        user = self.tables.request(batch)
        interest = self.interest(target, history, batch.history_mask)
        affinity = self.user_mix(user)[:, None] * self.item_mix(item)
        candidate = [item, interest, interest * target, affinity, batch.candidate_numbers]
        asked = batch.query_known[:, None].float()
        request = [user, batch.request_numbers, asked]
        if self.cube is not None:
            self._add_content(batch, target, history, candidate, request)
        first = self.candidate_input(torch.cat(candidate, dim=-1))
        first = first + self.request_input(torch.cat(request, dim=-1))[:, None]
        logit = self.head(first)[..., 0]
        if self.line is not None:
            logit = logit + self.line(batch)
        return logit + self.position_logit(batch) if logged else logit

    def position_logit(self, batch):
        bias = FAST * (self.position - self.position_share @ self.position)
        return bias[batch.position.clamp(0, len(bias) - 1)] * (batch.position >= 0)

    def _add_content(self, batch, target, history, candidate, request):
        content = Content(
            batch.target_content,
            batch.history_content,
            batch.history_known,
            batch.query_content,
            batch.query_known,
        )
        branch = self.cube(content, history)
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
