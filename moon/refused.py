"""What ``moon deadletter`` does: list refused records, show one, retry it through the door it came by, or drop it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from feature_repo import dead_letters
from feature_repo.dead_letters import (
    EMBEDDINGS,
    EVENTS,
    GENERATIONS,
    KINDS,
    NEW_ITEMS,
    ROWS,
    VIEWS,
    DeadLetter,
)
from moon import journey, releases
from moon.failures import names_own_ids
from moonstore.errors import StoreError

SHOWN = 10  # records of each kind in a list of all kinds
WIDTH = 100  # characters of a reason in a list


class StillRefused(RuntimeError):
    """A record was retried and is still refused; it stays in the dead letter."""


def listed(run: Path, kind: str | None) -> list[DeadLetter]:
    """All refused records of a run, or those of one kind, with the shop's ids in them.

    Raises:
        StoreError: no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise StoreError(f"expected one of the kinds {', '.join(KINDS)}, found {kind!r}")
    return [_named(run, letter) for letter in dead_letters.letters(run / "store", kind)]


def _named(run: Path, letter: DeadLetter) -> DeadLetter:
    """The same with the shop's ids; records of other kinds are as they were sent, and have them already."""
    from dataset.shop_ids import NAMED
    from feature_repo.own_ids import in_own_ids
    from feature_repo.shop_ids import shop_ids

    letter = replace(letter, reason=in_own_ids(run / "store", letter.reason))
    if letter.kind not in (ROWS, EMBEDDINGS) or not isinstance(letter.record, dict):
        return letter
    ids = shop_ids(run / "store")
    record = {
        name: ids.names(name, [value])[0] if name in NAMED and isinstance(value, int) else value
        for name, value in letter.record.items()
    }
    return replace(letter, record=record)


def _whose(letter: DeadLetter) -> str:
    """The ids in a record that its name does not tell, for a list."""
    from dataset.shop_ids import NAMED

    record = letter.record if isinstance(letter.record, dict) else {}
    told = record.get("item", record) if letter.kind == NEW_ITEMS else record
    ids = {name: told[name] for name in NAMED if isinstance(told, dict) and name in told}
    return "".join(f"  {name} {one!r}" for name, one in ids.items() if str(one) not in letter.id)


def table(run: Path, kind: str | None) -> str:
    """The same in words: a line each, the first ones where they are many."""
    letters = listed(run, kind)
    if not letters:
        return "nothing was refused"
    lines = []
    for one in KINDS:
        of_kind = [letter for letter in letters if letter.kind == one]
        shown = of_kind if kind is not None else of_kind[:SHOWN]
        lines += [f"{letter.id}{_whose(letter)}  {letter.door}  {letter.reason:.{WIDTH}}" for letter in shown]
        if len(shown) < len(of_kind):
            lines.append(f"... {len(of_kind) - len(shown)} more: moon deadletter list {one}")
    counts = dead_letters.counts(run / "store")
    return "\n".join([*lines, ", ".join(f"{number} {one}" for one, number in counts.items())])


def shown(run: Path, letter_id: str) -> str:
    """One record as JSON.

    Raises:
        StoreError: there is none with this id.
    """
    return as_json(_named(run, dead_letters.find(run / "store", letter_id)))


def as_json(letter: DeadLetter | list[DeadLetter]) -> str:
    """Records as JSON; what JSON has no form for (a time in a row) as text."""
    content: Any = [asdict(one) for one in letter] if isinstance(letter, list) else asdict(letter)
    return json.dumps(content, indent=2, default=str)


def drop(run: Path, letter_id: str) -> str:
    """Delete a record; says what it was.

    Raises:
        StoreError: there is none with this id.
    """
    letter = _named(run, dead_letters.find(run / "store", letter_id))
    dead_letters.remove(run / "store", letter_id)
    return f"dropped {letter_id}, refused {letter.time} at {letter.door}: {letter.reason}"


@names_own_ids
def retry(run: Path, letter_id: str, clock: str = "log") -> str:
    """Put a record back through its door; only if it is accepted, it leaves the dead letter.

    Args:
        run: the run folder.
        letter_id: of the record.
        clock: that the run is served with (``feature_repo.ingest.clock``); an event without a time gets its time.

    Raises:
        StoreError: there is none with this id.
        StillRefused: with the reason of this time.
        StoreUnavailable: the online store does not answer; the record stays as it is.
    """
    letter = dead_letters.find(run / "store", letter_id)
    said = _event(run, letter, clock) if letter.kind == EVENTS else RETRIES[letter.kind](run, letter)
    dead_letters.remove(run / "store", letter_id)
    return said


def _item(run: Path, letter: DeadLetter) -> str:
    from dataset.contracts import DataError
    from feature_repo.ingest.new_items import retry_item

    try:
        retry_item(run / "store", letter)
    except DataError as error:
        raise _still(run, letter, error) from None
    return f"{letter.id} is among the new items: running services encode it"


def _event(run: Path, letter: DeadLetter, clock: str) -> str:
    from dataset.contracts import DataError
    from feature_repo.ingest.clock import shop_clock
    from feature_repo.ingest.ingestor import Ingestor
    from feature_repo.ingest.stream import retry_event
    from feature_repo.shop_ids import shop_ids

    store_dir = run / "store"
    try:
        retry_event(letter, Ingestor(store_dir, shop_clock(store_dir, clock)), shop_ids(store_dir).kinds)
    except DataError as error:
        raise _still(run, letter, error) from None
    return f"{letter.id} is in the journal and online"


def _row(run: Path, letter: DeadLetter) -> str:
    from feature_repo.store import load_row, open_store

    view = letter.id.split("/")[1]
    if reason := load_row(open_store(run / "store"), view, dead_letters.row(run / "store", letter.id)):
        raise StillRefused(f"{letter.id}: {reason}. Mend the source of {view} and run 'moon materialize'.")
    return f"{letter.id} is online"


def _view(run: Path, letter: DeadLetter) -> str:
    from datetime import datetime

    from feature_repo.store import materialize

    view = letter.record["view"]
    try:
        materialize(run / "store", datetime.fromisoformat(letter.record["until"]), [view])
    except StoreError as error:
        raise StillRefused(str(error)) from None
    return f"{view} is loaded"


def _embedding(run: Path, letter: DeadLetter) -> str:
    journey.do(journey.load(run), "embed")
    if letter.id in {one.id for one in dead_letters.letters(run / "store", EMBEDDINGS)}:
        raise StillRefused(f"{letter.id}: {dead_letters.find(run / 'store', letter.id).reason}")
    return f"{letter.id} has a vector: run 'moon demo' for the stages behind 'moon embed'"


def _generation(run: Path, letter: DeadLetter) -> str:
    number = int(letter.record["generation"])
    try:
        releases.activate(run, number)
    except RuntimeError as error:
        raise _still(run, letter, error) from None
    return f"generation {number} serves"


def _still(run: Path, letter: DeadLetter, error: Exception) -> StillRefused:
    """Note that a record was refused again, unless its door has done so."""
    kind, _, name = letter.id.partition("/")
    if dead_letters.find(run / "store", letter.id).attempts == letter.attempts:
        dead_letters.put(run / "store", kind, letter.door, str(error), letter.record, name)
    return StillRefused(
        f"{letter.id}: {error}. It stays in the dead letter; 'moon deadletter drop' removes it."
    )


RETRIES: dict[str, Callable[[Path, DeadLetter], str]] = {
    NEW_ITEMS: _item,
    ROWS: _row,
    VIEWS: _view,
    EMBEDDINGS: _embedding,
    GENERATIONS: _generation,
}
