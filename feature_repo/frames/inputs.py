"""What each month of a frame is made from: a month whose inputs are as before is kept.

A request reads what the store knew before it. So of a source that lies in months its month and those before count, of
any other the rows of the request's user, items and query.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.log import distinct
from dataset.months import FIRST, month_of, parts_of
from feature_repo.frames.context import EVENT
from feature_repo.frames.join import POINTER
from feature_repo.frames.source import FrameSource, source_path
from feature_repo.on_demand import reads_of
from feature_repo.signature import open_signature
from feature_repo.sources import CONTEXT, DATA
from feature_repo.store import open_store
from moonstore.files import sha256

KEYS = ("user_id", "item_id", "query_id")


class Fingerprint:
    """A hash of rows that does not depend on how they are cut into tables."""

    def __init__(self) -> None:
        self._columns: dict[
            str, tuple[hashlib._Hash, hashlib._Hash]
        ] = {}  # of which values are there, and of them

    def add(self, rows: pa.Table) -> None:
        """Add rows; tables of one fingerprint have the same columns."""
        for field in rows.schema:
            known, values = self._columns.setdefault(
                field.name, (hashlib.sha256(str(field.type).encode()), hashlib.sha256())
            )
            for part in rows.column(field.name).chunks:
                known.update(part.is_valid().to_numpy(zero_copy_only=False).tobytes())
                values.update(_as_bytes(part))

    def digest(self) -> bytes:
        """Of all rows so far."""
        whole = hashlib.sha256()
        for name, parts in sorted(self._columns.items()):
            whole.update(name.encode() + b"".join(part.digest() for part in parts))
        return whole.digest()


def _as_bytes(values: pa.Array) -> bytes:
    """As many bytes for each value, whatever is there where it is null."""
    kind = values.type
    if pa.types.is_timestamp(kind):
        values = values.cast(pa.int64())
    elif pa.types.is_date(kind):
        values = values.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    if pa.types.is_integer(values.type) or pa.types.is_floating(kind):
        return bytes(values.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_boolean(kind):
        return bytes(values.fill_null(False).to_numpy(zero_copy_only=False).tobytes())
    if not pa.types.is_string(kind):  # nested ones
        return b"".join(_short(repr(one)) for one in values.to_pylist())
    coded = values.dictionary_encode()  # texts repeat: each is hashed once
    hashes = np.frombuffer(b"".join([*map(_short, coded.dictionary.to_pylist()), bytes(8)]), np.uint64)
    code = coded.indices.fill_null(len(hashes) - 1).to_numpy(zero_copy_only=False)
    return hashes[code].tobytes()


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def month_keys(source: FrameSource) -> dict[str, str]:
    """The months of a frame's requests, each with 16 hex digits of all that its rows are made from.

    A frame without requests has one month.
    """
    months = month_of(source.requests["time_us"])
    rows: dict[str, Fingerprint] = defaultdict(Fingerprint)
    asked: dict[str, dict[str, list[pa.Array]]] = defaultdict(lambda: defaultdict(list))
    for table, number in source.numbered():
        own = months[number]
        for month in distinct(own):
            some = table.filter(pa.array(own == month))
            rows[str(month)].add(some)
            for name in (*KEYS, EVENT):
                if name in some.column_names:
                    asked[str(month)][name].append(some.column(name).combine_chunks().drop_null().unique())
    known = _Known(source)
    return {
        month: hashlib.sha256(
            known.settings + rows[month].digest() + known.until(month, asked[month])
        ).hexdigest()[:16]
        for month in sorted({str(month) for month in distinct(months)} or {FIRST})
    }


class _Known:
    """What a store says, until a month and of some entities."""

    def __init__(self, source: FrameSource) -> None:
        store = open_store(source.store_dir)
        signature = open_signature(store, source.service)
        reads = reads_of(store, signature.features)
        stored = [one for one in chain(*reads.stored.values(), POINTER)]
        computed = [(view.name, some) for view, some in reads.computed]
        self.settings = repr(
            (source.history, sorted(map(repr, stored)), computed, dict(reads.context))
        ).encode()
        self._sources: list[tuple[str, Path]] = []
        for name in sorted({one.view for one in stored}):
            view = store.get_feature_view(name)
            key = next(iter(view.entity_columns)).name if view.entity_columns else ""
            path = Path(source.store_dir) / source_path(view)
            self._sources.append((key, path))
        if reads.context and (Path(source.store_dir) / DATA / CONTEXT).exists():
            self._sources.append((EVENT, Path(source.store_dir) / DATA / CONTEXT))
        self._tables = {path: self._read(key, path) for key, path in self._sources if not path.is_dir()}
        self._parts = {path: _digests(path) for _, path in self._sources if path.is_dir()}

    def until(self, month: str, asked: dict[str, list[pa.Array]]) -> bytes:
        """A hash of what is known of these ids until the end of a month."""
        whole = hashlib.sha256()
        for key, path in self._sources:
            if path in self._parts:
                for name, digest in self._parts[path].items():
                    if name <= month:
                        whole.update(digest)
            elif isinstance(known := self._tables[path], bytes):
                whole.update(known)
            elif asked.get(key):
                ids = pa.chunked_array(asked[key]).cast(known.schema.field(key).type)
                of_rows = Fingerprint()
                of_rows.add(known.filter(pc.is_in(known.column(key), value_set=ids)))
                whole.update(of_rows.digest())
        return whole.digest()

    @staticmethod
    def _read(key: str, path: Path) -> pa.Table | bytes:
        """The rows of a source of one entity; or the hash of one that counts as a whole."""
        if path.suffix != ".parquet" or key not in (*KEYS, EVENT) or key not in pq.read_schema(path).names:
            return sha256(path)
        table = pq.read_table(path)
        return table if pa.types.is_integer(table.schema.field(key).type) else sha256(path)


def _digests(path: Path) -> dict[str, bytes]:
    return {part.stem: sha256(part) for part in parts_of(path)}
