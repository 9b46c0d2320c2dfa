"""Relevance: how well an item answers a query, as a calibrated log-odds.

The head compares the vectors of both, and reads the item features of its service, if there are any. Legend: P pairs,
V vector width, F numbers of the features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec import KeyedJaggedTensor

from dataset.contracts import DataError
from feature_repo.signature import Feature, Signature
from ranker.inputs.columns import ITEM, Inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.inputs.projections import Projections
from ranker.inputs.rules import table as rule_table
from ranker.inputs.rules.categories import Hashed
from ranker.judgements import JudgedPairs, features_of_items
from ranker.score import require_signature
from ranker.weights import load_weights, put_tensors, save_weights, tensors_of
from run.artifacts import MADE_BY, Artifact, ArtifactError, open_artifact, write_artifact

CONFIG = "config.json"
NO_SERVICE = Signature("", ())  # of release 0.1.0, whose head read vectors alone
HIDDEN = 32
ID_WIDTH = 8  # of a category of an item
EPOCHS = 20
PATIENCE = 3
BATCH = 512
LEARNING_RATE = 2e-3
HELD_OUT = 0.15  # fraction of the pairs, for early stopping and calibration
ROWS = 65_536  # pairs scored at once


@dataclass(frozen=True)
class Described:
    """The item features of P pairs as a model takes them.

    Attributes:
        numbers: float32 [P, F].
        ids: a key for each feature that enters as rows of a table, P bags each.
    """

    numbers: Tensor
    ids: KeyedJaggedTensor


class RelevanceModel(nn.Module):
    """A small network on [cos, q∘t, |q−t|, features] beside a linear path of the cosine, then a calibrated line.

    Args:
        width: of the vectors.
        inputs: how it reads the features of items.
    """

    def __init__(self, width: int, inputs: Inputs) -> None:
        super().__init__()
        widths, rows = inputs.widths("candidate"), inputs.rows("candidate")
        self.cosine = nn.Linear(1, 1)
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        described = sum(want or have for _, have, want in widths) + ID_WIDTH * len(rows)
        self.pair = nn.Sequential(nn.Linear(1 + 2 * width + described, HIDDEN), nn.SiLU(), last)
        self.line = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.vectors = Projections(widths)
        self.tables = nn.ModuleDict(
            {
                name: nn.EmbeddingBag(count, ID_WIDTH, mode="sum", include_last_offset=True)
                for name, count in rows.items()
            }
        )

    def raw(self, query: Tensor, item: Tensor, described: Described) -> Tensor:
        """Uncalibrated logits, float32 [P], of pairs of unit vectors float32 [P, V] and the items' features."""
        product = query * item
        cosine = product.sum(1, keepdim=True)
        values = [described.ids[name] for name in self.tables]
        features = [
            cosine,
            product * query.shape[1] ** 0.5,
            (query - item).abs(),
            self.vectors(described.numbers),
            *(
                table(one.values(), one.offsets())
                for table, one in zip(self.tables.values(), values, strict=True)
            ),
        ]
        return (self.cosine(cosine) + self.pair(torch.cat(features, dim=1)))[:, 0]

    def forward(self, query: Tensor, item: Tensor, described: Described) -> Tensor:
        """Calibrated logits, float32 [P]."""
        return self.line[0] * self.raw(query, item, described) + self.line[1]


class Relevance:
    """A trained relevance model.

    Attributes:
        artifact: where it came from.
        width: of the vectors it takes.
        encoder: makes what it reads of the items' features.
    """

    def __init__(self, model: RelevanceModel, artifact: Artifact, width: int, inputs: Inputs) -> None:
        self.model, self.artifact, self.width = model, artifact, width
        self.encoder = FrameEncoder(inputs, None)

    @classmethod
    def open(cls, artifact: Artifact, signature: Signature | None = None) -> Relevance:
        """Open an artifact of kind "relevance".

        Args:
            artifact: the trained model.
            signature: of its service, as the store has it now; None: not known here.

        Raises:
            ArtifactError: tensors missing or not finite, or trained with other features.
        """
        content = json.loads(artifact.file(CONFIG).read_text())
        made_by = MADE_BY["relevance"]
        if not {"width"} <= set(content) <= {"width", "inputs"}:
            raise ArtifactError(
                f"{artifact.path}: expected a config of width and inputs, found {sorted(content)}. Run '{made_by}'."
            )
        inputs = Inputs.from_json(content["inputs"]) if "inputs" in content else learned(NO_SERVICE, {})
        require_signature(artifact.path, inputs.signature, signature, made_by)
        model = RelevanceModel(content["width"], inputs)
        load_weights(model, artifact.file("model.safetensors"), made_by)
        return cls(model.eval(), artifact, content["width"], inputs)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of items that it reads."""
        return self.encoder.inputs.features("candidate")

    def score(
        self, query_vector: np.ndarray, item_vectors: np.ndarray, items: Mapping[str, pa.Array]
    ) -> np.ndarray:
        """Log-odds that the item is relevant, float32 [N].

        Args:
            query_vector: float32 [V] for one query, or [N, V] for one per item, unit norm.
            item_vectors: float32 [N, V], unit norm.
            items: the items' values of ``features`` by name, N each, null where the store has nothing; may hold more.

        Raises:
            DataError: a feature is missing.
        """
        found = torch.from_numpy(np.ascontiguousarray(item_vectors, dtype=np.float32))
        query = torch.from_numpy(np.ascontiguousarray(query_vector, dtype=np.float32)).expand(found.shape)
        table = of_items(items, len(found))
        with torch.no_grad():
            parts = [
                self.model(
                    query[start : start + ROWS],
                    found[start : start + ROWS],
                    described(self.encoder, table.slice(start, ROWS)),
                )
                for start in range(0, len(found), ROWS)
            ]
        return torch.cat([torch.empty(0), *parts]).numpy()


def of_items(items: Mapping[str, pa.Array], count: int) -> pa.Table:
    """The features of N items as the table of candidates that a ``FrameEncoder`` reads."""
    return pa.table({ITEM: pa.nulls(count, pa.int64()), **items})


def described(encoder: FrameEncoder, items: pa.Table) -> Described:
    """The features of N items as numbers and rows of tables.

    Raises:
        DataError: a feature is missing.
    """
    encoder.require("candidate", items)
    count = len(items)
    numbers = encoder.numbers("candidate", items, np.zeros(count, np.int64))
    return Described(torch.from_numpy(numbers), encoder.ids("candidate", items, np.ones(count, dtype=bool)))


def learned(signature: Signature, items: Mapping[str, pa.Array]) -> Inputs:
    """The rules of the features of items, learned from those of the training pairs."""
    rules = {}
    for one in features_of_items(signature):
        learner = rule_table.learner(one)
        learner.see(items[one.name], np.zeros(len(items[one.name]), np.int64))
        rules[one.name] = learner.learned()
    return Inputs(signature, (), rules, Hashed(1), 0, ())


def train_relevance(
    pairs: JudgedPairs,
    out: Path,
    parents: Mapping[str, Artifact],
    seed: int = 0,
    signature: Signature = NO_SERVICE,
    items: Mapping[str, pa.Array] | None = None,
) -> Artifact:
    """Train on judged pairs and write an artifact of kind "relevance".

    A fraction of the pairs is held out for early stopping, and then fits the calibrating line (Platt, 1999).

    Args:
        pairs: P pairs; their relevance counts as the probability that the item is relevant.
        out: the artifact's path.
        parents: what it was made from, by role.
        seed: equal seeds give equal weights.
        signature: of the head's service.
        items: the features of items that it names, P values each; None: it names none.

    Raises:
        DataError: shapes differ, labels outside 0 to 1, values not finite, or labels all the same.
    """
    query, item, target = _tensors(pairs)
    inputs, table = learned(signature, items or {}), of_items(items or {}, len(target))
    encoder = FrameEncoder(inputs, None)

    def raw_of(rows: np.ndarray) -> Tensor:
        of = described(encoder, table.take(rows))
        return model.raw(query[rows], item[rows], of)

    draw = np.random.default_rng(seed)
    order = draw.permutation(len(target))
    held = order[: max(1, int(HELD_OUT * len(order)))]
    rest = order[len(held) :]
    torch.manual_seed(seed)
    model = RelevanceModel(query.shape[1], inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    best, best_loss, since = tensors_of(model), math.inf, 0
    for _ in range(EPOCHS):
        for start in range(0, len(rest), BATCH):
            rows = rest[start : start + BATCH]
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(raw_of(rows), target[rows]).backward()
            optimizer.step()
        rest = draw.permutation(rest)
        with torch.no_grad():
            raw = raw_of(held)
        loss = float(functional.binary_cross_entropy_with_logits(raw, target[held]))
        since += 1
        if loss < best_loss:
            best, best_loss, since = tensors_of(model), loss, 0
        if since >= PATIENCE:
            break
    put_tensors(model, best)
    with torch.no_grad():
        raw = raw_of(held)
    _calibrate(model, raw, target[held])
    config = {"seed": seed, "pairs": len(target), "held_out_loss": best_loss}
    with write_artifact(out, "relevance", config, parents) as folder:
        save_weights(model, folder)
        (folder / CONFIG).write_text(json.dumps({"width": query.shape[1], "inputs": inputs.to_json()}) + "\n")
    return open_artifact(out, "relevance")


def _tensors(pairs: JudgedPairs) -> tuple[Tensor, Tensor, Tensor]:
    query, item, label = pairs.query, pairs.item, pairs.relevance
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


def _calibrate(model: RelevanceModel, raw: Tensor, target: Tensor) -> None:
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
