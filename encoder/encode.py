"""The trained encoder: from contents to unit vectors, for bulk embedding, evaluation and the service.

Shapes: n contents, D vector width, S picture side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from dataset.contracts import DataError
from dataset.tables import Dataset
from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import load_backbone
from encoder.backbone.packing import Sample
from encoder.content import Content, item_content, query_content, tokenize_fields
from encoder.dual import DualModel
from encoder.generate import write_chains
from encoder.model import EncoderModel
from encoder.parts.chain import chain_marks
from encoder.pictures.decode import decode_image, decode_twice
from encoder.pictures.region import core_region
from encoder.tokenizer import end_id, load_tokenizer
from encoder.towers.features import kept_features
from encoder.towers.model import TowerModel
from encoder.towers.towers import read_towers
from run.artifacts import Artifact, ArtifactError
from run.sizes import recorded

__all__ = ["Content", "Encoder", "item_content", "query_content", "query_encoder", "save_encoder"]

PARTS = "parts.safetensors"  # all weights outside the backbone


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_encoder(model: EncoderModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write backbone, tokenizer and parts as a Hugging Face checkpoint folder with one additional file."""
    if isinstance(model, TowerModel):
        model.towers.save(folder)
    elif not isinstance(model, DualModel):
        model.backbone.save(folder)
    tokenizer.save_pretrained(folder)
    save_file({name: p.detach().cpu().contiguous() for name, p in _own(model).items()}, folder / PARTS)


def _own(model: EncoderModel) -> dict[str, Tensor]:
    """The weights that are not in the backbone's checkpoint files."""
    elsewhere = ("backbone.model.", "towers.")
    return {k: v for k, v in model.state_dict().items() if not k.startswith(elsewhere)}


class Encodes(Protocol):
    """Turns contents into vectors: an ``Encoder``, or what stands for one."""

    def encode(self, contents: Sequence[Content]) -> np.ndarray:
        """Unit vectors float32 (n, D)."""
        ...


def query_encoder(encoder: Encodes) -> Callable[[Sequence[tuple[str | None, bytes | None]]], np.ndarray]:
    """A function of (text, picture) pairs that gives their vectors, for those who search and know of no contents."""

    def encode(queries: Sequence[tuple[str | None, bytes | None]]) -> np.ndarray:
        return encoder.encode([Content(image=image, text=text) for text, image in queries])

    return encode


def width_of(encoder: Artifact) -> int:
    """D of the vectors that an encoder makes, by its artifact; where it does not say, the widest that it trained."""
    return int(encoder.config.get("width", encoder.config["widths"][0]))


class Encoder:
    """A trained encoder, ready to encode.

    Attributes:
        id: id of its artifact.
        width: D, width of a vector.
        widths: Matryoshka widths: a prefix of one of them, normalised, is a vector too.
        model, tokenizer: its parts.
    """

    def __init__(
        self,
        artifact: Artifact,
        model: EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        text_tokens: int,
        parts: Parts,
    ) -> None:
        self.id = artifact.id
        self.width = model.width
        self.widths = tuple(int(width) for width in artifact.config["widths"])
        self.model = model.to(device()).eval()
        self.tokenizer = tokenizer
        self._text_tokens = text_tokens
        self._parts = parts

    @classmethod
    def open(cls, artifact: Artifact, dataset: Dataset | None = None) -> Encoder:
        """Load the encoder of a verified artifact of kind ``encoder``.

        Args:
            artifact: the encoder.
            dataset: what frozen towers have read of it for training is not read again.
        """
        size, parts = recorded(artifact.config["size"]), Parts(**artifact.config["parts"])
        tokenizer = load_tokenizer(artifact.path)
        if parts.towers:
            model: EncoderModel = TowerModel(read_towers(artifact.path), size.item_width, size.text_tokens)
        elif parts.dual:
            model = DualModel(size, len(tokenizer), end_id(tokenizer))
        else:
            backbone = load_backbone(artifact.path, size.image_px)
            model = assemble(backbone, parts, size.item_width, seed=0)
        own = load_file(artifact.file(PARTS))
        expected = set(_own(model))
        if set(own) != expected:
            raise ArtifactError(
                f"{artifact.path / PARTS}: expected {len(expected)} tensors, found {len(own)}, differing in "
                f"{sorted(expected ^ set(own))[:3]}. Run 'moon encoder train' again."
            )
        model.load_state_dict(own, strict=False)
        if isinstance(model, TowerModel) and dataset is not None:
            model.known = kept_features(dataset, model)
        return cls(artifact, model, tokenizer, size.text_tokens, parts)

    @torch.inference_mode()
    def encode(
        self, contents: Sequence[Content], pixels: Sequence[np.ndarray | None] | None = None
    ) -> np.ndarray:
        """Unit vectors of contents; the vector of a content does not depend on the others.

        Args:
            contents: each with a picture, text, or both; a missing part takes no tokens.
            pixels: each picture as ``decode_image`` returns it, where it has been decoded already.

        Returns:
            float32 (n, D), unit norm.

        Raises:
            DataError: a content has neither picture nor text, or a picture does not decode.
        """
        empty = [place for place, content in enumerate(contents) if content.is_empty]
        if empty:
            raise DataError(
                f"expected a picture or words in each of {len(contents)} contents, "
                f"found neither in {len(empty)}, first {empty[:3]}. Leave them out."
            )
        if not contents:
            return np.empty((0, self.width), dtype=np.float32)
        if isinstance(self.model, TowerModel):
            return F.normalize(self.model.contents(contents), dim=-1).cpu().numpy()
        samples = self.samples(contents, pixels)
        if self._parts.chain:  # greedy, so that a content always has the same vector
            marks = chain_marks(self.tokenizer)
            written = write_chains(self.model.backbone, samples, marks, self._text_tokens)
            samples = written.chained(samples, marks)
        return F.normalize(self.model.vectors(samples), dim=-1).cpu().numpy()

    def samples(
        self, contents: Sequence[Content], pixels: Sequence[np.ndarray | None] | None = None
    ) -> list[Sample]:
        """The model's input for contents, tokens and pixels, without attribute chains."""
        texts = tokenize_fields(self.tokenizer, contents, self._text_tokens)
        known = [None] * len(contents) if pixels is None else pixels
        seen: dict[bytes | None, tuple[np.ndarray, ...]] = {None: ()}  # each picture is decoded once
        for content, whole in zip(contents, known, strict=True):
            if content.image is not None and content.image not in seen:
                seen[content.image] = self._pictures(content.image, whole)
        return [
            Sample(tokens, seen[content.image], kinds)
            for content, (tokens, kinds) in zip(contents, texts, strict=True)
        ]

    def _pictures(self, image: bytes, whole: np.ndarray | None) -> tuple[np.ndarray, ...]:
        px = self.model.px
        if not self._parts.region:
            return (decode_image(image, px) if whole is None else whole,)
        square, detailed = decode_twice(image, px)
        return square if whole is None else whole, core_region(detailed, px)
