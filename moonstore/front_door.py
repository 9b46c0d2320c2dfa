"""Feast's ``get_online_features`` read column by column: what a store needs to answer it fast.

Feast's hooks are an online store's ``get_online_features``, to which its provider hands every request, and
``_read_features_per_fv``, which Feast documents as the method that a store overrides to read in batches. The first
answers plain requests without an object per value; the second serves requests with on-demand views. What neither can
read is left to Feast.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from feast import FeatureService, FeatureView, RepoConfig, utils
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.metrics import track_feature_statuses
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from redis.exceptions import ClusterError

from moonstore import keys
from moonstore.decode import Cells, Values
from moonstore.freshness import is_fresh
from moonstore.matrix import Asked, kinds
from moonstore.request import Grouped, all_natives, request
from moonstore.response import ColumnResponse, Part, add_to


@dataclass(frozen=True)
class Stored:
    """What a store holds of one view for N entities.

    Attributes:
        columns: serialized values of each feature.
        present: bool (N) per feature, whether it is stored.
        event_us: int64 (N), event times in microseconds since 1970 UTC; 0 where there is no row.
    """

    columns: Sequence[Cells | Values]
    present: list[np.ndarray]
    event_us: np.ndarray

    def fresh(self, view: FeatureView) -> Stored:
        """The rows that have not outlived the view's time to live; the others as not stored."""
        good = is_fresh(view, self.event_us)
        if good.all():
            return self
        return replace(
            self, present=[one & good for one in self.present], event_us=np.where(good, self.event_us, 0)
        )


class FrontDoor(OnlineStore):
    """Mixin before one of Feast's stores: answers ``get_online_features`` from columns."""

    def stored(self, config: RepoConfig, asked: Asked, entities: Sequence[bytes]) -> list[Stored] | None:
        """What is stored of each view for entities with these serialized keys; None: not possible here."""
        raise NotImplementedError

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Feast's answer; for the arguments see ``FeatureStore.get_online_features``."""
        if not (include_feature_view_version_metadata or getattr(features, "precompute_online", False)):
            asked = request(registry, project, features, entity_rows, full_feature_names)
            if asked is not None:
                self._check_versioned_read_support(asked.grouped)
                parts = self._parts(config, asked.grouped, asked.keys, asked.join_keys, full_feature_names)
                if parts is not None:
                    types = self._build_feature_types(list(asked.grouped))
                    own = {name: found for name, found in asked.keys.items() if name != DUMMY_ENTITY_ID}
                    return ColumnResponse(own, asked.whole, parts, types)
        options = (full_feature_names, include_feature_view_version_metadata)
        return super().get_online_features(config, features, entity_rows, registry, project, *options)

    async def get_online_features_async(self, *asked: Any, **options: Any) -> OnlineResponse:
        """``get_online_features`` in a worker thread; Feast's server asks so."""
        return await asyncio.to_thread(self.get_online_features, *asked, **options)

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: Grouped,
        join_key_values: dict[str, Sequence[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        parts, known = None, all_natives(join_key_values)
        if known is not None and not include_feature_view_version_metadata:
            parts = self._parts(config, grouped_refs, known, entity_name_to_join_key_map, full_feature_names)
        if parts is None:
            OnlineStore._read_features_per_fv(
                self,
                config,
                list(grouped_refs),
                join_key_values,
                entity_name_to_join_key_map,
                online_features_response,
                full_feature_names,
                include_feature_view_version_metadata,
            )
        for part in parts or ():
            add_to(online_features_response, part)

    def _parts(
        self,
        config: RepoConfig,
        grouped: Grouped,
        values: dict[str, list[Any]],
        join_keys: dict[str, str],
        full_names: bool,
    ) -> list[Part] | None:
        """The answer of each view, those of the same entities read together; None: Feast has to read them."""
        if config.entity_key_serialization_version != keys.VERSION:
            return None
        entities: dict[tuple[str, ...], tuple[list[bytes], np.ndarray | None]] = {}
        views: dict[tuple[str, ...], list[int]] = {}
        for place, (view, _) in enumerate(grouped):
            columns = utils._get_table_entity_values(view, join_keys, values)
            if not columns or set(columns) != set(view.join_keys):
                return None
            # Of a view under another name the columns may be others, by its map of join keys.
            mapped = {name: alias for name, alias in view.projection.join_key_map.items()}
            same = tuple(f"{name}={mapped.get(name, name)}" for name in sorted(columns))
            if same not in entities:
                entities[same] = keys.unique(keys.of_natives(columns))
            views.setdefault(same, []).append(place)
        parts: dict[int, Part] = {}
        for same, places in views.items():
            try:
                stored = self.stored(config, [grouped[place] for place in places], entities[same][0])
            except ClusterError:  # it is changing; Feast's client follows
                return None
            if stored is None:
                return None
            for place, one in zip(places, stored, strict=True):
                parts[place] = _part(*grouped[place], one, entities[same][1], full_names)
        return [parts[place] for place in range(len(grouped))]


def _part(
    view: FeatureView, features: list[str], stored: Stored, rows: np.ndarray | None, full: bool
) -> Part:
    stored, kind = stored.fresh(view), kinds(view)
    prefix = f"{view.projection.name_to_use()}__" if full else ""
    part = Part(
        [prefix + feature for feature in features],
        [kind[feature] for feature in features],
        stored.columns,
        stored.present,
        stored.event_us,
        rows,
    )
    total = len(features) * (len(stored.event_us) if rows is None else len(rows))
    there = sum(int((one if rows is None else one[rows]).sum()) for one in stored.present)
    track_feature_statuses(view.name, there, total - there)
    return part
