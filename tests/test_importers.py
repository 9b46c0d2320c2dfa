"""Every public format becomes the same tables; a folder that is not what it promises is refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.adapters import globo, grocery, hm, homedepot, movielens
from dataset.adapters.canonical import attributes, paths
from dataset.contracts import DataError, content_hash
from dataset.identity import stable_hash
from dataset.importers import IMPORTERS, import_dataset
from dataset.shop_ids import stable_ids
from dataset.tables import Dataset
from run.artifacts import open_artifact

SECOND = timedelta(seconds=1)


def picture(shade: int, size: tuple[int, int] = (20, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, 10, 200)).save(out, "JPEG")
    return out.getvalue()


def write(path: Path, schema: pa.Schema, records: list[dict]) -> None:
    """Write records, columns not given null, in the format the file name asks for."""
    columns = [pa.array([record.get(f.name) for record in records], f.type) for f in schema]
    table = pa.table(columns, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def article(article_id: str, **more: object) -> dict:
    names = {
        "prod_name": f"Top {article_id}",
        "product_type_name": "Vest top",
        "product_group_name": "Garment Upper body",
        "index_group_name": "Ladieswear",
        "colour_group_name": "White",
        "graphical_appearance_name": "Solid",
        "detail_desc": 'Soft, "ribbed"\njersey',
    }
    return {"article_id": article_id, "product_code": int(article_id[:-3]), **names, **more}


ARTICLES = [article("0108775015"), article("0108775044", detail_desc=None, colour_group_name=None)]
ARTICLES += [article("0990000001")]
# (day of September 2020, customer, article); customer 7 has no profile, 0555 is no article.
SALES = [
    (16, 5, "0108775015"),
    (16, 5, "0108775044"),
    (16, 5, "0108775015"),
    (17, 7, "0108775044"),
    (18, 5, "0108775044"),
    (18, 7, "0555000001"),
]


def hm_pack(folder: Path) -> None:
    write(folder / "items.parquet", hm.PACK_SCHEMAS["items.parquet"], ARTICLES)
    profiles = [
        {"user_id": 5, "club_member_status": "ACTIVE", "fashion_news_frequency": "NONE", "age": 24.0},
        {"user_id": 6},
    ]
    write(folder / "users.parquet", hm.PACK_SCHEMAS["users.parquet"], profiles)
    sales = [{"t_dat": date(2020, 9, d), "user_id": u, "article_id": a, "price": 0.03} for d, u, a in SALES]
    write(folder / "transactions.parquet", hm.PACK_SCHEMAS["transactions.parquet"], sales)
    shown = [
        {"article_id": "0108775015", "jpeg": picture(0)},
        {"article_id": "0108775044", "jpeg": picture(0)},
        {"article_id": "0777000001", "jpeg": picture(9)},
    ]
    write(folder / "images.parquet", hm.PACK_SCHEMAS["images.parquet"], shown)


def hm_raw(folder: Path) -> None:
    write(folder / "articles.csv", hm.RAW_SCHEMAS["articles.csv"], ARTICLES)
    profile = {"club_member_status": "ACTIVE", "fashion_news_frequency": "NONE", "age": 24.0}
    customers = [{"customer_id": f"{5:064x}", **profile}, {"customer_id": f"{6:064x}"}]
    write(folder / "customers.csv", hm.RAW_SCHEMAS["customers.csv"], customers)
    sales = [{"t_dat": date(2020, 9, d), "customer_id": f"{u:064x}", "article_id": a} for d, u, a in SALES]
    write(folder / "transactions_train.csv", hm.RAW_SCHEMAS["transactions_train.csv"], sales)
    put(folder / "images/010/0108775015.jpg", picture(0))
    put(folder / "images/010/0108775044.jpg", picture(0))
    put(folder / "images/077/0777000001.jpg", picture(9))


MOVIES = [
    {"movieId": 1, "title": "Toy, Story (1995)", "genres": "Adventure|Animation"},
    {"movieId": 2, "title": "Jumanji (1995)", "genres": "(no genres listed)"},
    {"movieId": 3, "title": "Heat (1995)", "genres": "Crime"},
]
RATINGS = [(9, 1, 4.5, 1_000_000_500), (9, 2, 2.0, 1_000_000_100), (8, 1, 3.0, 1_000_000_000)]


def ml_pack(folder: Path) -> None:
    details = {"plot": "Toys talk.", "director": "John Lasseter", "language": "English", "country": "USA"}
    write(
        folder / "items.parquet",
        movielens.PACK_SCHEMAS["items.parquet"],
        [{**MOVIES[0], **details}, *MOVIES[1:]],
    )
    ratings(folder / "ratings.parquet")
    shown = [{"movieId": 1, "jpeg": picture(1)}, {"movieId": 3, "jpeg": picture(3)[:200]}]
    write(folder / "images.parquet", movielens.PACK_SCHEMAS["images.parquet"], shown)


def ml_raw(folder: Path) -> None:
    write(folder / "movies.csv", movielens.RAW_SCHEMAS["movies.csv"], MOVIES)
    ratings(folder / "ratings.csv")
    put(folder / "posters/1.jpg", picture(1))
    put(folder / "posters/3.jpg", picture(3)[:200])


def ratings(path: Path) -> None:
    names = ("userId", "movieId", "rating", "timestamp")
    write(path, movielens.RATING, [dict(zip(names, rating, strict=True)) for rating in RATINGS])


def homedepot_pack(folder: Path) -> None:
    products = [{"product_uid": n, "product_title": f"drill {n}"} for n in range(100, 103)]
    queries = [{"query_id": n, "query": f"drill number {n}"} for n in range(200)]
    labels = [
        {"query_id": n, "product_uid": 100 + m, "relevance": 1.0 + m} for n in range(200) for m in range(3)
    ]
    for name, records in (("products", products), ("queries", queries), ("labels", labels)):
        write(folder / f"{name}.parquet", homedepot.SCHEMAS[f"{name}.parquet"], records)


def grocery_pack(folder: Path) -> None:
    names = [("Golden-Delicious", "Apple"), ("Oat-Milk", "Milk")]
    classes = [
        {
            grocery.CLASS_NAME: fine,
            grocery.CLASS_ID: n,
            grocery.COARSE_NAME: coarse,
            "description": f"A {fine}.",
        }
        for n, (fine, coarse) in enumerate(names)
    ]
    write(folder / "classes.parquet", grocery.SCHEMAS["classes.parquet"], classes)
    shown = [("iconic", 0, 50), ("iconic", 1, 10), ("train", 0, 90), ("val", 1, 130), ("test", 1, 170)]
    shown += [("train", 1, 210)]
    photos = [
        {"path": f"{split}/{fine}/{shade}.jpg", "jpeg": picture(shade), "split": split, "fine": fine}
        for split, fine, shade in shown
    ]
    write(folder / "images.parquet", grocery.SCHEMAS["images.parquet"], photos)


def globo_pack(folder: Path) -> None:
    clicks = [(1, 11, 70, 1_506_826_800_250), (2, 12, 71, 1_506_826_800_100), (1, 11, 71, 1_506_826_900_000)]
    names = ("user_id", "session_id", "article_id", "timestamp_ms")
    write(folder / "clicks.parquet", globo.SCHEMA, [dict(zip(names, c, strict=True)) for c in clicks])


SOURCES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "hm_pack": ("hm_fashion", hm_pack),
    "hm_raw": ("hm_fashion", hm_raw),
    "ml_pack": ("ml_posters", ml_pack),
    "ml_raw": ("ml_posters", ml_raw),
    "homedepot": ("homedepot_relevance", homedepot_pack),
    "grocery": ("grocery_store", grocery_pack),
    "globo": ("scale_globo", globo_pack),
}


def imported(source: str, folder: Path) -> Dataset:
    name, make = SOURCES[source]
    make(folder / "raw")
    import_dataset(name, folder / "raw", folder / "dataset")
    return Dataset.open(open_artifact(folder / "dataset", "dataset"))


@pytest.mark.parametrize("layout", ["pack", "raw"])
def test_hm(tmp_path: Path, layout: str) -> None:
    dataset = imported(f"hm_{layout}", tmp_path)
    first, second, third = dataset.items.to_pylist()
    assert (first["item_id"], first["external_id"], first["spu"]) == (108775015, "0108775015", 108775)
    assert first["category"] == ["Ladieswear", "Garment Upper body", "Vest top"]
    assert first["attributes"] == [("colour", "White"), ("pattern", "Solid")]
    assert second["attributes"] == [("pattern", "Solid")] and second["description"] is None
    assert first["title"] == "Top 0108775015" and first["description"] == 'Soft, "ribbed"\njersey'
    assert first["image_id"] == second["image_id"] == content_hash(picture(0)) and third["image_id"] is None
    assert dataset.images.num_rows == 1 and dataset.image_bytes(first["image_id"]) == picture(0)
    noon = datetime(2020, 9, 16, 12, tzinfo=UTC)
    assert {row["first_seen"] for row in (first, second, third)} == {noon}
    assert dataset.items.column("price").null_count == 3

    user = {n: n if layout == "pack" else int(stable_ids([f"{n:064x}"])[0]) for n in (5, 6, 7)}
    rows = {row["user_id"]: row for row in dataset.users.to_pylist()}
    assert set(rows) == set(user.values())
    assert (rows[user[5]]["age"], rows[user[5]]["segment"]) == (24.0, "ACTIVE / NONE")
    assert (rows[user[6]]["age"], rows[user[6]]["segment"], rows[user[6]]["first_seen"]) == (None, None, noon)
    assert rows[user[7]]["first_seen"] == noon + timedelta(days=1) and rows[user[7]]["age"] is None

    events = dataset.events.to_pylist()
    numbers = [event["event_id"] for event in events]
    assert numbers == sorted(set(numbers)) and len(numbers) == 5
    assert [event["user_id"] for event in events] == [user[n] for n in (5, 5, 5, 7, 5)]
    assert sorted(event["item_id"] for event in events[:3]) == [108775015, 108775015, 108775044]
    assert {event["event_time"] for event in events[:3]} == {noon}
    assert [event["sequence"] for event in events[:3]] == sorted(event["sequence"] for event in events[:3])
    assert events[4]["event_time"] == noon + timedelta(days=2)
    assert {event["type"] for event in events} == {"purchase"}
    assert all(event["available_time"] - event["event_time"] == SECOND for event in events)

    config = dataset.artifact.config
    assert (config["name"], config["candidates"]) == ("hm_fashion", "pictured")
    assert config["quarantined"] == {
        "events": {"unknown item_id": 1},
        "images": {"picture of an unknown item": 1},
    }
    values = dataset.quarantine.column("value").to_pylist()
    assert sorted(values) == ["0777000001", "555000001"]


def test_the_order_within_a_day_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sales = [(16 + int(rng.integers(3)), int(rng.integers(1, 9)), f"0{n}") for n in range(500, 700)]
    orders, makers = [], (sales, sales[::-1], [sales[n] for n in rng.permutation(len(sales))])
    for number, order in enumerate(makers):
        folder = tmp_path / str(number)
        hm_pack(folder)
        write(folder / "items.parquet", hm.PACK_SCHEMAS["items.parquet"], [article(a) for _, _, a in sales])
        records = [{"t_dat": date(2020, 9, d), "user_id": u, "article_id": a} for d, u, a in order]
        write(folder / "transactions.parquet", hm.PACK_SCHEMAS["transactions.parquet"], records)
        write(folder / "images.parquet", hm.PACK_SCHEMAS["images.parquet"], [])
        orders.append(hm.hm_fashion(folder)[0].events)
    assert orders[0].equals(orders[1]) and orders[0].equals(orders[2])
    events = orders[0].to_pandas()
    one = events[events.user_id == 1]
    assert one.event_time.is_monotonic_increasing and not one.item_id.is_monotonic_increasing


@pytest.mark.parametrize("layout", ["pack", "raw"])
def test_movielens(tmp_path: Path, layout: str) -> None:
    dataset = imported(f"ml_{layout}", tmp_path)
    toys, jumanji, heat = dataset.items.to_pylist()
    details = [("director", "John Lasseter"), ("language", "English"), ("country", "USA")]
    assert toys["attributes"] == [
        ("genre_1", "Adventure"),
        ("genre_2", "Animation"),
        *(details if layout == "pack" else []),
    ]
    assert toys["description"] == ("Toys talk." if layout == "pack" else None)
    assert (toys["category"], toys["spu"], toys["title"]) == (["Adventure"], 1, "Toy, Story (1995)")
    assert (jumanji["category"], jumanji["attributes"]) == ([], [])
    start = datetime.fromtimestamp(1_000_000_000, UTC)
    assert [row["first_seen"] - start for row in (toys, jumanji, heat)] == [
        0 * SECOND,
        100 * SECOND,
        0 * SECOND,
    ]
    assert toys["image_id"] == content_hash(picture(1)) and heat["image_id"] is None
    assert dataset.artifact.config["quarantined"] == {
        "images": {"broken or too large picture": 1},
        "items": {"image_id without an image": 1},
    }
    events = dataset.events.to_pylist()
    assert [(e["user_id"], e["item_id"], e["value"]) for e in events] == [
        (8, 1, 3.0),
        (9, 2, 2.0),
        (9, 1, 4.5),
    ]
    assert {e["type"] for e in events} == {"rating"} and events[2]["event_time"] == start + 500 * SECOND
    assert dataset.users.column("user_id").to_pylist() == [8, 9]


def test_movielens_without_posters(tmp_path: Path) -> None:
    write(tmp_path / "movies.csv", movielens.RAW_SCHEMAS["movies.csv"], MOVIES)
    ratings(tmp_path / "ratings.csv")
    tables, _ = IMPORTERS["ml_posters"](tmp_path)
    assert tables.images.num_rows == 0 and tables.items.column("image_id").null_count == 3


def test_large_raw_pictures_are_stored_small(tmp_path: Path) -> None:
    hm_raw(tmp_path)
    put(tmp_path / "images/099/0990000001.jpg", picture(5, (700, 1000)))
    tables, _ = IMPORTERS["hm_fashion"](tmp_path)
    assert max(tables.images.column("height").to_pylist()) == 256
    assert tables.items.column("image_id").null_count == 0


def test_homedepot(tmp_path: Path) -> None:
    dataset = imported("homedepot", tmp_path)
    assert dataset.quarantine.num_rows == 0
    assert (dataset.items.num_rows, dataset.queries.num_rows, dataset.events.num_rows) == (3, 200, 0)
    judgements = dataset.judgements.to_pandas()
    assert (judgements.relevance == (judgements.item_id - 100) / 2).all()
    parts = judgements.groupby("query_id").part.agg(["nunique", "first"])
    assert (parts["nunique"] == 1).all(), "a query is in both parts"
    assert 20 <= (parts["first"] == "test").sum() <= 60


def test_grocery(tmp_path: Path) -> None:
    dataset = imported("grocery", tmp_path)
    apple, milk = dataset.items.to_pylist()
    assert (apple["title"], apple["category"], apple["description"]) == (
        "Golden Delicious",
        ["Apple"],
        "A Golden-Delicious.",
    )
    assert (apple["image_id"], milk["image_id"]) == (content_hash(picture(50)), content_hash(picture(10)))
    image_of = dict(
        zip(*(dataset.queries.column(n).to_pylist() for n in ("query_id", "image_id")), strict=True)
    )
    judged = {
        (image_of[row["query_id"]], row["item_id"], row["part"], row["relevance"])
        for row in dataset.judgements.to_pylist()
    }
    expected = [(90, 0, "train"), (130, 1, "train"), (170, 1, "test"), (210, 1, "train")]
    assert judged == {(content_hash(picture(shade)), item, part, 1.0) for shade, item, part in expected}
    assert dataset.images.num_rows == 6 and dataset.quarantine.num_rows == 0


def test_globo(tmp_path: Path) -> None:
    dataset = imported("globo", tmp_path)
    events = dataset.events.to_pylist()
    assert [(e["user_id"], e["item_id"], e["request_id"]) for e in events] == [
        (2, 71, 12),
        (1, 70, 11),
        (1, 71, 11),
    ]
    assert events[0]["event_time"] == datetime(2017, 10, 1, 3, 0, 0, 100_000, tzinfo=UTC)
    assert dataset.items.column("item_id").to_pylist() == [70, 71]
    assert dataset.items.column("first_seen").to_pylist()[1] == events[0]["event_time"]
    assert {e["type"] for e in events} == {"click"}


def test_a_value_of_another_type_is_named_with_its_file(tmp_path: Path) -> None:
    ml_raw(tmp_path)
    text = (tmp_path / "ratings.csv").read_text()
    (tmp_path / "ratings.csv").write_text(text.replace("4.5", "four"))
    with pytest.raises(DataError, match="ratings.csv.*rating float.*'four'"):
        IMPORTERS["ml_posters"](tmp_path)
    ml_pack(tmp_path / "pack")
    file = tmp_path / "pack/ratings.parquet"
    ratings_table = pq.read_table(file)
    pq.write_table(ratings_table.set_column(1, "movieId", pa.array(["1", "two", "1"])), file)
    with pytest.raises(DataError, match="ratings.parquet.*movieId to be int64, found string.*two"):
        IMPORTERS["ml_posters"](tmp_path / "pack")


@pytest.mark.parametrize(
    ("name", "damage", "found"),
    [
        ("ratings.csv", lambda c: b"", "Empty CSV"),
        ("ratings.csv", lambda c: c + b"1,2,3,4,5,6\n", "Expected 4 columns, got 6"),
        ("ratings.csv", lambda c: c[:-14], "Expected 4 columns, got 2"),
        ("ratings.csv", lambda c: c.decode().encode("utf-16"), "utf-8"),
        ("movies.csv", lambda c: c.replace(b"Heat", b"H\xff\xfet"), "invalid UTF8"),
    ],
)
def test_damaged_csv_is_refused_with_its_name(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], found: str
) -> None:
    ml_raw(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=f"{name}.*({found}).*moon dataset"):
        IMPORTERS["ml_posters"](tmp_path)


def test_article_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    hm_pack(tmp_path)
    records = [{"t_dat": date(2020, 9, 16), "user_id": 1, "article_id": "01O8775015"}]
    write(tmp_path / "transactions.parquet", hm.PACK_SCHEMAS["transactions.parquet"], records)
    with pytest.raises(DataError, match="article_id of sales: expected integers.*01O8775015"):
        IMPORTERS["hm_fashion"](tmp_path)


def test_missing_and_absurd_cells_are_counted_not_fatal(tmp_path: Path) -> None:
    ml_raw(tmp_path)
    header, *lines = (tmp_path / "ratings.csv").read_text().splitlines()
    bad = ["9,,4.0,1000000600", "9,1,,1000000700", "9,1,4.0,1000000800000", "8,1,4.0,7"]
    (tmp_path / "ratings.csv").write_text("\n".join([header, *lines, *lines, *bad]))
    artifact = import_dataset("ml_posters", tmp_path, tmp_path / "dataset")
    assert artifact.config["rows"]["events"] == 6
    assert artifact.config["quarantined"]["events"] == {
        "null item_id": 1,
        "rating without a value": 1,
        "event_time outside sane bounds: before 1990 or in the future": 2,
    }
    first_seen = (
        Dataset.open(open_artifact(tmp_path / "dataset", "dataset")).users.column("first_seen").to_pylist()
    )
    assert min(first_seen) == datetime.fromtimestamp(1_000_000_000, UTC), "a refused event dated a user"


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hm_fashion, ml_posters, .*found 'netflix'"):
        import_dataset("netflix", tmp_path, tmp_path / "dataset")


CELLS = st.one_of(st.none(), st.sampled_from(["", "a", "b", "é|="]))


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8))
def test_paths_and_attributes_agree_with_a_plain_loop(rows: list[tuple]) -> None:
    columns = [pa.array([row[n] for row in rows], pa.string()) for n in range(3)]
    assert paths(columns).to_pylist() == [[cell for cell in row if cell] for row in rows]
    assert attributes(dict(zip("xyz", columns, strict=True))).to_pylist() == [
        [(name, cell) for name, cell in zip("xyz", row, strict=True) if cell] for row in rows
    ]


def slow_hash(*values: int) -> int:
    """splitmix64 over Python's integers."""
    most, mixed = 2**64 - 1, 0
    for value in values:
        mixed = (mixed + 0x9E3779B97F4A7C15 + (value & most)) & most
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & most
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & most
        mixed ^= mixed >> 31
    return mixed


@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), min_size=1, max_size=5))
def test_the_stable_hash_is_the_same_everywhere(rows: list[tuple[int, int]]) -> None:
    """Changing it silently reorders every imported log and moves queries between train and test."""
    left, right = np.array(rows, dtype=np.int64).T
    assert stable_hash(left, right).tolist() == [slow_hash(*row) for row in rows]


def test_the_stable_hash_does_not_collide_on_ids() -> None:
    assert len(np.unique(stable_hash(np.arange(100_000)))) == 100_000
