"""Batches of the two-tower model: positives and sampled negatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from dataset.contracts import DataError
from dataset.jagged import owners
from feature_repo.frame import Frame, StoredRequests
from feature_repo.vectors import rows_of
from ranker.inputs.columns import ITEM, request_time_us, require_columns
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.inputs.padding import slots
from ranker.two_tower.model import ItemSide, UserSide

REQUESTS = 512  # per batch at most; small data get batches small enough for STEPS of them
STEPS = 16
UNIFORM = 2048  # items drawn evenly from those ever taken beside a batch's own (mixed negatives, WWW 2020)
VALID_FRACTION = 0.05  # of the users, held out to choose the epoch
ROWS = 4096  # requests read at once


@dataclass(frozen=True)
class Sample:
    """A training batch: P positives of R requests against M sampled items.

    Attributes:
        user: the requests.
        item: the sampled items.
        ids: key ``item_id``: the behaviours' slots, then the sampled items.
        request: int64 [P], whose positive.
        positive: int64 [P], its column among the sampled items.
        chance: float32 [M], each sampled item's chance of being in a batch.
        excluded: bool [P, M], other positives of the same request.
    """

    user: UserSide
    item: ItemSide
    ids: KeyedJaggedTensor
    request: Tensor
    positive: Tensor
    chance: Tensor
    excluded: Tensor


def user_side(encoder: FrameEncoder, frame: Frame) -> tuple[UserSide, np.ndarray]:
    """The user tower's inputs, and which history slots are filled, bool [R, L]."""
    encoder.require("request", frame.requests)
    time_us = request_time_us(frame.requests)
    history_mask = slots(np.diff(frame.history.offsets), left=False)
    behaved_us = np.repeat(time_us, np.diff(frame.history.offsets))
    content, _ = encoder.content(frame.history.item_id, history_mask, behaved_us)
    behaviours, behaviour_numbers = encoder.behaviours(frame.history, time_us, history_mask)
    side = UserSide(
        requests=encoder.ids("request", frame.requests, np.ones(len(frame), dtype=bool)),
        behaviours=behaviours,
        behaviour_numbers=behaviour_numbers,
        numbers=torch.from_numpy(encoder.numbers("request", frame.requests, time_us)),
        history_mask=torch.from_numpy(history_mask),
        history_content=content,
    )
    return side, history_mask


def item_side(encoder: FrameEncoder, items: pa.Table) -> ItemSide:
    """The item tower's inputs."""
    everywhere = np.ones((1, len(items)), dtype=bool)
    content, _ = encoder.content(items[ITEM].to_numpy(), everywhere)
    numbers = torch.from_numpy(encoder.numbers("candidate", items, np.zeros(len(items), np.int64)))
    return ItemSide(encoder.ids("candidate", items, everywhere[0]), numbers, content[0])


def inclusion(positives: np.ndarray, requests: int, per_batch: int) -> np.ndarray:
    """Each item's chance of being in a batch of ``per_batch`` requests and UNIFORM even draws, float32 [N].

    Even draws are from the items with a positive: of others training says nothing, least of all that they are bad.

    Args:
        positives: int64 [N], how often each item is a training positive.
        requests: how many training requests these came from.
        per_batch: how many of them a batch draws.
    """
    taken = positives > 0
    missed = (1 - np.minimum(positives / requests, 1)) ** per_batch * (1 - 1 / taken.sum()) ** UNIFORM
    return np.where(taken, 1 - missed, 0).astype(np.float32)


class Sampler:
    """Draws batches: requests with a positive, against the batch's and some of the catalogue's items.

    Args:
        train: requests whose candidates with ``label`` > 0 are the positives.
        catalogue: N rows of item features, by ascending item_id.
        encoder: makes the towers' inputs.
        seed: of the held-out users and of every draw.

    Attributes:
        per_batch: requests of a batch.
        taken: int64 [N], how often each item is a positive.
        chance: float32 [N], each item's chance of being in a batch.
        learned: int64, requests to learn from.
        held_out: int64, requests of the users held out to choose the epoch.

    Raises:
        DataError: no positives, or positives outside the catalogue.
    """

    def __init__(self, train: StoredRequests, catalogue: pa.Table, encoder: FrameEncoder, seed: int) -> None:
        self.train, self.catalogue, self.encoder, self.seed = train, catalogue, encoder, seed
        self.ids = catalogue[ITEM].to_numpy()
        drawn = np.zeros(len(self.ids), dtype=np.int64)
        has_positive, users = np.zeros(len(train), dtype=bool), np.zeros(len(train), dtype=np.int64)
        for start in range(0, len(train), ROWS):
            frame = train.take(start, min(start + ROWS, len(train)))
            request, rows = self.positives(frame)
            has_positive[start + request] = True
            users[start : start + len(frame)] = frame.requests["user_id"].to_numpy()
            drawn += np.bincount(rows, minlength=len(drawn))
        if not drawn.sum():
            raise DataError(f"expected positives among {len(train)} training requests, found none")
        known = np.unique(users)
        draw = np.random.default_rng((seed, 1))
        away = draw.choice(known, int(VALID_FRACTION * len(known)), replace=False)
        held_out = np.isin(users, away)
        self.learned = np.flatnonzero(has_positive & ~held_out)
        self.held_out = np.flatnonzero(has_positive & held_out)
        self.per_batch = int(np.clip(len(self.learned) // STEPS, 32, REQUESTS))
        self.taken = drawn
        self.chance = inclusion(drawn, int(has_positive.sum()), self.per_batch)

    def steps(self) -> int:
        """Batches of an epoch over ``learned``."""
        return -(-len(self.learned) // self.per_batch)

    def batches(self, requests: np.ndarray, epoch: int) -> Iterator[Sample]:
        """All positives of ``requests`` in an order drawn from (seed, epoch)."""
        draw = np.random.default_rng((self.seed, 2, epoch))
        order = draw.permutation(requests)
        for start in range(0, len(order), self.per_batch):
            yield self._sample(self.train.select(order[start : start + self.per_batch]), draw)

    def positives(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Request and catalogue row of every positive of a frame, int64 [P] each."""
        require_columns(frame.candidates, (ITEM, "label"), "candidates")
        liked = pc.fill_null(frame.candidates["label"].combine_chunks(), 0).to_numpy(zero_copy_only=False) > 0
        ids = frame.candidates[ITEM].to_numpy()[liked]
        rows = rows_of(self.ids, ids)
        strange = rows < 0
        if strange.any():
            raise DataError(
                f"expected positives from the catalogue of {len(self.ids)} items, found {int(strange.sum())} "
                f"others (item_id {ids[strange][:3].tolist()}). Run 'moon dataset'."
            )
        return owners(frame.offsets)[liked], rows

    def _sample(self, frame: Frame, draw: np.random.Generator) -> Sample:
        request, rows = self.positives(frame)
        sampled, positive = np.unique(
            np.concatenate([rows, draw.choice(np.flatnonzero(self.taken), UNIFORM)]), return_inverse=True
        )
        positive = positive[: len(rows)]
        excluded = np.zeros((len(frame), len(sampled)), dtype=bool)
        excluded[request, positive] = True
        excluded = excluded[request]
        excluded[np.arange(len(rows)), positive] = False
        user, history_mask = user_side(self.encoder, frame)
        items = self.catalogue.take(pa.array(sampled))
        behaved, everywhere = frame.history.item_id, np.ones((1, len(sampled)), dtype=bool)
        return Sample(
            user=user,
            item=item_side(self.encoder, items),
            ids=self.encoder.item_ids(behaved, self.ids[sampled], history_mask, everywhere),
            request=torch.from_numpy(request),
            positive=torch.from_numpy(positive),
            chance=torch.from_numpy(self.chance[sampled]),
            excluded=torch.from_numpy(excluded),
        )
