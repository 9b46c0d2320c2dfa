"""The jobs that are writes of the running service, and of the commands beside it: ingest, fold, switch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import test_ingest
from conftest import make_world

from dataset.records import Item
from dataset.shop_ids import ALL_INT64, IdKind
from feature_repo import dead_letters
from feature_repo.event_log import log_version
from feature_repo.ingest.clock import ShopClock
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.item_rows import are_online, fold_items, put_online
from feature_repo.ingest.item_states import set_state, withdrawn
from feature_repo.ingest.journal import Journal
from feature_repo.ingest.new_items import keep_item, new_items, set_aside
from feature_repo.ingest.stream import EventFile, consume
from feature_repo.item_matrix import open_item_matrix
from feature_repo.shop_ids import shop_ids, write_shop_ids
from feature_repo.sources import DATA, LOG
from feature_repo.store import open_store, use_profile
from feature_repo.views import EmbeddingRecord
from tests.crash.contents import contents
from tests.crash.job import Job, acknowledge, acknowledged

NOW = test_ingest.END
WORLD = make_world(seed=1)
EVENTS = test_ingest.some_events(WORLD, 12)
NEW = 10**15


def now():
    """The shop's time, which stands still here."""
    return NOW


def _ingest(folder: Path) -> None:
    """Three requests with four events each, each told that its events are kept."""
    ingestor = Ingestor(folder / "store", now)
    for start in range(0, len(EVENTS), 4):
        some = EVENTS[start : start + 4]
        ingestor.ingest(some)
        acknowledge(folder, [one.event_id for one in some])


def _journal_ids(folder: Path) -> list[int]:
    return sorted(Journal(folder / "store").event_ids().tolist())


def _all_kept(folder: Path) -> None:
    """Every acknowledged event is in the journal, once, and in its user's history as soon as a service runs."""
    ids = _journal_ids(folder)
    assert len(set(ids)) == len(ids), "an event is in the journal twice"
    assert acknowledged(folder) <= set(ids), "an acknowledged event is lost"
    Ingestor(folder / "store", now)
    for user in WORLD.user_ids.tolist():
        mine = [
            one.item_id
            for one in EVENTS
            if one.user_id == user and one.type != "impression" and one.event_id in ids
        ]
        seen = test_ingest.online(folder / "store", user, NOW + timedelta(seconds=1), 50)[1]
        assert sorted(seen[len(seen) - len(mine) :]) == sorted(mine), (
            f"user {user}: kept {mine}, online {seen}"
        )


def _ingest_again(folder: Path) -> None:
    """The senders repeat what was not acknowledged, and everything else, too."""
    there = len(_journal_ids(folder))
    found = Ingestor(folder / "store", now).ingest(EVENTS)
    assert (found.accepted, found.duplicates) == (len(EVENTS) - there, there), found


def _histories(folder: Path) -> dict[str, object]:
    """The journal's events and what each user's history holds, in order.

    Not their times to the microsecond: those of one request follow one another, and here a later request brings some.
    """
    rows = Journal(folder / "store").table().drop_columns(["event_time", "available_time"]).to_pylist()
    seen = [
        test_ingest.online(folder / "store", user, NOW + timedelta(seconds=1), 50)
        for user in WORLD.user_ids.tolist()
    ]
    others = ("/events/", "online.db")
    rest = {name: one for name, one in contents(folder).items() if not any(some in name for some in others)}
    return {"journal": rows, "online": seen, **rest}


def _received(folder: Path) -> None:
    """Events and items that wait to be folded."""
    Ingestor(folder / "store", now).ingest(EVENTS)
    keep_item(folder / "store", Item(item_id=NEW, title="a new one"), NOW)


def _fold(folder: Path) -> None:
    store = folder / "store"
    fold(store)
    fold_items(open_store(store), EmbeddingRecord.load(store).embeddings)


def _offline(folder: Path) -> list:
    """What training would read of every user: all of before the fold or all of after it."""
    users = WORLD.user_ids.tolist()
    return [list(one) for one in test_ingest.offline(folder / "store", users, NOW + timedelta(seconds=1), 50)]


def _folded(folder: Path) -> dict[str, object]:
    ids = pq.read_table(folder / "store" / DATA / LOG, columns=["event_id"]).column(0).to_pylist()
    assert len(set(ids)) == len(ids), "an event is in the log twice"
    assert {one.event_id for one in EVENTS} <= set(ids), "an event is lost"
    data = folder / "store" / DATA
    waiting = Journal(folder / "store").table().num_rows
    # Journal files are counted on, and of the event log two versions are kept: the present one matters.
    passing = ("/events/0", "/events/folded/", "/event_log/")
    kept = {name: one for name, one in contents(folder).items() if not any(some in name for some in passing)}
    return {"waiting": waiting, "version": log_version(data), **kept}


def _keep(folder: Path) -> None:
    """Three items, of which the second is sent twice."""
    for number, title in enumerate(("one", "two", "two again", "three")):
        item = Item(item_id=NEW + min(number, 2 if number == 3 else 1), title=title)
        keep_item(folder / "store", item, NOW + timedelta(seconds=number))
        acknowledge(folder, [item.item_id])


def _items_kept(folder: Path) -> None:
    ids = {one.item_id for one in new_items(folder / "store")}
    assert acknowledged(folder) <= ids, "an acknowledged item is lost"


def _one_new(folder: Path) -> None:
    keep_item(folder / "store", Item(item_id=NEW, title="a new one"), NOW)


def _put_online(folder: Path) -> None:
    """What a service does with an item, after encoding it."""
    store = open_store(folder / "store")
    embedding, items = EmbeddingRecord.load(folder / "store").embeddings[0], new_items(folder / "store")
    if not are_online(store, items, embedding).all():
        vectors = np.zeros((len(items), embedding.width), np.float32)
        vectors[:, 0] = 1
        put_online(store, items, vectors, embedding)


def _item_is_online(folder: Path) -> str:
    store = open_store(folder / "store")
    embedding, items = EmbeddingRecord.load(folder / "store").embeddings[0], new_items(folder / "store")
    return "there" if are_online(store, items, embedding).all() else "not yet"


def _set_aside(folder: Path) -> None:
    """What a service does with each item that it cannot encode; it looks at them again and again."""
    for one in new_items(folder / "store"):
        set_aside(folder / "store", one, "cannot be encoded")


def _item_is_known(folder: Path) -> None:
    """The item waits or is set aside: it does not vanish."""
    waiting = [one.item_id for one in new_items(folder / "store")]
    refused = [
        int(one.id.partition("/")[2])
        for one in dead_letters.letters(folder / "store", dead_letters.NEW_ITEMS)
    ]
    assert {*waiting, *refused} == {NEW}, "a received item is lost"


def _stream(folder: Path) -> None:
    """A file of events of which every third is no event; killed, it is read again from its beginning."""
    lines = [one.model_dump_json() for one in EVENTS]
    lines[::3] = ["{}"] * len(lines[::3])
    path = folder.parent / "events.jsonl"
    path.write_text("\n".join(lines))
    for _ in consume(EventFile(path), Ingestor(folder / "store", now), folder / "store"):
        pass


def _set_clock(folder: Path) -> None:
    """As a service does when it starts."""
    ShopClock(folder / "store", NOW).set(NOW + timedelta(days=1))


def _time(folder: Path) -> str:
    told = ShopClock(folder / "store", NOW)()
    return str(told.date())


def _snapshot(folder: Path) -> None:
    embedding = EmbeddingRecord.load(folder / "store").embeddings[0]
    open_item_matrix(open_store(folder / "store"), embedding)


def _switch(folder: Path) -> None:
    use_profile(folder / "store", "redis", "redis://127.0.0.1:1/0")


def _profile(folder: Path) -> str:
    return str(open_store(folder / "store").config.online_store.type)


def _withdraw(folder: Path) -> None:
    """One item is out of stock and then deleted."""
    for state in ("out_of_stock", "deleted"):
        set_state(folder / "store", NEW, state, NOW)
        acknowledge(folder, [NEW])


def _is_withdrawn(folder: Path) -> None:
    """What was acknowledged as withdrawn is not answered."""
    assert acknowledged(folder) <= set(withdrawn(folder / "store")), "an acknowledged change is lost"


def _state(folder: Path) -> str:
    return withdrawn(folder / "store").get(NEW, "active")


def _texts(folder: Path) -> None:
    """The same store of a shop whose ids are texts."""
    tables = {name: getattr(WORLD.dataset, name) for name in ("items", "users", "queries")}
    write_shop_ids(folder / "store", {**ALL_INT64, "user_id": IdKind.TEXT}, tables)


def _receive_ids(folder: Path) -> None:
    """Users that nobody has heard of, one after the other, and one who is known."""
    ids = shop_ids(folder / "store")
    for number, names in enumerate((["a", "u0"], ["b", "c"], ["a", "d"])):
        ids.keep("user_id", names)
        acknowledge(folder, [number])


def _ids_have_names(folder: Path) -> None:
    """The names of what was acknowledged are known to another process."""
    ids = shop_ids(folder / "store")
    names = ["a", "b", "c", "d"][: {0: 1, 1: 3, 2: 4}.get(max(acknowledged(folder), default=-1), 0)]
    assert ids.names("user_id", ids.find("user_id", names)) == names, "the name of an acknowledged id is lost"


def _named(folder: Path) -> list:
    ids = shop_ids(folder / "store")
    return ids.names("user_id", ids.find("user_id", ["a", "b", "c", "d", "u0"]))


def _start_clock(folder: Path) -> None:
    ShopClock(folder / "store", NOW)


SERVICE = (
    Job("events over HTTP", "store", _ingest, look=_all_kept, again=_ingest_again, state=_histories),
    Job("events of a file", "store", _stream, state=_histories),
    Job("fold", "store", _fold, prepare=_received, look=_offline, state=_folded),
    Job("items over HTTP", "store", _keep, look=_items_kept),
    Job("item goes online", "trained", _put_online, prepare=_one_new, look=_item_is_online),
    Job("item is set aside", "trained", _set_aside, prepare=_one_new, look=_item_is_known),
    Job("item is withdrawn", "store", _withdraw, look=_is_withdrawn, state=_state),
    Job("ids are received", "store", _receive_ids, prepare=_texts, look=_ids_have_names, state=_named),
    Job("snapshot of items", "trained", _snapshot),
    Job("clock", "store", _set_clock, prepare=_start_clock, look=_time),
    Job("online store switched", "store", _switch, look=_profile),
)
