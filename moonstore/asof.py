"""Point-in-time joins as a lookup, instead of Feast's inequality join and window.

Feast joins every entity row with every older feature row of its key and then keeps the newest. Here DuckDB reads the
feature rows of the keys asked for, once and in batches, and ``moonstore.newest`` finds the newest of each batch.
Results are equal (``tests/test_asof_join.py``): the newest row at or before the entity row's time, of equal times the
one created last, null if that row is older than the view's time to live.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ibis
import numpy as np
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
from moonstore.newest import newest
from moonstore.readable import readable

Reader = Callable[[DataSource, str], ibis.Table]
WHOLE = re.compile("0|-?[1-9][0-9]*")  # "007" is another id than 7
UTC = dt.Timestamp(timezone="UTC", scale=6)
NEVER = np.iinfo(np.int64).min  # before every time


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
    """Feast's retrieval job over a join of our own, made when its result is asked for."""

    def __init__(
        self,
        rows: pd.DataFrame,
        time: str,
        lookups: Sequence[Lookup],
        substrait: Sequence[OnDemandFeatureView],
        **rest: Any,
    ) -> None:
        super().__init__(None, **rest)
        self._join = rows, time, lookups
        self._substrait = substrait

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with readable():
            answer = asof_join(*self._join)
        for view in self._substrait:
            answer = view.transform_ibis(ibis.memtable(answer), self.full_feature_names).to_pyarrow()
        return answer

    def to_remote_storage(self) -> list[str]:
        """Write the result to the staging location; the addresses of its files."""
        self.table = ibis.memtable(self.to_arrow())
        addresses: list[str] = super().to_remote_storage()
        return addresses


def why_not(
    views: Sequence[FeatureView], entity_rows: object, filter_by_created_timestamp: bool
) -> str | None:
    """The reason why a lookup of the newest row cannot answer this; None: it can."""
    if not isinstance(entity_rows, pd.DataFrame):
        return "the entity rows are not a data frame"
    for view in views:
        source = view.batch_source
        if filter_by_created_timestamp and source is not None and source.created_timestamp_column:
            return f"{view.name} is filtered by its created timestamp as well as by its event timestamp"
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

    Raises:
        StoreError: the entity rows have a column named as a feature is.
    """
    time = offline_utils.infer_event_timestamp_from_entity_df(dict(entity_rows.dtypes))
    stamps = entity_rows[time].infer_objects()
    if isinstance(stamps.dtype, pd.ArrowDtype):
        stamps = pd.Series(stamps.tolist(), index=stamps.index)
    if pd.api.types.is_string_dtype(stamps) or pd.api.types.is_object_dtype(stamps):
        stamps = pd.to_datetime(stamps, utc=True)
    stamps = stamps.dt.as_unit("us")
    taken = [name for one in lookups for name in one.features.values() if name in entity_rows.columns]
    if taken:
        raise StoreError(
            f"expected entity rows without columns named as features are, found {', '.join(taken)}. Rename them, or "
            f"ask for full feature names."
        )
    rows = entity_rows.assign(**{time: stamps})
    metadata = RetrievalMetadata(
        features=list(references),
        keys=[name for name in rows.columns if name != time],
        min_event_timestamp=stamps.min().to_pydatetime(),
        max_event_timestamp=stamps.max().to_pydatetime(),
    )
    substrait = [view for view in transforms if view.mode == "substrait"]
    rest["on_demand_feature_views"] = [view for view in transforms if view.mode != "substrait"]
    return AsofJob(rows, time, lookups, substrait, metadata=metadata, **rest)


def asof_join(rows: pd.DataFrame, time: str, lookups: Sequence[Lookup]) -> pa.Table:
    """Every row of ``rows``, in order, with the features of each lookup as of its ``time``, or null."""
    stamps = rows[time].dt.tz_convert(None) if rows[time].dt.tz else rows[time]
    at = stamps.to_numpy("datetime64[us]").view(np.int64)
    joined = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()
    for one in lookups:
        found = _features(one, rows, at)
        for name in found.column_names:
            joined = joined.append_column(name, found.column(name))
    return joined


def _features(one: Lookup, rows: pd.DataFrame, at: np.ndarray) -> pa.Table:
    """The features of a lookup as of each row's moment ``at``, int64 us (N)."""
    keys = rows[list(one.keys.values())]
    asked = np.zeros(len(keys), np.int64)  # the number of each row's key; a view without entities has one
    if one.keys:
        asked = keys.groupby(list(keys.columns), sort=False, observed=True).ngroup().to_numpy()  # -1: null
    _, first = np.unique(asked, return_index=True)
    events = _events(one, keys.iloc[first[asked[first] >= 0]]).to_pyarrow()
    code, time, created = (_integers(events.column(name)) for name in ("code", "time", "created"))
    event = newest(code, time, created, asked, at)
    found = event >= 0
    if one.ttl:
        found[found] = at[found] - time[event[found]] <= one.ttl // US
    # First the rows that anybody gets: rows of a table in pieces are taken from a copy in one piece.
    got = np.zeros(len(events), bool)
    got[event[found]] = True
    place = np.zeros(len(at), np.int64)
    place[found] = (np.cumsum(got) - 1)[event[found]]
    values = events.drop_columns(["code", "time", "created"]).filter(pa.array(got))
    values = values.take(pa.array(place, mask=~found))
    return values.rename_columns(list(one.features.values()))


def _events(one: Lookup, keys: pd.DataFrame) -> ibis.Table:
    """The source's rows of these distinct keys: number of the key, event time, created time, and the features."""
    columns = {f"key{place}": one.table[key] for place, key in enumerate(one.keys)}
    columns |= {f"feature{place}": one.table[name] for place, name in enumerate(one.features)}
    columns["time"] = one.table[one.time].cast(UTC)
    columns["created"] = one.table[one.created].cast(UTC) if one.created else ibis.null(UTC)
    events = one.table.select(**columns).filter(_.time.notnull())
    asked = {
        f"asked{place}": _as_stored(keys[column], one.table[key])
        for place, (key, column) in enumerate(one.keys.items())
    }
    numbered = ibis.memtable(pd.DataFrame({**asked, "code": np.arange(len(keys))}))
    same = [events[f"key{place}"] == numbered[f"asked{place}"] for place in range(len(asked))]
    return events.join(numbered, same).drop(*(name for name in columns if name.startswith("key")), *asked)


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.int64()).fill_null(NEVER).to_numpy()


def _as_stored(asked: pd.Series, key: ibis.Column) -> pd.Series:
    """Key values in the type they are stored in, where it is another: text for integers, or integers for text.

    Raises:
        StoreError: a text is no integer as one is written.
    """
    kind = pd.api.types.infer_dtype(asked)
    if key.type().is_integer() and kind == "string":
        bad = [text for text in asked if not WHOLE.fullmatch(text)]
        if bad:
            raise StoreError(
                f"{asked.name}: expected integers, as {key.get_name()} is stored, found {len(bad)} of "
                f"{len(asked)} other texts ({', '.join(map(repr, bad[:3]))}). Send the ids as they are stored."
            )
        return asked.astype("int64")
    if key.type().is_string() and kind == "integer":
        return asked.astype("int64").astype("string")
    return asked


def _keys(view: FeatureView) -> dict[str, str]:
    return view.projection.join_key_map or {
        entity.name: entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID
    }
