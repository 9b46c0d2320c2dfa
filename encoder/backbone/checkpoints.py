"""Checkpoint folders as ``save_pretrained`` writes them: read without a network, refused unless complete.

Transformers only warns of missing and unexpected tensors. Here both are errors: a missing tensor would be random,
and an unexpected one means that the weights are not of the model that ``config.json`` describes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText

from encoder.tokenizer import load_tokenizer

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl", "smolvlm")
MARKERS = {  # tokens around a picture's tokens, for families whose config does not give their ids
    "internvl": (("<img>",), ("</img>",)),
    "smolvlm": (("<fake_token_around_image>", "<global-img>"), ("<fake_token_around_image>",)),
}
PREPROCESSOR = "preprocessor_config.json"
COMPUTED = "inv_freq"  # rotary frequencies: older folders store them, newer models compute them


class BackboneError(ValueError):
    """A checkpoint folder cannot be used; the message says what was expected, what was found and what to do."""


def read_checkpoint(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load the model of a checkpoint folder in float32, and the settings of its image processor.

    Args:
        folder: with ``config.json``, ``*.safetensors`` and ``preprocessor_config.json``; ours or a published one.

    Raises:
        BackboneError: a file is missing or not JSON, the model family is unknown, the weights do not load, or
            tensors are missing, unexpected or not finite.
    """
    folder = Path(folder)
    family = read_json(folder, "config.json").get("model_type")
    settings = read_json(folder, PREPROCESSOR)
    if family not in FAMILIES:
        raise BackboneError(f"{folder}: expected a model of {', '.join(FAMILIES)}, found {family!r}.")
    return checked(folder, AutoModelForImageTextToText, family), settings


def checked(folder: Path, kind: Any, family: str) -> Any:
    """The model of a checkpoint folder in float32.

    Args:
        folder: with ``config.json`` and ``*.safetensors``.
        kind: a transformers class of models, ``AutoModel...``.
        family: its name in messages.

    Raises:
        BackboneError: the weights do not load, or tensors are missing, unexpected or not finite.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        loaded: Any = kind.from_pretrained(
            folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, StrictDataclassError, SafetensorError) as error:
        raise BackboneError(
            f"{folder}: cannot load a {family} model from config and weights: {error}"
        ) from error
    model, report = loaded
    _refuse(folder, sorted(report["missing_keys"]), "missing from the weights", "They would be random")
    left = sorted(name for name in report["unexpected_keys"] if not name.endswith(COMPUTED))
    _refuse(folder, left, f"in the weights that no {family} model of this config has", "Another model")
    lost = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    _refuse(folder, lost, "not finite", "A damaged file")
    return model


def image_markers(folder: Path, family: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before and after a picture's tokens, for the families of MARKERS.

    Raises:
        BackboneError: the folder's tokenizer has no such token.
    """
    known = load_tokenizer(folder).get_vocab()
    before, after = MARKERS[family]
    unknown = [token for token in (*before, *after) if token not in known]
    if unknown:
        raise BackboneError(f"{folder}: expected the {family} tokenizer to know {unknown[0]}; it does not.")
    return tuple(known[token] for token in before), tuple(known[token] for token in after)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the folder."""
    if not (folder / name).is_file():
        raise BackboneError(
            f"{folder}: expected a Hugging Face checkpoint of {', '.join(FAMILIES)}, found no {name}. "
            "Give the folder that 'save_pretrained' wrote, including the processor's files."
        )
    try:
        found = json.loads((folder / name).read_text())
    except ValueError as error:
        raise BackboneError(f"{folder / name}: not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{folder / name}: expected a JSON object, found {type(found).__name__}.")
    return found


def _refuse(folder: Path, names: list[str], what: str, why: str) -> None:
    if names:
        raise BackboneError(
            f"{folder}: {len(names)} tensors {what}, first {names[:3]}. "
            f"{why}: download or export the checkpoint again."
        )
