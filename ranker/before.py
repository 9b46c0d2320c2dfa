"""What comes before the whole model trains: modules fit to content, or train alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from feature_repo.frame import StoredRequests
from feature_repo.vectors import Vectors
from ranker.fit import Plan, fit
from ranker.inputs.batch import Batch
from ranker.inputs.columns import ITEM, chunks, request_time_us
from ranker.model import ClickModel, run
from ranker.modules.module import Module
from run.resume import Checkpoints


def learn_content(model: ClickModel, train: StoredRequests, vectors: Vectors, seed: int) -> None:
    """Let every module learn what it learns from content vectors: of the candidates in training.

    Args:
        model: its modules are changed in place.
        train: the training requests.
        vectors: the embedding; one that was not there yet at a request is not seen by it.
        seed: of everything random.
    """
    learning = [part for part in _modules(model).values() if type(part).learn is not Module.learn]
    if not learning:
        return
    rows: list[np.ndarray] = []
    for frame in chunks(train):
        item_id = frame.candidates[ITEM].to_numpy()
        known = vectors.gather(item_id, np.repeat(request_time_us(frame.requests), np.diff(frame.offsets)))[1]
        rows.append(np.unique(vectors.rows(item_id[known])))
    seen = np.unique(np.concatenate([np.empty(0, np.int64), *rows]))
    if len(seen):
        for part in learning:
            part.learn(torch.from_numpy(vectors.matrix[seen]), seed)


def train_alone(
    model: ClickModel,
    plan: Plan,
    batches: Callable[[int, int], Iterable[Batch]],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    checkpoints: Callable[[str], Checkpoints],
) -> None:
    """Train the modules that ask for it, each as a click model of its own.

    Args:
        model: its modules are changed in place; its tables learn nothing.
        plan: of the whole model; a module says its own epochs.
        batches: as of ``fit``.
        loss: of logits, labels and the mask of candidates.
        checkpoints: of a module by its name; the caller removes them.
    """
    for name, part in _modules(model).items():
        if not part.pretraining:
            continue

        def alone(batch: Batch, part: Module = part) -> Tensor:
            said = run(part, model.features(batch)).candidate
            assert said is not None
            return loss(said[..., -1], batch.label, batch.candidate_mask)

        own = Plan(part.pretraining, plan.patience, plan.learning_rate, plan.seed)
        fit(part, own, batches, alone, None, checkpoints(name), f"train {name} alone")


def _modules(model: ClickModel) -> dict[str, Module]:
    return {name.rpartition(".")[2]: part for name, part in model.named_modules() if isinstance(part, Module)}
