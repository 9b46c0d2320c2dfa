"""What a request to Feast's front door asks for, without a protobuf object per key.

Feast resolves features, views and keys, and keeps what it found for the next request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feast import FeatureService, FeatureView, utils
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from moonstore import keys

Grouped = Sequence[tuple[FeatureView, list[str]]]
NATIVE = {ValueType.INT64: int, ValueType.STRING: str}


@dataclass(frozen=True)
class Request:
    """A request that can be answered from columns.

    Attributes:
        grouped: views and the features asked of each.
        join_keys: entity -> join key.
        keys: join key -> its values, integers or texts.
        whole: makes Feast's answer with the join keys alone.
    """

    grouped: Grouped
    join_keys: dict[str, str]
    keys: dict[str, list[Any]]
    whole: Callable[[], GetOnlineFeaturesResponse]


def request(
    registry: BaseRegistry, project: str, features: list[str] | FeatureService, rows: Any, full_names: bool
) -> Request | None:
    """What is asked for; None: Feast has to answer, because of an on-demand view or of keys of other types.

    Args:
        registry, project: where the views are defined.
        features: "view:feature", or a service.
        rows: Feast's ``entity_rows``, as a list of rows or as columns.
        full_names: whether features are named "view__feature".

    Raises:
        ValueError: rows that have not all the same keys; and whatever Feast raises about a wrong request.
    """
    columns = _columns(rows) if isinstance(rows, list) else rows
    context = utils._get_cached_request_context(registry, project, features, full_names)
    _, on_demand, join_keys, types, known, grouped, _, _, entityless = context
    if on_demand:
        return None
    native = None if entityless else _native(columns, known, types)
    if native is not None:

        def whole() -> GetOnlineFeaturesResponse:
            answer = GetOnlineFeaturesResponse(results=[])
            protos = {key: python_values_to_proto_values(found, types[key]) for key, found in native.items()}
            utils._populate_result_rows_from_columnar(answer, protos)
            return answer

        return Request([(view, list(names)) for view, names in grouped], join_keys, native, whole)
    prepared = utils._prepare_entities_to_read_from_online_store(
        registry, project, features, columns, full_names
    )
    found, answer = all_natives(prepared[0]), prepared[-1]
    return None if found is None else Request(prepared[1], join_keys, found, lambda: answer)


def all_natives(values: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Join keys as Python values; None: one of them is neither integers nor texts, or has none."""
    found = {name: native for name, protos in values.items() if (native := keys.natives(protos)) is not None}
    return found if len(found) == len(values) else None


def _native(
    columns: Mapping[str, Any], known: set[str], types: dict[str, ValueType]
) -> dict[str, list[Any]] | None:
    """Join keys that are given just as they are stored, so that Feast need not convert them; None: they are not."""
    for name, values in columns.items():
        of = NATIVE.get(types.get(name, ValueType.UNKNOWN)) if name in known else None
        if of is None or not isinstance(values, list) or set(map(type, values)) != {of}:
            return None
        if of is int and not (-(2**63) <= min(values) and max(values) < 2**63):
            return None
    return dict(columns) if len({len(values) for values in columns.values()}) == 1 else None


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = rows[0].keys()
    if any(row.keys() != names for row in rows):
        raise ValueError("All entity_rows must have the same keys.")
    return {name: [row[name] for row in rows] for name in names}
