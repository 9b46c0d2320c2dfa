"""Controls: what a model must beat for its content to mean anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from feature_repo.vectors import Vectors


def shuffled(vectors: Vectors, seed: int) -> Vectors:
    """The same vectors handed out to the wrong items: equal capacity, no meaning.

    Query vectors are shuffled among queries as well. The id is another one, so a model trained on it refuses the
    real embedding.
    """
    rng = np.random.default_rng(seed)
    queries = replace(vectors.queries, matrix=rng.permutation(vectors.queries.matrix))
    return replace(
        vectors,
        matrix=rng.permutation(vectors.matrix),
        queries=queries,
        id=f"{vectors.id}-shuffled-{seed}",
    )
