"""Every door refuses the same records for the same reasons: HTTP, stream, event file, calls and import.

What is thrown is in tests/malformed.py. Run: pytest tests/test_every_door.py
"""

import json
import re
from datetime import UTC, datetime

import layout_world
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from fake_shop import recommender
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import CASES, DIFFERENT, DOORS, EVENT, GOOD, LARGEST, MISSING, cases, tried
from pydantic import ValidationError
from test_ingest import Clock
from test_stream import drain

from dataset.adapters.canonical import under
from dataset.checks import check
from dataset.contracts import (
    EVENTS,
    IMAGES,
    ITEMS,
    JUDGEMENTS,
    QUARANTINE,
    QUERIES,
    TIME,
    USERS,
    DataError,
    Tables,
)
from dataset.extra import given_vectors
from dataset.importers import import_dataset
from dataset.records import Event, Item, Query, Rule, User, first_error
from dataset.tables import Dataset
from feature_repo.create import create_store
from feature_repo.ingest.arrivals import parsed
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.ingest.new_items import keep_item
from feature_repo.ingest.stream import FIELD, EventFile, RedisStream, consume
from serving.app import create_app
from serving.intake import Intake
from serving.settings import Settings
from tests import promises

MODELS = {"event": Event, "item": Item, "user": User, "query": Query}
FIELDS = sorted({field for kinds in CASES.values() for field in kinds} | {"sender"})
RULES = sorted({rule.format(field) for rule in Rule for field in FIELDS}, key=len, reverse=True)
WORDS = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, RULES))})\b")
START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 2, tzinfo=UTC)


def words(reason):
    """The words of the rules that a refusal names."""
    return " and ".join(sorted(set(WORDS.findall(reason))))


class Live:
    """The doors of a store; each verdict is the rule that a record broke, None if it was accepted."""

    def __init__(self, store, server=None):
        self.store, self._server, self._clock = store, server, Clock(NOW)
        self._ingestor = Ingestor(store, self._clock)
        intake = Intake(store, self._clock)
        self._client = TestClient(create_app(Settings(run=store.parent), recommender(), intake))

    def verdicts(self, kind, door, records):
        """One verdict for each record; an event gets an id of its own, unless that is what is tried."""
        if door in ("file", "stream"):
            return self._consumed(door, records)
        return [self._called(kind, one) if door == "call" else self._posted(kind, one) for one in records]

    def _called(self, kind, record):
        try:
            made = MODELS[kind](**record)
            if kind == "event":
                assert self._ingestor.ingest([made]).accepted == 1
            elif kind == "item":
                keep_item(self.store, made, NOW)
        except ValidationError as error:
            return words(first_error(error))
        except DataError as error:
            return words(str(error))
        return None

    def _posted(self, kind, record):
        path = {"event": "/events", "item": "/items?overwrite=true", "query": "/search"}[kind]
        if kind == "query":
            record = {name: value for name, value in record.items() if name != "query_id"}
        body = json.dumps([record] if kind == "event" else record)
        answer = self._client.post(path, content=body, headers={"content-type": "application/json"})
        if answer.status_code in (200, 202):
            assert kind != "event" or answer.json() == {"accepted": 1, "duplicates": 0}
            return None
        assert answer.status_code == 422, answer.text
        return words(answer.json()["error"])

    def _consumed(self, door, records):
        """Refused records are found in the dead letter by their text."""
        texts = [json.dumps(one) for one in records]
        if door == "file":
            path = self.store.parent / "events.jsonl"
            path.write_text("\n".join(texts))
            accepted = sum(one.accepted for one in consume(EventFile(path), self._ingestor, self.store))
        else:
            client = redis.Redis.from_url(self._server.url(21))
            client.flushdb()
            for text in texts:
                client.xadd("events", {FIELD: text})
            source = RedisStream(f"{self._server.url(21)}/events", "one")
            accepted = drain(source, self._ingestor, self.store).accepted
        folder = self.store / "data" / "dead_letter" / "events"
        letters = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        assert {one["door"] for one in letters} == {door}
        reasons = {_same(one["record"]): words(one["reason"]) for one in letters}
        found = [reasons.get(_same(text)) for text in texts]
        assert found.count(None) == accepted, "what is not in the dead letter is in the journal"
        return found


def _same(text):
    """A record's text, however its fields are ordered and its times are written."""
    record = json.loads(text)
    if isinstance(record.get("event_time"), str) and record["event_time"].startswith("2100"):
        record["event_time"] = "2100"  # refused by the clock, after it was read
    return json.dumps(record, sort_keys=True)


def column(values, value):
    """An Arrow column of good values and one more; a value of another type is one of a column of its type."""
    kinds = {type(one) for one in values}
    if value is not None and type(value) not in kinds and not (kinds == {float} and type(value) is int):
        values = [value] * len(values)
    many = [*values, value]
    ways = (
        lambda: pa.array(many),
        lambda: pa.array([value] * len(many)),
        lambda: pa.array(many, pa.uint64()),
        lambda: pa.array(list(map(str, many))),  # a list of this and that: its file had text
    )
    for way in ways:
        try:
            return way()
        except (pa.ArrowException, OverflowError):
            continue
    raise AssertionError(f"no column holds {value!r}")


def moments(values):
    """Times as an import has them: text that is one is read, naive text becomes a time without a zone."""
    found = []
    for value in values:
        try:
            found.append(
                datetime.fromisoformat(value) if re.match(r"\d{4}-\d\d-\d\d[T ]", str(value)) else value
            )
        except ValueError:
            return pa.array([str(one) for one in values])
    naive = any(isinstance(one, datetime) and one.tzinfo is None for one in found)
    if all(isinstance(one, datetime) and (one.tzinfo is None) == naive for one in found):
        return pa.array(found, pa.timestamp("us", None if naive else "UTC"))
    return pa.array([found[-1]] * len(found), pa.timestamp("us") if naive else None)


def imported(kind, record):
    """The verdict of an import whose last record of this kind is ``record``; the three before it are good."""
    name = f"{kind}_id"
    others = [{**GOOD[kind], name: 10 + number} for number in range(3)]
    if kind == "event":  # each of another request: one request is of one user
        others = [{**one, "request_id": 20 + number} for number, one in enumerate(others)]
    fields = dict.fromkeys([*GOOD[kind], *record])
    columns = {}
    for field in fields:
        good = [one[field] if field in one else record[field] for one in others]
        if field not in record:
            continue  # an importer leaves a missing field out: its column is null
        if field in ("event_time", "first_seen"):
            columns[field] = (
                moments([*good, record[field]])
                if record[field] is not None
                else pa.array([*map(datetime.fromisoformat, good), None], TIME)
            )
        elif field == "attributes":
            columns[field] = attributes(good, record[field])
        else:
            columns[field] = column(good, record[field])
    try:
        tables = shop_of(kind, columns)
        checked = check(tables, NOW)
    except DataError as error:
        return words(str(error))
    entries = [one for one in checked.quarantine.to_pylist() if one["table"] == PLURAL[kind]]
    if len(getattr(checked, PLURAL[kind])) == len(getattr(tables, PLURAL[kind])):
        return None  # the record is there, perhaps without a cell
    assert [one["row"] for one in entries] == [len(getattr(tables, PLURAL[kind])) - 1]
    return entries[0]["rule"]


def attributes(good, value):
    """A column of maps."""
    maps = [list(one.items()) if isinstance(one, dict) else one for one in [*good, value]]
    try:
        return pa.array(maps, ITEMS.field("attributes").type)
    except pa.ArrowException:
        return pa.array([value] * len(maps))


PLURAL = {"event": "events", "item": "items", "user": "users", "query": "queries"}
SCHEMA = {"event": EVENTS, "item": ITEMS, "user": USERS, "query": QUERIES}
KNOWN = [0, 1, 2, 3, LARGEST]


def shop_of(kind, columns):
    """Tables of a shop with the ids KNOWN, in which one table is made of these columns."""
    rows = len(next(iter(columns.values())))
    known, seen = pa.array(KNOWN), pa.array([START] * len(KNOWN), TIME)
    names = pa.array([str(one) for one in KNOWN])
    more = {
        "event": lambda: {"available_time": pa.array([datetime(2026, 3, 1, tzinfo=UTC)] * rows, TIME)},
        "item": lambda: {
            "external_id": pa.array(list("abcd")),
            "first_seen": pa.array([START] * rows, TIME),
            **({"spu": pa.array([1] * rows)} if columns.get("spu", pa.nulls(1)).null_count else {}),
        },
        "user": lambda: {"external_id": pa.array(list("abcd"))},
        "query": dict,
    }[kind]()
    made = {
        "items": under(ITEMS, {"item_id": known, "external_id": names, "spu": known, "first_seen": seen}),
        "users": under(USERS, {"user_id": known, "external_id": names, "first_seen": seen}),
        "queries": under(QUERIES, {"query_id": known, "text": names}),
        "events": EVENTS.empty_table(),
        PLURAL[kind]: under(SCHEMA[kind], {**columns, **more}),
    }
    return Tables(
        **made,
        images=IMAGES.empty_table(),
        judgements=JUDGEMENTS.empty_table(),
        quarantine=QUARANTINE.empty_table(),
    )


@pytest.fixture
def store(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("kind", "door"),
    [
        pytest.param(kind, door, marks=pytest.mark.redis if door == "stream" else ())
        for kind, doors in DOORS.items()
        for door in doors
    ],
)
def test_every_door_gives_the_same_verdict_in_the_same_words(request, kind, door):
    tried_here = cases(kind)
    records = [
        {**one, "event_id": one["event_id"] + number}
        if kind == "event" and one.get("event_id") == EVENT["event_id"]
        else one
        for number, (_, one, _) in enumerate(tried_here)
    ]
    if door == "import":
        found = [imported(kind, one) for one in records]
        tried_here = [  # a column has no cell left out, only an empty one
            (name, one, rule and rule.replace("missing ", "null ")) for name, one, rule in tried_here
        ]
    else:
        server = request.getfixturevalue("redis_server") if door == "stream" else None
        found = Live(request.getfixturevalue("store"), server).verdicts(kind, door, records)
    wrong = {
        name: (verdict, rule)
        for (name, _, rule), verdict in zip(tried_here, found, strict=True)
        if verdict != rule
    }
    promises.record(promises.DOORS, f"{kind} {door}", len(records), len(wrong))
    assert not wrong, "found, expected"


@pytest.mark.parametrize("path", ["/search", "/"])
def test_a_form_says_of_a_text_what_json_says(tmp_path, path):
    """A form has nothing but texts; the page answers in its own way, in the same words."""
    client = TestClient(create_app(Settings(run=tmp_path), recommender()))
    texts = [
        (name, {key: value for key, value in record.items() if key != "query_id"}, rule)
        for name, record, rule in cases("query")
        if all(isinstance(value, str) for key, value in record.items() if key != "query_id")
    ]
    found = {}
    for name, fields, _ in texts:
        answer = client.post(
            path, files={key: (None, value) for key, value in fields.items()} or {"k": (None, "5")}
        )
        found[name] = words(answer.text) if answer.status_code == 422 else answer.status_code
    assert found == {name: rule or 200 for name, _, rule in texts}
    assert {rule for _, _, rule in texts} > {None, "text is too long"}


@pytest.mark.parametrize("why", DIFFERENT)
def test_what_a_door_decides_for_itself(store, why):
    kind, change, live, at_import = DIFFERENT[why]
    record = {**GOOD[kind], **change}
    doors = Live(store)
    assert doors.verdicts(kind, "call", [record]) == [live]
    assert doors.verdicts(kind, "HTTP", [{**record, f"{kind}_id": 9_000_002}]) == [live]
    assert imported(kind, record) == at_import


def pools():
    """A strategy of records of a kind and whether the model takes them: each field good, or malformed somehow."""
    for kind, fields in CASES.items():
        values = {
            field: [GOOD[kind].get(field, MISSING)] * 40
            + [one for found, _ in kinds.values() for one in found]
            for field, kinds in fields.items()
        }
        yield st.tuples(
            st.just(kind), st.fixed_dictionaries({f: st.sampled_from(v) for f, v in values.items()})
        )


@given(drawn=st.one_of(*pools()))
@settings(max_examples=50, deadline=None)
def test_whatever_is_wrong_with_a_record_the_doors_agree(drawn):
    """Several fields may be malformed at once: each door may name another of the rules, none accepts it."""
    kind, fields = drawn
    record = {**GOOD[kind], **fields}
    record = {name: value for name, value in record.items() if value is not MISSING}
    late = "2100" in str(record.get("event_time")) + str(record.get("first_seen"))
    try:
        MODELS[kind](**record)
        accepted = not late
    except ValidationError:
        accepted = False
    try:
        parsed(MODELS[kind], json.dumps(record))
        assert accepted or late
    except DataError:
        assert not accepted
    if not (kind == "event" and record.get("event_time") is None):
        assert (imported(kind, record) is None) == accepted


NO_LABEL = "sample that lacks a number or a label of 0 or 1"


@pytest.mark.parametrize("layout", ["longctr", "taobao_mm", "microlens"])
def test_a_published_sample_is_refused_as_an_event_of_another_door_is(tmp_path, layout):
    """Each malformed sample is the first of its file; all others of the small world are imported."""
    made = layout_world.world(users=3, items=30, each=10, behaviours=2)
    getattr(layout_world, layout)(tmp_path / "raw", made)
    path = next(
        (tmp_path / "raw").glob("train*.parquet" if layout != "taobao_mm" else "train_samples.parquet")
    )
    good = pq.read_table(path)
    item, label = {
        "longctr": ("item_index", "is_click"),
        "taobao_mm": ("205", "label_0"),
        "microlens": ("item_id", "label"),
    }[layout]
    kind = good.schema.field(label).type
    wrong = ([1, 1], [0, 0], [0, 2], None) if layout == "taobao_mm" else (2, -1, None)
    tried = [(label, value, NO_LABEL) for value in wrong] + [(item, None, NO_LABEL)]
    if pa.types.is_floating(kind):
        tried += [(label, value, NO_LABEL) for value in (0.5, float("nan"), float("inf"))]
    if layout != "taobao_mm":  # whose ids are 64 bits with a sign
        tried.append((item, -1, "negative item_id"))
    for number, (column, value, rule) in enumerate(tried):
        place = good.column_names.index(column)
        values = pa.array([value, *good.column(column).to_pylist()[1:]], good.schema.field(column).type)
        pq.write_table(good.set_column(place, column, values), path)
        config = Dataset.open(
            import_dataset(layout, tmp_path / "raw", tmp_path / str(number))
        ).artifact.config
        assert config["quarantined"].get("events") == {rule: 1}, (column, value)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 2),
        pa.large_list(pa.float32()), pa.large_list(pa.float64()),
    ],
    ids=str,
)  # fmt: skip
def test_a_vector_that_stands_in_for_the_encoder_is_refused_alike_whatever_list_holds_it(tmp_path, kind):
    """One that is finite in 32 bits and not zero is taken, in unit length; the others are left out."""
    nan, inf = float("nan"), float("inf")
    told = {
        (3.0, 4.0): (0.6, 0.8), (-1e30, 0.0): (-1.0, 0.0), (0.0, 1e-30): (0.0, 1.0),
        (nan, 1.0): None, (inf, 0.0): None, (0.0, 0.0): None, (None, 1.0): None, None: None,
    }  # fmt: skip
    rows = [None if one is None else list(one) for one in told]
    layout_world.longctr(tmp_path / "raw", layout_world.world(users=3, items=30, each=5))
    path = tmp_path / "raw" / "item_info.parquet"
    items = pq.read_table(path)
    column = pa.array([*rows, *[[1.0, 0.0]] * (len(items) - len(rows))], kind)
    place = items.column_names.index("image_emb_dim64")
    pq.write_table(items.set_column(place, "image_emb_dim64", column), path)
    ids, vectors = given_vectors(import_dataset("longctr", tmp_path / "raw", tmp_path / "d"))
    names = items.column("item_index").to_pylist()
    wanted = {name: one for name, one in zip(names, told.values(), strict=False) if one is not None}
    found = dict(zip(ids.tolist(), vectors.tolist(), strict=True))
    assert vectors.dtype == "float32" and set(found) == {*wanted, *names[len(told) :]} - {0}
    for name, one in wanted.items():
        assert found[name] == pytest.approx(one, abs=1e-6)


def test_what_was_tried_is_counted():
    counts = tried()
    assert set(counts) == {"event", "item", "user", "query"}
    assert sum(one["doors"] * one["kinds"] for one in counts.values()) > 700


def test_a_refusal_says_what_there_is_and_what_is_missing():
    for kind, record, said in (
        (
            "event",
            {**EVENT, "type": "wink"},
            "type: unknown type: expected impression, click, cart, purchase, rating",
        ),
        (
            "event",
            {name: one for name, one in EVENT.items() if name != "user_id"},
            "user_id: missing user_id",
        ),
        ("event", {**EVENT, "user_id": None}, "user_id: null user_id"),
        (
            "item",
            {**GOOD["item"], "state": "free"},
            "state: unknown state: expected active, inactive, out_of_stock",
        ),
        ("user", {"user_id": 1}, "first_seen: missing first_seen"),
    ):
        with pytest.raises(ValidationError) as refused:
            MODELS[kind](**record)
        assert first_error(refused.value) == said
