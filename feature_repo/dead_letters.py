"""The dead letter: what was refused, with door and reason, until it is retried or dropped.

A record is one JSON file, ``data/dead_letter/<kind>/<name>.json``. Rows that a load refused are many and alike: those
of one view are one file, ``data/dead_letter/<view>.parquet`` with a column ``reason``, which its next load replaces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moonstore.disk import make_folder
from moonstore.errors import StoreError
from moonstore.files import write_json
from moonstore.refused_rows import DATA, DEAD_LETTER, RefusedRows

# What a record can be; the first five are folders.
NEW_ITEMS, EVENTS, EMBEDDINGS, VIEWS, GENERATIONS = (
    "new_items",
    "events",
    "embeddings",
    "views",
    "generations",
)
ROWS = "rows"
KINDS = (NEW_ITEMS, EVENTS, EMBEDDINGS, VIEWS, GENERATIONS, ROWS)


@dataclass(frozen=True)
class DeadLetter:
    """One refused record.

    Attributes:
        id: ``<kind>/<name>``, or ``rows/<view>/<hash>``: stays the same when the same record is refused again.
        door: where it was refused, e.g. ``stream`` or ``materialize``.
        reason: why.
        time: when it was refused last, ISO 8601 UTC.
        record: as it was received: JSON, or the text of what is none.
        attempts: how often it was refused.
    """

    id: str
    door: str
    reason: str
    time: str
    record: Any
    attempts: int = 1

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.id.partition("/")[0]


def put(
    store_dir: Path, kind: str, door: str, reason: str, record: Any, name: str = "", attempts: int = 0
) -> DeadLetter:
    """Add a record, or replace the one of its name.

    Args:
        store_dir: the run's store.
        kind: one of KINDS except ``rows``.
        door, reason, record: see ``DeadLetter``.
        name: the record's own id; by default a hash of its content.
        attempts: how often it was refused before, if the dead letter does not know.
    """
    name = name or digest(record)
    before = _read(_path(store_dir, f"{kind}/{name}"))
    attempts = 1 + max(attempts, before.attempts if before is not None else 0)
    letter = DeadLetter(
        f"{kind}/{name}", door, reason, datetime.now(UTC).isoformat(timespec="seconds"), record, attempts
    )
    path = _path(store_dir, letter.id)
    make_folder(path.parent)
    write_json(path, {name: value for name, value in asdict(letter).items() if name != "id"})
    return letter


def letters(store_dir: Path, kind: str | None = None) -> Iterator[DeadLetter]:
    """All records, or those of one kind, ascending by id within a kind."""
    for one in KINDS if kind is None else (kind,):
        if one == ROWS:
            for path in sorted(_folder(store_dir).glob("*.parquet")):
                yield from _rows(path)
        else:
            found = (_read(path) for path in sorted((_folder(store_dir) / one).glob("*.json")))
            yield from (letter for letter in found if letter is not None)


def find(store_dir: Path, letter_id: str) -> DeadLetter:
    """The record with this id.

    Raises:
        StoreError: there is none; says how many there are, and the first.
    """
    kind, _, name = letter_id.partition("/")
    if kind == ROWS:
        path = _folder(store_dir) / f"{name.rpartition('/')[0]}.parquet"
        found = next((one for one in _rows(path) if one.id == letter_id), None)
    else:
        found = _read(_path(store_dir, letter_id)) if kind in KINDS and "/" not in name else None
    if found is None:
        known = [one.id for one in letters(store_dir)]
        raise StoreError(
            f"expected the id of a refused record, found {letter_id!r}; there are {len(known)}"
            f"{': ' + ', '.join(known[:5]) if known else ''}. Run 'moon deadletter list'."
        )
    return found


def remove(store_dir: Path, letter_id: str) -> None:
    """Delete a record from the dead letter, if it is there."""
    if not letter_id.startswith(f"{ROWS}/"):
        _path(store_dir, letter_id).unlink(missing_ok=True)
        return
    path, is_it = _found(store_dir, letter_id)
    with RefusedRows(path) as refused:
        refused.add(pq.read_table(path).filter(pa.array([not one for one in is_it])))


def row(store_dir: Path, letter_id: str) -> pa.Table:
    """The refused row with this id, and those that are the same, with the columns of the view's source."""
    path, is_it = _found(store_dir, letter_id)
    return pq.read_table(path).filter(pa.array(is_it)).drop(["reason"])


def refused_keys(store_dir: Path, view: str, key: str) -> np.ndarray:
    """Keys of the rows that the last load of a view refused, int64."""
    try:
        keys = pq.read_table(_folder(store_dir) / f"{view}.parquet", columns=[key]).column(0)
        return np.asarray(keys.drop_null().to_numpy(), np.int64)
    except (FileNotFoundError, pa.ArrowInvalid):
        return np.zeros(0, np.int64)


def counts(store_dir: Path) -> dict[str, int]:
    """Number of records of each kind that has any."""
    folder = _folder(store_dir)
    found = {kind: sum(1 for _ in (folder / kind).glob("*.json")) for kind in KINDS if kind != ROWS}
    found[ROWS] = sum(_number(path) for path in folder.glob("*.parquet"))
    return {kind: number for kind, number in found.items() if number}


def digest(record: Any) -> str:
    """16 hex digits that depend on the content of a record alone."""
    text = record if isinstance(record, str) else json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _rows(path: Path) -> Iterator[DeadLetter]:
    """The refused rows of one view."""
    try:
        rows = pq.read_table(path).to_pylist()
        time = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except (FileNotFoundError, pa.ArrowInvalid):  # dropped, or damaged: the view's next load writes it again
        return
    for row in rows:
        reason = row.pop("reason")
        yield DeadLetter(f"{ROWS}/{path.stem}/{digest(row)}", "materialize", reason, time, row)


def _read(path: Path) -> DeadLetter | None:
    """The record in a file; None: there is no file."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    letter_id = f"{path.parent.name}/{path.stem}"
    try:
        content = json.loads(text)
        reason, attempts = str(content["reason"]), int(content.get("attempts", 1))
    except (ValueError, TypeError, KeyError, AttributeError):
        return DeadLetter(letter_id, "unknown", "its file in the dead letter is damaged", "", text)
    about = {name: content.get(name, "") for name in ("door", "time")}
    # Earlier releases kept the fields of the record beside the reason.
    rest = {name: value for name, value in content.items() if name not in ("reason", "attempts", *about)}
    return DeadLetter(letter_id, reason=reason, record=rest.get("record", rest), attempts=attempts, **about)


def _found(store_dir: Path, letter_id: str) -> tuple[Path, list[bool]]:
    """The file of a refused row, and which of its rows have this id."""
    _, view, name = letter_id.split("/")
    path = _folder(store_dir) / f"{view}.parquet"
    return path, [digest(one) == name for one in pq.read_table(path).drop(["reason"]).to_pylist()]


def _number(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (FileNotFoundError, pa.ArrowInvalid):
        return 0


def _path(store_dir: Path, letter_id: str) -> Path:
    kind, _, name = letter_id.partition("/")
    return _folder(store_dir) / kind / f"{name}.json"


def _folder(store_dir: Path) -> Path:
    return Path(store_dir) / DATA / DEAD_LETTER
