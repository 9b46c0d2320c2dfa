"""The ranker's requests as each of its controls reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataset.split import Split
from feature_repo.frames.join import TrainingFrame
from ranker.controls import Reads
from retrieval.examples import MatchedFrames, matched, ranker_frames
from retrieval.proposals import ordering_frame
from retrieval.retriever import Retriever
from run.sizes import Size


class Read(NamedTuple):
    """What one ranker reads: ``asked`` teaches the order of answers; None: nothing does."""

    train: MatchedFrames
    valid: MatchedFrames
    asked: MatchedFrames | None


@dataclass(frozen=True)
class Readings:
    """The same requests as read by rankers that know more or less of items: training, validation, to be ordered.

    Attributes:
        whole: with all that the retriever knows.
        plain: without vectors.
        blind: without what items say or show.
        loss: that fits them, see ``ranker_frames``.
    """

    whole: Read
    plain: Read
    blind: Read
    loss: str

    @classmethod
    def open(
        cls,
        folder: Path,
        split: Split,
        size: Size,
        seed: int,
        retriever: Retriever,
        steps: bool,
        stream: bool,
    ) -> Readings:
        """Of a run; arguments as of ``ranker_frames``."""
        train, valid, loss = ranker_frames(folder, split, size, seed, retriever, steps, stream)
        return cls.of(train, valid, retriever, loss, ordering_frame(folder, split, size, seed, retriever))

    @classmethod
    def of(
        cls,
        train: MatchedFrames,
        valid: MatchedFrames,
        retriever: Retriever,
        loss: str,
        asked: TrainingFrame | None = None,
    ) -> Readings:
        """Of frames with all columns; ``asked``: what teaches the order of answers, if anything does."""

        def of_asked(other: Retriever) -> MatchedFrames | None:
            return None if asked is None else matched(asked, other, train.history)

        def read(other: Retriever) -> Read:
            own, checked = (matched(one.stored, other, one.history) for one in (train, valid))
            return Read(own, checked, of_asked(other))

        plain, whole = retriever.without_vectors(), Read(train, valid, of_asked(retriever))
        return cls(
            whole, whole if plain is retriever else read(plain), read(retriever.without_content()), loss
        )

    def by(self, reads: Reads) -> Read:
        """What a ranker reads."""
        return self.whole if reads.tastes else self.plain if reads.plain else self.blind
