"""Impressions, clicks and requests agree, or the import says what does not: no label is wrong in silence."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.adapters.canonical import event_table, ids_of, image_table, under, user_table
from dataset.checks import check, quarantine_counts
from dataset.contracts import EVENTS, ITEMS, JUDGEMENTS, QUARANTINE, QUERIES, TIME, DataError, Tables
from dataset.importers import IMPORTERS
from dataset.order import HASH
from dataset.slates import SEVERAL_TIMES, SEVERAL_USERS, clicks_explained
from dataset.split import Split, split_dataset
from dataset.tables import Dataset, noticed, write_dataset
from evaluation.sheets import import_facts
from moon import stages
from run.folder import Run

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEM_IDS = list(range(1, 21))


def tables_of(events):
    empty = (QUERIES.empty_table(), JUDGEMENTS.empty_table(), QUARANTINE.empty_table())
    items = {
        "item_id": pa.array(ITEM_IDS),
        "external_id": pa.array(map(str, ITEM_IDS)),
        "spu": pa.array(ITEM_IDS),
        "first_seen": pa.array([START] * len(ITEM_IDS), TIME),
    }
    return Tables(under(ITEMS, items), image_table([]), user_table(events), events, *empty)


def log(rows):
    """EVENTS of (user, item, type, seconds, request), available a second later."""
    made = [
        {
            "event_id": number,
            "user_id": user,
            "item_id": item,
            "type": kind,
            "event_time": START + timedelta(seconds=at),
            "available_time": START + timedelta(seconds=at + 1),
            "request_id": request,
        }
        for number, (user, item, kind, at, request) in enumerate(rows)
    ]
    return pa.Table.from_pylist(made, EVENTS)


def slate(user, at, request, items=(1, 2, 3), clicked=1):
    shown = [(user, item, "impression", at, request) for item in items]
    return [*shown, (user, clicked, "click", at + 5, request)]


GOOD = [*slate(1, 0, 10), *slate(2, 50, 11), *slate(1, 99, 12)]


@pytest.mark.parametrize(
    ("mixed", "rule", "said"),
    [
        ([*slate(1, 200, 13), *slate(2, 200, 13)], SEVERAL_USERS, "request 13: 2 users"),
        ([*slate(1, 200, 13), (3, 1, "click", 205, 13)], SEVERAL_USERS, "request 13: 2 users"),
        ([*slate(1, 200, 13), *slate(1, 300, 13)], SEVERAL_TIMES, "request 13: 2 times"),
    ],
)
def test_a_request_of_two_users_or_slates_is_refused_as_a_whole_and_the_others_stay(mixed, rule, said):
    checked = check(tables_of(log([*GOOD, *mixed])))
    assert checked.events.equals(log(GOOD))
    assert quarantine_counts(checked.quarantine) == {"events": {rule: len(mixed)}}
    assert set(checked.quarantine["value"].to_pylist()) == {said}
    assert checked.quarantine["row"].to_pylist() == list(range(len(GOOD), len(GOOD) + len(mixed)))


def test_clicks_come_at_any_time_and_sessions_without_impressions_are_no_slates():
    later = [(1, 2, "click", 4000, 10), (1, 2, "purchase", 9000, 10)]
    session = [(3, item, "click", 7000 + item, 99) for item in (4, 5, 6)]
    events = log([*GOOD, *later, *session])
    assert check(tables_of(events)).events.equals(events)


def file_of_slates():
    """Columns of a log of 20 users whose slates are numbered 0 to 9 for each: the second of four items is clicked."""
    rows = []
    for number in range(10):
        for user in range(20):
            at = 18_000 * number + 60 * user
            items = [(number * 7 + user * 4 + place) % 20 + 1 for place in range(4)]
            rows += [(f"u{user}", item, "impression", at, number) for item in items]
            rows.append((f"u{user}", items[1], "click", at + 5, number))
    columns = zip(*rows, strict=True)
    users, items, kinds, seconds, numbers = (pa.array(column) for column in columns)
    when = pa.array([START + timedelta(seconds=at) for at in seconds.to_pylist()], TIME)
    return users, items, kinds, when, numbers


def test_slates_numbered_per_user_are_refused_naming_the_option_with_which_labels_are_right(tmp_path):
    users, items, kinds, when, numbers = file_of_slates()
    user_ids = ids_of(users)
    collided = event_table(kinds, user_ids, items, when, request=numbers)
    with pytest.raises(DataError, match=r"10 of 10 requests.*request_scope=\[user\].*moon dataset"):
        check(tables_of(collided))
    events = event_table(kinds, user_ids, items, when, request=numbers, request_scope=[users])
    config = {"name": "slates", "source": "made"}
    dataset = write_dataset(tmp_path / "dataset", tables_of(events), config)
    assert dataset.config["quarantined"] == {} and noticed(dataset.config) == []
    assert dataset.config["clicks"]["in their slate"] == 200 == sum(dataset.config["clicks"].values())

    ranking = Split.open(split_dataset(Dataset.open(dataset), tmp_path / "split")).ranking
    shown = events.filter(pa.compute.equal(events["type"], "impression")).to_pylist()
    clicked = {(u, i, t) for u, i, k, t in zip(user_ids.to_pylist(), items.to_pylist(), kinds.to_pylist(),
                                                when.to_pylist(), strict=True) if k == "click"}  # fmt: skip
    truth = {
        row["event_id"]: (row["user_id"], row["item_id"], row["event_time"] + timedelta(seconds=5)) in clicked
        for row in shown
    }
    assert ranking.num_rows > 100 and len(set(ranking["request_id"].to_pylist())) == ranking.num_rows // 4
    for row in ranking.to_pylist():
        assert row["label"] == truth[row["event_id"]]


def test_clicks_that_label_nothing_are_counted_and_said(tmp_path):
    stray = [
        (1, 2, "click", 200, None),
        (1, 2, "click", 201, 77),
        (2, 3, "click", 202, 78),
        (2, 9, "click", 60, 11),
    ]
    clicks = {
        "in their slate": 3,
        "without a request": 1,
        "of a request without impressions": 2,
        "on an item that their request did not show": 1,
    }
    events = log([*GOOD, *stray])
    assert clicks_explained(events) == clicks
    made = write_dataset(tmp_path / "d", tables_of(events), {"name": "s", "source": "made"})
    assert made.config["clicks"] == clicks and made.config["rows"]["events"] == events.num_rows
    assert noticed(made.config) == [
        "4 of 7 clicks label no impression: 2 of a request without impressions, "
        "1 on an item that their request did not show, 1 without a request"
    ]


def test_a_log_whose_clicks_all_miss_says_that_nothing_counts_as_clicked_and_one_of_clicks_alone_says_nothing():
    shown = [row for row in GOOD if row[2] == "impression"]
    missed = clicks_explained(log([*shown, (1, 1, "click", 5, None)]))
    said = noticed({"quarantined": {}, "clicks": missed})
    assert len(said) == 1 and "no impression counts as clicked" in said[0]
    assert clicks_explained(log([(1, 1, "click", 5, None)])) is None


def test_what_was_set_aside_is_printed_by_the_command_and_stands_in_the_report(tmp_path, monkeypatch, capsys):
    mixed = [(1, 1, "impression", 200, 13), (2, 1, "impression", 200, 13), (1, 3, "click", 300, 14)]
    config = {"name": "s", "source": "made"}
    monkeypatch.setitem(IMPORTERS, "slates", lambda folder: (tables_of(log([*GOOD, *mixed])), config))
    stages.dataset(Run(tmp_path, f"slates:{tmp_path}", "nano", 0, "embedded"))
    printed = capsys.readouterr().err
    assert "events: 2 set aside, in quarantine.parquet: 2 request of several users" in printed
    assert "request_scope=[user]" in printed
    assert "1 of 4 clicks label no impression: 1 of a request without impressions" in printed
    facts = import_facts(stages.open_dataset(Run(tmp_path, "", "nano", 0, "embedded")).artifact.config)
    assert facts["clicks in their slate"] == 3 and facts["clicks of a request without impressions"] == 1
    assert facts["order at equal times"] == HASH and facts["events"] == len(GOOD) + 1


EVENT = st.tuples(
    st.just(1),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["impression", "click", "cart"]),
    st.just(0),
    st.sampled_from([None, 0, 5, 6]),
)


@given(st.lists(EVENT, max_size=30))
@settings(max_examples=80, deadline=None)
def test_counting_agrees_with_a_plain_loop(rows):
    slates = {
        (request, item) for _, item, kind, _, request in rows if kind == "impression" and request is not None
    }
    counts = [0, 0, 0, 0]
    for _, item, kind, _, request in rows:
        if kind == "click":
            if request is None:
                counts[1] += 1
            elif (request, item) in slates:
                counts[0] += 1
            else:
                counts[2 + (request in {one for one, _ in slates})] += 1
    found = clicks_explained(log(rows))
    assert (None if found is None else list(found.values())) == (
        counts if any(kind == "impression" for _, _, kind, _, _ in rows) else None
    )


@given(st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_what_is_refused_agrees_with_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    rows = [
        (int(rng.integers(1, 3)) if rng.random() < 0.1 else 1, 1, ("impression", "click")[rng.integers(2)],
         int(rng.random() < 0.1), None if rng.random() < 0.2 else int(rng.integers(30)))
        for _ in range(40)
    ]  # fmt: skip
    rows += [(1, 1, "click", 0, request) for request in range(30, 90)]  # so that most requests are good
    bad = {
        request
        for request in range(30)
        if len({row[0] for row in rows if row[4] == request}) > 1
        or len({row[3] for row in rows if row[4] == request and row[2] == "impression"}) > 1
    }
    kept = check(tables_of(log(rows))).events["event_id"].to_pylist()
    assert kept == [number for number, row in enumerate(rows) if row[4] not in bad]
