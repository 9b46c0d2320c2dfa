"""Nothing wrong enters the tables, and nothing disappears on the way: it is refused or counted."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from dataset import pictures
from dataset.checks import check, quarantine_counts
from dataset.contracts import QUARANTINE, SCHEMAS, TIME, DataError, Tables, content_hash
from dataset.order import sequenced
from dataset.records import Event
from dataset.tables import Dataset, write_dataset
from run.artifacts import ArtifactError, open_artifact

START = datetime(2024, 5, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CONFIG = {"name": "shop", "source": "test"}


def encoded(size: tuple[int, int] = (24, 16), kind: str = "JPEG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def image_row(content: bytes, width: int = 24, height: int = 16) -> dict:
    return {"image_id": content_hash(content), "bytes": content, "width": width, "height": height}


PICTURES = [encoded(seed=0), encoded(seed=1, kind="PNG"), encoded(seed=2), encoded(seed=3)]


def rows() -> dict[str, list[dict]]:
    """A clean shop: six items, four pictures, five users, three queries, twelve events, three judgements."""
    items = [
        {
            "item_id": n,
            "external_id": f"i{n}",
            "title": f"item {n}" if n else None,
            "description": None,
            "category": ["shop", "shoes"][: n % 3],
            "attributes": [("colour", "red")][: n % 2],
            "price": 1.5 * n if n != 2 else None,
            "spu": n // 2,
            "image_id": content_hash(PICTURES[n]) if n < 3 else None,
            "first_seen": START,
        }
        for n in range(6)
    ]
    users = [
        {"user_id": n, "external_id": f"u{n}", "age": 20.0 + n, "segment": None, "first_seen": START}
        for n in range(5)
    ]
    queries = [
        {"query_id": 0, "text": "red", "image_id": None},
        {"query_id": 1, "text": None, "image_id": content_hash(PICTURES[3])},
        {"query_id": 2, "text": "shoes", "image_id": None},
    ]
    events = [
        {
            "event_id": n,
            "user_id": n % 5,
            "item_id": n % 6,
            "type": ("impression", "click", "cart", "purchase", "rating")[n % 5],
            "event_time": START + n * SECOND,
            "available_time": START + (n + 1) * SECOND,
            "query_id": n % 3 if n % 2 else None,
            "position": n % 4 if n % 2 else None,
            "request_id": n,
            "value": 4.0 if n % 5 == 4 else None,
        }
        for n in range(12)
    ]
    judgements = [
        {"query_id": n, "item_id": n, "relevance": n / 2, "part": ("train", "test")[n % 2]} for n in range(3)
    ]
    return {
        "items": items,
        "images": [image_row(content) for content in PICTURES],
        "users": users,
        "events": events,
        "queries": queries,
        "judgements": judgements,
    }


def table_of(name: str, records: list[dict]) -> pa.Table:
    columns = [pa.array([record.get(f.name) for record in records], f.type) for f in SCHEMAS[name]]
    return pa.table(columns, schema=SCHEMAS[name])


def tables_of(content: dict[str, list[dict]]) -> Tables:
    made = {name: table_of(name, content[name]) for name in SCHEMAS}
    return Tables(**made, quarantine=QUARANTINE.empty_table())


@pytest.fixture
def clean() -> Tables:
    return tables_of(rows())


def test_clean_rows_survive_unchanged(clean: Tables) -> None:
    checked = check(clean)
    assert checked.quarantine.num_rows == 0
    for name, schema in SCHEMAS.items():
        assert getattr(checked, name).equals(getattr(clean, name))
        assert getattr(checked, name).schema.equals(schema)


TRUNCATED = encoded((64, 64), seed=9)[:-400]
FAR = datetime(2190, 1, 1, tzinfo=UTC)
OLD = datetime(1970, 1, 1, tzinfo=UTC)
# (table, number of the row to spoil, what to spoil, rule, what the entry shows)
REFUSED = [
    ("items", 5, {"item_id": 4}, "duplicate item_id", "4"),
    ("items", 5, {"item_id": -7}, "negative item_id", "-7"),
    ("items", 5, {"item_id": None}, "null item_id", "null"),
    ("items", 5, {"external_id": None}, "null external_id", "null"),
    ("items", 5, {"external_id": ".."}, "item_id is . or .., which an address cannot hold", ".."),
    ("items", 5, {"category": None}, "null category", "null"),
    ("items", 5, {"category": ["shop", None]}, "null inside category", "['shop', None]"),
    ("items", 5, {"attributes": [("colour", None)]}, "null inside attributes", "[('colour', None)]"),
    ("items", 5, {"price": -0.5}, "price is negative or infinite", "-0.5"),
    ("items", 5, {"price": float("inf")}, "price is negative or infinite", "inf"),
    (
        "items",
        5,
        {"first_seen": OLD},
        "first_seen outside sane bounds: before 1990 or in the future",
        "1970-01-01",
    ),
    (
        "items",
        5,
        {"first_seen": FAR},
        "first_seen outside sane bounds: before 1990 or in the future",
        "2190-01-01",
    ),
    ("users", 4, {"user_id": 3}, "duplicate user_id", "3"),
    ("users", 4, {"first_seen": None}, "null first_seen", "null"),
    ("users", 4, {"first_seen": OLD}, "first_seen outside sane bounds: before 1990 or in the future", "1970"),
    ("queries", 2, {"query_id": 0}, "duplicate query_id", "0"),
    ("queries", 2, {"text": None}, "neither text nor image", "2"),
    ("events", 7, {"event_id": 3}, "another event has this event_id", "3"),
    ("events", 7, {**rows()["events"][3]}, "duplicate event_id", "3"),
    ("events", 7, {**rows()["events"][3], "position": 9}, "another event has this event_id", "3"),
    (
        "events",
        7,
        {**rows()["events"][3], "event_time": START},
        "another event has this event_id",
        "3",
    ),
    ("events", 7, {"item_id": 404}, "unknown item_id", "404"),
    ("events", 7, {"user_id": 404}, "unknown user_id", "404"),
    ("events", 7, {"query_id": 404}, "unknown query_id", "404"),
    ("events", 7, {"type": "wink"}, "unknown type", "wink"),
    ("events", 7, {"type": None}, "null type", "null"),
    (
        "events",
        7,
        {"available_time": START + 7 * SECOND},
        "available_time not after event_time",
        "2024-05-01",
    ),
    ("events", 7, {"available_time": START}, "available_time not after event_time", "2024-05-01"),
    (
        "events",
        7,
        {"event_time": OLD},
        "event_time outside sane bounds: before 1990 or in the future",
        "1970-01-01",
    ),
    (
        "events",
        7,
        {"event_time": FAR, "available_time": FAR},
        "event_time outside sane bounds: before 1990 or in the future",
        "2190",
    ),
    (
        "events",
        7,
        {"available_time": FAR},
        "available_time outside sane bounds: before 1990 or in the future",
        "2190-01-01",
    ),
    ("events", 7, {"type": "rating", "value": None}, "rating without a value", "null"),
    ("events", 7, {"type": "rating", "value": float("nan")}, "rating without a value", "nan"),
    ("events", 7, {"type": "rating", "value": float("inf")}, "value is infinite", "inf"),
    ("events", 7, {"value": 3.0}, "value of an event that is no rating", "3"),
    ("events", 7, {"position": -1}, "negative position", "-1"),
    ("events", 7, {"request_id": -1}, "negative request_id", "-1"),
    ("items", 5, {"spu": -1}, "negative spu", "-1"),
    ("items", 5, {"title": "x" * 100_001}, "title is too long", "xxx"),
    ("items", 5, {"category": ["shop", "\u200b"]}, "empty text inside category", "['shop', '']"),
    ("items", 5, {"category": ["x"] * 101}, "category has too many parts", "['x', "),
    ("items", 5, {"attributes": [("x" * 10_001, "red")]}, "too long a text inside attributes", "xxx"),
    ("queries", 2, {"text": "x" * 1001}, "text is too long", "xxx"),
    ("judgements", 2, {"query_id": 404}, "unknown query_id", "404"),
    ("judgements", 2, {"item_id": 404}, "unknown item_id", "404"),
    ("judgements", 2, {"relevance": 1.5}, "relevance outside 0..1", "1.5"),
    ("judgements", 2, {"relevance": float("nan")}, "relevance outside 0..1", "nan"),
    ("judgements", 2, {"part": "dev"}, "unknown part", "dev"),
    ("judgements", 2, {"query_id": 0, "item_id": 0}, "duplicate query_id and item_id", "0"),
    ("images", 2, image_row(TRUNCATED, 64, 64), "broken or too large picture", "truncated"),
    ("images", 2, image_row(b"not a picture"), "broken or too large picture", "cannot identify"),
    ("images", 2, image_row(b""), "broken or too large picture", content_hash(b"")),
    ("images", 2, image_row(encoded(kind="TIFF")), "picture of a format that is not opened", "TIFF"),
    ("images", 2, {"image_id": "0" * 16}, "image_id is not the content hash", "0" * 16),
    ("images", 2, {"width": 23}, "wrong width", "23"),
    ("images", 2, {"height": 23}, "wrong height", "23"),
    ("images", 2, image_row(PICTURES[0]), "duplicate image_id", content_hash(PICTURES[0])),
    ("images", 2, {"bytes": None}, "null bytes", "0 bytes"),
]


@pytest.mark.parametrize(("name", "row", "spoil", "rule", "shown"), REFUSED)
def test_a_bad_row_is_quarantined_with_its_rule_and_value(
    name: str, row: int, spoil: dict, rule: str, shown: str
) -> None:
    content = rows()
    content[name][row] = {**content[name][row], **spoil}
    checked = check(tables_of(content))
    entries = [entry for entry in checked.quarantine.to_pylist() if entry["table"] == name]
    assert [(entry["rule"], entry["row"]) for entry in entries] == [(rule, row)]
    assert shown in entries[0]["value"]
    kept = content[name][:row] + content[name][row + 1 :]
    assert getattr(checked, name).equals(table_of(name, kept)), "the clean rows changed"


def test_quarantine_names_the_shops_own_ids(clean: Tables) -> None:
    """Of entities that the tables or those before them know; an integer that nobody names stays one."""
    content = rows()
    content["items"][5]["item_id"] = 4  # twice
    content["items"][5]["external_id"] = "another"
    content["judgements"] = [
        {"query_id": 77, "item_id": 4, "relevance": 1.0, "part": "train"},
        *({**one, "item_id": 3} for one in [content["judgements"][0]] * 2),
        *content["judgements"][1:],
    ]
    content["queries"][0]["external_id"] = "first query"
    content["queries"][2] |= {"external_id": "nothing", "text": "", "image_id": None}
    content["judgements"] = content["judgements"][:-1]
    entries = check(tables_of(content), known=clean).quarantine.to_pylist()
    own = clean.items["external_id"].to_pylist()
    assert [(one["rule"], one["value"]) for one in entries if one["table"] != "events"] == [
        ("duplicate item_id", own[4]),
        ("neither text nor image", "nothing"),
        ("unknown query_id", "77"),
        ("duplicate query_id and item_id", "first query"),
    ]
    strangers = rows()
    strangers["items"], strangers["events"] = strangers["items"][:5], strangers["events"][:6]
    entries = check(tables_of(strangers)).quarantine.to_pylist()
    assert [(one["rule"], one["value"]) for one in entries] == [("unknown item_id", "5")]


def test_the_first_of_two_equal_ids_stays_even_when_an_earlier_one_is_refused() -> None:
    content = rows()
    content["items"] = [{**content["items"][4], "price": -1.0}, *content["items"]]
    checked = check(tables_of(content))
    assert quarantine_counts(checked.quarantine) == {"items": {"price is negative or infinite": 1}}
    assert checked.items.equals(table_of("items", content["items"][1:]))


def test_an_item_whose_picture_is_broken_stays_without_it() -> None:
    content = rows()
    content["images"][1] = image_row(TRUNCATED, 64, 64)
    content["items"][1]["image_id"] = content_hash(TRUNCATED)
    checked = check(tables_of(content))
    assert quarantine_counts(checked.quarantine) == {
        "images": {"broken or too large picture": 1},
        "items": {"image_id without an image": 1},
    }
    assert checked.items.column("image_id").to_pylist()[:3] == [
        content_hash(PICTURES[0]),
        None,
        content_hash(PICTURES[2]),
    ]
    values = {entry["table"]: entry["value"] for entry in checked.quarantine.to_pylist()}
    name = content["items"][1]["external_id"]
    assert values["items"] == f"{name}: {content_hash(TRUNCATED)}", "which item, and which picture"
    assert checked.events.num_rows == 12


def test_a_picture_query_whose_picture_is_broken_is_refused_and_so_are_its_judgements() -> None:
    content = rows()
    content["images"][3]["bytes"] = b"rubbish"
    checked = check(tables_of(content))
    counts = quarantine_counts(checked.quarantine)
    assert counts["queries"] == {"image_id without an image": 1, "neither text nor image": 1}
    assert counts["judgements"] == {"unknown query_id": 1}
    assert counts["events"] == {"unknown query_id": 2}


def test_a_price_that_is_not_a_number_costs_the_price_not_the_product() -> None:
    content = rows()
    content["items"][3]["price"] = float("nan")
    checked = check(tables_of(content))
    assert quarantine_counts(checked.quarantine) == {"items": {"price is not a number": 1}}
    assert checked.items["price"].to_pylist()[3] is None and len(checked.items) == len(content["items"])
    assert len(checked.events) == len(content["events"])


def test_an_impossible_age_is_emptied_and_counted() -> None:
    content = rows()
    content["users"][0]["age"], content["users"][1]["age"] = -1.0, float("nan")
    checked = check(tables_of(content))
    assert quarantine_counts(checked.quarantine) == {"users": {"age is not between 0 and 150 years": 2}}
    assert checked.users.column("age").to_pylist() == [None, None, 22.0, 23.0, 24.0]


def test_refused_items_take_their_events_along_and_both_are_counted() -> None:
    content = rows()
    content["items"][2]["price"] = -3.0
    checked = check(tables_of(content))
    counts = quarantine_counts(checked.quarantine)
    assert counts["events"] == {"unknown item_id": 2} and counts["judgements"] == {"unknown item_id": 1}
    assert 2 not in checked.events.column("item_id").to_pylist()


@pytest.mark.parametrize(
    ("most", "limit", "offender"),
    [("MOST_BYTES", 800, "at most 800"), ("MOST_PIXELS", 1000, "64 x 64 pixels, at most 1000")],
)
def test_huge_pictures_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, most: str, limit: int, offender: str
) -> None:
    content = encoded((64, 64), seed=5)
    monkeypatch.setattr(pictures, most, limit)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert offender in pictures.inspect_picture(content).problem


def test_a_picture_bomb_is_refused_by_its_header() -> None:
    out = io.BytesIO()
    Image.new("1", (9000, 9000)).save(out, "PNG")
    assert len(out.getvalue()) < 100_000
    assert "9000 x 9000 pixels" in pictures.inspect_picture(out.getvalue()).problem


@given(cut=st.integers(0, len(PICTURES[0]) - 3))
@settings(max_examples=60, deadline=None)
def test_no_truncated_jpeg_passes(cut: int) -> None:
    assert pictures.inspect_picture(PICTURES[0][:cut]).problem is not None


@given(junk=st.binary(max_size=300), at=st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_hostile_bytes_are_judged_and_never_crash(junk: bytes, at: int) -> None:
    for content in (junk, PICTURES[1][:at] + junk + PICTURES[1][at + len(junk) :]):
        seen = pictures.inspect_picture(content)
        assert seen.image_id == hashlib.sha256(content).hexdigest()[:16]
        pictures.shrink(content)


def test_shrinking_keeps_small_and_broken_pictures_and_the_shape_of_large_ones() -> None:
    large = encoded((600, 300))
    small = Image.open(io.BytesIO(pictures.shrink(large)))
    assert small.size == (256, 128)
    for content in (PICTURES[0], TRUNCATED, b"rubbish"):
        assert pictures.shrink(content) is content


BAD_SCHEMAS: list[tuple[str, Callable[[pa.Table], pa.Table], str]] = [
    ("events", lambda t: t.append_column("colour", pa.nulls(len(t))), "unknown field colour"),
    ("events", lambda t: t.drop_columns(["type"]), "missing columns.*type"),
    (
        "events",
        lambda t: t.set_column(1, "user_id", t.column("user_id").cast(pa.string())),
        r"user_id is not an integer of 64 bits: expected int64, found string \['0', '1', '2'\]",
    ),
    (
        "events",
        lambda t: t.set_column(4, "event_time", t.column("event_time").cast(pa.timestamp("us"))),
        r"event_time is not a time with a zone: expected timestamp\[us, tz=UTC\], found timestamp\[us\]",
    ),
    ("items", lambda t: t.append_column("price", t.column("price")), r"more than once \['price'\]"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD_SCHEMAS)
def test_a_wrong_schema_is_refused_with_the_offender_and_the_next_command(
    clean: Tables, name: str, spoil: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(DataError, match=f"{name}: expected columns.*{message}.*moon dataset"):
        check(replace(clean, **{name: spoil(getattr(clean, name))}))


def test_columns_may_come_in_any_order(clean: Tables) -> None:
    turned = replace(clean, events=clean.events.select(clean.events.column_names[::-1]))
    assert check(turned).events.equals(clean.events)


def test_half_a_table_may_be_refused_but_not_more() -> None:
    content = rows()
    for row in content["events"][:6]:
        row["item_id"] = 404
    assert check(tables_of(content)).events.num_rows == 6
    content["events"][6]["type"] = "wink"
    with pytest.raises(
        DataError, match=r"at most 50%.*7 of 12 \(6 unknown item_id, 1 unknown type\).*row 0.*404"
    ):
        check(tables_of(content))


def test_what_the_importer_refused_counts_too(clean: Tables) -> None:
    given = [{"table": "queries", "rule": "no text", "row": n, "value": f"query {n}"} for n in range(4)]
    with pytest.raises(DataError, match=r"queries.*4 of 7 \(4 no text\).*query 0"):
        check(replace(clean, quarantine=pa.Table.from_pylist(given, QUARANTINE)))
    checked = check(replace(clean, quarantine=pa.Table.from_pylist(given[:3], QUARANTINE)))
    assert checked.quarantine.to_pylist() == given[:3]


def test_no_items_are_refused_and_no_events_are_a_catalogue(tmp_path: Path) -> None:
    empty = {name: [] for name in SCHEMAS}
    with pytest.raises(DataError, match="items: expected at least one item, found 0"):
        check(tables_of(empty))
    content = rows()
    content["events"] = []
    assert write_dataset(tmp_path / "d", tables_of(content), CONFIG).config["rows"]["events"] == 0


def test_truth_follows_the_events(clean: Tables) -> None:
    content = rows()
    content["events"][5]["item_id"] = 404
    truth = pa.table({"event_id": [0, 5, 10], "click_probability": pa.array([0.1, 0.2, 0.3], pa.float32())})
    checked = check(replace(tables_of(content), truth=truth))
    assert checked.truth.column("event_id").to_pylist() == [0, 10]


def test_the_artifact_says_what_was_kept_and_refused(tmp_path: Path) -> None:
    content = rows()
    content["events"][7]["type"] = "wink"
    artifact = write_dataset(tmp_path / "dataset", tables_of(content), CONFIG)
    assert artifact.config["quarantined"] == {"events": {"unknown type": 1}}
    assert artifact.config["rows"]["events"] == 11
    dataset = Dataset.open(open_artifact(tmp_path / "dataset", "dataset"))
    checked = check(tables_of(content))
    checked = replace(checked, events=sequenced(checked.events, checked.items)[0])
    for name in (*SCHEMAS, "quarantine"):
        assert getattr(dataset, name).equals(getattr(checked, name))
    assert dataset.truth is None
    for content_bytes in PICTURES:
        assert dataset.image_bytes(content_hash(content_bytes)) == content_bytes
    assert dataset.image_bytes("0" * 16) is None and dataset.image_bytes(None) is None


def test_refused_input_leaves_the_stored_dataset_as_it_was(tmp_path: Path, clean: Tables) -> None:
    before = write_dataset(tmp_path / "dataset", clean, CONFIG)
    with pytest.raises(DataError):
        write_dataset(tmp_path / "dataset", replace(clean, items=clean.items.slice(0, 0)), CONFIG)
    assert open_artifact(tmp_path / "dataset", "dataset").id == before.id


def test_a_damaged_dataset_names_the_command_that_makes_it(tmp_path: Path, clean: Tables) -> None:
    write_dataset(tmp_path / "dataset", clean, CONFIG)
    file = tmp_path / "dataset" / "events.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="events.parquet.*moon dataset"):
        Dataset.open(open_artifact(tmp_path / "dataset", "dataset"))


@st.composite
def spoiled_events(draw: st.DrawFn) -> list[dict]:
    """Events of which some are spoiled in drawn ways."""
    base = rows()["events"]
    chosen = [dict(base[draw(st.integers(0, 11))]) for _ in range(draw(st.integers(1, 30)))]
    for n, event in enumerate(chosen):
        event["event_id"] = draw(st.sampled_from([n, n, n, 0]))
        event["item_id"] = draw(st.sampled_from([0, 1, 2, 3, 99, None]))
        event["type"] = draw(st.sampled_from(["click", "rating", "impression", "nod"]))
        event["value"] = draw(st.sampled_from([None, 3.0, float("inf")]))
        lag = draw(st.sampled_from([-1, 0, 1, 2]))
        event["available_time"] = event["event_time"] + lag * SECOND
        event["event_time"] = draw(st.sampled_from([event["event_time"], OLD]))
    return chosen


def slow_keep(events: list[dict]) -> list[int]:
    """The row rules of events, one row at a time: those of a record are the model's."""
    kept, seen = [], set()
    for row, event in enumerate(events):
        good = event["item_id"] in range(6) and event["available_time"] > event["event_time"]
        try:
            Event(**{name: value for name, value in event.items() if name != "available_time"})
        except ValidationError:
            good = False
        if good and event["event_id"] not in seen:
            seen.add(event["event_id"])
            kept.append(row)
    return kept


@given(events=spoiled_events())
@settings(max_examples=60, deadline=None)
def test_vectorised_rules_agree_with_a_plain_loop_and_every_row_is_accounted_for(events: list[dict]) -> None:
    content = {**rows(), "events": events}
    with patch("dataset.sieve.MAX_REFUSED_FRACTION", 1.0):
        checked = check(tables_of(content))
    kept = slow_keep(events)
    assert checked.events.equals(table_of("events", [events[row] for row in kept]))
    refused = checked.quarantine.filter(pc.equal(checked.quarantine.column("table"), "events"))
    assert sorted(kept + refused.column("row").to_pylist()) == list(range(len(events)))


def test_checking_twice_changes_nothing() -> None:
    content = rows()
    content["events"][7]["type"] = "wink"
    once = check(tables_of(content))
    twice = check(once)
    assert all(getattr(twice, name).equals(getattr(once, name)) for name in (*SCHEMAS, "quarantine"))


def test_sliced_and_chunked_tables_are_checked_like_whole_ones(clean: Tables) -> None:
    content = rows()
    content["items"][4]["attributes"] = [("colour", None)]
    content["items"][5]["category"] = [None]
    whole = tables_of(content)
    cut = pa.concat_tables([whole.items.slice(0, 2), whole.items.slice(2, 3), whole.items.slice(5)])
    assert check(replace(whole, items=cut)).quarantine.equals(check(whole).quarantine)


@pytest.mark.slow
def test_three_million_events_are_checked_in_seconds(clean: Tables) -> None:
    rows_n = 3_000_000
    rng = np.random.default_rng(0)
    moment = START.timestamp() * 1e6 + np.arange(rows_n)
    nothing = pa.nulls(rows_n)
    columns = [
        pa.array(np.arange(rows_n)),
        pa.array(rng.integers(0, 5, rows_n)),
        pa.array(rng.integers(0, 6, rows_n)),
        pa.array(["click"] * rows_n),
        pa.array(moment.astype(np.int64)).cast(TIME),
        pa.array(moment.astype(np.int64) + 1).cast(TIME),
        *(
            nothing.cast(SCHEMAS["events"].field(n).type)
            for n in ("query_id", "position", "request_id", "value", "sequence")
        ),
    ]
    start = time.monotonic()
    checked = check(replace(clean, events=pa.table(columns, schema=SCHEMAS["events"])))
    assert checked.events.num_rows == rows_n
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "CMYK"])
def test_a_large_picture_of_any_mode_is_shrunk_to_what_one_sees(mode):
    """A grey square, transparent or deep or subtractive, stays a grey square on white, upright."""
    import io

    import numpy as np
    from PIL import Image

    from dataset.pictures import LONG_SIDE, shrink

    large = Image.new("RGB", (600, 300), "white")
    large.paste((128, 128, 128), (0, 0, 150, 300))
    stream, exif = io.BytesIO(), Image.Exif()
    if mode == "RGBA":
        clear = Image.new("RGBA", large.size, (0, 0, 0, 0))
        clear.paste((128, 128, 128, 255), (0, 0, 150, 300))
        clear.save(stream, "PNG")
    elif mode == "I;16":
        deep = np.asarray(large.convert("L")).astype(np.uint16) * 257
        Image.fromarray(deep).save(stream, "PNG")
    elif mode == "CMYK":
        exif[0x0112] = 3  # turned by 180 degrees
        large.convert("CMYK").rotate(180).save(stream, "JPEG", exif=exif, quality=95)
    else:
        large.convert("P").save(stream, "PNG")
    with Image.open(io.BytesIO(shrink(stream.getvalue()))) as small:
        pixels = np.asarray(small.convert("RGB")).astype(int)
    assert max(pixels.shape[:2]) == LONG_SIDE
    assert abs(pixels[:, :50] - 128).max() < 12 and pixels[:, -50:].min() > 243
