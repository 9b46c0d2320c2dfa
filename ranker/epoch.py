"""The batches of an epoch: drawn from a seed, of requests with about as many candidates each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from feature_repo.frame import StoredRequests
from ranker.inputs.batch import Batch
from ranker.inputs.frame_encoder import FrameEncoder, size_groups
from ranker.ranks import ALL, Share

POOL = 64  # batches are cut from pools of so many shuffled batches' requests, sorted by number of candidates


def epoch_batches(
    train: StoredRequests,
    counts: np.ndarray,
    encoder: FrameEncoder,
    slots_per_batch: int,
    seed: tuple[int, int],
    share: Share = ALL,
    done: int = 0,
) -> Iterator[Batch]:
    """The batches of an epoch in an order drawn from ``seed``; the first ``done`` are left out."""
    draw = np.random.default_rng(seed)
    pool = max(1, int(POOL * slots_per_batch / max(counts.mean(), 1)))
    windows = windows_of(np.flatnonzero(counts > 0), train.windows, draw)
    for rows in windows:
        order = draw.permutation(rows)
        groups = [
            rows for start in range(0, len(order), pool)
            for rows in size_groups(counts, order[start : start + pool], slots_per_batch)
        ]  # fmt: skip
        if len(windows) > 1 or len(order) > pool:
            groups = _without_small(groups, counts, slots_per_batch)
        left = draw.permutation(len(groups))[done:]
        yield from share.batches(train, encoder, [groups[group] for group in left])
        done = max(done - len(groups), 0)


def windows_of(rows: np.ndarray, windows: np.ndarray | None, draw: np.random.Generator) -> list[np.ndarray]:
    """The requests that are shuffled together, in random order: those of a window, or all where all are in memory."""
    if windows is None or not len(rows):
        return [rows]
    parts = np.split(rows, np.flatnonzero(np.diff(windows[rows])) + 1)
    return [parts[one] for one in draw.permutation(len(parts))] if len(parts) > 1 else parts


def _without_small(groups: Sequence[np.ndarray], counts: np.ndarray, slots: int) -> list[np.ndarray]:
    """The batches of a window, or of several pools, those less than half full joined to the one before.

    A batch of few requests moves the weights as far as a full one does, and each window and pool ends with one: they
    cost quality (docs/log/ranker.md#a-whole-training-in-windows). A joined batch has at most half as many slots
    again; where it would have more, the small one stays.
    """
    kept: list[np.ndarray] = []
    for rows in groups:
        both = np.concatenate([*kept[-1:], rows])
        small = len(rows) * counts[rows].max() < slots / 2
        if kept and small and len(both) * counts[both].max() <= 1.5 * slots:
            kept[-1] = both
        else:
            kept.append(rows)
    return kept
