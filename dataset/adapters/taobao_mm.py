"""TAOBAO-MM: display advertising with long histories and the production vectors of Taobao (MUSE, arXiv 2512.07216).

The published tables: ``train_samples`` and ``test_samples`` with label_0 (not clicked, clicked), 129_1 (user) and 205
(item); ``train_user_features`` and ``test_user_features`` with 130_1 to 130_5 and the history, 150_2_180 (items) and
151_2_180 (categories), oldest first; ``item_features`` with 206 (category), 213 and 214; and
``scl_embedding_int8_p90`` with 205_c, the vector in units of 1/127. Ids are integers of 64 bits with a sign, so they
are mapped.

The complete data do not fit in memory. Cut the two tables of samples down to the users that are wanted: of the
others only the rows that those need are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import flat, ids_of
from dataset.adapters.sample_tables import LABEL, clicks, dataset_of, items_of, placed, users_of
from dataset.adapters.samples import Histories, log_of
from dataset.adapters.source import NEXT, choose_layout, read_parquet, read_rows
from dataset.contracts import DataError, Tables
from dataset.given import PART

WHOLE, TEXT, LIST = pa.int64(), pa.string(), pa.list_(pa.int64())
USER, ITEM, CATEGORY, VECTOR = "129_1", "205", "206", "205_c"
HISTORY, CATEGORIES = "150_2_180", "151_2_180"
PROFILE, MORE = tuple(f"130_{n}" for n in range(1, 6)), ("213", "214")
SPLITS = ("train", "test")
SAMPLE = pa.schema([("label_0", pa.list_(pa.int8())), (USER, WHOLE), (ITEM, WHOLE)])
USERS = pa.schema([(USER, WHOLE), *((name, WHOLE) for name in PROFILE), (HISTORY, LIST), (CATEGORIES, LIST)])
ITEMS = pa.schema([(ITEM, WHOLE), (CATEGORY, WHOLE), *((name, WHOLE) for name in MORE)])
VECTORS = pa.schema([(ITEM, WHOLE), (VECTOR, pa.list_(pa.int8()))])
NAMES = (
    *(f"{split}_{table}.parquet" for table in ("samples", "user_features") for split in SPLITS),
    "item_features.parquet",
    "scl_embedding_int8_p90.parquet",
)
UNIT = 127.0  # of the vectors' integers


def taobao_mm(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """Samples as impressions and clicks, the published split, profiles, ad fields and vectors as features.

    The candidates of a user are one request. A user of both parts has one history: that of the test goes on where
    that of the training ended.

    Raises:
        DataError: files or columns are not those of the layout, or a history's items and categories are not as many.
    """
    choose_layout(folder, {"published": NAMES})
    shown = pa.concat_tables([_samples(folder, split) for split in SPLITS]).combine_chunks()
    wanted = pc.unique(shown.column(USER)).drop_null()
    features = [_users(folder / f"{split}_user_features.parquet", split, wanted) for split in SPLITS]
    users = pa.concat_tables(features).combine_chunks()
    histories, known = Histories.joined(
        _mapped(users.column(USER)).to_numpy(), _mapped_lists(flat(users.column(HISTORY)))
    )
    shown = shown.append_column("known", _seen(shown, users, known))
    columns = {USER: _mapped(shown.column(USER)), ITEM: _mapped(shown.column(ITEM))}
    shown_as = pa.table({**{name: shown.column(name) for name in ("known", LABEL, PART)}, **columns})
    samples, refused = placed(shown_as, USER, ITEM, "known")
    behaved = pa.table({ITEM: _flat(users, HISTORY), CATEGORY: _flat(users, CATEGORIES)})
    seen = pc.unique(pa.concat_arrays([flat(shown.column(ITEM)), flat(behaved.column(ITEM))])).drop_null()
    item, category, more = _items(folder, seen, behaved)
    profile = {f"user_{name}": users.column(name).cast(TEXT) for name in PROFILE}
    extra = {
        "item": pa.table({"item_id": item, **more}),
        "user": _latest(pa.table({"user_id": _mapped(users.column(USER)), **profile})),
    }
    return dataset_of(
        "taobao_mm",
        "TAOBAO-MM (MUSE, 2025), published layout",
        items_of(item, seen.cast(TEXT), category),
        users_of(_mapped(wanted), wanted.cast(TEXT)),
        log_of(samples, histories),
        extra,
        refused,
        {"item": [f"ad_{name}" for name in MORE], "user": list(profile)},
        vectors="scl_vector",
    )


def _samples(folder: Path, split: str) -> pa.Table:
    path = folder / f"{split}_samples.parquet"
    table = read_parquet(path, SAMPLE)
    label = flat(table.column("label_0"))
    if len(
        bad := pc.unique(pc.list_value_length(label).filter(label.is_valid())).drop_null()
    ) and bad != pa.array([2], pa.int32()):
        raise DataError(
            f"{path}: expected two numbers in each label_0 (not clicked, clicked), found lists of {bad.to_pylist()}. "
            f"Correct the file. {NEXT}"
        )
    clicked = pa.array([], pa.bool_())
    if len(label):
        not_clicked, as_clicked = (pc.list_element(label, place) for place in (0, 1))
        clicked = pc.if_else(pc.equal(pc.add(not_clicked, as_clicked), 1), clicks(as_clicked), None)
    part = pa.repeat(split, len(table))
    return table.drop_columns(["label_0"]).append_column(LABEL, clicked).append_column(PART, part)


def _users(path: Path, split: str, wanted: pa.Array) -> pa.Table:
    """The users of a part that are wanted, each once."""
    table = read_rows(path, USERS, USER, wanted).combine_chunks()
    _, first = np.unique(table.column(USER).to_numpy(), return_index=True)
    table = table.take(pa.array(first))
    lengths = [pc.list_value_length(flat(table.column(name))).fill_null(0) for name in (HISTORY, CATEGORIES)]
    wrong = table.column(USER).filter(pc.not_equal(*lengths))
    if len(wrong):
        raise DataError(
            f"{path}: expected a category of each item of a history, found other numbers of them of {len(wrong)} "
            f"users, first {wrong[:3].to_pylist()}. Correct the file. {NEXT}"
        )
    return table.append_column(PART, pa.repeat(split, len(table)))


def _seen(shown: pa.Table, users: pa.Table, known: np.ndarray) -> pa.Array:
    """How many behaviours each sample's user had; 0 of a user without features."""
    name = [
        pc.binary_join_element_wise(one.column(PART), one.column(USER).cast(TEXT), " ")
        for one in (shown, users)
    ]
    return pc.fill_null(pa.array(known).take(pc.index_in(flat(name[0]), value_set=flat(name[1]))), 0)


def _items(folder: Path, seen: pa.Array, behaved: pa.Table) -> tuple[pa.Array, pa.Array, dict[str, pa.Array]]:
    """Ids and categories of the items that were seen, and their other columns, null where the source has none."""
    ads = read_rows(folder / "item_features.parquet", ITEMS, ITEM, seen)
    vectors = read_rows(folder / "scl_embedding_int8_p90.parquet", VECTORS, ITEM, seen)
    ad, behaviour, vector = (
        pc.index_in(seen, value_set=flat(table.column(ITEM))) for table in (ads, behaved, vectors)
    )
    category = pc.coalesce(
        flat(ads.column(CATEGORY)).take(ad), flat(behaved.column(CATEGORY)).take(behaviour)
    )
    scaled = flat(vectors.column(VECTOR))
    numbers = pc.divide(scaled.values.cast(pa.float32()), pa.scalar(UNIT, pa.float32()))
    lists = pa.ListArray.from_arrays(
        scaled.offsets, numbers, mask=scaled.is_null() if scaled.null_count else None
    )
    more = {f"ad_{name}": flat(ads.column(name)).take(ad).cast(TEXT) for name in MORE}
    return _mapped(seen), category.cast(TEXT), {**more, "scl_vector": lists.take(vector)}


def _mapped(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    return ids_of(flat(ids).cast(TEXT))


def _mapped_lists(lists: pa.ListArray) -> pa.ListArray:
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(offsets, _mapped(lists.flatten()))


def _flat(users: pa.Table, name: str) -> pa.Array:
    return flat(users.column(name)).flatten()


def _latest(table: pa.Table) -> pa.Table:
    """The last row of each user."""
    _, last = np.unique(table.column("user_id").to_numpy()[::-1], return_index=True)
    return table.take(pa.array(np.sort(len(table) - 1 - last)))
