"""What items say in few numbers: latent semantic analysis of their TF-IDF rows, the content of the two-tower model.

It needs no behaviour, so the towers may learn from all of it: what an encoder trained on the same log says of an item
would tell them what they are to predict.

Legend: M items, W words, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from feature_repo.vectors import Vectors, VectorTable
from retrieval.words import Words
from run.artifacts import Artifact, open_artifact, write_artifact

WIDTH = 128
TENSORS = "components.safetensors"


@dataclass(frozen=True)
class WordVectors:
    """A projection of TF-IDF rows to their strongest directions.

    Attributes:
        components: float32 (W, D), orthonormal columns; D is 0 where no item says anything.
        artifact: where it was opened from; None for one built in memory.
    """

    components: np.ndarray
    artifact: Artifact | None = None

    @classmethod
    def of(cls, words: Words, width: int = WIDTH) -> WordVectors:
        """The ``width`` strongest directions of a catalogue, fewer if it has fewer items or words."""
        from sklearn.utils.extmath import randomized_svd

        rows = words.rows
        width = min(width, *rows.shape)
        if not rows.nnz:
            return cls(np.zeros((rows.shape[1], 0), np.float32))
        _, strength, directions = randomized_svd(rows, width, random_state=0)
        return cls(np.ascontiguousarray(directions[strength > 1e-6].T, dtype=np.float32))

    def save(self, out: Path, parents: Mapping[str, Artifact]) -> Artifact:
        """Write an artifact of kind ``word_vectors``."""
        with write_artifact(out, "word_vectors", {"width": self.components.shape[1]}, parents) as folder:
            save_file({"components": self.components}, folder / TENSORS)
        return open_artifact(out, "word_vectors")

    @classmethod
    def open(cls, artifact: Artifact) -> WordVectors:
        """Open an artifact of kind "word_vectors"."""
        return cls(load_file(artifact.file(TENSORS))["components"], artifact)

    def vectors(self, words: Words) -> Vectors | None:
        """Unit vectors of the items that say something, of no query; None where the width is 0.

        Args:
            words: of the catalogue that this was made of, or of one with items added.
        """
        width = self.components.shape[1]
        if not width or self.artifact is None:
            return None
        matrix = words.rows @ self.components
        norm = np.linalg.norm(matrix, axis=1)
        said = norm > 1e-6
        none = VectorTable(np.empty(0, np.int64), np.empty((0, width), np.float32))
        unit = (matrix[said] / norm[said, None]).astype(np.float32)
        return Vectors(words.item_ids[said], unit, none, self.artifact.id)
