"""What the recommender needs of the online store and of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from encoder.encode import Content
from feature_repo.frame import Frame
from feature_repo.item_matrix import ItemMatrix
from feature_repo.online import Stored
from feature_repo.signature import Feature
from feature_repo.vectors import Vectors
from ranker.order import Order

Context = Mapping[str, Any]  # what a client sends with a request


class Reader(Protocol):
    """The online side of the feature store (``feature_repo.online.OnlineReader``)."""

    def read_user(  # noqa: D102
        self,
        user_id: int,
        time: datetime,
        query_id: int | None = None,
        context: Context | None = None,
    ) -> Frame: ...

    def with_candidates(self, user: Frame, item_ids: np.ndarray) -> Frame: ...  # noqa: D102

    def read_items(self, item_ids: np.ndarray, time: datetime) -> Stored: ...  # noqa: D102

    def with_items(self, items: ItemMatrix) -> Reader: ...  # noqa: D102


class Scorer(Protocol):
    """The ranker (``ranker.score.Ranker``)."""

    @property
    def history(self) -> int: ...  # noqa: D102

    @property
    def order(self) -> Order | None: ...  # noqa: D102

    def score(self, frame: Frame, query_vectors: np.ndarray | None = None) -> np.ndarray: ...  # noqa: D102

    def with_vectors(self, vectors: Vectors) -> Scorer: ...  # noqa: D102


class ContentEncoder(Protocol):
    """The encoder (``encoder.encode.Encoder``)."""

    def encode(self, contents: Sequence[Content]) -> np.ndarray: ...  # noqa: D102


class RelevanceHead(Protocol):
    """The relevance model (``ranker.relevance.Relevance``)."""

    @property
    def features(self) -> Sequence[Feature]: ...  # noqa: D102

    def score(  # noqa: D102
        self, query_vector: np.ndarray, item_vectors: np.ndarray, items: Mapping[str, pa.Array]
    ) -> np.ndarray: ...
