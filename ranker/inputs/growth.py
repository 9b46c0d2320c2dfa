"""The inputs of a ranker that trains day after day: what its id tables admit and forget, how numbers are scaled.

Every value that has occurred is remembered by its hash, with how often it occurred and on which day last. By that

- *admission*: a category has a row of its own once it occurred ``min_count`` times, on whichever days. A new value
  begins as the row of the unknown, by which it was scored until then;
- *growth*: a hashed table doubles where it has fewer than half of ``ROWS_PER_ID`` rows per value. The hash of a
  value modulo 2n is that modulo n, or n more, so each half begins as a copy of the whole and no score changes;
- *eviction*: a value that did not occur for so many days loses its row, which begins anew for whoever comes next.

Numbers are standardised over all days so far, and bounded by them. By the first day alone, of which one user may be
all, what differs between users would be cut (``numbers.CLIP``) ever after
(docs/log/ranker.md#the-scale-of-the-first-day). Buckets and vectors of the store keep the borders and the size of the
first day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.log import distinct
from feature_repo.frame import StoredRequests
from feature_repo.signature import Feature
from ranker.inputs.columns import ITEM, ITEM_ID, SIDES, Inputs, chunks, column_of, tables_of
from ranker.inputs.hashing import ROWS_PER_ID, hash_column
from ranker.inputs.rules.categories import ABSENT, FIRST, LARGEST, UNKNOWN, Dictionary, Hashed, values_of
from ranker.inputs.rules.numbers import Moments, Number
from ranker.inputs.rules.rule import Rule
from ranker.inputs.rules.table import BY_IDS
from ranker.inputs.rules.timestamps import Age
from ranker.inputs.seen import filter_of

NOTHING = -1  # a row that begins untrained


@dataclass(frozen=True)
class Known:
    """The values of one feature that have occurred.

    Attributes:
        hashes: uint64, ascending.
        counts: int64, how often each occurred.
        days: int64, number of the last day on which it did.
    """

    hashes: np.ndarray
    counts: np.ndarray
    days: np.ndarray

    @classmethod
    def none(cls) -> Known:
        """Before the first day."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))

    def and_on(self, day: int, hashes: np.ndarray) -> Known:
        """With what occurred on a later day, one hash per occurrence."""
        today, often = np.unique(hashes, return_counts=True)
        every = distinct(np.concatenate([self.hashes, today]))
        counts, days = np.zeros(len(every), np.int64), np.zeros(len(every), np.int64)
        for own, count, when in ((self.hashes, self.counts, self.days), (today, often, day)):
            at = np.searchsorted(every, own)
            counts[at] += count
            days[at] = when
        return Known(every, counts, days)

    def since(self, day: int) -> Known:
        """Those that occurred on a day or later."""
        kept = self.days >= day
        return Known(self.hashes[kept], self.counts[kept], self.days[kept])

    def admitted(self, min_count: int) -> np.ndarray:
        """The hashes that occurred so often."""
        return self.hashes[self.counts >= min_count]


@dataclass(frozen=True)
class Begins:
    """How the rows of a table begin the day.

    Attributes:
        row: int64, the row of yesterday's table that each is a copy of; NOTHING: untrained.
        anew: bool, whether it learns at the speed of a row that has learned nothing.
    """

    row: np.ndarray
    anew: np.ndarray

    @classmethod
    def of(cls, row: np.ndarray, anew: np.ndarray | None = None) -> Begins:
        """Copies; those of nothing learn anew, and others that are given."""
        return cls(row, (row == NOTHING) | (False if anew is None else anew))


def grown(
    inputs: Inputs,
    known: Mapping[str, Known],
    requests: StoredRequests,
    day: int,
    forget: int | None = None,
) -> tuple[Inputs, dict[str, Known], dict[str, Begins]]:
    """The inputs of a model for another day of training.

    Args:
        inputs: as the model has them.
        known: of each feature whose table may change, what occurred on earlier days; empty on the first one.
        requests: of the day.
        day: its number; later days have larger ones.
        forget: days without occurring after which a value loses its row; None: it keeps it.

    Returns:
        the inputs, what has occurred by now, and how the rows of each table that may change begin.
    """
    values = occurred(inputs, requests)
    seen = {
        name: known.get(name, Known.none()).and_on(day, hash_column(column))
        for name, column in values.items()
    }
    if forget is not None:
        seen = {name: one.since(day - forget) for name, one in seen.items()}
    rules: dict[str, Rule] = {ITEM: inputs.items, **inputs.rules}
    begins: dict[str, Begins] = {}
    features = {ITEM: ITEM_ID} | {one.name: one for side in SIDES for one in inputs.features(side)}
    for name, column in values.items():
        before = known.get(name, Known.none())
        rules[name], begins[name] = _grown(rules[name], features[name], before, seen[name], column)
    items = rules.pop(ITEM)
    assert isinstance(items, Hashed)
    return replace(inputs, rules=rules, items=items), seen, begins


def rescaled(
    inputs: Inputs, before: Mapping[str, Moments], requests: StoredRequests
) -> tuple[Inputs, dict[str, Moments]]:
    """The inputs with numbers standardised over another day, too.

    Args:
        inputs: as the model has them.
        before: of each number its moments over earlier days; empty on the first one.
        requests: of the day.

    Returns:
        the inputs, and the moments over all days.
    """
    rules: dict[str, Rule] = dict(inputs.rules)
    standard = {name: rule for name, rule in rules.items() if isinstance(rule, Number | Age)}
    moments = {name: Moments(*before[name].state) if name in before else Moments() for name in standard}
    for frame in chunks(requests):
        for side, table, time_us in tables_of(frame):
            for name, (column, _) in inputs.numbers(side).items():
                if name in standard:
                    values = standard[name].values(table[column].combine_chunks(), time_us)
                    moments[name].add(values)
    for name, rule in standard.items():
        seen = moments[name]
        rules[name] = replace(
            rule, mean=seen.mean, deviation=seen.deviation, least=seen.least, most=seen.most
        )
    return replace(inputs, rules=rules), moments


def occurred(inputs: Inputs, requests: StoredRequests) -> dict[str, pa.Array]:
    """Every value that occurs in some requests, of each feature whose table may change; int64 or strings."""
    found: dict[str, list[pa.Array]] = {ITEM: []}
    for frame in chunks(requests):
        found[ITEM] += [frame.candidates[ITEM].combine_chunks(), pa.array(frame.history.item_id)]
        for side, table, _ in tables_of(frame):
            for name, column in _categories(inputs, side):
                found.setdefault(name, []).append(values_of(table[column].combine_chunks()))
    return {name: pa.concat_arrays(parts) for name, parts in found.items() if parts}


def _categories(inputs: Inputs, side: str) -> Iterator[tuple[str, str]]:
    """Features of a side whose tables may change, and their columns."""
    for one in inputs.features(side):
        if isinstance(inputs.rules[one.name], Dictionary | Hashed):
            yield one.name, column_of(one)


def _grown(rule: Rule, feature: Feature, before: Known, seen: Known, column: pa.Array) -> tuple[Rule, Begins]:
    min_count = int(feature.options.get("min_count", 1))
    if isinstance(rule, Dictionary):
        return _dictionary(rule, seen, min_count, column)
    assert isinstance(rule, Hashed)
    may_grow = (
        feature.options.get("hashed", BY_IDS) == BY_IDS
    )  # else its definition says how many rows it has
    return _hashed(rule, before, seen, min_count, may_grow)


def _dictionary(rule: Dictionary, seen: Known, min_count: int, column: pa.Array) -> tuple[Rule, Begins]:
    """Of the values of today and of yesterday's dictionary those that are admitted, up to LARGEST."""
    had = {value: row for row, value in enumerate(rule.values, FIRST)}
    today = [value for value in pc.unique(column).to_pylist() if value not in had]
    every = [*rule.values, *sorted(today)]
    if not every:
        return rule, Begins.of(np.arange(rule.rows))
    admitted = np.isin(hash_column(pa.array(every)), seen.admitted(min_count))
    # None of yesterday's is put out by want of room.
    kept = [value for value, one in zip(every, admitted.tolist(), strict=True) if one][:LARGEST]
    values = sorted(kept)
    new = Dictionary(tuple(values))
    row = np.array([UNKNOWN, ABSENT, *(had.get(value, UNKNOWN) for value in values)], np.int64)
    return new, Begins.of(row, np.array([False, False, *(value not in had for value in values)]))


def _hashed(rule: Hashed, before: Known, seen: Known, min_count: int, may_grow: bool) -> tuple[Rule, Begins]:
    """The table doubled until it has room, without what was forgotten."""
    rows, admitted = rule.rows, seen.admitted(min_count)
    while may_grow and len(admitted) * ROWS_PER_ID > 2 * rows:
        rows *= 2
    row = np.arange(rows) % rule.rows
    own = Hashed(rows).of(admitted)
    gone = np.setdiff1d(Hashed(rows).of(np.setdiff1d(before.hashes, seen.hashes, assume_unique=True)), own)
    if rule.admitted is None:
        row[gone] = NOTHING
        known = None if rule.seen is None else filter_of(seen.hashes)
        return replace(rule, rows=rows, seen=known), Begins.of(row)
    had = rule.bits[row]  # whose row was somebody's yesterday; until now the others were row 0
    bits = np.zeros(rows, dtype=bool)
    bits[own] = True
    new = bits & ~had
    row[new] = UNKNOWN
    row[gone[gone != UNKNOWN]] = NOTHING
    return Hashed.of_bits(bits), Begins.of(row, new)
