"""Packing: the sequences of a batch end to end, without padding, as the backbone reads them.

Shapes: B sequences, T packed tokens, N pictures, S picture side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

IMAGE, TEXT, CHAIN = 0, 1, 2  # the parts of a sequence


@dataclass(frozen=True)
class Sample:
    """One input.

    Attributes:
        tokens: text token ids, without the image prefix.
        pictures: uint8 or float32 (S, S, 3), 0..255: the whole picture, then its core region if there is one.
        kinds: field that each text token comes from (``encoder.content``), for guided experts; None: all 0.
        chain: token ids after the text, with causal attention: an answer, or an attribute chain.
    """

    tokens: Sequence[int]
    pictures: tuple[np.ndarray, ...] = ()
    kinds: Sequence[int] | None = None
    chain: Sequence[int] = ()


@dataclass(frozen=True)
class Packed:
    """B sequences end to end; those of equal length and prefix are neighbours.

    Attributes:
        ids_T: int64, token ids.
        positions_3T: int64, see ``token_positions``.
        groups: (sequences, length, prefix) of each run of sequences of equal length and prefix, in order. The first
            ``prefix`` tokens of a sequence attend to each other; every later one to all before it and itself.
        order_B: int64, index of the sample in each place.
        sequence_T: int64, place of the sequence that each token belongs to.
        part_T: int64, IMAGE (start and end tokens included), TEXT or CHAIN.
        kinds_T: int64, see ``Sample.kinds``; 0 outside text.
        pixels_NSS3: uint8 or float, the pictures in order; None without any.
    """

    ids_T: Tensor
    positions_3T: Tensor
    groups: tuple[tuple[int, int, int], ...]
    order_B: Tensor
    sequence_T: Tensor
    part_T: Tensor
    kinds_T: Tensor
    pixels_NSS3: Tensor | None

    def __len__(self) -> int:
        return len(self.order_B)


@lru_cache(maxsize=4096)
def token_positions(length: int, pictures: int, image_tokens: int) -> np.ndarray:
    """Temporal, row and column position of each token of a sequence that starts with any number of pictures.

    Args:
        length: tokens in the sequence.
        pictures: how many it starts with, each as a start token, its image tokens and an end token.
        image_tokens: tokens of one picture, a square number.

    Returns:
        int64 (3, length). Text continues from the largest coordinate before it, plus one (M-RoPE).
    """
    side = round(image_tokens**0.5)
    row, column = np.divmod(np.arange(image_tokens), side) if image_tokens else (np.arange(0),) * 2
    parts, start = [np.zeros((3, 0), dtype=np.int64)], 0
    for _ in range(pictures):
        end = start + 1 + side
        parts += [
            np.full((3, 1), start),
            start + 1 + np.stack([np.zeros_like(row), row, column]),
            np.full((3, 1), end),
        ]
        start = end + 1
    rest = length - sum(part.shape[1] for part in parts)
    parts.append(np.broadcast_to(np.arange(start, start + rest), (3, rest)))
    return np.concatenate(parts, axis=1)


def pack(
    samples: Sequence[Sample],
    image_prefix: Sequence[int],
    device: torch.device,
    causal: bool = False,
    rows_and_columns: bool = True,
) -> Packed:
    """Put samples end to end, sorted so that those of equal length and prefix are neighbours.

    Args:
        samples: none of them empty.
        image_prefix: token ids that stand for one picture: start, image tokens, end.
        device: where the tensors are put.
        causal: every token attends to its past only; otherwise all tokens before the chain attend to each other.
        rows_and_columns: image tokens have row and column positions, as in Qwen-VL, instead of a running one.
    """
    width = len(image_prefix)
    prefix = [len(s.pictures) * width + len(s.tokens) for s in samples]
    key = [(n + len(s.chain), 0 if causal else n) for s, n in zip(samples, prefix, strict=True)]
    order = sorted(range(len(samples)), key=lambda row: (*key[row], len(samples[row].pictures)))
    ids: list[int] = []
    kinds: list[int] = []
    positions, lengths, parts = [], [], []
    for row in order:
        sample, length = samples[row], key[row][0]
        pictured = len(sample.pictures) * width
        ids += [*image_prefix] * len(sample.pictures)
        ids += sample.tokens
        ids += sample.chain
        kinds += [0] * pictured
        kinds += [0] * len(sample.tokens) if sample.kinds is None else sample.kinds
        kinds += [0] * len(sample.chain)
        squares = len(sample.pictures) if rows_and_columns else 0
        positions.append(token_positions(length, squares, width - 2))
        lengths.append(length)
        parts += [pictured, len(sample.tokens), len(sample.chain)]
    pictures = [picture for row in order for picture in samples[row].pictures]
    count = np.array(lengths)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Packed(
        ids_T=tensor(np.array(ids, dtype=np.int64)),
        positions_3T=tensor(np.concatenate(positions, axis=1)),
        groups=tuple((len(list(run)), *alike) for alike, run in groupby(key[row] for row in order)),
        order_B=tensor(np.array(order)),
        sequence_T=tensor(np.repeat(np.arange(len(order)), count)),
        part_T=tensor(np.repeat(np.tile([IMAGE, TEXT, CHAIN], len(order)), parts)),
        kinds_T=tensor(np.array(kinds, dtype=np.int64)),
        pixels_NSS3=tensor(np.stack(pictures)) if pictures else None,
    )
