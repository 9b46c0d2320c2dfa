"""The dead letter: what was refused, with door and reason; one JSON file a record, ``data/dead_letter/<kind>``."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moonstore.engine import DATA, DEAD_LETTER
from run.artifacts import write_json

EVENTS = "events"


def put(store_dir: Path, kind: str, door: str, reason: str, record: Any) -> None:
    """Add a record; the same one, refused again, replaces itself.

    Args:
        store_dir: the run's store.
        kind: what the record is.
        door: where it was refused.
        reason: why.
        record: as it was received: JSON, or the text of what is none.
    """
    text = record if isinstance(record, str) else json.dumps(record, sort_keys=True)
    name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    path = Path(store_dir) / DATA / DEAD_LETTER / kind / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, {"door": door, "reason": reason, "record": record, "time": now})
