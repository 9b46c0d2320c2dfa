"""Controls: rankers that read less of an item's content than the full one, each trained and measured beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from feature_repo.vectors import Vectors


@dataclass(frozen=True)
class Reads:
    """What a ranker reads of an item's content.

    Attributes:
        vectors: the embedding; None: none.
        plain: whether also the words and looks that need no model: TF-IDF, thumbnails and histograms of colours, in
            similarities, tastes and answers to queries.
        tastes: whether tastes read vectors as well; those of the run, so not beside others.
    """

    vectors: Vectors | None
    plain: bool
    tastes: bool = False


def rankers(vectors: Vectors, seed: int) -> dict[str, Reads]:
    """Every ranker of a run by name, the one that serves first.

    What full has over ``plain_content`` is due to the vectors, what it has over ``id_only`` to content of any kind.
    ``id_only`` reads ids, counters, categories, attributes, prices and co-occurrence.
    """
    return {
        "full": Reads(vectors, plain=True, tastes=True),
        "plain_content": Reads(None, plain=True),
        "id_only": Reads(None, plain=False),
        "shuffled": Reads(shuffled(vectors, seed), plain=True),
    }


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
