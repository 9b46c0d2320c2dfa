"""Controls: what a model must beat for its content to mean anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from feature_repo.vectors import Vectors


def shuffled(vectors: Vectors, seed: int) -> Vectors:
    """The same item vectors handed out to the wrong items: equal capacity, no meaning.

    Query vectors are kept; the id is another one, so a model trained on it refuses the real embedding.
    """
    order = np.random.default_rng(seed).permutation(len(vectors.ids))
    return replace(vectors, matrix=vectors.matrix[order], id=f"{vectors.id}-shuffled-{seed}")
