"""What is thrown at every door: one good record of each kind, and each field in each malformed way.

``tried()`` counts it for the table of what was tried.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

LARGEST = 2**63 - 1
MISSING = object()  # the field is left out
EVENT = {
    "event_id": 9_000_001,
    "user_id": 1,
    "item_id": 2,
    "type": "rating",
    "event_time": "2026-02-01T10:00:00+08:00",
    "query_id": 3,
    "request_id": 4,
    "position": 5,
    "value": 4.5,
}
ITEM = {
    "item_id": 2,
    "title": "red mug",
    "description": "a mug that is red",
    "category": ["kitchen", "mug"],
    "attributes": {"colour": "red"},
    "price": 9.5,
    "spu": 7,
}
USER = {"user_id": 1, "age": 30.0, "segment": "regular", "first_seen": "2026-01-01T00:00:00Z"}
QUERY = {"query_id": 3, "text": "red mug"}
GOOD = {"event": EVENT, "item": ITEM, "user": USER, "query": QUERY}
DOORS = {
    "event": ("call", "HTTP", "file", "stream", "import"),
    "item": ("call", "HTTP", "import"),
    "user": ("import",),
    "query": ("HTTP", "import"),
}
# A kind of value -> the values, and the rule that they break; None: they are accepted.
Kinds = dict[str, tuple[list[Any], str | None]]


def _no_integers(rule: str) -> Kinds:
    values = {
        "truth value": [True, False],
        "numeric string": ["7", "0"],
        "fraction": [7.0, 7.5, 1e39],
        "NaN": [float("nan")],
        "infinite": [float("inf")],
        "text": ["", "seven", "\u200b"],
        "list": [[], [7]],
        "map": [{"id": 7}],
        "date": ["2026-02-01"],
    }
    return {kind: (found, rule) for kind, found in values.items()}


def _whole(bits: int, optional: bool, name: str) -> Kinds:
    rule = f"{name} is not an integer of {bits} bits"
    return {
        **_no_integers(rule),
        "too large": ([2 ** (bits - 1)], rule),
        "negative": ([-1, -(2 ** (bits - 1))], f"negative {name}"),
        "null": ([None], None if optional else f"null {name}"),
        "missing": ([MISSING], None if optional else f"missing {name}"),
        "smallest": ([0], None),
        "largest": ([2 ** (bits - 1) - 1], None),
    }


def _number(name: str, negative: str | None, infinite: str | None, missing: str | None) -> Kinds:
    rule = f"{name} is not a number"
    return {
        "truth value": ([True, False], rule),
        "numeric string": (["7", "0", "NaN"], rule),
        "text": (["", "seven"], rule),
        "list": ([[7.0]], rule),
        "map": ([{"number": 7.0}], rule),
        "negative": ([-0.5, -1e30], negative),
        "too large": ([1e39, -1e39, 3.5e38], infinite),
        "infinite": ([float("inf"), float("-inf")], infinite),
        "NaN": ([float("nan")], missing),
        "null": ([None], missing),
        "missing": ([MISSING], missing),
        "whole": ([3], None),
        "smallest": ([0.0, -0.0, 1e-50], None),
        "largest": ([3.4e38], None),
    }


def _time(name: str) -> Kinds:
    rule, outside = (
        f"{name} is not a time with a zone",
        f"{name} outside sane bounds: before 1990 or in the future",
    )
    return {
        "truth value": ([True], rule),
        "numeric string": (["0", "20250701", "1751364000", "1751364000.5"], rule),
        "number": ([0, 20250701, 1751364, 1751364000, 1751364000000, 1.5, 1e39], rule),
        "NaN": ([float("nan")], rule),
        "text": (["", "now", "\u200b", "2026-02-30T10:00:00Z", "2026-02-01T25:00:00Z"], rule),
        "date": (["2026-02-01", "2026-W05"], rule),
        "basic format": (["20260201T100000Z", "2026-W05-1T10:00:00Z"], rule),
        "naive": (["2026-02-01T10:00:00", "2026-02-01 10:00"], rule),
        "duration": (["PT1H", "10:00:00Z"], rule),
        "list": ([["2026-02-01T10:00:00Z"]], rule),
        "1970": (["1970-01-01T00:00:00Z", "1989-12-31T23:59:59Z", "1971-01-01T00:00:00+14:00"], outside),
        "year 2100": (["2100-01-01T00:00:00Z"], outside),
        "good": (["1990-01-01T00:00:00Z", "2026-02-01T10:00:00.123456Z", "2026-02-01 10:00-05:00"], None),
    }


def _text(name: str, most: int, optional: bool) -> Kinds:
    rule, null = f"{name} is not a text", None if optional else "neither text nor image"
    return {
        "truth value": ([True], rule),
        "number": ([7, 7.5], rule),
        "list": ([["red"]], rule),
        "map": ([{"text": "red"}], rule),
        "too long": (["x" * (most + 1), "\u00e9" * (most + 1), "x" * 10**6], f"{name} is too long"),
        "longest": (["x" * most, "\u200b" * 100 + "x" * most], None),
        "null": ([None], null),
        "missing": ([MISSING], null),
        "empty": (["", "  "], null),
        "invisible": (["\u200b", "\ufeff\u00ad\u2060"], null),
        "good": (["cafe\u0301", "007", "NULL", "true", "a\x00b", "\U0001f600", "\ufdfa"], None),
    }


def _texts(name: str, most: int, rule: str, wrap: Any) -> Kinds:
    """Kinds of a list or a map of texts of at most ``most`` characters; ``wrap`` makes one that holds a value."""
    return {
        "truth value": ([True, wrap(True)], rule),
        "number": ([7, wrap(7), wrap(7.5)], rule),
        "text": (["kitchen"], rule),
        "nested": ([wrap(["mug"])], rule),
        "null": ([None], f"null {name}"),
        "null inside": ([wrap(None)], f"null inside {name}"),
        "empty inside": ([wrap(""), wrap("  ")], f"empty text inside {name}"),
        "invisible inside": ([wrap("\u200b")], f"empty text inside {name}"),
        "too long": ([wrap("x" * (most + 1)), wrap("x" * 10**6)], f"too long a text inside {name}"),
        "missing": ([MISSING], None),
        "good": ([wrap("cafe\u0301"), wrap("007"), wrap("x" * most)], None),
    }


PARTS = {
    "category": {"only numbers": ([[7], [7.5, 8.0], [True]], "category is not a list of texts"),
                 "too many": ([["x"] * 101, ["x"] * 10**5], "category has too many parts"),
                 "most": ([["x"] * 100, []], None)},
    "attributes": {"too many": ([{str(n): "x" for n in range(101)}], "attributes has too many parts"),
                   "most": ([{str(n): "x" for n in range(100)}, {}], None)},
}  # fmt: skip
NO_VALUE, NO_RATING = "rating without a value", "value of an event that is no rating"
CASES: dict[str, dict[str, Kinds]] = {
    "event": {
        **{name: _whole(64, False, name) for name in ("event_id", "user_id", "item_id")},
        **{name: _whole(64, True, name) for name in ("query_id", "request_id")},
        "position": _whole(32, True, "position"),
        "event_time": _time("event_time"),
        "value": _number("value", None, "value is infinite", NO_VALUE),
        "type": {
            "unknown": (["", "look", "Rating", "rating ", "\u200brating", "x" * 10**6], "unknown type"),
            "number": ([1, 1.5], "type is not a text"),
            "truth value": ([True], "type is not a text"),
            "list": ([["rating"]], "type is not a text"),
            "null": ([None], "null type"),
            "missing": ([MISSING], "missing type"),
            "no rating": (["click", "impression", "cart", "purchase"], NO_RATING),
        },
        "colour": {"extra": (["red", None, 7], "unknown field colour")},
    },
    "item": {
        "item_id": _whole(64, False, "item_id"),
        "spu": _whole(64, True, "spu"),
        "price": _number("price", "price is negative or infinite", "price is negative or infinite", None),
        "title": {kind: found for kind, found in _text("title", 100_000, True).items()
                  if kind not in ("null", "missing", "empty", "invisible")},  # see DIFFERENT
        "description": _text("description", 100_000, True),
        "category": _texts("category", 1000, "category is not a list of texts", lambda one: ["shop", one])
        | PARTS["category"],
        "attributes": _texts("attributes", 10_000, "attributes is not a map of texts", lambda one: {"colour": one})
        | PARTS["attributes"],
        "colour": {"extra": (["red", None, 7], "unknown field colour")},
    },
    "user": {
        "user_id": _whole(64, False, "user_id"),
        "age": {kind: (values, rule if kind not in ("negative", "too large", "infinite") else None)
                for kind, (values, rule) in _number("age", None, None, None).items()},
        "segment": _text("segment", 1000, True),
        "first_seen": _time("first_seen") | {"null": ([None], "null first_seen"),
                                             "missing": ([MISSING], "missing first_seen")},
        "colour": {"extra": (["red"], "unknown field colour")},
    },
    "query": {
        "text": _text("text", 1000, False),
        "colour": {"extra": (["red"], "unknown field colour")},
    },
}  # fmt: skip
# What a door may decide differently, and why: (kind of record, change, rule of live doors, rule of an import).
DIFFERENT = {
    "a live event without a time happened when it arrived": ("event", {"event_time": None}, None, "null event_time"),
    "a live item is found by its vector alone": ("item", {"title": "\u200b"}, "neither title nor picture", None),
    "an import is whole": ("event", {"user_id": 404}, None, "unknown user_id"),
    "an import numbers its events itself": ("event", {"sender": "app"}, None, "unknown field sender"),
}  # fmt: skip


def cases(record: str) -> list[tuple[str, dict[str, Any], str | None]]:
    """(name, record, rule that it breaks or None) of every malformed and every good record of a kind."""
    found = []
    for field, kinds in CASES[record].items():
        for kind, (values, rule) in kinds.items():
            for number, value in enumerate(values):
                one = {name: told for name, told in GOOD[record].items() if name != field}
                if value is not MISSING:
                    one[field] = value
                found.append((f"{field}: {kind} {number}", one, rule))
    return found


def tried() -> dict[str, dict[str, int]]:
    """For each kind of record how many doors, malformed kinds (field x kind) and records were tried."""
    counts: dict[str, dict[str, int]] = {}
    for record, doors in DOORS.items():
        refused = Counter(name.rsplit(" ", 1)[0] for name, _, rule in cases(record) if rule is not None)
        counts[record] = {
            "doors": len(doors),
            "kinds": len(refused),
            "records": len(doors) * len(cases(record)),
        }
    return counts
