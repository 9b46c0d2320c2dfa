"""Online features of N entities as numpy columns: the read path of serving.

``read_matrix`` decodes the bytes that Feast wrote. Where that is not possible (another store, a sentinel, TLS,
several join keys, a Redis Cluster while it changes) it calls Feast's own reader, the slow twin that tests compare
with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView, RepoConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis.exceptions import ClusterError

from moonstore.decode import Column, by_protobuf
from moonstore.freshness import is_fresh

Asked = Sequence[tuple[FeatureView, Sequence[str]]]


@dataclass(frozen=True)
class Matrix:
    """The stored rows of N entities in one view.

    Attributes:
        columns: feature -> its N values and their validity.
        found: bool of shape (N), whether the view has a row for the entity.
        event_us: int64 of shape (N), the row's event time in microseconds since 1970 UTC; 0 where not found.
    """

    columns: dict[str, Column]
    found: np.ndarray
    event_us: np.ndarray

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, feature: str) -> np.ndarray:
        """The values of one feature; zero, "" or an empty array where missing."""
        return self.columns[feature].values

    def fresh(self, view: FeatureView) -> Matrix:
        """The matrix with rows older than the view's time to live as not found."""
        good = self.found & is_fresh(view, self.event_us)
        columns = {name: column.where(good) for name, column in self.columns.items()}
        return Matrix(columns, good, np.where(good, self.event_us, 0))


Reader = Callable[[np.ndarray], list[Matrix]]


@runtime_checkable
class MatrixStore(Protocol):
    """An online store that reads columns."""

    def matrix_reader(self, config: RepoConfig, asked: Asked) -> Reader | None:
        """A function from int64 ids to a matrix per (view, features) of one entity; None: not possible here."""


def matrix_reader(store: FeatureStore, asked: Asked) -> Reader:
    """A function from the ids of an entity, int64 (N), to a matrix per (view, features); keep and reuse it.

    Args:
        store: an open feature store.
        asked: views of one entity as ``store.get_feature_view`` gives them, each with the names of features.

    Raises:
        KeyError: a view does not have one of its features.

    The function raises redis.exceptions.RedisError or sqlite3.Error where the store does not answer.
    """
    for view, features in asked:
        missing = set(features) - {field.name for field in view.features}
        if missing:
            raise KeyError(f"{view.name} has no features {sorted(missing)}")
    online = store._get_provider().online_store  # type: ignore[attr-defined]
    reader = online.matrix_reader(store.config, asked) if isinstance(online, MatrixStore) else None
    if reader is None:
        return lambda ids: [by_feast(store, view, ids, features) for view, features in asked]

    def read(ids: np.ndarray) -> list[Matrix]:
        try:
            found = reader(ids)
        except ClusterError:
            return [by_feast(store, view, ids, features) for view, features in asked]
        return [one.fresh(view) if view.ttl else one for one, (view, _) in zip(found, asked, strict=True)]

    return read


def read_matrix(store: FeatureStore, view: str, ids: np.ndarray, features: Sequence[str]) -> Matrix:
    """Read features of one view once; for repeated reads keep a ``matrix_reader``.

    Args:
        store: an open feature store.
        view: by name.
        ids: int64 (N), of the view's entity.
        features: by name.

    Raises:
        KeyError: the view does not have one of the features.
        redis.exceptions.RedisError, sqlite3.Error: the store does not answer.
    """
    return matrix_reader(store, [(store.get_feature_view(view), features)])(np.asarray(ids, np.int64))[0]


def kinds(view: FeatureView) -> dict[str, str]:
    """The stored type of each feature, named as in ``moonstore.decode``."""
    return {field.name: field.dtype.to_value_type().name.lower() for field in view.features}


def entity_keys(view: FeatureView, ids: Sequence[int]) -> list[EntityKey]:
    """Feast's keys of entities of a view with one join key."""
    name = view.join_keys[0]  # asked once: Feast checks types whenever it is asked
    return [EntityKey(join_keys=[name], entity_values=[Value(int64_val=one)]) for one in ids]


def by_feast(store: FeatureStore, view: FeatureView, ids: np.ndarray, features: Sequence[str]) -> Matrix:
    """The slow twin: Feast's reader, a protobuf object per value."""
    of = kinds(view)
    if not len(ids):
        empty = {name: by_protobuf([], of[name]) for name in features}
        return Matrix(empty, np.zeros(0, bool), np.zeros(0, np.int64))
    response = store.get_online_features(
        features=[f"{view.name}:{name}" for name in features],
        entity_rows=[{view.join_keys[0]: int(entity)} for entity in ids],
    ).proto
    columns: dict[str, Column] = {}
    stamps = np.zeros(len(ids), np.int64)
    for name, vector in zip(response.metadata.feature_names.val, response.results, strict=True):
        if name in of:
            values: list[Any] = [value.SerializeToString() for value in vector.values]
            columns[name] = by_protobuf(values, of[name])
            stamps = np.array([stamp.ToMicroseconds() for stamp in vector.event_timestamps], np.int64)
    return Matrix({name: columns[name] for name in features}, stamps != 0, stamps)


def to_arrow(column: Column, dtype: pa.DataType) -> pa.Array:
    """The column as Arrow, null where not valid."""
    if not pa.types.is_list(dtype):
        return pa.array(column.values, mask=~column.valid).cast(dtype)
    length = np.array([len(one) for one in column.values], np.int64) * column.valid
    rows = np.flatnonzero(length)
    flat: Any = np.concatenate([column.values[row] for row in rows.tolist()]) if len(rows) else []
    values = pa.array(flat, dtype.value_type)
    offsets = pa.array(np.append(0, np.cumsum(length)), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~column.valid))
