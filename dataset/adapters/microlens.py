"""MicroLens-1M-MMCTR (WWW 2025 EReL@MIR challenge): short videos, vectors of cover and title, histories in each row.

The published tables: ``train``, ``valid`` and ``test.parquet`` with user_id, item_seq (the history, oldest first,
padded by 0), item_id, likes_level, views_level and label; ``item_info.parquet`` with item_id, item_tags and
item_emb_d128. Beside them, where they were unpacked, ``item_feature.parquet`` with titles and ``item_images/`` with
pictures named after the item. Item 0 is padding. Written after the challenge's own loader; we have not seen the
files.

The challenge keeps the labels of its test to itself: where they are missing, ``valid.parquet`` is the test, and the
last tenth of the training requests validates.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import attach_pictures, flat
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
from dataset.given import PART
from dataset.identity import stable_hash
from dataset.jagged import offsets_of
from dataset.pictures import read_pictures
from dataset.requests import PARTS

TABLES = ("train.parquet", "valid.parquet", "test.parquet", "item_info.parquet")
FOLDER = "MicroLens_1M_x1"  # within which the archive has them
HISTORY = "item_seq"
SAMPLE = pa.schema([("user_id", pa.int64()), (HISTORY, pa.list_(pa.int64())), ("item_id", pa.int64())])
ITEM = pa.schema([("item_id", pa.int64()), ("item_tags", pa.list_(pa.int64()))])
TITLE, PICTURES = "item_title", "item_images"
LEVELS = ("likes_level", "views_level")
PADDING = 0


def microlens(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """Samples as impressions and clicks, the published split; tags and levels as features of items.

    Where there are titles or pictures the encoder learns from them, and the published vectors are a feature beside
    its own; where there are none, the published vectors stand in for it.

    Raises:
        DataError: files or columns are not those of the layout.
    """
    packed = tuple(f"{FOLDER}/{name}" for name in TABLES)
    layout = choose_layout(folder, {"tables": TABLES, "archive": packed})
    place = folder / FOLDER if layout == "archive" else folder
    item = read_wide_parquet(place / "item_info.parquet", ITEM)
    item = item.filter(pc.not_equal(item.column("item_id"), PADDING))
    shown, said = _samples(place)
    shown, histories = _with_known(shown)
    samples, refused = placed(shown, "user_id", "item_id", "known")
    tags = _texts(flat(item.column("item_tags")))
    item = item.set_column(item.column_names.index("item_tags"), "item_tags", tags)
    extra, samples = owned({"item": item, "user": pa.table({"user_id": np.unique(samples.user)})}, samples)
    item = _with_words(extra["item"], LEVELS)
    number, users = item.column("item_id"), pa.array(np.unique(samples.user))
    titles = _titles(folder, number)
    pictures: Iterable[tuple[str, bytes | None]] = read_pictures(folder / PICTURES)
    image_id, images, unknown = attach_pictures(number.cast(pa.string()).to_pylist(), pictures)
    vectors, is_shown = vectors_of(item), len(images) > 0 or titles.null_count < len(titles)
    return dataset_of(
        "microlens",
        f"MicroLens-1M-MMCTR (EReL@MIR 2025), layout {layout}",
        items_of(number, number.cast(pa.string()), more={"title": titles, "image_id": image_id}),
        users_of(users, users.cast(pa.string())),
        log_of(samples, histories),
        {**extra, "item": item},
        pa.concat_tables([refused, unknown]),
        {"item": ["item_tags", *LEVELS, *(vectors if is_shown else [])], "user": []},
        None if is_shown else next(iter(vectors), None),
        images,
        said,
    )


def _samples(place: Path) -> tuple[pa.Table, list[str]]:
    """The samples of all parts that have labels, and what is to be said about those that have none."""
    test = read_wide_parquet(place / "test.parquet", SAMPLE)
    is_labelled = "label" in test.column_names and test.column("label").null_count < len(test)
    parts = dict(zip(PARTS, PARTS, strict=True)) if is_labelled else {"train": "train", "valid": "test"}
    tables = [read_part(place / f"{name}.parquet", part, SAMPLE, ("label",)) for name, part in parts.items()]
    said = (
        []
        if is_labelled
        else [f"test.parquet has no labels: {len(test):,} samples left out, valid.parquet tests"]
    )
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks(), said


def _with_known(shown: pa.Table) -> tuple[pa.Table, Histories]:
    """The samples with a column "known" instead of their history, and the histories.

    Of a user's histories a longer one is taken to be later, and those that test to come last.
    """
    whole = flat(shown.column(HISTORY))
    lengths = whole.value_lengths().fill_null(0).to_numpy()
    owner, item = np.repeat(np.arange(len(lengths)), lengths), whole.flatten().fill_null(PADDING).to_numpy()
    owner, item = owner[item != PADDING], item[item != PADDING]
    length = np.bincount(owner, minlength=len(lengths))
    offsets = offsets_of(length)
    mixed = stable_hash(item, np.arange(len(item)) - np.repeat(offsets[:-1], length))
    content = np.append(np.uint64(0), np.cumsum(mixed))
    content = content[offsets[1:]] - content[offsets[:-1]]  # a sum of hashes, modulo 2**64
    user = shown.column("user_id").fill_null(-1).to_numpy()
    part = pc.index_in(shown.column(PART), pa.array(PARTS)).to_numpy()
    _, first, row = np.unique(
        stable_hash(user, content.view(np.int64)), return_index=True, return_inverse=True
    )
    order = np.lexsort((content[first], length[first], part[first], user[first]))
    first, place = first[order], np.argsort(order)[row]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(item)).take(pa.array(first))
    histories, known = Histories.joined(user[first], lists)
    return shown.drop_columns([HISTORY]).append_column("known", pa.array(known[place])), histories


def _titles(folder: Path, item_id: pa.ChunkedArray) -> pa.Array:
    """The title of each item, null without the table of titles."""
    path = folder / "item_feature.parquet"
    if not path.exists():
        return pa.nulls(len(item_id), pa.string())
    table = read_wide_parquet(path, pa.schema([("item_id", pa.int64()), (TITLE, pa.string())]))
    row = pc.index_in(flat(item_id), value_set=flat(table.column("item_id")))
    return flat(table.column(TITLE)).take(row)


def _texts(lists: pa.ListArray) -> pa.ListArray:
    """The tags as words, without padding."""
    rows = [None if one is None else [str(tag) for tag in one if tag != PADDING] for one in lists.to_pylist()]
    return pa.array(rows, pa.list_(pa.string()))


def _with_words(table: pa.Table, names: tuple[str, ...]) -> pa.Table:
    """The table with columns of levels as words: a level is a category, not a number."""
    for name in names:
        if name in table.column_names:
            table = table.set_column(
                table.column_names.index(name), name, table.column(name).cast(pa.string())
            )
    return table
