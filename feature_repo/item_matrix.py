"""An in-memory snapshot of all online item features and vectors, so that candidates cost no round trip.

A matrix belongs to one embedding and one load (``ItemMatrix.key``). Its files lie beside the sources; the first
process that needs them writes them, the others map them, and they never change. Another load or embedding makes
another matrix; a reader uses one matrix at a time, which records how fresh it is. Items received since are laid over
it (``over``). Its slow twin is ``OnlineReader.read_items``.

Legend: M items, D width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView

from dataset.log import distinct
from feature_repo.columns import by_view
from feature_repo.features import query_stats, user_events, user_history, user_profile
from feature_repo.ingest.new_items import new_items
from feature_repo.on_demand import reads_of
from feature_repo.online import UNREACHABLE, Stored, StoreUnavailable, asked_of, unpacked
from feature_repo.services import CTR, RELEVANCE, RETRIEVAL
from feature_repo.signature import EMBEDDING_VIEW, Feature, open_signature, united
from feature_repo.sources import DATA, read_source
from feature_repo.vectors import VectorTable
from feature_repo.views import Embedding, EmbeddingRecord
from moonstore.disk import make_folder, writing
from moonstore.engine import REPORTS, Report
from moonstore.errors import StoreError
from moonstore.files import locked, write_json
from moonstore.freshness import EPOCH, US, as_of, is_fresh
from moonstore.matrix import Matrix, Reader, matrix_reader
from run.artifacts import ArtifactError, discard, read_json
from run.progress import track

FOLDER, ITEMS, VECTORS, ABOUT = "item_matrix", "items.arrow", "vectors.arrow", "about.json"
CATALOGUE, STATISTICS = "item_profile", "item_stats"  # views that are loaded whenever items are
OF_OTHERS = {view.name for view in (user_profile, user_events, user_history, query_stats)}  # not of items
AT_ONCE = 10_000  # items per read


@dataclass(frozen=True)
class ItemMatrix:
    """A snapshot of M items.

    Attributes:
        key: identifies the embedding and the load.
        embedding: the embedding of the vectors.
        loaded_until: end of the last load of the items' views, ISO 8601.
        items: item_id, the features (null where nothing is stored) and <view>_us, the event time of the row of each
            view in microseconds since 1970 UTC, 0 where there is none; a later row of an item replaces earlier ones.
        vectors: of the items that have one.
        features: of candidates, of all models of the product.
        views: of the features, by name; their times to live are applied when reading.
    """

    key: str
    embedding: Embedding
    loaded_until: str
    items: pa.Table
    vectors: VectorTable
    features: tuple[Feature, ...]
    views: dict[str, FeatureView]

    def __post_init__(self) -> None:
        ids = self.items.column("item_id").to_numpy()
        order = np.argsort(ids, kind="stable")
        object.__setattr__(self, "_ids", ids[order])
        object.__setattr__(self, "_order", order)

    def __len__(self) -> int:
        return self.items.num_rows

    def rows(self, item_ids: np.ndarray) -> np.ndarray:
        """Row of each id, int64; -1 where unknown."""
        ids, order = self._ids, self._order  # type: ignore[attr-defined]
        if not len(ids):
            return np.full(len(item_ids), -1, np.int64)
        place = np.searchsorted(ids, item_ids, side="right") - 1
        return np.where((place >= 0) & (ids[place] == item_ids), order[place], -1)

    def read(self, item_ids: np.ndarray, time: datetime) -> Stored:
        """Stored features of N items, as ``OnlineReader.read_items`` returns them right after the load."""
        rows = self.rows(item_ids)
        take = pa.array(rows, mask=rows < 0)
        columns = {one.name: _one(self.items.column(one.name).take(take)) for one in self.features}
        found = {}
        for name, some in by_view(self.features).items():
            view = self.views[name]
            event_us = _one(self.items.column(f"{name}_us").take(take)).fill_null(0).to_numpy()
            with as_of(time - US):  # as ``OnlineReader`` does
                found[name] = (event_us > 0) & is_fresh(view, event_us)
            if view.ttl:
                gone = pa.array(~found[name])
                for one in some:
                    columns[one.name] = pc.if_else(gone, pa.scalar(None, one.dtype), columns[one.name])
        return Stored(columns, found)

    def over(self, other: ItemMatrix) -> ItemMatrix:
        """Union with another matrix of the same embedding; items in both are taken from this one."""
        kept = ~np.isin(other.vectors.ids, self.vectors.ids)
        ids = np.concatenate([other.vectors.ids[kept], self.vectors.ids])
        matrix = np.concatenate([other.vectors.matrix[kept], self.vectors.matrix])
        order = np.argsort(ids)
        return replace(
            other,
            items=pa.concat_tables([other.items, self.items]),
            vectors=VectorTable(ids[order], matrix[order]),
        )


def matrix_key(store_dir: Path, embedding: Embedding) -> str:
    """Key that changes with the embedding and with every load of a view that items may have features in."""
    reports = sorted((Path(store_dir) / DATA / REPORTS).glob("*.json"))
    loads = [
        (path.stem, path.stat().st_mtime_ns)
        for path in reports
        if path.stem == embedding.item_view
        or not (path.stem in OF_OTHERS or EMBEDDING_VIEW.fullmatch(path.stem))
    ]
    return f"v{embedding.version}-" + hashlib.sha256(json.dumps(loads).encode()).hexdigest()[:16]


def embedding_of(store_dir: Path, artifact_id: str) -> Embedding:
    """The store's embedding that came from this artifact.

    Raises:
        StoreError: the store does not hold it.
    """
    found = EmbeddingRecord.load(Path(store_dir)).find(artifact_id)
    if found is None:
        raise StoreError(
            f"{store_dir}: expected the vectors of embedding {artifact_id}, found none. "
            f"Run 'moon embeddings activate' with the number of its generation."
        )
    return found


def open_item_matrix(store: FeatureStore, embedding: Embedding) -> ItemMatrix:
    """Open the snapshot of the last load; the first process to ask writes it, the others map it.

    Raises:
        StoreUnavailable: there is no snapshot yet and the online store does not answer.
    """
    store_dir = Path(store.config.repo_path or ".")
    folder = store_dir / DATA / FOLDER
    make_folder(folder)
    with locked(folder / "lock"):
        key = matrix_key(store_dir, embedding)
        features = _features(store)
        if not _is_whole(folder / key, features):
            discard(folder / key)
            _write(
                folder / key,
                _loaded_until(store_dir),
                read_now(store, embedding, _known_ids(store_dir, embedding), key),
            )
            others = {
                f"v{one.version}" for one in EmbeddingRecord.load(store_dir).embeddings if one != embedding
            }
            for old in folder.glob("v*"):
                if old.name != key and old.name.split("-")[0] not in others:
                    shutil.rmtree(old)  # processes that have mapped it keep it
    loaded_until, items, vectors = _mapped(folder / key)
    views = {view: store.get_feature_view(view) for view in by_view(features)}
    return ItemMatrix(key, embedding, loaded_until, items, _table(vectors, embedding.width), features, views)


def _features(store: FeatureStore) -> tuple[Feature, ...]:
    """What the candidates' features of all models of the product are read or computed from."""
    features = united(open_signature(store, one) for one in (RETRIEVAL, CTR, RELEVANCE))
    return reads_of(store, features).stored["candidate"]


def _mapped(folder: Path) -> tuple[str, pa.Table, pa.Table]:
    about = read_json(folder / ABOUT, "", ("loaded_until",))
    items, vectors = (
        pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all() for name in (ITEMS, VECTORS)
    )
    return about["loaded_until"], items, vectors


def _is_whole(folder: Path, features: Sequence[Feature]) -> bool:
    """Whether the snapshot can be opened and has these features; else it is made again from the online store."""
    try:
        _, items, _ = _mapped(folder)
    except (ArtifactError, OSError, pa.ArrowException):
        return False
    types = {field.name: field.type for field in items.schema}
    return all(types.get(one.name) == one.dtype for one in features)


def read_now(store: FeatureStore, embedding: Embedding, item_ids: np.ndarray, key: str = "") -> ItemMatrix:
    """Read the current features and vectors of N items from the online store.

    Raises:
        StoreUnavailable: the online store does not answer.
    """
    features = _features(store)
    asked = asked_of(store, features)
    reader = matrix_reader(store, [*asked, (store.get_feature_view(embedding.item_view), ["vector"])])
    starts = range(0, max(len(item_ids), 1), AT_ONCE)
    parts = [
        _read(reader, item_ids[start : start + AT_ONCE], features) for start in track(starts, "item matrix")
    ]
    vectors = _table(pa.concat_tables([vectors for _, vectors in parts]), embedding.width)
    items = pa.concat_tables([items for items, _ in parts])
    return ItemMatrix(
        key, embedding, "", items, vectors, features, {str(view.name): view for view, _ in asked}
    )


def _read(reader: Reader, ids: np.ndarray, features: Sequence[Feature]) -> tuple[pa.Table, pa.Table]:
    try:
        with as_of(EPOCH):  # of any age; the time to live is applied when the snapshot is read
            *views, vectors = reader(ids)
    except UNREACHABLE as error:
        raise StoreUnavailable(f"the online store does not answer: {error}") from error
    columns = {"item_id": pa.array(ids, pa.int64())}
    columns |= unpacked(views, features).columns
    for view, matrix in zip(by_view(features), views, strict=True):
        columns[f"{view}_us"] = pa.array(matrix.event_us, pa.int64())
    return pa.table(columns), _vectors(ids, vectors)


def _vectors(ids: np.ndarray, matrix: Matrix) -> pa.Table:
    found = np.flatnonzero(matrix.columns["vector"].valid)
    values: Sequence[np.ndarray] = [matrix["vector"][row] for row in found.tolist()]
    return pa.table(
        {"item_id": pa.array(ids[found], pa.int64()), "vector": pa.array(values, pa.list_(pa.float32()))}
    )


def _table(vectors: pa.Table, width: int) -> VectorTable:
    ids = _one(vectors.column("item_id")).to_numpy()
    flat = _one(vectors.column("vector")).flatten().to_numpy()
    return VectorTable(ids, flat.reshape(len(ids), width))


def _write(folder: Path, loaded_until: str, matrix: ItemMatrix) -> None:
    building = folder.with_suffix(".tmp")
    shutil.rmtree(building, ignore_errors=True)
    ids, flat = matrix.vectors.ids, pa.array(matrix.vectors.matrix.reshape(-1), pa.float32())
    vectors = pa.table(
        {"item_id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, matrix.embedding.width)}
    )
    with writing(folder):
        building.mkdir()
        for name, table in ((ITEMS, matrix.items), (VECTORS, vectors)):
            with pa.ipc.new_file(building / name, table.schema) as file:
                file.write_table(table.combine_chunks())
        write_json(building / ABOUT, {"loaded_until": loaded_until})
        building.rename(folder)


def _known_ids(store_dir: Path, embedding: Embedding) -> np.ndarray:
    """Ids of the catalogue, of the vectors and of items received since, int64, ascending."""
    new = np.array([one.item_id for one in new_items(store_dir)], np.int64)
    return distinct(
        np.concatenate([new, *(_source_ids(store_dir, view) for view in (CATALOGUE, embedding.item_view))])
    )


def _source_ids(store_dir: Path, view: str) -> np.ndarray:
    """Ids of the rows of a view's source, int64, without those that a load refuses."""
    ids = read_source(store_dir / DATA / f"{view}.parquet", ["item_id"]).column(0).drop_null()
    fitting = ids.filter(pc.less_equal(ids, pa.scalar(2**63 - 1, ids.type)))
    return np.asarray(fitting.cast(pa.int64()).to_numpy())


def _loaded_until(store_dir: Path) -> str:
    try:
        return max(Report.load(store_dir, view).end for view in (CATALOGUE, STATISTICS))
    except FileNotFoundError:
        return ""


def _one(column: pa.ChunkedArray) -> pa.Array:
    pieces = column.combine_chunks()
    return pieces if isinstance(pieces, pa.Array) else pa.concat_arrays(pieces.chunks)
