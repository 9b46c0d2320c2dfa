"""Why a candidate has its score: what each feature adds to it, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from feature_repo.frame import Frame
from ranker.inputs.columns import column_of
from ranker.inputs.frame_encoder import FrameEncoder

TABLES = {"request": "requests", "candidate": "candidates"}
SIDES = (*TABLES, "behaviour")


class Explained(Protocol):
    """What can be explained (``ranker.score.Ranker``)."""

    @property
    def encoder(self) -> FrameEncoder: ...  # noqa: D102

    def score(self, frame: Frame) -> np.ndarray: ...  # noqa: D102


def explain(ranker: Explained, frame: Frame) -> dict[str, np.ndarray]:
    """What each feature of the store adds to the click logits.

    A feature adds the difference between the score and the score that the candidate would have if the store had no
    value of this feature. Features that say the same share what they add, so the parts need not sum to the score.

    Args:
        ranker: a trained ranker.
        frame: R requests with C candidates.

    Returns:
        feature -> float32 [C], in the order of ``frame.candidates``.

    Raises:
        DataError: the frame lacks columns of the model.
    """
    score = ranker.score(frame)
    features = [(side, one) for side in SIDES for one in ranker.encoder.inputs.features(side) if one.view]
    return {one.name: score - ranker.score(_without(frame, side, column_of(one))) for side, one in features}


def _without(frame: Frame, side: str, column: str) -> Frame:
    """The same frame with nulls in one column."""
    if side == "behaviour":
        return replace(frame, history=replace(frame.history, side=frame.history.side.without(column)))
    table: pa.Table = getattr(frame, TABLES[side])
    place = table.column_names.index(column)
    nulls = pa.nulls(len(table), table.schema.field(column).type)
    return replace(frame, **{TABLES[side]: table.set_column(place, column, nulls)})
