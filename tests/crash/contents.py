"""What a folder holds, without what differs between two equal runs: times of day, durations, order in a database."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from pathlib import Path

from feast.protos.feast.core.Registry_pb2 import Registry

from run.artifacts import MANIFEST

VOLATILE = {"seconds", "since", "published", "shop", "wall", "time", "attempts"}
OF_A_DATABASE = ("-journal", "-wal", "-shm")  # SQLite removes or replays them when it is opened


def contents(folder: Path) -> dict[str, object]:
    """Path -> what it holds, of every file below a folder.

    Manifests and locks are left out: a manifest has the time that the job took. So is the hash in the name of an item
    matrix, which is one of modification times.
    """
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink()):
        if path.name != MANIFEST and not path.name.endswith("lock") and not path.name.endswith(OF_A_DATABASE):
            name = re.sub(
                r"item_matrix/v(\d+)-[0-9a-f]{16}", r"item_matrix/v\1", str(path.relative_to(folder))
            )
            found[name] = _content(path)
    return found


def _content(path: Path) -> object:
    if path.is_symlink():
        return "link"
    if path.name == "registry.db":
        return _registry(path)
    if path.suffix == ".db":
        return _rows(path)
    if path.suffix == ".json":
        return _still(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _still(value: object) -> object:
    """JSON without times of day and durations."""
    if isinstance(value, dict):
        return {key: None if key in VOLATILE else _still(one) for key, one in value.items()}
    return [_still(one) for one in value] if isinstance(value, list) else value


def _rows(path: Path) -> dict[str, str]:
    """A hash of each table's rows, in whatever order; without the time at which a row was written."""
    with sqlite3.connect(path) as connection:
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        found = {}
        for table in tables:
            names = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
            columns = ",".join(name for name in names if name != "created_ts")
            rows = connection.execute(f'SELECT {columns} FROM "{table}"')
            found[table] = hashlib.sha256(repr(sorted(map(repr, rows))).encode()).hexdigest()
    connection.close()
    return found


def _registry(path: Path) -> dict[str, list[str]]:
    """The names of what Feast knows."""
    registry = Registry()
    registry.ParseFromString(path.read_bytes())
    kinds = ("entities", "feature_views", "feature_services", "data_sources")
    named = {
        kind: [getattr(one, "spec", one).name or one.name for one in getattr(registry, kind)]
        for kind in kinds
    }
    return {kind: sorted(names) for kind, names in named.items()}
