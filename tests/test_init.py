"""``moon init`` says what is what in folders that it has never seen, with the evidence, and never loses a correction.

Run: pytest tests/test_init.py
"""

import tomllib

import folder_world as world
import pyarrow.compute as pc
import pytest
from conftest import ROOT
from needs import DATA
from typer.testing import CliRunner

from dataset.adapters.described.description import open_description
from dataset.adapters.guessing.propose import propose
from dataset.contracts import DataError
from dataset.importers import import_path
from dataset.tables import Dataset
from moon.cli import app
from moon.describing import init

# What a person would say of each layout: (role, files) -> columns.
PLANTED = {
    world.shop_export: {
        ("items", "products_export.csv"): {
            "id": "Variant SKU",
            "title": "Title",
            "description": "Body (HTML)",
            "category": "Type",
            "category_separator": " > ",
            "price": "Variant Price",
            "product": "Handle",
        },
        ("users", "customers_export.csv"): {"id": "Email", "segment": "Country"},
        ("events", "orders_export.csv"): {
            "user": "Email",
            "item": "Lineitem sku",
            "time": "Created at",
            "type": "purchase",
        },
    },
    world.rated_films: {
        ("items", "links.csv"): {"id": "movieId"},
        ("items", "movies.csv.gz"): {"id": "movieId", "title": "title", "category": "genres"},
        ("events", "ratings.csv"): {
            "user": "userId",
            "item": "movieId",
            "time": "timestamp",
            "time_format": "s",
            "type": "rating",
            "value": "rating",
        },
    },
    world.purchase_log: {
        ("items", "log/2024-0*.jsonl.gz"): {
            "id": "product_id",
            "title": "product_name",
            "price": "unit_price",
            "attributes": ["brand"],
            "updated": "ts",
            "time_format": "ms",
        },
        ("events", "log/2024-0*.jsonl.gz"): {
            "user": "visitor",
            "item": "product_id",
            "time": "ts",
            "time_format": "ms",
            "type_column": "event",
            "context": ["device"],
            "types": {
                "page_view": "click",
                "add_to_cart": "cart",
                "checkout": "purchase",
                "remove_from_cart": "ignore",
            },
        },
    },
    world.lake: {
        ("items", "catalog/part-0.parquet"): {
            "id": "article",
            "title": "name",
            "category": "category_path",
            "attributes": ["colour"],
        },
        ("events", "clicks/**/*.parquet"): {
            "user": "client_id",
            "item": "article",
            "time": "t",
            "type": "click",
        },
        ("images", "photos/**/{id}.*"): {},
    },
    world.bills: {
        ("items", "Online Retail.csv"): {
            "id": "StockCode",
            "title": "Description",
            "price": "UnitPrice",
            "encoding": "cp1252",
            "delimiter": ";",
        },
        ("events", "Online Retail.csv"): {
            "user": "CustomerID",
            "item": "StockCode",
            "time": "InvoiceDate",
            "time_format": "%d/%m/%Y %H:%M",
            "type": "purchase",
            "request": "InvoiceNo",
        },
    },
    world.reviews: {
        ("items", "meta_Home.jsonl.gz"): {
            "id": "parent_asin",
            "title": "title",
            "description": "description",
            "category": "categories",
            "category_separator": "[]",
            "price": "price",
        },
        ("events", "Home.jsonl.gz"): {
            "user": "user_id",
            "item": "asin",
            "time": "timestamp",
            "time_format": "ms",
            "type": "rating",
            "value": "rating",
        },
    },
    world.judged_search: {
        ("items", "product.csv"): {
            "id": "product_id",
            "title": "product_name",
            "category": "category hierarchy",
            "category_separator": " / ",
        },
        ("queries", "query.csv"): {"id": "query_id", "text": "query"},
        ("judgements", "label.csv"): {
            "query": "query_id",
            "item": "product_id",
            "relevance": "label",
            "grades": {"Exact": 1.0, "Partial": 0.5, "Irrelevant": 0.0},
        },
    },
    world.order_lines: {
        ("items", "shop_products_dataset.csv"): {"id": "product_id", "category": "product_category_name"},
        ("events", "shop_order_items_dataset.csv"): {
            "join": ["shop_orders_dataset.csv"],
            "join_on": "order_id",
            "user": "customer_id",
            "item": "product_id",
            "time": "order_purchase_timestamp",
            "type": "purchase",
        },
    },
    world.without_header: {
        ("events", "ratings.tsv"): {
            "header": False,
            "user": "column1",
            "item": "column2",
            "time": "column4",
            "value": "column3",
        },
    },
    world.slates: {
        ("items", "listings.csv"): {"id": "id", "title": "headline", "price": "cost"},
        ("events", "interactions.csv"): {
            "user": "member",
            "item": "listing",
            "time": "occurred_at",
            "type_column": "kind",
            "request": "impression_id",
            "position": "rank",
            "query_text": "search_term",
        },
    },
}
ROLES = ("items", "users", "events", "queries", "judgements", "images")


def sections(path):
    """(role, files) -> keys, of every table that a ``moon.toml`` switches on."""
    content = tomllib.loads(path.read_text())
    return {(role, *one["files"]): one for role in ROLES for one in content.get(role, [])}


@pytest.fixture
def folder(request, tmp_path):
    request.param(tmp_path / "shop")
    return tmp_path / "shop"


def imported(folder):
    init(folder)
    return Dataset.open(import_path(folder, folder.parent / "dataset"))


@pytest.mark.parametrize(
    ("folder", "planted"), PLANTED.items(), indirect=["folder"], ids=lambda one: getattr(one, "__name__", "")
)
def test_every_table_and_column_is_found_by_names_and_values(folder, planted):
    init(folder)
    found = sections(folder / "moon.toml")
    assert set(found) == set(planted)
    for table, columns in planted.items():
        assert {key: found[table].get(key) for key in columns} == columns, table


@pytest.mark.parametrize("folder", PLANTED, indirect=True, ids=lambda one: one.__name__)
def test_what_init_writes_is_imported_as_it_is(folder):
    dataset = imported(folder)
    assert len(dataset.items) == world.ITEMS
    if dataset.artifact.config["rows"]["events"]:
        named = [one for one in dataset.users["external_id"].to_pylist() if not one.startswith("InvoiceNo ")]
        assert len(named) == world.USERS
    refused = {
        (table, rule) for table, rules in dataset.artifact.config["quarantined"].items() for rule in rules
    }
    assert refused <= {("judgements", "duplicate query_id and item_id")}


@pytest.mark.parametrize("folder", [world.shop_export], indirect=True)
def test_variants_have_the_texts_of_their_product(folder):
    items = imported(folder).items
    titles = dict(zip(items["external_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    assert titles["0007-S"] == titles["0007-L"] == world.title(7)
    assert len(pc.unique(items["spu"])) == world.ITEMS // 2


@pytest.mark.parametrize("folder", [world.lake], indirect=True)
def test_pictures_are_those_of_the_items_that_their_names_say(folder):
    dataset = imported(folder)
    for row in dataset.items.to_pylist():
        number = int(row["external_id"].removeprefix("A"))
        content = dataset.image_bytes(row["image_id"])
        assert content == (world.picture(number) if number < world.ITEMS - 5 else None)


@pytest.mark.parametrize("folder", [world.bills], indirect=True)
def test_letters_commas_and_days_are_read_as_they_were_meant(folder):
    dataset = imported(folder)
    rows = {row["external_id"]: row for row in dataset.items.to_pylist()}
    assert rows["85002"]["title"] == f"CAFÉ {world.title(2).upper()}"
    assert rows["85002"]["price"] == pytest.approx(2.25)
    first, last = (pc.min_max(dataset.events["event_time"])[side].as_py() for side in ("min", "max"))
    assert (first.month, last.month) == (3, 4) and first >= world.START


@pytest.mark.parametrize("folder", PLANTED, indirect=True, ids=lambda one: one.__name__)
def test_every_guess_says_its_evidence_and_nothing_is_passed_over(folder):
    said = init(folder)
    text = (folder / "moon.toml").read_text()
    for line in text.splitlines():
        assert not line or line.startswith(("#", "[")) or " # " in line, line
    found = propose(folder)
    for table in found.listing.tables:
        name = table.patterns[0]
        assert name in text and name in said
        place = [one for one in found.tables if one.table is not None and one.table.name == name]
        used = set().union(*(one.used | set(one.left) for one in place)) if place else set(table.columns)
        assert used >= {column for column in table.columns}, name


def test_init_twice_changes_nothing_and_says_so(tmp_path):
    world.rated_films(tmp_path)
    init(tmp_path)
    before = (tmp_path / "moon.toml").read_bytes()
    assert "moon.toml: as it was" in init(tmp_path)
    assert (tmp_path / "moon.toml").read_bytes() == before


def test_new_files_are_taken_into_a_toml_that_nobody_changed(tmp_path):
    world.rated_films(tmp_path)
    (tmp_path / "links.csv").rename(tmp_path / "elsewhere")
    init(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "links.csv")
    assert "written anew" in init(tmp_path)
    assert ("items", "links.csv") in sections(tmp_path / "moon.toml")


def test_a_corrected_toml_is_never_overwritten(tmp_path):
    world.rated_films(tmp_path)
    init(tmp_path)
    path = tmp_path / "moon.toml"
    path.write_text(path.read_text().replace('title = "title"', 'description = "title"'))
    mine = path.read_bytes()
    assert "left alone, it was changed by hand" in init(tmp_path)
    assert path.read_bytes() == mine
    assert 'title = "title"' in (tmp_path / "moon.toml.proposed").read_text()


def test_the_command_writes_where_it_is_told(tmp_path):
    world.rated_films(tmp_path / "data")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "data"), "--out", str(tmp_path / "mine.toml")])
    assert result.exit_code == 0 and "moon demo --data" in result.output
    assert not (tmp_path / "data/moon.toml").exists()
    assert len(Dataset.open(import_path(tmp_path / "mine.toml", tmp_path / "d")).items) == world.ITEMS


def test_a_folder_without_tables_says_what_is_in_it(tmp_path):
    (tmp_path / "notes.md").write_text("nothing")
    (tmp_path / "weather.csv").write_text("town,rain\nBonn,3\nKiel,9\n")
    with pytest.raises(DataError, match="expected a table of items or of events") as refusal:
        init(tmp_path)
    assert "weather.csv" in str(refusal.value) and "notes.md" in str(refusal.value)
    with pytest.raises(DataError, match="no such folder"):
        init(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("cells", "layout"),
    [
        (["1709287200", "1709373600"], "s"),
        (["1709287200000", "1709373600123"], "ms"),
        (["1709287200000000", "1709373600123456"], "us"),
        (["1709287200000000000", "1709373600123456789"], "ns"),
        (["2024-03-01T10:00:00Z", "2024-03-02T10:00:00+02:00"], "iso"),
        (["2024-03-01 10:00:00", "2024-03-02 10:00:00.5"], "iso"),
        (["2024-03-01", "2024-03-02"], "iso"),
        (["20240301", "20240302"], "%Y%m%d"),
        (["13/03/2024 10:00", "14/03/2024 11:00"], "%d/%m/%Y %H:%M"),
        (["03/13/2024", "03/14/2024"], "%m/%d/%Y"),
        (["Mar 13, 2024", "Mar 14, 2024"], "%b %d, %Y"),
    ],
)
def test_times_of_every_kind_are_recognised_and_stated(tmp_path, cells, layout):
    rows = [{"user_id": f"u{n % 7}", "item_id": f"i{n % 9}", "created_at": cells[n % 2]} for n in range(90)]
    world.put_csv(tmp_path / "clicks.csv", rows)
    init(tmp_path)
    found = sections(tmp_path / "moon.toml")["events", "clicks.csv"]
    assert (found["time"], found["time_format"]) == ("created_at", layout)
    has_clock = any(mark in "".join(cells) for mark in (":",)) or layout in ("s", "ms", "us", "ns")
    assert found.get("whole_days", False) is not has_clock
    assert ("time_zone" in found) is (layout not in ("s", "ms", "us", "ns") and "Z" not in cells[0])


def test_a_day_and_month_that_could_be_exchanged_are_asked_about(tmp_path):
    rows = [
        {"user_id": f"u{n % 7}", "item_id": f"i{n % 9}", "date": f"0{n % 5 + 1}/0{n % 3 + 1}/2024"}
        for n in range(90)
    ]
    world.put_csv(tmp_path / "clicks.csv", rows)
    assert "as well" in init(tmp_path)


def test_years_outside_and_the_future_are_said(tmp_path):
    times = ["2024-03-01T10:00:00Z"] * 88 + ["2090-01-01T00:00:00Z", "1024-01-01T00:00:00Z"]
    rows = [{"user_id": f"u{n % 7}", "item_id": f"i{n % 9}", "time": one} for n, one in enumerate(times)]
    world.put_csv(tmp_path / "clicks.csv", rows)
    said = init(tmp_path)
    assert "1 are in the future" in said and "1 % are no such time" in said


@pytest.mark.real("hm_fashion")
def test_the_hm_pack_is_recognised(tmp_path):
    folder = DATA / "hm_fashion"
    init(folder, tmp_path / "moon.toml")
    found = sections(tmp_path / "moon.toml")
    assert found["events", "transactions.parquet"]["type"] == "purchase"
    assert found["events", "transactions.parquet"]["whole_days"]
    assert found["items", "items.parquet"]["id"] == "article_id"
    assert found["images", "images.parquet"] == {
        "files": ["images.parquet"],
        "item": "article_id",
        "picture": "jpeg",
    }
    assert found["users", "users.parquet"]["id"] == "user_id"
    assert open_description(tmp_path / "moon.toml")[0].data.folder == str(folder.resolve())


def test_the_page_names_every_key():
    from dataset.adapters.described import description

    page = (ROOT / "docs/your_data.md").read_text()
    models = (
        description.Data,
        description.Splitting,
        description.Items,
        description.Users,
        description.Events,
    )
    for model in (*models, description.Queries, description.Judgements, description.Images):
        for key in model.model_fields:
            assert f"`{key}`" in page, f"{model.__name__}: {key}"
