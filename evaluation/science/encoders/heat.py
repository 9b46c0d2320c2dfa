"""What a pooled vector attends to: shares of attention over the patches of a picture and over its words.

The map of MOON2.0's qualitative figure (§3 of the papers' notes, row 41 of §6). How the paper makes its own is not
recovered. Ours, for one sequence of L tokens whose vector is the mean over tokens:

    a_t = 1 / (N L) * sum over heads n and tokens q of A_nqt            attention of the last language layer
    p_j = sum over image tokens v of a_v * mean over i in patches(v) of R_ij
    R   = B_K ... B_1,  B_k = (I + mean over heads of A_k) / 2          attention rollout (2005.00928, §3)

A are the softmax weights, R carries the K vision layers from an image token, the merger of a square of patches,
back to the patches. All shares of a sequence add up to 1. They say where the last layer took its mean from, not
what decided the vector: layers before it have mixed the tokens already.

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
    """Where the attention of one pooled vector goes; all shares together are 1.

    Attributes:
        patches: float64 (G, G), of each patch of the picture, top row first; (0, 0) without a picture.
        tokens: float64 (text tokens), of each text token.
        region: of the core region beside the picture, 0 without one.
        markers: of the tokens that begin and end a picture.
    """

    patches: np.ndarray
    tokens: np.ndarray
    region: float
    markers: float


@dataclass(frozen=True)
class ContentHeat(Heat):
    """The same, its text tokens gathered into words.

    Attributes:
        words: (word, what it tells of, share) in the order read; kinds as in ``encoder.content``.
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
    """softmax(scale * Q K' + mask) V, written out: the slow twin of torch's kernel that returns the weights.

    Args:
        query, key, value: float (..., heads, tokens, width).
        attn_mask: bool, True where a token is seen, or float, added to the scores.
        dropout_p: must be 0.
        is_causal: each token sees its past and itself.
        scale: of the scores; None: 1 / sqrt(width).
        enable_gqa: fewer heads of keys and values, each shared by neighbouring heads of queries.

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
    """While it is entered, every attention kernel is its slow twin, and its weights are kept in order.

    No layer has to know: it works for whatever model asks torch for attention.

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
        """Answer a call of torch."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        out, weights = plain_attention(*args, **(kwargs or {}))
        self.weights.append(weights.detach())
        return out


@torch.no_grad()
def read_heat(model: EncoderModel, sample: Sample) -> Heat:
    """Where the vector of one sample, without a chain, takes its mean from.

    Args:
        model: in evaluation mode, a backbone with pooling (not the dual baseline).
        sample: with pictures, text, or both.
    """
    with Witness() as seen:
        model([sample])
    layers = len(model.backbone.layers)
    vision, last = seen.weights[:-layers], seen.weights[-1]
    share = last.double().mean((0, 1, 2)).cpu().numpy()
    prefix = np.array(model.backbone.image_prefix)
    shown = np.tile(prefix == model.backbone.config.image_token_id, len(sample.pictures))
    pictured = share[: len(shown)]
    images = pictured[shown]
    own = images[: model.backbone.vision.tokens]
    return Heat(
        patches=_patches(model.backbone.vision, own, vision),
        tokens=share[len(shown) :],
        region=float(images[len(own) :].sum()),
        markers=float(pictured[~shown].sum()),
    )


def content_heat(encoder: Encoder, content: Content) -> ContentHeat:
    """Where the vector of a content takes its mean from; of a reasoning model, before it has written its chain.

    Args:
        encoder: any but the dual baseline, whose towers have no tokens in common.
        content: with a picture, words, or both.
    """
    (sample,) = encoder.samples([content])
    heat = read_heat(encoder.model, sample)
    tokens, kinds = list(sample.tokens), list(sample.kinds or ())
    return ContentHeat(**vars(heat), words=_words(encoder.tokenizer, tokens, kinds, heat.tokens))


def _words(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], kinds: list[int], share: np.ndarray
) -> list[tuple[str, int, float]]:
    """Words by white space with the shares of their pieces added; a word is of its first piece's kind."""
    words = str(tokenizer.decode(tokens)).split()
    total, kind, at = [0.0] * len(words), [0] * len(words), -1
    for place in range(len(tokens)):
        begun = min(len(str(tokenizer.decode(tokens[: place + 1])).split()), len(words)) - 1
        if begun > at:
            at, kind[begun] = begun, kinds[place]
        total[max(at, 0)] += float(share[place])
    return list(zip(words, kind, total, strict=True))


def _patches(vision: Vision | WholeVision, image_V: np.ndarray, layers: list[Tensor]) -> np.ndarray:
    """Shares of a picture's image tokens, carried back to its patches: float64 (G, G).

    Where layers see windows only (Qwen2.5-VL), or merge otherwise than Qwen's, tokens stand for themselves.
    """
    patches = vision.grid**2 if isinstance(vision, Vision) else 0
    if not len(image_V) or any(layer.shape[-1] != patches for layer in layers):
        side = round(len(image_V) ** 0.5)
        return image_V.reshape(side, side)
    assert isinstance(vision, Vision)
    share = np.repeat(image_V / vision.merge**2, vision.merge**2)
    for layer in reversed(layers):
        share = (share + share @ layer[0].double().mean(0).cpu().numpy()) / 2
    blocks = vision.grid // vision.merge  # patches come block by block, see Vision.patchify
    square = share.reshape(blocks, blocks, vision.merge, vision.merge).transpose(0, 2, 1, 3)
    return square.reshape(vision.grid, vision.grid)
