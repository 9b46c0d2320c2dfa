"""Columns that nothing else reads are features of their entity: kept, off, listed, and on by a line of moon.toml.

Run: pytest tests/test_left_over_columns.py
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.contracts import DataError
from dataset.extra import LeftOver, given_vectors
from dataset.importers import import_path
from dataset.split import Split, split_dataset
from dataset.tables import Dataset
from feature_repo.check import check_store
from feature_repo.create import create_store
from feature_repo.listing import listed
from feature_repo.signature import Signature, signature_of
from feature_repo.store import materialize
from moon.describing import init

ITEMS = "sku,name,Weight (kg),Colours,handmade\n" + "".join(
    f'A{n},red lamp No {n},{"" if n == 3 else n / 4},"[""a"",""b{n}""]",{("true", "false")[n % 2]}\n'
    for n in range(40)
)
USERS = "customer,age,points\n" + "".join(f"c{n},{n + 20},{n * 10}\n" for n in range(12))
LOG = "customer,sku,created_at,event\n" + "".join(
    f"c{n % 12},A{n * 7 % 40},2024-03-{n % 28 + 1:02d}T{n % 24:02d}:00:00Z,{('view', 'buy')[n % 3 == 0]}\n"
    for n in range(400)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    for name, text in (("products.csv", ITEMS), ("customers.csv", USERS), ("log.csv", LOG)):
        (root / name).write_text(text)
    init(root)
    return root


def imported(folder, out):
    return Dataset.open(import_path(folder, out))


def stored(dataset, out):
    split = Split.open(split_dataset(dataset, out / "split"))
    left_over = LeftOver.of(dataset.artifact)
    return create_store(out / "store", dataset, split, id_kinds=dataset.id_kinds, left_over=left_over)


def test_left_over_columns_are_in_the_artifact_in_their_own_type(folder, tmp_path):
    dataset = imported(folder, tmp_path / "d")
    kept = dataset.artifact.config["extra"]
    assert kept["item"]["Weight (kg)"] == "double" and kept["user"] == {"points": "int64"}
    left = LeftOver.of(dataset.artifact).tables["item"]
    names = dict(
        zip(dataset.items["item_id"].to_pylist(), dataset.items["external_id"].to_pylist(), strict=True)
    )
    found = {names[row["item_id"]]: row["Weight (kg)"] for row in left.to_pylist()}
    assert found == {f"A{n}": None if n == 3 else n / 4 for n in range(40)}


def test_they_are_features_that_are_off_listed_and_read_online(folder, tmp_path):
    dataset = imported(folder, tmp_path / "d")
    store = stored(dataset, tmp_path)
    text = listed(tmp_path / "store")
    (line,) = [one for one in text.splitlines() if "item_weight_kg" in one]
    assert line.split()[:2] == ["item_extra", "item_weight_kg"] and "off" in line and "'Weight (kg)'" in line
    assert "features = [" in text
    for service in store.list_feature_services():
        assert not {"item_extra", "user_extra"} & {one.name for one in service.feature_view_projections}
    materialize(tmp_path / "store", datetime(2024, 5, 1, tzinfo=UTC), only=["item_extra"])
    ids = dict(
        zip(dataset.items["external_id"].to_pylist(), dataset.items["item_id"].to_pylist(), strict=True)
    )
    asked = [{"item_id": ids["A3"]}, {"item_id": ids["A8"]}]
    answer = store.get_online_features(["item_extra:item_weight_kg"], asked).to_dict()
    assert answer["item_weight_kg"] == [None, 2.0]


@pytest.mark.parametrize("on", [False, True])
def test_a_column_that_is_nearly_empty_is_a_problem_only_where_it_is_read(tmp_path, on):
    """Most shops' exports have such columns: dates of what is gone, a second option."""
    rows = "".join(f"A{n},red lamp No {n},{'' if n else 'oak'}\n" for n in range(40))
    for name, text in (("products.csv", f"sku,name,wood\n{rows}"), ("log.csv", LOG)):
        (tmp_path / name).write_text(text)
    init(tmp_path)
    if on:
        path = tmp_path / "moon.toml"
        path.write_text(path.read_text().replace('# features = ["wood"]', 'features = ["wood"]'))
    stored(imported(tmp_path, tmp_path / "d"), tmp_path)
    materialize(tmp_path / "store", datetime(2024, 5, 1, tzinfo=UTC), only=["item_extra"])
    (found,) = [one for one in check_store(tmp_path / "store") if one.view == "item_extra"]
    assert found.problems == (("98% of item_wood are null",) if on else ())
    assert found.nulls == ((39 / 40, "item_wood") if on else None) and found.parity == 1


def test_one_line_switches_a_column_on_in_the_signature(folder, tmp_path):
    path = folder / "moon.toml"
    before = path.read_text()
    path.write_text(before.replace("[[users]]", '[[users]]\nfeatures = ["points"]', 1))
    try:
        store = stored(imported(folder, tmp_path / "d"), tmp_path)
    finally:
        path.write_text(before)
    ctr = signature_of(store.get_feature_service("ctr_v1"), store.list_all_feature_views())
    assert isinstance(ctr, Signature)
    (feature,) = [one for one in ctr.features if one.name == "user_points"]
    assert (feature.view, feature.role, feature.kind, feature.dtype) == (
        "user_extra",
        "user",
        "number",
        pa.int64(),
    )
    assert "ctr_v1" in next(one for one in listed(tmp_path / "store").splitlines() if "user_points" in one)


def test_vectors_and_a_split_of_ones_own(tmp_path):
    """Lists of fractions are vectors; one column may stand in for the encoder, and the log may say its parts."""
    root, draw = tmp_path / "shop", np.random.default_rng(0)
    root.mkdir()
    looks, tone = draw.normal(size=(20, 4)), draw.normal(size=(20, 3))
    items = {
        "sku": [f"A{n}" for n in range(20)],
        "words": ["red"] * 20,
        "looks": list(looks),
        "tone": list(tone),
    }
    pq.write_table(pa.table(items | {"notes": [[0.5] * (n % 3) for n in range(20)]}), root / "items.parquet")
    parts = ["train"] * 60 + ["valid"] * 15 + ["test"] * 25
    log = {"user": [n % 5 for n in range(100)], "sku": [f"A{n * 7 % 20}" for n in range(100)]}
    log |= {"at": np.arange(100) * 3600 + 1_700_000_000, "taken": draw.integers(0, 2, 100), "part": parts}
    pq.write_table(pa.table(log), root / "log.parquet")
    (root / "moon.toml").write_text(VECTORS)
    dataset = imported(root, tmp_path / "d")
    ids, given = given_vectors(dataset.artifact)
    own = dict(
        zip(dataset.items["item_id"].to_pylist(), dataset.items["external_id"].to_pylist(), strict=True)
    )
    rows = looks[[int(own[one][1:]) for one in ids.tolist()]]
    np.testing.assert_allclose(given, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    split = Split.open(split_dataset(dataset, tmp_path / "split"))
    assert split.by == "given" and sorted(split.ranking["part"].to_pylist()) == sorted(parts)
    (root / "moon.toml").write_text(VECTORS.replace('"looks"', '"words"'))
    with pytest.raises(
        DataError, match="vectors of one width in the column 'words' of the items, found string"
    ):
        given_vectors(imported(root, tmp_path / "words").artifact)
    store = create_store(tmp_path / "store", dataset, split, left_over=LeftOver.of(dataset.artifact))
    kinds = {
        (one.role, one.name): one.kind
        for one in signature_of(store.get_feature_service("ctr_v1"), store).features
    }
    assert kinds["candidate", "item_tone"] == kinds["behaviour", "behaviour_item_tone"] == "vector"
    stored = {one.name: str(one.dtype) for one in store.get_feature_view("item_extra").schema}
    assert (stored["item_looks"], stored["item_notes"]) == ("Array(Float32)", "String")


VECTORS = """
[data]
name = "vectors"

[split]
protocol = "given"

[[items]]
files = ["items.parquet"]
id = "sku"
features = ["tone"]
vectors = "looks"

[[events]]
files = ["log.parquet"]
user = "user"
item = "sku"
time = "at"
time_format = "s"
type = "impression"
clicked = "taken"
context = ["part"]
"""


def test_those_of_events_are_beside_the_store_for_its_request_sources(folder, tmp_path):
    log = (folder / "log.csv").read_text()
    rows = [f"{line},{('web', 'phone')[n % 2] if n else 'device'}" for n, line in enumerate(log.splitlines())]
    path = folder / "moon.toml"
    before = path.read_text()
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    path.write_text(before.replace("[[events]]", '[[events]]\ncontext = ["device"]', 1))
    try:
        dataset = imported(folder, tmp_path / "d")
    finally:
        (folder / "log.csv").write_text(log)
        path.write_text(before)
    stored(dataset, tmp_path)
    kept = pq.read_table(tmp_path / "store/data/event_context.parquet")
    devices = dict(zip(kept["event_id"].to_pylist(), kept["device"].to_pylist(), strict=True))
    assert set(devices) == set(dataset.events["event_id"].to_pylist())
    assert sorted(devices.values()) == ["phone"] * 200 + ["web"] * 200
