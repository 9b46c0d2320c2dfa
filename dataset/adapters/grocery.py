"""Grocery Store: phone photos (queries) and the clean product pictures they should find (items)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import NO_CLOCK, attach_pictures, flat, ids_of, image_table, paths, under
from dataset.adapters.source import choose_layout, read_parquet
from dataset.contracts import EVENTS, ITEMS, JUDGEMENTS, QUERIES, TIME, USERS, Tables, content_hash

FILES = ("classes.parquet", "images.parquet")
CLASS_ID, CLASS_NAME, COARSE_NAME = "Class ID (int)", "Class Name (str)", "Coarse Class Name (str)"
TEXT, INTEGER = pa.string(), pa.int64()
SCHEMAS = {
    "classes.parquet": pa.schema(
        [
            (CLASS_NAME, TEXT),
            (CLASS_ID, INTEGER),
            (COARSE_NAME, TEXT),
            ("Coarse Class ID (int)", INTEGER),
            ("Iconic Image Path (str)", TEXT),
            ("Product Description Path (str)", TEXT),
            ("description", TEXT),
        ]
    ),
    "images.parquet": pa.schema(
        [
            ("path", TEXT),
            ("jpeg", pa.binary()),
            ("width", INTEGER),
            ("height", INTEGER),
            ("split", TEXT),
            ("fine", INTEGER),
            ("coarse", INTEGER),
        ]
    ),
}
ICONIC = "iconic"
PARTS = {
    "train": "train",
    "val": "train",
    "test": "test",
}  # an unknown split is passed on, and refused by dataset.checks


def grocery_store(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """One item per fine class with its iconic picture; one image query per phone photo, relevant to its class.

    Raises:
        DataError: files, columns or types are not those of the pack.
    """
    choose_layout(folder, {"pack": FILES})
    classes, pictures = (read_parquet(folder / name, SCHEMAS[name]) for name in FILES)
    is_iconic = pc.fill_null(pc.equal(pictures.column("split"), ICONIC), False)
    iconic, photos = pictures.filter(is_iconic), pictures.filter(pc.invert(is_iconic))
    shown = zip(iconic.column("fine").cast(TEXT).to_pylist(), iconic.column("jpeg").to_pylist(), strict=True)
    number = classes.column(CLASS_ID)
    image_id, images, quarantine = attach_pictures(number.cast(TEXT).to_pylist(), shown)
    items = {
        "item_id": number,
        "external_id": classes.column(CLASS_NAME),
        "title": pc.replace_substring(flat(classes.column(CLASS_NAME)), "-", " "),
        "description": classes.column("description"),
        "category": paths([classes.column(COARSE_NAME)]),
        "spu": number,
        "image_id": image_id,
        "first_seen": pa.array([NO_CLOCK] * classes.num_rows, TIME),
    }
    contents = [content or b"" for content in photos.column("jpeg").to_pylist()]
    query = ids_of(photos.column("path"))
    split = photos.column("split").to_pylist()
    judgements = {
        "query_id": query,
        "item_id": photos.column("fine"),
        "relevance": pa.array([1.0] * photos.num_rows),
        "part": pa.array([PARTS.get(part, part) for part in split], TEXT),
    }
    queries = {
        "query_id": query,
        "image_id": pa.array([content_hash(content) for content in contents], TEXT),
        "external_id": photos.column("path"),
    }
    tables = Tables(
        items=under(ITEMS, items),
        images=image_table([*images.column("bytes").to_pylist(), *contents]),
        users=USERS.empty_table(),
        events=EVENTS.empty_table(),
        queries=under(QUERIES, queries),
        judgements=under(JUDGEMENTS, judgements),
        quarantine=quarantine,
    )
    source = "Grocery Store Dataset (Klasson et al. 2019), pack layout"
    return tables, {"name": "grocery_store", "source": source}
