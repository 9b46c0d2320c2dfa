"""The source of items whose texts are like those of a user's latest items.

Legend: R requests, C candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dataset.jagged import owners
from retrieval.index import ItemIndex
from retrieval.jagged import Retrieved, group_best, stack
from retrieval.requests import Requests, interests
from retrieval.sources import Source, filtered
from retrieval.words import Words

BLOCK_REQUESTS = 256  # whose words are compared with the catalogue's at once


class WordsSource(Source):
    """Items that say what this user's latest say, also those that nobody has acted on: cosine of TF-IDF.

    Args:
        words: of all items.
        index: the items that may be answered and their categories.
    """

    name = "words"

    def __init__(self, words: Words, index: ItemIndex) -> None:
        self._words, self.index = words, index
        self._answerable: dict[str | None, np.ndarray] = {}

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k items of largest cosine with its history; nothing that shares no word with it."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Cosine of each item with the recency-weighted mean of the request's latest, float32 [C]."""
        said = self._said(requests)
        out = np.zeros(len(item_id), dtype=np.float32)
        for request in np.flatnonzero(np.diff(offsets)):
            rows = slice(offsets[request], offsets[request + 1])
            out[rows] = self._words.take(item_id[rows]) @ said[[request]].toarray()[0]
        return out

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        if category not in self._answerable:
            self._answerable[category] = self.index.contains(self._words.item_ids, category)
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        said = self._said(requests)
        for start in range(0, len(requests), BLOCK_REQUESTS):
            found = said[start : start + BLOCK_REQUESTS] @ self._words.by_word
            passing = self._answerable[category][found.indices]
            request, item_id = owners(found.indptr)[passing], self._words.item_ids[found.indices[passing]]
            answers.extend(group_best(request, item_id, found.data[passing], found.shape[0], k))
        return stack(answers)

    def _said(self, requests: Requests) -> Any:
        spoken = interests(requests.history)
        return self._words.means(spoken.item_id, spoken.weight, spoken.offsets)
