"""Models of releases whose inputs were constants, translated into the signature that these amounted to.

Release 0.1.0, and what followed it until 2026-11-29, gave a null the constant default of its column, hashed every
category and told from two columns of their own whether user and item were known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from feature_repo.services import CTR
from feature_repo.signature import Feature, Signature
from ranker.inputs.columns import QUERY_ID, USER_EVENTS, USER_ID, Inputs, match
from ranker.inputs.rules.categories import Hashed
from ranker.inputs.rules.numbers import Number, standardised
from ranker.inputs.rules.rule import IdRule, NumberRule, Rule
from ranker.inputs.rules.timestamps import Age

KEYS = {"rows", "scale", "matches", "history", "position_share"}
NEVER_US = 2**62  # first seen after any request: of age 0, as an unknown item was


def _features(view: str, role: str, **kinds: tuple[str, pa.DataType]) -> Iterator[Feature]:
    for name, (kind, dtype) in kinds.items():
        yield Feature(name, view, name, role, kind, dtype, {"transform": "log"} if name == "price" else {})


PROFILE = tuple(
    _features("user_profile", "user", age_band=("category", pa.int64()), segment=("category", pa.string()))
)
CATALOGUE = tuple(
    _features(
        "item_profile",
        "candidate",
        category=("category", pa.string()),
        category_top=("category", pa.string()),
        spu=("category", pa.int64()),
        price=("number", pa.float32()),
        attributes=("categories", pa.list_(pa.string())),
        first_seen_us=("timestamp", pa.int64()),
    )
)
COUNTS = [f"{what}_{window}" for window in ("7d", "28d", "all") for what in ("shown", "positive")]
STATISTICS = tuple(
    _features(
        "item_stats",
        "candidate",
        **{name: ("number", pa.int64()) for name in COUNTS},
        rate_all=("number", pa.float32()),
    )
)
# Read from another column: whether that has a value.
USER_FOUND = Feature("user_found", "", "age_band", "user", "boolean", pa.bool_())
ITEM_FOUND = Feature("item_found", "", "first_seen_us", "candidate", "boolean", pa.bool_())
DEFAULTS: Mapping[str, Any] = {
    "age_band": -1, "segment": "", "category": "", "category_top": "", "spu": -1, "price": 0, "rate_all": 1 / 20,
    "first_seen_us": NEVER_US, **dict.fromkeys(COUNTS, 0),
}  # fmt: skip


@dataclass(frozen=True)
class FilledIds:
    """A rule before which nulls become a constant."""

    then: IdRule
    value: Any

    @property
    def rows(self) -> int:
        """Of the rule's table."""
        return self.then.rows

    def ids(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """As the rule says."""
        return self.then.ids(column.fill_null(self.value))


@dataclass(frozen=True)
class FilledNumber:
    """A rule before which nulls become a constant."""

    then: NumberRule
    value: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rule."""
        return self.then.names

    def numbers(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """As the rule says."""
        return self.then.numbers(column.fill_null(self.value), time_us)


@dataclass(frozen=True)
class Found:
    """Whether a column has a value, 1 or 0, standardised."""

    name: str
    mean: float
    deviation: float

    @property
    def names(self) -> tuple[str, ...]:
        """One number."""
        return (self.name,)

    def numbers(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """Float32 [N, 1]."""
        found = column.is_valid().to_numpy(zero_copy_only=False).astype(np.float64)
        return standardised(found, self.mean, self.deviation, absent=False)


def read_inputs(content: Mapping[str, Any], service: str) -> Inputs:
    """The inputs in a model's configuration, of this release or an earlier one.

    Args:
        content: JSON values of ``Inputs.to_json``, or of the constants before it.
        service: of the model, ``CTR`` or ``RETRIEVAL``: they read different constants.

    Raises:
        KeyError, TypeError: it is neither.
    """
    if set(content) != KEYS:
        return Inputs.from_json(content)
    rows, scale = content["rows"], {name: tuple(pair) for name, pair in content["scale"].items()}
    click = service == CTR
    given: tuple[Feature, ...] = (
        (USER_ID, QUERY_ID, USER_EVENTS, USER_FOUND) if click else (USER_EVENTS, USER_FOUND)
    )
    given += (ITEM_FOUND, *map(match, content["matches"])) if click else ()
    stored = (*PROFILE, *CATALOGUE, *(STATISTICS if click else ()))
    rules = {one.name: _rule(one, rows, scale) for one in (*given, *stored)}
    if not click:  # its item tower read no numbers
        rules = {name: rule for name, rule in rules.items() if name not in ("price", "first_seen_us")}
    return Inputs(
        signature=Signature("", stored),
        given=given,
        rules=rules,
        items=Hashed(rows["item_id"]),
        history=content["history"],
        position_share=tuple(content["position_share"]),
    )


def _rule(feature: Feature, rows: Mapping[str, int], scale: Mapping[str, tuple[float, float]]) -> Rule:
    name = feature.name
    if name in rows:
        hashed = Hashed(rows[name])
        return FilledIds(hashed, DEFAULTS[name]) if name in DEFAULTS else hashed
    mean, deviation = scale["age_s" if name == "first_seen_us" else name]
    if name == "first_seen_us":
        return FilledNumber(Age(name, mean, deviation), NEVER_US)
    if feature.kind == "boolean":
        return Found(name, mean, deviation)
    is_log = name in ("price", *COUNTS) or feature.options.get("transform") == "log"
    unit = float(feature.options.get("unit", 1))
    number = Number(name, "log" if is_log else "standard", mean, deviation, unit)
    return FilledNumber(number, DEFAULTS[name]) if name in DEFAULTS else number
