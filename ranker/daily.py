"""Train a click model day after day: each day begins with the weights and the optimizers' memory of the day before.

A day's artifact is a whole ranker of kind "ranker", and holds besides, in ``state.safetensors``, what the next day
goes on from: the tables' accumulators, AdamW's moments, of each id feature which values have occurred, how often and
when, and of each number its moments. Nothing that was measured is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from feature_repo.frame import StoredRequests
from feature_repo.vectors import Vectors
from ranker.attempt import Attempt, Data
from ranker.inputs.columns import Inputs, chunks, learn_inputs
from ranker.inputs.growth import NOTHING, Begins, Known, grown, rescaled
from ranker.inputs.id_tables import SPREAD
from ranker.inputs.rules.numbers import Moments
from ranker.learner import WEIGHTS, Learner
from ranker.memory import require_memory
from ranker.recipes import Recipe
from ranker.score import CONFIG, CtrConfig
from ranker.train import planned
from ranker.weights import WEIGHTS as WEIGHTS_FILE
from ranker.weights import save_weights
from run.artifacts import Artifact, open_artifact, write_artifact
from run.resume import remove_checkpoints
from run.sizes import Size

STATE = "state.safetensors"
FORMAT = 4  # of what is kept of earlier days; another one is not gone on from
KNOWN, SCALE = "known/", "scale/"  # how its tensors are named: what has occurred, and moments of numbers
PARTS = ("hashes", "counts", "days")
VALID_SHARE = 5  # one in how many users of the first day validates


@dataclass(frozen=True)
class Terms:
    """What stays the same from day to day.

    Attributes:
        recipe: what the model is made of.
        size: fixes widths, history and the batch.
        vectors: the embedding; None: a control without.
        encoder: id of what made the vectors: those of new items come from the same one; None: there are none.
        seed: of everything random.
        epochs: passes over a day's requests.
        learning_rate: of the dense weights.
        table_learning_rate: of the tables.
        forget: days without occurring after which an id loses its row; None: it keeps it.
    """

    recipe: Recipe
    size: Size
    vectors: Vectors | None
    encoder: str | None
    seed: int
    epochs: int
    learning_rate: float
    table_learning_rate: float
    forget: int | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values by which a ranker is continued under these terms only."""
        same = ("encoder", "seed", "epochs", "learning_rate", "table_learning_rate", "forget")
        kept = {name: getattr(self, name) for name in same}
        history = self.size.ranker_history
        made = {"format": FORMAT, "recipe": self.recipe.to_json(), "size": self.size.name}
        return {**made, "history": history, **kept}


class Held(dict[str, Tensor]):
    """Tensors in memory, as a ``Saved`` that a learner goes on from."""

    get_tensor = dict.__getitem__
    get_slice = dict.__getitem__


def train_day(
    requests: StoredRequests,
    day: int,
    yesterday: Artifact | None,
    terms: Terms,
    out: Path,
    parents: Mapping[str, Artifact],
    record: Mapping[str, Any],
    trained: StoredRequests | None = None,
    valid: StoredRequests | None = None,
    past: StoredRequests | None = None,
) -> Artifact:
    """Train on one day's requests, and write the ranker that it ends with.

    Args:
        requests: of the day, at least one; candidates carry ``label`` and, where logged, ``position``.
        day: its number; later days have larger ones.
        yesterday: the ranker of the day before; None: the first day, which learns how inputs are read.
        terms: as on every other day.
        out: the artifact's path, which may be that of yesterday; a day that was cut goes on at its batch.
        parents: what it was made from, by role.
        record: kept in the manifest.
        trained: what it trains on, of the day and of earlier ones; None: those of the day.
        valid: those of the day by whose loss training stops; None: there are ``epochs`` passes.
        past: what the regression is fitted to that it begins at; None: what it trains on.

    Raises:
        DataError: the first day has no requests, or columns are missing.
        TrainingError: the loss or a gradient is not finite, or the tables would outgrow memory.
    """
    config, seen, begins = _begin(requests, day, yesterday, terms)
    require_memory(config.shape.rows, config.id_width)
    trained = requests if trained is None else trained
    before = parents if yesterday is None else {**parents, "yesterday": yesterday}
    data = Data(trained, valid, candidates_of(trained), terms.vectors, terms.size.ranker_slots, before)
    epochs = terms.epochs if valid is None else None
    plan = planned(data, terms.learning_rate, terms.seed + day, epochs)
    attempt = Attempt(data, config, plan, out, begins)
    made = replace(attempt, line=attempt.regression(past or trained)).run(None, None)
    manifest = {**record, "terms": terms.to_json(), "outcome": asdict(made.outcome), "day": day}
    _write(out, manifest, parents, made.freed(), made.learner, seen)
    remove_checkpoints(out)
    return open_artifact(out, "ranker")


def replayed(counts: np.ndarray, today: int, slots: int, seed: tuple[int, int]) -> np.ndarray:
    """Which earlier requests are learned from again beside those of a day, drawn evenly.

    A day shows who came that day. Steps on it alone forget the others (experience replay: Rolnick et al., NeurIPS
    2019), and a step on a few requests moves the weights as far as one on a full batch. So there are as many
    candidates of earlier days as of this one, and more where both together would not fill a batch.

    Args:
        counts: int64 (R), candidates of each earlier request.
        today: candidates of the day.
        slots: candidates of a batch.
        seed: of the drawing; equal seeds draw equal requests.

    Returns:
        their rows, int64, ascending.
    """
    return drawn(counts, max(today, slots - today), seed)


def drawn(counts: np.ndarray, most: int, seed: tuple[int, int]) -> np.ndarray:
    """Rows of requests, drawn evenly, that have ``most`` candidates together, or all; int64, ascending.

    Args:
        counts: int64 (R), candidates of each request.
        most: how many; the request with which there are more is the last.
        seed: of the drawing; equal seeds draw equal requests.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    many = np.searchsorted(np.cumsum(counts[order]), most)
    return np.sort(order[: many + 1])


def held_out(user_id: np.ndarray, seed: int) -> np.ndarray:
    """Requests of the first day that say when to stop, bool (R): of a fifth of its users; of fewer than five none."""
    users = np.unique(user_id)
    drawn = np.random.default_rng(seed).permutation(users)[: len(users) // VALID_SHARE]
    return np.isin(user_id, drawn)


def continues(yesterday: Artifact, terms: Terms, requests: StoredRequests) -> str:
    """Why a ranker cannot be trained on under these terms, on requests of this service; empty if it can."""
    found, now = yesterday.config.get("terms", {}), json.loads(json.dumps(terms.to_json()))
    if strange := [name for name in now if found.get(name) != now[name]]:
        return f"another {', '.join(strange)}"
    trained = CtrConfig.read(yesterday.file(CONFIG)).inputs.signature
    return "; ".join(trained.difference(requests.signature))


def _begin(
    requests: StoredRequests, day: int, yesterday: Artifact | None, terms: Terms
) -> tuple[CtrConfig, dict[str, Tensor], Held | None]:
    """The model's configuration, what its inputs have seen by now, and what it goes on from."""
    if yesterday is None:
        without = [
            one.name for one in requests.signature.features if one.kind == "vector" and terms.vectors is None
        ]
        inputs, _ = learn_inputs(requests, terms.size.behaviours, without=without)
        _, known, _ = grown(inputs, {}, requests, day)
        _, moments = rescaled(inputs, {}, requests)
        return _config(terms, inputs), _seen(known, moments), None
    before = CtrConfig.read(yesterday.file(CONFIG))
    state = load_file(yesterday.file(STATE))
    inputs, known, begins = grown(before.inputs, _known(state), requests, day, terms.forget)
    inputs, moments = rescaled(inputs, _moments(state), requests)
    weights = {WEIGHTS + name: tensor for name, tensor in load_file(yesterday.file(WEIGHTS_FILE)).items()}
    held = {name: tensor for name, tensor in state.items() if not name.startswith((KNOWN, SCALE))} | weights
    return _config(terms, inputs), _seen(known, moments), begun(held, begins, terms.seed + day)


def _config(terms: Terms, inputs: Inputs) -> CtrConfig:
    return CtrConfig(
        recipe=terms.recipe,
        inputs=inputs,
        id_width=terms.size.id_width,
        content_width=0 if terms.vectors is None else terms.vectors.width,
        embedding_id=None if terms.vectors is None else terms.vectors.id,
        loss="pointwise",
        learning_rate=terms.learning_rate,
        table_learning_rate=terms.table_learning_rate,
        linear=True,
    )


def candidates_of(requests: StoredRequests) -> np.ndarray:
    """How many candidates each request has, int64 [R]."""
    return np.concatenate([np.empty(0, np.int64), *(np.diff(frame.offsets) for frame in chunks(requests))])


def begun(held: Mapping[str, Tensor], begins: Mapping[str, Begins], seed: int) -> Held:
    """What a learner goes on from, with every table as its rows begin the day.

    Args:
        held: weights and accumulators by their names in a checkpoint, and whatever else it holds.
        begins: feature -> the rows of its table.
        seed: of rows that begin untrained.
    """
    draw, found = torch.Generator().manual_seed(seed), Held(held)
    for name, tensor in held.items():
        weight = re.fullmatch(rf"{WEIGHTS}.*\.t_(.+)\.weight", name)
        memory = re.fullmatch(r"tables/[^/]+/t_([^/]+)\.weight/.*", name)
        match = weight or memory
        if match is None or match[1] not in begins:
            continue
        rows = begins[match[1]]
        tensor = tensor[torch.from_numpy(np.maximum(rows.row, 0))]
        if memory:
            tensor[torch.from_numpy(rows.anew)] = 0
        else:
            untrained = torch.from_numpy(rows.row == NOTHING)
            fresh = torch.rand(int(untrained.sum()), tensor.shape[1], generator=draw)
            tensor[untrained] = SPREAD * (2 * fresh - 1)
        found[name] = tensor
    return found


def _seen(known: Mapping[str, Known], moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """What inputs have seen, as tensors of the state."""
    found = {SCALE + name: torch.tensor(one.state, dtype=torch.float64) for name, one in moments.items()}
    for name, one in known.items():
        for part, values in zip(PARTS, (one.hashes.view(np.int64), one.counts, one.days), strict=True):
            found[f"{KNOWN}{name}/{part}"] = torch.from_numpy(values)
    return found


def _known(state: Mapping[str, Tensor]) -> dict[str, Known]:
    names = {name.split("/")[1] for name in state if name.startswith(KNOWN)}
    parts = {name: [state[f"{KNOWN}{name}/{part}"].numpy() for part in PARTS] for name in names}
    return {
        name: Known(hashes.view(np.uint64), counts, days) for name, (hashes, counts, days) in parts.items()
    }


def _moments(state: Mapping[str, Tensor]) -> dict[str, Moments]:
    kept = {name: one.tolist() for name, one in state.items() if name.startswith(SCALE)}
    return {name.removeprefix(SCALE): Moments(int(count), *rest) for name, (count, *rest) in kept.items()}


def _write(
    out: Path,
    manifest: Mapping[str, Any],
    parents: Mapping[str, Artifact],
    config: CtrConfig,
    learner: Learner,
    seen: Mapping[str, Tensor],
) -> None:
    weights = {WEIGHTS + name for name in learner.weights()}
    state = {name: tensor for name, tensor in learner.tensors().items() if name not in weights} | dict(seen)
    with write_artifact(out, "ranker", manifest, parents) as folder:
        save_weights(learner.model, folder)
        save_file(state, folder / STATE)
        (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2) + "\n")
