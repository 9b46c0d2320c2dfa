"""Point-in-time joins as native ASOF joins, instead of Feast's inequality join and window.

Feast joins every entity row with every older feature row of its key and then keeps the newest; DuckDB's ASOF join
scans both sides once. Results are equal (``tests/test_asof_join.py``): the newest row at or before the entity row's
time, of equal times the one created last, null if that row is older than the view's time to live.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from ibis import _
from ibis.expr import datatypes as dt

from moonstore.errors import StoreError
from moonstore.exact import ExactIbisJob
from moonstore.freshness import US
from moonstore.readable import readable

Reader = Callable[[DataSource, str], ibis.Table]
WHOLE = re.compile("0|-?[1-9][0-9]*")  # "007" is another id than 7
UTC = dt.Timestamp(timezone="UTC", scale=6)
LATEST = pd.Timestamp("2262-01-01", tz="UTC")  # sorts after every created timestamp
EARLIEST = pd.Timestamp("1678-01-01", tz="UTC")  # sorts before every created timestamp


@dataclass(frozen=True)
class Lookup:
    """The rows of one view and the features requested from them.

    Attributes:
        table: the view's source, mapped to the names the view uses.
        time: name of the event timestamp.
        created: name of the created timestamp, which decides between rows of equal time; None: there is none.
        keys: column of ``table`` -> column of the entity rows.
        features: column of ``table`` -> name in the output.
        ttl: time to live of a row; zero or None: unlimited.
    """

    table: ibis.Table
    time: str
    created: str | None
    keys: dict[str, str]
    features: dict[str, str]
    ttl: timedelta | None


class AsofJob(ExactIbisJob):
    """Feast's retrieval job, plus a check that each entity row gives exactly one result row."""

    def __init__(self, table: ibis.Table, rows: int, **rest: Any) -> None:
        super().__init__(table, **rest)
        self._rows = rows

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with readable():
            answer = super()._to_arrow_internal(timeout)
        if len(answer) != self._rows:
            raise StoreError(f"expected a row for each of {self._rows} entity rows, found {len(answer)}")
        return answer


def why_not(
    views: Sequence[FeatureView], entity_rows: object, filter_by_created_timestamp: bool
) -> str | None:
    """The reason why an ASOF join cannot answer this; None: it can."""
    if not isinstance(entity_rows, pd.DataFrame):
        return "the entity rows are not a data frame"
    for view in views:
        source = view.batch_source
        if filter_by_created_timestamp and source is not None and source.created_timestamp_column:
            return f"{view.name} is filtered by its created timestamp as well as by its event timestamp"
        if DUMMY_ENTITY_ID in _keys(view):
            return f"{view.name} has no entity"
    return None


def lookup(view: FeatureView, references: Sequence[str], full_names: bool, table: ibis.Table) -> Lookup:
    """The features of ``view`` among ``references`` ("view:feature"), to be read from ``table``.

    Args:
        view: a view with a batch source.
        references: of all views.
        full_names: whether to name features "view__feature".
        table: every row of the source.
    """
    source = view.batch_source
    assert source is not None
    renamed = {new: old for old, new in source.field_mapping.items() if old in table.columns}
    asked = [
        name for prefix, name in (r.split(":") for r in references) if prefix == view.projection.name_to_use()
    ]
    prefix = f"{view.projection.name_alias or view.name}__" if full_names else ""
    return Lookup(
        table.rename(renamed),
        source.timestamp_field,
        source.created_timestamp_column or None,
        _keys(view),
        {name: prefix + name for name in asked},
        view.ttl,
    )


def asof_job(
    lookups: Sequence[Lookup],
    entity_rows: pd.DataFrame,
    references: Sequence[str],
    transforms: Sequence[OnDemandFeatureView],
    **rest: Any,
) -> AsofJob:
    """The job that joins ``entity_rows`` with every lookup.

    Args:
        lookups: one per view.
        entity_rows: keys, one column of times, and any other columns to pass through.
        references: what was requested, also from on-demand views, as "view:feature".
        transforms: the requested on-demand views.
        rest: further arguments of Feast's job.
    """
    time = offline_utils.infer_event_timestamp_from_entity_df(dict(entity_rows.dtypes))
    stamps = entity_rows[time].infer_objects()
    if pd.api.types.is_string_dtype(stamps) or pd.api.types.is_object_dtype(stamps):
        stamps = pd.to_datetime(stamps, utc=True)
    rows = entity_rows.assign(**{time: stamps})
    joined = asof_join(rows, time, lookups)
    substrait = [view for view in transforms if view.mode == "substrait"]
    for view in substrait:
        joined = view.transform_ibis(joined, rest["full_feature_names"])
    metadata = RetrievalMetadata(
        features=list(references),
        keys=[name for name in rows.columns if name != time],
        min_event_timestamp=stamps.min().to_pydatetime(),
        max_event_timestamp=stamps.max().to_pydatetime(),
    )
    rest["on_demand_feature_views"] = [view for view in transforms if view.mode != "substrait"]
    return AsofJob(joined, len(rows), metadata=metadata, **rest)


def asof_join(rows: pd.DataFrame, time: str, lookups: Sequence[Lookup]) -> ibis.Table:
    """Every row of ``rows``, in order, with the features of each lookup as of its ``time``, or null."""
    lookups, names = (
        list(lookups),
        [*rows.columns, *(name for one in lookups for name in one.features.values())],
    )
    own = _prefix(names)
    row, at, order = own + "row", own + "at", own + "order"
    for number, one in enumerate(lookups):
        rows, lookups[number] = _with_keys(rows, one, f"{own}{number}_asked_")
    joined = ibis.memtable(rows.assign(**{row: range(len(rows))}))
    joined = joined.mutate(**{at: joined[time].cast(UTC)})
    # Of rows with equal times the one created last wins: the join orders by (time, created).
    joined = joined.mutate(**{order: ibis.struct({"time": _[at], "created": ibis.literal(LATEST, UTC)})})
    for number, one in enumerate(lookups):
        joined = _with(joined, one, at, order, f"{own}{number}_")
    return joined.order_by(row).select(*names)


def _prefix(names: Sequence[str]) -> str:
    """What no name of the caller's begins with: the beginning of the names of columns of our own."""
    prefix = "__"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


def _with_keys(rows: pd.DataFrame, one: Lookup, prefix: str) -> tuple[pd.DataFrame, Lookup]:
    """The rows with columns of a key's stored type where theirs is another: text for integers, or integers for text.

    Raises:
        StoreError: a text is no integer as one is written.
    """
    keys = dict(one.keys)
    for key, column in one.keys.items():
        of, asked = one.table[key].type(), rows[column]
        kind = pd.api.types.infer_dtype(asked, skipna=True)
        if of.is_integer() and kind == "string":
            bad = [text for text in asked.dropna() if not WHOLE.fullmatch(text)]
            if bad:
                raise StoreError(
                    f"{column}: expected integers, as {key} is stored, found {len(bad)} of {len(asked)} other texts "
                    f"({', '.join(map(repr, bad[:3]))}). Send the ids as they are stored."
                )
            rows = rows.assign(**{prefix + key: asked.astype("Int64")})
        elif of.is_string() and kind == "integer":
            rows = rows.assign(**{prefix + key: asked.astype("Int64").astype("string")})
        else:
            continue
        keys[key] = prefix + key
    return rows, replace(one, keys=keys)


def _with(rows: ibis.Table, one: Lookup, at: str, order: str, prefix: str) -> ibis.Table:
    stamp = one.table[one.time].cast(UTC)
    columns = {prefix + key: one.table[key] for key in one.keys}
    columns |= {prefix + name: one.table[name] for name in one.features}
    columns[prefix + "time"] = stamp
    left = at
    if one.created:
        left = order
        created = one.table[one.created].cast(UTC).fill_null(ibis.literal(EARLIEST, UTC))
        columns[prefix + "time"] = ibis.struct({"time": stamp, "created": created})
    found = (
        one.table.filter(stamp.notnull()).select(**columns) if one.created else one.table.select(**columns)
    )
    same = [rows[column] == found[prefix + key] for key, column in one.keys.items()]
    joined = rows.asof_join(found, on=rows[left] >= found[prefix + "time"], predicates=same)
    matched = joined[prefix + "time"]
    since = matched["time"] if one.created else matched
    values = {name: joined[prefix + feature] for feature, name in one.features.items()}
    if one.ttl:
        age = ibis.interval(microseconds=one.ttl // US)  # a literal takes whole units only
        alive = since + age >= joined[at]
        values = {name: alive.ifelse(value, ibis.null(value.type())) for name, value in values.items()}
    return joined.mutate(**values).drop(*columns)


def _keys(view: FeatureView) -> dict[str, str]:
    return view.projection.join_key_map or {entity.name: entity.name for entity in view.entity_columns}
