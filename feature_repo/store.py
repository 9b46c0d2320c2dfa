"""The store of a run: write its sources, register its definitions, load the online store.

Everything here is what the ``feast`` command does inside ``feature_repo/``, called from Python on the folder
of any run: ``create_store`` is ``feast apply`` on freshly written sources, ``materialize`` is
``feast materialize``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from feast import FeatureStore

from feature_repo import source_tables
from feature_repo.engine import Report
from feature_repo.fold import write_behaviour
from feature_repo.journal import LOG, NEW_ITEMS, Journal
from feature_repo.services import definitions
from feature_repo.sources import DATA
from feature_repo.views import EmbeddingRecord, StoreError

if TYPE_CHECKING:
    from dataset.split import Split
    from dataset.tables import Dataset

# Feast says at every opening that the flag is for SQL registries; it keeps file registries serving as well.
logging.getLogger("feast.repo_config").addFilter(
    lambda record: "serve_features_while_materializing" not in record.getMessage()
)

REPOSITORY = Path(__file__).parent
PROFILES = {"embedded": REPOSITORY, "redis": REPOSITORY / "profiles" / "redis"}
YAML = "feature_store.yaml"
BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)


def create_store(
    store_dir: Path,
    dataset: Dataset,
    split: Split,
    profile: str = "embedded",
    redis_url: str | None = None,
) -> FeatureStore:
    """Write the sources of a run and register its definitions, replacing the store that was there.

    Args:
        store_dir: the repository folder to make.
        dataset: items, users and queries.
        split: its log is everything behaviour features may see.
        profile: online store, "embedded" (SQLite) or "redis".
        redis_url: ``redis://host:port/db``; the profile's own address by default.

    Raises:
        StoreError: unknown profile or malformed address, or the store that is there holds events or items that came
            in since it was made.
    """
    store_dir = Path(store_dir)
    refuse_to_lose(store_dir, dataset.items, split.log)
    building = store_dir.with_name(store_dir.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    data = building / DATA
    data.mkdir(parents=True)
    use_profile(building, profile, redis_url)
    write_behaviour(data, split.log)
    tables = {
        "item_profile": source_tables.item_profile(dataset.items),
        "user_profile": source_tables.user_profile(dataset.users),
    }
    for view, table in tables.items():
        pq.write_table(table, data / f"{view}.parquet")
    EmbeddingRecord().save(building)
    apply_definitions(building)
    previous = store_dir.with_name(store_dir.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    if store_dir.exists():
        store_dir.rename(previous)
    building.rename(store_dir)
    shutil.rmtree(previous, ignore_errors=True)
    return open_store(store_dir)


def refuse_to_lose(store_dir: Path, items: pa.Table, log: pa.Table) -> None:
    """Refuse to replace a store: what came in since it was made, and is not in the data now, is nowhere else.

    Args:
        store_dir: the store.
        items, log: of the data it would be made of.

    Raises:
        StoreError: how much that is.
    """
    if not (store_dir / DATA / LOG).exists():
        return
    events = int((~np.isin(Journal(store_dir).told(), log.column("event_id").to_numpy())).sum())
    ids = [int(path.stem) for path in (store_dir / DATA / NEW_ITEMS).glob("*.json")]
    others = int((~np.isin(np.array(ids, np.int64), items.column("item_id").to_numpy())).sum())
    if events or others:
        raise StoreError(
            f"{store_dir}: expected a store to replace, found {events} events and {others} items in it that came in "
            f"since and are not in the dataset. Import them with it, or move the folder away, and run this again."
        )


def open_store(store_dir: Path) -> FeatureStore:
    """Open the store at ``store_dir``.

    Raises:
        StoreError: there is none.
    """
    EmbeddingRecord.load(Path(store_dir))
    return FeatureStore(repo_path=str(store_dir))


def use_profile(store_dir: Path, profile: str, redis_url: str | None = None) -> None:
    """Choose the online store of ``store_dir``; materialize again to fill it.

    Raises:
        StoreError: unknown profile, or an address that is not ``redis://host:port/db``.
    """
    if profile not in PROFILES:
        raise StoreError(f"unknown profile {profile!r}: expected one of {', '.join(PROFILES)}")
    content = yaml.safe_load((PROFILES[profile] / YAML).read_text())
    if redis_url is not None:
        if profile != "redis":
            raise StoreError(f"the address {redis_url!r} needs the profile redis, found {profile}")
        content["online_store"]["connection_string"] = _connection_string(redis_url)
    temporary = store_dir / (YAML + ".tmp")
    temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    temporary.replace(store_dir / YAML)


def activate(store_dir: Path) -> None:
    """Make this store the one that ``feast`` acts on inside ``feature_repo/``.

    Raises:
        StoreError: ``feature_repo/data`` exists and is not a link.
    """
    link = REPOSITORY / DATA
    if link.exists() and not link.is_symlink():
        raise StoreError(f"{link}: expected a link to a run's store, found a folder. Move it away.")
    temporary = link.with_name(DATA + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to((Path(store_dir) / DATA).resolve(), target_is_directory=True)
    temporary.replace(link)


def materialize(store_dir: Path, until: datetime, only: Sequence[str] = ()) -> dict[str, Report]:
    """Load what was known strictly before ``until`` into the online store.

    A row replaces the stored one unless it is older: what became known later stays, and entities are not removed.

    Args:
        store_dir: the run's store.
        until: UTC.
        only: names of views; empty: all of them.

    Returns:
        what became of the rows of each view, by name.

    Raises:
        StoreError: ``until`` has no time zone, or there is no store.
    """
    if until.tzinfo is None:
        raise StoreError(f"expected a time with a zone, found {until.isoformat()}")
    store = open_store(store_dir)
    reports = {}
    for view in only or sorted(str(view.name) for view in store.list_feature_views()):
        with contextlib.redirect_stdout(io.StringIO()):  # Feast's headlines
            store.materialize(BEGINNING, until - US, feature_views=[view])
        reports[view] = Report.load(Path(store_dir), view)
    return reports


def known_until(store_dir: Path) -> datetime:
    """A second after the last event of the offline log became available: as of when to materialize all of it."""
    stamps = pq.read_table(Path(store_dir) / DATA / LOG, columns=["available_time"]).column(0)
    last: datetime = pc.max(stamps).as_py() or BEGINNING
    return last + timedelta(seconds=1)


def apply_definitions(store_dir: Path) -> None:
    """Register what the store holds, and take out of registry and online store what it holds no more.

    What ``feast apply`` does inside ``feature_repo/``. Repeating it changes nothing.
    """
    objects: dict[str, Any] = dict(definitions(EmbeddingRecord.load(store_dir)))
    store = FeatureStore(repo_path=str(store_dir))
    gone: list[Any] = [view for view in store.list_feature_views() if view.name not in objects]
    gone += [view.batch_source for view in gone]
    store.apply(list(objects.values()), objects_to_delete=gone, partial=False)


def _connection_string(redis_url: str) -> str:
    url = urlsplit(redis_url)
    database = url.path.strip("/") or "0"
    if url.scheme != "redis" or not url.hostname or not database.isdigit():
        raise StoreError(f"expected an address like redis://localhost:6379/0, found {redis_url!r}")
    password = f",password={url.password}" if url.password else ""
    return f"{url.hostname}:{url.port or 6379},db={database}{password}"
