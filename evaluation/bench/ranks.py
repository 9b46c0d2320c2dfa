"""Before a long training: do ranks train as one process does, on this machine and its devices? And how fast?

python -m evaluation.bench.ranks 8 --run RUN
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file

from dataset.split import Split
from feature_repo.embeddings import as_stored
from feature_repo.frame import Frame, StoredRequests
from feature_repo.signature import Signature
from feature_repo.vectors import Vectors
from ranker.train import Training, train_ctr
from ranker.weights import WEIGHTS
from retrieval.examples import ranker_frames
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import open_artifact
from run.folder import load
from run.sizes import Size

REQUESTS = 1000  # trained on
TOLERANCE = (
    1e-3  # most that a weight may differ: sums are rounded in another order, on a GPU more than on CPU
)


class Compared(NamedTuple):
    """Seconds of one epoch in one process and in ranks, and the largest difference of a weight."""

    alone_s: float
    ranks_s: float
    difference: float


@dataclass(frozen=True)
class First:
    """The first requests of a longer training frame; or none of them."""

    stored: StoredRequests
    count: int

    @property
    def signature(self) -> Signature:
        """As of all."""
        return self.stored.signature

    @property
    def windows(self) -> np.ndarray | None:
        """Those of as many."""
        return None if self.stored.windows is None else self.stored.windows[: len(self)]

    def __len__(self) -> int:
        return min(self.count, len(self.stored))

    def take(self, start: int, stop: int) -> Frame:
        """Requests ``start`` to ``stop``."""
        return self.stored.take(start, min(stop, len(self)))

    def select(self, request_rows: np.ndarray) -> Frame:
        """The requests at these rows."""
        return self.stored.select(request_rows)


def compare(stored: StoredRequests, vectors: Vectors, size: Size, ranks: int) -> Compared:
    """Train one ranker twice for an epoch, in this process and in ranks.

    Args:
        stored: requests of which the first ``REQUESTS`` are used.
        vectors: the embedding.
        size: of the run.
        ranks: how many processes.
    """
    some, none = First(stored, REQUESTS), First(stored, 0)
    seconds, weights = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in (None, ranks):
            started = time.monotonic()
            out = Path(folder) / f"of_{number}"
            made = train_ctr(some, none, vectors, size, out, {}, Training(epochs=1), ranks=number)
            seconds.append(time.monotonic() - started)
            weights.append(load_file(made.file(WEIGHTS)))
    first, second = weights
    difference = max(float((first[name] - second[name]).abs().max()) for name in first)
    return Compared(seconds[0], seconds[1], difference)


def main() -> None:
    """Compare on the requests of a run, and end with code 1 if the ranks went another way."""
    parser = argparse.ArgumentParser(description="Train a little in one process and in ranks, and compare.")
    parser.add_argument("ranks", type=int, help="processes")
    parser.add_argument("--run", type=Path, help="run folder; default: the last one")
    given = parser.parse_args()
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    run = load(given.run)
    retriever = Retriever.open(open_retrieval(run.folder, fitted=True))
    split = Split.open(open_artifact(run.folder / "split", "split"))
    # The loss of the run is not asked for: the listwise one has no gradient for the last bias, which rounding then
    # moves by whole steps of AdamW.
    train, _, _ = ranker_frames(run.folder, split, run.size, run.seed, retriever)
    found = compare(train, as_stored(retriever.vectors, run.folder / "store"), run.size, given.ranks)
    sys.stdout.write(json.dumps(found._asdict()) + "\n")
    if found.difference > TOLERANCE:
        sys.exit(
            f"{given.ranks} ranks trained other weights than one process: expected a difference of at most "
            f"{TOLERANCE}, found {found.difference:.2g}. Train without --ranks, and report this."
        )


if __name__ == "__main__":
    main()
