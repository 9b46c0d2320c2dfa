"""Weights on disk: safetensors, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from run.artifacts import ArtifactError

WEIGHTS = "model.safetensors"


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, each with storage of its own."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.named_parameters()}


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the model's parameters into ``folder``."""
    save_file(tensors_of(model), folder / WEIGHTS)


def put_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy ``tensors`` into the model's parameters in place (tables share memory with their kernels)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def load_weights(
    model: nn.Module, path: Path, made_by: str, renamed: Mapping[str, str] | None = None
) -> None:
    """Fill the model from ``path``.

    Args:
        model: built from the artifact's configuration.
        path: a file of ``save_weights``.
        made_by: the command that makes it.
        renamed: how tensors' names began in an earlier release -> how they begin now.

    Raises:
        ArtifactError: unreadable; tensors missing, unexpected, of another shape, or not finite.
    """
    again = f"Run '{made_by}' to make it again."
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error}). {again}") from None
    for before, now in (renamed or {}).items():
        for name in [name for name in tensors if name.startswith(before)]:
            tensors[now + name.removeprefix(before)] = tensors.pop(name)
    expected = dict(model.named_parameters())
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise ArtifactError(
            f"{path}: expected {len(expected)} tensors, {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unexpected {unknown[:3]}. {again}"
        )
    for name, parameter in expected.items():
        if tensors[name].shape != parameter.shape or tensors[name].dtype != parameter.dtype:
            raise ArtifactError(
                f"{path}: {name}: expected {parameter.dtype} {tuple(parameter.shape)}, "
                f"found {tensors[name].dtype} {tuple(tensors[name].shape)}. {again}"
            )
        if not tensors[name].isfinite().all():
            bad = int((~tensors[name].isfinite()).sum())
            raise ArtifactError(
                f"{path}: {name}: {bad} of {parameter.numel()} weights are not finite. {again}"
            )
    put_tensors(model, tensors)
