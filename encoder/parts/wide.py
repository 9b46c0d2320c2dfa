"""A linear path beside the backbone (wide and deep, 1606.07792): words and looks are in the vector from the start.

A contrastive loss keeps only what helps to tell pairs apart and forgets the rest: what a picture cannot show, such as
a brand, is of no use for matching pictures and words. The wide path is not trained by it. It is the singular value
decomposition of what a catalogue says and shows without a model, TF-IDF of tokens and thumbnails: of all projections
to so few numbers the one whose cosines are closest to those of the words and looks themselves. What is said counts
once however often it is said, since a title says everything once; and words and looks have lengths of their own, so
that what a title has in common with an item does not depend on the item's picture
(docs/log/encoder.md#why-titles-lost-their-items).

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
LOOKS = 0.5  # length of a thumbnail's row beside a unit row of words, when directions are chosen
SEEN = 0.4  # length of what is seen in a vector, beside what is said, whose length is 1
# Each direction is multiplied by its singular value to the power of minus this: 0 keeps the cosines of words and
# looks, 1 makes all directions equally long. Between them, what few items have is not drowned by what most have.
EVENING = 0.5
SHORTEST = 1e-2  # vectors shorter than this are rounding, and stay short


class Wide(nn.Module):
    """TF-IDF of tokens and a thumbnail, each projected to the vector's width; fitted once, then fixed.

    The two are made as long as 1 and ``SEEN``, and added.

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
        """Vectors of samples of tokens and pixels, float (B, D); zeros where nothing is known."""
        pictured = [place for place, sample in enumerate(samples) if sample.pictures]
        looks = torch.zeros(0, len(self.usual_P), device=self.usual_P.device)
        if pictured:
            pixels = np.stack([samples[place].pictures[0] for place in pictured])
            looks = thumbnails(torch.from_numpy(pixels).to(self.usual_P.device))
        return self.project([sample.tokens for sample in samples], looks, pictured)

    def words(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Unit vectors of texts alone, float (B, D)."""
        return self.project(tokens, self.usual_P[None, :][:0], [])

    def project(self, tokens: Sequence[Sequence[int]], looks: Tensor, pictured: Sequence[int]) -> Tensor:
        """Vectors, float (B, D).

        Args:
            tokens: of each sample.
            looks: float (n, P), ``thumbnails`` of the samples that have a picture.
            pictured: the places of these.
        """
        device, vocabulary = self.weight_V.device, len(self.weight_V)
        length = torch.tensor([len(text) for text in tokens], dtype=torch.int64, device=device)
        token_T = torch.tensor([token for text in tokens for token in text], dtype=torch.int64, device=device)
        row_T = torch.repeat_interleave(length)
        key = torch.unique(row_T * vocabulary + token_T)
        row, token = key // vocabulary, key % vocabulary
        value = self.weight_V[token]
        norm_B = torch.zeros(len(tokens), device=device).index_add(0, row, value.square()).sqrt()
        value = value / norm_B.clamp(min=1e-6)[row]
        said = torch.zeros(len(tokens), self.words_VD.shape[1], device=device)
        said = said.index_add(0, row, value[:, None] * self.words_VD[token])
        out = F.normalize(said, dim=-1, eps=SHORTEST)
        if len(pictured):
            seen = F.normalize(looks - self.usual_P, dim=-1) @ self.looks_PD
            seen = SEEN * F.normalize(seen, dim=-1, eps=SHORTEST)
            out = out.index_add(0, torch.tensor(pictured, device=device), seen)
        return out

    def fit(self, tokens: Sequence[Sequence[int]], looks: np.ndarray, shown: np.ndarray) -> None:
        """Learn the projection from items; with none that say or show anything it stays zero.

        Args:
            tokens: text tokens of each item.
            looks: float32 (M, P), ``thumbnails`` of the items' pictures, zeros without.
            shown: int64, rows of the items with a picture.
        """
        present = _present(tokens, len(self.weight_V))
        frequency = np.bincount(present.indices, minlength=present.shape[1])
        weight = np.where(frequency > 0, np.log((1 + len(tokens)) / (1 + frequency)) + 1, 0)
        words = _unit_rows(present @ sparse.diags_array(weight))
        usual = looks[shown].mean(axis=0) if len(shown) else np.zeros(len(self.usual_P), np.float32)
        centred = np.zeros_like(looks)
        centred[shown] = looks[shown] - usual
        unit = F.normalize(torch.from_numpy(centred), dim=-1).numpy()
        # Rows of their own for words and looks, so that neither has a part in the other's directions: what pictures
        # have to do with words is left to the backbone.
        both = sparse.block_diag([words, LOOKS * unit[shown]], format="csr")
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
        self.looks_PD.copy_(torch.from_numpy(direction[len(weight) :]))


def thumbnails(pixels_NSS3: Tensor) -> Tensor:
    """Distance from white of the mean colour of each cell, 0 to 1, float32 (N, P)."""
    channels = 1 - pixels_NSS3.float().permute(0, 3, 1, 2) / 255
    return F.adaptive_avg_pool2d(channels, THUMBNAIL).flatten(1)


def _present(tokens: Sequence[Sequence[int]], vocabulary: int) -> sparse.csr_array:
    """Which tokens each text has, 1 or 0, float32 (M, V)."""
    row = np.repeat(np.arange(len(tokens)), [len(set(text)) for text in tokens])
    column = np.array([token for text in tokens for token in set(text)], dtype=np.int64)
    ones = np.ones(len(column), dtype=np.float32)
    return sparse.coo_array((ones, (row, column)), shape=(len(tokens), vocabulary)).tocsr()


def _unit_rows(rows: sparse.csr_array) -> sparse.csr_array:
    norm = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).reshape(-1))
    return sparse.csr_array(sparse.diags_array(1 / np.where(norm > 0, norm, 1)) @ rows)
