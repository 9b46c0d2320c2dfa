"""The contract of a ranker module: one idea of what makes a user click, one file in this folder.

A module says what it reads by the arguments of its ``forward``, each the name of a field of ``Features``, and how
wide its output is by ``per_candidate`` and ``per_request``. The model looks up, adds up and learns the rest.
``tests/contracts/ranker_module.py`` tests every module.

The last letters of a name are its dimensions: R requests, N candidates, L behaviours, K behaviours found for a
candidate, D width of an id embedding, V width of a content vector, and as below.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True)
class Widths:
    """What a module may build its weights from: the widths of ``Features``.

    Attributes:
        ids: D, of one id embedding.
        item: I, of all id embeddings of a candidate side by side, ``item_id`` first.
        user: U, of all id embeddings of a request side by side.
        content: V, of the item and query vectors.
        history: most behaviours of a request that a module reads; a batch may hold fewer, L <= history.
        candidate_numbers: F, of a candidate's numbers.
        request_numbers: G, of a request's numbers.
    """

    ids: int
    item: int
    user: int
    content: int
    history: int
    candidate_numbers: int
    request_numbers: int


@dataclass(frozen=True)
class Features:
    """What modules can read of a batch, float32 but for the masks.

    Candidates are padded on the right and behaviours on the left, so the last behaviour is the newest; id
    embeddings and vectors of padding are zeros. Where a recipe searches, the behaviours are its recent ones.

    Attributes:
        target_RND: id embeddings of the candidates' ``item_id``.
        item_RNI: id embeddings of all of a candidate's ids, I = fields x D: item, category, attributes, ...
        user_RU: id embeddings of all of a request's ids, U = fields x D: user, query, age band, segment.
        behaved_RLD: id embeddings of the behaviours' ``item_id``, from the same table as ``target_RND``.
        history_RLD: ``behaved_RLD`` plus what each behaviour was, how long ago, and its features.
        candidate_mask_RN: bool, slots that hold a candidate.
        history_mask_RL: bool, slots that hold a behaviour.
        candidate_numbers_RNF: standardised.
        request_numbers_RG: standardised.
        target_content_RNV: content vectors of the candidates, unit norm, zeros where unknown.
        target_known_RN: bool, candidates that have a vector.
        history_content_RLV: content vectors of the behaviours.
        history_known_RL: bool, behaviours that have a vector.
        query_content_RV: content vectors of the queries, zeros where nothing was searched for.
        query_known_R: bool, requests that search for something; without content vectors it is known, too.
        found_RNKD: the behaviours that the recipe's search found for a candidate in the whole history, embedded as
            in ``history_RLD``, in any order.
        found_mask_RNK: bool, slots that hold one.
        found_cosine_RNK: of their content vectors with the candidate's; zeros where nothing was compared.
        found_times_RNK: int64, how many behaviours each stands for: a search by content finds items, each of which
            may have been met often; 0 where there is none.
        found_count_RN: int64, how many matched, which may be more than K.
    """

    target_RND: Tensor
    item_RNI: Tensor
    user_RU: Tensor
    behaved_RLD: Tensor
    history_RLD: Tensor
    candidate_mask_RN: Tensor
    history_mask_RL: Tensor
    candidate_numbers_RNF: Tensor
    request_numbers_RG: Tensor
    target_content_RNV: Tensor
    target_known_RN: Tensor
    history_content_RLV: Tensor
    history_known_RL: Tensor
    query_content_RV: Tensor
    query_known_R: Tensor
    found_RNKD: Tensor
    found_mask_RNK: Tensor
    found_cosine_RNK: Tensor
    found_times_RNK: Tensor
    found_count_RN: Tensor


# A module that reads one of these is left out of the controls without vectors.
CONTENT = frozenset(
    (
        "target_content_RNV",
        "target_known_RN",
        "history_content_RLV",
        "history_known_RL",
        "query_content_RV",
        "found_cosine_RNK",
    )
)
# What the search of a recipe gives.
FOUND = frozenset(("found_RNKD", "found_mask_RNK", "found_cosine_RNK", "found_times_RNK", "found_count_RN"))


class Output(NamedTuple):
    """What a module computed, for the network behind it.

    Attributes:
        candidate: float32 [R, N, per_candidate]; None where that is 0. A candidate's row depends on its request
            and itself only; rows of padding are undefined.
        request: float32 [R, per_request]; None where that is 0.
    """

    candidate: Tensor | None = None
    request: Tensor | None = None


class Module(nn.Module):
    """A part of the click model; built from ``Widths`` and its options by name, which are JSON values.

    Attributes:
        per_candidate: width of its output for a candidate, set when it is built.
        per_request: width of its output for a request, set when it is built.
        pretraining: epochs that it trains alone before the whole model does, as a click model of its own whose logit
            is the last number of its output for a candidate; no id table learns then.
        longest: most behaviours that it can read; None: any number.
    """

    per_candidate: int = 0
    per_request: int = 0
    pretraining: int = 0
    longest: int | None = None
    forward: Callable[..., Output]

    def learn(self, content_MV: Tensor, seed: int) -> None:
        """Fit what is fitted to content vectors before training; most modules have nothing of the kind.

        Args:
            content_MV: float32, a vector of each of the M items of the training requests that had one; M >= 1.
            seed: of everything random.
        """

    @classmethod
    @cache
    def reads(cls) -> tuple[str, ...]:
        """Names of the features that ``forward`` takes."""
        return tuple(inspect.signature(cls.forward).parameters)[1:]


Build = Callable[[Widths], Module]  # a module's class, or ``functools.partial`` of one with its options
