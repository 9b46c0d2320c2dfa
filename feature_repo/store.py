"""The store of a run: open it, register its definitions, choose and load its online store.

These functions do, for the folder of any run, what the ``feast`` command does inside ``feature_repo/``:
``apply_definitions`` is ``feast apply``, ``materialize`` is ``feast materialize``.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from feast import FeatureStore, FeatureView
from feast.errors import FeastError
from feast.repo_config import FeastConfigError
from google.protobuf.message import DecodeError

from dataset.contracts import TIME
from feature_repo import dead_letters, features
from feature_repo.extras import read_extras
from feature_repo.repository import definitions
from feature_repo.sources import DATA, LOG, read_source
from feature_repo.views import USER_HISTORY, EmbeddingRecord
from moonstore.batch import sift
from moonstore.disk import DiskError, disk_reason, writing
from moonstore.engine import ColumnStore, Report
from moonstore.errors import UNREACHABLE, StoreError
from moonstore.files import write_text

# Feast warns at every opening that the flag is for SQL registries, but file registries need it as well.
logging.getLogger("feast.repo_config").addFilter(
    lambda record: "serve_features_while_materializing" not in record.getMessage()
)

REPOSITORY = Path(__file__).parent
PROFILES = {"embedded": REPOSITORY, "redis": REPOSITORY / "profiles" / "redis"}
YAML = "feature_store.yaml"
# Class paths in the feature_store.yaml of runs made by release 0.1.0.
RENAMED = {
    "feature_repo.duckdb_store.DuckDBOfflineStore": "feature_repo.offline_store.MoonOfflineStore",
    "feature_repo.sqlite_store.SqliteOnlineStore": "moonstore.sqlite_store.SqliteOnlineStore",
    "feature_repo.redis_store.RedisOnlineStore": "moonstore.redis_store.RedisOnlineStore",
    "feature_repo.registry_store.WholeFileRegistryStore": "moonstore.registry_store.WholeFileRegistryStore",
    "feature_repo.engine.ArrowComputeEngine": "moonstore.engine.ArrowComputeEngine",
}
BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)


def open_store(store_dir: Path) -> FeatureStore:
    """Open the store at ``store_dir``.

    Raises:
        StoreError: there is none, or its configuration or its registry is damaged.
        ArtifactError: the record of its embeddings is damaged.
    """
    store = _open(store_dir)
    if _names_behaviours(store):
        apply_definitions(Path(store_dir))
        store = _open(store_dir)
    found = {str(view.name): {one.name for one in view.features} for view in store.list_feature_views()}
    ours = [view for view in vars(features).values() if isinstance(view, FeatureView)]
    needed = {str(view.name): {one.name for one in view.features} for view in ours}
    wrong = sorted(name for name, features in needed.items() if not features <= found.get(name, set()))
    if wrong:
        raise StoreError(
            f"{_registry(store_dir)}: damaged, or of an earlier release: it lacks views, or features of views "
            f"({', '.join(wrong)}). Remove it and run 'moon materialize'."
        )
    return store


def require_as_defined(store_dir: Path) -> None:
    """Refuse to train from a store whose tables were written for other features than ``feature_repo.features`` has.

    To register today's features over it, as ``materialize`` does for who asks for it, would hide that their values
    are of before. A store without a registry is no matter of this check.

    Raises:
        StoreError: naming the features that differ, how they do, and what to run.
    """
    if not _registry(store_dir).exists():
        return
    written = {str(view.name): _fields(view) for view in _open(store_dir).list_feature_views()}
    said = []
    for view in (one for one in vars(features).values() if isinstance(one, FeatureView)):
        before, now = written.get(str(view.name)), _fields(view)
        if before is None:
            said.append(f"no view {view.name}")
            continue
        said += [
            f"{view.name}:{name} is {before.get(name, 'missing')} there and {now.get(name, 'gone')} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
    if said:
        raise StoreError(
            f"{store_dir}: expected a store of the features of feature_repo/features.py, found one that was made "
            f"before {len(said)} of them changed: {'; '.join(said[:3])}. Run 'moon store', then 'moon embed', "
            f"which keeps the encoder, and what follows; or 'moon materialize' to take the tables as they are."
        )


def _fields(view: FeatureView) -> dict[str, str]:
    """Type and tags of each feature of a view, in words."""
    return {
        one.name: " ".join(
            (str(one.dtype), *(f"{tag}={value}" for tag, value in sorted(dict(one.tags).items())))
        )
        for one in view.features
    }


def _open(store_dir: Path) -> FeatureStore:
    """``open_store``, whether or not its definitions are registered."""
    EmbeddingRecord.load(Path(store_dir))
    settings = Path(store_dir) / YAML
    try:
        _renew_class_paths(settings)
        _adopt_refused_events(Path(store_dir))
        store = FeatureStore(repo_path=str(store_dir))
        store.refresh_registry()
        return store
    except DecodeError as error:
        raise StoreError(
            f"{_registry(store_dir)}: damaged ({error}). Remove it and run 'moon materialize'."
        ) from error
    except (
        yaml.YAMLError,
        FeastError,
        FeastConfigError,
        ValueError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:
        if disk_reason(error):
            raise
        raise StoreError(
            f"{settings}: missing or damaged ({error}). Run 'moon store' to write it again."
        ) from error


def _names_behaviours(store: FeatureStore) -> bool:
    """Whether the services are of an earlier release: no signatures, as they named the behaviours, too."""
    projections = (each.feature_view_projections for each in store.list_feature_services())
    return any(view.name == USER_HISTORY for some in projections for view in some)


def _registry(store_dir: Path) -> Path:
    return Path(store_dir) / DATA / "registry.db"


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
    _write_yaml(store_dir / YAML, content)


def activate(store_dir: Path) -> None:
    """Make this store the one that the ``feast`` command uses inside ``feature_repo/``.

    Raises:
        StoreError: ``feature_repo/data`` exists and is not a link.
    """
    link = REPOSITORY / DATA
    if link.exists() and not link.is_symlink():
        raise StoreError(f"{link}: expected a link to a run's store, found a folder. Move it away.")
    temporary = link.with_name(DATA + ".tmp")
    with writing(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to((Path(store_dir) / DATA).resolve(), target_is_directory=True)
        temporary.replace(link)


def materialize(store_dir: Path, until: datetime, only: Sequence[str] = ()) -> dict[str, Report]:
    """Load rows stamped strictly before ``until`` into the online store.

    A row replaces the stored one unless it is older: newer rows stay, and entities are not removed.

    Args:
        store_dir: the run's store.
        until: UTC.
        only: names of views; empty: all of them.

    Returns:
        a report of each view, by name.

    Raises:
        StoreError: ``until`` has no time zone, there is no store, or a view cannot be loaded: it is in the dead
            letter, and the others are loaded.
        sqlite3.OperationalError, redis.exceptions.RedisError: the online store does not answer (``UNREACHABLE``).
    """
    if until.tzinfo is None:
        raise StoreError(f"expected a time with a zone, found {until.isoformat()}")
    apply_definitions(Path(store_dir))  # an online store or a registry that was removed is there again
    store = open_store(store_dir)
    reports, failed = {}, {}
    names = only or sorted(str(view.name) for view in store.list_feature_views() if view.online)
    for view in names:
        try:
            with (
                writing(Path(store_dir)),
                contextlib.redirect_stdout(io.StringIO()),
            ):  # Feast prints headlines
                store.materialize(BEGINNING, until - US, feature_views=[view])
            reports[view] = Report.load(Path(store_dir), view)
            dead_letters.remove(store_dir, f"{dead_letters.VIEWS}/{view}")
        except (*UNREACHABLE, MemoryError, DiskError):  # no view's fault
            raise
        except Exception as error:  # whatever a damaged source makes its readers raise
            failed[view] = f"{type(error).__name__}: {error}"
            asked = {"view": view, "until": until.isoformat()}
            dead_letters.put(store_dir, dead_letters.VIEWS, "materialize", failed[view], asked, view)
    if failed:
        raise StoreError(
            f"{store_dir}: expected {len(names)} views to load, found {len(failed)} that did not, "
            f"{'; '.join(f'{view}: {reason}' for view, reason in failed.items())}. The others are loaded. Mend the "
            f"source, e.g. with 'moon store', and run 'moon materialize' again."
        )
    return reports


def load_row(store: FeatureStore, view: str, row: pa.Table) -> str:
    """Write a row of a view's source online, as a load would.

    Returns:
        why it is refused; empty if it is online.
    """
    found = store.get_feature_view(view)
    sifted = sift(found, row, datetime.now(UTC))
    if sifted.refused.num_rows:
        return str(sifted.refused.column("reason")[0])
    online = store._get_provider().online_store  # type: ignore[attr-defined]
    assert isinstance(online, ColumnStore)
    online.write_columns(store.config, found, sifted.batch)
    return ""


def known_until(store_dir: Path) -> datetime:
    """A second after the newest event of the offline log became available: materializing until then loads all.

    Without any event, a second after the newest item was first seen.
    """
    stamps = read_source(Path(store_dir) / DATA / LOG, ["available_time"]).column(0)
    last: datetime | None = pc.max(stamps).as_py()
    if last is None:
        seen = read_source(Path(store_dir) / DATA / "item_profile.parquet", ["first_seen_us"]).column(0)
        last = pa.scalar(pc.max(seen).as_py() or 0, TIME).as_py()
    return last + timedelta(seconds=1)


def apply_definitions(store_dir: Path) -> None:
    """Register the store's definitions, and delete those it no longer has from registry and online store.

    Does what ``feast apply`` does inside ``feature_repo/``; idempotent.

    Raises:
        StoreError: there is no store, or a definition is refused (``feature_repo.repository.definitions``).
    """
    objects: dict[str, Any] = dict(
        definitions(EmbeddingRecord.load(store_dir), REPOSITORY, read_extras(store_dir))
    )
    with writing(store_dir):
        store = _open(store_dir)
        views = [view for view in store.list_feature_views() if view.name not in objects]
        gone: list[Any] = [*views, *(view.batch_source for view in views)]
        gone += [view.stream_source for view in views if view.stream_source]
        for others in (store.list_feature_services(), store.list_on_demand_feature_views()):
            gone += [one for one in others if one.name not in objects]
        store.apply(list(objects.values()), objects_to_delete=gone, partial=False)


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    write_text(path, yaml.safe_dump(content, sort_keys=False))


def _renew_class_paths(path: Path) -> None:
    """Replace renamed class paths in a ``feature_store.yaml`` written by an earlier release."""
    content = yaml.safe_load(path.read_text())
    stale = [
        (part, key)
        for part in content.values()
        if isinstance(part, dict)
        for key, value in part.items()
        if isinstance(value, str) and value in RENAMED
    ]
    for part, key in stale:
        part[key] = RENAMED[part[key]]
    if stale:
        _write_yaml(path, content)


def _adopt_refused_events(store_dir: Path) -> None:
    """Move the refused events of an earlier release, one per line of a file, to the dead letter."""
    path = store_dir / DATA / dead_letters.DEAD_LETTER / "events.jsonl"
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            told = json.loads(line)
            reason, event = str(told["reason"]), told["event"]
        except (ValueError, TypeError, KeyError):
            reason, event = "unknown: its line in the file of an earlier release is damaged", line
        dead_letters.put(store_dir, dead_letters.EVENTS, "stream", reason, event)
    path.unlink()


def _connection_string(redis_url: str) -> str:
    url = urlsplit(redis_url)
    database = url.path.strip("/") or "0"
    if url.scheme != "redis" or not url.hostname or not database.isdigit():
        raise StoreError(f"expected an address like redis://localhost:6379/0, found {redis_url!r}")
    password = f",password={url.password}" if url.password else ""
    return f"{url.hostname}:{url.port or 6379},db={database}{password}"
