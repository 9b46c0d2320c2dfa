"""Candidates' features from memory are those of the online store, of one embedding and one load at a time.

Run: pytest tests/test_item_matrix.py
"""

import numpy as np
import pytest
from conftest import DAY, START, write_embedding

from feature_repo import item_matrix
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.item_matrix import embedding_of, matrix_key, open_item_matrix
from feature_repo.online import OnlineReader, StoreUnavailable
from feature_repo.store import materialize, open_store
from feature_repo.vectors import Vectors
from moonstore.errors import StoreError
from moonstore.freshness import US

WIDTH, HISTORY = 8, 7
EARLY, LATE = START + 35 * DAY, START + 50 * DAY
UNKNOWN = 99


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def shop(request, tiny_world, tmp_path):
    """A loaded store with one embedding, and the embedding's artifact."""
    url = None
    if request.param == "redis":
        import redis

        url = request.getfixturevalue("redis_server").url(10)
        redis.Redis.from_url(url).flushdb()
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split, request.param, url)
    artifact = write_embedding(tmp_path / "e", tiny_world, WIDTH, START + 10 * DAY)
    publish_embedding(tmp_path / "store", artifact)
    materialize(tmp_path / "store", EARLY)
    return tmp_path / "store", artifact


def opened(store_dir, artifact):
    return open_item_matrix(open_store(store_dir), embedding_of(store_dir, artifact.id))


def assert_reads_alike(reader, matrix, ids, when):
    asked, held = reader.read_items(ids, when), matrix.read(ids, when)
    assert list(asked.columns) == list(held.columns)
    for name, column in asked.columns.items():
        assert (
            held.columns[name].type == column.type and held.columns[name].to_pylist() == column.to_pylist()
        ), name
    for view in ("item_profile", "item_stats"):
        np.testing.assert_array_equal(held.found[view], asked.found[view])


def test_it_reads_what_the_store_holds(tiny_world, shop):
    store_dir, artifact = shop
    matrix, reader = opened(store_dir, artifact), OnlineReader(store_dir, HISTORY)
    rng = np.random.default_rng(0)
    everything = np.append(tiny_world.item_ids, [UNKNOWN, -5, 2**62])
    for ids in (everything, rng.permutation(everything), rng.choice(everything, 50), everything[:0]):
        assert_reads_alike(reader, matrix, ids.astype(np.int64), EARLY)
    found = matrix.read(tiny_world.item_ids, EARLY).found["item_stats"]
    assert found.any() and not found.all()
    vectors = Vectors.open(artifact)
    assert matrix.vectors.ids.tolist() == vectors.ids.tolist()
    np.testing.assert_array_equal(matrix.vectors.matrix, vectors.matrix)


def test_a_frame_is_the_same_with_it_and_without(tiny_world, shop):
    store_dir, artifact = shop
    reader = OnlineReader(store_dir, HISTORY)
    snapshot = reader.with_items(opened(store_dir, artifact))
    items = [*tiny_world.item_ids.tolist(), UNKNOWN]
    for user in tiny_world.user_ids.tolist():
        one, other = (each.read(user, items, EARLY) for each in (reader, snapshot))
        assert one.candidates.equals(other.candidates) and one.requests.equals(other.requests)


def test_a_time_to_live_counts_at_the_time_of_the_request(tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr("feature_repo.features.item_stats.ttl", DAY)
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    artifact = write_embedding(tmp_path / "e", tiny_world, WIDTH, START + 10 * DAY)
    publish_embedding(tmp_path / "store", artifact)
    materialize(tmp_path / "store", EARLY)
    matrix, reader = opened(tmp_path / "store", artifact), OnlineReader(tmp_path / "store", HISTORY)
    counts = []
    for when in (EARLY, EARLY + US, EARLY + DAY, EARLY + 30 * DAY):
        assert_reads_alike(reader, matrix, tiny_world.item_ids, when)
        counts.append(int(matrix.read(tiny_world.item_ids, when).found["item_stats"].sum()))
    assert counts[0] >= counts[1] > 0 == counts[3]


def test_it_is_made_once_and_mapped_after_that(shop, monkeypatch):
    store_dir, artifact = shop
    first = opened(store_dir, artifact)

    def read_again(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(item_matrix, "read_now", read_again)
    again = opened(store_dir, artifact)
    assert again.items.equals(first.items) and again.key == first.key
    files = [path for path in (store_dir / "data" / "item_matrix").rglob("*.arrow")]
    assert len(files) == 2


def test_after_a_load_there_is_another_and_the_old_one_stays_as_it_was(tiny_world, shop):
    store_dir, artifact = shop
    old, reader = opened(store_dir, artifact), OnlineReader(store_dir, HISTORY)
    before = old.read(tiny_world.item_ids, LATE).columns
    materialize(store_dir, LATE)
    new = opened(store_dir, artifact)
    assert new.key != old.key and new.loaded_until > old.loaded_until
    assert_reads_alike(reader, new, tiny_world.item_ids, LATE)
    after = old.read(tiny_world.item_ids, LATE).columns
    assert all(after[name].equals(before[name]) for name in before)
    assert not after["shown_all"].equals(new.read(tiny_world.item_ids, LATE).columns["shown_all"])
    assert len(list((store_dir / "data" / "item_matrix").glob("v*"))) == 1


def test_each_embedding_has_its_own(tiny_world, shop, tmp_path):
    store_dir, artifact = shop
    other = write_embedding(tmp_path / "other", tiny_world, 2 * WIDTH, START + 10 * DAY, seed=3)
    publish_embedding(store_dir, other)
    materialize(store_dir, EARLY)
    for one in (artifact, other):
        matrix = opened(store_dir, one)
        np.testing.assert_array_equal(matrix.vectors.matrix, Vectors.open(one).matrix)
        assert matrix.embedding.artifact_id == one.id
    assert len(list((store_dir / "data" / "item_matrix").glob("v*"))) == 2
    with pytest.raises(StoreError, match="moon embeddings activate"):
        embedding_of(store_dir, "another")


def test_a_load_of_any_of_its_views_changes_the_key(tiny_world, shop):
    store_dir, artifact = shop
    embedding, keys = embedding_of(store_dir, artifact.id), set()
    for views in (("item_stats",), ("item_profile",), (embedding.item_view,)):
        materialize(store_dir, EARLY, views)
        keys.add(matrix_key(store_dir, embedding))
    assert len(keys) == 3
    materialize(store_dir, EARLY, ("user_profile",))
    assert matrix_key(store_dir, embedding) in keys


def test_items_laid_over_it_replace_and_add(tiny_world, shop):
    store_dir, artifact = shop
    old = opened(store_dir, artifact)
    materialize(store_dir, LATE)
    some = tiny_world.item_ids[::3]
    embedding = embedding_of(store_dir, artifact.id)
    new = item_matrix.read_now(open_store(store_dir), embedding, some).over(old)
    reader = OnlineReader(store_dir, HISTORY)
    assert_reads_alike(reader, new, some, LATE)
    rest = np.setdiff1d(tiny_world.item_ids, some)
    held, before = new.read(rest, LATE), old.read(rest, LATE)
    assert all(held.columns[name].to_pylist() == before.columns[name].to_pylist() for name in held.columns)
    assert new.vectors.ids.tolist() == old.vectors.ids.tolist()


@pytest.mark.redis
def test_without_a_store_there_is_none_and_nothing_half_written(tiny_world, tmp_path, own_redis):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split, "redis", own_redis.url())
    artifact = write_embedding(tmp_path / "e", tiny_world, WIDTH, START + 10 * DAY)
    publish_embedding(tmp_path / "store", artifact)
    materialize(tmp_path / "store", EARLY)
    own_redis.kill()
    with pytest.raises(StoreUnavailable):
        opened(tmp_path / "store", artifact)
    assert list((tmp_path / "store" / "data" / "item_matrix").glob("v*")) == []
