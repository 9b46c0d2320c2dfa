"""Mixtures of experts that replace the feed-forward block of a decoder layer (MOON §2.1, MOON2.0 §3.2).

Both mixtures have the same interface, ``experts(hidden_TH, kinds_T)``, and are initialised from the block they
replace.

Shapes: T packed tokens, H hidden width, Z experts, R experts that the router chooses among, K experts per token,
B sequences.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CATEGORY, ATTRIBUTE = 1, 2  # kinds of token with their own expert in MOON
NOISE = 0.01  # standard deviation of the noise added to each copied matrix, as a fraction of the matrix's own


@dataclass(frozen=True)
class Routed:
    """Output of a mixture of experts, and how it routed the tokens.

    Attributes:
        hidden_TH: float, the mixture's output.
        weight_TZ: float, weight of each expert in a token's output: rows sum to 1, zero where not chosen.
        probability_TZ: float, the router's softmax over the experts it may choose; zero for other experts, and for
            tokens that were not routed by the router.
    """

    hidden_TH: Tensor
    weight_TZ: Tensor
    probability_TZ: Tensor


class ModalityExperts(nn.Module):
    """The modality-driven mixture of MOON2.0 §3.2: a token's output is the gated sum of its ``top`` experts.

    G = softmax(W_g h); G~ is G over the ``top`` largest, renormalised; h^ = sum_z G~_z f_z(h).
    Z, top and the initialisation of the experts are not recovered. Every expert starts as a copy of the layer's
    feed-forward block with 1 % noise ("upcycling"). As the weights G~ sum to 1, the output of a checkpoint is almost
    unchanged at the start. Models trained from scratch are initialised in the same way; their experts diverge as they
    see different tokens.

    Args:
        feed_forward: the block to replace, (T, H) -> (T, H).
        hidden: H.
        experts: Z.
        top: K, at least 2: a single renormalised weight is always 1, so the router would have no gradient.

    Raises:
        ValueError: ``top`` outside 2..experts.
    """

    def __init__(self, feed_forward: nn.Module, hidden: int, experts: int = 4, top: int = 2) -> None:
        super().__init__()
        if not 2 <= top <= experts:
            raise ValueError(f"top: expected 2 to {experts}, the number of experts, found {top}.")
        self.experts = upcycle(feed_forward, experts)
        self.router = nn.Linear(hidden, experts, bias=False)
        self.top = top

    def forward(self, hidden_TH: Tensor, kinds_T: Tensor | None = None) -> Routed:
        """Route every token by its hidden state; ``kinds_T`` is ignored."""
        probability_TZ = choose(self.router, hidden_TH)
        best_TK, expert_TK = probability_TZ.topk(self.top, dim=-1)
        weight_TK = best_TK / best_TK.sum(dim=-1, keepdim=True)
        weight_TZ = torch.zeros_like(probability_TZ).scatter(1, expert_TK, weight_TK)
        return Routed(dispatch(self.experts, hidden_TH, expert_TK, weight_TK), weight_TZ, probability_TZ)


class GuidedExperts(nn.Module):
    """The guided mixture of MOON §2.1: FFN_1..FFN_(Z-2), then FFN_cate and FFN_attr.

    Category tokens go to FFN_cate and attribute tokens to FFN_attr; for every other token the router chooses one of
    the other experts. Z, the number of choices and their weight are not recovered. The chosen expert's output is
    multiplied by p / stop_gradient(p), p its probability: a factor of exactly 1 that leaves the output unchanged
    but gives the router a gradient, as in Switch Transformers (§2.1 there).

    Args:
        feed_forward: the block to replace, (T, H) -> (T, H); copied as in ``ModalityExperts``.
        hidden: H.
        experts: Z, including the two guided ones.

    Raises:
        ValueError: fewer than 3 experts.
    """

    def __init__(self, feed_forward: nn.Module, hidden: int, experts: int = 4) -> None:
        super().__init__()
        if experts < 3:
            raise ValueError(f"experts: expected category, attribute and at least one more, found {experts}.")
        self.experts = upcycle(feed_forward, experts)
        self.router = nn.Linear(hidden, experts - 2, bias=False)

    def forward(self, hidden_TH: Tensor, kinds_T: Tensor | None = None) -> Routed:
        """Send category and attribute tokens to their experts, the others to the router's choice.

        Args:
            hidden_TH: float.
            kinds_T: int64, 1 category, 2 attribute, anything else other (image tokens are 0); None: all other.
        """
        probability_TR = choose(self.router, hidden_TH)
        best_T, expert_T = probability_TR.max(dim=-1)
        weight_T = best_T / best_T.detach()
        if kinds_T is not None:
            guided_T = (kinds_T == CATEGORY) | (kinds_T == ATTRIBUTE)
            own_T = len(self.experts) - 3 + kinds_T  # the last two experts, in the order of the kinds
            expert_T = torch.where(guided_T, own_T, expert_T)
            weight_T = weight_T.masked_fill(guided_T, 1.0)
            probability_TR = probability_TR.masked_fill(guided_T[:, None], 0.0)
        probability_TZ = nn.functional.pad(probability_TR, (0, 2))
        weight_TZ = torch.zeros_like(probability_TZ).scatter(1, expert_T[:, None], weight_T[:, None])
        hidden = dispatch(self.experts, hidden_TH, expert_T[:, None], weight_T[:, None])
        return Routed(hidden, weight_TZ, probability_TZ)


def upcycle(feed_forward: nn.Module, count: int) -> nn.ModuleList:
    """``count`` copies of a block with ``NOISE`` added to every matrix, so that no two are equal.

    Sparse upcycling (Komatsuzaki et al., 2023) makes exact copies; ours differ, because equal experts would diverge
    only through the gate. Uses torch's global generator.
    """
    copies = nn.ModuleList(copy.deepcopy(feed_forward) for _ in range(count))
    with torch.no_grad():
        for matrix in copies.parameters():
            if matrix.ndim > 1:
                matrix.add_(torch.randn_like(matrix) * matrix.std(), alpha=NOISE)
    return copies


def choose(router: nn.Linear, hidden_TH: Tensor) -> Tensor:
    """softmax(W_g h), at least in float32 (selective precision, Switch Transformers §2.4)."""
    score_TZ = router(hidden_TH)
    return score_TZ.softmax(dim=-1, dtype=torch.promote_types(score_TZ.dtype, torch.float32))


def dispatch(experts: nn.ModuleList, hidden_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """sum_k weight[t, k] * experts[expert[t, k]](hidden[t]), each expert run once, on its own tokens.

    Reading the group sizes synchronises with the device once per call.

    Args:
        experts: Z blocks, (any, H) -> (any, H).
        hidden_TH: float.
        expert_TK: int64, the experts of each token, no expert twice.
        weight_TK: float.

    Returns:
        float (T, H).
    """
    top = expert_TK.shape[1]
    flat = expert_TK.flatten()
    order = flat.argsort(stable=True)
    token = order.div(top, rounding_mode="floor")
    sizes = flat.bincount(minlength=len(experts)).tolist()
    groups = hidden_TH.index_select(0, token).split(sizes)
    # An expert without tokens runs on an empty batch, so that its gradient is zero instead of None.
    out = torch.cat([expert(group) for expert, group in zip(experts, groups, strict=True)])
    weighted = out * weight_TK.flatten().index_select(0, order)[:, None]
    summed = weighted.new_zeros(hidden_TH.shape).index_add(0, token, weighted)
    return summed.to(hidden_TH.dtype)


def load_balance(weight_TZ: Tensor, probability_TZ: Tensor) -> Tensor:
    """The auxiliary loss of Switch Transformers §2.2 (MOON2.0's L_aux): Z sum_z f_z P_z.

    f_z is the fraction of the router's choices that are expert z, P_z the mean probability of z. Z is the number of
    experts that the router may choose; tokens that it did not route are ignored. 1 when f and P are uniform, up to
    Z / top when all tokens go to the same experts, 0 when the router routed no token.

    Args:
        weight_TZ, probability_TZ: as in ``Routed``.
    """
    open_Z = (probability_TZ > 0).any(dim=0)
    routed_T = (probability_TZ > 0).any(dim=1)
    chosen_TZ = (weight_TZ > 0) & routed_T[:, None]
    fraction_Z = chosen_TZ.sum(dim=0) / chosen_TZ.sum().clamp(min=1)
    mean_Z = probability_TZ.sum(dim=0) / routed_T.sum().clamp(min=1)
    return open_Z.sum() * (fraction_Z * mean_Z).sum()


def per_sequence(weight_TZ: Tensor, sequence_T: Tensor, count: int) -> Tensor:
    """Mean weight of each expert over each sequence's tokens: the G~_(z,b) of MOON2.0 §3.2.

    Args:
        weight_TZ: as in ``Routed``.
        sequence_T: int64, which of the ``count`` sequences each token belongs to; none is empty.
        count: B.

    Returns:
        float (B, Z), rows sum to 1.
    """
    total_BZ = weight_TZ.new_zeros(count, weight_TZ.shape[1]).index_add(0, sequence_T, weight_TZ)
    return total_BZ / sequence_T.bincount(minlength=count)[:, None]
