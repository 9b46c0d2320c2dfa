"""The elementwise operations of a transformer layer, fused to make few passes over memory, forward and backward.

On a CPU autograd spends about half of a training step at size small on them: it runs each formula as many small
operations, each of which reads and writes whole tensors. Here each formula is one autograd function with its
gradient written out. Each has a plain version, the formula as transformers writes it; a test checks that both
agree, forward and gradient. The fast version runs in float32 on a CPU, the plain one everywhere else.

Shapes: T tokens (any leading dimensions), H width, N heads, W head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def _is_fast(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.device.type == "cpu"


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32 (1910.07467, equation 4)."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def plain_rotate(x_TNW: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
    """Rotary positions: pair (i, i + W/2) of each head turned by its angle (2104.09864, §3.4.2).

    Args:
        x_TNW: float.
        cos_TW, sin_TW: float, both halves equal.
    """
    first, second = x_TNW.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x_TNW * cos_TW.unsqueeze(-2) + turned * sin_TW.unsqueeze(-2)).to(x_TNW.dtype)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (2002.05202, equation 6)."""
    return F.silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``plain_rms_norm`` in 2 passes forward and 4 backward."""
    return _RMSNorm.apply(x, weight, eps) if _is_fast(x) else plain_rms_norm(x, weight, eps)


def rotate(x_TNW: Tensor, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
    """``plain_rotate`` without a rotated copy of x_TNW."""
    return _Rotate.apply(x_TNW, cos_TW, sin_TW) if _is_fast(x_TNW) else plain_rotate(x_TNW, cos_TW, sin_TW)


def norm_and_rotate(x_TNW: Tensor, weight_W: Tensor, eps: float, cos_TW: Tensor, sin_TW: Tensor) -> Tensor:
    """``plain_rms_norm`` of each head, then ``plain_rotate``: Qwen3 applies both to queries and keys.

    Args:
        x_TNW: float.
        weight_W: float.
        eps: added to the mean square in the norm.
        cos_TW, sin_TW: float, both halves equal.
    """
    if _is_fast(x_TNW):
        return _NormAndRotate.apply(x_TNW, weight_W, eps, cos_TW, sin_TW)
    return plain_rotate(plain_rms_norm(x_TNW, weight_W, eps), cos_TW, sin_TW)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``plain_swiglu`` with one exponential per element instead of two; in place when gradients are off."""
    if not _is_fast(gate):
        return plain_swiglu(gate, up)
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else F.silu(gate).mul_(up)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, and 1 / sqrt(mean(x^2) + eps) of each row."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight), scale


def _norm_gradients(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight.

    torch has a one-pass gradient of LayerNorm: s (gw - mean(gw) - x^ mean(gw x^)) with x^ = (x - m) s. With
    m = 0 and our s it is the gradient of RMSNorm except for the term s mean(gw), which is added back.
    """
    width = x.shape[-1]
    of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
        grad, x, [width], torch.zeros_like(scale), scale, weight, None, [True, True, False]
    )
    mean = torch.mv(grad.reshape(-1, width), weight).view_as(scale).div_(width)
    return of_x.add_(mean.mul_(scale)), of_weight


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """x rotated by its angles; with ``sign`` -1, rotated back."""
    half = x.shape[-1] // 2
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)[..., :half]
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_norm_gradients(grad.contiguous(), *ctx.saved_tensors), None)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


class _NormAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        normed, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale, cos, sin)
        return _rotated(normed, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, cos, sin = ctx.saved_tensors
        grad = _rotated(grad, cos, sin, -1).contiguous()
        return (*_norm_gradients(grad, x, weight, scale), None, None, None)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        sigmoid = torch.sigmoid(gate)
        active = gate * sigmoid
        ctx.save_for_backward(sigmoid, active, up)
        return active * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        sigmoid, active, up = ctx.saved_tensors
        # Derivative of silu: s + a - a s, with a = x s.
        slope = torch.addcmul(active + sigmoid, active, sigmoid, value=-1)
        return slope.mul_(grad).mul_(up), active * grad


class RMSNorm(nn.Module):
    """``rms_norm`` with the weight of the module it replaces.

    Args:
        own: the module it replaces.
    """

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.weight = own.weight
        self.variance_epsilon = own.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last dimension."""
        return rms_norm(x, self.weight, self.variance_epsilon)


class SwiGLU(nn.Module):
    """A gated feed-forward block with the layers of the module it replaces.

    Args:
        own: the module it replaces.
    """

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = own.gate_proj, own.up_proj, own.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) to (..., H)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class PatchProjection(nn.Module):
    """The convolution of non-overlapping patches as a matrix product, to which it is equal.

    Args:
        own: the convolution it replaces; its stride equals its kernel size.
    """

    def __init__(self, own: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = own.weight, own.bias

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (T, channels, frames, side, side), each as large as the kernel, to (T, H)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
