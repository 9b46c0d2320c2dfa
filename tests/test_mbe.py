"""MBE and MBE2.0 folders as a user has them become the same tables; other folders are refused by name."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoder_world import png
from typer.testing import CliRunner

from dataset.adapters.mbe import attribute_map, mbe
from dataset.contracts import DataError, content_hash
from dataset.importers import import_dataset
from dataset.tables import Dataset
from evaluation.science.encoders.exam import Exam
from evaluation.science.encoders.held_out import hold_out
from run.artifacts import open_artifact

RED, BLUE, GREEN = (png(colour, "disc") for colour in ("red", "blue", "green"))


def row(number: str, image: object, **more: object) -> dict:
    """A row of MBE as third parties read it."""
    base = {
        "id": number, "doc_title": f"裙子 {number}", "doc_image": image, "doc_industry_name": "服饰时尚",
        "doc_cate1_name": "女装", "doc_cate2_name": "连衣裙", "doc_cate3_name": "", "doc_cate4_name": None,
        "doc_attributes": "颜色:红色,,风格:街头!!!通勤,,无值",
    }  # fmt: skip
    return {**base, **more}


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def lines(path: Path, rows: list[dict]) -> None:
    put(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows).encode())


def mbe_folder(folder: Path) -> None:
    """Every way a picture can be given: address by name, address by id, path, base64, nowhere."""
    train = [
        row("a1", "https://img.shop.com/i1/red.jpg_320x320.jpg"),
        row("a2", "//img.shop.com/i2/other.png"),
        row("a3", "https://img.shop.com/lost.png"),
        row("a3", None, doc_title="again"),
    ]
    lines(folder / "train.jsonl", train)
    test = [
        row("b1", base64.b64encode(GREEN).decode()),
        row("b2", "pictures/blue.png", doc_title=None),
        row("b3", "", doc_image_hash="x"),
    ]
    lines(folder / "test.jsonl", test)
    put(folder / "images/deep/red.jpg_320x320.jpg", RED)
    put(folder / "images/a2.png", BLUE)
    put(folder / "pictures/blue.png", BLUE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mbe_folder(tmp_path / "raw")
    return tmp_path


def test_mbe_rows_become_items(folder: Path) -> None:
    import_dataset("mbe", folder / "raw", folder / "dataset")
    dataset = Dataset.open(open_artifact(folder / "dataset", "dataset"))
    items = {one["external_id"]: one for one in dataset.items.to_pylist()}
    assert list(items) == ["b1", "b2", "b3", "a1", "a2", "a3"]
    assert items["a1"]["title"] == "裙子 a1"
    assert items["a1"]["category"] == ["服饰时尚", "女装", "连衣裙"]
    assert items["a1"]["attributes"] == [("颜色", "红色"), ("风格", "街头, 通勤")]
    pictures = {name: dataset.image_bytes(one["image_id"]) for name, one in items.items()}
    assert pictures == {"a1": RED, "a2": BLUE, "a3": None, "b1": GREEN, "b2": BLUE, "b3": None}
    config = dataset.artifact.config
    assert config["pictures_missing"] == 1, "an empty cell names no picture, a lost address does"
    assert config["columns_unread"] == ["doc_image_hash"]
    assert config["quarantined"] == {"items": {"row of an id already read": 1}}
    assert dataset.quarantine["value"].to_pylist() == ["a3"]


def test_mbe_test_rows_are_searched_by_title_and_by_picture(folder: Path) -> None:
    import_dataset("mbe", folder / "raw", folder / "dataset")
    dataset = Dataset.open(open_artifact(folder / "dataset", "dataset"))
    name = dict(
        zip(dataset.items["item_id"].to_pylist(), dataset.items["external_id"].to_pylist(), strict=True)
    )
    query = {one["query_id"]: (one["text"], one["image_id"]) for one in dataset.queries.to_pylist()}
    judged = {
        (*query[one["query_id"]], name[one["item_id"]], one["relevance"], one["part"])
        for one in dataset.judgements.to_pylist()
    }
    assert judged == {
        ("裙子 b1", None, "b1", 1.0, "test"), ("裙子 b3", None, "b3", 1.0, "test"),
        (None, content_hash(GREEN), "b1", 1.0, "test"), (None, content_hash(BLUE), "b2", 1.0, "test"),
    }  # fmt: skip
    bench = hold_out(dataset, folder / "split")
    assert {name[item] for item in bench.split.pool.tolist()} == {"b1", "b2", "b3"}
    assert {name[item] for item in bench.pool_items.tolist()} == {"b1"}
    exam = Exam.of(dataset, bench)
    assert sorted(exam.kind) == ["image", "image", "text", "text"] and len(exam.candidates) == 3


def test_mbe_through_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moon.cli import app

    monkeypatch.chdir(folder)
    done = CliRunner().invoke(
        app, ["dataset", "--data", f"mbe:{folder / 'raw'}", "--run", str(folder / "run")]
    )
    assert done.exit_code == 0, done.output
    assert Dataset.open(open_artifact(folder / "run/dataset", "dataset")).items.num_rows == 6


@pytest.mark.parametrize("ending", ["parquet", "json", "csv", "jsonl"])
def test_every_kind_of_file_reads_alike(tmp_path: Path, ending: str) -> None:
    rows = [row("7", "images/x.png", split="train"), row("8", None, split="test")]
    path = tmp_path / f"raw/data/part-0.{ending}"
    put(tmp_path / "raw/images/x.png", RED)
    path.parent.mkdir(parents=True)
    if ending == "jsonl":
        lines(path, rows)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    import_dataset("mbe", tmp_path / "raw", tmp_path / "dataset")
    dataset = Dataset.open(open_artifact(tmp_path / "dataset", "dataset"))
    assert dataset.items["item_id"].to_pylist() == [7, 8]
    assert dataset.image_bytes(dataset.items["image_id"][0].as_py()) == RED
    assert dataset.items["attributes"].to_pylist()[0] == [("颜色", "红色"), ("风格", "街头, 通勤")]
    assert dataset.queries["text"].to_pylist() == ["裙子 8"]


def test_pictures_as_bytes_and_structs(tmp_path: Path) -> None:
    for number, image in enumerate((RED, {"bytes": RED, "path": None}, {"bytes": None, "path": "r.png"})):
        raw = tmp_path / f"raw{number}"
        put(raw / "r.png", RED)
        pq.write_table(pa.Table.from_pylist([row("1", image)]), raw / "train-00000.parquet")
        import_dataset("mbe", raw, tmp_path / f"dataset{number}")
        assert Dataset.open(open_artifact(tmp_path / f"dataset{number}", "dataset")).images.num_rows == 1


def test_a_path_cannot_leave_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", RED)
    cells = ["../secret.png", str(tmp_path / "secret.png"), "nofile12"]  # the last is valid base64 of 6 bytes
    lines(tmp_path / "raw/train.jsonl", [row(str(number), cell) for number, cell in enumerate(cells)])
    artifact = import_dataset("mbe", tmp_path / "raw", tmp_path / "dataset")
    assert artifact.config["pictures_missing"] == 3 and artifact.config["rows"]["images"] == 0


def triplet(number: int, **more: object) -> dict:
    base = {
        "query_title": f"find {number}", "positive_id": f"p{number}", "positive_title": f"good {number}",
        "negative_id": f"n{number}", "negative_title": f"bad {number}", "split": "train",
    }  # fmt: skip
    return {**base, **more}


def test_mbe2_triplets_become_judgements(tmp_path: Path) -> None:
    put(tmp_path / "raw/images/photo.png", RED)
    rows = [
        triplet(1), triplet(2, split="test", query_image="photo.png"), triplet(3, query_title="find 1"),
        triplet(1, negative_id="p3"), triplet(4, query_title=None, query_image="gone.png"),
    ]  # fmt: skip
    lines(tmp_path / "raw/mbe2.jsonl", rows)
    import_dataset("mbe2", tmp_path / "raw", tmp_path / "dataset")
    dataset = Dataset.open(open_artifact(tmp_path / "dataset", "dataset"))
    name = dict(
        zip(dataset.items["item_id"].to_pylist(), dataset.items["external_id"].to_pylist(), strict=True)
    )
    query = {one["query_id"]: one for one in dataset.queries.to_pylist()}
    assert sorted((one["text"], one["image_id"]) for one in query.values()) == [
        ("find 1", None), ("find 2", content_hash(RED)),
    ]  # fmt: skip
    judged = {
        (query[one["query_id"]]["text"], name[one["item_id"]], one["relevance"], one["part"])
        for one in dataset.judgements.to_pylist()
    }
    assert judged == {
        ("find 1", "p1", 1.0, "train"), ("find 1", "n1", 0.0, "train"), ("find 1", "p3", 1.0, "train"),
        ("find 1", "n3", 0.0, "train"), ("find 2", "p2", 1.0, "test"), ("find 2", "n2", 0.0, "test"),
    }, "bought once is relevant, whatever another row says"  # fmt: skip
    assert dataset.artifact.config["pictures_missing"] == 1
    bench = hold_out(dataset, tmp_path / "split")
    assert {name[item] for item in bench.split.pool.tolist()} == {"p2", "n2"}
    exam = Exam.of(dataset, bench)
    assert exam.kind == ["text_and_image"] and len(exam.candidates) == 2


def test_mbe2_sides_may_be_structs_or_titles(tmp_path: Path) -> None:
    sides = {
        "query": "find", "positive": {"id": "p", "doc_title": "good", "doc_attributes": {"颜色": "红"}},
        "negative": {"id": "n", "title": "bad"}, "split": "test",
    }  # fmt: skip
    lines(tmp_path / "raw/x.jsonl", [sides])
    import_dataset("mbe2", tmp_path / "raw", tmp_path / "dataset")
    dataset = Dataset.open(open_artifact(tmp_path / "dataset", "dataset"))
    assert [(one["title"], one["attributes"]) for one in dataset.items.to_pylist()] == [
        ("good", [("颜色", "红")]), ("bad", []),
    ]  # fmt: skip
    assert dataset.queries["text"].to_pylist() == ["find"]
    assert dataset.judgements["relevance"].to_pylist() == [1.0, 0.0]


def test_products_without_an_id_are_known_by_what_they_show(tmp_path: Path) -> None:
    rows = [triplet(n, positive_id=None, positive_title="same", negative_title=None) for n in range(3)]
    lines(tmp_path / "raw/train.jsonl", rows)
    import_dataset("mbe2", tmp_path / "raw", tmp_path / "dataset")
    dataset = Dataset.open(open_artifact(tmp_path / "dataset", "dataset"))
    assert dataset.items["title"].to_pylist() == ["same"] and dataset.judgements.num_rows == 3


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "mbe",
            [{"id": "1", "title": "x"}],
            r"doc_title.*at least doc_title or doc_image; found \['id', 'title'\]",
        ),
        ("mbe", [{"doc_title": "x"}], r"at least id; found \['doc_title'\]"),
        (
            "mbe2",
            [{"query_title": "x", "pos_title": "y"}],
            "at least positive or positive_title.*'pos_title'",
        ),
        ("mbe2", [{"positive_title": "y"}], "at least query or query_title or query_image"),
        ("mbe", [row("1", None, split="holdout")], "expected split to be one of.*found 'holdout'"),
        ("mbe", [row("1", None)], "expected split.*in the file's name"),
    ],
)
def test_other_columns_are_refused_with_what_was_found(
    tmp_path: Path, name: str, rows: list[dict], message: str
) -> None:
    lines(tmp_path / "raw/part.jsonl", rows)
    with pytest.raises(DataError, match=rf"part.jsonl: .*{message}.*moon dataset"):
        import_dataset(name, tmp_path / "raw", tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("content", [b'{"id": ', b"[1, 2]", b'[{"id": 1', b"", b"PAR1"])
@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes, ending: str) -> None:
    put(tmp_path / f"raw/train.{ending}", content)
    with pytest.raises(DataError, match=rf"train.{ending}: expected a table, found: .*moon dataset"):
        import_dataset("mbe", tmp_path / "raw", tmp_path / "dataset")


def test_attributes_of_every_spelling() -> None:
    expected = [("a", "1"), ("b", "2, 3")]
    for cell in (
        "a:1,,b:2!!!3",
        '{"a": 1, "b": "2!!!3"}',
        {"a": "1", "b": "2!!!3", "c": None},
        ["a:1", "b:2!!!3"],
    ):
        assert attribute_map(cell) == expected, cell
    assert attribute_map([("a", "1"), ("b", "2!!!3")]) == expected
    assert attribute_map("time:12:30") == [("time", "12:30")]
    for nothing in (None, "", "{broken", "none", ",,", ":x", "x:", []):
        assert attribute_map(nothing) == [], nothing


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("https://shop.com/caf\u00e9.png", "cafe\u0301.png"),  # as macOS unpacks it
        ("https://shop.com/caf%C3%A9.png", "caf\u00e9.png"),
        ("images\\red\\one.png", "one.png"),  # as Windows writes it
    ],
)
def test_a_picture_is_found_however_its_name_is_written(tmp_path, written, file):
    put(tmp_path / "images" / file, RED)
    lines(tmp_path / "train.jsonl", [row("a1", written)])
    tables = mbe(tmp_path)[0]
    assert tables.items["image_id"].to_pylist() == tables.images["image_id"].to_pylist() != []
