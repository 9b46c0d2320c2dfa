"""Two-tower retrieval: training with sampled softmax, and user and item vectors afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import save_file
from torch import Tensor

from feature_repo.frame import Frame, StoredRequests
from feature_repo.services import RETRIEVAL
from feature_repo.signature import Signature
from feature_repo.vectors import Vectors
from ranker.fit import Plan, fit
from ranker.inputs.columns import ITEM, USER_EVENTS, Inputs, learn_inputs
from ranker.inputs.earlier import read_inputs
from ranker.inputs.frame_encoder import BEHAVIOUR_ROWS, FrameEncoder, select_requests
from ranker.inputs.hashing import hash_integers
from ranker.inputs.rules.categories import Hashed
from ranker.learner import FallingLearner
from ranker.score import CONFIG, require_signature
from ranker.two_tower.held_out import HeldOut
from ranker.two_tower.model import TowerShape, TwoTowerModel, sampled_softmax
from ranker.two_tower.negatives import Sample, Sampler, item_side, user_side
from ranker.weights import load_weights, save_weights
from run.artifacts import MADE_BY, Artifact, ArtifactError, open_artifact, write_artifact
from run.resume import Checkpoints
from run.sizes import Size

EPOCHS = (5, 10)  # at least and at most, as many between them as make TRAINING_STEPS
TRAINING_STEPS = 1_000
LEARNING_RATE = 2e-3
TABLE_LEARNING_RATE = 0.02
ID_DROPOUT = 0.2
GIVEN = (
    USER_EVENTS,
)  # what it reads beside the features of its service; ids of users would only be memorised
ROWS = 4096  # requests or items encoded at once


@dataclass(frozen=True)
class TowerConfig:
    """The complete configuration of a two-tower model.

    Attributes:
        inputs: what it knows about the columns of frames.
        id_width: of the id embeddings.
        content_width: of the items' content; 0: id-only.
        content_id: of the artifact that the content came from; None: id-only.
    """

    inputs: Inputs
    id_width: int
    content_width: int
    content_id: str | None

    @classmethod
    def read(cls, path: Path) -> TowerConfig:
        """Read ``config.json``.

        Raises:
            ArtifactError: keys missing or unknown.
        """
        content = json.loads(path.read_text())
        try:
            return cls(**{**content, "inputs": read_inputs(content["inputs"], RETRIEVAL)})
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}: not a two-tower configuration ({error}). Run '{MADE_BY['two_tower']}'."
            ) from None

    def to_json(self) -> dict[str, Any]:
        """JSON values that ``read`` understands."""
        return vars(self) | {"inputs": self.inputs.to_json()}

    def build(self) -> TwoTowerModel:
        """The untrained model."""
        inputs = self.inputs
        return TwoTowerModel(
            TowerShape(
                item_rows={ITEM: inputs.items.rows},
                candidate_rows=inputs.rows("candidate"),
                request_rows=inputs.rows("request"),
                behaviour_rows=BEHAVIOUR_ROWS | inputs.rows("behaviour"),
                id_width=self.id_width,
                content_width=self.content_width,
                request_numbers=inputs.width("request"),
                behaviour_numbers=inputs.width("behaviour"),
                item_numbers=inputs.width("candidate"),
                id_dropout=ID_DROPOUT,
                table_learning_rate=TABLE_LEARNING_RATE,
            )
        )


class TwoTower:
    """A trained two-tower model.

    Attributes:
        artifact: where it came from; None while it is being trained.
    """

    def __init__(self, model: TwoTowerModel, encoder: FrameEncoder, artifact: Artifact | None = None) -> None:
        self.model, self.encoder, self.artifact = model, encoder, artifact

    @classmethod
    def open(
        cls, artifact: Artifact, content: Vectors | None, signature: Signature | None = None
    ) -> TwoTower:
        """Open an artifact of kind "two_tower".

        Args:
            artifact: the trained model.
            content: of the items, as it was trained with.
            signature: of the service that frames will be read with; None: not known here.

        Raises:
            ArtifactError: tensors missing or not finite, or trained with other content or other features.
        """
        config = TowerConfig.read(artifact.file(CONFIG))
        found = None if content is None else content.id
        if found != config.content_id:
            raise ArtifactError(
                f"{artifact.path}: trained with content {config.content_id or 'none'}, given {found or 'none'}. "
                f"Run '{MADE_BY['two_tower']}'."
            )
        require_signature(artifact.path, config.inputs.signature, signature, MADE_BY["two_tower"])
        model = config.build()
        load_weights(model, artifact.file("model.safetensors"), MADE_BY["two_tower"])
        return cls(model.eval(), FrameEncoder(config.inputs, content), artifact)

    @property
    def width(self) -> int:
        """Width of user and item vectors."""
        return self.model.width

    def with_content(self, content: Vectors | None) -> TwoTower:
        """The same towers, reading content of more items than when they were trained."""
        return TwoTower(self.model, FrameEncoder(self.encoder.inputs, content), self.artifact)

    def user_vectors(self, frame: Frame) -> np.ndarray:
        """Users as of their requests, float32 [R, E + 1]; the frame's candidates are ignored.

        Args:
            frame: R requests with histories.

        Raises:
            DataError: the requests lack columns the model was trained with.
        """
        parts = [np.empty((0, self.width), dtype=np.float32)]
        whole = Frame(frame.requests, frame.candidates, np.zeros_like(frame.offsets), frame.history)
        for start in range(0, len(frame), ROWS):
            rows = np.arange(start, min(start + ROWS, len(frame)))
            part = whole if len(rows) == len(frame) else select_requests(whole, rows)
            side, history_mask = user_side(self.encoder, part)
            ids = self.encoder.item_ids(
                part.history.item_id[:0], part.history.item_id, history_mask[:, :0], history_mask
            )
            with torch.no_grad():
                behaved = self.model.item_ids(ids)[0].view(*history_mask.shape, -1)
                parts.append(self.model.user(side, behaved).numpy())
        return np.concatenate(parts)

    def item_vectors(self, items: pa.Table) -> np.ndarray:
        """Items, float32 [N, E + 1], in the order given.

        Args:
            items: N rows with item_id and the features of the candidates, as in ``Frame.candidates``.

        Raises:
            DataError: a column is missing.
        """
        self.encoder.require("candidate", items)
        parts = [np.empty((0, self.width), dtype=np.float32)]
        for start in range(0, len(items), ROWS):
            rows = items.slice(start, ROWS)
            ids = rows[ITEM].to_numpy()
            everywhere = np.ones((1, len(rows)), dtype=bool)
            with torch.no_grad():
                of_ids = self.model.item_ids(
                    self.encoder.item_ids(ids, ids[:0], everywhere, everywhere[:, :0])
                )
                parts.append(self.model.item(item_side(self.encoder, rows), *of_ids).numpy())
        return np.concatenate(parts)


def train_two_tower(
    train: StoredRequests,
    content: Vectors | None,
    catalogue: pa.Table,
    size: Size,
    out: Path,
    parents: Mapping[str, Artifact],
    seed: int = 0,
    epochs: int | None = None,
) -> Artifact:
    """Train two towers and write an artifact of kind "two_tower" with the vectors of the whole catalogue.

    Negatives are the other positives of a batch and items drawn evenly from those ever taken; logits are
    corrected by each item's chance of being drawn (see ``ranker.two_tower.negatives``).

    Args:
        train: requests whose candidates with ``label`` > 0 are the positives; the others are not used.
        content: of the items, known before any of their behaviour; None: id-only towers.
        catalogue: N rows with item_id and the features of the candidates, as in ``Frame.candidates``.
        size: fixes widths and history.
        out: the artifact's path; an interrupted run resumes from ``<out>.partial``.
        parents: what it was made from, by role.
        seed: equal seeds give equal weights.
        epochs: passes over which the learning rates fall to zero; None: as many as ``epochs_of`` says.

    Raises:
        DataError: no positives, positives outside the catalogue, or columns missing.
        TrainingError: the loss or a gradient is not finite.
    """
    catalogue = catalogue.sort_by(ITEM).combine_chunks()
    ages = [one.name for one in train.signature.of("candidate") if one.kind == "timestamp"]
    inputs, _ = learn_inputs(train, size.history, GIVEN, without=ages)  # an item's vector is of no moment
    inputs = replace(inputs, items=Hashed(inputs.items.rows))  # its own counts say which items are known
    config = TowerConfig(
        inputs,
        size.id_width,
        0 if content is None else content.width,
        None if content is None else content.id,
    )
    encoder = FrameEncoder(inputs, content)
    encoder.require("candidate", catalogue)
    sampler = Sampler(train, catalogue, encoder, seed)
    torch.manual_seed(seed)
    model = config.build()
    rows = inputs.items.of(hash_integers(sampler.ids))
    model.count(torch.from_numpy(rows), torch.from_numpy(sampler.taken.astype(np.float32)))
    steps = sampler.steps()
    epochs = epochs_of(steps) if epochs is None else epochs
    plan = Plan(epochs, epochs, LEARNING_RATE, seed)  # no early stop: the last epochs have the lowest rates
    job = {"config": config.to_json(), "plan": asdict(plan), "requests": len(train)}
    checkpoints = Checkpoints(out, job, parents)
    towers = TwoTower(model, encoder)
    outcome = fit(
        model,
        plan,
        batches=lambda epoch, done: islice(sampler.batches(sampler.learned, epoch), done, None),
        loss=lambda sample: _loss(model, sample),
        validate=_missed(towers, sampler, catalogue) if len(sampler.held_out) else None,
        checkpoints=checkpoints,
        description=f"train {out.name}",
        learner=lambda model, rate: FallingLearner(model, rate, epochs * steps),
    )
    manifest = {
        "size": size.name,
        "seed": seed,
        "width": towers.width,
        "content_id": config.content_id,
        "outcome": asdict(outcome),
    }
    with write_artifact(out, "two_tower", manifest, parents) as folder:
        save_weights(model, folder)
        (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2) + "\n")
        ids = catalogue[ITEM].to_numpy()
        save_file({ITEM: ids, "vector": towers.item_vectors(catalogue)}, folder / "items.safetensors")
    checkpoints.remove()
    return open_artifact(out, "two_tower")


def epochs_of(steps: int) -> int:
    """Epochs of so many steps each: few of a long log, whose ids are soon known by heart, more of a short one."""
    least, most = EPOCHS
    return int(np.clip(TRAINING_STEPS // max(steps, 1), least, most))


def _missed(towers: TwoTower, sampler: Sampler, catalogue: pa.Table) -> Callable[[], float]:
    """How much of what held-out users took next is not found by the towers as they are."""
    held_out = HeldOut.of(sampler)

    def missed() -> float:
        loss = _mean_loss(towers.model, sampler)
        return held_out.missed(towers.user_vectors(held_out.frame), towers.item_vectors(catalogue), loss)

    return missed


def _loss(model: TwoTowerModel, sample: Sample) -> Tensor:
    ids, bias = model.item_ids(sample.ids)
    behaved = sample.user.history_mask.numel()
    users = model.user(sample.user, ids[:behaved].view(*sample.user.history_mask.shape, -1))
    items = model.item(sample.item, ids[behaved:], bias[behaved:])
    score = users[sample.request] @ items.T
    return sampled_softmax(score, sample.positive, sample.chance, sample.excluded)


def _mean_loss(model: TwoTowerModel, sampler: Sampler) -> float:
    total, weight = 0.0, 0
    for sample in sampler.batches(sampler.held_out, 0):
        with torch.no_grad():
            total += float(_loss(model, sample)) * len(sample.positive)
        weight += len(sample.positive)
    return total / weight
