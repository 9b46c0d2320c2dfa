"""``moon init`` on the layouts of data sets that many people have: what is what, and what the import makes of it.

Run: pytest tests/test_init_known.py
"""

import csv
from collections import Counter
from datetime import timedelta

import folder_world as world
import folder_world_known as known
import pytest
from test_init import imported, sections

from dataset.split import Split, split_dataset
from dataset.tables import noticed
from moon.describing import init

# What a person would say of each layout: (role, files) -> columns.
PLANTED = {
    known.properties: {
        ("items", "item_properties_part*.csv"): {
            "id": "itemid",
            "property": "property",
            "value": "value",
            "updated": "timestamp",
            "time_format": "ms",
        },
        ("events", "events.csv"): {
            "user": "visitorid",
            "item": "itemid",
            "time": "timestamp",
            "time_format": "ms",
            "type_column": "event",
            "types": {"view": "click", "addtocart": "cart", "transaction": "purchase"},
        },
    },
    known.rated_products: {
        ("items", "meta_Home_and_Kitchen.json"): {
            "id": "asin",
            "title": "title",
            "description": "description",
            "category": "categories",
            "category_separator": "[]",
            "price": "price",
            "attributes": ["brand"],
        },
        ("events", "reviews_Home_and_Kitchen_5.json"): {
            "user": "reviewerID",
            "item": "asin",
            "time": "unixReviewTime",
            "time_format": "s",
            "whole_days": True,
            "type": "rating",
            "value": "overall",
        },
    },
    known.cancelled_bills: {
        ("items", "data.csv"): {"id": "StockCode", "title": "Description", "price": "UnitPrice"},
        ("users", "data.csv"): {"id": "CustomerID", "segment": "Country"},
        ("events", "data.csv"): {
            "user": "CustomerID",
            "item": "StockCode",
            "time": "InvoiceDate",
            "time_format": "%m/%d/%Y %H:%M",
            "type": "purchase",
            "quantity": "Quantity",
            "request": "InvoiceNo",
        },
    },
    known.behaviours: {
        ("items", "UserBehavior.csv"): {"id": "column2", "category": "column3", "header": False},
        ("events", "UserBehavior.csv"): {
            "user": "column1",
            "item": "column2",
            "time": "column5",
            "time_format": "s",
            "types": {"pv": "click", "cart": "cart", "fav": "cart", "buy": "purchase"},
        },
    },
    known.sessions: {
        ("events", "yoochoose-clicks.dat"): {
            "user": "column1",
            "item": "column3",
            "time": "column2",
            "type": "click",
        },
        ("events", "yoochoose-buys.dat"): {
            "user": "column1",
            "item": "column3",
            "time": "column2",
            "type": "purchase",
        },
    },
    known.double_colons: {
        ("items", "movies.dat"): {
            "id": "column1",
            "title": "column2",
            "category": "column3",
            "category_separator": "|",
            "category_levels": 1,
            "delimiter": "::",
        },
        ("users", "users.dat"): {"id": "column1", "segment": "column2"},
        ("events", "ratings.dat"): {
            "user": "column1",
            "item": "column2",
            "time": "column4",
            "type": "rating",
            "value": "column3",
        },
    },
    known.labelled: {
        ("items", "train.csv"): {"id": "ad_id", "attributes": ["campaign"]},
        ("events", "train.csv"): {
            "user": "user_id",
            "item": "ad_id",
            "time": "ts",
            "type": "impression",
            "clicked": "clicked",
        },
    },
    known.pictures_of_a_log: {
        ("events", "clicks.csv"): {"user": "user", "item": "sku", "time": "time", "type": "click"},
        ("images", "img/{id}.*"): {},
    },
}


@pytest.fixture
def folder(request, tmp_path):
    request.param(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("folder", "planted"), PLANTED.items(), indirect=["folder"], ids=lambda one: getattr(one, "__name__", "")
)
def test_every_table_and_column_is_found_imported_and_split(folder, planted, tmp_path):
    init(folder)
    found = sections(folder / "moon.toml")
    assert set(found) == set(planted)
    for table, columns in planted.items():
        assert {key: found[table].get(key) for key in columns} == columns, table
    dataset = imported(folder)
    assert len(dataset.items) == world.ITEMS
    assert set(dataset.artifact.config["quarantined"]) <= {"events"}
    split = Split.open(split_dataset(dataset, tmp_path / "split", "last"))
    assert len(split.retrieval)


@pytest.mark.parametrize("folder", [known.properties], indirect=True)
def test_properties_become_attributes_by_their_last_value(folder, monkeypatch):
    """The truth is a loop over the rows; of four properties the one that fewest items have is left out."""
    rows = [
        row
        for path in sorted(folder.glob("item_properties_part*.csv"))
        for row in csv.DictReader(path.open())
    ]
    with (folder / "item_properties_part2.csv").open("a", newline="") as file:
        file.write("1790000000000,107,rare,once\r\n1790000000000,107,790,\r\n")
    monkeypatch.setattr("dataset.adapters.described.entities.MOST_PROPERTIES", 4)
    expected = {}
    for row in sorted(rows, key=lambda row: int(row["timestamp"])):
        expected.setdefault(row["itemid"], {})[row["property"]] = row["value"]
    del expected["107"]["790"]  # what was written last is that it has none
    dataset = imported(folder)
    found = zip(
        dataset.items["external_id"].to_pylist(), dataset.items["attributes"].to_pylist(), strict=True
    )
    assert {item: dict(pairs) for item, pairs in found} == expected
    assert dataset.artifact.config["rare_properties"] == 1
    assert "1 properties that few items have are left out" in noticed(dataset.artifact.config)


def test_many_photos_of_each_class_are_not_the_pictures_of_items(tmp_path):
    """A table of photos with the class of each, beside a catalogue of the classes: off, and why."""
    world.put_parquet(
        tmp_path / "classes.parquet",
        [
            {"fine": number, "name": world.title(number), "description": world.story(number)}
            for number in range(12)
        ],
    )
    photos = [{"jpeg": world.picture(number), "fine": number % 12} for number in range(12 * 11)]
    world.put_parquet(tmp_path / "images.parquet", photos)
    init(tmp_path)
    text = (tmp_path / "moon.toml").read_text()
    assert set(sections(tmp_path / "moon.toml")) == {("items", "classes.parquet")}
    assert "# [[images]]" in text and "11 pictures for each id: photos of a class of things" in text
    world.put_parquet(tmp_path / "images.parquet", photos[: 12 * 3])  # three views of each: the shop's own
    (tmp_path / "moon.toml").unlink()
    init(tmp_path)
    assert ("images", "images.parquet") in sections(tmp_path / "moon.toml")


@pytest.mark.parametrize("folder", [known.cancelled_bills], indirect=True)
def test_what_was_taken_back_is_no_purchase(folder):
    dataset = imported(folder)
    assert dataset.artifact.config["returned"] == sum(number // 3 % 11 == 0 for number in range(world.EVENTS))
    kept = [number for number in range(world.EVENTS) if number // 3 % 11]
    assert len(dataset.events) == len(kept)
    users = {
        str(12346 + bill % world.USERS) if bill % 5 else f"InvoiceNo {536365 + bill}"  # not "12346.0"
        for bill in (number // 3 for number in kept)
    }
    names = dict(zip(*(dataset.users[name].to_pylist() for name in ("user_id", "external_id")), strict=True))
    assert {names[one] for one in dataset.events["user_id"].to_pylist()} == users


@pytest.mark.parametrize("folder", [known.labelled], indirect=True)
def test_a_column_of_0_and_1_is_impressions_and_the_clicks_on_them(folder):
    dataset = imported(folder)
    rows = (folder / "train.csv").read_text().splitlines()[1:]
    clicked = sum(row.endswith(",1") for row in rows)
    types = Counter(dataset.events["type"].to_pylist())
    assert types == {"impression": world.EVENTS, "click": clicked}
    assert dataset.artifact.config["clicks"]["in their slate"] == clicked
    events = {(row["request_id"], row["item_id"], row["type"]): row for row in dataset.events.to_pylist()}
    for (request, item, kind), row in events.items():
        if kind == "click":
            shown = events[request, item, "impression"]
            assert row["event_time"] == shown["event_time"]
            assert row["available_time"] - row["event_time"] == timedelta(seconds=1)


@pytest.mark.parametrize("folder", [known.double_colons], indirect=True)
def test_the_first_of_tags_is_the_category(folder):
    items = {row["external_id"]: row for row in imported(folder).items.to_pylist()}
    assert items["5"]["category"] == [known.GENRES[0].partition("|")[0]]
    assert items["5"]["title"] == f"{world.title(5)}é (1955)"


@pytest.mark.parametrize("folder", [known.pictures_of_a_log], indirect=True)
def test_an_item_that_only_a_log_knows_has_its_picture(folder):
    dataset = imported(folder)
    for row in dataset.items.to_pylist():
        number = int(row["external_id"].removeprefix("S"))
        assert dataset.image_bytes(row["image_id"]) == world.picture(number)


@pytest.mark.parametrize("folder", [known.sessions], indirect=True)
def test_files_without_names_that_share_ids_speak_of_the_same_items(folder):
    dataset = imported(folder)
    clicked, bought = (
        {row["item_id"] for row in dataset.events.to_pylist() if row["type"] == kind}
        for kind in ("click", "purchase")
    )
    assert bought and bought < clicked
