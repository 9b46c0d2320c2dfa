"""Published click layouts: each sample is asked with the history that the source gives it, in the source's split."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import layout_world
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from layout_world import World, signed, world
from PIL import Image

from dataset.adapters.samples import Histories, Samples, _claimed
from dataset.contracts import DataError
from dataset.extra import given_vectors
from dataset.importers import import_dataset
from dataset.shop_ids import stable_id
from dataset.split import Split, split_dataset
from dataset.tables import Dataset
from encoder.embed import embed
from feature_repo.statistics import DAY_US, daily_stats
from feature_repo.vectors import Vectors
from moon import stages
from moonstore.files import write_json
from run.folder import Run, choices
from serving.app import create_app
from serving.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")
LAYOUTS = ("longctr", "taobao_mm", "microlens")
WINDOW = 6  # of MicroLens' histories


@pytest.fixture(scope="module")
def made() -> World:
    return world(users=20, items=300, each=15)


@pytest.fixture(scope="module")
def imported(made: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Dataset, Split]]:
    folder, found = tmp_path_factory.mktemp("layouts"), {}
    for name in LAYOUTS:
        getattr(layout_world, name)(folder / name, made)
        dataset = Dataset.open(import_dataset(name, folder / name, folder / f"{name}_dataset"))
        found[name] = dataset, Split.open(split_dataset(dataset, folder / f"{name}_split"))
    return found


def names(name: str) -> tuple:
    """What users and items are called inside, by their numbers in the world."""
    if name == "taobao_mm":
        return lambda user: stable_id(signed(user + 1000)), lambda item: stable_id(signed(item))
    return (lambda user: user + (name == "microlens")), (lambda item: item)


def published(name: str, made: World) -> Iterator[tuple]:
    """(part, user, item, clicked, history) of each sample that has a label, as the files say it."""
    user_of, item_of = names(name)
    last, first = {}, {}
    for one in made.samples:
        last[one.user, one.part] = one.seen
        first.setdefault(one.user, one.seen)
    for one in made.samples:
        part, seen = one.part, one.seen
        if name == "taobao_mm":
            seen = last[one.user, one.part]
        if name == "microlens":
            part = {"train": "train", "valid": "test", "test": ""}[one.part]
            seen = first[one.user][-WINDOW:]
        if part and not (name == "taobao_mm" and part == "valid"):
            yield part, user_of(one.user), item_of(one.item), float(one.clicked), [item_of(i) for i in seen]


def test_every_sample_is_asked_in_its_part_and_with_its_published_history(made: World, imported) -> None:
    for name, (_, split) in imported.items():
        assert split.by == "given" and split.shows
        behaved = defaultdict(list)
        for event in split.log.to_pylist():
            if event["type"] == "click":
                behaved[event["user_id"]].append((event["available_time"], event["item_id"]))
        found = Counter()
        for row in split.ranking.to_pylist():
            part = row["part"].replace("valid", "train") if name != "longctr" else row["part"]
            mine = [item for known, item in behaved[row["user_id"]] if known < row["time"]]
            found[part, row["user_id"], row["item_id"], row["label"], tuple(mine)] += 1
        wanted = Counter((*row, tuple(seen)) for *row, seen in published(name, made))
        assert found == wanted, name
        asked = defaultdict(
            Counter
        )  # what a user saw with one history is one request, but for repeated items
        for part, user, item, _, seen in published(name, made):
            asked[part, user, tuple(seen)][item] += 1
        requests = len(set(split.ranking["request_id"].to_pylist()))
        assert requests == sum(max(items.values()) for items in asked.values()), name


def test_no_statistic_of_a_test_holds_what_is_tested(imported) -> None:
    """Statistics change at midnight: all tests are of one day, so what they count was known before it."""
    for name, (_, split) in imported.items():
        tests = split.ranking.filter(pc.equal(split.ranking["part"], "test"))
        days = np.unique(tests["time"].cast(pa.int64()).to_numpy() // DAY_US)
        assert len(days) == 1, name
        shown = split.log.filter(pc.is_in(split.log["event_id"], tests["event_id"]))
        assert (shown["available_time"].cast(pa.int64()).to_numpy() // DAY_US >= days[0]).all()
        stats = pa.concat_tables(part for _, parts in daily_stats(split.months, "item_id") for part in parts)
        known = stats.filter(pc.less_equal(stats["event_timestamp"].cast(pa.int64()), int(days[0]) * DAY_US))
        last = {row["item_id"]: row["shown_all"] for row in known.to_pylist()}
        if name == "longctr":  # what trains and validates, and nothing else, was counted by then
            learned = split.ranking.filter(pc.not_equal(split.ranking["part"], "test"))
            assert {item: n for item, n in last.items() if n} == Counter(learned["item_id"].to_pylist())


def test_columns_of_samples_go_to_whom_they_are_of(made: World, imported) -> None:
    dataset, _ = imported["longctr"]
    user, event = dataset.extra["user"], dataset.extra["event"]
    genders = dict(zip(user["user_id"].to_pylist(), user["gender"].to_pylist(), strict=True))
    assert genders == {number: "fm"[number % 2] for number in range(20)}
    known = dict(zip(event["event_id"].to_pylist(), event["device_type"].to_pylist(), strict=True))
    shown = [row for row in dataset.events.to_pylist() if row["type"] == "impression"]
    wanted = Counter((one.user, one.item, str(len(one.seen) % 3)) for one in made.samples)
    assert Counter((row["user_id"], row["item_id"], known[row["event_id"]]) for row in shown) == wanted
    item = imported["microlens"][0].extra["item"].to_pylist()
    levels = {row["item_id"]: row["likes_level"] for row in item}
    tested = {one.item for one in made.samples if one.part != "test"}
    assert levels == {i: str(made.group[i]) if i in tested else None for i in range(1, 301)}
    assert {tuple(row["item_tags"]) for row in item} == {(str(g), "9") for g in range(1, 5)}


def test_given_vectors_are_the_sources_in_unit_length(made: World, imported) -> None:
    unit = made.vector[1:] / np.linalg.norm(made.vector[1:], axis=1, keepdims=True)
    for name, (dataset, _) in imported.items():
        ids, vectors = given_vectors(dataset.artifact)
        _, item_of = names(name)
        row = {item_of(item): item - 1 for item in range(1, 301)}
        np.testing.assert_allclose(
            vectors, unit[[row[int(i)] for i in ids]], atol=0.03 if name == "taobao_mm" else 1e-6
        )
        wanted = {*dataset.items["item_id"].to_pylist()}
        assert set(ids.tolist()) == wanted and (len(ids) == 300 or name == "taobao_mm")


def test_clicks_claim_behaviours_as_one_after_the_other_would() -> None:
    """The fast way against the plain one, on logs full of repetitions."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        lists = [rng.integers(0, 4, rng.integers(0, 12)).tolist() for _ in range(5)]
        histories = Histories.of(np.arange(5), pa.array(lists, pa.list_(pa.int64())))
        user = rng.integers(0, 6, 40)
        known = np.array([rng.integers(0, len(lists[u]) + 1) if u < 5 else 0 for u in user])
        item, clicked = rng.integers(0, 4, 40), rng.random(40) < 0.6
        samples = Samples(user, item, known, clicked, pa.table({"part": ["train"] * 40}))
        taken, wanted = set(), np.full(40, -1)
        for row in sorted(np.flatnonzero(clicked), key=lambda row: (known[row], row)):
            mine = lists[user[row]] if user[row] < 5 else []
            start = histories.offsets[user[row]] if user[row] < 5 else 0
            free = [
                start + place
                for place in range(known[row], len(mine))
                if mine[place] == item[row] and start + place not in taken
            ]
            if free:
                wanted[row] = free[0]
                taken.add(free[0])
        assert _claimed(samples, histories).tolist() == wanted.tolist(), seed


def test_histories_go_on_where_they_overlap() -> None:
    windows = [[1, 2, 3], [2, 3, 4], [9], [3, 4, 5, 5], [7, 8], None, [9, 9]]
    histories, known = Histories.joined(
        np.array([1, 1, 2, 1, 1, 3, 2]), pa.array(windows, pa.list_(pa.int64()))
    )
    assert histories.users.tolist() == [1, 2, 3] and histories.offsets.tolist() == [0, 8, 10, 10]
    assert histories.item.tolist() == [1, 2, 3, 4, 5, 5, 7, 8, 9, 9]
    assert known.tolist() == [3, 4, 1, 6, 8, 0, 2]


def rewritten(path: Path, **columns: list) -> None:
    """A parquet file with some columns replaced."""
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def test_samples_that_cannot_be_placed_are_set_aside_and_counted(tmp_path: Path) -> None:
    made = world(users=3, items=30, each=10, behaviours=2)
    layout_world.longctr(tmp_path / "raw", made)
    path = tmp_path / "raw/train.parquet"
    lengths = pq.read_table(path)["seq_len"].to_pylist()
    rewritten(path, seq_len=[999, None, -1, *lengths[3:]])
    dataset = Dataset.open(import_dataset("longctr", tmp_path / "raw", tmp_path / "d"))
    assert dataset.artifact.config["quarantined"]["events"] == {
        "history longer than its user's": 1,
        "sample that lacks a number or a label of 0 or 1": 2,
    }
    shown = pc.sum(pc.equal(dataset.events["type"], "impression")).as_py()
    assert shown == len(made.samples) - 3


def test_an_item_shown_twice_with_one_history_keeps_both_labels(tmp_path: Path) -> None:
    made = world(users=4, items=30, each=10)
    one = next(one for one in made.samples if one.part == "train" and one.clicked)
    made.samples.append(replace(one, clicked=False))
    layout_world.longctr(tmp_path / "raw", made)
    dataset = Dataset.open(import_dataset("longctr", tmp_path / "raw", tmp_path / "d"))
    rows = Split.open(split_dataset(dataset, tmp_path / "s")).ranking.to_pylist()
    found = Counter((row["user_id"], row["item_id"], row["label"]) for row in rows)
    assert found == Counter((row.user, row.item, float(row.clicked)) for row in made.samples)


def test_users_without_an_index_are_numbered_by_their_rows(tmp_path: Path, made: World, imported) -> None:
    layout_world.longctr(tmp_path / "raw", made)
    path = tmp_path / "raw/user_info.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["user_index"]), path)
    dataset = Dataset.open(import_dataset("longctr", tmp_path / "raw", tmp_path / "d"))
    assert dataset.events.equals(imported["longctr"][0].events)


def test_a_challenge_with_labels_is_tested_on_its_test(tmp_path: Path, made: World) -> None:
    layout_world.microlens(tmp_path / "raw/MicroLens_1M_x1", made, hidden=False)
    dataset = Dataset.open(import_dataset("microlens", tmp_path / "raw", tmp_path / "d"))
    split = Split.open(split_dataset(dataset, tmp_path / "s"))
    assert Counter(split.ranking["part"].to_pylist()) == Counter(one.part for one in made.samples)


def test_where_there_are_titles_and_pictures_the_encoder_learns_from_them(
    tmp_path: Path, made: World
) -> None:
    layout_world.microlens(tmp_path / "raw", made)
    layout_world.write(tmp_path / "raw", "item_feature", {"item_id": [1, 2], "item_title": ["one", "two"]})
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 10, 10)).save(out, "JPEG")
    (tmp_path / "raw/item_images").mkdir()
    (tmp_path / "raw/item_images/2.jpg").write_bytes(out.getvalue())
    dataset = Dataset.open(import_dataset("microlens", tmp_path / "raw", tmp_path / "d"))
    rows = {row["item_id"]: row for row in dataset.items.to_pylist()}
    assert [rows[n]["title"] for n in (1, 2, 3)] == ["one", "two", None]
    assert dataset.image_bytes(rows[2]["image_id"]) == out.getvalue() and rows[1]["image_id"] is None
    assert "vectors" not in dataset.artifact.config
    assert "item_emb_d128" in dataset.artifact.config["features"]["item"]


def test_only_what_the_samples_need_is_kept_of_taobao(tmp_path: Path, made: World) -> None:
    """Cut to some users' samples, the import holds those users, and what they met, with features or without."""
    layout_world.taobao_mm(tmp_path / "raw", made, catalogue=150)
    for part in ("train", "test"):
        path = tmp_path / f"raw/{part}_samples.parquet"
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.equal(table["129_1"], signed(1003))), path)
    dataset = Dataset.open(import_dataset("taobao_mm", tmp_path / "raw", tmp_path / "d"))
    assert dataset.users["external_id"].to_pylist() == [str(signed(1003))]
    rows = [one for one in made.samples if one.user == 3 and one.part != "valid"]
    met = {one.item for one in rows} | {item for one in rows for item in one.seen}
    items = {row["external_id"]: row["category"] for row in dataset.items.to_pylist()}
    seen = {item for one in rows for item in one.seen}
    wanted = {
        str(signed(item)): [str(signed(int(made.group[item])))] if item <= 150 or item in seen else []
        for item in met
    }
    assert items == wanted


@pytest.mark.parametrize(
    "name, column, values, why",
    [
        ("train_samples", "label_0", [[1]] * 9, r"two numbers in each label_0 .* lists of \[1\]"),
        ("test_user_features", "151_2_180", [[5]] * 3, "a category of each item of a history, .* of 3 users"),
    ],
)
def test_what_is_not_taobaos_is_said(tmp_path: Path, name: str, column: str, values: list, why: str) -> None:
    layout_world.taobao_mm(tmp_path / "raw", world(users=3, items=30, each=5))
    rewritten(tmp_path / f"raw/{name}.parquet", **{column: values})
    with pytest.raises(DataError, match=f"{name}.parquet: expected {why}"):
        import_dataset("taobao_mm", tmp_path / "raw", tmp_path / "d")


def test_a_table_without_label_is_named(tmp_path: Path) -> None:
    layout_world.longctr(tmp_path / "raw", world(users=3, items=30, each=5))
    path = tmp_path / "raw/valid.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["is_click"]), path)
    with pytest.raises(DataError, match="valid.parquet: expected a label in the column is_click or click"):
        import_dataset("longctr", tmp_path / "raw", tmp_path / "d")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Run]:
    """The whole journey on LongCTR's layout, where most items are met for the first time when they are tested."""
    folder = tmp_path_factory.mktemp("journey")
    made = world(users=60, items=1500, each=40, seed=2)
    layout_world.longctr(folder / "raw", made)
    run = Run(folder / "run", f"longctr:{folder / 'raw'}", "nano", 0, "embedded", None)
    run.folder.mkdir()
    write_json(run.folder / "run.json", choices(run))
    for stage in (
        stages.dataset,
        stages.split,
        stages.store,
        stages.encoder,
        stages.embed,
        stages.materialize,
        stages.retrieval,
        stages.ranker,
        stages.evaluate,
        stages.publish,
    ):
        stage(run)
    return made, run


def test_the_planted_auc_is_found_by_the_given_vectors_and_by_nothing_else(finished) -> None:
    made, run = finished
    metrics = {
        name: one["value"] for name, one in json.loads((run.folder / "metrics.json").read_text()).items()
    }
    tests = made.part("test")
    label, chance = np.array([one.clicked for one in tests]), np.array([one.chance for one in tests])
    best = -np.mean(label * np.log(chance) + (1 - label) * np.log(1 - chance))
    assert metrics["ctr/full/auc"] > made.best_auc - 0.05
    assert metrics["ctr/full/gauc"] > 0.7 and metrics["ctr/full/logloss"] < best + 0.1
    for control in ("id_only", "shuffled", "logistic"):
        assert metrics[f"ctr/{control}/auc"] < metrics["ctr/full/auc"] - 0.1


def test_what_is_stored_and_served_are_the_given_vectors(finished) -> None:
    made, run = finished
    embedding = stages.open_dataset(run)
    ids, given = given_vectors(embedding.artifact)
    stored = Vectors.open(stages.open_artifact(run.folder / "embedding", "embedding"))
    assert np.array_equal(stored.ids, ids) and np.array_equal(stored.matrix, given)
    with TestClient(create_app(Settings(run=run.folder))) as client:
        found = client.get("/similar", params={"item_id": 7, "k": 5}).json()["hits"]
        order = np.argsort(-(given @ given[6]), kind="stable")
        assert [hit["item_id"] for hit in found] == ids[order[order != 6][:5]].tolist()


def test_an_encoder_of_another_width_is_refused(finished, imported, tmp_path: Path) -> None:
    _, run = finished
    layout_world.longctr(tmp_path / "raw", world(users=3, items=30, each=5))
    path = tmp_path / "raw/item_info.parquet"
    rewritten(path, image_emb_dim64=[[1.0] * 16] * 31)
    dataset = Dataset.open(import_dataset("longctr", tmp_path / "raw", tmp_path / "d"))
    with pytest.raises(
        DataError, match="an encoder of the width .* gives, 16, found 8. Run 'moon encoder train'"
    ):
        embed(stages.open_encoder(run), dataset, stages.open_split(run).known_from, tmp_path / "e")
    rewritten(path, image_emb_dim64=[[1.0] * 16, [1.0], *[[2.0] * 16] * 29])
    with pytest.raises(DataError, match=r"vectors of one width in the column 'image_emb_dim64'"):
        given_vectors(import_dataset("longctr", tmp_path / "raw", tmp_path / "other"))
