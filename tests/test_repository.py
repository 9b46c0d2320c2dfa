"""The feature repository: our definitions, and any file in ``feature_repo/mine``.

Run: pytest tests/test_repository.py
"""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START

from feature_repo import dead_letters
from feature_repo.create import create_store
from feature_repo.online import OnlineReader, check_loaded
from feature_repo.repository import definitions
from feature_repo.signature import Feature, Signature, signature_of, united
from feature_repo.store import REPOSITORY, apply_definitions, materialize, open_store
from feature_repo.views import Embedding, EmbeddingRecord
from moonstore.errors import StoreError
from moonstore.matrix import read_matrix

TWO = EmbeddingRecord(tuple(Embedding(version, 4, "encoder", f"e{version}") for version in (1, 2)), 2, 2)
NONE = EmbeddingRecord()
SEEN = START + 2 * DAY


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with an empty folder ``mine``, in the place of ours."""
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    (tmp_path / "repository" / "mine").mkdir(parents=True)
    return tmp_path / "repository"


def add_example(repository, item_ids):
    """The documented example and its data: a discount of a tenth of the item's place."""
    mine = repository / "mine"
    shutil.copy(REPOSITORY / "mine" / "example.py.txt", mine / "example.py")
    rows = {
        "item_id": pa.array(item_ids, pa.int64()),
        "discount": pa.array([place / 10 for place in range(len(item_ids))], pa.float32()),
        "event_timestamp": pa.array([SEEN] * len(item_ids), pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(rows), mine / "discounts.parquet")


def names(service, record=NONE, repository=REPOSITORY):
    found = definitions(record, repository)
    return [one.reference for one in signature_of(found[service], found.values()).features]


def test_our_services_are_signatures():
    assert names("relevance_v1") == []
    assert names("retrieval_v1")[:2] == ["user_profile:age_band", "user_profile:segment"]
    views = {one.split(":")[0] for one in names("ctr_v1")}
    assert views == {"user_profile", "item_profile", "item_stats", "query_stats"}


def test_the_tag_vectors_adds_those_of_the_active_embedding_alone():
    both = ["item_embedding_v2:vector", "query_embedding_v2:query_vector"]
    assert names("retrieval_v1", TWO)[-1:] == both[:1] and names("relevance_v1", TWO) == both
    assert names("ctr_v1", TWO)[-2:] == both and len(names("ctr_v1", TWO)) == len(names("ctr_v1")) + 2
    assert {"item_embedding_v1", "query_embedding_v1"} <= set(definitions(TWO))


def test_definitions_are_new_at_each_call():
    first, second = definitions(TWO), definitions(TWO)
    assert all(first[name] is not second[name] for name in first)
    first["item_stats"].tags["changed"] = "by Feast"
    assert second["item_stats"].tags == {}


def test_a_file_in_mine_is_part_of_the_repository_until_it_is_taken_out(repository, tiny_world, tmp_path):
    add_example(repository, tiny_world.item_ids)
    store_dir = tmp_path / "store"
    create_store(store_dir, tiny_world.dataset, tiny_world.split)
    assert "discounts" in materialize(store_dir, START + 10 * DAY)
    store = open_store(store_dir)
    stored = read_matrix(store, "discounts", tiny_world.item_ids, ["discount"])["discount"]
    assert stored.tolist() == pytest.approx([place / 10 for place in range(len(tiny_world.item_ids))])
    assert (
        signature_of(store.get_feature_service("ctr_v1"), store).features[-1].reference
        == "discounts:discount"
    )
    assert "discounts:discount" not in names("ctr_v1")  # another repository, other definitions

    (repository / "mine" / "example.py").unlink()
    apply_definitions(store_dir)
    store = open_store(store_dir)
    assert "discounts" not in {view.name for view in store.list_feature_views()}
    assert not [source for source in store.list_data_sources() if source.name == "discounts"]
    assert "discount" not in {
        one.name for one in signature_of(store.get_feature_service("ctr_v1"), store).features
    }


def test_rows_pushed_to_the_profile_are_online_at_once(tiny_world, tmp_path):
    store_dir = tmp_path / "store"
    create_store(store_dir, tiny_world.dataset, tiny_world.split)
    materialize(store_dir, START + 40 * DAY)
    store, item = open_store(store_dir), tiny_world.item_ids[:1]
    row = pq.read_table(
        store_dir / "data" / "item_profile.parquet", filters=[("item_id", "==", int(item[0]))]
    )
    pushed = row.to_pandas().assign(price=3.5, event_timestamp=START + 41 * DAY)
    store.push("item_profile_push", pushed)
    assert read_matrix(store, "item_profile", item, ["price"])["price"].tolist() == [3.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name", r"mine.py: cannot be imported: ModuleNotFoundError"),
        ("from feast import", r"mine.py: cannot be imported: SyntaxError"),
        (
            "from feature_repo.features import item_profile\nprices = item_profile[['prise']]",
            "mine.py: cannot be imported: ValueError: Feature prise does not exist",
        ),
        (
            "from feast import Entity, ValueType\n"
            "one = Entity(name='item', join_keys=['item_id'], value_type=ValueType.INT64)",
            "mine.py: expected definitions of new names, found Entity item, which feature_repo defines as well",
        ),
        (
            "from feast import FeatureService\nfrom feature_repo.features import user_history\n"
            "mine = FeatureService(name='mine', features=[user_history, user_history])",
            "service mine: expected features of different names",
        ),
        (
            "from feast import FeatureService\nfrom feature_repo.features import item_profile\n"
            "mine = FeatureService(name='mine', features=[item_profile], tags={'vectors': 'items'})",
            "service mine: tag vectors: expected item, query or both, found items",
        ),
    ],
)
def test_a_file_that_defines_nothing_usable_is_refused(repository, text, said):
    (repository / "mine" / "mine.py").write_text(text)
    with pytest.raises(StoreError, match=said):
        definitions(NONE, repository)


def test_a_refused_definition_leaves_the_store_as_it_was(repository, tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    before = (tmp_path / "store" / "data" / "registry.db").read_bytes()
    (repository / "mine" / "mine.py").write_text("1 / 0")
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        apply_definitions(tmp_path / "store")
    assert (tmp_path / "store" / "data" / "registry.db").read_bytes() == before


def test_a_feature_that_no_service_could_read_online_is_refused(repository, tiny_world, tmp_path):
    add_example(repository, tiny_world.item_ids)
    path = repository / "mine" / "example.py"
    path.write_text(path.read_text().replace('name="discounts",', 'name="discounts", online=False,', 1))
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    assert "discounts" not in materialize(tmp_path / "store", START + 10 * DAY)
    with pytest.raises(
        StoreError, match="view discounts: expected a view with online=True, .* reads discount"
    ):
        OnlineReader(tmp_path / "store", 5)


def test_a_view_that_was_never_loaded_is_refused_until_it_is(repository, tiny_world, tmp_path):
    store_dir = tmp_path / "store"
    create_store(store_dir, tiny_world.dataset, tiny_world.split)
    check_loaded(OnlineReader(store_dir, 5))  # nothing is loaded yet: an empty shop is not a mistake
    materialize(store_dir, START + 10 * DAY)
    add_example(repository, tiny_world.item_ids)
    apply_definitions(store_dir)
    with pytest.raises(StoreError, match="found discounts never loaded: a model would read nulls"):
        check_loaded(OnlineReader(store_dir, 5))
    dead_letters.put(store_dir, dead_letters.VIEWS, "materialize", "its file is damaged", {}, "discounts")
    check_loaded(OnlineReader(store_dir, 5))  # a load that failed costs its own features only
    materialize(store_dir, START + 10 * DAY)
    check_loaded(OnlineReader(store_dir, 5))
    frame = OnlineReader(store_dir, 5).read(1, tiny_world.item_ids[:3], START + 10 * DAY)
    assert frame.candidates["discount"].to_pylist() == pytest.approx([0, 0.1, 0.2])


def test_a_service_that_is_not_there_is_named_beside_those_that_are(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    with pytest.raises(StoreError, match="feature service ctr_v2, found ctr_v1, relevance_v1, retrieval_v1"):
        OnlineReader(tmp_path / "store", 5, services=("ctr_v2",))


def test_two_services_that_read_one_name_differently_are_refused():
    one = Feature("price", "item_profile", "price", "candidate", "number", pa.float32())
    other = Feature("price", "offers", "price", "candidate", "number", pa.float32())
    assert united([Signature("a", (one,)), Signature("b", (one,))]) == (one,)
    with pytest.raises(
        StoreError, match="service b: expected price to be item_profile:price, .* found offers:price"
    ):
        united([Signature("a", (one,)), Signature("b", (other,))])
