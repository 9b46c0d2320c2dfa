"""The shop's own ids of items, users and queries, and the int64 that stands for each inside the store.

Those of the dataset are in one file per field, mapped into memory; those that came in since are in a small database
that every process of the store reads and writes. A shop whose ids are integers of 64 bits has neither: its ids are
the same inside and outside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from dataset.shop_ids import ALL_INT64, NAMED, IdKind, Kinds, ShopId, shown, stable_id
from feature_repo.databases import opened
from feature_repo.sources import DATA
from moonstore.disk import writing
from moonstore.files import replacing, write_json
from moonstore.readable import readable
from run.artifacts import read_json

KINDS, RECEIVED = "id_kinds.json", "shop_ids.db"
TABLE = """CREATE TABLE IF NOT EXISTS shop_ids
    (field TEXT, id INTEGER, name TEXT, PRIMARY KEY (field, id)) WITHOUT ROWID"""


@dataclass(frozen=True)
class Names:
    """The ids of one field in the dataset.

    Attributes:
        key: ``stable_id`` of each name, int64 (N), ascending.
        id: what stands for it inside, int64 (N); another number than the key where an importer chose one.
        by_id: rows in ascending order of ``id``, int64 (N).
        name: the shop's id, text (N).
    """

    key: np.ndarray
    id: np.ndarray
    by_id: np.ndarray
    name: pa.LargeStringArray

    @classmethod
    def mapped(cls, path: Path) -> Names:
        """Those that ``write_names`` wrote, mapped into memory.

        Raises:
            StoreError: the file is missing or damaged.
        """
        with readable(path, "Run 'moon store' to make it again."), pa.memory_map(str(path)) as stream:
            batch = pa.ipc.open_file(stream).get_batch(0)
        key, number, by_id = (batch.column(name).to_numpy() for name in ("key", "id", "by_id"))
        return cls(key, number, by_id, batch.column("name"))

    def ids_of(self, keys: np.ndarray, names: Sequence[str]) -> list[int | None]:
        """The int64 of each name, given its key; None where the dataset has none."""
        rows = np.searchsorted(self.key, keys).tolist()
        return [self._at(row, key, name) for row, key, name in zip(rows, keys.tolist(), names, strict=True)]

    def _at(self, row: int, key: int, name: str) -> int | None:
        while row < len(self.key) and self.key[row] == key:
            if self.name[row].as_py() == name:
                return int(self.id[row])
            row += 1
        return None

    def names_of(self, ids: np.ndarray) -> list[str | None]:
        """The name of each int64; None where the dataset has none."""
        if not len(self.id):
            return [None] * len(ids)
        place = np.searchsorted(self.id, ids, sorter=self.by_id)
        rows = self.by_id[np.minimum(place, len(self.id) - 1)]
        found = self.id[rows] == ids
        names = self.name.take(pa.array(rows)).to_pylist()
        return [name if there else None for name, there in zip(names, found.tolist(), strict=True)]


def write_names(path: Path, ids: pa.ChunkedArray, names: pa.ChunkedArray) -> None:
    """Write the file of one field.

    Args:
        path: of the file.
        ids: int64.
        names: text; null where the source does not name one, which is then known by its integer.
    """
    texts = [
        str(number) if name is None else name
        for number, name in zip(ids.to_pylist(), names.to_pylist(), strict=True)
    ]
    key, number = np.fromiter(map(stable_id, texts), np.int64, len(texts)), ids.to_numpy()
    order = np.argsort(key, kind="stable")
    columns = {
        "key": pa.array(key[order]),
        "id": pa.array(number[order]),
        "by_id": pa.array(np.argsort(number[order], kind="stable")),
        "name": pa.array(texts, pa.large_string()).take(pa.array(order)),
    }
    batch = pa.record_batch(columns)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as stream,
        pa.ipc.new_file(stream, batch.schema) as writer,
    ):
        writer.write_batch(batch)


class ShopIds:
    """The two directions of the mapping, for one store.

    Args:
        kinds: what each field's ids are.
        names: of the dataset, of each field whose ids are not the same inside.
        store_dir: the store, whose received ids count too; None: nothing is received.
    """

    def __init__(self, kinds: Kinds, names: Mapping[str, Names], store_dir: Path | None = None) -> None:
        self.kinds = kinds
        self._names, self._path = names, None if store_dir is None else store_dir / DATA / RECEIVED
        self._received: dict[tuple[str, int], str] = {}  # of those that were looked up: a name never changes

    def find(self, field: str, ids: Sequence[ShopId]) -> list[int]:
        """What stands for each id inside, whether or not the store has ever heard of it.

        NOBODY where that stands for another id.

        Raises:
            StoreError: the received ids cannot be read.
        """
        if self.kinds[field] is IdKind.INT64:
            return list(ids)  # type: ignore[arg-type]
        inside, new = self._inside(field, list(map(str, ids)))
        clash = self._clash(field, new)
        return [NOBODY if str(one) in clash else inside[str(one)] for one in ids]

    def keep(self, field: str, ids: Sequence[ShopId | None]) -> list[int | None]:
        """``find``, and remember the ids that are new, so that they can be shown again; None stays None.

        Raises:
            DataError: what would stand for an id stands for another; nothing is remembered.
            StoreError: the received ids cannot be read.
            DiskError: the disk does not take them.
        """
        if self.kinds[field] is IdKind.INT64:
            return list(ids)  # type: ignore[arg-type]
        texts = [str(one) for one in ids if one is not None]
        inside, new = self._inside(field, texts)
        if clash := self._clash(field, new) or self._remember(field, new):
            raise DataError(
                f"{field}: found {len(clash)} ids that cannot be told from others inside, first "
                f"{[text[:40] for text in sorted(clash)[:3]]}. Choose others for them."
            )
        return [None if one is None else inside[str(one)] for one in ids]

    def one(self, field: str, shop_id: ShopId) -> int:
        """``find`` of one id."""
        return self.find(field, [shop_id])[0]

    def names(self, field: str, ids: Iterable[int]) -> list[ShopId]:
        """The shop's id for each int64; one that nobody has named is shown by its digits."""
        kind, numbers = self.kinds[field], [int(one) for one in ids]
        if kind is IdKind.INT64:
            return list(numbers)
        known = self._names[field].names_of(np.array(numbers, np.int64)) if field in self._names else []
        unknown = [number for number, name in zip(numbers, known, strict=True) if name is None]
        received = self._read(field, unknown)
        texts = [
            received.get(number, str(number)) if name is None else name
            for number, name in zip(numbers, known, strict=True)
        ]
        return [shown(text, kind) for text in texts]

    def _inside(self, field: str, texts: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """What stands for each text, and of these the texts that the dataset could know and does not."""
        distinct = list(dict.fromkeys(texts))
        keys = np.fromiter(map(stable_id, distinct), np.int64, len(distinct))
        inside = dict(zip(distinct, keys.tolist(), strict=True))
        if field not in NAMED:
            return inside, {}
        known = self._names[field].ids_of(keys, distinct)
        new = {text: inside[text] for text, number in zip(distinct, known, strict=True) if number is None}
        inside |= {text: number for text, number in zip(distinct, known, strict=True) if number is not None}
        return inside, new

    def _clash(self, field: str, new: Mapping[str, int]) -> set[str]:
        """Which of these texts, new to the dataset, have an int64 that stands for another text."""
        if not new:
            return set()
        taken = self._names[field].names_of(np.fromiter(new.values(), np.int64, len(new)))
        stands = {number: text for text, number in new.items()} | self._read(field, new.values())
        return {
            text
            for (text, number), name in zip(new.items(), taken, strict=True)
            if name is not None or stands[number] != text
        }

    def _remember(self, field: str, new: Mapping[str, int]) -> set[str]:
        """Write those that are not in the database; returns what another process took meanwhile."""
        rows = [(field, one, text) for text, one in new.items() if (field, one) not in self._received]
        if not rows or self._path is None:
            return set()
        with writing(self._path), _opened(self._path) as database, database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR IGNORE INTO shop_ids VALUES (?, ?, ?)", rows)
        return self._clash(field, new)

    def _read(self, field: str, ids: Iterable[int]) -> dict[int, str]:
        """The received names of these int64s, of those that have one."""
        found = {one: self._received[field, one] for one in ids if (field, one) in self._received}
        unread = [one for one in ids if one not in found]
        if not unread or self._path is None or not self._path.exists():
            return found
        with _opened(self._path) as database:
            for one in unread:
                row = database.execute(
                    "SELECT name FROM shop_ids WHERE field = ? AND id = ?", (field, one)
                ).fetchone()
                if row is not None:
                    found[one] = self._received[field, one] = str(row[0])
        return found


NOBODY = -1  # stands for no id
INT64_IDS = ShopIds(ALL_INT64, {})


def write_shop_ids(store_dir: Path, kinds: Kinds, tables: Mapping[str, pa.Table]) -> None:
    """Write the ids of a dataset into a store that is being made; nothing where all are integers of 64 bits.

    Args:
        store_dir: the store.
        kinds: what the ids are.
        tables: "items", "users" and "queries", with ``external_id``.
    """
    if all(kind is IdKind.INT64 for kind in kinds.values()):
        return
    write_json(store_dir / DATA / KINDS, dict(kinds))
    for field, name in NAMED.items():
        if kinds[field] is not IdKind.INT64:
            ids, names = (tables[name].column(column) for column in (field, "external_id"))
            write_names(store_dir / DATA / f"{field}.arrow", ids, names)


def shop_ids(store_dir: Path) -> ShopIds:
    """The ids of a store; the same object for all of a process until the store is replaced."""
    path = Path(store_dir) / DATA / KINDS
    try:
        made = path.stat().st_mtime_ns
    except FileNotFoundError:
        return INT64_IDS
    return _shop_ids(Path(store_dir), made)


@lru_cache(maxsize=4)
def _shop_ids(store_dir: Path, made: int) -> ShopIds:
    again = "Run 'moon store' to write it again."
    kinds = {
        field: IdKind(kind) for field, kind in read_json(store_dir / DATA / KINDS, again, ALL_INT64).items()
    }
    names = {
        field: Names.mapped(store_dir / DATA / f"{field}.arrow")
        for field in NAMED
        if kinds[field] is not IdKind.INT64
    }
    return ShopIds(kinds, names, store_dir)


def _opened(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    return opened(path, TABLE, "the ids that were received since the store was made")
