"""Controls: models without content information, which the full model must beat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from feature_repo.vectors import Vectors


def shuffled(vectors: Vectors, seed: int) -> Vectors:
    """The same vectors assigned to the wrong items: equal capacity, no information.

    Query vectors are shuffled among queries as well. The embedding id changes too, so a model trained on it refuses
    the real embedding.
    """
    rng = np.random.default_rng(seed)
    queries = replace(vectors.queries, matrix=rng.permutation(vectors.queries.matrix))
    return replace(
        vectors,
        matrix=rng.permutation(vectors.matrix),
        queries=queries,
        id=f"{vectors.id}-shuffled-{seed}",
    )
