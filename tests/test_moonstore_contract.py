"""What Feast expects of a store, and what anybody's repository does with one: moonstore.

Restates the part of Feast's universal tests that an earlier version of ours failed, and pins each difference that
``docs/moonstore.md`` names.
"""

import os
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    Project,
    PushSource,
    RepoConfig,
    RequestSource,
)
from feast.data_source import PushMode
from feast.feature_logging import LoggingConfig
from feast.feature_server import get_app
from feast.infra.offline_stores.dask import DaskOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.repo_contents import RepoContents
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

from moonstore.duckdb_store import DuckDBOfflineStoreConfig
from moonstore.errors import FutureRowError, StoreError
from moonstore.freshness import as_of
from moonstore.redis_store import RedisOnlineStoreConfig
from moonstore.sqlite_store import SqliteOnlineStoreConfig

START = pd.Timestamp("2026-01-01", tz="UTC")
HOUR = pd.Timedelta("1h")
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
DAY = timedelta(days=1)
ENGINE = {"type": "moonstore.engine.ArrowComputeEngine"}


def open_repository(folder, online=None, engine=ENGINE, offline=None):
    config = RepoConfig(
        project=f"anybody_{folder.name}",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store=offline or DuckDBOfflineStoreConfig(),
        online_store=online or SqliteOnlineStoreConfig(path=str(folder / "online.db")),
        batch_engine=engine,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    return FeatureStore(config=config)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request, tmp_path):
    if request.param == "sqlite":
        return SqliteOnlineStoreConfig(path=str(tmp_path / "online.db"))
    port = request.getfixturevalue("redis_server").port
    return RedisOnlineStoreConfig(connection_string=f"127.0.0.1:{port},db=11")


def spending(path="spending.parquet", name="spending", entities=(USER,), ttl=timedelta(0)):
    keys = [Field(name=one.join_key, dtype=Int64) for one in entities]
    source = FileSource(name=name, path=path, timestamp_field="event_timestamp")
    fields = [Field(name="spent", dtype=Float64), Field(name="visits", dtype=Int64)]
    return FeatureView(name=name, entities=list(entities), ttl=ttl, schema=[*keys, *fields], source=source)


def rows(users=(1, 1, 2), hours=(0, 1, 0)):
    count = len(users)
    return pd.DataFrame(
        {
            "user_id": users,
            "spent": np.arange(count) + 0.5,
            "visits": np.arange(count) * 10,
            "event_timestamp": [START + hour * HOUR for hour in hours],
        }
    )


def write(folder, frame, name="spending.parquet"):
    stamps = frame["event_timestamp"].astype("datetime64[us, UTC]")
    pq.write_table(
        pa.Table.from_pandas(frame.assign(event_timestamp=stamps), preserve_index=False), folder / name
    )


def asked(users, hour=100, **more):
    return pd.DataFrame({"user_id": users, "event_timestamp": [START + hour * HOUR] * len(users), **more})


def rate():
    @on_demand_feature_view(
        sources=[spending(), RequestSource(name="now", schema=[Field(name="fee", dtype=Float64)])],
        schema=[Field(name="total", dtype=Float64), Field(name="per_visit", dtype=Float64)],
        mode="pandas",
    )
    def derived(inputs: pd.DataFrame) -> pd.DataFrame:
        out = pd.DataFrame()
        out["total"] = inputs["spent"] + inputs["fee"]
        out["per_visit"] = inputs["spent"] / inputs["visits"]
        return out

    return derived


def stored_on_demand():
    @on_demand_feature_view(
        entities=[USER],
        sources=[spending()],
        schema=[Field(name="double", dtype=Float64)],
        mode="pandas",
        write_to_online_store=True,
    )
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"double": inputs["spent"] * 2})

    return doubled


def test_an_on_demand_view_that_is_written_online_can_be_read(tmp_path, online):
    write(tmp_path, rows())
    store = open_repository(tmp_path, online)
    store.apply([USER, spending(), stored_on_demand()])
    store.materialize(START - DAY, START + DAY)
    store.write_to_online_store(
        "doubled", pd.DataFrame({"user_id": [1], "spent": [4.0], "double": [8.0], "event_timestamp": [START]})
    )
    answer = store.get_online_features(
        features=["spending:spent", "doubled:double"], entity_rows=[{"user_id": 1}, {"user_id": 9}]
    ).to_dict()
    assert answer == {"user_id": [1, 9], "spent": [1.5, None], "double": [8.0, None]}


def test_a_join_gives_what_was_asked_for_and_can_be_saved(tmp_path):
    write(tmp_path, rows())
    store = open_repository(tmp_path)
    store.apply([USER, spending(), rate()])
    job = store.get_historical_features(
        asked([1, 2], fee=[1.0, 2.0]), features=["spending:spent", "derived:total"], full_feature_names=True
    )
    frame = job.to_df()
    inputs = ["user_id", "event_timestamp", "fee", "spending__spent", "spending__visits"]
    assert set(frame.columns) == {*inputs, "derived__total"}  # and not derived__per_visit
    assert frame["derived__total"].tolist() == [2.5, 4.5]
    saved = store.create_saved_dataset(job, "kept", SavedDatasetFileStorage(path="kept.parquet"))
    assert set(saved.features) == {"spending:spent", "spending:visits", "derived:total"}
    assert pq.read_table(tmp_path / "kept.parquet").column("spending__spent").to_pylist() == [1.5, 2.5]
    assert store.get_saved_dataset("kept").to_df()["spending__spent"].tolist() == [1.5, 2.5]
    assert store.get_saved_dataset("kept").to_df()["derived__total"].tolist() == [2.5, 4.5]


def test_a_view_without_entities_is_loaded_and_joined(tmp_path, online):
    write(tmp_path, rows().drop(columns="user_id"))
    store = open_repository(tmp_path, online)
    store.apply([spending(entities=())])
    store.materialize(START - DAY, START + DAY)
    answer = store.get_online_features(features=["spending:visits"], entity_rows=[{"any": 1}]).to_dict()
    assert answer == {"visits": [10]}  # of the newest row
    frame = store.get_historical_features(asked([7], hour=0.5), features=["spending:spent"]).to_df()
    assert frame["spent"].tolist() in ([0.5], [2.5])  # of equal times either


def test_a_pushed_row_reaches_the_next_frame_wherever_the_process_runs(tmp_path, monkeypatch):
    (tmp_path / "repo").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "repo", rows())
    store = open_repository(tmp_path / "repo")
    view = spending()
    view = FeatureView(
        name="spending",
        entities=[USER],
        ttl=timedelta(0),
        schema=view.schema,
        source=PushSource(name="till", batch_source=view.batch_source),
    )
    store.apply([USER, view])
    monkeypatch.chdir(tmp_path / "elsewhere")
    pushed = rows([2], [5]).assign(spent=99.0)
    store.push("till", pushed, to=PushMode.ONLINE_AND_OFFLINE)
    frame = store.get_historical_features(asked([1, 2]), features=["spending:spent"]).to_df()
    assert frame["spent"].tolist() == [1.5, 99.0]
    assert store.get_online_features(["spending:spent"], [{"user_id": 2}]).to_dict()["spent"] == [99.0]
    assert os.listdir() == []


def test_a_push_that_does_not_fit_leaves_the_source_as_it_was(tmp_path):
    write(tmp_path, rows())
    before = (tmp_path / "spending.parquet").read_bytes()
    store = open_repository(tmp_path)
    store.apply([USER, spending()])
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        store.write_to_offline_store("spending", rows().assign(visits=["many", "few", "none"]))
    assert (tmp_path / "spending.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["spending.parquet"]


def test_a_log_of_served_features_lies_in_the_repository(tmp_path, monkeypatch):
    write(tmp_path, rows())
    (tmp_path / "logs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    store = open_repository(tmp_path)
    destination = FileLoggingDestination(path="logs")
    service = FeatureService(
        name="shown",
        features=[spending()],
        logging_config=LoggingConfig(destination=destination, sample_rate=1.0),
    )
    store.apply([USER, spending(), service])
    monkeypatch.chdir(tmp_path / "elsewhere")
    logged = pa.table({"user_id": [1], "spent": [0.5]})
    provider = store._get_provider()
    provider.write_feature_service_logs(
        service,
        logged,
        config=store.config,
        registry=store.registry,
    )
    (written,) = (tmp_path / "logs").glob("*.parquet")
    assert pq.read_table(written).column("spent").to_pylist() == [0.5]
    assert os.listdir() == []


@pytest.mark.parametrize("engine", [ENGINE, "local"])
def test_timestamps_in_nanoseconds_are_loaded_by_either_engine(tmp_path, engine):
    rows().to_parquet(tmp_path / "spending.parquet")
    assert pq.read_schema(tmp_path / "spending.parquet").field("event_timestamp").type.unit == "ns"
    store = open_repository(tmp_path, engine=engine)
    store.apply([USER, spending()])
    store.materialize(START - DAY, START + DAY)
    answer = store.get_online_features(["spending:visits"], [{"user_id": 1}, {"user_id": 2}]).to_dict()
    assert answer["visits"] == [10, 20]


def test_the_callers_columns_keep_their_names_and_values(tmp_path):
    write(tmp_path, rows())
    store = open_repository(tmp_path)
    store.apply([USER, spending()])
    passengers = {
        "__row": [7, 8],
        "__at": ["a", "b"],
        "__order": [0, 0],
        "__0_spent": [3, 4],
        "____x": [1, 2],
    }
    frame = store.get_historical_features(asked([2, 1], **passengers), features=["spending:spent"]).to_df()
    assert frame["spent"].tolist() == [2.5, 1.5]
    for name, values in passengers.items():
        assert frame[name].tolist() == values


def test_ids_as_text_find_integer_keys_and_the_other_way_round(tmp_path):
    write(tmp_path, rows())
    write(tmp_path, rows().astype({"user_id": str}), "named.parquet")
    named = Entity(name="named", join_keys=["user_id"], value_type=ValueType.STRING)
    by_name = FeatureView(
        name="by_name",
        entities=[named],
        schema=[Field(name="user_id", dtype=String), Field(name="spent", dtype=Float64)],
        source=FileSource(name="by_name", path="named.parquet", timestamp_field="event_timestamp"),
    )
    store = open_repository(tmp_path)
    store.apply([USER, named, spending(), by_name])
    text = store.get_historical_features(asked(["2", "1", None, "9"]), features=["spending:visits"]).to_df()
    assert text["visits"].tolist()[:2] == [20, 10] and text["visits"].isna().tolist()[2:] == [True, True]
    assert text["user_id"].tolist()[:2] == ["2", "1"]
    number = store.get_historical_features(asked([2, 1]), features=["by_name:spent"]).to_df()
    assert number["spent"].tolist() == [2.5, 1.5] and number["user_id"].tolist() == [2, 1]
    with pytest.raises(StoreError, match=r"found 2 of 3 other texts \('007', 'x'\)"):
        store.get_historical_features(asked(["1", "007", "x"]), features=["spending:visits"]).to_df()


def test_a_pushed_row_of_the_future_is_answered_with_422(tmp_path, online):
    write(tmp_path, rows())
    store = open_repository(tmp_path, online)
    view = spending()
    store.apply(
        [
            USER,
            FeatureView(
                name="spending",
                entities=[USER],
                schema=view.schema,
                source=PushSource(name="till", batch_source=view.batch_source),
                ttl=timedelta(0),
            ),
        ]
    )
    late = rows([1], [0]).assign(event_timestamp=[datetime.now(UTC) + DAY])
    with pytest.raises(FutureRowError):
        store.push("till", late)
    client = TestClient(get_app(store), raise_server_exceptions=False)
    body = {name: late[name].astype(str if name == "event_timestamp" else object).tolist() for name in late}
    answer = client.post("/push", json={"push_source_name": "till", "df": body, "to": "online"})
    assert answer.status_code == 422 and "1 of 1 in the future" in answer.text
    body["event_timestamp"] = [str(START)]
    assert (
        client.post("/push", json={"push_source_name": "till", "df": body, "to": "online"}).status_code == 200
    )
    assert store.get_online_features(["spending:spent"], [{"user_id": 1}]).to_dict()["spent"] == [0.5]


def test_the_first_load_is_complete_whatever_is_materialized(tmp_path, online):
    write(tmp_path, rows([1, 2, 2], [0, 90, 91]))
    store = open_repository(tmp_path, online)
    store.apply([USER, spending()])
    store.materialize(START + 80 * HOUR, START + 90.5 * HOUR)  # user 1 is older than that
    ids = [{"user_id": 1}, {"user_id": 2}]
    assert store.get_online_features(["spending:visits"], ids).to_dict()["visits"] == [0, 10]
    store.teardown()
    store = open_repository(tmp_path, online)
    store.apply([USER, spending()])
    store.materialize(START + 95 * HOUR, START + 100 * HOUR)
    assert store.get_online_features(["spending:visits"], ids).to_dict()["visits"] == [0, 20]


def test_a_plan_right_after_apply_finds_no_change(tmp_path):
    write(tmp_path, rows())

    def contents():
        view = spending()
        return RepoContents(
            projects=[Project(name=store.project)],
            data_sources=[view.batch_source],
            feature_views=[view],
            on_demand_feature_views=[rate()],
            stream_feature_views=[],
            label_views=[],
            entities=[USER],
            feature_services=[FeatureService(name="shown", features=[view])],
            permissions=[],
        )

    store = open_repository(tmp_path)
    assert "Created feature view" in store.plan(contents())[0].to_string()
    store.apply([one for kind in contents() for one in kind])
    registry, infrastructure, _ = open_repository(tmp_path).plan(contents())
    assert "No changes to registry" in registry.to_string()
    assert "No changes to infrastructure" in infrastructure.to_string()


def test_a_row_lives_online_as_long_as_in_a_join(tmp_path, online):
    write(tmp_path, rows([1, 2], [0, 2]))
    store = open_repository(tmp_path, online)
    store.apply([USER, spending(ttl=timedelta(hours=3))])
    store.materialize(START - DAY, START + DAY)
    ids = [{"user_id": one} for one in (1, 2, 9)]
    for hour in (2, 4, 6):
        moment = START + hour * HOUR
        with as_of(moment.to_pydatetime()):
            answer = store.get_online_features(["spending:visits"], ids)
        joined = store.get_historical_features(asked([1, 2, 9], hour), features=["spending:visits"]).to_df()[
            "visits"
        ]
        live = [None if pd.isna(one) else int(one) for one in joined]
        assert answer.to_dict()["visits"] == live
        assert [one == FieldStatus.PRESENT for one in answer.proto.results[1].statuses] == [
            one is not None for one in live
        ]
    assert live == [None, None, None]


def test_an_older_row_never_replaces_a_newer_one_and_the_sender_is_not_told(tmp_path, online):
    write(tmp_path, rows())
    store = open_repository(tmp_path, online)
    view = spending()
    view = FeatureView(
        name="spending",
        entities=[USER],
        ttl=timedelta(0),
        schema=view.schema,
        source=PushSource(name="till", batch_source=view.batch_source),
    )
    store.apply([USER, view])
    client = TestClient(get_app(store))
    for spent, hour in ((5.0, 3), (7.0, 1), (6.0, 3)):  # the same time again is a correction
        body = {
            "user_id": [1],
            "spent": [spent],
            "visits": [0],
            "event_timestamp": [str(START + hour * HOUR)],
        }
        sent = {"push_source_name": "till", "df": body, "to": "online"}
        assert client.post("/push", json=sent).status_code == 200
        found = store.get_online_features(["spending:spent"], [{"user_id": 1}]).to_dict()["spent"]
        assert found == [6.0 if spent == 6.0 else 5.0]


def test_feasts_other_stores_may_add_the_key_of_a_view_without_entities(tmp_path):
    write(tmp_path, rows().drop(columns="user_id"))
    store = open_repository(tmp_path, offline=DaskOfflineStoreConfig())
    store.apply([spending(path=str(tmp_path / "spending.parquet"), entities=())])
    store.materialize(START - DAY, START + DAY)
    assert store.get_online_features(["spending:visits"], [{"any": 1}]).to_dict() == {"visits": [10]}
