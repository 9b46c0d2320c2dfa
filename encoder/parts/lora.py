"""LoRA: train a low-rank correction of each linear layer of a checkpoint and leave its own weights alone.

    y = W x + (alpha / rank) B A x        A: (rank, in) random, B: (out, rank) zero at the start

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", §4.1. None of the MOON papers says
whether its checkpoint was trained whole or by adapters (NOT RECOVERED); ``RANK`` and ``ALPHA`` are the usual
choice for models of 2 to 8 billion parameters.

The layers are replaced inside the model, so that everything else still finds them by their names; ``merge`` puts
W + (alpha / rank) B A back in their place, so that what is saved is an ordinary checkpoint folder.
"""

from __future__ import annotations

from typing import Any

from torch import nn

RANK, ALPHA = 16, 32


def block_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the blocks of every tower, vision and language alike.

    A tower keeps its blocks in a ``ModuleList`` in every family; what is outside of them (embeddings, patch
    projection, next-token output) belongs to the vocabulary or to the pixels and is left as it was trained.
    So is a layer that is frozen already: experts stand in its place.
    """
    blocks = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(blocks) and part.weight.requires_grad
    ]


def add_lora(model: nn.Module, rank: int = RANK, alpha: int = ALPHA, within: str = "") -> nn.Module:
    """Freeze ``model`` and put trainable adapters on the linear layers of its blocks, in place.

    Its outputs are those it had before, to the bit, until the first step. A is drawn from torch's generator:
    seed it first. Call it on the backbone's own model when the parts of the recipe stand: they are not in it and
    are trained whole.

    Args:
        model: what ``AutoModelForImageTextToText`` made.
        rank: of the correction.
        alpha: numerator of its scale.
        within: only layers whose name contains this, as ``"language_model"``; empty for every tower.

    Raises:
        ValueError: no linear layer is called so.
    """
    from peft import (
        LoraConfig,
        inject_adapter_in_model,
    )  # takes seconds, which training without it need not wait

    names = block_layers(model)
    wanted = [name for name in names if within in name]
    if not wanted:
        raise ValueError(f"expected linear layers within {within!r}, found {len(names)} others: {names[:3]}.")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=wanted), model)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Add every correction to its weight and put the plain layers back, in place; without adapters, nothing.

    Raises:
        ValueError: a merged weight would not be finite.
    """
    from peft.tuners.lora import LoraLayer

    adapted: list[tuple[str, Any]] = [
        (name, part) for name, part in model.named_modules() if isinstance(part, LoraLayer)
    ]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    return model


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(part.numel() for part in model.parameters() if part.requires_grad)
