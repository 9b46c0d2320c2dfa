"""What retrieval proposes to requests, as the service has it ranked: their candidates in the fused order.

Legend: R requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.contracts import TIME
from dataset.jagged import offsets_of, owners
from dataset.log import microseconds
from dataset.split import Split
from feature_repo.frames.join import TrainingFrame, training_frame
from feature_repo.frames.logged import of_part
from ranker.order import RETRIEVED
from retrieval.examples import answers_of, chunks, example_rows, requests_frame
from retrieval.fusion import fuse
from retrieval.jagged import Retrieved, stack
from retrieval.retriever import Retriever
from retrieval.sources import CANDIDATES
from run.sizes import Size

ORDERED = 500  # validation users that teach what orders an answer: a bound on its time


@dataclass(frozen=True)
class Proposed:
    """What retrieval proposes to R requests.

    Attributes:
        alone: source -> its PER_SOURCE best items.
        candidates: as the service ranks them: fused; of who is not known, popular items.
    """

    alone: Mapping[str, Retrieved]
    candidates: Retrieved

    def frame(self, folder: Path, requests: pa.Table, size: Size) -> tuple[TrainingFrame, np.ndarray]:
        """The candidates as the ranker reads them, with ``label``, whether they are relevant, and RETRIEVED.

        Args:
            folder: folder of the run.
            requests: the R rows of RETRIEVAL.
            size: gives the length of histories.

        Returns:
            the frame of the requests that have candidates, and offsets of all requests, int64 (R + 1).
        """
        rows = example_rows(requests, self.candidates)
        offsets = _offsets(requests, rows)
        item_id, found = rows["item_id"].to_numpy(), self.candidates
        retrieved = np.empty(len(item_id), np.float32)
        place = np.lexsort((found.item_id, owners(found.offsets)))
        retrieved[np.lexsort((item_id, owners(offsets)))] = found.score[place]
        frame = training_frame(folder / "store", rows, size.history)
        return frame.carrying({RETRIEVED: retrieved}), offsets


def proposed(folder: Path, requests: pa.Table, size: Size, retriever: Retriever) -> Proposed:
    """Answer R rows of RETRIEVAL by every source alone, and by all of them together.

    Args:
        folder: folder of the run.
        requests: R rows of RETRIEVAL.
        size: gives the length of histories.
        retriever: the sources.
    """
    frames = requests_frame(folder, requests, size)
    alone = {source.name: answers_of(frames, source, retriever) for source in retriever.recommending}
    fused, popular = (
        fuse([alone[name] for name in names], retriever.weights.of(names), CANDIDATES)
        for names in (list(alone), [retriever.popular.name])
    )
    known = np.concatenate(
        [np.empty(0, bool), *(retriever.knows(frame.history) for frame in chunks(frames, "who is known"))]
    )
    answers = stack((fused if one else popular)[request] for request, one in enumerate(known))
    return Proposed(alone, answers)


def validating(split: Split, seed: int) -> pa.Table:
    """What validation users liked, asked for as a test asks: one request per user (RETRIEVAL without part).

    At most ORDERED users. Split by time, all are asked when the validation part begins, else each when theirs does.
    """
    rows = of_part(split.ranking, "valid").sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    user_id, time_us = rows["user_id"].to_numpy(), microseconds(rows["time"])
    users, place = np.unique(user_id, return_inverse=True)
    begins = np.full(len(users), time_us.min(initial=np.iinfo(np.int64).max))
    if split.by != "time":
        begins[:] = np.iinfo(np.int64).max
        np.minimum.at(begins, place, time_us)
    liked = rows["label"].to_numpy() > 0
    asked = np.unique(place[liked])
    asked = np.sort(np.random.default_rng((seed, 6)).permutation(asked)[:ORDERED])
    kept = liked & np.isin(place, asked)
    count = np.bincount(place[kept], minlength=len(users))[asked]
    item_id = rows["item_id"].combine_chunks().filter(pa.array(kept))
    relevant = pa.ListArray.from_arrays(pa.array(offsets_of(count), pa.int32()), item_id)
    return pa.table(
        {
            "request_id": pa.array(1 + np.arange(len(asked))),
            "user_id": pa.array(users[asked]),
            "time": pa.array(begins[asked]).cast(TIME),
            "relevant": relevant,
        }
    )


def ordering_frame(
    folder: Path, split: Split, size: Size, seed: int, retriever: Retriever
) -> TrainingFrame | None:
    """The candidates of ``validating`` requests: what ``ranker.order_weights`` learns from; None: nothing does.

    Arguments as of ``ranker_frames``.
    """
    requests = None if split.shows and not split.rated else validating(split, seed)
    if requests is None or not len(requests):
        return None
    return proposed(folder, requests, size, retriever).frame(folder, requests, size)[0]


def _offsets(requests: pa.Table, rows: pa.Table) -> np.ndarray:
    """Where each request's rows start; requests without rows own none."""
    order = np.argsort(requests["request_id"].to_numpy(), kind="stable")
    place = order[np.searchsorted(requests["request_id"].to_numpy()[order], rows["request_id"].to_numpy())]
    return offsets_of(np.bincount(place, minlength=len(requests)))
