"""Attention within packed sequences, without padding: sequences of one shape share one kernel call.

transformers looks attention functions up by name and calls them with arguments named as here; ours are registered
under the two names below.

Shapes: B sequences, L tokens of a sequence, T packed tokens, P patches, N heads, W head width, H hidden width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from encoder.backbone.kernels import norm_and_rotate, rotate

PICTURES = "flash_pictures"  # transformers passes whole batches if the name contains "flash"
GROUPS = "groups"


@lru_cache(maxsize=256)
def prefix_mask(length: int, prefix: int, device: torch.device) -> Tensor | None:
    """Attention mask: the first ``prefix`` tokens attend to each other, later ones to their past and themselves.

    Returns:
        bool (L, L), [from, to]; None when every token attends to every other.
    """
    if prefix >= length:
        return None
    place = torch.arange(length, device=device)
    return (place[None] < prefix) | (place[None] <= place[:, None])


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    groups: tuple[tuple[int, int, int], ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention within the sequences of ``encoder.backbone.packing.Packed.groups``.

    Args:
        module: the attention layer that calls.
        query, key, value: float (1, N, T, W).
        attention_mask: ignored with ``groups``.
        scaling: factor on the scores.
        groups: (sequences, length, prefix) of each run; None: padded sequences with an ordinary mask.
        kwargs: passed on for padded sequences.

    Returns:
        float (1, T, N, W), and None: weights are not computed.
    """
    if groups is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=False, **kwargs
        )
    # Split instead of sliced: the gradient of each slice is a full-size tensor of zeros, 15 % of a training step.
    sizes = [count * length for count, length, _ in groups]
    parts = []
    for (count, length, prefix), *split in zip(
        groups, *(x.squeeze(0).split(sizes, dim=1) for x in (query, key, value)), strict=True
    ):
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in split)
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=prefix_mask(length, prefix, query.device),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # B, N, L, W
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).unsqueeze(0), None


def picture_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention within each of many packed pictures, or windows of them.

    The model's own fallback calls the kernel once per picture: 14 % of a training step at size small.

    Args:
        module: the attention layer that calls.
        query, key, value: float (1, N, P, W).
        attention_mask: ignored.
        scaling: factor on the scores.
        kwargs: ``cu_seq_lens_q``, int (pictures + 1): where each picture begins and ends.
    """
    ends = kwargs["cu_seq_lens_q"].tolist()
    groups: list[tuple[int, int, int]] = []
    for start, stop in zip(ends, ends[1:], strict=False):
        length = stop - start
        count = groups.pop()[0] + 1 if groups and groups[-1][1] == length else 1
        groups.append((count, length, length))
    return grouped_attention(module, query, key, value, None, scaling, groups=tuple(groups))


class TextAttention(nn.Module):
    """The attention of Qwen3's language layers with the same weights, computed with ``norm_and_rotate``.

    Args:
        own: the module it replaces.
    """

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = own.q_proj, own.k_proj, own.v_proj, own.o_proj
        self.q_norm, self.k_norm = own.q_norm, own.k_norm
        self.layer_idx, self.head_dim, self.scaling = own.layer_idx, own.head_dim, own.scaling
        self.num_key_value_groups = own.num_key_value_groups

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Same arguments and result as the module it replaces.

        Args:
            hidden_states: float (B, L, H); packed sequences are (1, T, H).
            position_embeddings: cosine and sine, float (B, L, W).
            attention_mask: see ``grouped_attention``.
            past_key_values: a cache of keys and values from earlier calls, or None.
            kwargs: passed on.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key = (
            norm_and_rotate(
                project(hidden_states).view(heads), norm.weight, norm.variance_epsilon, *position_embeddings
            ).transpose(1, 2)
            for project, norm in ((self.q_proj, self.q_norm), (self.k_proj, self.k_norm))
        )
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        out, weights = grouped_attention(self, query, key, value, attention_mask, self.scaling, **kwargs)
        return self.o_proj(out.flatten(2)), weights


class VisionAttention(nn.Module):
    """The attention of Qwen's vision layers with the same weights, computed with ``rotate``.

    Args:
        own: the module it replaces.
    """

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.qkv, self.proj = own.qkv, own.proj
        self.num_heads, self.scaling = own.num_heads, own.scaling

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: Any,
    ) -> Tensor:
        """Same arguments and result as the module it replaces.

        Args:
            hidden_states: float (P, H).
            cu_seqlens: int (pictures + 1), where each picture begins and ends.
            position_embeddings: cosine and sine, float (P, W).
            kwargs: ignored.
        """
        query, key, value = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        query, key, value = (
            x.transpose(0, 1).unsqueeze(0)
            for x in (rotate(query, *position_embeddings), rotate(key, *position_embeddings), value)
        )
        out, _ = picture_attention(self, query, key, value, None, self.scaling, cu_seq_lens_q=cu_seqlens)
        return self.proj(out.squeeze(0).flatten(1))


AttentionInterface.register(PICTURES, picture_attention)
AttentionInterface.register(GROUPS, grouped_attention)
# cuDNN builds a plan for every shape that it has not seen, and packed sequences have many shapes: on one GPU three
# quarters of a training step went there (docs/log/encoder.md#attention-on-a-gpu).
torch.backends.cuda.enable_cudnn_sdp(False)
