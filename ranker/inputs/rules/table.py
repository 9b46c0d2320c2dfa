"""The rule table: which rule a feature follows, from its kind, its type and its tags (docs/features.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from dataset.contracts import DataError
from feature_repo.signature import Feature
from ranker.inputs.rules.booleans import Boolean, BooleanLearner
from ranker.inputs.rules.categories import CategoryLearner, Dictionary, Hashed
from ranker.inputs.rules.numbers import BUCKETS, BucketLearner, Buckets, Number, NumberLearner
from ranker.inputs.rules.rule import Learner, Rule
from ranker.inputs.rules.timestamps import Age, AgeLearner
from ranker.inputs.rules.vectors import Vector, VectorLearner

RULES: Mapping[str, type] = {
    "dictionary": Dictionary,
    "hashed": Hashed,
    "number": Number,
    "buckets": Buckets,
    "age": Age,
    "boolean": Boolean,
    "vector": Vector,
}
BY_IDS = "by ids"  # a hashed feature of ours: its table grows with the ids of the training data
NAMES = {rule: name for name, rule in RULES.items()}


def learner(feature: Feature) -> Learner:
    """What learns the rule of this feature.

    Raises:
        DataError: there is no rule for its kind.
    """
    tags = feature.options
    null = float(tags["null"]) if "null" in tags else None
    match feature.kind:
        case "category" | "categories":
            rows = tags.get("hashed")
            count = int(tags.get("min_count", 1))
            if rows == BY_IDS:
                return CategoryLearner(True, count, of_ids=True)
            return CategoryLearner(rows is not None, count, None if rows is None else int(rows))
        case "number":
            transform = tags.get("transform", "log" if pa.types.is_integer(feature.dtype) else "standard")
            if transform == "buckets":
                return BucketLearner(feature.name, int(tags.get("buckets", BUCKETS)))
            return NumberLearner(feature.name, transform, float(tags.get("unit", 1)), null)
        case "timestamp":
            return AgeLearner(feature.name, null)
        case "boolean":
            return BooleanLearner(feature.name)
        case "vector":
            return VectorLearner(feature.name, int(tags.get("project", 0)))
    raise DataError(
        f"feature {feature.name}: there is no rule for the kind {feature.kind!r}; expected category, categories, "
        f"number, vector, timestamp or boolean. Say another kind by a tag of its field."
    )


def to_json(rule: Rule) -> dict[str, Any]:
    """A rule as JSON values that ``from_json`` understands."""
    return {"rule": NAMES[type(rule)], **asdict(rule)}  # type: ignore[call-overload]


def from_json(content: Mapping[str, Any]) -> Rule:
    """The inverse of ``to_json``; raises KeyError or TypeError for another content."""
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    del known["rule"]
    rule: Rule = RULES[content["rule"]](**known)
    return rule
