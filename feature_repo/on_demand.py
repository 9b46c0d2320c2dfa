"""What a frame takes from the store, and the on-demand views computed from that: one code offline and online.

An on-demand view is computed by Feast's own call of its function, once per request, or once per candidate where it
reads a view of items. Beside views it can read what the caller sends with a request (a ``RequestSource``), and the
time of the request: a field ``time_us`` Int64, in microseconds since 1970 UTC, is filled by the frame itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView, OnDemandFeatureView

from dataset.contracts import DataError
from feature_repo.columns import FOUND, as_read, by_view, in_frames, nothing
from feature_repo.signature import TYPES, Feature, all_views, features_of, request_fields
from moonstore.errors import StoreError

TIME_US = "time_us"
STORED = ("user", "query", "candidate")  # roles of features that the store keeps


@dataclass(frozen=True)
class Reads:
    """What frames with some features read and compute.

    Attributes:
        stored: role -> features read from the store: those asked for, ``columns.FOUND``, and those that on-demand
            views read, named <view>__<field>.
        asked: role -> the features among them that the frame is for.
        computed: on-demand views and the features that each of them gives.
        context: what the caller sends: name -> type; in a frame's requests as request__<name>.
    """

    stored: Mapping[str, tuple[Feature, ...]]
    asked: Mapping[str, tuple[Feature, ...]]
    computed: tuple[tuple[OnDemandFeatureView, tuple[Feature, ...]], ...]
    context: Mapping[str, pa.DataType]

    def of_candidates(self) -> tuple[Feature, ...]:
        """Features that are computed per candidate."""
        return tuple(one for _, some in self.computed for one in some if one.role == "candidate")

    def sent(self, given: Mapping[str, Any]) -> dict[str, pa.Array]:
        """The columns of one request's context, null where the caller sent nothing.

        Raises:
            DataError: a name that no on-demand view reads, or a value of another type.
        """
        for name in given:
            if name not in self.context:
                close = get_close_matches(name, list(self.context), 1)
                raise DataError(
                    f"context: expected some of {', '.join(self.context) or 'nothing'}, found {name!r}"
                    + (f". Did you mean {close[0]}?" if close else ".")
                )
        return {f"request__{name}": _value(name, given.get(name), of) for name, of in self.context.items()}

    def logged(self, rows: pa.Table) -> dict[str, pa.Array]:
        """The columns of the context of logged requests, one row each, null where it was not logged."""
        return {
            f"request__{name}": as_read(rows.column(name).combine_chunks(), dtype)
            if name in rows.column_names
            else pa.nulls(len(rows), dtype)
            for name, dtype in self.context.items()
        }


def reads_of(store: FeatureStore, features: Sequence[Feature]) -> Reads:
    """What frames with these features read and compute.

    Raises:
        StoreError: an on-demand view reads something of a type that frames cannot hold.
    """
    views = {str(view.name): view for view in all_views(store)}
    asked = in_frames(features, "user", "query", "request", "candidate")
    kept = {role: tuple(f for f in asked if f.role == role and not _computed(views, f)) for role in STORED}
    stored = {role: dict.fromkeys(some) for role, some in kept.items()}
    for role, one in FOUND.items():
        stored[role][one] = None
    computed, context = [], {}
    for name, some in by_view([one for one in asked if _computed(views, one)]).items():
        view = views[name]
        assert isinstance(view, OnDemandFeatureView)
        computed.append((view, tuple(some)))
        for source in inputs_of(view, views):
            stored[source.role][source] = None
        for field in request_fields(view).values():
            if field.name != TIME_US:
                context[field.name] = _type(name, field)
    return Reads({role: tuple(some) for role, some in stored.items()}, kept, tuple(computed), context)


def request_table(
    reads: Reads,
    identity: Mapping[str, pa.Array],
    users: Mapping[str, pa.Array],
    inputs: Mapping[str, pa.Array],
) -> pa.Table:
    """The requests of a frame.

    Args:
        reads: of the frame.
        identity: request_id, user_id, time timestamp[us, UTC], query_id, R values each.
        users: the users' columns (``columns.user_columns``).
        inputs: features stored of users and queries, and the context.
    """
    asked = {one.name: inputs[one.name] for one in reads.asked["query"]}
    read = {f"request__{name}" for name in reads.context} | {
        name for view, _ in reads.computed for name in _names(view)
    }
    hidden = {name: column for name, column in inputs.items() if name in read}
    time_us = identity["time"].cast(pa.int64()).to_numpy()
    computed = compute(reads, False, inputs, time_us)
    return pa.table({**identity, **users, **asked, **hidden, **computed})


def compute(
    reads: Reads, of_candidates: bool, columns: Mapping[str, pa.Array], time_us: np.ndarray
) -> dict[str, pa.Array]:
    """The features of on-demand views.

    Args:
        reads: of the frame.
        of_candidates: those per candidate, or those per request.
        columns: N values of each input, named as in ``Reads``; what candidates' views read of users, queries and the
            context is in the requests of a frame.
        time_us: int64 [N], when each one's request was made.

    Raises:
        StoreError: a view fails, or does not give what its schema says.
    """
    found: dict[str, pa.Array] = {}
    for view, some in reads.computed:
        if (some[0].role == "candidate") != of_candidates:
            continue
        if not len(time_us):
            found |= nothing(some, 0)
            continue
        inputs = {name: columns[name] for name in _names(view)}
        for name in request_fields(view):
            inputs[name] = pa.array(time_us) if name == TIME_US else columns[f"request__{name}"]
        found |= _given(view, some, inputs, len(time_us))
    return found


def _given(
    view: OnDemandFeatureView, some: Sequence[Feature], inputs: Mapping[str, pa.Array], count: int
) -> dict[str, pa.Array]:
    try:
        output = _transformed(view, pa.table(dict(inputs)))
        columns = {one.name: as_read(_one(output[one.field]), one.dtype) for one in some}
    except Exception as error:  # whatever a function of the user's raises, or gives that is not of the type
        raise StoreError(
            f"on-demand view {view.name}: failed on {count} rows: {type(error).__name__}: {error}. Its function must "
            f"give {', '.join(f'{one.field} ({one.dtype})' for one in some)} and stand nulls in what it reads."
        ) from error
    lengths = {name: len(column) for name, column in columns.items() if len(column) != count}
    if lengths:
        raise StoreError(f"on-demand view {view.name}: expected {count} values each, found {lengths}.")
    return columns


def _transformed(view: OnDemandFeatureView, table: pa.Table) -> Mapping[str, Any]:
    """What Feast's reader would compute."""
    if view.mode != "python":
        answer = view.transform_arrow(table)
        return {name: answer.column(name) for name in answer.column_names}
    if not view.singleton:
        found: Mapping[str, Any] = view.transform_dict(table.to_pydict())
        return found
    rows = [view.transform_dict({name: [value] for name, value in row.items()}) for row in table.to_pylist()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _one(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values)


def _computed(views: Mapping[str, Any], feature: Feature) -> bool:
    return isinstance(views.get(feature.view), OnDemandFeatureView)


def _names(view: OnDemandFeatureView) -> Iterator[str]:
    for projection in view.source_feature_view_projections.values():
        yield from (f"{projection.name}__{field.name}" for field in projection.features)


def inputs_of(view: OnDemandFeatureView, views: Mapping[str, Any]) -> Iterator[Feature]:
    """What an on-demand view reads of other views."""
    for projection in view.source_feature_view_projections.values():
        source = views.get(projection.name)
        if not isinstance(source, FeatureView):
            raise StoreError(
                f"on-demand view {view.name}: expected to read feature views and request sources, found "
                f"{projection.name}. Run 'feast apply' after defining it."
            )
        for field in projection.features:
            first = next(features_of(source, field, views))
            role = "candidate" if first.role == "behaviour" else first.role
            yield replace(first, name=f"{source.name}__{field.name}", role=role)


def _type(view: str, field: Any) -> pa.DataType:
    if field.dtype not in TYPES:
        raise StoreError(
            f"on-demand view {view}: expected a request field of {', '.join(map(str, TYPES))}, found {field.name} of "
            f"{field.dtype}."
        )
    return TYPES[field.dtype][1]


def _value(name: str, value: Any, dtype: pa.DataType) -> pa.Array:
    try:
        return pa.array([value], dtype)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"context: expected {name} as {dtype}, found {type(value).__name__}.") from None
