"""A shop's ids are its own at every door, whatever they look like; inside they are int64, and no two become one.

Run: pytest tests/test_shop_ids.py
"""

import hashlib
import json
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
import redis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from shop_world import NOW, make_shop
from test_ingest import Clock
from test_stream import drain

import dataset.shop_ids
import feature_repo.shop_ids
from dataset.contracts import DataError
from dataset.identity import IMPORTED, event_key
from dataset.records import Item, first_error
from dataset.shop_ids import ALL_INT64, HASHED, IdKind, from_text, id_kinds, stable_id, stable_ids
from feature_repo import dead_letters
from feature_repo.create import create_store
from feature_repo.ingest.arrivals import parsed
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.journal import Journal
from feature_repo.ingest.new_items import keep_item, new_items
from feature_repo.ingest.stream import FIELD, EventFile, RedisStream, consume
from feature_repo.shop_ids import INT64_IDS, NOBODY, Names, ShopIds, shop_ids, write_names
from moon import refused
from moon.describing import init
from moonstore.errors import StoreError
from serving.app import create_app
from serving.intake import Intake
from serving.live import Live
from serving.settings import Settings

LARGEST = 2**63 - 1
HARD = [  # no two of them are one id
    "007", "7", "0000007", "0", "-7", "7.0", str(LARGEST), str(LARGEST + 1), str(2**62), "1" + "0" * 99, "null",
    "é", "e\u0301", "SKU/12 %3F#a?b=c&d", " 7", "7 ", "\U0001f600", "\u202e\u0645", "a\x00b\n", "'\"<b>",
]  # fmt: skip
TEXTS = {**ALL_INT64, **dict.fromkeys(("item_id", "user_id", "query_id"), IdKind.TEXT)}
TEXTS |= dict.fromkeys(("event_id", "request_id", "spu"), IdKind.ANY)
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40),
    st.integers(-(10**100), 10**100).map(str),
    st.from_regex(r"0{1,3}[0-9]{1,20}", fullmatch=True),
    st.sampled_from(HARD),
)


def named(world, names):
    """The world with these names for its items and users; its integers stay, as if an importer had chosen them."""

    def renamed(table, names):
        names = pa.array([*names[: len(table)], *(f"n{n}" for n in range(len(table) - len(names)))])
        return table.set_column(table.column_names.index("external_id"), "external_id", names)

    tables = world.dataset
    changed = replace(tables, items=renamed(tables.items, names), users=renamed(tables.users, names[::-1]))
    return replace(world, dataset=changed)


@pytest.fixture(scope="module")
def world(tiny_world):
    return named(tiny_world, HARD)


@pytest.fixture(scope="module")
def base(tmp_path_factory, world):
    return make_shop(tmp_path_factory.mktemp("texts"), world, id_kinds=TEXTS)


@pytest.fixture
def shop(base, tmp_path):
    return base.copied(tmp_path / "run")


class Service:
    """A service of a shop, and what its clients call."""

    def __init__(self, shop):
        self.clock, self.store = Clock(NOW), shop.store
        self.live = Live(shop.opened(), Settings(run=shop.run))
        self.live.look()
        self.live.current.example_users = shop_ids(shop.store).names("user_id", shop.world.user_ids[:1])
        app = create_app(
            Settings(run=shop.run, burst=10**9), self.live.current, Intake(shop.store, self.clock)
        )
        self._app, self.client = app, TestClient(app, raise_server_exceptions=False)

    def look(self):
        """What a running service does five times a second; the application reads the one it was made with."""
        self.live.look()
        self.client = TestClient(
            create_app(
                Settings(run=self.store.parent, burst=10**9),
                self.live.current,
                Intake(self.store, self.clock),
            ),
            raise_server_exceptions=False,
        )


@pytest.fixture(scope="module")
def service(base, tmp_path_factory):
    return Service(base.copied(tmp_path_factory.mktemp("service") / "run"))


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [hit["item_id"] for hit in answer.json()["hits"]]


# The mapping


@given(st.lists(NAMES, unique=True, min_size=1, max_size=30), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_id_has_an_integer_of_its_own_and_gets_its_name_back(tmp_path, names, data):
    known = data.draw(st.integers(0, len(names)))
    chosen = data.draw(st.booleans())  # the importer chose the integers
    numbers = np.arange(known) * 7 + 3 if chosen else stable_ids(names[:known])
    write_names(
        tmp_path / "a",
        pa.chunked_array([pa.array(numbers, pa.int64())]),
        pa.chunked_array([pa.array(names[:known], pa.string())]),
    )
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "shop_ids.db").unlink(missing_ok=True)
    of = {"item_id": Names.mapped(tmp_path / "a")}
    one = ShopIds(TEXTS, of, tmp_path)
    assume(one.find("item_id", names).count(NOBODY) == 0)  # "3" where the importer chose 3 for another
    inside = one.keep("item_id", names)
    assert len(set(inside)) == len(names) and all(0 <= number <= LARGEST for number in inside)
    assert inside[:known] == numbers.tolist()
    assert inside[known:] == [stable_id(name) for name in names[known:]]
    for ids in (one, ShopIds(TEXTS, of, tmp_path)):  # another process
        assert ids.names("item_id", inside) == names
        assert ids.find("item_id", names) == inside


def test_integers_keep_their_value_and_hashes_are_elsewhere():
    assert [stable_id(one) for one in ("7", 7, "0", str(2**62 - 1))] == [7, 7, 0, 2**62 - 1]
    hashed = [stable_id(one) for one in ("007", "-7", str(2**62), str(LARGEST), "1" + "0" * 99, "é", "٧")]
    assert len(set(hashed)) == 7 and all(HASHED <= one <= LARGEST for one in hashed)
    bits = int.from_bytes(hashlib.sha256("é".encode()).digest()[:8], "big") // 4
    assert stable_id("é") == HASHED + bits, "the same in every release: stored data have it"
    assert len(set(stable_ids(HARD).tolist())) == len(HARD)


def test_an_id_whose_integer_is_taken_is_refused_and_nobody_when_it_is_asked_for(shop, monkeypatch):
    store = shop.store
    ids = shop_ids(store)
    taken = str(shop.world.item_ids[3])  # the importer chose this integer for another name
    assert ids.find("item_id", [taken]) == [NOBODY] and ids.find("item_id", [HARD[3]]) == [
        shop.world.item_ids[3]
    ]
    with pytest.raises(
        DataError, match=f"^item_id: found 1 ids that cannot be told from others inside, first .'{taken}'"
    ):
        ids.keep("item_id", ["fresh", taken])
    assert ids.names("item_id", [stable_id("fresh")]) == [str(stable_id("fresh"))], "nothing is remembered"

    for module in (feature_repo.shop_ids, dataset.shop_ids):
        monkeypatch.setattr(module, "stable_id", lambda name: HASHED + len(str(name)))
    new = ["one", "two"]
    with pytest.raises(DataError, match="found 1 ids"):
        ids.keep("user_id", new)
    assert ids.keep("user_id", ["one"]) == [HASHED + 3] and ids.names("user_id", [HASHED + 3]) == ["one"]
    another = ShopIds(ids.kinds, ids._names, store)
    assert another.find("user_id", new) == [HASHED + 3, NOBODY]
    with pytest.raises(DataError, match="first .'two'"):
        another.keep("user_id", ["two"])
    with pytest.raises(DataError, match="ids collide"):
        stable_ids(new)


def test_two_processes_that_meet_the_same_integer_at_once_do_not_make_one_of_two_ids(shop, monkeypatch):
    monkeypatch.setattr(feature_repo.shop_ids, "stable_id", lambda name: HASHED + len(str(name)))
    ids = shop_ids(shop.store)
    one, other = (ShopIds(ids.kinds, ids._names, shop.store) for _ in range(2))
    looked = other._clash

    def overtaken(field, new):
        found = looked(field, new)
        one.keep("user_id", ["one"])
        return found

    monkeypatch.setattr(other, "_clash", overtaken)
    with pytest.raises(DataError, match="first .'two'"):
        other.keep("user_id", ["two"])
    assert other.names("user_id", [HASHED + 3]) == ["one"]


def test_a_shop_of_integers_has_no_files_and_no_mapping(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    assert shop_ids(tmp_path / "store") is INT64_IDS
    assert INT64_IDS.keep("user_id", [7, None, LARGEST]) == [7, None, LARGEST]
    assert INT64_IDS.names("user_id", np.array([7, LARGEST])) == [7, LARGEST]
    assert not [path for path in (tmp_path / "store/data").iterdir() if "id" in path.stem.split("_")]


def test_a_store_that_is_made_again_keeps_the_names_that_came_in(shop):
    keep_item(shop.store, Item.model_validate({"item_id": "new/1", "title": "red"}, context=TEXTS), NOW)
    number = stable_id("new/1")
    (shop.store / "data/new_items" / f"{number}.json").unlink()
    create_store(shop.store, shop.world.dataset, shop.world.split, id_kinds=TEXTS)
    assert shop_ids(shop.store).names("item_id", [number]) == ["new/1"]


def test_a_damaged_file_of_ids_is_refused_by_name(shop):
    path = shop.store / "data/item_id.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    feature_repo.shop_ids._shop_ids.cache_clear()
    with pytest.raises(StoreError, match=r"item_id.arrow.*Run 'moon store'"):
        shop_ids(shop.store)
    path.write_bytes(whole)
    (shop.store / "data/shop_ids.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"shop_ids.db: expected the ids that were received"):
        shop_ids(shop.store).find("item_id", ["fresh"])


# What the dataset says


def table(ids, names):
    return pa.table({"item_id": pa.array(ids, pa.int64()), "user_id": pa.array(ids, pa.int64()),
                     "query_id": pa.array(ids, pa.int64()), "external_id": pa.array(names, pa.string())})  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "names", "kind"),
    [
        ([7, LARGEST], ["7", str(LARGEST)], "int64"),
        ([], [], "int64"),
        ([7], [None], "int64"),
        ([7, 8], ["7", "008"], "text"),
        ([7, 8], ["7", "9"], "integer"),
        ([7, stable_id("1" + "0" * 99)], ["7", "1" + "0" * 99], "integer"),
        ([stable_id("-7")], ["-7"], "integer"),
        ([7], ["٧"], "text"),
        ([7], ["7\n"], "text"),
    ],
)
def test_the_kind_of_ids_follows_from_them(ids, names, kind):
    tables = dict.fromkeys(("items", "users", "queries"), table(ids, names))
    found = id_kinds(tables, {})
    others = "int64" if kind == "int64" else "any"
    assert found == {**dict.fromkeys(("item_id", "user_id", "query_id"), kind),
                     **dict.fromkeys(("event_id", "request_id", "spu"), others)}  # fmt: skip
    stated = id_kinds(tables, {"item_id": "text", "event_id": "text"})
    assert (stated["item_id"], stated["event_id"], stated["user_id"]) == ("text", "text", kind)
    assert stated["request_id"] == "any"


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"item_id": "int64"}, "items: expected ids of the kind int64, as is stated, found text"),
        ({"item_id": "integer"}, "found text"),
        ({"item_id": "number"}, "expected one of the kinds int64, integer, text, any"),
        ({"items": "text"}, "found 'items': 'text'"),
    ],
)
def test_a_kind_that_the_ids_are_not_of_is_refused(stated, says):
    with pytest.raises(DataError, match=says):
        id_kinds(dict.fromkeys(("items", "users", "queries"), table([1], ["01"])), stated)


WRONG = {
    IdKind.TEXT: {
        7: "item_id is not a text", True: "item_id is not a text", None: "null item_id", "": "empty item_id",
        "x" * 1001: "item_id is too long", "\ud800": "item_id is not a text",
        ".": "item_id is . or .., which an address cannot hold",
        "..": "item_id is . or .., which an address cannot hold",
    },
    IdKind.INTEGER: {
        "7": "item_id is not an integer", True: "item_id is not an integer", 7.5: "item_id is not an integer",
        10**1000: "item_id is too long", -(10**1000): "item_id is too long", None: "null item_id",
    },
    IdKind.ANY: {
        7.5: "item_id is neither an integer nor a text", "": "empty item_id",
        ".": "item_id is . or .., which an address cannot hold",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (IdKind.TEXT, ["007", "7", "x" * 1000, "\u200b"]),
        (IdKind.INTEGER, [7, -7, 0, 10**999, LARGEST + 1]),
        (IdKind.ANY, ["007", 7, -7, 10**99]),
    ],
)
def test_a_record_says_what_is_wrong_with_an_id(kind, taken):
    kinds = ALL_INT64 | {"item_id": kind}
    for one in taken:
        item = Item.model_validate({"item_id": one, "title": "red"}, context=kinds)
        assert item.item_id == one and type(item.item_id) is type(one)
        assert parsed(Item, json.dumps({"item_id": one, "title": "red"}), kinds) == item
    for one, words in WRONG[kind].items():
        with pytest.raises(ValueError) as error:
            Item.model_validate({"item_id": one, "title": "red"}, context=kinds)
        assert first_error(error.value) == f"item_id: {words}"


@pytest.mark.parametrize("text", [".", ".."])
def test_an_id_that_an_address_loses_is_refused_where_a_text_is_read(text):
    with pytest.raises(ValueError, match="other than . and .., which an address cannot hold"):
        from_text(text, IdKind.TEXT)
    assert from_text("...", IdKind.TEXT) == "..."


# The doors


def event(number, user, item, **more):
    return {"event_id": number, "user_id": user, "item_id": item, "type": "click", **more}


@example(user="007", item="7", new="0000007 x")
@example(user="1" + "0" * 99, item=str(LARGEST), new="a/b/state")
@given(user=NAMES, item=st.sampled_from(HARD[:18]), new=NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_an_id_looks_like_it_goes_in_and_comes_out_again(service, user, item, new):
    assume(new not in (".", "..") and shop_ids(service.store).find("item_id", [new]) != [NOBODY])
    assume(shop_ids(service.store).find("user_id", [user]) != [NOBODY] and new not in HARD)
    client = service.client
    sent = [event(f"e {user} {item} {new}", user, item, request_id=f"r {new}")]
    answer = client.post("/events", json=sent)
    assert answer.status_code == 200 and answer.json()["accepted"] + answer.json()["duplicates"] == 1
    assert client.post("/events", json=sent).json() == {"accepted": 0, "duplicates": 1}

    made = client.post(
        "/items?overwrite=true", json={"item_id": new, "title": f"{new} made"[:50], "spu": "p 1"}
    )
    assert (made.status_code, made.json()) == (202, {"item_id": new})
    service.look()
    client = service.client
    assert new in ids(client.get("/similar", params={"item_id": item, "k": 200}))
    assert item in ids(client.get("/similar", params={"item_id": new, "k": 200}))
    found = ids(client.post("/search", json={"text": f"{new} made"[:50], "user_id": user, "k": 200}))
    assert new in found and set(found) & set(HARD)
    answer = client.get("/recommend", params={"user_id": user, "session": [item, new], "k": 50}).json()
    assert new not in [hit["item_id"] for hit in answer["hits"]] and answer["hits"]
    assert "unknown_user" not in answer["fallbacks"] or user not in HARD

    path = f"/items/{quote(new, safe='')}"
    answer = client.put(f"{path}/state", json={"state": "inactive"})
    assert (answer.status_code, answer.json()) == (202, {"item_id": new, "state": "inactive"})
    answer = client.delete(path)
    assert (answer.status_code, answer.json()) == (202, {"item_id": new, "state": "deleted"})
    service.look()
    answer = service.client.get("/similar", params={"item_id": new})
    assert (answer.status_code, answer.json()) == (404, {"error": f"item {new} was deleted"})


@pytest.mark.parametrize("door", ["HTTP", "file", pytest.param("stream", marks=pytest.mark.redis)])
def test_events_of_every_door_join_the_history_that_the_page_shows(shop, request, door):
    """Users and items that nobody has heard of keep their names, too."""
    sent = [
        event(f"{door} {n}", user, item, query_id=f"q {n}", request_id=n)
        for n, (user, item) in enumerate(
            [("007", "7"), ("7", "007"), ("nobody / 1", "nothing & 1"), ("007", "nothing & 1")]
        )
    ]
    service = Service(shop)
    ingestor = Ingestor(shop.store, service.clock)
    if door == "HTTP":
        assert service.client.post("/events", json=sent).json()["accepted"] == 4
    elif door == "file":
        (shop.run / "e.jsonl").write_text("\n".join(map(json.dumps, sent)))
        assert (
            sum(one.accepted for one in consume(EventFile(shop.run / "e.jsonl"), ingestor, shop.store)) == 4
        )
    else:
        server = request.getfixturevalue("redis_server")
        client = redis.Redis.from_url(server.url(23))
        client.flushdb()
        for one in sent:
            client.xadd("events", {FIELD: json.dumps(one)})
        assert drain(RedisStream(f"{server.url(23)}/events", "one"), ingestor, shop.store).accepted == 4
    rows = Journal(shop.store).table().to_pylist()
    names = shop_ids(shop.store)
    for field in ("user_id", "item_id", "query_id"):
        assert names.names(field, [row[field] for row in rows]) == [one[field] for one in sent]
    assert [row["event_id"] for row in rows] == [event_key("", one["event_id"]) for one in sent]
    assert [row["request_id"] for row in rows] == [0, 1, 2, 3]
    number = dict(zip(HARD, shop.world.item_ids.tolist(), strict=False))
    assert [row["item_id"] for row in rows[:2]] == [number["7"], number["007"]]
    moon = service.live.current
    moon.now = lambda: NOW.replace(year=NOW.year + 1)
    assert [card.item_id for card in moon.history("007")[:2]] == ["nothing & 1", "7"]
    assert [card.item_id for card in moon.history("nobody / 1")] == ["nothing & 1"]
    assert moon.history("7")[0].item_id == "007"
    page = service.client.get("/", params={"user_id": "nobody / 1"}).text
    assert "item nothing &amp; 1" in page and "/?item_id=nothing+%26+1" in page
    assert "value='nobody / 1'" in page


def test_integers_of_any_width_stay_integers(tiny_world, tmp_path):
    wide = [7, -7, 0, LARGEST, LARGEST + 1, 2**64, 10**99, -(10**99), 2**62]
    kinds = {**TEXTS, "item_id": IdKind.INTEGER, "user_id": IdKind.INTEGER}
    shop = make_shop(
        tmp_path, named(tiny_world, [str(one) for one in [*wide, *range(100, 111)]]), id_kinds=kinds
    )
    service = Service(shop)
    client = service.client
    everything = ids(client.get("/similar", params={"item_id": str(10**99), "k": 200}))
    assert set(wide) == {*everything, 10**99} & set(wide) and all(type(one) is int for one in everything)
    sent = [event(10**30 + n, user, item) for n, (user, item) in enumerate([(10**50, 10**99), (7, -7)])]
    assert client.post("/events", json=sent).json() == {"accepted": 2, "duplicates": 0}
    moon = service.live.current
    moon.now = lambda: NOW.replace(year=NOW.year + 1)
    assert [card.item_id for card in moon.history(10**50)] == [10**99] and moon.history(7)[0].item_id == -7
    assert "/?item_id=" + str(10**99) in client.get("/", params={"user_id": str(10**50)}).text
    answer = client.put(f"/items/{2**64}/state", json={"state": "inactive"})
    assert answer.json() == {"item_id": 2**64, "state": "inactive"}
    made = client.post("/items", json={"item_id": 10**80, "title": "red"})
    assert (made.status_code, made.json()) == (202, {"item_id": 10**80})
    for wrong in ("007", "7.0", "x"):
        assert client.get("/similar", params={"item_id": wrong}).status_code == 422
    answer = client.post("/events", json=[event(10**31, "7", 7)])
    assert answer.status_code == 422 and "user_id is not an integer" in answer.json()["error"]


def test_ids_that_are_none_of_the_shops_are_answered_as_documented(shop):
    service = Service(shop)
    client = service.client
    answer = client.get("/similar", params={"item_id": "no/such"})
    assert (answer.status_code, answer.json()) == (404, {"error": "no item no/such"})
    for call in (
        lambda: client.put("/items/no%2Fsuch/state", json={"state": "active"}),
        lambda: client.delete("/items/no%2Fsuch"),
    ):
        assert (call().status_code, call().json()) == (404, {"error": "no item no/such"})
    taken = str(shop.world.item_ids[3])
    assert client.get("/similar", params={"item_id": taken}).json() == {"error": f"no item {taken}"}
    answer = client.get("/recommend", params={"user_id": "no such"}).json()
    assert answer["fallbacks"] == ["unknown_user"] and answer["hits"]
    answer = client.get("/recommend", params={"user_id": str(shop.world.user_ids[0])}).json()
    assert answer["fallbacks"] == ["unknown_user"], "the integer inside is nobody's id"
    refused = client.post("/items", json={"item_id": taken, "title": "red"})
    assert refused.status_code == 422 and "cannot be told from others inside" in refused.json()["error"]
    refused = client.post("/events", json=[event(1, "7", "7"), event(2, 7, "7")])
    assert refused.status_code == 422 and "1.user_id: user_id is not a text" in refused.json()["error"]
    assert client.post("/search", json={"text": "red", "user_id": 7}).status_code == 422
    again = client.post("/items", json={"item_id": "007", "title": "red"})
    assert (again.status_code, again.json()["error"][:16]) == (409, "item 007 exists:")
    assert not Journal(shop.store).table().num_rows and not new_items(shop.store)


def test_other_words_under_a_used_event_id_are_refused_by_the_senders_own_id(shop):
    client = Service(shop).client
    assert client.post("/events", json=[event("A-1", "7", "7")]).status_code == 200
    answer = client.post("/events", json=[event("A-1", "7", "007")])
    assert answer.status_code == 409 and "(event_id ['A-1'])" in answer.json()["error"]
    (letter,) = dead_letters.letters(shop.store, "events")
    assert letter.record == {"event_id": "A-1", "user_id": "7", "item_id": "007", "type": "click"}
    with pytest.raises(refused.StillRefused, match="another event has this event_id"):
        refused.retry(shop.run, letter.id)


def test_an_event_number_is_one_id_as_an_integer_and_as_its_digits():
    assert event_key("", "7") == event_key("", 7) == 7 and event_key("a", "7") == event_key("a", 7)
    keys = {event_key(sender, one) for sender in ("", "a") for one in (*HARD, LARGEST + 2)}
    assert len(keys) == 2 * (len(HARD) + 1) and all(0 <= key <= LARGEST for key in keys)


def test_an_import_and_a_client_that_counts_from_one_do_not_meet(tiny_world, tmp_path):
    from test_importers import hm_pack

    from dataset.importers import import_dataset, import_path
    from dataset.marketplace.simulate import simulate
    from dataset.tables import Dataset

    hm_pack(tmp_path / "raw")
    imported = Dataset.open(import_dataset("hm_fashion", tmp_path / "raw", tmp_path / "d")).events
    (tmp_path / "mine").mkdir()
    rows = [f"u{n % 7},00{n % 5},click,2026-01-{1 + n % 9:02}T10:{n:02}:00Z" for n in range(50)]
    (tmp_path / "mine/events.csv").write_text("\n".join(["user_id,item_id,event_type,event_time", *rows]))
    (tmp_path / "mine/items.csv").write_text(
        "\n".join(["item_id,title", *(f"00{n},mug {n}" for n in range(5))])
    )
    init(tmp_path / "mine")
    described = Dataset.open(import_path(tmp_path / "mine", tmp_path / "m"))
    assert (described.id_kinds["item_id"], described.id_kinds["user_id"]) == (IdKind.TEXT, IdKind.TEXT)
    for events in (imported, described.events, simulate(500, seed=1)[0].events):
        assert len(events) > 0 and min(events["event_id"].to_pylist()) == IMPORTED + 1
    assert IMPORTED == 2**62


@pytest.mark.parametrize(
    ("kind", "others"),
    [(IdKind.TEXT, IdKind.ANY), (IdKind.INTEGER, IdKind.ANY), (IdKind.INT64, IdKind.INT64)],
)
def test_the_document_says_what_the_shops_ids_are(kind, others, tmp_path):
    from fake_shop import recommender

    moon = recommender()
    kinds = dict.fromkeys(("item_id", "user_id", "query_id"), kind) | dict.fromkeys(
        ("event_id", "request_id", "spu"), others
    )
    moon.ids = ShopIds(kinds, {})
    paths = create_app(Settings(run=tmp_path), moon).openapi()["paths"]
    text, integer = {"type": "string", "minLength": 1, "maxLength": 1000}, {"type": "integer"}
    int64 = {"type": "integer", "minimum": 0, "maximum": LARGEST}
    said = {
        IdKind.TEXT: text,
        IdKind.INTEGER: integer,
        IdKind.INT64: int64,
        IdKind.ANY: {"anyOf": [integer, text]},
    }
    body = paths["/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]["items"][
        "properties"
    ]
    assert body["user_id"] == body["item_id"] == said[kind] and body["event_id"] == said[others]
    assert body["query_id"] == {"anyOf": [said[kind], {"type": "null"}], "default": None}
    form = paths["/search"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form["user_id"]["anyOf"][0] == said[kind]
    asked = {one["name"]: one["schema"] for one in paths["/recommend"]["get"]["parameters"]}
    assert asked["user_id"] == said[kind] and asked["session"]["items"] == said[kind]
    (state,) = paths["/items/{item_id}/state"]["put"]["parameters"]
    assert state["schema"] == said[kind]


def test_the_dead_letter_is_listed_with_the_shops_ids(shop):
    number = int(shop.world.item_ids[0])
    dead_letters.put(
        shop.store, "embeddings", "embed", "no", {"item_id": number, "title": "red"}, f"items-{number}"
    )
    keep_item(shop.store, Item.model_validate({"item_id": "ü/1", "title": "boom"}, context=TEXTS), NOW)
    shop.live()
    said = refused.table(shop.run, None)
    assert f"embeddings/items-{number}  item_id '007'  embed  no" in said
    assert f"new_items/{stable_id('ü/1')}  item_id 'ü/1'  items" in said
    assert json.loads(refused.shown(shop.run, f"embeddings/items-{number}"))["record"]["item_id"] == "007"
