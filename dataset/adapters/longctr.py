"""LongCTR (reczoo): click logs with long histories and image vectors, as the benchmark's tables are published.

MicroVideo1.7M_x2, KuaiVideo_x2 and Ebnerd_small_x1 have one layout: ``train``, ``valid`` and ``test.parquet`` with
user_index, item_index, seq_len and the label; ``user_info.parquet`` with ``full_item_seq``, of which a sample had
seen the first ``seq_len`` items; ``item_info.parquet`` by item_index. Item 0 is padding. Written after the
benchmark's own loader; we have not seen the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import flat
from dataset.adapters.sample_tables import (
    dataset_of,
    items_of,
    owned,
    placed,
    read_part,
    users_of,
    vectors_of,
)
from dataset.adapters.samples import Histories, log_of
from dataset.adapters.source import choose_layout, read_wide_parquet
from dataset.contracts import Tables
from dataset.requests import PARTS

FILES = (*(f"{part}.parquet" for part in PARTS), "user_info.parquet", "item_info.parquet")
ITEM = pa.schema([("item_index", pa.int64())])
SAMPLE = pa.schema([("user_index", pa.int64()), ("item_index", pa.int64()), ("seq_len", pa.int64())])
HISTORY = pa.schema([("full_item_seq", pa.list_(pa.int64()))])
LABELS = ("is_click", "click")
CATEGORIES = ("cate_id", "category")
PADDING = 0


def longctr(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """Samples as impressions and clicks, the published split, and every other column as a feature.

    The vectors of items (``image_emb_dim64``) stand in for the encoder. A column of the samples that says the same of
    an item, or of a user, in all of them is a column of the item or user; the others are context of the request.

    Raises:
        DataError: files or columns are not those of the layout.
    """
    choose_layout(folder, {"published": FILES})
    item = read_wide_parquet(folder / "item_info.parquet", ITEM)
    item = item.filter(pc.not_equal(item.column("item_index"), PADDING))
    user = _users(folder / "user_info.parquet")
    parts = [read_part(folder / f"{part}.parquet", part, SAMPLE, LABELS) for part in PARTS]
    samples, refused = placed(pa.concat_tables(parts, promote_options="permissive"), *SAMPLE.names)
    histories = Histories.of(user.column("user_index").to_numpy(), flat(user.column(HISTORY.names[0])))
    named = {"item": _named(item, "item"), "user": _named(user.drop_columns(HISTORY.names), "user")}
    extra, samples = owned(named, samples)
    item, category = extra["item"], next((one for one in CATEGORIES if _is_one(extra["item"], one)), None)
    number = item.column("item_id")
    everyone = pa.array(np.union1d(user.column("user_index").to_numpy(), samples.user))
    return dataset_of(
        "longctr",
        "LongCTR (reczoo), published layout",
        items_of(
            number,
            number.cast(pa.string()),
            None if category is None else item.column(category).cast(pa.string()),
        ),
        users_of(everyone, everyone.cast(pa.string())),
        log_of(samples, histories),
        {**extra, "item": item if category is None else item.drop_columns([category])},
        refused,
        {"item": [], "user": []},
        vectors=next(iter(vectors_of(item)), None),
    )


def _users(path: Path) -> pa.Table:
    """The users and their histories; a file that names no user_index has one user a row, from 0 on."""
    table = read_wide_parquet(path, HISTORY)
    if table.column_names == HISTORY.names:
        return table.add_column(0, "user_index", pa.array(np.arange(len(table))))
    table = read_wide_parquet(path, pa.schema([("user_index", pa.int64()), *HISTORY]))
    return table.filter(table.column("user_index").is_valid())


def _named(table: pa.Table, entity: str) -> pa.Table:
    """The table with the entity's id first, under the name that left-over columns know it by."""
    key, own = f"{entity}_index", f"{entity}_id"
    taken = [f"own_{name}" if name == own else name for name in table.column_names]
    table = table.rename_columns([own if name == key else name for name in taken])
    return table.select([own, *(name for name in table.column_names if name != own)])


def _is_one(table: pa.Table, name: str) -> bool:
    return name in table.column_names and not pa.types.is_nested(table.field(name).type)
