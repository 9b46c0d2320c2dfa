"""What a model reads of a frame, derived from its signature, and what it learned about it from the training data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from feature_repo.frame import Frame, StoredRequests
from feature_repo.signature import Feature, Signature
from ranker.inputs.rules import table as rule_table
from ranker.inputs.rules.categories import Hashed
from ranker.inputs.rules.rule import IdRule, NumberRule, Rule

ITEM = "item_id"
MATCH = "match_"
LABEL = (
    "label_"  # columns of what may follow a click begin so, in the order in which the steps follow each other
)
CHUNK_REQUESTS = 8192
CHUNK_BEHAVIOURS = CHUNK_REQUESTS * 200  # of requests with long histories fewer are read together
SIDES = {"request": ("user", "query", "request"), "candidate": ("candidate",), "behaviour": ("behaviour",)}
BOOKKEEPING = {
    "request": ("time", "query_id"),
    "candidate": (ITEM,),
    "behaviour": (ITEM,),
}  # columns that are no features
# What a frame holds beside the features of the store. Ids of items are learned from candidates and behaviours alike.
HASHED = {"hashed": rule_table.BY_IDS}
ITEM_ID = Feature(ITEM, "", ITEM, "candidate", "category", pa.int64(), HASHED)
USER_ID = Feature("user_id", "", "user_id", "user", "category", pa.int64(), HASHED)
QUERY_ID = Feature("query_id", "", "query_id", "query", "category", pa.int64(), HASHED)
USER_EVENTS = Feature("user_events", "", "user_events", "user", "number", pa.int64(), {"transform": "log"})
CLICK_GIVEN = (USER_ID, QUERY_ID, USER_EVENTS)
HEAVY_TAILED = {"match_cooccurrence": {"transform": "log", "unit": "0.001"}}  # the other matches are bounded


@dataclass(frozen=True)
class Inputs:
    """How the columns of a frame become ids and numbers; part of every model's configuration.

    Attributes:
        signature: the features of the store that the model was trained with.
        given: columns that a frame holds beside them: ids of the request, length of the history, ``match_*``.
        rules: feature -> its rule, of the features of ``signature`` and ``given`` that enter as ids or numbers.
        items: the rule of ``item_id``, of candidates and behaviours.
        history: most behaviours per request.
        position_share: fraction of the training candidates logged at each position; empty when none was.
        steps: what may follow a click, in order, of the frame's columns ``label_<step>``.
    """

    signature: Signature
    given: tuple[Feature, ...]
    rules: Mapping[str, Rule]
    items: Hashed
    history: int
    position_share: tuple[float, ...]
    steps: tuple[str, ...] = ()

    def features(self, side: str) -> tuple[Feature, ...]:
        """Features of a side (``request``, ``candidate``, ``behaviour``) that have a rule, in the model's order."""
        every = (
            (*self.signature.features, *self.given)
            if side == "candidate"
            else (*self.given, *self.signature.features)
        )
        return tuple(one for one in every if one.role in SIDES[side] and one.name in self.rules)

    def columns(self, side: str) -> tuple[str, ...]:
        """Columns of a frame that these features are read from."""
        return tuple(column_of(one) for one in self.features(side))

    def ids(self, side: str) -> dict[str, tuple[str, IdRule]]:
        """Features of a side that enter as rows of a table: name -> (its column, its rule)."""
        rules = ((one, self.rules[one.name]) for one in self.features(side))
        return {one.name: (column_of(one), rule) for one, rule in rules if isinstance(rule, IdRule)}

    def numbers(self, side: str) -> dict[str, tuple[str, NumberRule]]:
        """Features of a side that enter as numbers: name -> (its column, its rule)."""
        rules = ((one, self.rules[one.name]) for one in self.features(side))
        return {one.name: (column_of(one), rule) for one, rule in rules if isinstance(rule, NumberRule)}

    def widths(self, side: str) -> tuple[tuple[str, int, int], ...]:
        """(feature, its numbers, width of their learned projection or 0) of a side, in order."""
        numbers = ((name, rule, len(rule.names)) for name, (_, rule) in self.numbers(side).items())
        return tuple((name, have, getattr(rule, "project", 0) if have else 0) for name, rule, have in numbers)

    def width(self, side: str) -> int:
        """How many numbers a request, candidate or behaviour has."""
        return sum(have for _, have, _ in self.widths(side))

    def rows(self, side: str) -> dict[str, int]:
        """Rows of the tables of a side."""
        return {name: rule.rows for name, (_, rule) in self.ids(side).items()}

    def to_json(self) -> dict[str, Any]:
        """JSON values that ``from_json`` understands."""
        given = Signature("", self.given).to_json()["features"]
        rules = {name: rule_table.to_json(rule) for name, rule in self.rules.items()}
        return {
            "signature": self.signature.to_json(),
            "given": given,
            "rules": rules,
            "items": rule_table.to_json(self.items),
            "history": self.history,
            "position_share": list(self.position_share),
            "steps": list(self.steps),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Inputs:
        """The inverse of ``to_json``; unknown or missing keys raise KeyError or TypeError."""
        known = dict(content)
        known["signature"] = Signature.from_json(known["signature"])
        known["given"] = Signature.from_json({"service": "", "features": known["given"]}).features
        known["rules"] = {name: rule_table.from_json(rule) for name, rule in known["rules"].items()}
        known["items"] = rule_table.from_json(known["items"])
        known["position_share"] = tuple(known["position_share"])
        known["steps"] = tuple(known.get("steps", ()))
        return cls(**known)


def column_of(feature: Feature) -> str:
    """The column of a frame that a feature is read from: one beside the store's may be read twice."""
    return feature.name if feature.view else feature.field


def require_columns(table: pa.Table, names: Sequence[str], where: str) -> None:
    """Refuse a table without the columns a model was trained with.

    Raises:
        DataError: naming all missing columns.
    """
    known = set(table.column_names)
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(names)} expected columns are missing ({', '.join(missing)}); "
            f"found {', '.join(table.column_names)}. Read the frame with the feature service of this model."
        )


def require_complete(table: pa.Table, features: Iterable[Feature]) -> None:
    """Refuse numbers of ours that are null or not finite: unlike those of the store, they are always known.

    Raises:
        DataError: naming the column and its first rows.
    """
    for one in features:
        if one.view or one.kind != "number":
            continue
        column = table[column_of(one)].combine_chunks()
        if pa.types.is_integer(column.type) and not column.null_count:
            continue
        known = np.isfinite(column.to_numpy(zero_copy_only=False))
        if not known.all():
            bad = np.flatnonzero(~known)
            raise DataError(
                f"frame column {one.name}: {len(bad)} of {len(known)} values are null or not finite "
                f"(rows {bad[:3].tolist()}). Check the store with 'moon store'."
            )


def match(name: str) -> Feature:
    """A retrieval score of the (request, item) pair."""
    return Feature(name, "", name, "candidate", "number", pa.float32(), HEAVY_TAILED.get(name, {}))


def matches_of(table: pa.Table) -> tuple[Feature, ...]:
    """The match columns of a candidate table, by name."""
    return tuple(match(name) for name in sorted(table.column_names) if name.startswith(MATCH))


def learn_inputs(
    train: StoredRequests,
    history: int,
    given: tuple[Feature, ...] = CLICK_GIVEN,
    without: Collection[str] = (),
) -> tuple[Inputs, np.ndarray]:
    """Learn the rule of every feature from the training requests, in one pass.

    Args:
        train: the training requests; their signature says which features there are.
        history: most behaviours per request.
        given: the columns beside the store's that the model reads; matches are found by their names.
        without: features of the store that the model shall do without.

    Returns:
        what the models need to know, and int64 [R] candidates of each request.

    Raises:
        DataError: no training requests, columns are missing, or a feature to do without that is not there.
    """
    if not len(train):
        raise DataError("expected training requests, found none. Run 'moon split' with more events.")
    first = train.take(0, 1).candidates
    given = (*given, *matches_of(first))
    _check_known(train.signature, without)
    every = [one for one in (*given, *train.signature.features) if one.name not in without]
    learners = {one.name: rule_table.learner(one) for one in every if not one.of_embedding}
    items = rule_table.learner(ITEM_ID)
    places, counts = np.zeros(0, dtype=np.int64), []
    for frame in chunks(train, max(min(CHUNK_REQUESTS, CHUNK_BEHAVIOURS // history), 1)):
        for side, table, time_us in tables_of(frame):
            names = [one.name for one in every if one.role in SIDES[side] and one.name in learners]
            require_columns(table, (*BOOKKEEPING[side], *names), f"{side}s")
            require_complete(table, [one for one in given if one.name in names])
            for name in names:
                learners[name].see(table[name].combine_chunks(), time_us)
        both = np.concatenate([frame.candidates[ITEM].to_numpy(), frame.history.item_id])
        items.see(pa.array(both), np.zeros(0, np.int64))
        if "position" in frame.candidates.column_names and len(frame.candidates):
            logged = np.bincount(frame.candidates["position"].drop_null().to_numpy(), minlength=len(places))
            places = logged + np.pad(places, (0, len(logged) - len(places)))
        counts.append(np.diff(frame.offsets))
    known = items.learned()
    assert isinstance(known, Hashed)
    inputs = Inputs(
        signature=train.signature,
        given=given,
        rules={name: one.learned() for name, one in learners.items()},
        items=known,
        history=history,
        position_share=tuple((places / max(places.sum(), 1)).tolist()),
        steps=tuple(name.removeprefix(LABEL) for name in first.column_names if name.startswith(LABEL)),
    )
    return inputs, np.concatenate(counts)


def tables_of(frame: Frame) -> Iterator[tuple[str, pa.Table, np.ndarray]]:
    """The tables of a frame by side, and the moment of each row, int64 microseconds since 1970 UTC.

    That of a candidate is its request's, that of a behaviour its own: so long before the request it was.
    """
    time_us = request_time_us(frame.requests)
    yield "request", frame.requests, time_us
    yield "candidate", frame.candidates, np.repeat(time_us, np.diff(frame.offsets))
    yield "behaviour", frame.history.table(), frame.history.time_us


def request_time_us(requests: pa.Table) -> np.ndarray:
    """Request times, int64 microseconds since 1970 UTC."""
    return requests["time"].combine_chunks().cast(pa.int64()).to_numpy(zero_copy_only=False)


def _check_known(signature: Signature, without: Collection[str]) -> None:
    known = [one.name for one in signature.features]
    strange = sorted(set(without) - set(known))
    if strange:
        raise DataError(
            f"expected features of the service {signature.service} to do without ({', '.join(known)}), "
            f"found {', '.join(strange)}"
        )


def chunks(requests: StoredRequests, at_once: int | None = None) -> Iterator[Frame]:
    """So many requests at a time, in order; CHUNK_REQUESTS unless told otherwise."""
    at_once = at_once or CHUNK_REQUESTS
    for start in range(0, len(requests), at_once):
        yield requests.take(start, min(start + at_once, len(requests)))
