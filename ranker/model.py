"""The click model: the outputs of its recipe's modules for a candidate and its request -> one logit.

A candidate's logit depends on its request and itself only, never on the other candidates.

Legend: R requests, N candidates, L behaviours, D id width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ranker.inputs.batch import Batch
from ranker.inputs.id_tables import IdTables
from ranker.inputs.projections import Projections
from ranker.linear import LinearPath
from ranker.modules.module import Features, Module, Output, Widths
from ranker.modules.nearest import at_places
from ranker.places import FAST, PositionTower, looked_at
from ranker.recipes import Recipe
from ranker.settings import Settings
from ranker.steps import log_odds

QUIET = 0.1  # how its last weights begin beside a regression, of what is usual: at zero it learns too slowly


@dataclass(frozen=True)
class ModelShape:
    """Everything that fixes the click model's tensors.

    Attributes:
        item_rows, candidate_rows, request_rows, behaviour_rows: rows of the id tables, by name.
        content_width: V; 0 leaves out the modules that read content (a control without vectors).
        history: most behaviours per request.
        candidate_numbers: (feature, its numbers, width of their projection or 0) of a candidate.
        request_numbers, behaviour_numbers: those of a request and of a behaviour.
        position_share: fraction of the training candidates at each logged position.
        position_tower: whether a tower learns the chance that a place is looked at; else each place has a number.
        unplaced: added to the click's logit where no place is read (``ranker.places.unplaced``).
        steps: T, what may follow a click (``ranker.steps``).
        settings: the widths and fractions that can be chosen.
        linear: whether the network adds to a regression of the numbers (``ranker.linear``).
    """

    item_rows: Mapping[str, int]
    candidate_rows: Mapping[str, int]
    request_rows: Mapping[str, int]
    behaviour_rows: Mapping[str, int]
    content_width: int
    history: int
    candidate_numbers: tuple[tuple[str, int, int], ...]
    request_numbers: tuple[tuple[str, int, int], ...]
    behaviour_numbers: tuple[tuple[str, int, int], ...]
    position_share: tuple[float, ...]
    steps: int
    settings: Settings
    position_tower: bool = False
    linear: bool = False
    unplaced: float = 0.0

    @property
    def id_width(self) -> int:
        """D."""
        return self.settings.id_width

    @property
    def table_learning_rate(self) -> float:
        """Of the tables' row-wise Adagrad."""
        return self.settings.table_learning_rate

    @property
    def rows(self) -> dict[str, int]:
        """Rows of every id table, by whose ids they are and which."""
        sides = {
            "item": self.item_rows,
            "candidate": self.candidate_rows,
            "request": self.request_rows,
            "behaviour": self.behaviour_rows,
        }
        return {f"{side}.{name}": count for side, rows in sides.items() for name, count in rows.items()}

    @property
    def widths(self) -> Widths:
        """The widths of what the modules read."""
        return Widths(
            ids=self.id_width,
            item=(len(self.item_rows) + len(self.candidate_rows)) * self.id_width,
            user=len(self.request_rows) * self.id_width,
            content=self.content_width,
            history=self.history,
            candidate_numbers=_width(self.candidate_numbers),
            request_numbers=_width(self.request_numbers),
        )

    def line(self) -> LinearPath | None:
        """The linear path over the numbers as they are, before any projection."""
        if not self.linear:
            return None
        sides = (self.candidate_numbers, self.request_numbers)
        return LinearPath(*(sum(have for _, have, _ in side) for side in sides))


def _width(numbers: tuple[tuple[str, int, int], ...]) -> int:
    return sum(want or have for _, have, want in numbers)


class ClickModel(nn.Module):
    """The ranker's network: id tables, the recipe's modules, and a perceptron over their outputs."""

    def __init__(self, shape: ModelShape, recipe: Recipe) -> None:
        super().__init__()
        self.tables = IdTables(
            shape.item_rows,
            shape.candidate_rows,
            shape.request_rows,
            shape.behaviour_rows,
            shape.id_width,
            shape.table_learning_rate,
        )
        self.candidate_vectors = Projections(shape.candidate_numbers)
        self.request_vectors = Projections(shape.request_numbers)
        self.behaviour_vectors = Projections(shape.behaviour_numbers)
        behaved = _width(shape.behaviour_numbers)
        self.behaviour_input = nn.Linear(behaved, shape.id_width, bias=False) if behaved else None
        self.recent = None if recipe.search is None else recipe.search.recent
        parts = recipe.build(shape.widths)
        self.parts = nn.ModuleDict(parts)
        settings = shape.settings
        self.id_dropout = settings.id_dropout
        widths = [settings.hidden * shape.id_width >> layer for layer in range(settings.depth)]
        per_candidate = sum(part.per_candidate for part in parts.values())
        per_request = sum(part.per_request for part in parts.values())
        self.candidate_input = nn.Linear(per_candidate, widths[0])
        self.request_input = nn.Linear(per_request, widths[0], bias=False) if per_request else None
        self.head = _head(widths, settings.dropout, scale=QUIET if shape.linear else 1.0)
        towers = [Tower(per_candidate, per_request, widths, settings.dropout) for _ in range(shape.steps)]
        self.steps = nn.ModuleList(towers)
        self.position = nn.Parameter(torch.zeros(max(len(shape.position_share), 1)))
        self.register_buffer("position_share", torch.tensor(shape.position_share or (0.0,)))
        self.unplaced = shape.unplaced
        context = shape.widths.user + shape.widths.request_numbers + 1
        self.looks = PositionTower(len(self.position), context) if shape.position_tower else None
        self.line = shape.line()

    def forward(self, batch: Batch, logged: bool = False) -> Tensor:
        """Logits of the click, float32 [R, N]; undefined in empty slots.

        With steps float32 [R, N, 1 + T]: of the click, and of each step given the one before.

        Args:
            batch: the requests.
            logged: at the logged places, as training fits them; else at an average one, and no place is read.
        """
        features = self.features(batch)
        outputs = [run(part, features) for part in self.parts.values() if isinstance(part, Module)]
        candidate = [said.candidate for said in outputs if said.candidate is not None]
        request = [said.request for said in outputs if said.request is not None]
        of_candidate = torch.cat(candidate, dim=-1)
        of_request = torch.cat(request, dim=1) if request else None
        click = _first(self.candidate_input, self.request_input, of_candidate, of_request)
        clicked = self.head(click)[..., 0]
        if self.line is not None:
            clicked = clicked + self.line(batch)
        logit = self._at_place(clicked, features, batch, logged)
        if not self.steps:
            return logit
        return torch.stack([logit, *(tower(of_candidate, of_request) for tower in self.steps)], dim=-1)

    def features(self, batch: Batch) -> Features:
        """What the modules can read of a batch."""
        target, behaved = self.tables.item_and_history(batch)
        if self.training and self.id_dropout:
            target = (
                target * (torch.rand(target.shape[:2], device=target.device) >= self.id_dropout)[..., None]
            )
        kind = self.tables.behaviour(batch)
        if self.behaviour_input is not None:
            kind = kind + self.behaviour_input(self.behaviour_vectors(batch.behaviour_numbers))
        history = behaved + kind
        return Features(
            target_RND=target,
            item_RNI=torch.cat([target, self.tables.candidate(batch)], dim=-1),
            user_RU=self.tables.request(batch),
            behaved_RLD=self._recent(behaved),
            history_RLD=self._recent(history),
            candidate_mask_RN=batch.candidate_mask,
            history_mask_RL=self._recent(batch.history_mask),
            candidate_numbers_RNF=self.candidate_vectors(batch.candidate_numbers),
            request_numbers_RG=self.request_vectors(batch.request_numbers),
            target_content_RNV=batch.target_content,
            target_known_RN=batch.target_known,
            history_content_RLV=self._recent(batch.history_content),
            history_known_RL=self._recent(batch.history_known),
            query_content_RV=batch.query_content,
            query_known_R=batch.query_known,
            found_RNKD=at_places(history, batch.found_slot),
            found_mask_RNK=batch.found_mask,
            found_cosine_RNK=batch.found_cosine,
            found_times_RNK=batch.found_times,
            found_count_RN=batch.found_count,
        )

    def _recent(self, history: Tensor) -> Tensor:
        """Of behaviours [R, L, ...] those that are read as they are, the latest ones."""
        return history if self.recent is None else history[:, -self.recent :]

    def _at_place(self, logit: Tensor, features: Features, batch: Batch, logged: bool) -> Tensor:
        """The click's logit at the logged or at an average place."""
        if self.looks is None:
            return logit + (self.position_logit(batch) if logged else self.unplaced)
        known = features.query_known_R[:, None].to(logit.dtype)
        request = torch.cat([features.user_RU, features.request_numbers_RG, known], dim=1)
        places = FAST * self.position + self.looks(request)
        looked = looked_at(places, self.get_buffer("position_share"), batch.position if logged else None)
        seen = log_odds(torch.stack([looked.expand_as(logit), logit], dim=-1), 1)
        return seen if logged else seen + self.unplaced

    def position_logit(self, batch: Batch) -> Tensor:
        """What the logged place adds without a tower, float32 [R, N]: 0 when not logged, 0 on average.

        The average is taken out, so that what is learned of an item is apart from where it stood.
        """
        share: Tensor = self.get_buffer("position_share")
        bias = FAST * (self.position - share @ self.position)
        return bias[batch.position.clamp(0, len(bias) - 1)] * (batch.position >= 0)


class WithPosition(nn.Module):
    """A click model at the logged places: what training fits to the log."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Logits as of the model."""
        logit: Tensor = self.model(batch, logged=True)
        return logit


class Tower(nn.Module):
    """The perceptron of one step, on what the click's reads."""

    def __init__(self, per_candidate: int, per_request: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.candidate_input = nn.Linear(per_candidate, widths[0])
        self.request_input = nn.Linear(per_request, widths[0], bias=False) if per_request else None
        self.head = _head(widths, dropout)

    def forward(self, candidate: Tensor, request: Tensor | None) -> Tensor:
        """Logits float32 [R, N] of candidates float32 [R, N, X] and requests float32 [R, Y]."""
        first = _first(self.candidate_input, self.request_input, candidate, request)
        logit: Tensor = self.head(first)[..., 0]
        return logit


def _first(
    candidate_input: nn.Module, request_input: nn.Module | None, candidate: Tensor, request: Tensor | None
) -> Tensor:
    """The first layer: what a request adds is computed once for all its candidates."""
    first: Tensor = candidate_input(candidate)
    return first if request_input is None else first + request_input(request)[:, None]


def _head(widths: Sequence[int], dropout: float, scale: float = 1.0) -> nn.Sequential:
    """What follows the first layer: an activation before each further layer, the last of which is the logit.

    The last one's weights begin at so much of what they usually begin at.
    """
    layers: list[nn.Module] = []
    for have, want in pairwise((*widths, 1)):
        layers += [nn.SiLU(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(have, want)]
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.mul_(scale)
    return nn.Sequential(*layers)


def run(module: Module, features: Features) -> Output:
    """Run one module on the features it reads, and on no others."""
    return module(**{name: getattr(features, name) for name in module.reads()})
