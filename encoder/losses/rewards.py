"""The four rewards of MOON3.0's reinforcement learning (§4.2): format, length, retrieval, attributes.

The paper names them; their formulas and weights are not recovered. Ours are all in [0, 1]. A malformed chain has no
attributes, so it gets neither the format nor the attribute reward.

Shapes: B candidates, R rollouts, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each reward in the total (not recovered; ours).

    Format and length have small weights: they only keep the supervised model from forgetting the format.
    """

    format: float = 0.25
    length: float = 0.25
    retrieval: float = 0.5
    attributes: float = 1.0

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the four rewards, tensors of equal shape."""
        return (
            self.format * parts["format"]
            + self.length * parts["length"]
            + self.retrieval * parts["retrieval"]
            + self.attributes * parts["attributes"]
        )


def format_reward(said: Mapping[str, str] | None, asked: Sequence[str]) -> float:
    """1 when a chain is well-formed and has exactly the fields of the item's true chain, in their order; else 0.

    Args:
        said: the chain's fields as parsed by ``encoder.parts.chain.read_chain``; None: malformed.
        asked: field names of the item's true chain.
    """
    return float(said is not None and list(said) == list(asked))


def length_reward(length: int, shortest: int, longest: int) -> float:
    """1 when the number of tokens of a chain is between the bounds, both included; else 0."""
    return float(shortest <= length <= longest)


def field_rewards(said: Mapping[str, str] | None, true: Mapping[str, str]) -> dict[str, float]:
    """For each true field: 1 when the chain has exactly the same (cleaned) value, else 0."""
    return {name: float(said is not None and said.get(name) == value) for name, value in true.items()}


def attribute_reward(said: Mapping[str, str] | None, true: Mapping[str, str]) -> float:
    """Fraction of an item's true fields that the chain states correctly; 0 for an item without fields."""
    fields = field_rewards(said, true)
    return sum(fields.values()) / len(fields) if fields else 0.0


def retrieval_reward(
    rollout_RD: Tensor, candidate_BD: Tensor, positive_R: Tensor, masked_RB: Tensor | None = None
) -> Tensor:
    """Reciprocal rank of each rollout's positive among the batch's candidates.

    Reciprocal rank rather than hit@k, as it still distinguishes the rollouts of a group when all are hits. Ties count
    half, so collapsed vectors are not rewarded.

    Args:
        rollout_RD: float, vectors of R rollouts, compared by cosine.
        candidate_BD: float, vectors of the batch's candidates.
        positive_R: int64, row of each rollout's positive.
        masked_RB: bool, true for candidates that are false negatives of a rollout (see
            ``encoder.losses.info_nce.false_negatives``); None masks none.

    Returns:
        float (R), in (0, 1], without gradient.
    """
    rollout, candidate = F.normalize(rollout_RD.detach(), dim=-1), F.normalize(candidate_BD.detach(), dim=-1)
    score = rollout @ candidate.T
    own = score.gather(1, positive_R[:, None])
    rival = torch.ones_like(score, dtype=torch.bool).scatter(1, positive_R[:, None], False)
    if masked_RB is not None:
        rival &= ~masked_RB
    ahead = ((score > own) & rival).sum(1) + 0.5 * ((score == own) & rival).sum(1)
    return 1 / (1 + ahead)
