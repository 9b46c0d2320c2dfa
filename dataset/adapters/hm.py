"""H&M Personalized Fashion Recommendations: the research pack (parquet) and the raw competition layout (CSV).

Purchases have a day but no time of day, so each is at noon UTC, and rows are not in time order, so a hash orders
those of a day (``dataset.order``): the log has the same order on every machine, in whatever files it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import (
    SECOND_US,
    attach_pictures,
    attributes,
    event_table,
    flat,
    ids_of,
    numbers,
    paths,
    start_of,
    under,
    user_table,
)
from dataset.adapters.source import choose_layout, csv_batches, read_csv, read_parquet
from dataset.contracts import ITEMS, JUDGEMENTS, QUERIES, TIME, Tables
from dataset.first_seen import LOG, START
from dataset.long_log import LongLog
from dataset.pictures import read_pictures

SALES, RAW_SALES = "transactions.parquet", "transactions_train.csv"
PACK = ("items.parquet", "users.parquet", SALES, "images.parquet")
RAW = ("articles.csv", "customers.csv", RAW_SALES)
LARGE = 1 << 28  # bytes of sales, above which the log is not held in memory
SOLD = "article_id of sales"
DAY_US = 86_400 * SECOND_US
NOON_US = DAY_US // 2

TEXT, INTEGER, FLOAT, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
NAMES = (
    "prod_name",
    "product_type_name",
    "product_group_name",
    "graphical_appearance_name",
    "colour_group_name",
    "perceived_colour_value_name",
    "perceived_colour_master_name",
    "department_name",
    "index_name",
    "index_group_name",
    "section_name",
    "garment_group_name",
    "detail_desc",
)
NUMBERS = (
    "product_type_no",
    "colour_group_code",
    "graphical_appearance_no",
    "perceived_colour_value_id",
    "perceived_colour_master_id",
    "department_no",
    "index_group_no",
    "section_no",
    "garment_group_no",
)
ARTICLE = [("article_id", TEXT), ("product_code", INTEGER), *((name, TEXT) for name in NAMES)]
PROFILE = [
    ("FN", FLOAT),
    ("Active", FLOAT),
    ("club_member_status", TEXT),
    ("fashion_news_frequency", TEXT),
    ("age", FLOAT),
]
SALE = [("t_dat", pa.date32()), ("article_id", TEXT), ("price", FLOAT), ("sales_channel_id", INTEGER)]
PACK_SCHEMAS = {
    "items.parquet": pa.schema([*ARTICLE, ("has_image", FLAG), ("in_week", FLAG)]),
    "users.parquet": pa.schema([("user_id", INTEGER), *PROFILE]),
    "transactions.parquet": pa.schema([*SALE, ("user_id", INTEGER), ("has_image", FLAG)]),
    "images.parquet": pa.schema(
        [("article_id", TEXT), ("jpeg", pa.binary()), ("width", INTEGER), ("height", INTEGER)]
    ),
}
RAW_SCHEMAS = {
    "articles.csv": pa.schema([*ARTICLE, ("index_code", TEXT), *((name, INTEGER) for name in NUMBERS)]),
    "customers.csv": pa.schema([("customer_id", TEXT), *PROFILE, ("postal_code", TEXT)]),
    "transactions_train.csv": pa.schema([*SALE, ("customer_id", TEXT)]),
}
ATTRIBUTES = {
    "colour": "colour_group_name",
    "pattern": "graphical_appearance_name",
    "colour_master": "perceived_colour_master_name",
    "department": "department_name",
    "section": "section_name",
    "garment_group": "garment_group_name",
}


def hm_fashion(folder: Path, some: bool = False) -> tuple[Tables, dict[str, Any]]:
    """Purchases, articles with pictures, and customers.

    Args:
        folder: the source.
        some: a new day of it, of which files may be missing.

    An article's price is left out: the source gives prices of sales only, so a price would tell a ranker which
    articles sell. For the same reason every article is first seen on the first day of the data.

    Raises:
        DataError: files, columns or types are not those of either layout.
    """
    layout = choose_layout(folder, {"pack": PACK, "raw": RAW}, some)
    if layout == "pack":
        articles, customers, pictures = (
            read_parquet(folder / name, PACK_SCHEMAS[name]) for name in PACK if name != SALES
        )
        customer = flat(customers.column("user_id"))
        shown: Iterable[tuple[str, bytes | None]] = zip(
            pictures.column("article_id").to_pylist(), pictures.column("jpeg").to_pylist(), strict=True
        )
    else:
        articles, customers = (read_csv(folder / name, RAW_SCHEMAS[name]) for name in RAW[:2])
        customer = ids_of(customers.column("customer_id"))
        shown = read_pictures(folder / "images")
    events, users, start = _log(folder, layout, _profiles(customers, customer))
    items, images, quarantine = _items(articles, shown, start)
    tables = Tables(
        items=items,
        images=images,
        users=users,
        events=events,
        queries=QUERIES.empty_table(),
        judgements=JUDGEMENTS.empty_table(),
        quarantine=quarantine,
    )
    source = f"H&M Personalized Fashion Recommendations (Kaggle 2022), {layout} layout"
    rules = {"items": START, "users": LOG}
    return tables, {"name": "hm_fashion", "source": source, "candidates": "pictured", "first_seen": rules}


def _log(
    folder: Path, layout: str, profiles: dict[str, pa.Array]
) -> tuple[pa.Table | LongLog, pa.Table, datetime]:
    """EVENTS, in memory or, of a large file, on disk; USERS; and the start of the log."""
    if layout == "pack":
        sales = read_parquet(folder / SALES, PACK_SCHEMAS[SALES])
        names, user = None, sales.column("user_id")  # the pack numbers its customers
    else:
        path, schema = folder / RAW_SALES, RAW_SCHEMAS[RAW_SALES]
        if path.exists() and path.stat().st_size > LARGE:
            log = _long_log(csv_batches(path, schema))
            return log, log.users(profiles), log.start
        sales = read_csv(path, schema)
        names = sales.column("customer_id")
        user = ids_of(names)
    item, time = numbers(sales.column("article_id"), SOLD), _noon(sales)
    events = event_table("purchase", user, item, time)
    return events, user_table(events, profiles, names), start_of(time)


def _long_log(batches: Iterable[pa.Table]) -> LongLog:
    """The sales of a large file, some at a time; their article ids must have one length in all of them."""
    log, shapes = LongLog(), [pa.array([], pa.string())]
    with log.removed_if_it_fails():
        for sales in batches:
            article, name = sales.column("article_id"), sales.column("customer_id")
            log.add("purchase", ids_of(name), numbers(article, SOLD), _noon(sales), name)
            shape = {"length": pc.utf8_length(article), "zero": pc.starts_with(article, "0"), "id": article}
            shapes.append(
                flat(pa.table(shape).group_by(["length", "zero"]).aggregate([("id", "min")])["id_min"])
            )
        numbers(pa.concat_arrays(shapes), SOLD)
    return log


def _noon(sales: pa.Table) -> pa.Array:
    """Noon UTC of each purchase's day."""
    day = flat(sales.column("t_dat")).cast(pa.int32()).cast(pa.int64())
    return pc.add(pc.multiply(day, DAY_US), NOON_US).cast(TIME)


def _items(
    articles: pa.Table, shown: Iterable[tuple[str, bytes | None]], start: Any
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """ITEMS, IMAGES and QUARANTINE entries of refused pictures."""
    image_id, images, quarantine = attach_pictures(articles.column("article_id").to_pylist(), shown)
    levels = ("index_group_name", "product_group_name", "product_type_name")
    columns = {
        "item_id": numbers(articles.column("article_id"), "article_id of articles"),
        "external_id": articles.column("article_id"),
        "title": articles.column("prod_name"),
        "description": articles.column("detail_desc"),
        "category": paths([articles.column(name) for name in levels]),
        "attributes": attributes({name: articles.column(source) for name, source in ATTRIBUTES.items()}),
        "spu": articles.column("product_code"),
        "image_id": image_id,
        "first_seen": pa.array([start] * articles.num_rows, TIME),
    }
    return under(ITEMS, columns), images, quarantine


def _profiles(customers: pa.Table, user_id: pa.Array) -> dict[str, pa.Array]:
    """Profile columns; the segment is "club status / news frequency", null if both are unknown."""
    club, news = (flat(customers.column(name)) for name in ("club_member_status", "fashion_news_frequency"))
    both = pc.binary_join_element_wise(club.fill_null("unknown"), news.fill_null("unknown"), " / ")
    neither = pc.and_(club.is_null(), news.is_null())
    external = customers.column("customer_id" if "customer_id" in customers.column_names else "user_id")
    return {
        "user_id": user_id,
        "external_id": flat(external).cast(pa.string()),
        "age": customers.column("age"),
        "segment": pc.if_else(neither, pa.scalar(None, pa.string()), both),
    }
