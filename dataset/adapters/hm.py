"""H&M Personalized Fashion Recommendations: the research pack (parquet) and the raw competition layout (CSV).

Purchases have a day but no time of day, so each is at noon UTC, and rows are not in time order, so a hash orders
those of a day (``dataset.order``): the log has the same order on every machine, in whatever files it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from dataset.adapters.source import choose_layout, read_csv, read_parquet
from dataset.contracts import ITEMS, JUDGEMENTS, QUERIES, TIME, Tables
from dataset.first_seen import LOG, START
from dataset.pictures import read_pictures

PACK = ("items.parquet", "users.parquet", "transactions.parquet", "images.parquet")
RAW = ("articles.csv", "customers.csv", "transactions_train.csv")
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
    names = None  # of customers; the pack numbers them
    if layout == "pack":
        articles, customers, sales, pictures = (
            read_parquet(folder / name, PACK_SCHEMAS[name]) for name in PACK
        )
        user, customer = sales.column("user_id"), customers.column("user_id")
        shown: Iterable[tuple[str, bytes | None]] = zip(
            pictures.column("article_id").to_pylist(), pictures.column("jpeg").to_pylist(), strict=True
        )
    else:
        articles, customers, sales = (read_csv(folder / name, RAW_SCHEMAS[name]) for name in RAW)
        names = sales.column("customer_id")
        user, customer = ids_of(names), ids_of(customers.column("customer_id"))
        shown = read_pictures(folder / "images")
    item = numbers(sales.column("article_id"), "article_id of sales")
    day = flat(sales.column("t_dat")).cast(pa.int32()).cast(pa.int64())
    time = pc.add(pc.multiply(day, DAY_US), NOON_US).cast(TIME)
    events = event_table("purchase", user, item, time)
    items, images, quarantine = _items(articles, shown, start_of(time))
    tables = Tables(
        items=items,
        images=images,
        users=user_table(events, _profiles(customers, flat(customer)), names),
        events=events,
        queries=QUERIES.empty_table(),
        judgements=JUDGEMENTS.empty_table(),
        quarantine=quarantine,
    )
    source = f"H&M Personalized Fashion Recommendations (Kaggle 2022), {layout} layout"
    rules = {"items": START, "users": LOG}
    return tables, {"name": "hm_fashion", "source": source, "protocol": "holdout", "first_seen": rules}


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
