"""What followed what was shown: the carts and purchases that a click led to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import DataError
from dataset.log import microseconds, pairs
from moonstore.freshness import US

STEPS = ("cart", "purchase")  # event types, each of which has the one before it behind it
WITHIN = timedelta(days=1)  # from the request on: what comes later is ascribed to something else


def steps_of(log: pa.Table) -> tuple[str, ...]:
    """The steps of which a log (EVENTS) has events, in order.

    Raises:
        DataError: there is none.
    """
    known = set(log["type"].unique().to_pylist())
    found = tuple(step for step in STEPS if step in known)
    if not found:
        raise DataError(
            f"expected events of the types {' or '.join(STEPS)} to learn from what follows clicks, found "
            f"{', '.join(sorted(known)) or 'none'}. Train without --rank-by."
        )
    return found


def followed(
    log: pa.Table,
    steps: Sequence[str],
    user: np.ndarray,
    item: np.ndarray,
    time_us: np.ndarray,
    clicked: np.ndarray,
) -> dict[str, np.ndarray]:
    """Step -> whether it followed each of C impressions, bool [C].

    A step followed a click if the same user took it, or a later step, on the same item within a day of the request.

    Args:
        log: EVENTS, those that may be known.
        steps: in order.
        user, item: int64 [C].
        time_us: int64 [C], of the request, microseconds since 1970 UTC.
        clicked: bool [C].
    """
    out: dict[str, np.ndarray] = {}
    later = np.zeros(len(user), dtype=bool)
    for step in reversed(steps):
        events = log.filter(pc.equal(log["type"], step))
        later = later | _within(events, user, item, time_us) & clicked
        out[step] = later
    return {step: out[step] for step in steps}


def _within(events: pa.Table, user: np.ndarray, item: np.ndarray, time_us: np.ndarray) -> np.ndarray:
    """Whether there is an event of each user and item from this time on, WITHIN at most."""
    count, when = len(events), microseconds(events["event_time"])
    if not count:
        return np.zeros(len(user), dtype=bool)
    both = [
        np.concatenate([events["user_id"].to_numpy(), user]),
        np.concatenate([events["item_id"].to_numpy(), item]),
    ]
    pair = pairs(*both)
    order = np.lexsort((when, pair[:count]))
    moments, rank = np.unique(np.concatenate([when, time_us]), return_inverse=True)
    key = pair * len(moments) + rank  # by pair, then by time
    first = np.searchsorted(key[:count][order], key[count:])
    next_one = order[first.clip(max=count - 1)]
    same = (first < count) & (pair[next_one] == pair[count:])
    return same & (when[next_one] - time_us <= WITHIN // US)
