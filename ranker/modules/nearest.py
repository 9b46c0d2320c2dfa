"""The behaviours nearest to each candidate of a long history, found without a gradient and in little memory.

Scores are computed in blocks that fit a processor's cache.

Legend: R requests, N candidates, L behaviours, K kept behaviours, V width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TIE = 1e-5  # scores of equal behaviours differ by rounding alone
BLOCK = 1 << 19  # scores computed at once: two MiB of them


class Nearest(NamedTuple):
    """The kept behaviours of each candidate as a list.

    Attributes:
        place_RNK: int64, their places in the history, in any order.
        score_RNK: their scores.
        real_RNK: bool, false where fewer were found than K; place and score are anything there.
    """

    place_RNK: Tensor
    score_RNK: Tensor
    real_RNK: Tensor


@torch.no_grad()
def nearest(query_RNV: Tensor, key_RLV: Tensor, allowed_RL: Tensor, keep: int) -> Nearest:
    """The ``keep`` behaviours of the largest product with each candidate; of equal ones the latest.

    Args:
        query_RNV: of the candidates.
        key_RLV: of the behaviours, the newest last.
        allowed_RL: bool, those among which is searched.
        keep: how many; fewer are kept where fewer are allowed, and K is at most this.
    """
    requests, slots, _ = query_RNV.shape
    together = max(BLOCK // (slots * key_RLV.shape[1]), 1)
    at_once = max(BLOCK // key_RLV.shape[1], 1)
    rows: list[Nearest] = []
    for first in range(0, requests, together):
        some = slice(first, first + together)
        parts = [
            _of_block(q, key_RLV[some], allowed_RL[some], keep) for q in query_RNV[some].split(at_once, 1)
        ]
        rows.append(_joined(parts, 1))
    return _joined(rows, 0)


def at_places(values_RLD: Tensor, place_RNK: Tensor) -> Tensor:
    """The values at places of a history, [R, N, K, D]."""
    requests, memory = values_RLD.shape[:2]
    first = torch.arange(0, requests * memory, memory, device=place_RNK.device)[:, None, None]
    rows = (place_RNK + first).flatten()
    return values_RLD.flatten(0, 1).index_select(0, rows).unflatten(0, place_RNK.shape)


def _joined(parts: list[Nearest], dim: int) -> Nearest:
    if len(parts) == 1:
        return parts[0]
    return Nearest(*(torch.cat(tensors, dim) for tensors in zip(*parts, strict=True)))


def _of_block(query_RNV: Tensor, key_RLV: Tensor, allowed_RL: Tensor, keep: int) -> Nearest:
    score = query_RNV @ key_RLV.transpose(1, 2)
    score.masked_fill_(~allowed_RL[:, None], -torch.inf)
    memory = score.shape[-1]
    first = score.topk(min(keep + 1, memory), dim=-1)
    found = Nearest(first.indices[..., :keep], first.values[..., :keep], first.values[..., :keep].isfinite())
    if memory > keep:
        last, next_one = first.values[..., -2], first.values[..., -1]
        undecided = ((next_one >= last - TIE) & next_one.isfinite()).nonzero(as_tuple=True)
        for kept, decided in zip(found, _decided(score[undecided], keep), strict=True):
            kept[undecided] = decided
    return found


def _decided(score_ML: Tensor, keep: int) -> Nearest:
    """The same of M candidates for which it matters which of equal behaviours are kept."""
    last = score_ML.topk(keep, dim=-1).values[..., -1:]
    place = torch.arange(score_ML.shape[-1], dtype=torch.float32, device=score_ML.device)
    # What is larger comes before what is equal, and of equals the latest first.
    order = torch.where(score_ML > last + TIE, place + len(place), place)
    order.masked_fill_(score_ML < last - TIE, -1)
    kept = order.topk(keep, dim=-1).indices
    return Nearest(kept, score_ML.gather(-1, kept), torch.ones_like(kept, dtype=torch.bool))
