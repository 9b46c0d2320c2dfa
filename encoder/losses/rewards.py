"""The four rewards of MOON3.0's reinforcement learning (§4.2): format, length, retrieval, attributes.

The paper names them; their formulas and weights are not recovered. Ours all lie in [0, 1]. A chain that is not
well-formed has no attributes, so it earns neither the format nor the attribute reward.
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

    Format and length only have to keep a supervised model from forgetting the form, so they weigh little.
    """

    format: float = 0.25
    length: float = 0.25
    retrieval: float = 0.5
    attributes: float = 1.0

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of rewards of equal shape, by the names of the weights."""
        return (
            self.format * parts["format"]
            + self.length * parts["length"]
            + self.retrieval * parts["retrieval"]
            + self.attributes * parts["attributes"]
        )


def format_reward(said: Mapping[str, str] | None, asked: Sequence[str]) -> float:
    """1 when a chain is well-formed and names exactly the fields asked for, once each and in their order.

    Args:
        said: what ``encoder.parts.chain.read_chain`` made of the chain.
        asked: names of the fields of the item's true chain.
    """
    return float(said is not None and list(said) == list(asked))


def length_reward(length: int, shortest: int, longest: int) -> float:
    """1 when a chain of ``length`` tokens is neither shorter nor longer than the bounds, both included."""
    return float(shortest <= length <= longest)


def field_rewards(said: Mapping[str, str] | None, true: Mapping[str, str]) -> dict[str, float]:
    """Of each true field: 1 when the chain says the same value, else 0. Compared letter by letter, cleaned."""
    return {name: float(said is not None and said.get(name) == value) for name, value in true.items()}


def attribute_reward(said: Mapping[str, str] | None, true: Mapping[str, str]) -> float:
    """Share of an item's true fields that a chain states rightly; 0 of an item that has none."""
    fields = field_rewards(said, true)
    return sum(fields.values()) / len(fields) if fields else 0.0


def retrieval_reward(
    rollout_RD: Tensor, candidate_BD: Tensor, positive_R: Tensor, masked_RB: Tensor | None = None
) -> Tensor:
    """Reciprocal of the rank at which each rollout's vector finds its positive among the batch's candidates.

    The mean reciprocal rank of search rather than a hit within k: it still tells the rollouts of one group
    apart once all of them are within k. Ties count half, so a collapsed space earns no reward.

    Args:
        rollout_RD: float, vectors of R rollouts, compared by cosine.
        candidate_BD: float, vectors of the batch's candidates.
        positive_R: int64, row of each rollout's positive.
        masked_RB: bool, candidates that are no fair competitor of a rollout (see
            ``encoder.losses.info_nce.false_negatives``); None when all are.

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
