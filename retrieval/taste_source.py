"""The source of items that suit a user's taste: what of an item's properties they like more than others do.

Legend: R requests, C candidates.
"""

from __future__ import annotations

import numpy as np

from retrieval.index import ItemIndex
from retrieval.jagged import Retrieved, best_first, stack
from retrieval.requests import NO_IDS, Requests
from retrieval.sources import Source, filtered
from retrieval.taste import MOST_SHOWN, Taste

NO_SCORES = np.empty(0, dtype=np.float32)


class TasteSource(Source):
    """Every answerable item judged by the taste, also those that nobody has acted on.

    Args:
        taste: infers tastes from what was shown and done.
        index: the items that may be answered and their categories.
    """

    name = "taste"

    def __init__(self, taste: Taste, index: ItemIndex) -> None:
        self._taste, self.index = taste, index
        self._answerable: dict[str | None, np.ndarray] = {}  # rows of the properties, by category

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k items of largest taste; nothing for who was shown nothing and did nothing."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """What taste adds to the log-odds of a like, float32 [C]: the column ``match_taste``."""
        out = np.zeros(len(item_id), dtype=np.float32)
        rows = self._taste.properties.rows(item_id)
        for request in np.flatnonzero(np.diff(offsets)):
            mine = np.arange(offsets[request], offsets[request + 1])
            mine = mine[rows[mine] >= 0]
            judged = self._judged(requests, int(request), rows[mine])
            if judged is not None:
                out[mine] = judged
        return out

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        item_ids = self._taste.properties.item_ids
        if category not in self._answerable:
            self._answerable[category] = np.flatnonzero(self.index.contains(item_ids, category))
        rows = self._answerable[category]
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for request in range(len(requests)):
            judged = self._judged(requests, request, rows)
            found = (NO_IDS, NO_SCORES) if judged is None else best_first(item_ids[rows], judged, k)
            answers.append(found)
        return stack(answers)

    def _judged(self, requests: Requests, request: int, rows: np.ndarray) -> np.ndarray | None:
        past = self._taste.evidence(requests, request)
        if not len(past.item) or not len(rows):
            return None
        parts = self._taste.parts(past.latest(MOST_SHOWN), rows, int(requests.time_us[request]))
        total: np.ndarray = parts.sum(axis=1)
        return total
