"""Attention maps of a pooled vector: how attention is distributed over the patches of a picture and over the words.

As in MOON2.0's qualitative figure; the paper's method is not recovered. Ours, for one sequence of L tokens whose
vector is the mean over tokens:

    a_t = 1 / (N L) * sum over heads n and tokens q of A_nqt            attention of the last language layer
    p_j = sum over image tokens v of a_v * mean over i in patches(v) of R_ij
    R   = B_K ... B_1,  B_k = (I + mean over heads of A_k) / 2          attention rollout (2005.00928, §3)

A are the softmax weights; R distributes the attention on an image token, which merges a square of patches, over the
patches through the K vision layers. The attention of a sequence sums to 1. It shows what the last layer averages, not
what determined the vector: earlier layers have already mixed the tokens.

Shapes: L tokens, N heads, P patches of a picture, G patches on its side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerBase

from encoder.backbone.packing import Sample
from encoder.backbone.vision import Vision, WholeVision
from encoder.content import Content
from encoder.encode import Encoder
from encoder.model import EncoderModel


@dataclass(frozen=True)
class Heat:
    """The attention of one pooled vector, as fractions that sum to 1.

    Attributes:
        patches: float64 (G, G), on each patch of the picture, top row first; (0, 0) without a picture.
        tokens: float64 (text tokens), on each text token.
        region: on the core region, 0 without one.
        markers: on the tokens that begin and end a picture.
    """

    patches: np.ndarray
    tokens: np.ndarray
    region: float
    markers: float


@dataclass(frozen=True)
class ContentHeat(Heat):
    """The same, with text tokens joined into words.

    Attributes:
        words: (word, field as in ``encoder.content``, fraction) in reading order.
    """

    words: list[tuple[str, int, float]]


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * Q K' + mask) V, a slow version of torch's kernel that also returns the weights.

    Args:
        query, key, value: float (..., heads, tokens, width).
        attn_mask: bool, True where a token is attended to, or float, added to the scores.
        dropout_p: must be 0.
        is_causal: each token attends to its past and itself.
        scale: factor on the scores; None: 1 / sqrt(width).
        enable_gqa: key and value heads are shared by groups of query heads.

    Returns:
        the output, and the weights (..., heads, from, to).
    """
    assert dropout_p == 0.0, "weights of a training pass are not the model's"
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    score = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        score = score.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        score = score + attn_mask
    weights = score.softmax(-1)
    return weights @ value, weights


class Witness(TorchFunctionMode):
    """A context in which torch's attention kernel is replaced by ``plain_attention`` and its weights are recorded.

    Works for any model that uses torch's kernel, without changes to its layers.

    Attributes:
        weights: float (sequences, heads, from, to) of each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Intercept a call of a torch function."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        out, weights = plain_attention(*args, **(kwargs or {}))
        self.weights.append(weights.detach())
        return out


@torch.no_grad()
def read_heat(model: EncoderModel, sample: Sample) -> Heat:
    """The attention of one sample, without a chain.

    Args:
        model: in evaluation mode, a backbone with pooling (not the dual baseline).
        sample: with pictures, text, or both.
    """
    with Witness() as seen:
        model([sample])
    layers = len(model.backbone.layers)
    vision, last = seen.weights[:-layers], seen.weights[-1]
    fraction = last.double().mean((0, 1, 2)).cpu().numpy()
    prefix = np.array(model.backbone.image_prefix)
    shown = np.tile(prefix == model.backbone.config.image_token_id, len(sample.pictures))
    pictured = fraction[: len(shown)]
    images = pictured[shown]
    own = images[: model.backbone.vision.tokens]
    return Heat(
        patches=_patches(model.backbone.vision, own, vision),
        tokens=fraction[len(shown) :],
        region=float(images[len(own) :].sum()),
        markers=float(pictured[~shown].sum()),
    )


def content_heat(encoder: Encoder, content: Content) -> ContentHeat:
    """The attention of a content; for a model with chains, without its chain.

    Args:
        encoder: any but the dual baseline, whose towers do not share a sequence.
        content: with a picture, text, or both.
    """
    (sample,) = encoder.samples([content])
    heat = read_heat(encoder.model, sample)
    tokens, kinds = list(sample.tokens), list(sample.kinds or ())
    return ContentHeat(**vars(heat), words=_words(encoder.tokenizer, tokens, kinds, heat.tokens))


def _words(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], kinds: list[int], fraction: np.ndarray
) -> list[tuple[str, int, float]]:
    """Words, split at white space, with the summed fractions of their tokens and the kind of the first token."""
    words = str(tokenizer.decode(tokens)).split()
    total, kind, at = [0.0] * len(words), [0] * len(words), -1
    for place in range(len(tokens)):
        begun = min(len(str(tokenizer.decode(tokens[: place + 1])).split()), len(words)) - 1
        if begun > at:
            at, kind[begun] = begun, kinds[place]
        total[max(at, 0)] += float(fraction[place])
    return list(zip(words, kind, total, strict=True))


def _patches(vision: Vision | WholeVision, image_V: np.ndarray, layers: list[Tensor]) -> np.ndarray:
    """Distribute the attention on a picture's image tokens over its patches: float64 (G, G).

    For models with windowed attention (Qwen2.5-VL) or another kind of merger, G is the number of tokens per side.
    """
    patches = vision.grid**2 if isinstance(vision, Vision) else 0
    if not len(image_V) or any(layer.shape[-1] != patches for layer in layers):
        side = round(len(image_V) ** 0.5)
        return image_V.reshape(side, side)
    assert isinstance(vision, Vision)
    fraction = np.repeat(image_V / vision.merge**2, vision.merge**2)
    for layer in reversed(layers):
        fraction = (fraction + fraction @ layer[0].double().mean(0).cpu().numpy()) / 2
    blocks = vision.grid // vision.merge  # patches come block by block, see Vision.patchify
    square = fraction.reshape(blocks, blocks, vision.merge, vision.merge).transpose(0, 2, 1, 3)
    return square.reshape(vision.grid, vision.grid)
