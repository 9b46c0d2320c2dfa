"""The signature of a model: every feature that its FeatureService names, with its role and how it is read.

Nothing else says what a model reads. Training frames, online reads and the models are derived from the signature,
so that a feature is added by a ``Field`` of a view and its name in the service. The kind of a feature follows from
its Feast type, its role from the entity of its view; tags of the ``Field`` say what these do not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from feast import FeatureService, FeatureStore, FeatureView, Field, OnDemandFeatureView, RequestSource
from feast.base_feature_view import BaseFeatureView
from feast.errors import FeastObjectNotFoundException
from feast.types import (
    Array,
    Bool,
    ComplexFeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    PrimitiveFeastType,
    String,
    UnixTimestamp,
)  # fmt: skip

from feature_repo.feature_tags import KINDS, ROLES, options_of, tagged_kind, tagged_roles
from moonstore.errors import StoreError

__all__ = ["KINDS", "ROLES", "Feature", "Signature", "signature_of"]

# Feast type -> (the kinds it can be, by default the first; type of the column in a frame)
TYPES: dict[PrimitiveFeastType | ComplexFeastType, tuple[tuple[str, ...], pa.DataType]] = {
    Int32: (("number", "category", "timestamp"), pa.int32()),
    Int64: (("number", "category", "timestamp"), pa.int64()),
    Float32: (("number",), pa.float32()),
    Float64: (("number",), pa.float64()),
    String: (("category",), pa.string()),
    Bool: (("boolean", "category"), pa.bool_()),
    UnixTimestamp: (("timestamp",), pa.timestamp("s", "UTC")),  # an online store keeps whole seconds
    Array(String): (("categories",), pa.list_(pa.string())),
    Array(Int32): (("categories",), pa.list_(pa.int32())),
    Array(Int64): (("categories",), pa.list_(pa.int64())),
    Array(Float32): (("vector",), pa.list_(pa.float32())),
    Array(Float64): (("vector",), pa.list_(pa.float64())),
}
ROLE_OF = {"user": "user", "item": "candidate", "query": "query"}  # entity -> role of its features
# Columns of a frame that are no features; a feature of this name would hide one.
RESERVED = {
    "request_id", "user_id", "time", "query_id", "item_id", "label", "position", "part", "user_events",
    "user_found", "item_found", "log_position", "candidates", "item_row", "row_id", "event_timestamp",
}  # fmt: skip
RESERVED_PREFIX = "match_"
EMBEDDING_VIEW = re.compile(r"(item|query)_embedding_v\d+")


@dataclass(frozen=True)
class Feature:
    """One feature of a model.

    Attributes:
        name: its column in a frame, unique within a signature.
        view: feature view or on-demand view.
        field: its name there.
        role: what it is a feature of, one of ``ROLES``.
        kind: how a model reads it, one of ``KINDS``.
        dtype: of the column in a frame. A timestamp kept as an integer is in microseconds since 1970 UTC.
        options: what the tags of its field say beyond kind and role, see ``feature_tags.OPTIONS``.
    """

    name: str
    view: str
    field: str
    role: str
    kind: str
    dtype: pa.DataType
    options: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def reference(self) -> str:
        """Feast's name of the feature."""
        return f"{self.view}:{self.field}"

    @property
    def of_embedding(self) -> bool:
        """Whether it is a vector of one of our embeddings, which every version of it keeps in views of its own."""
        return EMBEDDING_VIEW.fullmatch(self.view) is not None


@dataclass(frozen=True)
class Signature:
    """What one FeatureService lets a model read.

    Attributes:
        service: its name.
        features: in the order of the service.
    """

    service: str
    features: tuple[Feature, ...]

    def of(self, role: str) -> tuple[Feature, ...]:
        """The features of one role."""
        return tuple(one for one in self.features if one.role == role)

    def to_json(self) -> dict[str, Any]:
        """JSON values that ``from_json`` understands."""
        features = [
            {**vars(one), "dtype": str(one.dtype), "options": dict(one.options)} for one in self.features
        ]
        return {"service": self.service, "features": features}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Signature:
        """The inverse of ``to_json``; KeyError, TypeError or ValueError where it is no signature."""
        names = {str(dtype): dtype for _, dtype in TYPES.values()}
        features = [Feature(**{**one, "dtype": names[one["dtype"]]}) for one in content["features"]]
        return cls(content["service"], tuple(features))

    def difference(self, other: Signature) -> list[str]:
        """Sentences that name the features ``other`` has added, lost or changed; none if they are equal.

        Another version of our embedding is no difference: models record which embedding they belong to.
        """
        mine, theirs = ({one.name: one for one in each.features} for each in (self, other))
        said = [f"added: {_named(theirs[name])}" for name in theirs if name not in mine]
        said += [f"lost: {_named(mine[name])}" for name in mine if name not in theirs]
        return said + [
            f"changed: {name}, {', '.join(_changes(mine[name], theirs[name]))}"
            for name in mine
            if name in theirs and any(_changes(mine[name], theirs[name]))
        ]


def signature_of(service: FeatureService, views: FeatureStore | Iterable[BaseFeatureView]) -> Signature:
    """Derive what a model reads from its FeatureService.

    Args:
        service: as defined, or as read from the registry.
        views: the store that has the views of the service, or these views as defined.

    Raises:
        StoreError: the service names a view or a field that is not there, two features have one name, a type has no
            rule, a source has no time, a view has no role, or a tag or its value is unknown.
    """
    known = {
        str(view.name): view for view in (all_views(views) if isinstance(views, FeatureStore) else views)
    }
    found: dict[str, Feature] = {}
    for projection in service.feature_view_projections:
        view = known.get(projection.name)
        if view is None:
            raise StoreError(
                f"service {service.name}: expected its view {projection.name} in the store, found "
                f"{', '.join(sorted(known))}. Take the view out of the service, or define it, and run 'feast apply'."
            )
        check_source(view)
        fields = {one.name: one for one in view.features}
        for name in (one.name for one in projection.features):
            if name not in fields:
                raise StoreError(
                    f"service {service.name}: expected the field {name} in view {view.name}, found "
                    f"{', '.join(fields)}. Take it out of the service, or add the Field, and run 'feast apply'."
                )
            for feature in features_of(view, fields[name], known):
                _add(found, feature, service.name)
    return Signature(service.name, tuple(found.values()))


def open_signature(store: FeatureStore, service: str) -> Signature:
    """The signature of a registered service.

    Raises:
        StoreError: there is no such service, or it is no signature (``signature_of``).
    """
    try:
        found = store.get_feature_service(service)
    except FeastObjectNotFoundException:
        known = ", ".join(sorted(str(one.name) for one in store.list_feature_services())) or "none"
        raise StoreError(
            f"expected the feature service {service}, found {known}. Define it in feature_repo/services.py or "
            f"feature_repo/mine, and run 'feast apply'."
        ) from None
    return signature_of(found, store)


def united(signatures: Iterable[Signature]) -> tuple[Feature, ...]:
    """The features of several signatures, each once.

    Raises:
        StoreError: two of one name are read differently.
    """
    found: dict[str, Feature] = {}
    for signature in signatures:
        for one in signature.features:
            if found.setdefault(one.name, one) != one:
                raise StoreError(
                    f"service {signature.service}: expected {one.name} to be {found[one.name].reference}, as in the "
                    f"other services, found {one.reference}. Rename the Field of one."
                )
    return tuple(found.values())


def features_of(view: BaseFeatureView, one: Field, views: Mapping[str, BaseFeatureView]) -> Iterator[Feature]:
    """The features that a field makes: one of each of its roles.

    Args:
        view: of the field.
        one: the field.
        views: by name; an on-demand view takes its role from those it reads.

    Raises:
        StoreError: its type has no rule, or a tag or its value is unknown.
    """
    where = f"{view.name}:{one.name}"
    kinds, dtype = TYPES.get(one.dtype, ((), None))
    if dtype is None:
        raise StoreError(
            f"{where}: expected a type that models read ({', '.join(map(str, TYPES))}), found {one.dtype}. "
            f"Change the type of the Field, or take it out of the service."
        )
    tags = dict(one.tags)
    kind = tagged_kind(where, tags, kinds)
    options = options_of(where, tags, kind)
    for role in tagged_roles(where, tags, role_of(view, views)):
        name = f"behaviour_{one.name}" if role == "behaviour" else one.name
        yield Feature(name, str(view.name), one.name, role, kind, dtype, options)


def role_of(view: BaseFeatureView, views: Mapping[str, BaseFeatureView]) -> str:
    """The role of a view's features: from its entity, or from what an on-demand view reads.

    An on-demand view that reads a view of items is computed for each candidate; any other one is computed once per
    request, and has the role of the views it reads unless these differ or it reads the request as well.

    Raises:
        StoreError: it has another entity than user, item or query, or not exactly one.
    """
    if isinstance(view, OnDemandFeatureView):
        roles = {role_of(views[name], views) for name in read_by(view) if name in views}
        if "candidate" in roles:
            return "candidate"
        return roles.pop() if len(roles) == 1 and not view.source_request_sources else "request"
    entities = [str(name) for name in getattr(view, "entities", [])]
    if len(entities) != 1 or entities[0] not in ROLE_OF:
        raise StoreError(
            f"view {view.name}: expected one entity of {', '.join(ROLE_OF)}, found {', '.join(entities) or 'none'}. "
            f"A model has no place for its features: join them to one of these in an on-demand view or in the source."
        )
    return ROLE_OF[entities[0]]


def read_by(view: OnDemandFeatureView) -> list[str]:
    """Names of the views that an on-demand view reads."""
    return [projection.name for projection in view.source_feature_view_projections.values()]


def request_fields(view: OnDemandFeatureView) -> dict[str, Field]:
    """The fields an on-demand view reads from the request, by name."""
    sources: Iterable[RequestSource] = view.source_request_sources.values()
    return {one.name: one for source in sources for one in source.schema}


def check_source(view: BaseFeatureView) -> None:
    """Refuse a view whose source has no time.

    Raises:
        StoreError: nobody could tell which of its rows were known at a request.
    """
    if not isinstance(view, FeatureView):
        return
    source = view.batch_source
    if source is None or not source.timestamp_field:
        raise StoreError(
            f"view {view.name}: expected a source with a time, found "
            f"{'no source' if source is None else f'{source.name} without timestamp_field'}. Name the column that "
            f"says when each row could first be known: without it training would read the future."
        )


def all_views(store: FeatureStore) -> list[BaseFeatureView]:
    """The feature views and on-demand views of a store."""
    return [*store.list_feature_views(), *store.list_on_demand_feature_views()]


def _add(found: dict[str, Feature], feature: Feature, service: str) -> None:
    other = found.get(feature.name)
    if other is not None:
        raise StoreError(
            f"service {service}: expected features of different names, found {other.reference} and "
            f"{feature.reference}, both {feature.name}. Rename the Field of one, or take it out of the service."
        )
    if feature.name in RESERVED or feature.name.startswith(RESERVED_PREFIX):
        raise StoreError(
            f"service {service}: {feature.reference} has the name of a column that every frame has. "
            f"Rename the Field."
        )
    found[feature.name] = feature


def _named(feature: Feature) -> str:
    return f"{feature.name} ({feature.reference}, {feature.kind} of the {feature.role})"


def _changes(before: Feature, after: Feature) -> Iterator[str]:
    for what in ("view", "field", "role", "kind", "dtype", "options"):
        old, new = getattr(before, what), getattr(after, what)
        if old != new and not (what == "view" and before.of_embedding and after.of_embedding):
            yield f"{'type' if what == 'dtype' else what} {old} -> {new}"
