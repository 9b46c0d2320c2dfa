"""Plain features of a request and an item: similarities to the user's history, and counts, as of the request.

No learned vector and no feature store takes part: texts, pictures, who acted on what, and when. Legend: R requests,
C candidates of all requests, M items, n candidates and H behaviours of one request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.jagged import owners
from dataset.log import distinct
from dataset.tables import Dataset
from evaluation.content import PlainContent, SparseRows, buyers, tf_idf
from evaluation.earlier import NO_QUERY, Counts, Moments, rows_before
from evaluation.shop_baselines import positive_events
from retrieval.colours import colours
from retrieval.similarities import BEHAVIOURS, DAY_US, FADE_US, KINDS, summaries
from retrieval.words import item_texts

MONTH_US = 28 * DAY_US
PRIOR = 10.0  # shown items at the log's own rate, by which like-rates are smoothed

SHOWN = pa.array(["impression", "rating"])

Rows: TypeAlias = Any  # rows of items: scipy's csr_array, which has no types, or a float32 array
COUNTS = (
    *(
        "length",
        "in_category",
        "in_category_fading",
        "user_shown",
        "user_rate",
        "category_shown",
        "category_rate",
    ),
    *("item_shown_28d", "item_liked_28d", "item_shown", "item_liked", "item_rate", "price", "age"),
)
TAKEN = ("taken", "taken_lately", "taken_since")  # how often the user took the item ever, and when last


@dataclass(frozen=True)
class Behaviour:
    """Behaviours of all users, ordered by (user, available time).

    Attributes:
        user_id, time_us: int64 (T).
        item: int64 (T), row among the items.
        liked: bool (T), False for a dislike.
    """

    user_id: np.ndarray
    time_us: np.ndarray
    item: np.ndarray
    liked: np.ndarray


@dataclass(frozen=True)
class Tallies:
    """How often items, users, and users within a category were shown something and liked it."""

    shown: Counts
    liked: Counts

    def rate(self, key: np.ndarray, when_us: np.ndarray, usual: float) -> np.ndarray:
        """Log-odds of liking, smoothed towards the log's usual rate, float64 (R)."""
        shown = np.maximum(self.shown.before(key, when_us), self.liked.before(key, when_us))
        return _log_odds((self.liked.before(key, when_us) + PRIOR * usual) / (shown + PRIOR))


class PlainFeatures:
    """Features of pairs of a request and an item.

    Args:
        dataset: items and queries.
        content: of all its items.
        log: EVENTS rows; at each request only those available strictly before it are read.
        together: EVENTS rows of which co-occurrence is counted at once, so all before the first request.
        repeats: whether users may be asked about what they took before: how often and when is then a feature.
        usual: rate at which items are liked, towards which like-rates are smoothed; None: that of ``together``.
            Models need the one that they were trained with: a log whose slates begin later has another.
    """

    def __init__(
        self,
        dataset: Dataset,
        content: PlainContent,
        log: pa.Table,
        together: pa.Table,
        repeats: bool,
        usual: float | None = None,
    ) -> None:
        self.item_ids, self.repeats = content.item_ids, repeats
        items = dataset.items.sort_by("item_id")
        positive = positive_events(together)
        shown = pc.sum(pc.is_in(together["type"], value_set=SHOWN)).as_py() or 0
        self.usual = (len(positive) + 1) / (max(shown, len(positive)) + 20) if usual is None else usual
        users, bought = positive["user_id"].to_numpy(), positive["item_id"].to_numpy()
        self._spaces: dict[str, Rows] = {
            "co_occurrence": _csr(buyers(self.item_ids, users, bought)),
            "tf_idf": _csr(content.tf_idf),
        }
        if content.colour is not None:
            self._spaces["colour"] = content.colour
        self._query_ids, self._queries = _queries(dataset, content)
        paths = ["/".join(path) for path in items["category"].to_pylist()]
        _, self._category = np.unique(paths, return_inverse=True)
        self._price = np.log1p(np.maximum(items["price"].fill_null(0).to_numpy(), 0))
        self._first_us = items["first_seen"].cast(pa.int64()).to_numpy()
        self._read(log)

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        similar = [f"{space}_{kind}" for space in self._spaces for kind in KINDS]
        searched = [*(f"query_{kind}" for kind in self._queries), "asked"]
        return [*similar, *COUNTS, *searched, *(TAKEN if self.repeats else ())]

    def of(self, asked: Moments, offsets: np.ndarray, item_id: np.ndarray) -> np.ndarray:
        """The features of every candidate.

        Args:
            asked: R requests.
            offsets: int64 (R + 1); request r owns item_id[offsets[r]:offsets[r + 1]].
            item_id: int64 (C).

        Returns:
            float32 (C, F), finite, in the order of ``names``.
        """
        item = np.searchsorted(self.item_ids, item_id)
        out = np.empty((len(item), len(self.names)), dtype=np.float32)
        width = len(self._spaces) * len(KINDS)
        start, stop = rows_before(self._past.user_id, self._past.time_us, asked.user_id, asked.time_us)
        start = np.maximum(start, stop - BEHAVIOURS)
        for r in range(len(asked)):
            mine = slice(offsets[r], offsets[r + 1])
            past = slice(start[r], stop[r])
            out[mine, : width + 3] = self._against(item[mine], past, asked.time_us[r])
            searched = self._searched(item[mine], int(asked.query_id[r]))
            first = width + len(COUNTS)
            out[mine, first : first + searched.shape[1]] = searched
            if self.repeats:
                out[mine, 1 - len(TAKEN) :] = self._taken(item[mine], past, asked.time_us[r])
        owner = owners(offsets)
        if self.repeats:
            taken = self._tally["own"].liked.before(
                self._own(asked.user_id[owner], item), asked.time_us[owner]
            )
            out[:, -len(TAKEN)] = np.log1p(taken)
        out[:, width + 3 : width + len(COUNTS)] = self._counted(
            asked.user_id[owner], asked.time_us[owner], item
        )
        return out

    def _read(self, log: pa.Table) -> None:
        """Unpack the log: behaviours in order, and counts of what was shown and liked."""
        code = behaviour_codes(log["type"], log["value"])
        user, time_us = log["user_id"].to_numpy(), log["available_time"].cast(pa.int64()).to_numpy()
        item = np.searchsorted(self.item_ids, log["item_id"].to_numpy())
        self._users = distinct(user)
        liked = np.isin(code, POSITIVE_CODES)
        shown = pc.is_in(log["type"], value_set=SHOWN).to_numpy()
        order = np.flatnonzero(code > 0)
        sequence = log["sequence"].fill_null(0).to_numpy()
        order = order[np.lexsort((sequence[order], time_us[order], user[order]))]
        self._past = Behaviour(user[order], time_us[order], item[order], liked[order])
        keys = {"user": user, "item": item, "category": self._within(user, item)}
        if self.repeats:
            keys["own"] = self._own(user, item)
        self._tally = {
            name: Tallies(Counts.of(key[shown], time_us[shown]), Counts.of(key[liked], time_us[liked]))
            for name, key in keys.items()
        }

    def _own(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """A key for a user and an item."""
        return self._place(user) * (len(self.item_ids) + 1) + item

    def _within(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """A key for a user within the category of an item."""
        return self._place(user) * (self._category.max(initial=0) + 1) + self._category[item]

    def _place(self, user: np.ndarray) -> np.ndarray:
        """The place of each user among those of the log, -1 for others."""
        place = np.minimum(np.searchsorted(self._users, user), len(self._users) - 1)
        return np.where(self._users[place] == user, place, -1)

    def _against(self, item: np.ndarray, past: slice, now_us: int) -> np.ndarray:
        """Candidates against a history, (n, S + 3): similarities of every space, length, share in the category."""
        behaved, liked = self._past.item[past], self._past.liked[past]
        fading = np.exp(-(now_us - self._past.time_us[past]) / FADE_US).astype(np.float32)
        out = np.zeros((len(item), len(self._spaces) * len(KINDS) + 3), dtype=np.float32)
        out[:, -3] = np.log1p(len(behaved))
        if len(behaved) == 0:
            return out
        for number, rows in enumerate(self._spaces.values()):
            cosine = _product(rows[item], rows[behaved])
            columns = slice(number * len(KINDS), (number + 1) * len(KINDS))
            out[:, columns] = summaries(cosine, liked, fading)
        if liked.any():
            same = self._category[item][:, None] == self._category[behaved[liked]]
            out[:, -2], out[:, -1] = same.mean(axis=1), same @ fading[liked]
        return out

    def _taken(self, item: np.ndarray, past: slice, now_us: int) -> np.ndarray:
        """Whether each candidate was taken lately, as one over its place from the newest, and days since, (n, 2)."""
        liked = self._past.item[past][self._past.liked[past]]
        time_us = self._past.time_us[past][self._past.liked[past]]
        out = np.zeros((len(item), len(TAKEN) - 1), dtype=np.float32)
        if len(liked):
            same = item[:, None] == liked
            count, last = same.sum(axis=1), len(liked) - 1 - same[:, ::-1].argmax(axis=1)
            ago = np.log1p(np.maximum(now_us - time_us[last], 0) / DAY_US)
            columns = np.stack([1 / (len(liked) - last), ago], axis=1)
            out[count > 0] = columns[count > 0]
        return out

    def _counted(self, user: np.ndarray, now_us: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Counts of users and items, price and age, float64 (C, 11)."""
        of_item, of_user, within = (self._tally[name] for name in ("item", "user", "category"))
        category = self._within(user, item)
        columns = [
            np.log1p(of_user.shown.before(user, now_us)),
            of_user.rate(user, now_us, self.usual),
            np.log1p(within.shown.before(category, now_us)),
            within.rate(category, now_us, self.usual),
            np.log1p(of_item.shown.before(item, now_us, MONTH_US)),
            np.log1p(of_item.liked.before(item, now_us, MONTH_US)),
            np.log1p(of_item.shown.before(item, now_us)),
            np.log1p(of_item.liked.before(item, now_us)),
            of_item.rate(item, now_us, self.usual),
            self._price[item],
            np.log1p(np.maximum(now_us - self._first_us[item], 0) / DAY_US),
        ]
        return np.stack(columns, axis=1)

    def _searched(self, item: np.ndarray, query_id: int) -> np.ndarray:
        """Cosines with the query in words and in colours, and whether there is one, (n, 1 to 3)."""
        out = np.zeros((len(item), len(self._queries) + 1), dtype=np.float32)
        if query_id != NO_QUERY:
            out[:, -1] = 1
            row = np.searchsorted(self._query_ids, query_id)
            for number, (space, rows) in enumerate(self._queries.items()):
                out[:, number] = _product(self._spaces[space][item], rows[[row]])[:, 0]
        return out


def _queries(dataset: Dataset, content: PlainContent) -> tuple[np.ndarray, dict[str, Rows]]:
    """The ids of all queries, ascending, and their rows in the spaces of items; none where nobody asks."""
    queries = dataset.queries.sort_by("query_id")
    if not len(queries):
        return np.zeros(0, dtype=np.int64), {}
    texts = item_texts(dataset.items.sort_by("item_id"))
    rows: dict[str, Rows] = {"tf_idf": _csr(tf_idf(texts, queries["text"].to_pylist()))}
    if content.colour is not None:
        rows["colour"] = colours([dataset.image_bytes(one) for one in queries["image_id"].to_pylist()])
    return queries["query_id"].to_numpy(), rows


def _product(left: Rows, right: Rows) -> np.ndarray:
    product = left @ right.T
    return product.toarray() if sparse.issparse(product) else product


def _csr(rows: SparseRows) -> sparse.csr_array:
    return sparse.csr_array(
        (rows.value, rows.column, rows.offsets), shape=(len(rows.offsets) - 1, rows.width)
    )


def _log_odds(chance: np.ndarray) -> np.ndarray:
    kept = np.clip(chance, 1e-4, 1 - 1e-4)
    return np.log(kept / (1 - kept))
