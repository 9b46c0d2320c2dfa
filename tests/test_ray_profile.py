"""The Ray profile answers and loads what the embedded one does, and where it does not is written down.

Run: pytest tests/test_ray_profile.py
"""

import shutil
import sqlite3
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, make_requests, write_embedding
from feast import FeatureStore

from feature_repo.check import check_store
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.repository import definitions
from feature_repo.sources import DATA, TIMESTAMP
from feature_repo.store import BEGINNING, REPOSITORY, US, materialize, open_store
from feature_repo.views import EmbeddingRecord

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PROFILE = REPOSITORY / "profiles" / "ray" / "feature_store.yaml"
WIDTH = 8
LATE = START + 40 * DAY
SCALARS = (
    "user_profile:segment",
    "user_profile:age_band",
    "user_events:position",
    "item_profile:category",
    "item_profile:price",
    "item_profile:first_seen_us",
    "item_stats:shown_all",
    "item_stats:rate_all",
)
LISTS = ("item_profile:attributes", "item_embedding_v1:vector", "user_history:recent_item_id")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on two cores with a small object store; Feast uses what is running."""
    import ray
    from feast.infra.ray_initializer import shutdown_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(REPOSITORY.parent))  # the workers' path to our online store
        ray.init(
            "local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False
        )
        yield
        shutdown_ray()


@pytest.fixture(scope="module")
def embedded(tiny_world, tmp_path_factory):
    """The folder of a store, not loaded."""
    folder = tmp_path_factory.mktemp("ray")
    create_store(folder / "store", tiny_world.dataset, tiny_world.split)
    publish_embedding(folder / "store", write_embedding(folder / "e", tiny_world, WIDTH, START + 10 * DAY))
    return folder / "store"


def with_ray(folder):
    """The store at ``folder`` as ``feast -f profiles/ray/feature_store.yaml`` opens it."""
    return FeatureStore(repo_path=str(folder), fs_yaml_file=PROFILE)


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def change(folder, view, row_to_row):
    """Rewrite the source of a view."""
    path = folder / DATA / f"{view}.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(row_to_row(table.to_pylist()), table.schema), path)


def answers(store, asked, features):
    """row_id -> feature -> plain value, of the rows that came back."""
    rows = store.get_historical_features(asked.copy(), features=list(features)).to_df().to_dict("records")
    assert len({row["row_id"] for row in rows}) == len(rows)
    names = [reference.split(":")[1] for reference in features]
    return {row["row_id"]: {name: plain(row[name]) for name in names} for row in rows}


def plain(value):
    if isinstance(value, list | np.ndarray):
        return list(value)
    return None if pd.isna(value) else value


def at(when, **columns):
    count = max(len(values) for values in columns.values())
    moments = pd.to_datetime(when if isinstance(when, list) else [when] * count, utc=True)
    return pd.DataFrame({**columns, "event_timestamp": moments, "row_id": range(count)})


def requests(world):
    """Slates of one user and time, users and items nobody knows, and one slate from before there was anything."""
    rows = make_requests(world, seed=7)
    users, items, when = (rows.column(name).to_pylist() for name in ("user_id", "item_id", "time"))
    few = world.item_ids[:3].tolist()
    users += [int(world.user_ids[0])] * len(few)
    return at([*when, *[START - DAY] * len(few)], user_id=users, item_id=items + few)


def test_the_same_definitions_are_applied(embedded, tmp_path):
    folder = copy(embedded, tmp_path)
    (folder / DATA / "registry.db").unlink()
    store = with_ray(folder)
    store.apply(list(definitions(EmbeddingRecord.load(folder)).values()))
    assert type(store._get_provider().batch_engine).__name__ == "RayComputeEngine"
    assert type(store._get_provider().offline_store).__name__ == "RayOfflineStore"
    one, other = ({str(v.name): v for v in s.list_feature_views()} for s in (store, open_store(embedded)))
    assert len(one) == 8 and one == other


def test_scalars_are_the_embedded_answer_row_for_row(tiny_world, embedded):
    asked = requests(tiny_world)
    assert asked.duplicated(["user_id", "event_timestamp"]).sum() > 50
    expected = answers(open_store(embedded), asked, SCALARS)
    assert len(expected) == len(asked)
    missing = {name: sum(row[name] is None for row in expected.values()) for name in expected[0]}
    assert all(3 < count < len(asked) - 3 for count in missing.values()), missing
    assert answers(with_ray(embedded), asked, SCALARS) == expected


def test_lists_are_the_embedded_answer_but_a_missing_one_is_empty(tiny_world, embedded):
    asked = requests(tiny_world)
    expected = answers(open_store(embedded), asked, LISTS)
    assert sum(None in row.values() for row in expected.values()) > 10
    empty = {row: {name: value or [] for name, value in row_.items()} for row, row_ in expected.items()}
    assert answers(with_ray(embedded), asked, LISTS) == empty


def test_known_difference_rows_of_one_key_and_time_collapse(tiny_world, embedded):
    """Where the rows of a view, sorted by key, are sorted by time as well; elsewhere Feast's fast path raises."""
    asked = at(LATE, query_id=[1, 1, 1, 2], item_id=tiny_world.item_ids[:4])
    features = ["query_embedding_v1:query_version"]
    assert sorted(answers(open_store(embedded), asked, features)) == [0, 1, 2, 3]
    assert sorted(answers(with_ray(embedded), asked, features)) == [2, 3]


def test_known_difference_rows_without_a_key_are_dropped(tiny_world, embedded):
    asked = at(LATE, item_id=pd.array([int(tiny_world.item_ids[0]), None], "Int64"))
    features = ["item_stats:shown_all"]
    assert sorted(answers(open_store(embedded), asked, features)) == [0, 1]
    assert sorted(answers(with_ray(embedded), asked, features)) == [0]


def test_known_difference_times_are_cut_to_the_second(embedded, tmp_path):
    """What became known at .7 s is seen at .2 s of the same second, though not a second before."""
    folder, shift = copy(embedded, tmp_path), timedelta(milliseconds=700)
    change(folder, "item_profile", lambda rows: [{**r, TIMESTAMP: r[TIMESTAMP] + shift} for r in rows])
    row = pq.read_table(folder / DATA / "item_profile.parquet").to_pylist()[0]
    moments = [row[TIMESTAMP] - timedelta(milliseconds=back) for back in (1000, 500, 0)]
    asked = at(moments, item_id=[row["item_id"]] * 3)
    features = ["item_profile:first_seen_us"]
    found = [
        [answer["first_seen_us"] is not None for _, answer in sorted(answers(store, asked, features).items())]
        for store in (open_store(folder), with_ray(folder))
    ]
    assert found == [[False, False, True], [False, True, True]]


def test_known_difference_a_view_without_rows_raises(tiny_world, embedded, tmp_path):
    folder = copy(embedded, tmp_path)
    change(folder, "item_embedding_v1", lambda rows: [])
    asked = at(LATE, item_id=tiny_world.item_ids[:3])
    features = ["item_stats:shown_all", "item_embedding_v1:version"]
    assert len(answers(open_store(folder), asked, features)) == 3
    with pytest.raises(Exception, match="Timestamp field 'event_timestamp' not found"):
        answers(with_ray(folder), asked, features)


def test_known_difference_the_join_of_large_sources_forgets_and_the_profile_never_takes_it(
    tiny_world, embedded
):
    asked = at(LATE, item_id=tiny_world.item_ids[:3])
    features = ["item_stats:shown_all"]
    store = with_ray(embedded)
    assert store.config.offline_store.broadcast_join_threshold_mb >= 1_000_000
    assert all(row["shown_all"] is not None for row in answers(store, asked, features).values())
    store.config.offline_store.broadcast_join_threshold_mb = -1
    assert all(row["shown_all"] is None for row in answers(store, asked, features).values())


def online(store, world):
    """Every feature and its time, as Feast's client reads them."""
    found = {}
    for view in store.list_feature_views():
        (key,) = view.join_keys
        ids = {"user_id": world.user_ids, "item_id": world.item_ids, "query_id": np.arange(7)}[key]
        answer = store.get_online_features(
            features=[f"{view.name}:{field.name}" for field in view.features],
            entity_rows=[{key: int(one)} for one in ids],
        )
        found[view.name] = answer.to_dict(include_event_timestamps=True)
    return found


def test_a_load_by_ray_equals_a_load_by_our_engine(tiny_world, embedded, tmp_path):
    ours, rays = shutil.copytree(embedded, tmp_path / "ours"), copy(embedded, tmp_path)
    reports = materialize(ours, tiny_world.end)
    assert all(report.written == report.rows > 4 for report in reports.values()), reports
    with_ray(rays).materialize(BEGINNING, tiny_world.end - US)
    assert online(with_ray(rays), tiny_world) == online(open_store(ours), tiny_world)
    assert all(values(rays, view) == values(ours, view) for view in reports)
    assert not [one.problems for one in check_store(rays) if one.problems]


def values(folder, view):
    """The bytes of a view in the SQLite store."""
    with sqlite3.connect(folder / DATA / "online.db") as connection:
        rows = connection.execute(
            f"SELECT entity_key, feature_name, value, event_ts FROM moon_{view} ORDER BY entity_key, feature_name"
        ).fetchall()
    assert rows
    return rows


def test_known_difference_a_bad_row_takes_its_block_along_in_silence_and_the_check_says_so(
    tiny_world, embedded, tmp_path
):
    ours, rays = shutil.copytree(embedded, tmp_path / "ours"), copy(embedded, tmp_path)
    for folder in (ours, rays):
        change(folder, "item_embedding_v1", lambda rows: [{**rows[0], "vector": [0.0]}, *rows[1:]])
    report = materialize(ours, tiny_world.end)["item_embedding_v1"]
    assert (report.rows, report.written) == (20, 19)
    with_ray(rays).materialize(BEGINNING, tiny_world.end - US, feature_views=["item_embedding_v1"])
    (found,) = (one for one in check_store(rays) if one.view == "item_embedding_v1")
    assert found.entities == 19 and 0 < found.coverage < 1  # of the good ones
    assert "of the entities are online, expected 99%" in found.problems[0]
