"""Replace a loaded model's slow modules by faster ones with the same weights, names and results."""

from __future__ import annotations

from typing import Any

from torch import nn

from encoder.backbone.attention import TextAttention, VisionAttention
from encoder.backbone.kernels import PatchProjection, RMSNorm, SwiGLU


def use_fast_modules(model: nn.Module) -> None:
    """Replace, in place, every module for which there is a faster one.

    Modules are recognised by their children rather than their class, so that one rule serves all Qwen-VL families;
    other modules stay.

    Args:
        model: made by ``AutoModelForImageTextToText``, before adapters are added.
    """
    for name, own in list(model.named_modules()):
        faster = _twin(own)
        if faster is not None:
            above, _, last = name.rpartition(".")
            setattr(model.get_submodule(above), last, faster)


def _twin(own: Any) -> nn.Module | None:
    parts = dict(own.named_children())
    if type(own).__name__.endswith("RMSNorm") and hasattr(own, "variance_epsilon"):
        return RMSNorm(own)
    if parts.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"} and _is_silu(own.act_fn):
        return SwiGLU(own)
    if parts.keys() == {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}:
        per_head = own.q_norm.weight.shape == (own.head_dim,)  # some families normalise all heads together
        return TextAttention(own) if per_head else None
    if parts.keys() == {"qkv", "proj"} and type(own).__name__.endswith("VisionAttention"):
        return VisionAttention(own)
    if isinstance(own, nn.Conv3d) and own.kernel_size == own.stride:
        return PatchProjection(own)
    return None


def _is_silu(activation: nn.Module) -> bool:
    return type(activation).__name__ in ("SiLU", "SiLUActivation")
