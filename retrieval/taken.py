"""What users took, as the log holds it: what they are not proposed again, or what they are.

The online store keeps the latest behaviours only. What somebody bought a year ago is not among them and no news to
them all the same, and what they buy every month may not be among them either. So this is the log's own record, as of
when it was loaded; what a user has done since is in their history.

Legend: T likes, R requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from dataset.contracts import POSITIVE_CODES
from dataset.log import Log
from retrieval.requests import Requests
from run.artifacts import Artifact, open_artifact, write_artifact

TENSORS = "likes.safetensors"
SAVED = ("user_id", "item_id", "time_us", "gone_item_id", "gone_us")


@dataclass(frozen=True)
class Taken:
    """All that users liked.

    Attributes:
        user_id, item_id: int64 (T), ordered by user, then as in the log.
        time_us: int64 (T), when each became available.
        gone_item_id, gone_us: int64 (G), items that are not to be had any more, and since when, ascending: nobody is
            proposed them.
        half_life: in likes of the user, of what they take again (``retrieval.repeats``); None: that is not proposed.
    """

    user_id: np.ndarray
    item_id: np.ndarray
    time_us: np.ndarray
    half_life: float | None = None
    gone_item_id: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    gone_us: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(cls, log: pa.Table, half_life: float | None = None) -> Taken:
        """Of EVENTS rows, each of which is read by the requests after it only."""
        found = Log.of(log)
        rows = found.liked_by_user
        return cls(found.user[rows], found.item[rows], found.available_us[rows], half_life)

    def before(self, requests: Requests, r: int) -> np.ndarray:
        """What the user of a request took before it, int64 item ids, oldest first: the log, then what came since."""
        user, time_us = int(requests.user_id[r]), int(requests.time_us[r])
        first, stop = np.searchsorted(self.user_id, [user, user + 1])
        stop = first + int(np.searchsorted(self.time_us[first:stop], time_us))
        did = slice(requests.history.offsets[r], requests.history.offsets[r + 1])
        since = requests.history.time_us[did] > self.end_us
        since &= np.isin(requests.history.code[did], POSITIVE_CODES)
        return np.append(self.item_id[first:stop], requests.history.item_id[did][since])

    @cached_property
    def end_us(self) -> int:
        """When the last like became available; 0 without any."""
        return int(self.time_us.max(initial=0))

    @classmethod
    def open(cls, artifact: Artifact) -> Taken:
        """Open an artifact of kind "taken"."""
        return cls(**load_file(artifact.file(TENSORS)), half_life=artifact.config["half_life"])

    def save(self, out: Path, parents: Mapping[str, Artifact], reached: Mapping[str, float]) -> Artifact:
        """Write an artifact of kind "taken".

        Args:
            out: where to write.
            parents: role -> artifact that it was made from.
            reached: NDCG of every half-life tried, for the reader of the manifest.
        """
        config = {"half_life": self.half_life, "reached": dict(reached)}
        with write_artifact(out, "taken", config, parents) as folder:
            tensors = {name: getattr(self, name) for name in SAVED}
            save_file(tensors, folder / TENSORS)
        return open_artifact(out, "taken")
