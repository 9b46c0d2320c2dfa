"""An encoder on pretrained towers: heads are trained on features that are read once, until a stage trains the towers.

A sample of this model is not pixels and tokens but rows of tables of features: a text's fields (title, category,
attributes, description) are read apart, so that every view of an item is made of the same few features, and equal
fields of many items are read once. Once a stage trains the towers, texts and pictures are read anew in every step.

Shapes: B samples, D vector width, M items, U distinct texts, N pictures, S picture side in pixels, E features of a
text, F of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.contracts import content_hash
from encoder.backbone.packing import Sample
from encoder.content import Content
from encoder.model import DEEP, Encoded, EncoderModel
from encoder.parts.wide import LOOKS, SHORTEST
from encoder.pictures.decode import decode_image
from encoder.towers.towers import Towers

FAINT = 0.05  # part of the longest direction; of shorter ones whitening would make mostly rounding
HIDDEN = 4  # times the vector's width: hidden numbers of a head


@dataclass(frozen=True)
class Known:
    """What the towers have read before.

    Attributes:
        text_row: text -> its row.
        text_UE: float32.
        image_row: id of a picture, the hash of its bytes -> its row.
        picture_NF: float32.
    """

    text_row: Mapping[str, int]
    text_UE: np.ndarray
    image_row: Mapping[str, int]
    picture_NF: np.ndarray


@dataclass(frozen=True)
class Source:
    """What the features of a corpus were read from.

    Attributes:
        texts: text of each row.
        pixels: the pictures in their order, uint8 (N, S, S, 3); decoded when first asked for.
    """

    texts: Sequence[str]
    pixels: Callable[[], np.ndarray]


class TowerModel(EncoderModel):
    """Heads on the features of two towers beside a fixed path, with the interface of ``EncoderModel``.

    The features of a text are the mean over its fields. The heads map them, and the picture's, to vectors that are
    added and made as long as ``DEEP``. The fixed path is the whitened principal components of the same features:
    what the towers tell is in the vector from the start, and training adds what relates pictures and words.

    Args:
        towers: read texts and pictures.
        width: D.
        text_tokens: most tokens of a field that are read.
    """

    told_directions: Tensor
    seen_directions: Tensor

    def __init__(self, towers: Towers, width: int, text_tokens: int) -> None:
        nn.Module.__init__(self)
        self.towers = towers
        self.width = width
        self.text_tokens = text_tokens
        self.words = _head(towers.text_width, width)
        self.picture = _head(towers.vision_width, width)
        for name, features in (("told", towers.text_width), ("seen", towers.vision_width)):
            self.register_buffer(f"{name}_mean", torch.zeros(features))
            self.register_buffer(f"{name}_scale", torch.ones(features))
            self.register_buffer(f"{name}_directions", torch.zeros(features, width))
        self.told_mean: Tensor
        self.told_scale: Tensor
        self.seen_mean: Tensor
        self.seen_scale: Tensor
        self.text_UE: Tensor | None = None  # in training: the standardised features of its texts
        self.source: Source | None = None  # in training: what they were read from
        self.tokens_U: list[list[int]] | None = None  # in training that changes the towers: of its texts
        self.known: Known | None = None

    @property
    def px(self) -> int:
        """Side of its pictures in pixels."""
        return self.towers.px

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.told_directions.device

    def contents(self, contents: Sequence[Content]) -> Tensor:
        """Vectors of contents, none of them empty, without gradients and before normalisation: float (B, D).

        What the towers have read before, of which ``known`` holds the features, is not read again.
        """
        row_of: dict[str, int] = {}
        samples = [
            Sample([row_of.setdefault(text, len(row_of)) for _, text in one.fields]) for one in contents
        ]
        shown = [row for row, one in enumerate(contents) if one.image is not None]
        told = self.standard("told", self._read(list(row_of)))
        seen = self.standard("seen", self._seen([contents[row].image or b"" for row in shown]))
        with torch.no_grad():
            return self._vectors(samples, torch.from_numpy(told), shown, torch.from_numpy(seen))

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        known = self.known
        place = [-1 if known is None else known.text_row.get(text, -1) for text in texts]
        new = [row for row, at in enumerate(place) if at < 0]
        out = np.zeros((len(texts), self.towers.text_width), dtype=np.float32)
        out[new] = self.towers.read(self.towers.tokens([texts[row] for row in new], self.text_tokens))
        for row, at in enumerate(place):
            if known is not None and at >= 0:
                out[row] = known.text_UE[at]
        return out

    def _seen(self, images: Sequence[bytes]) -> np.ndarray:
        known = self.known
        place = [-1 if known is None else known.image_row.get(content_hash(one), -1) for one in images]
        new = [row for row, at in enumerate(place) if at < 0]
        out = np.zeros((len(images), self.towers.vision_width), dtype=np.float32)
        out[new] = self.towers.see([decode_image(images[row], self.px) for row in new])
        for row, at in enumerate(place):
            if known is not None and at >= 0:
                out[row] = known.picture_NF[at]
        return out

    def fit(self, told_ME: np.ndarray, seen_NF: np.ndarray) -> None:
        """Learn from a catalogue how features vary, and the fixed path's directions.

        Args:
            told_ME: float32, features of the items with words.
            seen_NF: float32, features of the items' pictures.
        """
        rows = []
        for name, features in (("told", told_ME), ("seen", seen_NF)):
            if len(features) > 1:
                mean, spread = features.mean(axis=0), features.std(axis=0)
                # A number that never varies tells nothing; one that hardly does is not blown up.
                scale = 1 / np.maximum(spread, max(0.1 * float(spread.mean()), 1e-6))
                getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
                getattr(self, f"{name}_scale").copy_(torch.from_numpy(scale.astype(np.float32)))
            rows.append(F.normalize(torch.from_numpy(self.standard(name, features)), dim=-1).numpy())
        told, seen = directions(rows[0], LOOKS * rows[1], self.width)
        self.told_directions.copy_(torch.from_numpy(told))
        self.seen_directions.copy_(torch.from_numpy(LOOKS * seen))

    def standard(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Features of texts ("told") or pictures ("seen") less the catalogue's mean, over its deviation."""
        mean, scale = (getattr(self, f"{name}_{of}").cpu().numpy() for of in ("mean", "scale"))
        return (rows - mean) * scale

    def unfreeze(self, layers: int) -> np.ndarray:
        """Let training change the last ``layers`` of each tower; the fixed path stays as it was fitted.

        Returns:
            the pictures, uint8 (N, S, S, 3): from now on a sample has pixels, where it had their features.
        """
        assert self.source is not None
        self.towers.unfreeze(layers)
        self.tokens_U = self.towers.tokens(self.source.texts, self.text_tokens)
        return self.source.pixels()

    def forward(self, samples: Sequence[Sample]) -> Encoded:
        """Vectors of samples of the training's texts, which ``text_UE`` holds and unfrozen towers read again."""
        shown = [place for place, sample in enumerate(samples) if sample.pictures]
        pictures = [samples[place].pictures[0] for place in shown]
        if self.tokens_U is None:
            assert self.text_UE is not None
            seen = torch.from_numpy(np.stack(pictures)) if pictures else torch.zeros(0)
            return Encoded(self._vectors(samples, self.text_UE, shown, seen))
        row_of: dict[int, int] = {}
        samples = [
            Sample([row_of.setdefault(row, len(row_of)) for row in sample.tokens]) for sample in samples
        ]
        told = (self.towers.told([self.tokens_U[row] for row in row_of]) - self.told_mean) * self.told_scale
        seen = (self.towers.seen(pictures) - self.seen_mean) * self.seen_scale
        return Encoded(self._vectors(samples, told, shown, seen))

    def vectors(self, samples: Sequence[Sample]) -> Tensor:
        """The same without gradients: float (B, D)."""
        with torch.no_grad():
            return self(samples).vector_BD

    def _vectors(
        self, samples: Sequence[Sample], text_UE: Tensor, shown: Sequence[int], seen_NF: Tensor
    ) -> Tensor:
        """Sum of heads and fixed path of standardised features.

        Args:
            samples: their tokens are rows of ``text_UE``.
            text_UE: features of texts.
            shown: places of the N samples with a picture.
            seen_NF: features of their pictures.
        """
        device, count = self.device, len(samples)
        text_UE, seen_NF = text_UE.to(device), seen_NF.to(device)
        heads, fixed = (torch.zeros(count, self.width, device=device) for _ in range(2))
        length = torch.tensor([len(sample.tokens) for sample in samples], device=device)
        if length.any():
            at = length.nonzero()[:, 0]
            row = torch.tensor([row for sample in samples for row in sample.tokens], device=device)
            owner = torch.repeat_interleave(length)
            told = torch.zeros(count, text_UE.shape[1], device=device).index_add(0, owner, text_UE[row])
            told = told[at] / length[at][:, None]
            heads = heads.index_add(0, at, self.words(told))
            fixed = fixed.index_add(0, at, F.normalize(told, dim=-1) @ self.told_directions)
        if len(shown):
            at = torch.tensor(shown, device=device)
            heads = heads.index_add(0, at, self.picture(seen_NF))
            fixed = fixed.index_add(0, at, F.normalize(seen_NF, dim=-1) @ self.seen_directions)
        return DEEP * F.normalize(heads, dim=-1) + F.normalize(fixed, dim=-1, eps=SHORTEST)


def directions(told_ME: np.ndarray, seen_NF: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Whitened principal directions of two tables of rows: float32 (E, D), (F, D).

    Each of the D numbers belongs to one of the tables, so that neither has a part in the other's: what pictures have
    to do with words is left to the heads. The directions are those of the largest variance, whichever table they are
    of, and all of them count alike in the end: what few items have is not drowned by what most have.
    """
    found = [np.linalg.eigh(rows.T.astype(np.float64) @ rows) for rows in (told_ME, seen_NF)]
    variance = np.concatenate([value for value, _ in found])
    chosen = np.argsort(-variance, kind="stable")[:width]
    chosen = chosen[variance[chosen] > FAINT**2 * variance.max()]
    length = np.sqrt(variance[chosen])
    scale = length.mean() / length if len(chosen) else length
    out, first = [], 0
    for value, vector in found:
        mine = (chosen >= first) & (chosen < first + len(value))
        table = np.zeros((len(value), width), dtype=np.float32)
        table[:, np.flatnonzero(mine)] = vector[:, chosen[mine] - first] * scale[mine]
        out.append(table)
        first += len(value)
    return out[0], out[1]


def _head(features: int, width: int) -> nn.Sequential:
    """From standardised features to the vector."""
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, HIDDEN * width),
        nn.GELU(),
        nn.Linear(HIDDEN * width, width),
    )
