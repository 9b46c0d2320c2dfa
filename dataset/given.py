"""Protocol ``given``: the published split of a source, which says of each request what it is for.

It is kept in the column ``part`` of the events' context (``dataset.extra``), beside the impressions.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import DataError
from dataset.log import Log
from dataset.protocols import NEVER, Moments
from dataset.requests import PARTS

PART = "part"  # name of the column


def by_given(log: Log, context: pa.Table | None, where: object) -> Moments:
    """Every request is of the part that the source gives it.

    What a user did before the first request of any part is learned from before there is a ranker; what users did
    before their first test request may be counted to answer test requests.

    Args:
        log: the events.
        context: event_id and PART, of some events; None: the dataset has no context.
        where: of the dataset, for messages.

    Raises:
        DataError: no column says it, its values are not those of PARTS, nothing trains, or nothing tests.
    """
    part = _parts(log, context, where)
    named = part >= 0
    counts = np.bincount(part[named], minlength=len(PARTS))
    if not (counts[PARTS.index("train")] and counts[PARTS.index("test")]):
        found = ", ".join(f"{count} of {name}" for name, count in zip(PARTS, counts, strict=True))
        raise DataError(
            f"{where}: expected events of the parts train and test, found {found}. "
            f"Run 'moon split --by time' or '--by users'."
        )
    users, user = np.unique(log.user, return_inverse=True)
    first = np.full((len(PARTS), len(users)), NEVER)
    np.minimum.at(first, (part[named], user[named]), log.event_us[named])
    train, valid, test = (moment[user] for moment in first)
    fit = first.min(axis=0)[user]
    return Moments(log.event_us, train, valid, test, fit, test, np.full(len(log.user), NEVER), train, part)


def _parts(log: Log, context: pa.Table | None, where: object) -> np.ndarray:
    """Number in PARTS of each event, int64; -1 where the source gives none."""
    if context is None or PART not in context.column_names:
        raise DataError(
            f"{where}: expected a column {PART!r} beside the events that says of each impression whether it is of "
            f"{', '.join(PARTS)}, found none. Name one in 'context' of moon.toml, or run 'moon split --by time'."
        )
    said = context.column(PART).take(pc.index_in(log.table["event_id"], value_set=context["event_id"]))
    part = pc.index_in(said, value_set=pa.array(PARTS, said.type))
    strange = pc.unique(said.filter(pc.and_(said.is_valid(), part.is_null())))
    if len(strange):
        raise DataError(
            f"{where}: expected {', '.join(PARTS)} in the column {PART!r} of the events, found {len(strange)} other "
            f"values, first {strange[:3].to_pylist()}. Correct them, then run 'moon dataset' again."
        )
    return np.asarray(part.fill_null(-1).cast(pa.int64()).to_numpy())
