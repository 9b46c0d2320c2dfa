"""A batch: what the ranker's models compute on. Torch only: no store, no files.

Legend: R requests, N candidate slots per request, L history slots per request, K behaviours found for a candidate,
V vector width, F numbers.
A slot without a candidate or behaviour is an *empty bag*: the tables answer zeros for it, so padding needs no
copy of any embedding. Candidates fill their row from the left; histories from the right, so the last slot is
always the newest behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor


@dataclass(frozen=True)
class Batch:
    """R requests with padded candidates and histories.

    Attributes:
        items: key ``item_id``, R·N candidate slots then R·L history slots.
        candidates: keys ``inputs.CANDIDATE_IDS`` and ``attributes``, R·N slots.
        requests: keys ``inputs.REQUEST_IDS``, R rows.
        behaviours: keys ``code``, ``age`` and those of the behaviours' features that enter as ids, R·L slots.
        behaviour_numbers: float32 [R, L, F], standardised, zero in empty slots.
        candidate_numbers: float32 [R, N, F], standardised, zero in empty slots.
        request_numbers: float32 [R, F].
        candidate_mask: bool [R, N], slots that hold a candidate.
        history_mask: bool [R, L], slots that hold a behaviour.
        target_content: float32 [R, N, V], unit norm, zeros where unknown; V = 0 without vectors.
        target_known: bool [R, N].
        history_content: float32 [R, L, V].
        history_known: bool [R, L].
        query_content: float32 [R, V].
        query_known: bool [R].
        found_slot: int64 [R, N, K], the slots, of L, of the behaviours that a search found for a candidate.
        found_mask: bool [R, N, K], false where fewer than K were found; K is 0 where the model does not search.
        found_cosine: float32 [R, N, K], of content vectors with the candidate; zeros where nothing was compared.
        found_times: int64 [R, N, K], how many behaviours each stands for, 0 where there is none.
        found_count: int64 [R, N], how many matched.
        position: int64 [R, N], place in the logged slate counted from 0, -1 when not logged.
        label: float32 [R, N], zero when there is none.
        later: float32 [R, N, T], 1 where the click was followed by the step (``ranker.steps``).
    """

    items: KeyedJaggedTensor
    candidates: KeyedJaggedTensor
    requests: KeyedJaggedTensor
    behaviours: KeyedJaggedTensor
    behaviour_numbers: Tensor
    candidate_numbers: Tensor
    request_numbers: Tensor
    candidate_mask: Tensor
    history_mask: Tensor
    target_content: Tensor
    target_known: Tensor
    history_content: Tensor
    history_known: Tensor
    query_content: Tensor
    query_known: Tensor
    found_slot: Tensor
    found_mask: Tensor
    found_cosine: Tensor
    found_times: Tensor
    found_count: Tensor
    position: Tensor
    label: Tensor
    later: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(R, N, L)."""
        return self.candidate_mask.shape[0], self.candidate_mask.shape[1], self.history_mask.shape[1]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})
