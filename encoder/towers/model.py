"""An encoder on frozen towers: heads are trained on features that are read once (frozen towers, trained heads).

A sample of this model is not pixels and tokens but rows of tables of features: a text's fields (title, category,
attributes, description) are read apart, so that every view of an item is made of the same few features, and equal
fields of many items are read once.

Shapes: B samples, D vector width, U distinct texts, N pictures, S picture side in pixels, E features of a text, F of
a picture, P numbers of a thumbnail, K fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from dataset.contracts import content_hash
from encoder.backbone.packing import Sample
from encoder.content import DESCRIPTION, Content
from encoder.model import WIDE, Encoded, EncoderModel
from encoder.parts.wide import Wide, thumbnails
from encoder.pictures.decode import decode_image
from encoder.towers.towers import Towers

FIELDS = DESCRIPTION + 1  # K
HIDDEN = 4  # times the vector's width: hidden numbers of a head


@dataclass(frozen=True)
class Texts:
    """What the towers read of U distinct texts.

    Attributes:
        tokens: token ids of each.
        features_UE: float32.
    """

    tokens: list[list[int]]
    features_UE: Tensor


@dataclass(frozen=True)
class Known:
    """What the towers have read before.

    Attributes:
        text_row: text -> its row.
        text_UE: float32.
        image_row: id of a picture, the hash of its bytes -> its row.
        picture_NF: float32, features and thumbnail of each.
    """

    text_row: Mapping[str, int]
    text_UE: np.ndarray
    image_row: Mapping[str, int]
    picture_NF: np.ndarray


class TowerModel(EncoderModel):
    """Heads on the features of frozen towers, and the wide path, with the interface of ``EncoderModel``.

    The vector is the sum of what a head says of the text and of what another says of the picture, and of the wide
    path. The features of a text are the mean over its fields, weighted by the kind of field.

    Args:
        towers: read texts and pictures.
        width: D.
        text_tokens: most tokens of a field that are read.
    """

    wide: Wide

    def __init__(self, towers: Towers, width: int, text_tokens: int) -> None:
        nn.Module.__init__(self)
        self.towers = towers
        self.width = width
        self.text_tokens = text_tokens
        self.field_K = nn.Parameter(torch.zeros(FIELDS))
        self.words = _head(towers.text_width, width)
        self.picture = _head(towers.vision_width, width)
        for name, features in (("told", towers.text_width), ("seen", towers.vision_width)):
            self.register_buffer(f"{name}_mean", torch.zeros(features))
            self.register_buffer(f"{name}_scale", torch.ones(features))
        self.wide = Wide(len(towers.tokenizer), width)
        self.texts: Texts | None = None
        self.known: Known | None = None

    @property
    def px(self) -> int:
        """Side of its pictures in pixels."""
        return self.towers.px

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.field_K.device

    def see(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """A row for each picture, its features and then its thumbnail, float32 (N, F + P).

        Args:
            pixels: uint8 (S, S, 3) each.
        """
        if not len(pixels):
            return np.zeros((0, self.towers.vision_width + len(self.wide.usual_P)), dtype=np.float32)
        small = thumbnails(torch.from_numpy(np.stack(pixels))).numpy()
        return np.concatenate([self.towers.see(pixels), small], axis=1)

    def contents(self, contents: Sequence[Content]) -> Tensor:
        """Vectors of contents, none of them empty, without gradients and before normalisation: float (B, D).

        What the towers have read before, of which ``known`` holds the features, is not read again.
        """
        row_of: dict[str, int] = {}
        samples = [
            Sample(
                [row_of.setdefault(text, len(row_of)) for _, text in one.fields],
                (),
                [k for k, _ in one.fields],
            )
            for one in contents
        ]
        pictured = [row for row, one in enumerate(contents) if one.image is not None]
        looks = self._seen([contents[row].image or b"" for row in pictured])
        for row, seen in zip(pictured, looks, strict=True):
            samples[row] = replace(samples[row], pictures=(seen,))
        with torch.no_grad():
            return self._vectors(samples, self._read(list(row_of)))

    def _read(self, texts: Sequence[str]) -> Texts:
        tokens, known = self.towers.tokens(texts, self.text_tokens), self.known
        place = [-1 if known is None else known.text_row.get(text, -1) for text in texts]
        out = np.zeros((len(texts), self.towers.text_width), dtype=np.float32)
        new = [row for row, at in enumerate(place) if at < 0]
        out[new] = self.towers.read([tokens[row] for row in new])
        for row, at in enumerate(place):
            if known is not None and at >= 0:
                out[row] = known.text_UE[at]
        return Texts(tokens, torch.from_numpy(out).to(self.device))

    def _seen(self, images: Sequence[bytes]) -> list[np.ndarray]:
        known = self.known
        place = [-1 if known is None else known.image_row.get(content_hash(one), -1) for one in images]
        new = [row for row, at in enumerate(place) if at < 0]
        fresh = iter(self.see([decode_image(images[row], self.px) for row in new]))
        return [next(fresh) if known is None or at < 0 else known.picture_NF[at] for at in place]

    def standardise(self, texts_UE: np.ndarray, pictures_NF: np.ndarray) -> None:
        """Learn how the towers' features vary over a catalogue, so that the heads see differences from the usual."""
        for name, rows in (("told", texts_UE), ("seen", pictures_NF)):
            if len(rows) > 1:
                mean, spread = rows.mean(axis=0), rows.std(axis=0)
                getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
                # A number that never varies tells nothing; one that hardly does is not blown up.
                scale = 1 / np.maximum(spread, max(0.1 * float(spread.mean()), 1e-6))
                getattr(self, f"{name}_scale").copy_(torch.from_numpy(scale.astype(np.float32)))

    def _standard(self, name: str, rows: Tensor) -> Tensor:
        return (rows - getattr(self, f"{name}_mean")) * getattr(self, f"{name}_scale")

    def forward(self, samples: Sequence[Sample]) -> Encoded:
        """Vectors of samples of the training's texts, which ``texts`` holds."""
        assert self.texts is not None
        return Encoded(self._vectors(samples, self.texts))

    def vectors(self, samples: Sequence[Sample]) -> Tensor:
        """The same without gradients: float (B, D)."""
        with torch.no_grad():
            return self(samples).vector_BD

    def _vectors(self, samples: Sequence[Sample], texts: Texts) -> Tensor:
        device, count = self.device, len(samples)
        length = [len(sample.tokens) for sample in samples]
        owner = torch.repeat_interleave(torch.tensor(length, device=device))
        row = torch.tensor(
            [row for sample in samples for row in sample.tokens], dtype=torch.int64, device=device
        )
        kind = [k for sample in samples for k in (sample.kinds or [0] * len(sample.tokens))]
        weight = self.field_K.exp()[torch.tensor(kind, dtype=torch.int64, device=device)]
        total = torch.zeros(count, device=device).index_add(0, owner, weight)
        mean = torch.zeros(count, texts.features_UE.shape[1], device=device)
        mean = mean.index_add(0, owner, weight[:, None] * texts.features_UE[row])
        told = torch.tensor([bool(n) for n in length], device=device)
        out = torch.zeros(count, self.width, device=device)
        if told.any():
            features = self._standard("told", mean[told] / total[told][:, None])
            out = out.index_add(0, told.nonzero()[:, 0], self.words(features))
        shown = [place for place, sample in enumerate(samples) if sample.pictures]
        looks = torch.zeros(0, len(self.wide.usual_P), device=device)
        if shown:
            rows = torch.from_numpy(np.stack([samples[place].pictures[0] for place in shown])).to(device)
            seen, looks = rows.split([self.towers.vision_width, len(self.wide.usual_P)], dim=1)
            at = torch.tensor(shown, device=device)
            out = out.index_add(0, at, self.picture(self._standard("seen", seen)))
        bags = [[token for row in sample.tokens for token in texts.tokens[row]] for sample in samples]
        return out + WIDE * self.wide.project(bags, looks, shown)


def _head(features: int, width: int) -> nn.Sequential:
    """From unit rows of features to the vector."""
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, HIDDEN * width),
        nn.GELU(),
        nn.Linear(HIDDEN * width, width),
    )
