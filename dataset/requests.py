"""The requests that train and test the models, from a log and the moments of its users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataset.contracts import TIME
from dataset.log import Log, among, distinct, pairs
from dataset.protocols import MOST, MOST_TAKEN, NEVER, VALID_FRACTION, Moments
from dataset.repeats import takings

RANKING = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("query_id", pa.int64()),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("position", pa.int32()),
        pa.field("label", pa.float32(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # "train", "valid" or "test"
        pa.field("event_id", pa.int64()),
    ]
)
RETRIEVAL = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("part", pa.string(), nullable=False),  # "train" or "test"
        pa.field("relevant", pa.list_(pa.int64()), nullable=False),  # ascending item ids
    ]
)
PARTS = ("train", "valid", "test")


def says_what_was_not_liked(log: Log) -> bool:
    """Whether the log has impressions of which some were clicked and some not, or ratings of both kinds."""
    for rows, label in ((log.is_type("impression"), None), (log.is_type("rating"), log.positive)):
        found = np.flatnonzero(rows)
        liked = _clicked(log, found) if label is None else label[found]
        if len(np.unique(liked)) == 2:
            return True
    return False


def shown(log: Log, moments: Moments) -> pa.Table:
    """Impressions (label: clicked) and ratings (label: liked) that are of a part, as requests (RANKING).

    A request's time is that of its first event; of a rating, that of the protocol (``Moments.when``).
    """
    rows = np.flatnonzero(log.is_type("impression") | log.is_type("rating"))
    request, own = _numbered(log, rows)
    time_us = np.where(own, moments.when[rows], _first(request, log.event_us[rows]))
    label = np.where(log.is_type("rating")[rows], log.positive[rows], _clicked(log, rows))
    part = _parts(moments, rows, time_us)
    position = log.table.column("position").fill_null(-1).to_numpy()[rows]
    asked = np.flatnonzero(part >= 0)
    order = asked[np.lexsort((position[asked], request[asked], time_us[asked]))]  # stable: else as in the log
    rows, request, time_us, label, part = (one[order] for one in (rows, request, time_us, label, part))
    return _ranking(log, rows, request, time_us, label, _last_validate(part, request))


def taken(log: Log, moments: Moments, rng: np.random.Generator, known: np.ndarray, repeats: bool) -> pa.Table:
    """What users newly liked, each as a request of one candidate with label 1 (RANKING): nothing else was shown.

    Of a part with more than ``MOST_TAKEN`` requests some are drawn.

    Args:
        log: the events.
        moments: of the protocol.
        rng: draws.
        known: bool, whether the item of each event was there before it; what was not, trains nothing.
        repeats: what a user likes again is asked for, too.
    """
    rows = _liked(log, moments.when, moments.train, np.full(len(log.user), NEVER), repeats)
    time_us = moments.when[rows]
    part = _parts(moments, rows, time_us)
    order = np.lexsort((rows, time_us))
    order = order[(known[rows] | (part == PARTS.index("test")))[order]]
    rows, time_us, part = rows[order], time_us[order], part[order]
    part = _last_validate(part, np.arange(len(rows)))
    kept = [rng.permutation(np.flatnonzero(part == n))[: MOST_TAKEN[name]] for n, name in enumerate(PARTS)]
    chosen = np.sort(np.concatenate(kept))
    rows, time_us, part = rows[chosen], time_us[chosen], part[chosen]
    return _ranking(log, rows, np.arange(1, len(rows) + 1), time_us, np.ones(len(rows)), part)


def asked(log: Log, moments: Moments, rng: np.random.Generator, known: np.ndarray, repeats: bool) -> pa.Table:
    """One retrieval request per user and part: what the user newly liked from its moment on (RETRIEVAL).

    Arguments as of ``taken``.
    """
    end = np.full(len(log.user), NEVER)
    found = []
    for part, start, stop in (("train", moments.asked, moments.test), ("test", moments.test, end)):
        new = _liked(log, moments.when, start, stop, repeats)
        new = new[np.sort(np.unique(pairs(log.user[new], log.item[new]), return_index=True)[1])]
        new = new[known[new] | (part == "test")]
        users = distinct(log.user[new])
        users = np.sort(rng.permutation(users)[: MOST[part]])
        new = new[among(log.user[new], users)]
        found.append((part, start[new], log.user[new], log.item[new]))
    return _retrieval(found)


def liked_us(events: pa.Table, ranking: pa.Table) -> np.ndarray:
    """When it became known that a candidate was liked, int64 (C), microseconds since 1970 UTC; NEVER: it was not.

    Of what was shown that is when its first click became available, of a rating when it did.

    Args:
        events: EVENTS rows, all that the labels were made from.
        ranking: C rows of ``shown``.
    """
    log = Log.of(events)
    ids = log.table["event_id"].to_numpy()
    order = np.argsort(ids)
    row = order[np.searchsorted(ids[order], ranking["event_id"].to_numpy())]
    clicks, pair = _with_clicks(log, row)
    known_us = np.append(np.full(len(row), NEVER), log.available_us[clicks])
    when = np.where(log.is_type("rating")[row], log.available_us[row], _first(pair, known_us)[: len(row)])
    return np.where(ranking["label"].to_numpy() > 0, when, NEVER)


def _liked(log: Log, when: np.ndarray, start: np.ndarray, stop: np.ndarray, repeats: bool) -> np.ndarray:
    """Rows of the first like of each user and item from the user's ``start`` to ``stop``, if none came before.

    What its user had rated before is not new to them: no answer has it. With ``repeats`` every taking in that time.
    """
    if repeats:
        rows = np.sort(takings(log))
        return rows[(when[rows] >= start[rows]) & (when[rows] < stop[rows])]
    rows, first = log.likes
    if not len(rows):
        return rows
    earliest = np.minimum.reduceat(when[rows], first)
    pair = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(rows))))
    is_new = (earliest >= start[rows[first]]) & ~log.rated_before
    inside = np.flatnonzero(is_new[pair] & (when[rows] < stop[rows]))
    pair = pair[inside]
    return np.sort(rows[inside[np.append(True, pair[1:] != pair[:-1])[: len(pair)]]])


def _parts(moments: Moments, rows: np.ndarray, time_us: np.ndarray) -> np.ndarray:
    """Number in PARTS of what is asked at ``time_us``, -1 for none."""
    if moments.part is not None:
        return moments.part[rows]
    late = [time_us >= moment[rows] for moment in (moments.train, moments.valid, moments.test)]
    return np.select(late[::-1], [2, 1, 0], -1)


def _last_validate(part: np.ndarray, request: np.ndarray) -> np.ndarray:
    """The same parts where there is one to validate; else the last tenth of the training requests does.

    Args:
        part: int64, of each row, in the order of time.
        request: id of each row's request; rows of a request follow each other.
    """
    if (part == 1).any():
        return part
    train = np.flatnonzero(part == 0)
    number = np.cumsum(np.append(True, request[train][1:] != request[train][:-1])[: len(train)])
    count = int(number[-1]) if len(number) else 0
    part = part.copy()
    part[train[number > count - int(round(VALID_FRACTION * count))]] = 1
    return part


def _numbered(log: Log, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Request id of each row, and whether it has none in the log and becomes a request of its own."""
    column = log.table.column("request_id")
    own = column.is_null().to_numpy()[rows]
    request = column.fill_null(-1).to_numpy()[rows].copy()
    request[own] = request.max(initial=-1) + 1 + np.arange(own.sum())
    return request, own


def _first(group: np.ndarray, time_us: np.ndarray) -> np.ndarray:
    """The earliest time of each row's group."""
    known, inverse = np.unique(group, return_inverse=True)
    first = np.full(len(known), NEVER)
    np.minimum.at(first, inverse, time_us)
    return first[inverse]


def _clicked(log: Log, rows: np.ndarray) -> np.ndarray:
    """Whether the (request, item) of each of ``rows`` was clicked, bool."""
    _, pair = _with_clicks(log, rows)
    known = log.table.column("request_id").fill_null(-1).to_numpy()[rows] >= 0
    return among(pair[: len(rows)], pair[len(rows) :]) & known


def _with_clicks(log: Log, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all clicks; and a code of the (request, item) of each of ``rows``, then of each click."""
    clicks = np.flatnonzero(log.is_type("click"))
    both = np.concatenate([rows, clicks])
    return clicks, pairs(log.table.column("request_id").fill_null(-1).to_numpy()[both], log.item[both])


def _ranking(
    log: Log, rows: np.ndarray, request: np.ndarray, time_us: np.ndarray, label: np.ndarray, part: np.ndarray
) -> pa.Table:
    logged = log.table.take(pa.array(rows))
    columns = {
        "request_id": pa.array(request, pa.int64()),
        "user_id": logged.column("user_id"),
        "time": pa.array(time_us).cast(TIME),
        "query_id": logged.column("query_id"),
        "item_id": logged.column("item_id"),
        "position": logged.column("position"),
        "label": pa.array(label.astype(np.float32)),
        "part": pa.array(PARTS).take(pa.array(part, pa.int64())),
        "event_id": logged.column("event_id"),
    }
    return pa.table(columns, schema=RANKING)


def _retrieval(found: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> pa.Table:
    """Group (time, user, item) rows of each part into requests numbered from 1; a user has one time."""
    tables = []
    next_id = 1
    for part, time_us, user, item in found:
        order = np.lexsort((item, user))
        time_us, user, item = time_us[order], user[order], item[order]
        users, start = np.unique(user, return_index=True)
        offsets = pa.array(np.append(start, len(user)), pa.int32())
        columns = [
            pa.array(np.arange(next_id, next_id + len(users))),
            pa.array(users),
            pa.array(time_us[start]).cast(TIME),
            pa.array([part] * len(users), pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(item)),
        ]
        tables.append(pa.table(columns, schema=RETRIEVAL))
        next_id += len(users)
    return pa.concat_tables(tables).combine_chunks()
