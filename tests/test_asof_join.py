"""The ASOF join answers what Feast's own plan answers, row for row, and keeps the rows' order.

Run: pytest tests/test_asof_join.py
"""

import logging
from datetime import timedelta

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig as StockConfig
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moonstore.asof import AsofJob
from moonstore.duckdb_store import DuckDBOfflineStoreConfig
from moonstore.errors import StoreError

USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
REFERENCES = ["counts:shown", "counts:tags", "pairs:rate", "plain:shown_all"]
HOUR = 3_600_000_000


def stamps(hours):
    return pa.array([None if hour is None else int(hour) * HOUR for hour in hours], pa.timestamp("us", "UTC"))


def views(folder, ttl):
    def view(name, entities, features, created, ttl):
        keys = [Field(name=e.join_key, dtype=Int64 if e is USER else String) for e in entities]
        source = FileSource(
            name=name,
            path=str(folder / f"{name}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created" if created else "",
        )
        fields = [Field(name=feature, dtype=dtype) for feature, dtype in features.items()]
        return FeatureView(name=name, entities=entities, ttl=ttl, schema=[*keys, *fields], source=source)

    return [
        view("counts", [USER], {"shown": Int64, "tags": Array(Float32)}, True, ttl),
        view("pairs", [USER, SHOP], {"rate": Float32}, True, timedelta(0)),
        view("plain", [USER], {"shown_all": Int64}, False, ttl),
    ]


def write_sources(folder, rng, rows):
    """Few users, shops and hours, so that times tie and keys repeat; (key, time, created) is unique."""
    for name in ("counts", "pairs", "plain"):
        user = rng.integers(0, 4, rows)
        shop = rng.integers(0, 3, rows)
        hour = rng.integers(0, 30, rows)
        created = rng.permutation(rows) + 100
        if name == "plain":  # without a created column, of equal rows any one may answer: none are equal
            once = np.unique(user * 100 + hour, return_index=True)[1]
            user, shop, hour, created = user[once], shop[once], hour[once], created[once]
        count = len(user)
        null = rng.random((4, count)) < 0.1
        table = {
            "user_id": pa.array(user, pa.int64(), mask=null[0]),
            "shop_id": pa.array([f"s{n}" for n in shop], pa.string()),
            "event_timestamp": stamps([None if gone else h for gone, h in zip(null[1], hour, strict=True)]),
            "created": stamps(created),
            "shown": pa.array(rng.integers(0, 99, count), pa.int64(), mask=null[2]),
            "shown_all": pa.array(rng.integers(0, 99, count), pa.int64(), mask=null[2]),
            "rate": pa.array(rng.random(count), pa.float32(), mask=null[2]),
            "tags": pa.array(
                [None if gone else rng.random(n % 3).tolist() for n, gone in enumerate(null[3])],
                pa.list_(pa.float32()),
            ),
        }
        pq.write_table(pa.table(table), folder / f"{name}.parquet")


def write_entities(rng, rows):
    """Slates (one user, many shops, one time), duplicates, unknown and missing keys, in no order."""
    user = rng.integers(0, 6, rows)
    frame = pd.DataFrame(
        {
            "label": rng.random(rows),
            "user_id": pd.array(np.where(rng.random(rows) < 0.1, -1, user), "Int64"),
            "shop_id": [None if n == 4 else f"s{n}" for n in rng.integers(0, 5, rows)],
            "event_timestamp": pd.to_datetime(rng.integers(0, 40, rows) * HOUR, unit="us", utc=True),
        }
    )
    frame.loc[frame["user_id"] == -1, "user_id"] = pd.NA
    return frame


def stores(folder, ttl, project):
    made = []
    for offline in (DuckDBOfflineStoreConfig(), StockConfig()):
        config = RepoConfig(
            project=project,
            provider="local",
            registry=str(folder / f"{project}{len(made)}.db"),
            offline_store=offline,
            online_store=None,
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        store.apply([USER, SHOP, *views(folder, ttl)])
        made.append(store)
    return made


def read(store, entities, **options) -> pd.DataFrame:
    asked = entities.assign(row_id=range(len(entities)))
    return store.get_historical_features(asked, features=REFERENCES, **options).to_df()


def plain(frame) -> list:
    frame = frame.astype(object).where(frame.notna() if len(frame) else True, None)
    lists = [[list(v) if isinstance(v, np.ndarray) else v for v in frame[name]] for name in frame.columns]
    return [list(frame.columns), *lists]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**20),
    rows=st.sampled_from([0, 1, 40, 400]),
    hours=st.sampled_from([0, 1, 5]),
    full_feature_names=st.booleans(),
)
def test_equals_feasts_own_plan_and_keeps_the_order(tmp_path_factory, seed, rows, hours, full_feature_names):
    folder = tmp_path_factory.mktemp("asof")
    rng = np.random.default_rng(seed)
    write_sources(folder, rng, rows)
    entities = write_entities(rng, 200)
    ours, stock = stores(folder, timedelta(hours=hours), "asof")
    got = read(ours, entities, full_feature_names=full_feature_names)
    expected = read(stock, entities, full_feature_names=full_feature_names)
    assert got["row_id"].tolist() == list(range(len(entities)))
    assert plain(got) == plain(expected.sort_values("row_id", ignore_index=True)[got.columns])


def test_what_is_asked_for_is_not_changed(tmp_path):
    write_sources(tmp_path, np.random.default_rng(0), 40)
    entities = write_entities(np.random.default_rng(0), 10)
    entities["event_timestamp"] = entities["event_timestamp"].astype(str)
    before = entities.copy(deep=True)
    got = read(stores(tmp_path, timedelta(0), "kept")[0], entities)
    pd.testing.assert_frame_equal(entities, before)
    assert len(got) == 10


def test_a_cut_in_created_time_falls_back_and_says_so(tmp_path, caplog):
    write_sources(tmp_path, np.random.default_rng(0), 100)
    entities = write_entities(np.random.default_rng(1), 50)
    ours, stock = stores(tmp_path, timedelta(0), "created")
    with caplog.at_level(logging.WARNING, logger="moonstore.duckdb_store"):
        got = read(ours, entities, filter_by_created_timestamp=True)
    assert "counts is filtered by its created timestamp" in caplog.text
    expected = read(stock, entities, filter_by_created_timestamp=True)
    assert plain(got.sort_values("row_id", ignore_index=True)) == plain(
        expected.sort_values("row_id", ignore_index=True)
    )


def test_a_join_that_loses_rows_is_refused():
    lost = ibis.memtable(pd.DataFrame({"a": [1, 2]}))
    names = ("data_source_writer", "staging_location", "staging_location_endpoint_override", "repo_path")
    job = AsofJob(
        lost, 3, on_demand_feature_views=[], full_feature_names=False, metadata=None, **dict.fromkeys(names)
    )
    with pytest.raises(StoreError, match="each of 3 entity rows, found 2"):
        job.to_df()
