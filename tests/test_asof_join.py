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

from moonstore.duckdb_store import DuckDBOfflineStoreConfig
from moonstore.errors import StoreError
from moonstore.newest import newest

USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
REFERENCES = ["counts:shown", "counts:tags", "pairs:rate", "plain:shown_all", "shops:open"]
FEATURES = [one.partition(":")[2] for one in REFERENCES]
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
        view("shops", [SHOP], {"open": Int64}, True, None),
    ]


def write_sources(folder, rng, rows):
    """Few users, shops and hours, so that times tie and keys repeat; (key, time, created) is unique."""
    for name in ("counts", "pairs", "plain", "shops"):
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
            "open": pa.array(rng.integers(0, 99, count), pa.int64(), mask=null[2]),
            "rate": pa.array(rng.random(count), pa.float32(), mask=null[2]),
            "tags": pa.array(
                [None if gone else rng.random(n % 3).tolist() for n, gone in enumerate(null[3])],
                pa.list_(pa.float32()),
            ),
        }
        pq.write_table(pa.table(table), folder / f"{name}.parquet")


def write_entities(rng, rows, zone="UTC"):
    """Slates (one user, many shops, one time), duplicates, unknown and missing keys, in no order.

    ``zone``: of the times; None: they have none, which is UTC.
    """
    user = rng.integers(0, 6, rows)
    frame = pd.DataFrame(
        {
            "label": rng.random(rows),
            "user_id": pd.array(np.where(rng.random(rows) < 0.1, -1, user), "Int64"),
            "shop_id": [None if n == 4 else f"s{n}" for n in rng.integers(0, 5, rows)],
            "event_timestamp": pd.to_datetime(rng.integers(0, 40, rows) * HOUR, unit="us", utc=True),
        }
    )
    frame["event_timestamp"] = frame["event_timestamp"].dt.tz_convert(zone)
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
    zone=st.sampled_from(["UTC", "America/New_York", None]),
    full_feature_names=st.booleans(),
)
def test_equals_feasts_own_plan_and_keeps_the_order(
    tmp_path_factory, seed, rows, hours, zone, full_feature_names
):
    folder = tmp_path_factory.mktemp("asof")
    rng = np.random.default_rng(seed)
    write_sources(folder, rng, rows)
    entities = write_entities(rng, 200, zone)
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


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", None, "text"])
def test_a_frame_of_arrow_types_is_answered_as_one_of_numpys(tmp_path, zone):
    write_sources(tmp_path, np.random.default_rng(0), 40)
    entities = write_entities(np.random.default_rng(0), 30, None if zone == "text" else zone)
    if zone == "text":
        entities["event_timestamp"] = entities["event_timestamp"].astype(str)
    ours, _ = stores(tmp_path, timedelta(0), "arrow")
    expected = read(ours, entities)
    got = read(ours, entities.convert_dtypes(dtype_backend="pyarrow"))
    assert expected["shown"].notna().any() and plain(got[FEATURES]) == plain(expected[FEATURES])


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


@settings(max_examples=200, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 9), st.integers(0, 2)), max_size=40),
    asked=st.lists(st.tuples(st.integers(-1, 4), st.integers(-5, 12)), max_size=20),
    far=st.sampled_from([0, 2**62, -(2**62)]),
)
def test_the_newest_event_is_the_one_a_scan_finds(events, asked, far):
    key, time, created = (np.array([event[place] for event in events], np.int64) for place in range(3))
    of, at = (np.array([one[place] for one in asked], np.int64) for place in range(2))

    def scan(of, at):
        seen = [(t, c, row) for row, (k, t, c) in enumerate(events) if k == of and t <= at]
        return max(seen)[-1] if seen else -1

    assert newest(key, time + far, created, of, at + far).tolist() == [scan(*one) for one in asked]


def test_the_result_is_written_where_it_is_staged(tmp_path, monkeypatch):
    write_sources(tmp_path, np.random.default_rng(0), 40)
    asked = write_entities(np.random.default_rng(0), 10)
    job = stores(tmp_path, timedelta(0), "staged")[0].get_historical_features(asked, features=REFERENCES)
    job.staging_location = "s3://staged"
    written = {}
    monkeypatch.setattr(
        ibis.Table, "to_delta", lambda self, path, **_: written.update({path: self.to_pyarrow()})
    )
    monkeypatch.setattr("feast.infra.offline_stores.ibis.list_s3_files", lambda path, _: [path])
    (address,) = job.to_remote_storage()
    assert written[address].to_pylist() == job.to_arrow().to_pylist()


def test_a_column_named_as_a_feature_is_refused(tmp_path):
    write_sources(tmp_path, np.random.default_rng(0), 40)
    entities = write_entities(np.random.default_rng(0), 10).assign(rate=1.0)
    with pytest.raises(StoreError, match="without columns named as features are, found rate"):
        read(stores(tmp_path, timedelta(0), "taken")[0], entities)


def test_the_callers_columns_are_given_back_as_they_came(tmp_path):
    write_sources(tmp_path, np.random.default_rng(0), 40)
    of = {
        "length": pd.to_timedelta(range(10), unit="s"),
        "kind": pd.Categorical(["a", "b"] * 5),
        "at": pd.to_datetime([1] * 10, unit="ns", utc=True),
    }
    entities = write_entities(np.random.default_rng(0), 10).assign(**of)
    got = read(stores(tmp_path, timedelta(0), "types")[0], entities)
    pd.testing.assert_frame_equal(got[list(of)], entities[list(of)])
