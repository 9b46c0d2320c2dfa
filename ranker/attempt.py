"""One training of a click model, of a recipe with some settings: a ranker is chosen among a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from feature_repo.frame import StoredRequests
from feature_repo.vectors import Vectors
from ranker.before import learn_content, train_alone
from ranker.epoch import epoch_batches
from ranker.fit import Outcome, Plan, fit
from ranker.inputs.batch import Batch
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.learner import Learner, Saved
from ranker.linear import LinearPath
from ranker.losses import LOSSES, Logits, counted, each_request, of_click, training_loss
from ranker.model import ClickModel, WithPosition
from ranker.places import unplaced
from ranker.ranks import ALL, Share, in_ranks
from ranker.regression import begin, examples_of
from ranker.score import CtrConfig
from run.artifacts import Artifact
from run.resume import Checkpoints

VALID_REQUESTS = 512  # requests read at once when validating
PLACED = 20_000  # impressions by which the average place is found: it is right to one in a hundred clicks


@dataclass(frozen=True)
class Data:
    """What every attempt learns from.

    Attributes:
        train: requests with labels.
        valid: others, by whose loss training stops; None: all epochs are run.
        counts: candidates of each training request, int64 [R].
        vectors: the embedding; None: a control without.
        slots: padded candidates of a batch.
        parents: the artifacts that all this was made from, by role.
    """

    train: StoredRequests
    valid: StoredRequests | None
    counts: np.ndarray
    vectors: Vectors | None
    slots: int
    parents: Mapping[str, Artifact]


@dataclass(frozen=True)
class Trained:
    """A click model, the attempt that trained it, and what its optimizers remember."""

    attempt: Attempt
    model: ClickModel
    outcome: Outcome
    learner: Learner

    @property
    def config(self) -> CtrConfig:
        """Of the model as it trained."""
        return self.attempt.config

    @property
    def encoder(self) -> FrameEncoder:
        """Reads frames for the model."""
        return self.attempt.encoder

    def freed(self) -> CtrConfig:
        """Let its scores be of an average place; the configuration of the model that says them."""
        self.model.unplaced = self.attempt.unplaced(self.model)
        return replace(self.config, unplaced=self.model.unplaced)

    def losses(self, stored: StoredRequests) -> tuple[np.ndarray, np.ndarray]:
        """The losses of every request added up, float64 [R], and how many they are, int64 [R]."""
        logits = WithPosition(self.model)
        found = []
        for batch in ALL.batches(stored, self.encoder, batched(len(stored))):
            with torch.no_grad():
                logit = of_click(logits(batch))
            found.append(each_request(self.config.loss, logit, batch.label, batch.candidate_mask))
        losses, counts = zip(*found, strict=True)
        return torch.cat(losses).double().numpy(), torch.cat(counts).long().numpy()


def batched(requests: int) -> Iterator[np.ndarray]:
    """The rows of so many requests, VALID_REQUESTS at a time."""
    for start in range(0, requests, VALID_REQUESTS):
        yield np.arange(start, min(start + VALID_REQUESTS, requests))


@dataclass(frozen=True)
class Attempt:
    """A click model in training.

    Attributes:
        data: what it learns from.
        config: of the model.
        plan: how long and how fast.
        place: path beside which its checkpoints are kept.
        begins: the state of a learner that it goes on from, in one process; None: it begins untrained.
        line: the regression that it begins at (``regression``), where its configuration has one.
    """

    data: Data
    config: CtrConfig
    plan: Plan
    place: Path
    begins: Saved | None = None
    line: LinearPath | None = None

    @cached_property
    def encoder(self) -> FrameEncoder:
        """Reads frames for the model."""
        return FrameEncoder(self.config.inputs, self.data.vectors, self.config.recipe.search)

    def regression(self, requests: StoredRequests) -> LinearPath | None:
        """The regression, fitted to these requests, that all attempts on the data begin at; None: they have none."""
        line = self.config.shape.line()
        if line is not None:
            begin(line, examples_of(requests, self.encoder, self.plan.seed))
        return line

    def begin_at_regression(self, model: ClickModel) -> None:
        """Give the model the regression's weights, where it has one; whatever else it has learned stays."""
        if model.line is not None:
            assert self.line is not None
            model.line.load_state_dict(self.line.state_dict())

    def run(self, ranks: int | None, after: Callable[[int, float], None] | None) -> Trained:
        """Train it, or go on where it was interrupted; arguments as of ``train_ctr``."""
        torch.manual_seed(self.plan.seed)
        model, data = self.config.build(), self.data
        if self.begins is None:
            self.begin_at_regression(model)
            if data.vectors is not None:
                learn_content(model, data.train, data.vectors, self.plan.seed)
            train_alone(model, self.plan, self.batches, LOSSES[self.config.loss], self.checkpoints)
        fitted = partial(self.fit, after=after)
        if ranks is not None:
            train_in_ranks(ranks, model, fitted)
        learner = Learner(model, self.plan.learning_rate, self.config.weight_decay)
        if self.begins is not None:
            learner.restore(self.begins)
            self.begin_at_regression(model)
        # After ranks, nothing is left to train: this reads the best epoch from their last checkpoint.
        outcome = fitted(model, WithPosition(model), ALL, lambda *_: learner)
        return Trained(self, model, outcome, learner)

    def unplaced(self, model: ClickModel) -> float:
        """What a score needs besides to be of an average place, by the first PLACED impressions of an epoch."""
        if self.config.loss != "pointwise" or not self.config.inputs.position_share:
            return 0.0
        logits: dict[bool, list[np.ndarray]] = {True: [], False: []}
        found = 0
        for batch in self.batches(epoch=0, done=0):
            for logged, parts in logits.items():
                with torch.no_grad():
                    logit = of_click(model(batch, logged=logged))
                parts.append(logit[batch.candidate_mask].numpy())
            found += len(parts[-1])
            if found >= PLACED:
                break
        return unplaced(np.concatenate(logits[True]), np.concatenate(logits[False]))

    def fit(
        self,
        model: nn.Module,
        logits: Logits,
        share: Share,
        learner: Callable[[nn.Module, float, float], Learner],
        after: Callable[[int, float], None] | None,
    ) -> Outcome:
        """Train the whole model, or a rank's share of it, on every batch."""
        config, data = self.config, self.data
        return fit(
            model,
            self.plan,
            batches=lambda epoch, done: self.batches(epoch, done, share),
            loss=lambda batch: training_loss(logits, batch, config.loss, config.other_loss, share),
            validate=partial(_validate, logits, data.valid, self.encoder, config.loss, share)
            if data.valid is not None
            else None,
            checkpoints=self.checkpoints(),
            description=f"train {self.place.name}",
            learner=lambda model, rate: learner(model, rate, config.weight_decay),
            after=after,
        )

    def batches(self, epoch: int, done: int, share: Share = ALL) -> Iterator[Batch]:
        """A rank's share of the batches of an epoch, without the first ``done``."""
        data, seed = self.data, (self.plan.seed, epoch)
        return epoch_batches(data.train, data.counts, self.encoder, data.slots, seed, share, done)

    def checkpoints(self, module: str | None = None) -> Checkpoints:
        """Of the whole model, or of a module that is trained alone."""
        name = self.place.name if module is None else f"{self.place.name}.{module}"
        signature, vectors = self.config.inputs.signature, self.data.vectors
        job = {
            "service": signature.service,
            "features": [one.name for one in signature.features],
            "embedding_version": None if vectors is None else vectors.version,
            "config": self.config.to_json(),
            # A job that may train for more epochs is the same job.
            "plan": asdict(self.plan) | {"epochs": None},
            "requests": len(self.data.train),
        }
        return Checkpoints(self.place.with_name(name), job, self.data.parents)


def train_in_ranks(ranks: int, model: ClickModel, fitted: Callable[..., Outcome]) -> None:
    """Train in so many processes, and leave the result in the checkpoint of the last epoch."""
    from ranker.sharded import ShardedLearner, ShardedModel

    def rank(share: Share) -> None:
        sharded = ShardedModel(model, share)
        fitted(sharded, sharded, share, ShardedLearner)

    in_ranks(ranks, rank)


def _validate(
    logits: Logits, valid: StoredRequests, encoder: FrameEncoder, loss: str, share: Share = ALL
) -> float:
    total, weight = 0.0, 0
    for batch in share.batches(valid, encoder, batched(len(valid))):
        with torch.no_grad():
            value = float(training_loss(logits, batch, loss))
        units = counted(batch, loss)
        total, weight = total + value * units, weight + units
    return share.total(total) / max(share.total(weight), 1)
