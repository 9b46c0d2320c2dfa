"""Everything retrieval needs of a run folder, opened and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_repo.vectors import Vectors
from moon.artifacts import Artifact, open_artifact, require_agreement, require_parent
from retrieval.cooccurrence import Cooccurrence
from retrieval.index import ItemIndex
from retrieval.sources import (
    CooccurrenceSource,
    PopularSource,
    SimilarSource,
    Source,
    profile_source,
    query_source,
    two_tower_source,
)


@dataclass(frozen=True)
class Retriever:
    """The sources of one run.

    Attributes:
        index: items that may be answered, in the encoder's space.
        vectors: the embedding artifact's vectors, of every item.
        personal: the sources that read a user's history or features, in the order of the ``match_*`` columns.
        popular: what to answer when nothing is known.
        query: what to answer to a text or a picture.
        artifacts: role -> artifact of everything opened here.
    """

    index: ItemIndex
    vectors: Vectors
    personal: tuple[Source, ...]
    popular: Source
    query: Source
    artifacts: dict[str, Artifact]

    @property
    def recommending(self) -> tuple[Source, ...]:
        """What proposes candidates to a user with a history: what is popular is worth a look for anyone."""
        return (*self.personal, self.popular)

    @property
    def sources(self) -> tuple[Source, ...]:
        """All of them: the ranker reads one ``match_*`` column for each, whichever proposed a candidate."""
        return (*self.personal, self.popular, self.query)

    @classmethod
    def open(cls, run: Path, cooccurrence: str = "cooccurrence", only: np.ndarray | None = None) -> Retriever:
        """Open ``embedding``, ``index``, ``cooccurrence`` and, when trained, ``two_tower`` of a run folder.

        Args:
            run: the run folder.
            cooccurrence: name of the co-occurrence artifact: training reads one counted from an earlier log.
            only: int64 ids, the only items that may be answered; None: all of the index.

        Raises:
            ArtifactError: one is missing or damaged, or they were not made from one another.
        """
        embedding = open_artifact(run / "embedding", "embedding", "moon embed")
        vectors = Vectors.open(embedding)
        index = ItemIndex.open(run / "index").only(only)
        graph = Cooccurrence.open(run / cooccurrence)
        assert index.artifact is not None
        artifacts = {"embedding": embedding, "index": index.artifact, "cooccurrence": graph.artifact}
        require_parent(index.artifact, "embedding", embedding)
        personal: list[Source] = [
            SimilarSource(index, vectors),
            profile_source(index, vectors),
            CooccurrenceSource(graph, index),
        ]
        if (run / "two_tower").exists():
            from ranker.two_tower import TwoTower

            tower_artifact = open_artifact(run / "two_tower", "two_tower", "moon retrieval")
            tower_index = ItemIndex.open(run / "two_tower_index")
            assert tower_index.artifact is not None
            require_parent(tower_index.artifact, "two_tower", tower_artifact)
            artifacts |= {"two_tower": tower_artifact, "two_tower_index": tower_index.artifact}
            towers = TwoTower.open(run / "two_tower", vectors)
            personal.append(two_tower_source(towers, tower_index.only(only)))
        require_agreement(artifacts)
        popular = PopularSource(graph.item_ids, graph.popularity, index)
        return cls(index, vectors, tuple(personal), popular, query_source(index), artifacts)
