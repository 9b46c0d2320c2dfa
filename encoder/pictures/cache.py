"""A cache of a dataset's decoded pictures, beside the dataset, for training and bulk embedding at one picture size.

Shapes: N pictures, S picture side in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

import numpy as np

from dataset.tables import Dataset
from encoder.pictures.decode import decode_images
from run.artifacts import Artifact, ArtifactError, open_artifact, write_artifact

MADE_BY = "moon encoder train"


@dataclass(frozen=True)
class Decoded:
    """Decoded pictures.

    Attributes:
        image_ids: id of each row; equal ids are equal pictures (``dataset.pictures``).
        pixels: uint8 (N, S, S, 3), memory-mapped: only what is read takes memory, and processes share it.
    """

    image_ids: Sequence[str]
    pixels: np.ndarray

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each image id."""
        return {image_id: row for row, image_id in enumerate(self.image_ids)}


def decoded(dataset: Dataset, px: int) -> Decoded:
    """Every picture of a dataset that decodes as a square of ``px`` pixels.

    They are cached in ``<dataset>.pixels_<px>``, which may be deleted at any time. When the dataset changes, only new
    pictures are decoded.

    Raises:
        DataError: no picture decodes.
    """
    earlier = _find(_place(dataset, px))
    if _is_of(earlier, dataset):
        return _open(earlier)
    before = Decoded([], np.empty((0, px, px, 3), np.uint8)) if earlier is None else _open(earlier)
    image_ids = dataset.images["image_id"].to_pylist()
    contents = dict(zip(image_ids, dataset.images["bytes"].to_pylist(), strict=True))
    new = [image_id for image_id in image_ids if image_id not in before.rows]
    fresh = Decoded(*decode_images(contents, new, px))
    image_ids = [one for one in image_ids if one in fresh.rows or one in before.rows]
    with write_artifact(_place(dataset, px), "pixels", {"px": px}, {"dataset": dataset.artifact}) as folder:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(image_ids), px, px, 3)}
        with (folder / "pixels.npy").open(
            "wb"
        ) as stream:  # not mapped: a full disk ends a process that writes there
            np.lib.format.write_array_header_1_0(stream, header)
            for image_id in image_ids:
                source = fresh if image_id in fresh.rows else before
                stream.write(source.pixels[source.rows[image_id]].tobytes())
        (folder / "image_ids.json").write_text(json.dumps(image_ids))
    return _open(open_artifact(_place(dataset, px), "pixels", MADE_BY))


def kept(dataset: Dataset, px: int) -> Decoded | None:
    """The cache that ``decoded`` wrote for this dataset; None if there is none, or it is of another dataset."""
    found = _find(_place(dataset, px))
    return _open(found) if _is_of(found, dataset) else None


def _place(dataset: Dataset, px: int) -> Path:
    return dataset.artifact.path.with_name(f"{dataset.artifact.path.name}.pixels_{px}")


def _find(path: Path) -> Artifact | None:
    try:
        return open_artifact(path, "pixels", MADE_BY)
    except ArtifactError:
        return None  # absent or damaged


def _is_of(artifact: Artifact | None, dataset: Dataset) -> TypeGuard[Artifact]:
    return artifact is not None and artifact.parents["dataset"] == dataset.artifact.id


def _open(artifact: Artifact) -> Decoded:
    mapped = np.load(artifact.file("pixels.npy"), mmap_mode="r", allow_pickle=False)
    return Decoded(json.loads(artifact.file("image_ids.json").read_text()), np.asarray(mapped))
