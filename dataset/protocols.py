"""The protocols by which a log is split: from which moment on a user's requests train, validate and test.

``time``   one moment for everybody: what is later is asked, what is earlier is learned from.
``last``   leave one out: the last item that a user newly liked is asked for, the one before it validates.
``users``  some users are strangers to every model, and are asked for the last item that they newly liked.
``given``  the source says of each request whether it trains, validates or tests.

Every protocol sets the same moments for every user (``Moments``); all else follows from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from dataset.identity import stable_hash
from dataset.log import Log, among, distinct
from dataset.repeats import takings

BY = ("time", "last", "users", "given")
NONE = "none"  # a catalogue without a log
FIT_FRACTION, TEST_FRACTION = 0.6, 0.8  # quantiles of the times at which ``time`` cuts the log
VALID_FRACTION = 0.1  # of the ranker's training requests
MOST = {"train": 12_000, "valid": 1_500, "test": 6_000}  # users of a part, where there is a choice
MOST_TAKEN = MOST | {
    "train": 36_000
}  # requests of a part that are of one item taken each: a user may have several
LEAST = {"last": 3, "users": 2}  # new likes of a user who is asked
FITTED = 4  # of the likes that ``last`` leaves for training, the last quarter trains the ranker
STRANGERS = 1 / 3  # share of users, by hash: a user stays one as the log grows, up to 3 x MOST["test"] users
KNOWN = (
    1 / 2
)  # a cut in time must ask mostly users who liked something before it: else strangers decide the figures
ALWAYS, NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Moments:
    """What a protocol decides, in microseconds since 1970; all arrays int64, one value per event: its user's.

    Attributes:
        when: the moment of the event itself, compared with those below.
        train, valid, test: requests at or after this moment are of that part; before ``train``, of none.
        fit: what became available before it is learned from before there is a ranker (encoder, co-occurrence).
        counted: what became available before it may be counted to answer test requests.
        kept: what became available before it is in the log that features read.
        asked: from when on a user's new likes are the one retrieval request of the training part.
        part: int64, where the source gives it: number of the event's part in ``requests.PARTS``, -1 for none.
    """

    when: np.ndarray
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    fit: np.ndarray
    counted: np.ndarray
    kept: np.ndarray
    asked: np.ndarray
    part: np.ndarray | None = None


@dataclass(frozen=True)
class Likes:
    """What users liked, as rows of the log: newly, or also again (``dataset.repeats``).

    New is the first positive event of each pair of a user and an item.

    Attributes:
        row: int64 (L), ordered by user, then as in the log.
        user: int64 (L), place of the user among all of ``users``.
        from_end: int64 (L), 0 is the user's last one.
        count: int64 (U), of each user.
        users: int64 (U), ascending: every user of the log.
    """

    row: np.ndarray
    user: np.ndarray
    from_end: np.ndarray
    count: np.ndarray
    users: np.ndarray

    @classmethod
    def of(cls, log: Log, repeats: bool) -> Likes:
        """The new likes of a log, or all takings of it."""
        users = distinct(log.user)
        row = takings(log) if repeats else _new(log)
        user = np.searchsorted(users, log.user[row])
        count = np.bincount(user, minlength=len(users))
        last = np.cumsum(count) - 1
        return cls(row, user, last[user] - np.arange(len(row)), count, users)

    def nth_last(self, places: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """``moment`` int64 (events) of each user's like that is ``places`` int64 (U) from the end; NEVER: none."""
        found = np.full(len(self.users), NEVER)
        chosen = self.from_end == places[self.user]
        found[self.user[chosen]] = moment[self.row[chosen]]
        return found


def _new(log: Log) -> np.ndarray:
    """The first like of each user and item not rated before, as rows of the log, by user, then as in the log."""
    rows, first = log.likes
    row = rows[first][~log.rated_before]
    return row[np.lexsort((row, log.user[row]))]


def by_time(log: Log, where: object) -> Moments:
    """Two quantiles of the times of what was shown, else of all events, cut the log for everybody.

    Raises:
        DataError: too little time between the events: a part would be empty.
    """
    cuts = _quantiles(log)
    if cuts is None:
        first, last = (_shown(int(moment)) for moment in (log.event_us.min(), log.event_us.max()))
        raise DataError(
            f"{where}: expected events spread over time, found {len(log.user)} between {first} and {last} whose 60 % "
            f"and 80 % quantiles leave a part empty. Run 'moon split --by users'."
        )
    fit, test = (np.full(len(log.user), cut) for cut in cuts)
    return Moments(log.event_us, fit, test, test, fit, test, np.full(len(log.user), NEVER), fit)


def by_last(log: Log, where: object, repeats: bool) -> Moments:
    """Each user's last new like is asked for, and the one before it validates, as the sequential literature does.

    Of the others the last quarter, at least one, trains the ranker, if one more is left to learn from before it.
    Users with fewer than three new likes only train. With ``repeats`` what a user likes again counts as new.

    Raises:
        DataError: no user has three.
    """
    likes, moment = Likes.of(log, repeats), _moments(log)
    asked = likes.count >= LEAST["last"]
    _require(asked, "last", where, "Run 'moon split --by users' or '--by time'.")
    left = np.maximum(likes.count - 2, 0)
    trained = np.where(left >= 2, np.maximum(left // FITTED, 1), 0)
    test, valid, train = (
        np.where(asked, likes.nth_last(place, moment), NEVER)
        for place in (np.zeros_like(left), np.ones_like(left), 1 + trained)
    )
    valid = np.minimum(valid, test)
    train = np.minimum(train, valid)
    return _per_event(log, likes, train, valid, test, fit=train, counted=valid, kept=test)


def by_users(log: Log, answerable: np.ndarray, seed: int, shown: bool, repeats: bool) -> Moments:
    """A hash of the user decides: a third of them, at most 6,000, are strangers to every model.

    Nothing that a stranger did is counted or learned from; it is what they are known by when they are asked for what
    they newly liked last. At most 12,000 others train the ranker by their last new likes, and a tenth of these
    validate. Where there are more others than these, each new like but the first of those who are among a third of
    the others is a request, and nothing else learns from it (docs/log/ranker.md#every-like-of-a-third-of-the-users):
    a smaller log has none to spare. Where slates or ratings say what was not liked, the second half of everybody's
    new likes trains instead: there is more to learn from each.

    Args:
        log: the events.
        answerable: int64, items that may be asked for.
        seed: changes the hash.
        shown: the log says what was not liked, and when.
        repeats: what a user likes again is asked for, too.
    """
    likes, moment = Likes.of(log, repeats), _moments(log)
    last = likes.nth_last(np.zeros_like(likes.count), np.arange(len(log.user)))
    asked = likes.count >= LEAST["users"]
    asked[asked] = among(log.item[last[asked]], answerable)
    eligible = np.flatnonzero(asked)
    chance = (
        stable_hash(likes.users[eligible], np.full(len(eligible), seed)) / 2.0**64
    )  # of users, evenly in 0..1
    eligible, chance = eligible[np.argsort(chance)], np.sort(chance)
    share = min(STRANGERS, MOST["test"] / max(len(eligible), 1))
    tests = max(int(np.searchsorted(chance, share)), min(1, len(eligible)))
    until = np.searchsorted(chance, share + MOST["train"] / max(len(eligible), 1))
    strangers, learners = eligible[:tests], eligible[tests:until]
    place = np.maximum(likes.count - 1 - likes.count // 2, 0) if shown else np.zeros_like(likes.count)
    cut = likes.nth_last(place, moment)
    validating = learners[: int(VALID_FRACTION * len(learners))]
    since = cut.copy()
    if not shown and until < len(eligible):
        whole = eligible[tests : np.searchsorted(chance, share + (1 - share) * STRANGERS)]
        several = np.setdiff1d(np.intersect1d(learners, whole), validating)
        since[several] = likes.nth_last(np.maximum(likes.count - 2, 0), moment)[several]
    train, valid, test, fit, counted, kept, asks = (np.full(len(likes.users), NEVER) for _ in range(7))
    for part in (train, fit):
        part[learners] = since[learners]
    valid[validating] = cut[validating]
    asks[learners] = cut[learners]
    for part in (train, valid, test, kept):
        part[strangers] = cut[strangers]
    fit[strangers] = counted[strangers] = ALWAYS
    asks[strangers] = test[strangers]
    return _per_event(log, likes, train, valid, test, fit, counted, kept, asks)


def choose(log: Log, shown: bool) -> tuple[str, str]:
    """The protocol that suits a log, and why.

    ``last`` is never chosen: its models learn from what others did after the request, as published tables' do.
    ``time`` is nearest to what a service will see, so it is chosen wherever it measures what a recommender of this
    kind is for: the typical user who is asked must have a history. A majority is a principle, not a measured limit.

    Args:
        log: the events.
        shown: the log says what was not liked.
    """
    cuts = _quantiles(log)
    if cuts is None:
        return "users", "the events have too few distinct times to be cut"
    rows, first = log.likes
    if len(distinct(log.user[rows[first]])) == len(first):
        return "time", "no user liked two items"
    if shown:
        return "time", "what was shown and not liked is known, with its time"
    late = log.positive & (log.event_us >= cuts[1])
    asked = distinct(log.user[late])
    known = (
        float(among(asked, log.user[log.positive & (log.event_us < cuts[1])]).mean()) if len(asked) else 0.0
    )
    said = f"{known:.0%} of those who liked something in the last fifth of the log had liked something before"
    if known > KNOWN:
        return "time", said
    return "users", f"only {said}: cut by time, most of those asked would be strangers"


def spaced(log: Log) -> Log:
    """The log with events of one user at one time a microsecond apart, in their order (``dataset.order``).

    So there is a moment between any two events of a user, even if the source only knows their day.
    """
    order = np.lexsort((np.arange(len(log.user)), log.user))
    same = log.user[order[1:]] == log.user[order[:-1]]
    time_us = log.available_us[order].copy()
    while (tied := same & (time_us[1:] <= time_us[:-1])).any():
        run = np.cumsum(~np.append(False, tied))
        first = np.flatnonzero(np.append(True, np.diff(run) > 0))
        time_us = time_us[first][run - run[0]] + (np.arange(len(run)) - first[run - run[0]])
    available_us = np.empty_like(time_us)
    available_us[order] = time_us
    place = log.table.column_names.index("available_time")
    column = pa.array(available_us).cast(log.table.field(place).type)
    return Log.of(log.table.set_column(place, log.table.field(place), column))


def _quantiles(log: Log) -> tuple[int, int] | None:
    """The moments at which ``time`` cuts; None: a part would be empty."""
    shown = log.is_type("impression") | log.is_type("rating")
    times = np.sort(log.event_us[shown] if shown.any() else log.event_us)
    first, last = times[0], times[-1]
    fit, test = (int(times[int(fraction * len(times))]) for fraction in (FIT_FRACTION, TEST_FRACTION))
    return (fit, test) if first < fit < test <= last else None


def _moments(log: Log) -> np.ndarray:
    """When each event could have been foreseen, int64: what was shown in a slate, when it was shown; else its own.

    Its own moment is when it became available: all that its user did before is then known, and it is not.
    """
    request = log.table.column("request_id").fill_null(-1).to_numpy()
    shown = log.is_type("impression") & (request >= 0)
    moment = log.available_us.copy()
    if shown.any():
        slates, slate = np.unique(request[shown], return_inverse=True)
        time_us = np.full(len(slates), NEVER)
        np.minimum.at(time_us, slate, log.event_us[shown])
        place = np.searchsorted(slates, request).clip(max=len(slates) - 1)
        inside = slates[place] == request
        moment[inside] = np.minimum(time_us[place[inside]], moment[inside])
    return moment


def _per_event(
    log: Log,
    likes: Likes,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    fit: np.ndarray,
    counted: np.ndarray,
    kept: np.ndarray,
    asked: np.ndarray | None = None,
) -> Moments:
    user = np.searchsorted(likes.users, log.user)
    parts = (train, valid, test, fit, counted, kept, train if asked is None else asked)
    return Moments(log.available_us, *(part[user] for part in parts))


def _require(asked: np.ndarray, by: str, where: object, instead: str) -> None:
    if not asked.any():
        raise DataError(
            f"{where}: expected users who liked {LEAST[by]} items, found 0 of {len(asked)} users. {instead}"
        )


def _shown(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC)
