"""Click tables without a clock: what users were shown, and how many of their behaviours came before.

Public click tables hold samples instead of events: a user, an item, whether it was clicked, and the history that the
user had then. Here they become impressions, clicks and behaviours of a clock that is made up, so that what the store
knows of a user at each request is that history, and the split is the source's own (protocol ``given``):

- A user's behaviours are evenly spaced, and the requests lie between them.
- The first test request of every user is just after MIDNIGHT and the last one at the end of the same day. Daily
  statistics therefore count everything that trains and nothing that tests, and what a user did in training fills as
  many days before as it is longer than the test. Users who only train come in the days before.
- The clicks of samples are found in the user's later behaviours where these hold them; the others are available after
  the user's last request, so that they are labels and in no history.

Legend: N samples, U users, M behaviours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import SECOND_US, refusals, under
from dataset.contracts import EVENTS, QUARANTINE, TIME
from dataset.given import PART
from dataset.identity import IMPORTED, stable_hash
from dataset.jagged import offsets_of
from dataset.log import pairs
from dataset.order import hashed

DAY_US = 86_400 * SECOND_US
MIDNIGHT = datetime(2020, 1, 1, tzinfo=UTC)  # any would do
LONGEST_US = 20 * 365 * DAY_US  # most that a history fills: times before 1990 would be refused
SPREAD_US = 28 * DAY_US  # how long before it those who only train are, by a hash of the user
QUARTER, EIGHTH = 4, 8  # of a step lie between a request and the behaviours around it
UNDER_A_USER = "history longer than its user's"


@dataclass(frozen=True)
class Histories:
    """The behaviours of users, oldest first.

    Attributes:
        users: int64 (U), ascending.
        offsets: int64 (U + 1); user u has the items offsets[u]:offsets[u + 1].
        item: int64 (M).
    """

    users: np.ndarray
    offsets: np.ndarray
    item: np.ndarray

    @classmethod
    def of(cls, user: np.ndarray, items: pa.ListArray) -> Histories:
        """One list of item ids for each user; of a user with several the first."""
        users, first = np.unique(user, return_index=True)
        taken = items.take(pa.array(first))
        lengths = taken.value_lengths().fill_null(0).to_numpy()
        item = taken.flatten().cast(pa.int64()).fill_null(-1).to_numpy()
        return cls(users, offsets_of(lengths), item)

    @classmethod
    def joined(cls, user: np.ndarray, items: pa.ListArray) -> tuple[Histories, np.ndarray]:
        """One history for each user from several that may overlap, and how many behaviours each of them had seen.

        A later history goes on where its beginning is the end of those before; where nothing fits, it follows them.
        Either way the user's last behaviours at any request are those that the source gives.

        Args:
            user: int64 (n), whose history it is; those of a user in the order of time.
            items: n lists of item ids.

        Returns:
            the histories, and int64 (n).
        """
        known, whole, owner = np.zeros(len(user), np.int64), [], []
        for one, rows in _by_user(user):
            seen = np.empty(0, np.int64)
            for row in rows:
                new = items[row].values
                new = np.empty(0, np.int64) if new is None else new.cast(pa.int64()).fill_null(-1).to_numpy()
                seen = np.concatenate([seen, new[_overlap(seen, new) :]])
                known[row] = len(seen)
            whole.append(seen)
            owner.append(one)
        offsets = offsets_of([len(one) for one in whole])
        return cls(np.array(owner, np.int64), offsets, np.concatenate([np.empty(0, np.int64), *whole])), known

    @property
    def owner(self) -> np.ndarray:
        """The user of each behaviour, int64 (M)."""
        return np.repeat(self.users, np.diff(self.offsets))

    @property
    def place(self) -> np.ndarray:
        """How many behaviours of its user came before each, int64 (M)."""
        return np.arange(len(self.item)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))

    def lengths(self, users: np.ndarray) -> np.ndarray:
        """How many behaviours each of ``users`` has, int64; 0 of who has none."""
        if not len(self.users):
            return np.zeros(len(users), np.int64)
        row = np.searchsorted(self.users, users).clip(max=len(self.users) - 1)
        return np.where(self.users[row] == users, np.diff(self.offsets)[row], 0)


@dataclass(frozen=True)
class Samples:
    """N rows of a user and an item that was shown.

    Attributes:
        user, item: int64 (N).
        known: int64 (N), how many of the user's behaviours came before.
        clicked: bool (N).
        context: N rows, what the source says of them: PART, and columns of its own.
    """

    user: np.ndarray
    item: np.ndarray
    known: np.ndarray
    clicked: np.ndarray
    context: pa.Table

    def only(self, mask: np.ndarray) -> Samples:
        """Those that the mask, bool (N), names."""
        user, item, known, clicked = (one[mask] for one in (self.user, self.item, self.known, self.clicked))
        return Samples(user, item, known, clicked, self.context.filter(pa.array(mask)))

    @property
    def tests(self) -> np.ndarray:
        """Which of them test, bool (N)."""
        return np.asarray(pc.equal(self.context.column(PART), "test").to_numpy())


@dataclass(frozen=True)
class SampleLog:
    """What samples and histories become.

    Attributes:
        events: EVENTS.
        context: event_id of every impression, PART and the source's own columns.
        quarantine: samples that cannot be placed.
        said: sentences about it, for the manifest.
    """

    events: pa.Table
    context: pa.Table
    quarantine: pa.Table
    said: list[str]


def log_of(samples: Samples, histories: Histories) -> SampleLog:
    """The events of samples and of the behaviours between them, by the clock of this module.

    Samples of one user with the same history are one request, unless they repeat an item or are of several parts.
    Those that need more behaviours than their user has are refused.
    """
    length = histories.lengths(samples.user)
    beyond = samples.known > length
    found = (
        (row, f"user {samples.user[row]}: {samples.known[row]} of {length[row]} behaviours")
        for row in np.flatnonzero(beyond).tolist()
    )
    quarantine = pa.concat_tables([QUARANTINE.empty_table(), refusals("events", UNDER_A_USER, found)])
    samples = samples.only(~beyond)
    clock, request, taken = Clock.of(samples, histories), _requests(samples), _claimed(samples, histories)
    lost = np.flatnonzero(samples.clicked & (taken < 0))
    clicked = taken >= 0
    owner, place = histories.owner, histories.place
    then = clock.behaviour(owner, place)
    moment, asked = then.copy(), np.full(len(owner), -1)
    moment[taken[clicked]] = clock.behaviour(samples.user[clicked], samples.known[clicked])
    asked[taken[clicked]] = request[clicked]
    shown_us = clock.request(samples)
    lost_us = clock.behaviour(samples.user[lost], samples.known[lost])
    late_us = clock.after(samples.user[lost])
    numbered, events = _events(
        user=np.concatenate([samples.user, owner, samples.user[lost]]),
        item=np.concatenate([samples.item, histories.item, samples.item[lost]]),
        kind=np.repeat([0, 1], [len(samples.user), len(owner) + len(lost)]),
        moment=np.concatenate([shown_us, moment, lost_us]),
        known=np.concatenate([shown_us, then, late_us]) + 1,
        request=np.concatenate([request, asked, request[lost]]),
    )
    context = samples.context.add_column(0, "event_id", pa.array(numbered[: len(samples.user)]))
    said = [
        f"the source has no clock: {len(owner):,} behaviours and {len(samples.user):,} samples are in the order of "
        f"each user, at times that were made up"
    ]
    if len(lost):
        said.append(
            f"{len(lost):,} of {int(samples.clicked.sum()):,} clicks are in no later history of their user: they are "
            f"labels and no behaviours"
        )
    return SampleLog(events, context, quarantine, said)


@dataclass(frozen=True)
class Clock:
    """When something happened, in microseconds since 1970 by the made-up clock.

    Attributes:
        users: int64 (U), ascending.
        start_us: int64 (U), before the first behaviour.
        step_us: int64 (U), from one behaviour to the next.
        last: int64 (U), most behaviours before any request.
    """

    users: np.ndarray
    start_us: np.ndarray
    step_us: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, samples: Samples, histories: Histories) -> Clock:
        """The clock that puts the tests of every user into the day after MIDNIGHT, and the rest before it."""
        users = np.union1d(samples.user, histories.users)
        row, tests = np.searchsorted(users, samples.user), samples.tests
        last, first_test = histories.lengths(users), np.full(len(users), np.iinfo(np.int64).max)
        np.minimum.at(first_test, row[tests], samples.known[tests])
        asked = np.full(len(users), -1)
        np.maximum.at(asked, row, samples.known)
        last = np.where(asked >= 0, asked, last)
        is_tested = first_test <= last
        step_us = DAY_US // (np.where(is_tested, last - first_test, 0) + 1)
        usual_us = int(np.median(step_us[is_tested])) if is_tested.any() else DAY_US
        step_us = np.where(is_tested, step_us, usual_us)
        step_us = np.minimum(step_us, LONGEST_US // (np.maximum(last, histories.lengths(users)) + 1))
        midnight_us = int(MIDNIGHT.timestamp()) * SECOND_US
        earlier = (stable_hash(users) / 2.0**64 * SPREAD_US).astype(np.int64)
        end_us = np.where(is_tested, midnight_us, midnight_us - earlier)
        return cls(users, end_us - np.where(is_tested, first_test, last + 1) * step_us, step_us, last)

    def request(self, samples: Samples) -> np.ndarray:
        """When each was shown, int64: what trains before what tests, if their user had the same history."""
        row = np.searchsorted(self.users, samples.user)
        step_us = self.step_us[row]
        moment = self.start_us[row] + samples.known * step_us
        return np.where(samples.tests, moment + step_us // QUARTER, moment - step_us // EIGHTH)

    def behaviour(self, user: np.ndarray, place: np.ndarray) -> np.ndarray:
        """When each user's behaviour with so many before it happened; int64."""
        row = np.searchsorted(self.users, user)
        return self.start_us[row] + (place + 1) * self.step_us[row] - self.step_us[row] // QUARTER

    def after(self, user: np.ndarray) -> np.ndarray:
        """A moment after each user's last request; int64."""
        return self.behaviour(user, self.last[np.searchsorted(self.users, user)])


def _events(
    user: np.ndarray,
    item: np.ndarray,
    kind: np.ndarray,
    moment: np.ndarray,
    known: np.ndarray,
    request: np.ndarray,
) -> tuple[np.ndarray, pa.Table]:
    """The event id of each row, and EVENTS by time; ``kind`` 0 is an impression, 1 a click; request -1 is none."""
    order = np.lexsort([hashed(user, item), moment])
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order)) + IMPORTED + 1
    columns = {
        "event_id": pa.array(number[order]),
        "user_id": pa.array(user[order]),
        "item_id": pa.array(item[order]),
        "type": pa.array(["impression", "click"]).take(pa.array(kind[order])),
        "event_time": pa.array(moment[order]).cast(TIME),
        "available_time": pa.array(known[order]).cast(TIME),
        "request_id": pa.array(request[order], mask=request[order] < 0),
    }
    return number, under(EVENTS, columns)


def _requests(samples: Samples) -> np.ndarray:
    """The request of each sample, int64: a hash, so that it is the same in every file of the source."""
    part = pc.index_in(samples.context.column(PART), pa.array(["train", "valid"])).fill_null(2).to_numpy()
    keys = (samples.user, part, samples.known, samples.item)
    order = np.lexsort((~samples.clicked, *keys[::-1]))
    fresh = np.ones(len(order), bool)
    fresh[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    start = np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))
    again = np.empty(len(order), np.int64)
    again[order] = np.arange(len(order)) - start
    return (stable_hash(samples.user, part, samples.known, again) >> np.uint64(1)).astype(np.int64)


def _claimed(samples: Samples, histories: Histories) -> np.ndarray:
    """The behaviour that each clicked sample became, int64 (N): the user's next one with its item; -1: none.

    Samples claim behaviours in their order, each of them one.
    """
    claimed = np.full(len(samples.user), -1)
    clicked = np.flatnonzero(samples.clicked)
    owner = np.concatenate([histories.owner, samples.user[clicked]])
    item = np.concatenate([histories.item, samples.item[clicked]])
    pair = pairs(owner, item)
    most = int(max(np.diff(histories.offsets).max(initial=0), samples.known.max(initial=0))) + 1
    behaved = pair[: len(histories.item)] * most + histories.place
    wanted = pair[len(histories.item) :] * most + samples.known[clicked]
    by_behaved, by_wanted = np.argsort(behaved), np.argsort(wanted, kind="stable")
    behaved, wanted = behaved[by_behaved], wanted[by_wanted]
    _, group = np.unique(wanted // most, return_inverse=True)
    # Each takes the first that is free: at least one after that of the sample before it of the same user and item.
    step, size = np.arange(len(wanted)), len(behaved) + len(wanted) + 1
    first = np.searchsorted(behaved, wanted)
    free = np.maximum.accumulate(first - step + group * size) - group * size + step
    is_there = free < len(behaved)
    is_there[is_there] = behaved[free[is_there]] // most == (wanted // most)[is_there]
    claimed[clicked[by_wanted[is_there]]] = by_behaved[free[is_there]]
    return claimed


def _by_user(user: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The users, ascending, with their rows in order."""
    order = np.argsort(user, kind="stable")
    users, start = np.unique(user[order], return_index=True)
    yield from zip(users.tolist(), np.split(order, start[1:]) if len(users) else [], strict=True)


def _overlap(seen: np.ndarray, new: np.ndarray) -> int:
    """How many of the first of ``new`` are the last of ``seen``, the most that fit."""
    if not len(new):
        return 0
    for start in np.flatnonzero(seen[max(len(seen) - len(new), 0) :] == new[0]) + max(
        len(seen) - len(new), 0
    ):
        if np.array_equal(seen[start:], new[: len(seen) - start]):
            return int(len(seen) - start)
    return 0
