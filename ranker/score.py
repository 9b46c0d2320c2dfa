"""THE scoring function: training evaluation, offline evaluation and the service all call ``Ranker.score``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset.jagged import entries
from feature_repo.frame import Frame
from feature_repo.services import CTR
from feature_repo.signature import Signature
from feature_repo.vectors import Vectors
from ranker.calibration import Calibration
from ranker.inputs.batch import Batch
from ranker.inputs.columns import ITEM, MATCH, Inputs
from ranker.inputs.earlier import read_inputs
from ranker.inputs.frame_encoder import BEHAVIOUR_ROWS, FrameEncoder, select_requests, size_groups
from ranker.model import ClickModel, ModelShape
from ranker.order import ORDER, Order
from ranker.recipes import Recipe, RecipeError, cube, recorded
from ranker.settings import Settings
from ranker.steps import CLICK, log_odds
from ranker.weights import load_weights
from run.artifacts import MADE_BY, Artifact, ArtifactError

CONFIG = "config.json"
CALIBRATION = "calibration.json"  # of a calibrated ranker
SLOTS = 8192  # padded candidates scored at once
# How the tensors of release 0.1.0 began, and begin now that the recipe's modules own them.
RENAMED = {
    "item_mix.": "parts.interest.item_mix.",
    "user_mix.": "parts.interest.user_mix.",
    "interest.": "parts.interest.attention.",
    "cube.": "parts.cube.extractor.",
    "content_mix.": "parts.cube.content_mix.",
}


@dataclass(frozen=True, kw_only=True)
class CtrConfig(Settings):
    """The complete configuration of a click model: its settings, and what they are settings of.

    Attributes:
        recipe: what it is made of.
        inputs: how it reads a frame.
        content_width: width of the item vectors; 0: a control without vectors.
        embedding_id: id of the embedding artifact it was trained with; None: no vectors.
        rank_by: what its score is the log-odds of: ``click``, or one of the inputs' steps.
        loss: ``pointwise`` (binary cross-entropy) or ``listwise`` (softmax over a request's candidates).
        position_tower: whether a tower learned the chance that a place is looked at (``ranker.places``).
        linear: whether it began at a regression of its numbers (``ranker.linear``); earlier releases' did not.
        unplaced: what a score has besides, so that it is of an average place (``ranker.places.unplaced``).
    """

    recipe: Recipe
    inputs: Inputs
    content_width: int
    embedding_id: str | None
    loss: str
    rank_by: str = CLICK
    position_tower: bool = False
    linear: bool = False
    unplaced: float = 0.0

    @classmethod
    def read(cls, path: Path) -> CtrConfig:
        """Read ``config.json``.

        Raises:
            ArtifactError: keys missing or unknown, or a recipe that is unknown or has changed.
        """
        content = json.loads(path.read_text())
        content.setdefault("recipe", cube().to_json())  # the only recipe of release 0.1.0
        try:
            parts = {"recipe": recorded(content["recipe"]), "inputs": read_inputs(content["inputs"], CTR)}
            return cls(**{**content, **parts})
        except (KeyError, TypeError, RecipeError) as error:
            raise ArtifactError(
                f"{path}: not a click model's configuration ({error}). Run '{MADE_BY['ranker']}'."
            ) from None

    def to_json(self) -> Mapping:
        """JSON values that ``read`` understands."""
        return vars(self) | {"recipe": self.recipe.to_json(), "inputs": self.inputs.to_json()}

    @property
    def shape(self) -> ModelShape:
        """What fixes the tensors of the model and of its modules."""
        inputs = self.inputs
        return ModelShape(
            item_rows={ITEM: inputs.items.rows},
            candidate_rows=inputs.rows("candidate"),
            request_rows=inputs.rows("request"),
            behaviour_rows=BEHAVIOUR_ROWS | inputs.rows("behaviour"),
            content_width=self.content_width,
            history=inputs.history,
            candidate_numbers=inputs.widths("candidate"),
            request_numbers=inputs.widths("request"),
            behaviour_numbers=inputs.widths("behaviour"),
            position_share=inputs.position_share,
            steps=len(inputs.steps),
            settings=Settings(**self.settings()),
            position_tower=self.position_tower,
            linear=self.linear,
            unplaced=self.unplaced,
        )

    @property
    def step(self) -> int | None:
        """Number of ``rank_by`` among the outputs of the model; None where it has one only."""
        return (CLICK, *self.inputs.steps).index(self.rank_by) if self.inputs.steps else None

    def build(self) -> ClickModel:
        """The untrained model."""
        return ClickModel(self.shape, self.recipe)


def require_vectors(
    where: Path, embedding_id: str | None, vectors: Vectors | None, made_by: str = MADE_BY["ranker"]
) -> None:
    """Refuse to combine a model with another embedding than the one it learned from.

    Raises:
        ArtifactError: naming both.
    """
    found = None if vectors is None else vectors.id
    if found != embedding_id:
        raise ArtifactError(
            f"{where}: trained with embedding {embedding_id or 'none'}, given {found or 'none'}. "
            f"Run '{made_by}' after 'moon embed'."
        )


def require_signature(where: Path, trained: Signature, found: Signature | None, made_by: str) -> None:
    """Refuse a model under a service that lists other features than those it was trained with.

    Another embedding is ``require_vectors``'s to refuse.

    Args:
        where: the model's artifact.
        trained: what it was trained with.
        found: what the store's service lists now; None: nobody asked a store.
        made_by: the command that trains it again.

    Raises:
        ArtifactError: naming the features that were added, lost or changed.
    """
    if (
        found is None or not trained.service
    ):  # earlier releases recorded none: their columns are asked for by name
        return
    before, now = (
        Signature(one.service, tuple(feature for feature in one.features if not feature.of_embedding))
        for one in (trained, found)
    )
    if said := before.difference(now):
        raise ArtifactError(
            f"{where}: the service {found.service} is not the one it was trained with: {'; '.join(said)}. "
            f"Run '{made_by}', or undo the change in feature_repo."
        )


class Ranker:
    """A trained click model and the vectors it needs.

    Attributes:
        artifact: where it came from; None while it is being trained.
        calibration: of its logits; None: they are as the model makes them.
        step: number of what it scores, from 0 for the click; None: of a model that knows of clicks only.
        order: how its scores and retrieval's order an answer; None: nothing taught it (``ranker.order_weights``).
    """

    def __init__(
        self,
        model: ClickModel,
        encoder: FrameEncoder,
        artifact: Artifact | None = None,
        calibration: Calibration | None = None,
        step: int | None = None,
        order: Order | None = None,
    ) -> None:
        self.model, self.encoder, self.artifact = model, encoder, artifact
        self.calibration, self.step, self.order = calibration, step, order

    @classmethod
    def open(cls, artifact: Artifact, vectors: Vectors | None, signature: Signature | None = None) -> Ranker:
        """Open an artifact of kind "ranker".

        Args:
            artifact: the trained model.
            vectors: the embedding it was trained with, None for one without vectors.
            signature: of the service that frames will be read with; None: not known here.

        Raises:
            ArtifactError: tensors missing or not finite, no map in its calibration, no weights in its order, or
                trained with another embedding or other features.
        """
        config = CtrConfig.read(artifact.file(CONFIG))
        require_vectors(artifact.path, config.embedding_id, vectors)
        require_signature(artifact.path, config.inputs.signature, signature, MADE_BY["ranker"])
        model = config.build()
        load_weights(model, artifact.file("model.safetensors"), MADE_BY["ranker"], RENAMED)
        encoder = FrameEncoder(config.inputs, vectors, config.recipe.search)
        path = artifact.file(ORDER)
        order = Order.read(path) if path.exists() else None
        return cls(model.eval(), encoder, artifact, _calibration(artifact), config.step, order)

    @property
    def history(self) -> int:
        """Most behaviours of a user that it reads."""
        return self.encoder.inputs.history

    @property
    def matches(self) -> set[str]:
        """The ``match_*`` columns that it learned from."""
        return {one.name for one in self.encoder.inputs.given if one.name.startswith(MATCH)}

    def with_vectors(self, vectors: Vectors) -> Ranker:
        """The same model, reading vectors of the same embedding: of more items than when it was trained.

        Raises:
            ArtifactError: they are of another embedding.
        """
        assert self.artifact is not None and self.encoder.vectors is not None
        require_vectors(self.artifact.path, self.encoder.vectors.id, vectors)
        encoder = FrameEncoder(self.encoder.inputs, vectors, self.encoder.search)
        return Ranker(self.model, encoder, self.artifact, self.calibration, self.step, self.order)

    def score(self, frame: Frame, query_vectors: np.ndarray | None = None) -> np.ndarray:
        """Logits at an average place, float32 [C], in the order of ``frame.candidates``: of the click, or
        of what the model ranks by.

        A candidate's score does not depend on the other candidates or requests of the frame.

        Args:
            frame: requests with candidates, offline or online.
            query_vectors: float32 [R, V] of searches without a ``query_id``, zeros where a request has none.

        Raises:
            DataError: the frame lacks columns or holds numbers that are not finite.
        """
        out = np.empty(int(frame.offsets[-1]), dtype=np.float32)
        for place, batch in self.batches(frame, query_vectors):
            out[place] = self.logits(batch)
        return out if self.calibration is None else self.calibration(out)

    def logits(self, batch: Batch) -> np.ndarray:
        """Of the candidates of a batch, float32, request after request, before calibration."""
        with torch.no_grad():
            logit = self.model(batch)
            logit = logit if self.step is None else log_odds(logit, self.step)
            return np.asarray(logit[batch.candidate_mask])

    def batches(
        self, frame: Frame, query_vectors: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """Batches of a frame's requests, and the rows of ``frame.candidates`` that each holds."""
        counts = np.diff(frame.offsets)
        order = np.flatnonzero(counts > 0)
        if len(frame) == len(order) == 1:
            yield np.arange(counts[0]), self.encoder.batch(frame, query_vectors)
            return
        for rows in size_groups(counts, order, SLOTS):
            given = None if query_vectors is None else query_vectors[rows]
            place, _ = entries(frame.offsets[rows], counts[rows])
            yield place, self.encoder.batch(select_requests(frame, rows), given)


def score_together(rankers: Mapping[str, Ranker], frame: Frame) -> dict[str, np.ndarray]:
    """Each ranker's ``score``; those that read a frame alike share its batches, which are most of the work."""
    out = {name: np.empty(int(frame.offsets[-1]), dtype=np.float32) for name in rankers}
    left = dict(rankers)
    while left:
        first = next(iter(left.values()))
        alike = {name: one for name, one in left.items() if one.encoder.makes_the_same(first.encoder)}
        for place, batch in first.batches(frame):
            for name, one in alike.items():
                out[name][place] = one.logits(batch)
        left = {name: one for name, one in left.items() if name not in alike}
    return {
        name: out[name] if one.calibration is None else one.calibration(out[name])
        for name, one in rankers.items()
    }


def _calibration(artifact: Artifact) -> Calibration | None:
    path = artifact.file(CALIBRATION)
    if not path.exists():
        return None
    try:
        return Calibration.from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}. Run '{MADE_BY['ranker']}' to make it again.") from None
