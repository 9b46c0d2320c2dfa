"""LoRA: train a low-rank correction of each linear layer of a checkpoint and freeze its own weights.

    y = W x + (alpha / rank) B A x        A: (rank, in) random, B: (out, rank) zero at the start

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", §4.1. None of the MOON papers says
whether all weights or only adapters were trained (not recovered); ``RANK`` and ``ALPHA`` are usual for models of 2 to
8 billion parameters.

The layers are replaced inside the model and keep their names; ``merge`` replaces them by plain layers with
W + (alpha / rank) B A, so that the saved model is an ordinary checkpoint folder.
"""

from __future__ import annotations

from typing import Any

from torch import nn

RANK, ALPHA = 16, 32


def block_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the blocks of the vision and the language side.

    Every family keeps its blocks in a ``ModuleList``; layers outside of them (embeddings, patch projection,
    next-token output) get no adapters. Neither do frozen layers: experts have replaced them.
    """
    blocks = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(blocks) and part.weight.requires_grad
    ]


def add_lora(model: nn.Module, rank: int = RANK, alpha: int = ALPHA, within: str = "") -> nn.Module:
    """Freeze ``model`` and put trainable adapters on the linear layers of its blocks, in place.

    The model's outputs do not change, to the bit, before the first step. A is drawn from torch's global generator.
    Call it on the backbone's inner model after the recipe's parts have been added: they are outside of that model and
    keep all their weights trainable.

    Args:
        model: made by ``AutoModelForImageTextToText``.
        rank: rank of the correction.
        alpha: numerator of its scale.
        within: only layers whose name contains this, such as ``"language_model"``; empty: all.

    Raises:
        ValueError: no linear layer's name contains ``within``.
    """
    # Imported here because it takes seconds.
    from peft import LoraConfig, inject_adapter_in_model

    names = block_layers(model)
    wanted = [name for name in names if within in name]
    if not wanted:
        raise ValueError(f"expected linear layers within {within!r}, found {len(names)} others: {names[:3]}.")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=wanted), model)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Add every correction to its weight and restore plain layers, in place; does nothing without adapters.

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
    """Number of trainable parameters."""
    return sum(part.numel() for part in model.parameters() if part.requires_grad)
