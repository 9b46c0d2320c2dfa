"""A dataset's pictures decoded once and kept beside it: training again, or another recipe, reads them from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset.tables import Dataset
from encoder.images import decode_images
from moon.artifacts import ArtifactError, open_artifact, write_artifact

MADE_BY = "moon encoder train"


@dataclass(frozen=True)
class Decoded:
    """Every picture of a dataset at one size.

    Attributes:
        image_ids: of each row.
        pixels: uint8 (N, S, S, 3), mapped from disk: only what is read takes memory, and processes share it.
    """

    image_ids: Sequence[str]
    pixels: np.ndarray


def decoded(dataset: Dataset, px: int) -> Decoded:
    """The pictures of a dataset as squares of ``px`` pixels, decoded unless an earlier call left them.

    They lie in ``<dataset>.pixels_<px>``, which is made again when the dataset changes and may be removed at
    any time.

    Raises:
        DataError: a picture does not decode, naming its id.
    """
    place = dataset.artifact.path.with_name(f"{dataset.artifact.path.name}.pixels_{px}")
    image_ids = dataset.images["image_id"].to_pylist()
    try:
        found = open_artifact(place, "pixels", MADE_BY)
        current = found.parents["dataset"] == dataset.artifact.id
    except ArtifactError:
        current = False  # absent or damaged
    if not current:
        contents = dict(zip(image_ids, dataset.images["bytes"].to_pylist(), strict=True))
        with write_artifact(place, "pixels", {"px": px}, {"dataset": dataset.artifact}) as folder:
            np.save(folder / "pixels.npy", decode_images(contents, image_ids, px), allow_pickle=False)
        found = open_artifact(place, "pixels", MADE_BY)
    mapped = np.load(found.file("pixels.npy"), mmap_mode="r", allow_pickle=False)
    return Decoded(image_ids, np.asarray(mapped))
