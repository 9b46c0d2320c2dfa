"""The trained encoder: contents in, unit vectors out, for bulk embedding, evaluation and the service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from dataset.contracts import DataError
from encoder.backbone import load_backbone
from encoder.content import Content, item_content, query_content
from encoder.images import decode_image
from encoder.model import EncoderModel, Sample
from encoder.tokenizer import load_tokenizer, pad_id, tokenize
from moon.artifacts import Artifact

__all__ = ["Content", "Encoder", "item_content", "query_content", "save_encoder"]

HEAD = "head.safetensors"


def device() -> torch.device:
    """The accelerator when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_encoder(model: EncoderModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write backbone, tokenizer and head: a Hugging Face checkpoint folder with one more file."""
    model.backbone.save(folder)
    tokenizer.save_pretrained(folder)
    save_file({"weight": model.head.weight.detach().cpu().contiguous()}, folder / HEAD)


class Encoder:
    """A trained encoder, ready to encode.

    Attributes:
        id: id of its artifact.
        width: D, width of a vector.
        widths: Matryoshka prefixes that are vectors of their own once normalised.
    """

    def __init__(
        self, artifact: Artifact, model: EncoderModel, tokenizer: PreTrainedTokenizerBase, text_tokens: int
    ) -> None:
        self.id = artifact.id
        self.width = int(model.head.out_features)
        self.widths = tuple(int(width) for width in artifact.config["widths"])
        self._model = model.to(device()).eval()
        self._tokenizer = tokenizer
        self._text_tokens = text_tokens

    @classmethod
    def open(cls, artifact: Artifact) -> Encoder:
        """Load the encoder of a verified artifact of kind ``encoder``."""
        size = artifact.config["size"]
        tokenizer = load_tokenizer(artifact.path)
        backbone = load_backbone(artifact.path, size["image_px"])
        head = load_file(artifact.file(HEAD))["weight"]
        model = EncoderModel(backbone, width=len(head), pad=pad_id(tokenizer))
        model.head.weight.data.copy_(head)
        return cls(artifact, model, tokenizer, size["text_tokens"])

    @torch.inference_mode()
    def encode(self, contents: Sequence[Content], batch: int = 64) -> np.ndarray:
        """Unit vectors of contents.

        Args:
            contents: each with a picture, a text, or both; a missing part takes no tokens.
            batch: most contents per forward pass; the result does not depend on it.

        Returns:
            float32 (n, D), unit norm.

        Raises:
            DataError: a content has neither picture nor words, so no vector; or a picture does not decode.
        """
        empty = [place for place, content in enumerate(contents) if content.is_empty]
        if empty:
            raise DataError(
                f"expected a picture or words in each of {len(contents)} contents, "
                f"found neither in {len(empty)}, first {empty[:3]}. Leave them out."
            )
        if not contents:
            return np.empty((0, self.width), dtype=np.float32)
        px = self._model.backbone.vision.px
        tokens = tokenize(self._tokenizer, [content.text or "" for content in contents], self._text_tokens)
        samples = [
            Sample(ids, None if content.image is None else decode_image(content.image, px))
            for ids, content in zip(tokens, contents, strict=True)
        ]
        return F.normalize(self._model(samples, limit=batch), dim=-1).float().cpu().numpy()
