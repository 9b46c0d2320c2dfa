"""What a long history is searched for before a model reads it (SIM, Qi, CIKM 2020).

A model that searches has the latest behaviours as they are, and of all the others those alone that were found for one
of its candidates: no id of the rest is looked up, in training or in scoring. Categories and content vectors are known
before anything is learned, so a search is part of making a batch.

Legend: C candidates of all requests, T behaviours of all requests, K behaviours found for a candidate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dataset.jagged import owners
from feature_repo.frame import Frame, History
from feature_repo.side_information import CATEGORY
from feature_repo.vectors import Vectors
from ranker.inputs.columns import ITEM
from ranker.inputs.padding import placed, slots
from ranker.modules.nearest import BLOCK, nearest

BY = ("category", "content")


@dataclass(frozen=True)
class Found:
    """The behaviours that a search found for each candidate.

    Attributes:
        place: int64 [C, K], their rows in the history, in any order.
        real: bool [C, K], false where fewer than K were found.
        cosine: float32 [C, K], of content vectors; zeros where nothing was compared.
        times: int64 [C, K], how many behaviours each stands for: all on its item, where that was searched for; 0
            where there is none.
        count: int64 [C], how many matched, which may be more than K.
    """

    place: np.ndarray
    real: np.ndarray
    cosine: np.ndarray
    times: np.ndarray
    count: np.ndarray

    @classmethod
    def nothing(cls, candidates: int) -> Found:
        """Of a search that found no behaviour for any of so many candidates."""
        none = np.zeros((candidates, 0), np.int64)
        return cls(none, none > 0, none.astype(np.float32), none, np.zeros(candidates, np.int64))


@dataclass(frozen=True)
class Search:
    """How a recipe reads a long history.

    Attributes:
        by: ``category``: a candidate's are the latest behaviours on items of its category; ``content``: the latest
            behaviour on each of the items of the largest cosine of content vectors, of equal ones the latest.
        keep: most behaviours that are found for a candidate.
        recent: the latest behaviours, which the model's other modules read as they are.
    """

    by: str
    keep: int
    recent: int

    def __post_init__(self) -> None:
        if self.by not in BY or min(self.keep, self.recent) < 1:
            raise ValueError(
                f"expected to search by {' or '.join(BY)} and to keep at least one, found {self}"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def of(self, frame: Frame, time_us: np.ndarray, vectors: Vectors | None) -> Found:
        """Search the histories of a frame.

        Args:
            frame: requests with candidates and histories.
            time_us: int64 [R], when the requests were made.
            vectors: of the items; without them a search by content finds nothing.
        """
        if self.by == "category":
            return by_category(frame, self.keep)
        if vectors is None or not len(vectors.ids):
            return Found.nothing(len(frame.candidates))
        return by_content(frame, time_us, vectors, self.keep)


def by_category(frame: Frame, keep: int) -> Found:
    """The latest ``keep`` behaviours of each candidate's category, sorted once for all candidates of a request.

    An item's category is what the store knew of it, at the request and at the behaviour; an empty one is none.
    """
    history = frame.history
    behaved = history.side.category(history.item_id, history.time_us)
    if behaved is None or CATEGORY not in frame.candidates.column_names:
        return Found.nothing(len(frame.candidates))
    number = _numbered(pa.concat_arrays([frame.candidates[CATEGORY].combine_chunks(), behaved]))
    width = int(number.max(initial=0)) + 1
    mine, theirs = number[: len(frame.candidates)], number[len(frame.candidates) :]
    mine = np.where(mine < 0, -1, owners(frame.offsets) * width + mine)
    theirs = np.where(theirs < 0, -2, owners(history.offsets) * width + theirs)
    order = np.argsort(theirs, kind="stable")
    first, last = (np.searchsorted(theirs[order], mine, side=side) for side in ("left", "right"))
    count = last - first
    column = np.arange(min(keep, int(count.max(initial=0))))
    place = np.maximum(last - len(column), first)[:, None] + column
    real = place < last[:, None]
    place = np.append(order, 0)[np.where(real, place, len(order))]
    return Found(place, real, np.zeros(place.shape, np.float32), real.astype(np.int64), count)


def _numbered(category: pa.Array) -> np.ndarray:
    """A number of each category, int64; -1: none."""
    coded = category.dictionary_encode()
    number = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
    number[number == pc.index(coded.dictionary.cast(pa.string()), "").as_py()] = -1
    return number


def by_content(frame: Frame, time_us: np.ndarray, vectors: Vectors, keep: int) -> Found:
    """Of the ``keep`` items most like each candidate the latest behaviour; nothing for one without a vector."""
    shown = np.diff(frame.offsets)
    target = vectors.known_rows(frame.candidates[ITEM].to_numpy(), np.repeat(time_us, shown))
    past, times, rows, offsets = _items(frame.history, time_us, vectors)
    behaved = np.diff(offsets)
    together = max(BLOCK // max(int(shown.max(initial=1) * behaved.max(initial=1)), 1), 1)
    parts = []
    for start in range(0, len(frame), together):
        stop = min(start + together, len(frame))
        asked, met = slots(shown[start:stop], left=True), slots(behaved[start:stop], left=True)
        mine = placed(target[frame.offsets[start] : frame.offsets[stop]], asked, -1)
        theirs = placed(past[offsets[start] : offsets[stop]], met, -1)
        one, other = (torch.from_numpy(vectors.at(at)) for at in (mine, theirs))
        place, cosine, real = (t.numpy()[asked] for t in nearest(one, other, torch.from_numpy(met), keep))
        first = np.repeat(offsets[start:stop], shown[start:stop])
        parts.append((place + first[:, None], cosine, real))
    width = max(place.shape[1] for place, _, _ in parts)
    place, cosine, real = (
        np.concatenate([np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in side])
        for side in zip(*parts, strict=True)
    )
    real &= (target >= 0)[:, None]
    place = np.where(real, place, len(rows))
    often = np.append(times, 0)[place]
    return Found(np.append(rows, 0)[place], real, np.where(real, cosine, np.float32(0)), often, often.sum(1))


def _items(
    history: History, time_us: np.ndarray, vectors: Vectors
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The items of each request's history that have a vector.

    Returns:
        the row of each item's vector, how often it was met, the latest behaviour on it, and their offsets.
    """
    item = vectors.known_rows(history.item_id, np.repeat(time_us, np.diff(history.offsets)))
    times, last = np.empty(len(item), np.int64), np.empty(len(vectors.ids) + 1, np.int64)
    for start, stop in pairwise(history.offsets):
        mine, place = item[start:stop], np.arange(stop - start)
        last[mine] = place  # of equal ones the last stays; unknown ones share the last row
        times[start:stop] = np.bincount(last[mine], minlength=stop - start)
    latest = (times > 0) & (item >= 0)
    rows = np.flatnonzero(latest)
    return item[rows], times[rows], rows, np.append(0, np.cumsum(latest))[history.offsets]


def shortened(history: History, offsets: np.ndarray, found: Found, recent: int) -> tuple[History, np.ndarray]:
    """A history without the behaviours that are neither recent nor found.

    Args:
        history: of R requests.
        offsets: int64 [R + 1], their candidates.
        found: for these.
        recent: of each request, so many of the latest stay.

    Returns:
        what is left, and the place of each found behaviour in its request's part of it, counted from the latest
        one, 1: int64 [C, K], anything where none was found.
    """
    end = history.offsets[1:][owners(history.offsets)]
    stays = end - np.arange(len(end)) <= recent
    stays[found.place[found.real]] = True
    before = np.concatenate([[0], np.cumsum(stays)])
    left = before[history.offsets]
    age = left[1:][owners(offsets)][:, None] - before[found.place]
    return history.rows(np.flatnonzero(stays), left), age
