"""Group-relative policy optimisation of attribute chains (MOON3.0 §4.2; GRPO, arXiv 2402.03300 §4.1).

Shapes: B inputs, G rollouts of each, R = B * G rollouts, L tokens of the longest rollout; others are right-padded.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLIP = 0.2  # epsilon of the ratio; not recovered for MOON3.0, value of GRPO
KL_WEIGHT = 0.04  # beta; not recovered for MOON3.0, value of GRPO
SAME = 1e-6  # rewards with a smaller deviation differ by rounding only


def group_advantages(reward_BG: Tensor) -> Tensor:
    """How much better each rollout is than its group: A_g = (R_g - mean R) / std R.

    In a group whose rewards are all equal, all advantages are 0. The standard deviation divides by G (the papers do
    not say).

    Args:
        reward_BG: float; may have further dimensions after G if each token or field has its own reward.

    Returns:
        float of the same shape; mean 0 over each group.
    """
    centred = reward_BG - reward_BG.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(deviation > SAME, centred / deviation.clamp(min=SAME), torch.zeros_like(centred))


def kl_estimate(policy: Tensor, reference: Tensor) -> Tensor:
    """Unbiased, non-negative estimate of KL(policy || reference) at each sampled token: r - log r - 1.

    With r = reference probability / policy probability (Schulman's k3, equation 4 of GRPO).

    Args:
        policy, reference: float, log-probabilities of the same sampled tokens.
    """
    ratio = reference - policy
    return ratio.exp() - ratio - 1


def grpo_loss(
    policy_RL: Tensor,
    sampled_RL: Tensor,
    reference_RL: Tensor,
    advantage: Tensor,
    mask_RL: Tensor,
    clip: float = CLIP,
    kl_weight: float = KL_WEIGHT,
) -> Tensor:
    """The negative clipped objective of GRPO, equation 3: mean over rollouts of the mean over their tokens.

    Per token: min(w A, clamp(w, 1 - clip, 1 + clip) A) - kl_weight KL, with w = policy / sampled probability.

    Args:
        policy_RL: float, log-probabilities of the sampled tokens under the model in training, with gradient.
        sampled_RL: the same under the model that sampled them.
        reference_RL: the same under the reference, the supervised model.
        advantage: float (R), one per rollout, or (R, L), one per token.
        mask_RL: bool, true for sampled tokens, false for padding and given tokens.
    """
    advantage_RL = advantage[:, None] if advantage.ndim == 1 else advantage
    # Mask before the exponentials: padding could overflow, and zero times infinity makes the gradient NaN.
    policy_RL, sampled_RL, reference_RL = (
        chance.masked_fill(~mask_RL, 0) for chance in (policy_RL, sampled_RL.detach(), reference_RL.detach())
    )
    ratio = (policy_RL - sampled_RL).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * advantage_RL, clipped * advantage_RL)
    token = (gain - kl_weight * kl_estimate(policy_RL, reference_RL)) * mask_RL
    return -(token.sum(1) / mask_RL.sum(1).clamp(min=1)).mean()
