"""Items received since the catalogue was imported: stored as files, written online, and folded into the sources.

An item is one JSON file in ``data/new_items``, written atomically; an item that is sent again replaces it. Every
service of the store watches that folder, encodes new items and writes their rows online (``put_online``), so that all
running services see an item, and so do services that start later.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationError

from dataset.contracts import DataError, content_hash
from dataset.pictures import inspect_picture
from dataset.records import ACTIVE, Item, Record, first_error
from dataset.shop_ids import ShopId
from feature_repo import dead_letters
from feature_repo.dead_letters import DeadLetter
from feature_repo.ingest.item_states import set_state
from feature_repo.shop_ids import ShopIds, shop_ids
from feature_repo.sources import DATA, LOCK, NEW_ITEMS
from moonstore.clock import CLOCK_SKEW
from moonstore.disk import make_folder
from moonstore.files import locked, write_json
from moonstore.freshness import EPOCH, US

log = logging.getLogger(__name__)


class NewItem(Record):
    """A received item and when it became available.

    Attributes:
        item: as received.
        available_us: microseconds since 1970 UTC.
        attempts: how often it was in the dead letter before.
    """

    item: Item
    available_us: Annotated[int, Field(strict=True, ge=0)]
    attempts: int = 0
    _inside: tuple[int, int | None] = PrivateAttr()

    @property
    def item_id(self) -> int:
        """What stands for its id inside."""
        return self._inside[0]

    @property
    def image(self) -> bytes | None:
        """Its encoded picture."""
        text = self.item.image_base64
        return None if text is None else base64.b64decode(text)

    @property
    def row(self) -> dict[str, Any]:
        """Its row of ``dataset.contracts.ITEMS``."""
        one, image = self.item, self.image
        return {
            "item_id": self.item_id,
            "external_id": str(one.item_id),
            "title": one.title,
            "description": one.description,
            "category": one.category,
            "attributes": list(one.attributes.items()),
            "price": one.price,
            "spu": self.item_id if self._inside[1] is None else self._inside[1],
            "image_id": None if image is None else content_hash(image),
            "first_seen": EPOCH + self.available_us * US,
        }


def keep_item(store_dir: Path, item: Item, now: datetime) -> None:
    """Store an item that becomes available at ``now``, for all services of the store.

    An earlier item of this id, also one in the dead letter, is replaced; one that was deleted is back.

    Raises:
        DataError: its id cannot be told from another inside.
    """
    ids = shop_ids(store_dir)
    ids.keep("item_id", [item.item_id])
    item_id = ids.one("item_id", item.item_id)
    path = _path(store_dir, item_id)
    make_folder(path.parent)
    if item.state != ACTIVE:  # first, so that it is not shown in between
        set_state(store_dir, item_id, item.state, now)
    content = {"item": item.model_dump(exclude_none=True), "available_us": (now - EPOCH) // US}
    with locked(path.parent / LOCK):
        write_json(path, content)
    dead_letters.remove(store_dir, f"{NEW_ITEMS}/{item_id}")
    if item.state == ACTIVE:
        set_state(store_dir, item_id, ACTIVE, now)


def kept_item(store_dir: Path, item_id: ShopId) -> Item | None:
    """An item as it was received last; None: it was not, or was set aside."""
    ids = shop_ids(store_dir)
    path = _path(store_dir, ids.one("item_id", item_id))
    try:
        return _parsed(path.stem, path.read_bytes(), ids).item
    except (FileNotFoundError, DataError):
        return None


def new_items(store_dir: Path) -> list[NewItem]:
    """All items received, ascending by id; a file that holds no item is moved to the dead letter."""
    found, ids = [], shop_ids(store_dir)
    for path in _files(store_dir):
        try:
            content = path.read_bytes()
            found.append(_parsed(path.stem, content, ids))
        except FileNotFoundError:  # another process has just set it aside
            continue
        except DataError as error:
            log.warning("%s is set aside: %s", path.name, error)
            _move(store_dir, path, content, str(error))
    return sorted(found, key=lambda one: one.item_id)


def set_aside(store_dir: Path, item: NewItem, reason: str) -> None:
    """Move an item that cannot be encoded or stored to the dead letter, unless it was sent again in the meantime."""
    path = _path(store_dir, item.item_id)
    content = path.read_bytes()
    if _parsed(path.stem, content, shop_ids(store_dir)) == item:
        _move(store_dir, path, content, reason, item.attempts)


def retry_item(store_dir: Path, letter: DeadLetter) -> None:
    """Put an item of the dead letter back among the new items, as it was received.

    Idempotent: a retry that was killed before the item left the dead letter is completed by the next one.

    Raises:
        DataError: it still is no item, or its picture does not decode; or another one was received since.
    """
    name = letter.id.partition("/")[2]
    one = _parsed(name, json.dumps(letter.record), shop_ids(store_dir))
    check_picture(one)
    path = _path(store_dir, one.item_id)
    path.parent.mkdir(exist_ok=True)
    content = {**letter.record, "attempts": letter.attempts}
    with locked(path.parent / LOCK):
        if not path.exists():
            write_json(path, content)
        elif json.loads(path.read_bytes()) != content:
            raise DataError(f"item {one.item.item_id} was received again since: drop this one")
    dead_letters.remove(store_dir, letter.id)


def fingerprint(store_dir: Path) -> tuple[tuple[str, int], ...]:
    """Changes when an item is received or removed; services ask for it several times a second."""
    try:
        with os.scandir(Path(store_dir) / DATA / NEW_ITEMS) as entries:
            found = [(one.name, one.stat().st_mtime_ns) for one in entries if one.name.endswith(".json")]
    except (
        FileNotFoundError
    ):  # the folder, or an item that has just been folded: the next look finds the rest
        return ()
    return tuple(sorted(found))


def _parsed(name: str, content: bytes | str, ids: ShopIds) -> NewItem:
    """The item in the file of this name.

    Raises:
        DataError: the content is no item, or not the one that the name says.
    """
    try:
        one = NewItem.model_validate_json(content, context=ids.kinds)
    except ValidationError as error:
        raise DataError(f"expected a received item, found {first_error(error)}") from None
    try:
        one.image  # noqa: B018 - is it base64?
    except ValueError as error:
        raise DataError(f"expected a picture in base64, found {error}") from None
    spu = None if one.item.spu is None else ids.one("spu", one.item.spu)
    one._inside = (ids.one("item_id", one.item.item_id), spu)
    if str(one.item_id) != name:
        raise DataError(f"expected item {name}, as its file is named, found item {one.item_id}")
    if one.available_us > (datetime.now(UTC) + CLOCK_SKEW - EPOCH) // US:
        raise DataError(f"expected an item received by now, found one of the future ({one.available_us} us)")
    return one


def check_picture(one: NewItem) -> None:
    """Decode the picture of an item, if it has one.

    Raises:
        DataError: it does not decode.
    """
    problem = None if one.image is None else inspect_picture(one.image).problem
    if problem is not None:
        raise DataError(
            f"expected a picture, found {len(one.image or b'')} bytes that do not decode: {problem}"
        )


def _move(store_dir: Path, path: Path, content: bytes, reason: str, attempts: int = 0) -> None:
    """Move a file to the dead letter, unless it has another content by now."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = content.decode(errors="replace")
    if isinstance(record, dict):
        record.pop("attempts", None)
    with locked(path.parent / LOCK):
        if path.exists() and path.read_bytes() == content:
            dead_letters.put(store_dir, NEW_ITEMS, "items", reason, record, path.stem, attempts)
            path.unlink()


def _files(store_dir: Path) -> list[Path]:
    return list((Path(store_dir) / DATA / NEW_ITEMS).glob("*.json"))


def _path(store_dir: Path, item_id: int) -> Path:
    return Path(store_dir) / DATA / NEW_ITEMS / f"{item_id}.json"
