"""Side information of behaviours: what the store knew of an item at the moment of each behaviour.

The rows of a view of items lie sorted by (item, event time, time created) in a file beside the sources, which every
process maps. A behaviour points to the newest row strictly before it, as a request of that moment would have been
answered; training and serving find it by the same bisection, and nothing is copied for a request. The file belongs to
one state of the view's source: another load makes another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView, FileSource
from feast.utils import _get_column_names

from dataset.contracts import TIME
from feature_repo.columns import as_read, by_view, in_frames
from feature_repo.signature import Feature
from feature_repo.sources import DATA
from moonstore.errors import StoreError
from moonstore.files import replacing
from moonstore.freshness import US

FOLDER = "side_information"  # within DATA
KEY, STAMP = "item_id", "time_us"
CATEGORY = "category"


@dataclass(frozen=True)
class ViewRows:
    """Every row of a view of items, N in all.

    Attributes:
        rows: memory-mapped; item_id int64 and time_us int64, when the row became known, in microseconds since 1970
            UTC, by which it is sorted, of equal ones the row created last behind the others; then the features.
        ttl_us: how long a row is valid; 0: forever.
    """

    rows: pa.RecordBatch
    ttl_us: int

    @property
    def names(self) -> list[str]:
        """The features."""
        return [name for name in self.rows.schema.names if name not in (KEY, STAMP)]

    def pointers(self, item_id: np.ndarray, time_us: np.ndarray) -> np.ndarray:
        """The row that was known of each item just before a moment, int64 [T]; -1: none.

        Args:
            item_id: int64 [T].
            time_us: int64 [T], the moments.
        """
        ids, stamps = self.rows[KEY].to_numpy(), self.rows[STAMP].to_numpy()
        first = np.searchsorted(ids, item_id, side="left")
        low, high = first.copy(), np.searchsorted(ids, item_id, side="right")
        while (searched := low < high).any():
            middle = (low + high) // 2
            before = searched.copy()
            before[searched] = stamps[middle[searched]] < time_us[searched]
            low = np.where(before, middle + 1, low)
            high = np.where(searched & ~before, middle, high)
        row = np.where(low > first, low - 1, -1)
        if self.ttl_us and len(stamps):
            row[stamps[row] + self.ttl_us < time_us - 1] = -1
        return row


@dataclass(frozen=True)
class SideInformation:
    """The features of behaviours.

    Attributes:
        views: the rows of each view that has some.
        categories: opens the rows of the items' category, by which a ranker may search a history whether or not it is
            a feature of behaviours; None: items have none.
    """

    views: tuple[ViewRows, ...] = ()
    categories: Callable[[], ViewRows] | None = None

    def columns(self, item_id: np.ndarray, time_us: np.ndarray) -> dict[str, pa.Array]:
        """The features of T behaviours by name, null where nothing was known.

        Args:
            item_id: int64 [T].
            time_us: int64 [T], the moment of each behaviour.
        """
        found: dict[str, pa.Array] = {}
        for view in self.views:
            row = view.pointers(item_id, time_us)
            take = pa.array(row, mask=row < 0)
            found |= {name: view.rows[name].take(take) for name in view.names}
        return found

    def category(self, item_id: np.ndarray, time_us: np.ndarray) -> pa.Array | None:
        """The category of T behaved items, arguments as of ``columns``; None where items have none."""
        if self.categories is None:
            return None
        view = self.categories()
        row = view.pointers(item_id, time_us)
        return view.rows[CATEGORY].take(pa.array(row, mask=row < 0))

    def without(self, name: str) -> SideInformation:
        """The same with nulls for one feature."""
        return replace(self, views=tuple(_nulled(view, name) for view in self.views))


def open_side_information(store: FeatureStore, features: Sequence[Feature]) -> SideInformation:
    """Map what behaviours have of the store; the first process that needs a file writes it.

    Args:
        store: an open feature store.
        features: of all roles; those of behaviours are taken.

    Raises:
        StoreError: the source of a view is missing.
    """
    views = tuple(
        _opened(store, store.get_feature_view(view), some)
        for view, some in by_view(in_frames(features, "behaviour")).items()
    )
    category = next((one for one in features if (one.name, one.role) == (CATEGORY, "candidate")), None)
    if category is None:
        return SideInformation(views)

    @cache  # and not at once: most rankers never ask
    def categories() -> ViewRows:
        return _opened(store, store.get_feature_view(category.view), [category], f".{CATEGORY}")

    return SideInformation(views, categories)


def _opened(
    store: FeatureStore, view: FeatureView, features: Sequence[Feature], suffix: str = ""
) -> ViewRows:
    """Map the file of these features of a view; ``suffix`` tells it from that of its other features."""
    path = _file(store, view, features, suffix)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        rows = _sorted(store, view, features)
        with replacing(path) as temporary, pa.ipc.new_file(temporary, rows.schema) as writer:
            writer.write_batch(rows)
        for other in path.parent.glob(f"{view.name}{suffix}@*.arrow"):
            if other != path:
                other.unlink(missing_ok=True)  # of an earlier load; who has it mapped keeps it
    rows = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    return ViewRows(rows, view.ttl // US if view.ttl else 0)


def _file(store: FeatureStore, view: FeatureView, features: Sequence[Feature], suffix: str) -> Path:
    """Named after the features and the state of the view's source."""
    folder, source = Path(store.config.repo_path or "."), view.batch_source
    assert isinstance(source, FileSource)
    path = folder / source.path  # an absolute one stays as it is
    if not path.exists():
        raise StoreError(f"view {view.name}: expected its source {path}, found nothing. Run 'moon store'.")
    files = [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]
    state = [(str(one), one.stat().st_size, one.stat().st_mtime_ns, one.stat().st_ino) for one in files]
    asked = [(one.name, one.field, str(one.dtype)) for one in features]
    digest = hashlib.sha256(repr((state, asked)).encode()).hexdigest()[:16]
    return folder / DATA / FOLDER / f"{view.name}{suffix}@{digest}.arrow"


def _sorted(store: FeatureStore, view: FeatureView, features: Sequence[Feature]) -> pa.RecordBatch:
    (key,), fields, stamp, created = _get_column_names(view, [store.get_entity(n) for n in view.entities])
    source = view.batch_source
    assert source is not None
    offline = store._get_provider().offline_store  # type: ignore[attr-defined]
    job = offline.pull_all_from_table_or_query(store.config, source, [key], fields, stamp, created)
    table = job.to_arrow()
    known = {source.field_mapping.get(name, name): name for name in table.column_names}
    columns = {
        KEY: table[key].cast(pa.int64()),
        STAMP: table[stamp].cast(TIME, safe=False).cast(pa.int64()),
        "created": table[created] if created else pa.nulls(len(table), pa.int64()),
    }
    order = pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns])
    del columns["created"]
    columns |= {one.name: as_read(table[known[one.field]].combine_chunks(), one.dtype) for one in features}
    whole = pa.table(columns).take(order)
    return pa.record_batch({name: whole[name].combine_chunks() for name in whole.column_names})


def _nulled(view: ViewRows, name: str) -> ViewRows:
    if name not in view.names:
        return view
    place = view.rows.schema.get_field_index(name)
    nulls = pa.nulls(len(view.rows), view.rows.schema.field(name).type)
    return replace(view, rows=view.rows.set_column(place, name, nulls))
