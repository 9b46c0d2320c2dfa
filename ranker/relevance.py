"""Relevance: how well an item answers a query, from their vectors alone, as a calibrated log-odds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn import functional

from dataset.contracts import DataError
from dataset.tables import Dataset
from feature_repo.vectors import Vectors
from ranker.weights import load_weights, put_tensors, save_weights, tensors_of
from run.artifacts import MADE_BY, Artifact, ArtifactError, open_artifact, write_artifact

CONFIG = "config.json"
HIDDEN = 32
EPOCHS = 20
PATIENCE = 3
BATCH = 512
LEARNING_RATE = 2e-3
HELD_OUT = 0.15  # fraction of the pairs, for early stopping and calibration
ROWS = 65_536  # pairs scored at once


class RelevanceModel(nn.Module):
    """A small network on [cos, q∘t, |q−t|] beside a linear path of the cosine, then a calibrated line.

    Args:
        width: of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cosine = nn.Linear(1, 1)
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        self.pair = nn.Sequential(nn.Linear(1 + 2 * width, HIDDEN), nn.SiLU(), last)
        self.line = nn.Parameter(torch.tensor([1.0, 0.0]))

    def raw(self, query: Tensor, item: Tensor) -> Tensor:
        """Uncalibrated logits, float32 [P], of pairs of unit vectors float32 [P, V]."""
        product = query * item
        cosine = product.sum(1, keepdim=True)
        features = torch.cat([cosine, product * query.shape[1] ** 0.5, (query - item).abs()], dim=1)
        return (self.cosine(cosine) + self.pair(features))[:, 0]

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        """Calibrated logits, float32 [P]."""
        return self.line[0] * self.raw(query, item) + self.line[1]


class Relevance:
    """A trained relevance model.

    Attributes:
        artifact: where it came from.
        width: of the vectors it takes.
    """

    def __init__(self, model: RelevanceModel, artifact: Artifact, width: int) -> None:
        self.model, self.artifact, self.width = model, artifact, width

    @classmethod
    def open(cls, artifact: Artifact) -> Relevance:
        """Open an artifact of kind "relevance".

        Raises:
            ArtifactError: tensors missing or not finite.
        """
        content = json.loads(artifact.file(CONFIG).read_text())
        if set(content) != {"width"}:
            raise ArtifactError(
                f"{artifact.path}: expected a config of width, found {sorted(content)}. Run '{MADE_BY['relevance']}'."
            )
        model = RelevanceModel(content["width"])
        load_weights(model, artifact.file("model.safetensors"), MADE_BY["relevance"])
        return cls(model.eval(), artifact, content["width"])

    def score(self, query_vector: np.ndarray, item_vectors: np.ndarray) -> np.ndarray:
        """Log-odds that the item is relevant, float32 [N].

        Args:
            query_vector: float32 [V] for one query, or [N, V] for one per item, unit norm.
            item_vectors: float32 [N, V], unit norm.
        """
        items = torch.from_numpy(np.ascontiguousarray(item_vectors, dtype=np.float32))
        query = torch.from_numpy(np.ascontiguousarray(query_vector, dtype=np.float32)).expand(items.shape)
        with torch.no_grad():
            parts = [
                self.model(query[start : start + ROWS], items[start : start + ROWS])
                for start in range(0, len(items), ROWS)
            ]
        return torch.cat([torch.empty(0), *parts]).numpy()


def train_relevance(
    query_vectors: np.ndarray,
    item_vectors: np.ndarray,
    label: np.ndarray,
    out: Path,
    parents: Mapping[str, Artifact],
    seed: int = 0,
) -> Artifact:
    """Train on judged or clicked pairs and write an artifact of kind "relevance".

    A fraction of the pairs is held out for early stopping, and then fits the calibrating line (Platt, 1999).

    Args:
        query_vectors: float32 [P, V], unit norm.
        item_vectors: float32 [P, V], unit norm.
        label: float32 [P], probability that the pair is relevant, 0 to 1.
        out: the artifact's path.
        parents: what it was made from, by role.
        seed: equal seeds give equal weights.

    Raises:
        DataError: shapes differ, labels outside 0 to 1, values not finite, or labels all the same.
    """
    query, item, target = _pairs(query_vectors, item_vectors, label)
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(target))
    held = torch.from_numpy(order[: max(1, int(HELD_OUT * len(order)))])
    learned = order[len(held) :]
    torch.manual_seed(seed)
    model = RelevanceModel(query.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    best, best_loss, since = tensors_of(model), math.inf, 0
    for _ in range(EPOCHS):
        for start in range(0, len(learned), BATCH):
            rows = torch.from_numpy(learned[start : start + BATCH])
            optimizer.zero_grad()
            logits = model.raw(query[rows], item[rows])
            functional.binary_cross_entropy_with_logits(logits, target[rows]).backward()
            optimizer.step()
        learned = draw.permutation(learned)
        with torch.no_grad():
            raw = model.raw(query[held], item[held])
        loss = float(functional.binary_cross_entropy_with_logits(raw, target[held]))
        since += 1
        if loss < best_loss:
            best, best_loss, since = tensors_of(model), loss, 0
        if since >= PATIENCE:
            break
    put_tensors(model, best)
    _calibrate(model, query[held], item[held], target[held])
    config = {"seed": seed, "pairs": len(target), "held_out_loss": best_loss}
    with write_artifact(out, "relevance", config, parents) as folder:
        save_weights(model, folder)
        (folder / CONFIG).write_text(json.dumps({"width": query.shape[1]}) + "\n")
    return open_artifact(out, "relevance")


def _pairs(query: np.ndarray, item: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    if query.shape != item.shape or len(label) != len(query):
        raise DataError(
            f"expected pairs of equal shape, found {query.shape}, {item.shape} and {len(label)} labels"
        )
    for name, values in (("query vectors", query), ("item vectors", item), ("labels", label)):
        if not np.isfinite(values).all():
            rows = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
            raise DataError(
                f"{name}: {len(rows)} of {len(values)} rows are not finite (rows {rows[:3].tolist()})"
            )
    if len(label) and (label.min() < 0 or label.max() > 1):
        raise DataError(f"expected labels from 0 to 1, found {label.min()} to {label.max()}")
    if len(np.unique(label)) < 2:
        raise DataError(f"expected relevant and irrelevant pairs, found {len(label)} pairs of one kind")
    tensors = [torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in (query, item, label)]
    return tensors[0], tensors[1], tensors[2]


def _calibrate(model: RelevanceModel, query: Tensor, item: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        raw = model.raw(query, item)
    # A pull of one observation towards the identity keeps a separable held-out set finite.
    optimizer = torch.optim.LBFGS([model.line], max_iter=50, line_search_fn="strong_wolfe")
    identity = torch.tensor([1.0, 0.0])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model.line[0] * raw + model.line[1], target)
        loss = loss + (model.line - identity).square().sum() / len(target)
        loss.backward()
        return loss

    optimizer.step(closure)


def judged_pairs(dataset: Dataset, vectors: Vectors, part: str, seed: int) -> tuple[np.ndarray, ...]:
    """Judged (query, item) pairs of a part, and as many with items drawn at random, which count as irrelevant.

    Judges see what a search engine proposed; without the drawn ones the head would never see an irrelevant item.

    Returns:
        query vectors and item vectors float32 [P, D], and relevance float32 [P]; empty without judgements.
    """
    judged = dataset.judgements.filter(pc.equal(dataset.judgements["part"], part))
    rng = np.random.default_rng(seed)
    query_id = np.tile(judged["query_id"].to_numpy(), 2)
    item_id = np.concatenate([judged["item_id"].to_numpy(), rng.choice(vectors.ids, len(judged))])
    relevance = np.concatenate([judged["relevance"].to_numpy(), np.zeros(len(judged), np.float32)])
    query, asked = vectors.queries.gather(query_id)
    item, found = vectors.gather(item_id)
    known = asked & found
    return query[known], item[known], relevance[known]
