"""Embeddings lie beside each other in the store: a new one overwrites nothing, a dropped one leaves nothing.

Run: pytest tests/test_embedding_versions.py
"""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, make_world, write_embedding

from feature_repo.create import create_store
from feature_repo.embeddings import activate_embedding, as_stored, drop_embeddings, publish_embedding
from feature_repo.online import OnlineReader
from feature_repo.store import materialize, open_store
from feature_repo.vectors import Vectors
from feature_repo.views import EmbeddingRecord
from moonstore.errors import StoreError
from moonstore.matrix import read_matrix

MOMENT, AS_OF, WIDTH = START + 40 * DAY, START + 30 * DAY, 8
PROFILES = ["embedded", pytest.param("redis", marks=pytest.mark.redis)]


@pytest.fixture
def store(request, tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    return tmp_path / "store"


def online_store(request, profile, world, folder):
    """A store without embeddings on a database of its own."""
    url = request.getfixturevalue("redis_server").url(9) if profile == "redis" else None
    create_store(folder / "store", world.dataset, world.split, profile, url)
    return folder / "store"


def embedding_of(folder, world, seed, width=WIDTH):
    return write_embedding(folder / f"e{seed}", world, width, AS_OF, seed)


def vectors_online(store, view, artifact, feature="vector"):
    """Whether the view holds the artifact's item vectors, bit for bit."""
    vectors = Vectors.open(artifact)
    table = vectors.queries if feature.startswith("query") else vectors
    stored = read_matrix(open_store(store), view, table.ids, [feature])
    return stored.found.all() and np.array_equal(np.stack(stored.columns[feature].values), table.matrix)


def read_by(store, service):
    """The views that a feature service reads."""
    return {one.name for one in open_store(store).get_feature_service(service).feature_view_projections}


@pytest.mark.parametrize("profile", PROFILES)
def test_versions_lie_beside_each_other_online_and_are_switched_whole(request, tiny_world, tmp_path, profile):
    store = online_store(request, profile, tiny_world, tmp_path)
    assert "item_embedding_v1" not in {view.name for view in open_store(store).list_feature_views()}
    assert read_by(store, "relevance_v1") == set()
    first, second = embedding_of(tmp_path, tiny_world, 0), embedding_of(tmp_path, tiny_world, 1, 2 * WIDTH)
    assert publish_embedding(store, first).version == 1
    materialize(store, MOMENT)
    kept = (store / "data" / "item_embedding_v1.parquet").read_bytes()
    new = publish_embedding(store, second)
    assert new.version == 2 and EmbeddingRecord.load(store).active == 1
    materialize(store, MOMENT, [new.item_view, new.query_view])
    assert (store / "data" / "item_embedding_v1.parquet").read_bytes() == kept
    for version, artifact in ((1, first), (2, second)):
        assert vectors_online(store, f"item_embedding_v{version}", artifact)
        assert vectors_online(store, f"query_embedding_v{version}", artifact, "query_vector")
        view = open_store(store).get_feature_view(f"item_embedding_v{version}")
        assert view.tags == {"encoder_id": f"encoder{version - 1}", "version": str(version)}
        field = next(one for one in view.features if one.name == "vector")
        assert field.vector_index and field.vector_length == WIDTH * version
    assert {"item_embedding_v1", "query_embedding_v1"} <= read_by(store, "relevance_v1")
    activate_embedding(store, second.id)
    for service in ("retrieval_v1", "relevance_v1", "ctr_v1"):
        assert {one for one in read_by(store, service) if "embedding" in one} <= {
            "item_embedding_v2", "query_embedding_v2",
        }  # fmt: skip
    asked = open_store(store).get_feature_service("relevance_v1")
    answer = open_store(store).get_online_features(
        asked, [{"item_id": int(tiny_world.item_ids[0]), "query_id": 1}]
    )
    np.testing.assert_array_equal(answer.to_dict()["vector"][0], Vectors.open(second).matrix[0])


@pytest.mark.parametrize("profile", PROFILES)
def test_a_dropped_version_leaves_nothing_and_takes_nothing_with_it(request, tiny_world, tmp_path, profile):
    store = online_store(request, profile, tiny_world, tmp_path)
    artifacts = [embedding_of(tmp_path, tiny_world, seed) for seed in range(3)]
    for artifact in artifacts:
        publish_embedding(store, artifact)
    materialize(store, MOMENT)
    activate_embedding(store, artifacts[2].id)
    users = [int(user) for user in tiny_world.user_ids]
    before = [OnlineReader(store, 5).read(user, tiny_world.item_ids, MOMENT) for user in users]
    stored = rows_of(store, profile, tiny_world)
    assert stored[1] and stored[2] and stored[3]
    assert [one.version for one in drop_embeddings(store, {artifacts[1].id})] == [1]
    names = {view.name for view in open_store(store).list_feature_views()}
    assert {name for name in names if "embedding" in name} == {
        f"{kind}_embedding_v{version}" for kind in ("item", "query") for version in (2, 3)
    }
    assert not list((store / "data").rglob("*_embedding_v1*"))
    assert "item_embedding_v1" not in {one.name for one in open_store(store).list_data_sources()}
    after = rows_of(store, profile, tiny_world)
    assert not after[1] and after[2] == stored[2] and after[3] == stored[3]
    assert vectors_online(store, "item_embedding_v2", artifacts[1])
    for frame, user in zip(before, users, strict=True):
        again = OnlineReader(store, 5).read(user, tiny_world.item_ids, MOMENT)
        assert again.candidates.equals(frame.candidates) and again.requests.equals(frame.requests)
    assert drop_embeddings(store, {artifacts[1].id}) == []
    assert publish_embedding(store, embedding_of(tmp_path, tiny_world, 7)).version == 4
    drop_embeddings(store, set())
    assert [one.version for one in EmbeddingRecord.load(store).embeddings] == [3]
    assert publish_embedding(store, artifacts[0]).version == 5  # no number is given twice


def rows_of(store, profile, world):
    """version -> how many values of its views are online, stamps included."""
    opened = open_store(store)
    online = opened._get_provider().online_store
    counts = {}
    for version in (1, 2, 3):
        views = (f"item_embedding_v{version}", f"query_embedding_v{version}")
        if profile == "embedded":
            connection = online._get_conn(opened.config)
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
            counts[version] = sum(
                connection.execute(f"SELECT count(*) FROM moon_{view}").fetchone()[0]
                for view in views
                if f"moon_{view}" in tables
            )
        else:
            client = online._get_client(opened.config.online_store)
            from feast.infra.online_stores.helpers import _mmh3

            names = {"item": ("vector", "encoder_id", "version")}
            names["query"] = tuple(f"query_{name}" for name in names["item"])
            fields = {_mmh3(f"{view}:{name}") for view in views for name in names[view.split("_")[0]]}
            fields |= {f"_ts:{view}".encode() for view in views}
            counts[version] = sum(len(fields & set(client.hkeys(key))) for key in client.scan_iter("*moon"))
    return counts


@pytest.mark.redis
def test_what_others_keep_in_the_same_redis_is_left_alone(redis_server, tiny_world, tmp_path):
    store = tmp_path / "store"
    create_store(store, tiny_world.dataset, tiny_world.split, "redis", redis_server.url(10))
    second = embedding_of(tmp_path, tiny_world, 1)
    publish_embedding(store, embedding_of(tmp_path, tiny_world, 0))
    publish_embedding(store, second)
    activate_embedding(store, second.id)
    materialize(store, MOMENT)
    client = open_store(store)._get_provider().online_store._get_client(open_store(store).config.online_store)
    key = next(one for one in client.scan_iter("*item_id*moon") if client.hlen(one) > 8)
    theirs = key[: -len(b"moon")] + b"honeymoon"
    client.hset(theirs, mapping=client.hgetall(key))
    kept = client.hgetall(theirs)
    drop_embeddings(store, set())
    assert client.hgetall(theirs) == kept and client.hlen(key) == len(kept) - 4


def test_an_embedding_that_is_there_keeps_its_version(store, tiny_world, tmp_path):
    artifact = embedding_of(tmp_path, tiny_world, 0)
    publish_embedding(store, artifact)
    record, source = EmbeddingRecord.load(store), store / "data" / "item_embedding_v1.parquet"
    written = source.stat().st_mtime_ns
    assert publish_embedding(store, artifact).version == 1
    assert EmbeddingRecord.load(store) == record and source.stat().st_mtime_ns == written


@pytest.mark.parametrize("step", ["replace_source", "EmbeddingRecord.save", "apply_definitions"])
def test_a_killed_publication_serves_the_old_vectors_and_is_repeated(
    store, tiny_world, tmp_path, monkeypatch, step
):
    first, second = embedding_of(tmp_path, tiny_world, 0), embedding_of(tmp_path, tiny_world, 1)
    publish_embedding(store, first)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(f"feature_repo.embeddings.{step}", interrupted)
        publish_embedding(store, second)
    assert read_by(store, "ctr_v1") >= {"item_embedding_v1"}
    assert open_store(store).get_feature_view("item_embedding_v1").tags["encoder_id"] == "encoder0"
    assert pq.read_table(store / "data" / "item_embedding_v1.parquet").column("version")[0].as_py() == 1
    assert publish_embedding(store, second).version == 2
    assert open_store(store).get_feature_view("item_embedding_v2").tags["encoder_id"] == "encoder1"
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("feature_repo.embeddings.apply_definitions", interrupted)
        activate_embedding(store, second.id)
    activate_embedding(store, second.id)
    assert read_by(store, "ctr_v1") >= {"item_embedding_v2"}
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("feature_repo.embeddings.apply_definitions", interrupted)
        drop_embeddings(store, set())
    assert drop_embeddings(store, set()) == []  # the record had said so already
    assert not list((store / "data").rglob("*_embedding_v1*"))
    assert "item_embedding_v1" not in {view.name for view in open_store(store).list_feature_views()}


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_registry_half_written_is_not_seen(store, tiny_world, tmp_path, monkeypatch):
    publish_embedding(store, embedding_of(tmp_path, tiny_world, 0))
    whole = (store / "data" / "registry.db").read_bytes()
    monkeypatch.setattr("moonstore.registry_store.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_embedding(store, embedding_of(tmp_path, tiny_world, 1))
    assert (store / "data" / "registry.db").read_bytes() == whole


def test_vectors_of_strangers_and_unknown_versions_are_refused(store, tiny_world, tmp_path):
    other = make_world(seed=9)
    with pytest.raises(StoreError, match="20 of 20 vectors are of items the store does not know"):
        publish_embedding(store, embedding_of(tmp_path, other, 0))
    assert EmbeddingRecord.load(store) == EmbeddingRecord() and not list(store.rglob("*_embedding_v*"))
    with pytest.raises(StoreError, match="found nothing"):
        activate_embedding(store, "nothing")


def test_a_store_of_an_earlier_moon_says_what_to_run(store):
    (store / "data" / "embedding.json").write_text('{"width": 8, "version": 1}')
    with pytest.raises(StoreError, match="Run 'moon store' again"):
        open_store(store)


def test_vectors_gathered_at_a_time_are_those_of_feasts_point_in_time_join(tiny_world, store, tmp_path):
    """Of items and queries, at moments around the end of the encoder's training data and the items' first days."""
    artifact = write_embedding(tmp_path / "e", tiny_world, WIDTH, START + 20 * DAY)
    embedding = publish_embedding(store, artifact)
    stored = as_stored(Vectors.open(artifact), store)
    rng = np.random.default_rng(0)
    for key, table, view, feature in (
        ("item_id", stored, embedding.item_view, "vector"),
        ("query_id", stored.queries, embedding.query_view, "query_vector"),
    ):
        ids = np.append(rng.choice(table.ids, 60), 99)
        time_us = rng.choice(np.append(table.available_us, table.available_us + 1), 61)
        found, known = table.gather(ids, time_us)
        asked = pd.DataFrame(
            {key: ids, "event_timestamp": pd.to_datetime(time_us - 1, unit="us", utc=True), "row": range(61)}
        )
        joined = open_store(store).get_historical_features(asked, [f"{view}:{feature}"]).to_df()
        expected = joined.sort_values("row")[feature].tolist()
        assert known.tolist() == [one is not None for one in expected] and 0 < known.sum() < 60
        for row in np.flatnonzero(known):
            np.testing.assert_array_equal(found[row], np.asarray(expected[row], np.float32))
        assert not found[~known].any()
        assert table.gather(ids)[1].tolist() == [True] * 60 + [False]
