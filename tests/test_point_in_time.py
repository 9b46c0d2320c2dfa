"""No feature is newer than its request, and every frame equals the one a nested loop would build.

Run: pytest tests/test_point_in_time.py
"""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, TinySplit, make_requests, make_world, write_embedding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.contracts import BEHAVIOUR_CODES, EVENTS, TIME, DataError
from dataset.months import months_of
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.event_log import open_event_log
from feature_repo.event_log_growth import write_event_log
from feature_repo.frames import join
from feature_repo.frames.join import training_frame
from feature_repo.sources import read_source
from feature_repo.statistics import daily_stats
from moonstore.freshness import EPOCH

WIDTH = 8
US, MINUTE = timedelta(microseconds=1), timedelta(minutes=1)


def code_of(event):
    if event["type"] == "rating":
        return BEHAVIOUR_CODES["liked" if event["value"] >= 4 else "disliked"]
    return BEHAVIOUR_CODES.get(event["type"], 0)


def slow_history(log, user, when, history):
    known = [e for e in log if e["user_id"] == user and e["available_time"] < when and code_of(e) > 0]
    known.sort(key=lambda e: (e["available_time"], e["event_id"]))
    return len(known), [(e["item_id"], code_of(e), e["event_time"]) for e in known][-history:]


def slow_counts(log, key, entity, when):
    midnight = when.replace(hour=0, minute=0, second=0, microsecond=0)
    if midnight == when:  # a row stamped at the request itself is not yet known
        midnight -= DAY
    counts = {}
    for window, days in (("7d", 7), ("28d", 28), ("all", 10**5)):
        inside = [
            e
            for e in log
            if e[key] == entity and (midnight - e["available_time"]).total_seconds() <= days * 86_400
        ]
        inside = [e for e in inside if e["available_time"] < midnight]
        counts[f"shown_{window}"] = sum(e["type"] in ("impression", "rating") for e in inside)
        counts[f"positive_{window}"] = sum(code_of(e) in (1, 2, 3, 4) for e in inside)
    counts["rate_all"] = np.float32(
        (counts["positive_all"] + 20 * slow_usual(log, key, entity, midnight)) / (counts["shown_all"] + 20)
    )
    return counts


def slow_usual(log, key, entity, midnight):
    """How often anything was liked until the counts of an entity last changed."""
    days = {
        e["available_time"].replace(hour=0, minute=0, second=0, microsecond=0)
        for e in log
        if e[key] == entity
    }
    changes = [day + ago * DAY for day in days for ago in (1, 8, 29)]
    last = max((one for one in changes if one <= midnight), default=midnight)
    before = [e for e in log if e[key] is not None and e["available_time"] < last]
    positive = sum(code_of(e) in (1, 2, 3, 4) for e in before)
    shown = sum(e["type"] in ("impression", "rating") for e in before)
    return min((positive + 1) / (shown + 20), 1)


def slow_statistics(log, key, entity, when):
    counts, today = (
        slow_counts(log, key, entity, when),
        (when - US).replace(hour=0, minute=0, second=0, microsecond=0),
    )
    if entity is None or not any(e[key] == entity and e["available_time"] < today for e in log):
        return dict.fromkeys(counts)  # no row yet: nothing is known, not even that it was never shown
    return counts


def slow_query(log, query, when):
    return {f"query_{name}": count for name, count in slow_statistics(log, "query_id", query, when).items()}


def slow_item(items, item, when):
    row = next((i for i in items if i["item_id"] == item and i["first_seen"] < when), None)
    if row is None:
        return dict.fromkeys(("category", "category_top", "spu", "price", "attributes", "first_seen_us"))
    return {
        "category": row["category"][-1] if row["category"] else "",
        "category_top": row["category"][0] if row["category"] else "",
        "spu": row["spu"],
        "price": row["price"],
        "attributes": [f"{name}={value}" for name, value in row["attributes"]],
        "first_seen_us": (row["first_seen"] - EPOCH) // US,
    }


def slow_user(users, user, when):
    row = next((u for u in users if u["user_id"] == user and u["first_seen"] < when), None)
    if row is None:
        return {"age_band": None, "segment": None, "user_found": False}
    band = -1 if row["age"] is None else int(row["age"] // 10)
    return {"age_band": band, "segment": row["segment"] or "", "user_found": True}


def assert_equals_nested_loop(world, frame, rows, history):
    log, items = world.split.log.to_pylist(), world.dataset.items.to_pylist()
    users = world.dataset.users.to_pylist()
    asked = rows.to_pylist()
    starts = [n for n, row in enumerate(asked) if n == 0 or row["request_id"] != asked[n - 1]["request_id"]]
    assert frame.offsets.tolist() == [*starts, len(asked)]
    for row, request in enumerate(frame.requests.to_pylist()):
        logged = asked[starts[row]]
        count, behaviours = slow_history(log, logged["user_id"], logged["time"], history)
        identity = {name: logged[name] for name in ("request_id", "user_id", "time", "query_id")}
        assert request == {
            **identity,
            **slow_user(users, logged["user_id"], logged["time"]),
            **slow_query(log, logged["query_id"], logged["time"]),
            "user_events": count,
        }
        span = slice(frame.history.offsets[row], frame.history.offsets[row + 1])
        columns = (frame.history.item_id[span], frame.history.code[span], frame.history.time_us[span])
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == [
            (item, code, (when - START) // US + START_US) for item, code, when in behaviours
        ]
    for logged, candidate in zip(asked, frame.candidates.to_pylist(), strict=True):
        counts = slow_statistics(log, "item_id", logged["item_id"], logged["time"])
        given_ = {name: logged[name] for name in ("item_id", "position", "label")}
        features = {**slow_item(items, logged["item_id"], logged["time"]), **counts}
        found = features["first_seen_us"] is not None
        assert candidate == {**given_, **features, "item_found": found}


START_US = pa.scalar(START, TIME).cast(pa.int64()).as_py()


@pytest.fixture(scope="module")
def store(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "store"
    create_store(folder, tiny_world.dataset, tiny_world.split)
    return folder


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**20), events=st.sampled_from([0, 1, 60, 300]), history=st.sampled_from([1, 4, 50])
)
def test_a_frame_equals_the_nested_loop(tmp_path, seed, events, history):
    world = make_world(seed, events=events)
    create_store(tmp_path / "store", world.dataset, world.split)
    rows = make_requests(world, seed)
    frame = training_frame(tmp_path / "store", rows, history)
    assert_equals_nested_loop(world, frame.take(0, len(frame)), rows, history)


def test_any_order_and_any_slice_of_requests_gives_the_same_rows(tiny_world, store):
    rows = make_requests(tiny_world, seed=3)
    frame = training_frame(store, rows, history=5)
    chosen = np.random.default_rng(0).permutation(len(frame))[:17]
    ids = rows.column("request_id").unique().to_pylist()
    parts = [rows.filter(pc.equal(rows.column("request_id"), ids[number])) for number in chosen]
    assert_equals_nested_loop(tiny_world, frame.select(chosen), pa.concat_tables(parts), 5)
    assert len(frame.item_row) == rows.num_rows
    assert len(frame.take(len(frame) - 1, len(frame) + 5)) == 1


def test_deleting_everything_after_a_moment_changes_nothing_known_at_it(tiny_world, store, tmp_path):
    moment = START + 30 * DAY
    rows = make_requests(tiny_world, seed=4)
    rows = rows.filter(pc.less_equal(rows.column("time"), pa.scalar(moment, TIME)))
    past = tiny_world.split.log.filter(
        pc.less(tiny_world.split.log.column("available_time"), pa.scalar(moment, TIME))
    )
    assert 0 < past.num_rows < tiny_world.split.log.num_rows
    create_store(tmp_path / "store", tiny_world.dataset, TinySplit(past))
    whole, shifted = training_frame(store, rows, 6), training_frame(tmp_path / "store", rows, 6)
    one, other = whole.take(0, len(whole)), shifted.take(0, len(shifted))
    assert one.requests.equals(other.requests) and one.candidates.equals(other.candidates)
    for name in ("offsets", "item_id", "code", "time_us"):
        assert np.array_equal(getattr(one.history, name), getattr(other.history, name))


def test_a_slate_keeps_every_candidate_and_its_order(tiny_world, store):
    items = np.random.default_rng(0).permutation(np.repeat(tiny_world.item_ids, 3))
    rows = slate(tiny_world, items, START + 40 * DAY)
    frame = training_frame(store, rows, 5).take(0, 1)
    assert frame.candidates.column("item_id").to_pylist() == items.tolist()
    assert frame.offsets.tolist() == [0, len(items)]


def test_what_becomes_known_at_the_very_moment_of_the_request_is_not_seen(tiny_world, store):
    event = next(e for e in tiny_world.split.log.to_pylist() if code_of(e) > 0)
    user, when = event["user_id"], event["available_time"]
    at, after = (
        training_frame(store, slate(tiny_world, tiny_world.item_ids[:1], moment, user), 200).take(0, 1)
        for moment in (when, when + US)
    )
    log = tiny_world.split.log.to_pylist()
    assert at.requests.column("user_events").to_pylist() == [slow_history(log, user, when, 1)[0]]
    assert after.requests.column("user_events").to_pylist() == [slow_history(log, user, when + US, 1)[0]]
    assert len(after.history.item_id) > len(at.history.item_id)


def slate(world, items, when, user=None):
    count = len(items)
    return pa.table(
        {
            "request_id": pa.array([5] * count, pa.int64()),
            "user_id": pa.array([int(user or world.user_ids[0])] * count, pa.int64()),
            "time": pa.array([when] * count, TIME),
            "query_id": pa.nulls(count, pa.int64()),
            "item_id": pa.array(items, pa.int64()),
        }
    )


def statistics(months, key, since=""):
    return pa.concat_tables(part for _, parts in daily_stats(months, key, since) for part in parts)


@pytest.mark.parametrize("key", ["item_id", "query_id"])
def test_statistics_hold_the_windows_of_every_midnight(tiny_world, key):
    stats = sorted(
        statistics(tiny_world.split.months, key).to_pylist(),
        key=lambda row: (row[key], row["event_timestamp"]),
    )
    newest = {}
    for row in stats:
        assert (row[key], row["event_timestamp"]) not in newest, "two rows with one key and stamp"
        newest[row[key], row["event_timestamp"]] = row
    log = tiny_world.split.log.to_pylist()
    entities = sorted({row[key] for row in stats})[:4]
    for entity in entities:
        for day in range(95):
            midnight = START + day * DAY
            known = [row for row in stats if row[key] == entity and row["event_timestamp"] <= midnight]
            expected = slow_counts(log, key, entity, midnight + US)
            if not known:
                assert expected["shown_all"] == expected["positive_all"] == 0
                continue
            row = known[-1]
            assert {name: row[name] for name in expected} == expected


def rates(kinds):
    """The rate of each item the day after a log of so many events, a minute apart: (item, type, value)."""
    log = [
        dict.fromkeys(EVENTS.names)
        | {"event_id": n, "sequence": n, "user_id": 1, "item_id": item, "type": kind, "value": value}
        | {"event_time": START + n * MINUTE, "available_time": START + n * MINUTE}
        for n, (item, kind, value) in enumerate(kinds)
    ]
    stats = statistics(months_of(pa.Table.from_pylist(log, schema=EVENTS)), "item_id").to_pylist()
    return {row["item_id"]: row["rate_all"] for row in stats}


def test_a_rate_of_few_is_near_that_of_the_log():
    """Ratings of which 90 in 100 are likes: an item that one user liked is better than usual, not worse."""
    kinds = [(1, "rating", 5.0 if n % 10 else 1.0) for n in range(100)]
    found = rates([*kinds, (2, "rating", 5.0), (3, "rating", 1.0)])
    usual = (91 + 1) / (102 + 20)
    assert found[1] == pytest.approx((90 + 20 * usual) / 120)
    assert found[2] == pytest.approx((1 + 20 * usual) / 21) and found[3] == pytest.approx(20 * usual / 21)
    clicks = [(1, "impression", None)] * 100 + [(1, "click", None)] * 10 + [(2, "impression", None)]
    assert rates(clicks)[2] == pytest.approx(20 * (10 + 1) / (101 + 20) / 21)


def test_a_log_of_purchases_has_rates_in_the_order_of_its_counts():
    """Nothing was shown: the usual rate is 1, so that no item is drowned by how much the whole log bought."""
    found = rates([(n % 7 + 1 if n % 2 else 1, "purchase", 1.0) for n in range(70)])
    assert found[1] == pytest.approx((40 + 20) / 20) and found[2] == pytest.approx((5 + 20) / 20)


@pytest.mark.parametrize("key", ["item_id", "query_id"])
def test_statistics_made_in_parts_are_those_made_at_once(tiny_world, monkeypatch, key):
    months = tiny_world.split.months
    whole = statistics(months, key)
    ((name, parts),) = daily_stats(months_of(tiny_world.split.log.slice(0, 0)), key)
    assert [len(part) for part in parts] == [0]
    for most in (1, 7, 50):
        monkeypatch.setattr("feature_repo.statistics.CELLS_AT_ONCE", most)
        made = [list(parts) for _, parts in daily_stats(months, key)]
        assert max(map(len, made)) > 2 and pa.concat_tables(sum(made, [])).equals(whole)
        for parts in made:
            ids = [set(part[key].to_pylist()) for part in parts]
            assert sum(map(len, ids)) == len(set.union(*ids))


def test_a_source_has_one_row_per_key_and_moment_in_utc_microseconds(store):
    for path in sorted((store / "data").glob("*.parquet")):
        table = read_source(path)
        key = next(name for name in table.column_names if name in ("item_id", "user_id", "query_id"))
        assert table.schema.field("event_timestamp").type == TIME, path.name
        pairs = table.select([key, "event_timestamp"])
        assert pairs.group_by([key, "event_timestamp"]).aggregate([]).num_rows == table.num_rows, path.name


def test_the_log_cuts_any_history_a_loop_would_cut(tiny_world, tmp_path):
    log = write_event_log(tmp_path / "log", tiny_world.split.months)
    rng = np.random.default_rng(0)
    users = rng.choice(np.append(log.users, 77), 50)
    total = {int(u): int(n) for u, n in zip(log.users, np.diff(log.starts), strict=True)}
    positions = np.array([rng.integers(0, total.get(int(u), 0) + 1) for u in users])
    for history in (1, 3, 1000):
        got = log.gather(users, positions, history)
        for row, (user, position) in enumerate(zip(users, positions, strict=True)):
            mine = range(len(log))[log.starts[np.searchsorted(log.users, user)] if user in total else 0 :]
            expected = [int(log.event_id[n]) for n in list(mine)[:position]][-history:]
            events = {e["event_id"]: e for e in tiny_world.split.log.to_pylist()}
            span = slice(got.offsets[row], got.offsets[row + 1])
            assert got.item_id[span].tolist() == [events[e]["item_id"] for e in expected]


def test_vectors_are_stamped_with_what_their_encoder_knew(tiny_world, store, tmp_path):
    as_of = START + 10 * DAY
    publish_embedding(store, write_embedding(tmp_path / "e", tiny_world, WIDTH, as_of))
    rows = pq.read_table(store / "data" / "item_embedding_v1.parquet").to_pylist()
    seen = {i["item_id"]: i["first_seen"] for i in tiny_world.dataset.items.to_pylist()}
    assert len(rows) == len(seen)
    assert all(row["event_timestamp"] == max(as_of, seen[row["item_id"]]) for row in rows)
    assert {row["version"] for row in rows} == {1} and {row["encoder_id"] for row in rows} == {"encoder0"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows.drop_columns(["query_id"]), "expected request rows with query_id"),
        (lambda rows: rows.take([0, *range(2, rows.num_rows), 1]), "in several places"),
        (
            lambda rows: rows.set_column(1, "user_id", pa.array(range(rows.num_rows), pa.int64())),
            "one user_id per request",
        ),
    ],
)
def test_requests_that_are_not_requests_are_refused(tiny_world, store, damage, message):
    rows = make_requests(tiny_world, seed=5, most=6)
    first = rows.column("request_id").to_numpy()
    start = int(np.flatnonzero(first[1:] == first[:-1])[0])
    with pytest.raises(DataError, match=message):
        training_frame(store, damage(rows.slice(start)), 5)


def test_the_log_that_is_opened_is_the_one_the_joined_pointers_point_into(tiny_world, store, monkeypatch):
    """A load that ends between the join and the opening leaves another version behind, which is not read."""
    joined = training_frame(store, make_requests(tiny_world, seed=1), 4)
    assert (joined.positions > 0).any()
    opened = []

    def loaded_meanwhile(store_dir, versions=()):
        opened.append(versions)
        return open_event_log(store_dir, versions)

    monkeypatch.setattr(join, "open_event_log", loaded_meanwhile)
    training_frame(store, make_requests(tiny_world, seed=1), 4)
    assert len(opened) == 1 and opened[0] and joined.log.holds(opened[0])


def test_no_requests_give_an_empty_frame(tiny_world, store):
    frame = training_frame(store, make_requests(tiny_world, 6).slice(0, 0), 5)
    assert len(frame) == 0 and len(frame.item_row) == 0
    empty, full = frame.take(0, 0), training_frame(store, make_requests(tiny_world, 6), 5).take(0, 1)
    assert empty.candidates.schema.equals(full.candidates.schema)
    assert empty.requests.schema.equals(full.requests.schema)


def test_a_joined_frame_has_the_types_that_it_says(tiny_world, store):
    frame = training_frame(store, make_requests(tiny_world, 6), 5)
    for part in (frame, frame.only(np.array([2, 0]))):
        assert {part.item_row.dtype, part.offsets.dtype, part.positions.dtype} == {np.dtype(np.int64)}
        assert len(part.offsets) == len(part) + 1 and part.history == 5
    cut = frame.take(0, 10**6)
    assert len(cut) == len(frame) and cut.offsets.dtype == np.int64
    kinds = {name: cut.candidates.schema.field(name).type for name in ("item_id", "label", "position")}
    assert kinds == {"item_id": pa.int64(), "label": pa.float32(), "position": pa.int64()}
    assert frame.requests.schema.field("time").type == TIME
    assert frame.requests.column_names[:4] == ["request_id", "user_id", "time", "query_id"]


def test_mixed_and_scattered_requests_are_counted_and_the_first_are_named(tiny_world, store):
    rows = make_requests(tiny_world, seed=5, most=6).slice(0, 60)
    request = rows["request_id"].to_numpy()
    twice = [int(one) for one in np.unique(request) if (request == one).sum() > 1]
    others = np.where(np.append(False, request[1:] == request[:-1]), 1, rows["user_id"].to_numpy())
    mixed = rows.set_column(1, "user_id", pa.array(others))
    said = rf"^expected one user_id per request, found {len(twice)} with several \(first \[{twice[0]}, {twice[1]}"
    with pytest.raises(DataError, match=said):
        training_frame(store, mixed, 5)
    whole = pa.concat_tables([rows, rows.slice(0, 1)])
    with pytest.raises(DataError, match=rf"found 1 requests in several places \(first \[{request[0]}\]\)"):
        training_frame(store, whole, 5)
