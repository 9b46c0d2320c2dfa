"""A linear path beside the backbone (wide and deep, 1606.07792): words and looks are in the vector from the start.

A contrastive loss keeps only what helps to tell pairs apart and forgets the rest: what a picture cannot show, such as
a brand, is of no use for matching pictures and words. The wide path is not trained by it. It is the singular value
decomposition of what a catalogue says and shows without a model, TF-IDF of tokens and thumbnails side by side: of all
projections to so few numbers the one whose cosines are closest to those of the words and looks themselves.

Shapes: B samples, M items, V vocabulary, P numbers of a thumbnail, D vector width, T tokens of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.backbone.packing import Sample

THUMBNAIL = 8  # side in pixels
LOOKS = 0.5  # length of a thumbnail's row beside a unit row of words
# Each direction is multiplied by its singular value to the power of minus this: 0 keeps the cosines of words and
# looks, 1 makes all directions equally long. Between them, what few items have is not drowned by what most have.
EVENING = 0.5


class Wide(nn.Module):
    """TF-IDF of tokens and a thumbnail, each projected to the vector's width and added; fitted once, then fixed.

    Args:
        vocabulary: V.
        width: D.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        pixels = THUMBNAIL * THUMBNAIL * 3
        self.register_buffer("weight_V", torch.zeros(vocabulary))  # inverse document frequency
        self.register_buffer("words_VD", torch.zeros(vocabulary, width))
        self.register_buffer("looks_PD", torch.zeros(pixels, width))
        self.register_buffer("usual_P", torch.zeros(pixels))  # the mean thumbnail
        self.weight_V: Tensor
        self.words_VD: Tensor
        self.looks_PD: Tensor
        self.usual_P: Tensor

    def forward(self, samples: Sequence[Sample]) -> Tensor:
        """Unit vectors of samples, float (B, D)."""
        device, vocabulary = self.weight_V.device, len(self.weight_V)
        length = torch.tensor([len(sample.tokens) for sample in samples], device=device)
        token_T = torch.tensor(
            [token for s in samples for token in s.tokens], dtype=torch.int64, device=device
        )
        row_T = torch.repeat_interleave(length)
        key, count = torch.unique(row_T * vocabulary + token_T, return_counts=True)
        row, token = key // vocabulary, key % vocabulary
        value = count * self.weight_V[token]
        norm_B = torch.zeros(len(samples), device=device).index_add(0, row, value.square()).sqrt()
        value = value / norm_B.clamp(min=1e-6)[row]
        out = torch.zeros(len(samples), self.words_VD.shape[1], device=device)
        out = out.index_add(0, row, value[:, None] * self.words_VD[token])
        pictured = [place for place, sample in enumerate(samples) if sample.pictures]
        if pictured:
            looks = F.normalize(self._thumbnails([samples[p].pictures[0] for p in pictured]), dim=-1)
            out = out.index_add(0, torch.tensor(pictured, device=device), looks @ self.looks_PD)
        return F.normalize(out, dim=-1)

    def _thumbnails(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Distance from white of each cell, less the mean thumbnail, float (n, P)."""
        pixels = torch.from_numpy(np.stack(pictures)).to(self.usual_P.device)
        return thumbnails(pixels) - self.usual_P

    def fit(self, tokens: Sequence[Sequence[int]], pictures: Sequence[np.ndarray | None]) -> None:
        """Learn the projection from items; with none that say or show anything it stays zero.

        Args:
            tokens: text tokens of each item.
            pictures: picture of each item, uint8 (S, S, 3), or None.
        """
        counts = _counts(tokens, len(self.weight_V))
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        weight = np.where(frequency > 0, np.log((1 + len(tokens)) / (1 + frequency)) + 1, 0)
        words = _unit_rows(counts @ sparse.diags_array(weight))
        shown = np.array([row for row, picture in enumerate(pictures) if picture is not None], dtype=np.int64)
        looks = np.zeros((len(tokens), len(self.usual_P)), dtype=np.float32)
        for start in range(0, len(shown), 1024):
            rows = shown[start : start + 1024]
            looks[rows] = thumbnails(torch.from_numpy(np.stack([pictures[row] for row in rows]))).numpy()
        usual = looks[shown].mean(axis=0) if len(shown) else looks.mean(axis=0)
        looks[shown] -= usual
        looks = LOOKS * F.normalize(torch.from_numpy(looks), dim=-1).numpy()
        both = sparse.hstack([words, sparse.csr_array(looks)]).tocsr()
        both = both[np.diff(both.indptr) > 0]
        width = min(self.words_VD.shape[1], min(both.shape) - 1)
        if width < 1:
            return
        svd = TruncatedSVD(width, random_state=0).fit(both)
        scale = (svd.singular_values_ / svd.singular_values_.mean()).clip(1e-6) ** -EVENING
        direction = np.zeros((both.shape[1], self.words_VD.shape[1]), dtype=np.float32)
        direction[:, :width] = svd.components_.T * scale
        self.weight_V.copy_(torch.from_numpy(weight))
        self.usual_P.copy_(torch.from_numpy(usual))
        self.words_VD.copy_(torch.from_numpy(direction[: len(weight)]))
        self.looks_PD.copy_(torch.from_numpy(LOOKS * direction[len(weight) :]))


def thumbnails(pixels_NSS3: Tensor) -> Tensor:
    """Distance from white of the mean colour of each cell, 0 to 1, float32 (N, P)."""
    channels = 1 - pixels_NSS3.float().permute(0, 3, 1, 2) / 255
    return F.adaptive_avg_pool2d(channels, THUMBNAIL).flatten(1)


def _counts(tokens: Sequence[Sequence[int]], vocabulary: int) -> sparse.csr_array:
    """How often each token occurs in each text, float32 (M, V)."""
    row = np.repeat(np.arange(len(tokens)), [len(text) for text in tokens])
    column = np.array([token for text in tokens for token in text], dtype=np.int64)
    ones = np.ones(len(column), dtype=np.float32)
    counts = sparse.coo_array((ones, (row, column)), shape=(len(tokens), vocabulary)).tocsr()
    counts.sum_duplicates()
    return counts


def _unit_rows(rows: sparse.csr_array) -> sparse.csr_array:
    norm = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).reshape(-1))
    return sparse.csr_array(sparse.diags_array(1 / np.where(norm > 0, norm, 1)) @ rows)
