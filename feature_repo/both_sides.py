"""A sample of the entities of a view, as the online store has them and as a load would write them now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView, OnDemandFeatureView

from feature_repo.columns import as_read, by_view
from feature_repo.on_demand import compute, inputs_of, reads_of
from feature_repo.signature import Feature, all_views, features_of
from feature_repo.store import BEGINNING
from moonstore.batch import Batch, sift
from moonstore.decode import Column, decode
from moonstore.encode import encode
from moonstore.engine import newest
from moonstore.freshness import EPOCH, US, as_of
from moonstore.matrix import Matrix, kinds, read_matrix, to_arrow

SAMPLE = 1000  # entities compared per view


@dataclass(frozen=True)
class BothSides:
    """S sampled entities of a view.

    Attributes:
        batch: the newest rows of all entities by the end of the last load.
        end: of the last load.
        online: what the online store has of the sample, of any age.
        offline: what a load would write of it, as an online store would return it.
        newer: bool [S], rows that are newer online than the load: an event was pushed since.
    """

    batch: Batch
    end: datetime
    online: Matrix
    offline: dict[str, Column]
    newer: np.ndarray


def both_sides(store: FeatureStore, view: FeatureView, end: datetime) -> BothSides | None:
    """Read both sides of a view that was loaded until ``end``; None where there is nothing to load."""
    entities = [store.get_entity(name) for name in view.entities]
    offline = store._get_provider().offline_store  # type: ignore[attr-defined]
    tables = list(newest(store.config, offline, view, entities, BEGINNING, end))
    if not tables:
        return None
    batch = sift(view, pa.concat_tables(tables), datetime.now(UTC)).batch
    if not len(batch):
        return None
    rows = np.random.default_rng(0).permutation(len(batch))[:SAMPLE]
    with as_of(EPOCH):  # ignore the time to live
        online = read_matrix(store, str(view.name), batch.keys[0].to_numpy()[rows], list(batch.features))
    kind = kinds(view)
    expected = {
        name: decode(encode(column.take(rows), kind[name]), kind[name])
        for name, column in batch.features.items()
    }
    newer = online.found & (online.event_us // 1_000_000 > batch.event_us[rows] // 1_000_000)
    return BothSides(batch, end, online, expected, newer)


@dataclass(frozen=True)
class Computed:
    """An on-demand view of S rows.

    Attributes:
        online, offline: feature -> its values, computed from what is online and from what a load would write.
        newer: bool [S], rows that read something newer online.
        is_asked: whether the view reads what the caller sends, of which nothing is known here: null.
    """

    online: Mapping[str, pa.Array]
    offline: Mapping[str, pa.Array]
    newer: np.ndarray
    is_asked: bool


def computed(store: FeatureStore, view: OnDemandFeatureView) -> Computed | str:
    """Compute an on-demand view from both sides of what it reads, at the end of the load.

    Where it reads several views, the rows of their samples are paired in order.

    Returns:
        the values; or why there are none.

    Raises:
        StoreError: its function fails, or does not give what the schema says.
    """
    known = {str(one.name): one for one in all_views(store)}
    features = [one for field in view.features for one in features_of(view, field, known)]
    reads = reads_of(store, features)
    asked = by_view(list(inputs_of(view, known)))
    sides: dict[str, BothSides] = {}
    for name in asked:
        source = store.get_feature_view(name)
        end = source.most_recent_end_time
        found = None if end is None else both_sides(store, source, end)
        if found is None:
            return f"it reads {name}, of which nothing is loaded: run 'moon materialize'"
        sides[name] = found
    count = max((len(one.newer) for one in sides.values()), default=1)
    end = max((one.end for one in sides.values()), default=datetime.now(UTC))
    time_us = np.full(count, (end - EPOCH) // US)
    sent = {f"request__{name}": pa.nulls(count, dtype) for name, dtype in reads.context.items()}
    place = {name: np.arange(count) % len(one.newer) for name, one in sides.items()}

    def values(side: str) -> dict[str, pa.Array]:
        stored = {
            one.name: _column(getattr(sides[name], side), one).take(place[name])
            for name, some in asked.items()
            for one in some
        }
        return compute(reads, features[0].role == "candidate", stored | sent, time_us)

    newer = np.zeros(count, dtype=bool)
    for name, one in sides.items():
        newer |= one.newer[place[name]]
    return Computed(values("online"), values("offline"), newer, bool(reads.context))


def _column(side: Matrix | Mapping[str, Column], feature: Feature) -> pa.Array:
    columns = side.columns if isinstance(side, Matrix) else side
    return as_read(to_arrow(columns[feature.field], feature.dtype), feature.dtype)
