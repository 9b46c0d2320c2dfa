"""One bad record in a thousand costs itself: it is in the dead letter with its reason, and the others are right.

Every kind of poison lies in the middle of a thousand good records, at each stage that reads records.

Run: pytest tests/test_dead_letters.py
"""

import base64
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, make_world
from encoder_world import png
from fastapi.testclient import TestClient
from shop_world import NOW, ids_of, make_shop, vector_of
from typer.testing import CliRunner

from dataset.records import Item
from feature_repo import dead_letters
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.item_rows import fold_items
from feature_repo.ingest.journal import Journal
from feature_repo.ingest.new_items import keep_item, new_items, retry_item
from feature_repo.online import OnlineReader
from feature_repo.store import known_until, materialize, open_store
from feature_repo.views import EmbeddingRecord
from moon import refused
from moon.cli import app
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US
from moonstore.matrix import read_matrix
from serving.app import create_app
from serving.live import Live
from serving.settings import Settings

FIRST, COUNT = 2**50, 1000
AVAILABLE_US = (NOW - EPOCH) // US
FUTURE_US = (datetime(2126, 1, 1, tzinfo=UTC) - EPOCH) // US
PICTURE = png("red", "disc")
POISONS = {  # kind -> (what is wrong with the file of an item, its reason)
    "picture": ({"image_base64": base64.b64encode(PICTURE[:60]).decode()}, "do not decode"),
    "no base64": ({"image_base64": "a"}, "base64"),
    "infinite": ({"price": float("inf")}, "item.price"),
    "long": ({"title": "x" * 1_000_000}, "item.title"),
    "id": ({"item_id": 2**63}, "item.item_id"),
    "encoder": ({"title": "boom"}, "the encoder failed"),
    "vector": ({"title": "nan"}, "NaN"),
    "future": (FUTURE_US, "future"),
    "broken": (b'{"item": {"item_id": 7, ]', "expected a received item"),
    "bytes": (b"\xff\x00\xfe" * 9, "expected a received item"),
    "truncated": (None, "expected a received item"),
    "other": (b'{"item": {"item_id": 7, "title": "red"}, "available_us": 1}', "found item 7"),
}
AT_THE_ENCODER = {"encoder", "vector"}


@pytest.fixture(scope="module", params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def made(request, tiny_world, tmp_path_factory):
    """A loaded shop on each store."""
    url = request.getfixturevalue("redis_server").url(22) if request.param == "redis" else None
    return make_shop(tmp_path_factory.mktemp("refused"), tiny_world, url)


@pytest.fixture
def shop(made, tmp_path):
    return made.copied(tmp_path / "run")


def told(number):
    return {
        "item_id": FIRST + number,
        "title": f"t{number} new",
        "category": ["fresh"],
        "price": number / 4 if number else float("nan"),
    }


def items_come_in(shop):
    """A thousand items, one of each poison among them, as their files; id -> kind of the bad ones."""
    folder = shop.store / "data" / "new_items"
    folder.mkdir()
    bad = {FIRST + 400 + 7 * place: kind for place, kind in enumerate(POISONS)}
    for number in range(COUNT):
        item_id = FIRST + number
        content = {"item": told(number), "available_us": AVAILABLE_US}
        if number % 100 == 3:
            content["item"]["image_base64"] = base64.b64encode(PICTURE).decode()
        whole = json.dumps(content).encode()
        if item_id in bad:
            wrong = POISONS[bad[item_id]][0]
            if isinstance(wrong, dict):
                content["item"] |= wrong
            elif isinstance(wrong, int):
                content["available_us"] = wrong
            is_file = wrong is None or isinstance(wrong, bytes)
            whole = (wrong or whole[:40]) if is_file else json.dumps(content).encode()
        (folder / f"{item_id}.json").write_bytes(whole)
    return bad


def reasons(shop):
    return {letter.id: letter.reason for letter in dead_letters.letters(shop.store)}


def test_items_that_come_in(shop, monkeypatch):
    bad = items_come_in(shop)
    good = np.array([FIRST + n for n in range(COUNT) if FIRST + n not in bad])
    live = shop.live()
    live.look()
    found = reasons(shop)
    assert set(found) == {f"new_items/{item_id}" for item_id in bad}
    for item_id, kind in bad.items():
        assert POISONS[kind][1] in found[f"new_items/{item_id}"], kind
    for another in (live, shop.live()):  # and one that starts later
        moon = another.current
        assert another.stale_reason == "" and another.count_refused() == {"new_items": len(bad)}
        assert np.isin(moon.retriever.index.ids, np.arange(FIRST, FIRST + COUNT)).sum() == len(good)
        wanted = np.stack([vector_of(told(int(item_id) - FIRST)["title"]) for item_id in good])
        np.testing.assert_array_equal(moon.retriever.index.gather(good)[0], wanted)
        frame = moon.reader.with_candidates(moon.reader.read_user(7, NOW + DAY), good)
        assert frame.candidates["price"].to_pylist() == [(int(one) - FIRST) / 4 or None for one in good]
        assert frame.candidates["item_found"].to_pylist() == [True] * len(good)
    given = shop.live().current.encoder.given  # but for pictures alone, nothing is encoded again
    assert all(one.image is not None and one.text is None for one in given)
    monkeypatch.setattr(Live, "open", classmethod(lambda cls, settings: live))
    with TestClient(create_app(Settings(run=shop.run))) as client:
        answer = client.get("/readyz")
        assert answer.status_code == 200 and answer.json()["dead_letters"] == {"new_items": len(bad)}
        assert f'moon_dead_letters{{kind="new_items"}} {len(bad)}.0' in client.get("/metrics").text


def test_items_that_are_folded(shop):
    bad = items_come_in(shop)
    seen = {item_id: kind for item_id, kind in bad.items() if kind not in AT_THE_ENCODER}
    store = open_store(shop.store)
    assert fold_items(store, EmbeddingRecord.load(shop.store).embeddings) == COUNT - len(seen)
    found = reasons(shop)
    assert set(found) == {f"new_items/{item_id}" for item_id in seen}
    for item_id, kind in seen.items():
        assert POISONS[kind][1] in found[f"new_items/{item_id}"], kind
    rows = pq.read_table(shop.store / "data" / "item_profile.parquet").to_pylist()
    prices = {row["item_id"]: row["price"] for row in rows if row["item_id"] >= FIRST}
    assert prices == {FIRST + n: n / 4 if n else None for n in range(COUNT) if FIRST + n not in seen}
    assert fold_items(open_store(shop.store), EmbeddingRecord.load(shop.store).embeddings) == 0


def line(number, **changes):
    row = {
        "event_id": FIRST + number,
        "user_id": 901,
        "item_id": number,
        "type": "click",
        "event_time": AVAILABLE_US - COUNT + number,
        "available_time": AVAILABLE_US + number,
    }
    return json.dumps(row | changes).encode()


LINES = {
    "broken": (b'{"event_id": 7, "user_id"', "Invalid JSON"),
    "bytes": (b"\xff\xfe\x00", "Invalid JSON"),
    "no object": (b"[1, 2]", "an object"),
    "id": (line(1, event_id=2**63), "event_id"),
    "text": (line(1, user_id="7"), "user_id"),
    "negative": (line(1, item_id=-1), "item_id"),
    "position": (line(1, position=2**31), "position"),
    "future": (line(1, available_time=FUTURE_US), "available_time"),
    "type": (line(1, type="stare"), "type"),
    "value": (line(1, type="rating", value=1e39), "value"),
    "nan": (line(1, type="rating", value=float("nan")), "value"),
    "missing": (b'{"event_id": 7}', "user_id"),
    "long": (b'{"event_id": "' + b"x" * 1_000_000 + b'"}', "event_id"),
}


@pytest.mark.parametrize("door", ["service", "fold"])
def test_lines_of_the_journal(shop, door):
    lines = [line(number) for number in range(COUNT)]
    for place, (wrong, _) in enumerate(LINES.values()):
        lines.insert(500 + 5 * place, wrong)
    Journal(shop.store)
    path = shop.store / "data" / "events" / "00000001.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" + line(COUNT)[:30])  # the last one was being written
    if door == "service":
        before = path.stat().st_size
        Ingestor(shop.store)
        reader = OnlineReader(shop.store, 20)
        history = reader.read_user(901, NOW + DAY).history.item_id
        assert history.tolist() == list(range(COUNT - 20, COUNT))
        assert path.stat().st_size == before and len(Journal(shop.store).table()) == COUNT
    else:
        assert fold(shop.store) == COUNT and fold(shop.store) == 0
        log = pq.read_table(shop.store / "data" / "events" / "log.parquet")
        received = log.filter(pa.compute.greater_equal(log["event_id"], FIRST))
        assert received["item_id"].to_pylist() == list(range(COUNT))
    found = list(dead_letters.letters(shop.store))
    assert len(found) == len(LINES) and {one.door for one in found} == {"journal"}
    for kind, (wrong, says) in LINES.items():
        (letter,) = (one for one in found if one.record == wrong.decode(errors="replace"))
        assert says in letter.reason, kind
    dead_letters.remove(shop.store, found[0].id)
    Journal(shop.store).table()
    assert len(list(dead_letters.letters(shop.store))) == len(LINES) - 1  # what was dropped stays dropped


ROWS = {  # kind -> (view, column, value, reason)
    "infinite": ("item_profile", "price", float("inf"), "price is infinite"),
    "future": ("item_profile", "event_timestamp", datetime(2126, 1, 1, tzinfo=UTC), "in the future"),
    "old": ("item_profile", "event_timestamp", datetime(1901, 1, 1, tzinfo=UTC), "before 1970"),
    "null": ("item_profile", "item_id", None, "item_id is null"),
    "id": ("item_profile", "item_id", 2**63 + 5, "item_id does not fit"),
    "vector": ("item_embedding_v1", "vector", [float("nan")] * 8, "NaN"),
    "width": ("item_embedding_v1", "vector", [1.0] * 7, "width 8"),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store of a thousand items that is not loaded."""
    return make_shop(tmp_path_factory.mktemp("large"), make_world(2, items=COUNT), loaded=False)


@pytest.mark.parametrize("profile", ["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def test_rows_and_views_that_are_loaded(large, tmp_path, profile, request):
    url = request.getfixturevalue("redis_server").url(23) if profile == "redis" else None
    shop = large.copied(tmp_path / "run", url)
    data = shop.store / "data"
    ids, bad = shop.world.item_ids.tolist(), {}
    tables = {view: pq.read_table(data / f"{view}.parquet") for view in ("item_profile", "item_embedding_v1")}
    rows = {view: table.to_pylist() for view, table in tables.items()}
    for place, (kind, (view, column, value, _)) in enumerate(ROWS.items()):
        bad[kind] = rows[view][450 + place]["item_id"]
        rows[view][450 + place][column] = value
    rows["item_profile"][3]["category"] = "x" * 1_000_000  # long, and no poison
    for view, table in tables.items():
        schema = table.schema.set(table.schema.get_field_index("item_id"), pa.field("item_id", pa.uint64()))
        pq.write_table(pa.Table.from_pylist(rows[view], schema), data / f"{view}.parquet")
    damaged = sorted((data / "item_stats.parquet").iterdir())[-1]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    until = datetime(2127, 1, 1, tzinfo=UTC)
    with pytest.raises(StoreError, match="expected 8 views to load, found 1 that did not, item_stats: "):
        materialize(shop.store, until)
    letters = {one.id: one for one in dead_letters.letters(shop.store)}
    assert dead_letters.counts(shop.store) == {"rows": len(ROWS), "views": 1}
    for kind, (view, _, _, says) in ROWS.items():
        assert any(says in one.reason and f"rows/{view}/" in one.id for one in letters.values()), kind
    store = open_store(shop.store)
    gone = {view: {bad[k] for k, row in ROWS.items() if row[0] == view} for view in tables}
    profile_, vectors = (
        read_matrix(store, view, shop.world.item_ids, [column])
        for view, column in (("item_profile", "category"), ("item_embedding_v1", "vector"))
    )
    assert profile_.found.tolist() == [one not in gone["item_profile"] for one in ids]
    assert vectors.found.tolist() == [one not in gone["item_embedding_v1"] for one in ids]
    assert len(profile_["category"][3]) == 1_000_000
    wanted = {row["item_id"]: row["vector"] for row in rows["item_embedding_v1"]}
    assert all(
        vectors["vector"][place].tolist() == wanted[one]
        for place, one in enumerate(ids)
        if one not in gone["item_embedding_v1"]
    )
    assert read_matrix(store, "user_profile", shop.world.user_ids, ["age_band"]).found.all()
    live = shop.live()  # what has no vector is in no answer; the others are
    index = live.current.retriever.index
    everything = index.search(np.ones(index.width, np.float32), 2 * COUNT)[0].tolist()
    assert set(ids_of(live.current.search("red", None, 2 * COUNT))) <= set(everything)
    assert live.stale_reason == "" and set(everything) == set(ids) - gone["item_embedding_v1"]
    damaged.write_bytes(whole)
    assert refused.retry(shop.run, "views/item_stats") == "item_stats is loaded"
    assert dead_letters.counts(shop.store) == {"rows": len(ROWS)}


def answered(shop, *words):
    """What ``moon deadletter`` prints; raises what it raises."""
    (shop.run / "run.json").write_text(
        json.dumps({"data": "tiny", "size_name": "nano", "seed": 0, "profile": "embedded"})
    )
    done = CliRunner().invoke(app, ["deadletter", *words, "--run", str(shop.run)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def on_sqlite(tiny_world, tmp_path_factory):
    """A loaded shop on SQLite."""
    return make_shop(tmp_path_factory.mktemp("alone"), tiny_world)


@pytest.fixture
def alone(on_sqlite, tmp_path):
    """A shop of its own on SQLite."""
    return on_sqlite.copied(tmp_path / "run")


def test_an_item_is_tried_again_and_leaves_only_when_accepted(alone):
    shop, store = alone, alone.store
    keep_item(store, Item(item_id=FIRST, title="boom"), NOW)
    live = shop.live()
    letter = f"new_items/{FIRST}"
    assert "the encoder failed" in answered(shop, "list")
    assert "running services encode it" in answered(shop, "retry", letter)
    assert dead_letters.counts(store) == {} and len(new_items(store)) == 1
    live.look()
    assert dead_letters.find(store, letter).attempts == 2  # the encoder still fails
    shown = json.loads(answered(shop, "show", letter))
    assert shown["record"]["item"] == {
        "item_id": FIRST,
        "title": "boom",
        "category": [],
        "attributes": {},
        "state": "active",
    }
    live.current.encoder.encode = lambda contents: np.stack([vector_of("t") for _ in contents])  # mended
    live._opened.encoder.encode = live.current.encoder.encode
    answered(shop, "retry", letter)
    live.look()
    assert live.current.retriever.index.contains(np.array([FIRST])).all() and live.count_refused() == {}


def test_an_item_that_is_still_wrong_stays_until_it_is_sent_again(alone):
    shop, store = alone, alone.store
    bad = {"item": {"item_id": FIRST, "title": "x", "image_base64": "aGVsbG8="}, "available_us": 1}
    (store / "data" / "dead_letter" / "new_items").mkdir(parents=True)
    path = store / "data" / "dead_letter" / "new_items" / f"{FIRST}.json"
    path.write_text(json.dumps({**bad, "reason": "old"}))  # as an earlier release wrote it
    with pytest.raises(refused.StillRefused, match="expected a picture, found 5 bytes"):
        answered(shop, "retry", f"new_items/{FIRST}")
    letter = dead_letters.find(store, f"new_items/{FIRST}")
    assert letter.record == bad and letter.attempts == 2 and "do not decode" in letter.reason
    keep_item(store, Item(item_id=FIRST, title="mended"), NOW)
    assert dead_letters.counts(store) == {} and new_items(store)[0].item.title == "mended"


def test_an_event_is_tried_again(alone):
    shop, store = alone, alone.store
    user, item = int(shop.world.user_ids[0]), int(shop.world.item_ids[0])
    told = {"event_id": FIRST, "user_id": user, "item_id": item, "type": "click"}
    conflict = {"door": "POST /events", "reason": "another content", "record": told, "time": "2026-01-01"}
    folder = store / "data" / "dead_letter" / "events"
    folder.mkdir(parents=True)
    (folder / "conflict.json").write_text(json.dumps(conflict))
    bad = dead_letters.put(store, "events", "stream", "no event", '{"event_id": 1}')
    with pytest.raises(refused.StillRefused, match="user_id"):
        answered(shop, "retry", bad.id)
    assert "is in the journal" in answered(shop, "retry", "events/conflict")
    other = dead_letters.put(store, "events", "stream", "another", told | {"item_id": item + 1})
    with pytest.raises(refused.StillRefused, match="event_id"):  # the id is taken
        answered(shop, "retry", other.id)
    assert dead_letters.find(store, other.id).attempts == 2
    answered(shop, "drop", other.id)
    assert Journal(store).table()["item_id"].to_pylist() == [item]
    assert OnlineReader(store, 5).read_user(user, NOW + DAY).history.item_id[-1] == item
    assert [one.id for one in dead_letters.letters(store)] == [bad.id]
    assert "no event" not in answered(shop, "drop", bad.id) and dead_letters.counts(store) == {}


def test_a_row_is_tried_again(alone, monkeypatch):
    shop, store = alone, alone.store
    path = store / "data" / "item_profile.parquet"
    rows = pq.read_table(path).to_pylist()
    for place, price in ((3, 7.5), (4, float("inf"))):
        later = datetime.now(UTC).replace(microsecond=0) + DAY
        rows.append(rows[place] | {"event_timestamp": later, "price": price})
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    materialize(store, datetime(2127, 1, 1, tzinfo=UTC))
    by_price = {one.record["price"]: one.id for one in dead_letters.letters(store, "rows")}
    assert len(by_price) == 2
    with pytest.raises(refused.StillRefused, match="in the future. Mend the source of item_profile"):
        answered(shop, "retry", by_price[7.5])
    monkeypatch.setattr("moonstore.batch.CLOCK_SKEW", 2 * DAY)  # time goes by
    with pytest.raises(refused.StillRefused, match="price is infinite"):
        answered(shop, "retry", by_price[float("inf")])
    assert "is online" in answered(shop, "retry", by_price[7.5])
    found = read_matrix(open_store(store), "item_profile", np.array([rows[3]["item_id"]]), ["price"])
    assert found["price"].tolist() == [7.5]
    assert [one.id for one in dead_letters.letters(store)] == [by_price[float("inf")]]
    assert "infinite" not in answered(shop, "drop", by_price[float("inf")])
    assert not path.with_name("dead_letter").joinpath("item_profile.parquet").exists()


def test_events_refused_by_an_earlier_release_are_in_the_list(alone):
    store = alone.store
    path = store / "data" / "dead_letter" / "events.jsonl"
    path.parent.mkdir()
    lines = [json.dumps({"entry": "1-0", "reason": f"reason {n}", "event": f"text {n}"}) for n in range(3)]
    path.write_text("\n".join([*lines[:2], lines[2][:20]]))
    open_store(store)
    found = {one.record: one.reason for one in dead_letters.letters(store, "events")}
    assert found.pop("text 0") == "reason 0" and found.pop("text 1") == "reason 1"
    assert "damaged" in found[lines[2][:20]] and not path.exists()


def test_the_list_says_which_there_are(alone):
    shop, store = alone, alone.store
    assert answered(shop, "list") == "nothing was refused\n"
    with pytest.raises(StoreError, match="found 'events/7'; there are 0. Run 'moon deadletter list'"):
        answered(shop, "show", "events/7")
    for number in range(12):
        dead_letters.put(store, "events", "file", f"reason {number}", f"text {number}")
    first = next(dead_letters.letters(store))
    lines = answered(shop, "list").splitlines()
    assert (
        len(lines) == 12
        and lines[10] == "... 2 more: moon deadletter list events"
        and lines[11] == "12 events"
    )
    assert lines[0] == f"{first.id}  file  {first.reason}"
    assert len(answered(shop, "list", "events").splitlines()) == 13
    assert len(json.loads(answered(shop, "list", "--json"))) == 12
    with pytest.raises(StoreError, match="found 'events/7'; there are 12: events/"):
        answered(shop, "drop", "events/7")
    with pytest.raises(StoreError, match="expected one of the kinds new_items, events"):
        answered(shop, "list", "event")
    (store / "data" / "dead_letter" / "events" / "damaged.json").write_text("{")
    assert "events/damaged  unknown  its file in the dead letter is damaged" in answered(
        shop, "list", "events"
    )
    again = dead_letters.put(store, "events", "file", "again", "text 3")
    assert again.attempts == 2 and dead_letters.counts(store) == {"events": 13}


def test_a_retry_that_was_killed_half_way_is_completed_by_the_next(alone, monkeypatch):
    shop, store = alone, alone.store
    keep_item(store, Item(item_id=FIRST, title="boom"), NOW)
    shop.live()
    letter = f"new_items/{FIRST}"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as half:
        half.setattr("feature_repo.dead_letters.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            retry_item(store, dead_letters.find(store, letter))
    assert len(new_items(store)) == 1 and dead_letters.counts(store) == {"new_items": 1}
    assert "running services encode it" in answered(shop, "retry", letter)
    assert dead_letters.counts(store) == {} and [one.attempts for one in new_items(store)] == [1]
    keep_item(store, Item(item_id=FIRST + 1, title="boom"), NOW)
    shop.live()
    record = dead_letters.find(store, f"new_items/{FIRST + 1}").record
    keep_item(store, Item(item_id=FIRST + 1, title="sent again"), NOW)
    dead_letters.put(store, "new_items", "items", "the encoder failed", record, str(FIRST + 1))
    with pytest.raises(
        refused.StillRefused, match=f"item {FIRST + 1} was received again since: drop this one"
    ):
        answered(shop, "retry", f"new_items/{FIRST + 1}")


@pytest.mark.parametrize(("clock", "asked"), [("log", []), ("wall", ["--clock", "wall"])])
def test_an_event_is_tried_again_by_the_clock_that_is_said(alone, clock, asked):
    """The log of this shop ended in the past: there the two clocks are far apart."""
    store = alone.store
    told = {"event_id": FIRST, "user_id": 1, "item_id": 1, "type": "click"}
    letter = dead_letters.put(store, "events", "stream", "no reason", told)
    assert "is in the journal" in answered(alone, "retry", letter.id, *asked)
    (when,) = Journal(store).table()["event_time"].to_pylist()
    there = {"wall": datetime.now(UTC), "log": known_until(store)}[clock]
    assert abs(when - there) < timedelta(minutes=1)
    assert abs(datetime.now(UTC) - known_until(store)) > timedelta(hours=1)
    assert (store / "data" / "clock.json").exists() == (clock == "log")
