"""Impressions and the clicks on them, checked against each other.

The impressions of one request are a slate: what one user was shown at one moment. An impression's label is whether
its request has a click on its item, so a request id that stands for two slates, or a click whose request is not in
the log, makes wrong labels that look like right ones.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import DataError
from dataset.log import among, pairs
from dataset.sieve import AGAIN, MAX_REFUSED_FRACTION, Sieve

SEVERAL_USERS, SEVERAL_TIMES = "request of several users", "slate shown at several times"
SCOPE = (
    "If the source numbers its slates anew for each user or session, its importer must say so: "
    "event_table(..., request=slate, request_scope=[user])."
)


def refuse_mixed_requests(events: Sieve) -> None:
    """Refuse all events of a request that has several users, or impressions at several times.

    Raises:
        DataError: that is so for more than half of the requests; names the option of ``event_table`` that helps.
    """
    named = np.flatnonzero(events.alive & events.column("request_id").is_valid().to_numpy())
    if not len(named):
        return
    rows = events.table.select(["request_id", "user_id", "type", "event_time"]).take(pa.array(named))
    requests, number = np.unique(rows.column("request_id").to_numpy(), return_inverse=True)
    shown = pc.equal(rows.column("type"), "impression").to_numpy()
    time_us = rows.column("event_time").cast(pa.int64()).to_numpy()
    users = _distinct(number, rows.column("user_id").to_numpy(), len(requests))
    times = _distinct(number[shown], time_us[shown], len(requests))
    _refuse_source(requests, users, times)
    for rule, count, what in ((SEVERAL_USERS, users, "users"), (SEVERAL_TIMES, times, "times")):
        bad = np.zeros(len(events.alive), dtype=bool)
        bad[named] = count[number] > 1
        said = np.full(len(events.alive), "", dtype=object)
        said[named[count[number] > 1]] = [
            f"request {requests[one]}: {count[one]} {what}" for one in number[count[number] > 1]
        ]
        events.refuse(rule, bad, pa.array(said, pa.string()))


def _distinct(number: np.ndarray, values: np.ndarray, requests: int) -> np.ndarray:
    """How many distinct values each request has, int64 (requests)."""
    _, first = np.unique(pairs(number, values), return_index=True)
    return np.bincount(number[first], minlength=requests)


def _refuse_source(requests: np.ndarray, users: np.ndarray, times: np.ndarray) -> None:
    mixed = np.flatnonzero((users > 1) | (times > 1))
    if len(mixed) <= MAX_REFUSED_FRACTION * len(requests):
        return
    first = "; ".join(
        f"request {requests[one]}: {users[one]} users, shown at {times[one]} times" for one in mixed[:3]
    )
    raise DataError(
        f"events: expected one user and one time in the slate of each request, found several in {len(mixed)} of "
        f"{len(requests)} requests. First: {first}. {SCOPE} {AGAIN}"
    )


def clicks_explained(events: pa.Table) -> dict[str, int] | None:
    """How many clicks are on an item of their request's slate, and why the others are on none.

    Args:
        events: EVENTS that passed the contract.

    Returns:
        counts of clicks: "in their slate", "without a request", "of a request without impressions", "on an item that
        their request did not show"; None: there are no impressions, so clicks are no labels.
    """
    kind = events.column("type")
    shown, clicks = (events.filter(pc.equal(kind, name)) for name in ("impression", "click"))
    if not len(shown):
        return None
    unnamed = clicks.column("request_id").null_count
    shown, clicks = (table.filter(table.column("request_id").is_valid()) for table in (shown, clicks))
    known = pc.is_in(clicks.column("request_id"), shown.column("request_id")).to_numpy(zero_copy_only=False)
    both = pa.concat_tables([table.select(["request_id", "item_id"]) for table in (shown, clicks)])
    pair = pairs(both.column("request_id").to_numpy(), both.column("item_id").to_numpy())
    inside = among(pair[len(shown) :], pair[: len(shown)])
    return {
        "in their slate": int(inside.sum()),
        "without a request": unnamed,
        "of a request without impressions": int((~known).sum()),
        "on an item that their request did not show": int((known & ~inside).sum()),
    }


def unexplained(clicks: dict[str, int]) -> str:
    """One sentence about the clicks that are on no slate; empty if there are none."""
    reasons = [(-count, reason) for reason, count in clicks.items() if count and reason != "in their slate"]
    if not reasons:
        return ""
    why = ", ".join(f"{-count:,} {reason}" for count, reason in sorted(reasons))
    said = f"{-sum(count for count, _ in reasons):,} of {sum(clicks.values()):,} clicks label no impression: {why}"
    return said if clicks["in their slate"] else f"{said}. So no impression counts as clicked"
