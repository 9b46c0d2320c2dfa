"""How well a candidate answers what was searched for, in words and in looks: columns of the ranker.

Legend: R requests, C candidates, Q queries, n candidates of one request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from feature_repo.vectors import rows_of
from retrieval.colours import colours
from retrieval.properties import LOOKS_SPACE, Picture, Properties
from retrieval.requests import Requests
from retrieval.words import Words


@dataclass(frozen=True)
class Queries:
    """The queries of the log.

    Attributes:
        query_ids: int64 (Q), ascending.
        texts: Q texts, None for a picture.
        looks: float32 (Q, D), their pictures among those of the items, zeros without one.
    """

    query_ids: np.ndarray
    texts: tuple[str | None, ...]
    looks: np.ndarray

    @classmethod
    def of(cls, queries: pa.Table, properties: Properties, picture: Picture) -> Queries:
        """Of QUERIES rows; ``picture`` gives that of an ``image_id``."""
        queries = queries.sort_by("query_id")
        basis, seen = properties.bases.get(LOOKS_SPACE), list(map(picture, queries["image_id"].to_pylist()))
        looks = np.zeros((len(seen), 0 if basis is None else basis.directions.shape[1]), np.float32)
        there = [row for row, one in enumerate(seen) if one is not None]
        if basis is not None and there:
            looks[there] = basis.place(colours([seen[row] for row in there]))
        return cls(queries["query_id"].to_numpy(), tuple(queries["text"].to_pylist()), looks)


@dataclass(frozen=True)
class Asked:
    """How a candidate answers what was searched for.

    ``match_query_words`` and ``match_query_looks`` are cosines, 0 where nothing is searched for.
    ``match_query_share`` is the fraction of the search's words, of those that the catalogue knows, that the item says
    ("covered query term ratio", Qin and Liu, LETOR 4.0, 2013): cosines of one word and of two are not comparable.
    Without such words it is 1, as of all items that answer a search: 0 would be unlike all that a log of searches
    shows (docs/log/ranker.md#how-much-of-a-search-an-item-says).

    Looks are compared as they are, not by how they differ from the mean item: two pictures are alike by more than 0,
    so a model can tell an item that looks otherwise from a request without a picture
    (docs/log/ranker.md#no-picture-and-a-picture-unlike-it).

    Attributes:
        words: of all items.
        properties: of all items.
        queries: of the log.
    """

    words: Words
    properties: Properties
    queries: Queries

    @property
    def names(self) -> tuple[str, ...]:
        """The columns; looks only where items have pictures."""
        return (
            "match_query_words",
            "match_query_share",
            *(("match_query_looks",) if LOOKS_SPACE in self.properties.bases else ()),
        )

    def with_items(self, words: Words, properties: Properties) -> Asked:
        """The same queries against other items."""
        return replace(self, words=words, properties=properties)

    def columns(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Every (request, candidate) pair, float32 (C, len(names)).

        Args:
            requests: R requests.
            item_id: int64 (C), grouped by request.
            offsets: int64 (R + 1).
        """
        out = np.zeros((len(item_id), len(self.names)), dtype=np.float32)
        out[:, 1] = 1
        logged = rows_of(self.queries.query_ids, requests.query_id)
        for r in range(len(requests)):
            row, mine = int(logged[r]), slice(offsets[r], offsets[r + 1])
            text = self.queries.texts[row] if row >= 0 else requests.texts[r]
            if text:
                said = self.words.vocabulary.rows([text])
                says = self.words.take(item_id[mine])
                out[mine, 0] = (says @ said.T).toarray()[:, 0]
                if said.nnz:
                    out[mine, 1] = (says.sign() @ said.sign().T).toarray()[:, 0] / said.nnz
            seen = self.queries.looks[row] if row >= 0 else self._looks(requests.pictures[r])
            if len(self.names) > 2 and seen is not None and seen.any():
                out[mine, 2] = self._alike(item_id[mine], seen)
        return out

    def _looks(self, picture: bytes | None) -> Any:
        basis = self.properties.bases.get(LOOKS_SPACE)
        return None if picture is None or basis is None else basis.place(colours([picture]))[0]

    def _alike(self, item_id: np.ndarray, seen: np.ndarray) -> np.ndarray:
        rows, basis = self.properties.rows(item_id), self.properties.bases[LOOKS_SPACE]
        placed = self.properties.spaces[LOOKS_SPACE][rows]
        there = (rows >= 0) & placed.any(axis=1)  # items without a picture have zeros
        looks, wanted = basis.restored(placed), basis.restored(seen)
        length = np.linalg.norm(looks, axis=1) * np.linalg.norm(wanted)
        cosine: np.ndarray = np.divide(
            looks @ wanted, length, out=np.zeros_like(length), where=there & (length > 0)
        )
        return cosine
