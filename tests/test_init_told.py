"""``moon init`` on logs whose rows tell several things at once: skipped, clicked, bought, and in which search.

Run: pytest tests/test_init_told.py
"""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import folder_world as world
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_init import imported
from test_init_rough import proposed

from dataset.adapters.described.description import Events
from dataset.contracts import EVENTS, TIME
from dataset.extra import gone_before
from dataset.split import Split, split_dataset
from evaluation.run import answerable
from feature_repo.ingest.item_states import changes, set_state, withdraw, withdrawn
from moon import stages
from moon.describing import init
from retrieval.index import ItemIndex
from retrieval.repeats import RepeatsSource
from retrieval.requests import Request, Requests, history_of
from retrieval.retriever import Parts, Retriever
from retrieval.taken import Taken
from run.artifacts import open_artifact
from run.folder import Run

DAY = "2025-03-{:02d}T10:{:02d}:00Z"


def plays(draw, count=900):
    """A player's log: users by their names, and whether a play was skipped; by a plan that a loop can count."""
    return [
        {
            "ts": DAY.format(1 + number % 28, number % 60),
            "username": f"listener{number % 31}",
            "track_uri": f"tr:{draw.randrange(world.ITEMS):04d}",
            "ms_played": 1000 * number,
            "skipped": draw.random() < 0.4,
        }
        for number in range(count)
    ]


def test_a_play_that_was_skipped_is_no_click(tmp_path):
    rows = plays(random.Random(3))
    folder = tmp_path / "player"
    world.put_lines(folder / "plays.jsonl", rows)
    found = proposed(folder)["events", "plays.jsonl"]
    assert (found["user"], found["type"], found["skipped"]) == ("username", "impression", "skipped")
    events = imported(folder).events
    truth = Counter("click" for row in rows if not row["skipped"]) + Counter({"impression": len(rows)})
    assert Counter(events["type"].to_pylist()) == truth
    clicks = events.filter(pc.equal(events["type"], "click"))
    shown = events.filter(pc.equal(events["type"], "impression"))
    assert set(clicks["request_id"].to_pylist()) <= set(shown["request_id"].to_pylist())


def test_a_search_that_was_made_is_a_request_and_its_words_are_the_query(tmp_path):
    """Several searches share their words; every row says whether it was clicked, and whether it was bought."""
    draw, rows = random.Random(4), []
    for search in range(120):
        for place, item in enumerate(draw.sample(range(world.ITEMS), 6), 1):
            clicked = draw.random() < 0.3
            rows.append(
                {
                    "search_id": 7000 + search,
                    "searched_at": DAY.format(1 + search % 28, search % 60),
                    "customer_id": search % 17,
                    "search_term": f"{world.ADJECTIVES[search % 5]} {world.NOUNS[search % 3]}",
                    "product_id": item,
                    "rank": place,
                    "clicked": int(clicked),
                    "purchased": int(clicked and draw.random() < 0.5),
                }
            )
    folder = tmp_path / "searches"
    world.put_csv(folder / "searches.csv", rows)
    found = proposed(folder)["events", "searches.csv"]
    assert {key: found.get(key) for key in ("request", "query", "query_text", "clicked", "bought", "position")} == {
        "request": "search_id", "query": None, "query_text": "search_term", "clicked": "clicked",
        "bought": "purchased", "position": "rank",
    }  # fmt: skip
    dataset = imported(folder)
    assert len(dataset.queries) == len({row["search_term"] for row in rows})
    assert len(pc.unique(dataset.events["request_id"])) == 120
    truth = Counter({"impression": len(rows)})
    for kind, column in (("click", "clicked"), ("purchase", "purchased")):
        truth[kind] = sum(row[column] for row in rows)
    assert Counter(dataset.events["type"].to_pylist()) == truth


def test_ids_of_queries_stay_ids_of_queries(tmp_path):
    """An id for each wording, whoever asks: a query, and no request."""
    draw = random.Random(5)
    rows = [
        {
            "query_id": (query := draw.randrange(20)),
            "query": f"{world.ADJECTIVES[query % 10]} {world.NOUNS[query % 6]} {query}",
            "customer_id": draw.randrange(30),
            "product_id": draw.randrange(world.ITEMS),
            "time": DAY.format(1 + number % 28, number % 60),
        }
        for number in range(600)
    ]
    world.put_csv(tmp_path / "clicks.csv", rows)
    found = proposed(tmp_path)["events", "clicks.csv"]
    assert (found.get("query"), found.get("request")) == ("query_id", None)


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ({"looked": "click", "bought": "purchase"}, ("Anna Berg", "Jo van Dam")),
        ({"ansehen": "click", "warenkorb": "cart", "kauf": "purchase"}, ("K 1", "K 2")),
        ({"view": "click", "sold": "purchase", "reserved": "purchase"}, ("u1", "u2")),
    ],
    ids=["persons", "german", "second-hand"],
)
def test_who_is_called_by_name_and_what_was_done_in_their_words(tmp_path, words, kinds):
    draw = random.Random(6)
    rows = [
        {
            "date": f"{1 + number % 28:02d}.03.2025 10:{number % 60:02d}",
            "client": f"{kinds[number % 2]} {number % 23}",
            "sku": f"T-{draw.randrange(world.ITEMS):02d}",
            "what": draw.choice(list(words)),
        }
        for number in range(500)
    ]
    world.put_csv(tmp_path / "log.csv", rows, delimiter=";")
    found = proposed(tmp_path)["events", "log.csv"]
    assert (found["user"], found["type_column"], found["types"]) == ("client", "what", words)


def test_a_column_of_kinds_in_unknown_words_is_pointed_at(tmp_path):
    rows = [
        {"user": number % 20, "item": number % 47, "time": DAY.format(1 + number % 28, 0), "event": kind}
        for number, kind in enumerate("abcd" * 100)
    ]
    world.put_csv(tmp_path / "log.csv", rows)
    proposed(tmp_path)
    line = next(one for one in (tmp_path / "moon.toml").read_text().splitlines() if one.startswith("type = "))
    assert "NOT SURE" in line and "'event' may, in words not known: a, b, c, d" in line


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"type": "click", "skipped": "s"}, "beside clicked or skipped"),
        ({"type": "impression", "skipped": "s", "clicked": "c"}, "either clicked or skipped"),
        ({"type": "cart", "bought": "b"}, "beside bought"),
    ],
)
def test_what_a_row_cannot_tell_is_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        Events(files=["a"], user="u", item="i", **keys)


@pytest.fixture
def flea_market(tmp_path):
    """Things of which there is one each: listed on a day, sold on another or not yet."""
    draw, things, rows = random.Random(7), [], []
    for item in range(world.ITEMS):
        day = 1 + item % 20
        sold = DAY.format(day + 5, 30) if item % 3 else ""
        status = "sold" if sold else "active"
        things.append({"id": item, "title": world.title(item), "listed_at": DAY.format(day, 0), "sold_at": sold,
                       "status": status, "brand": "AB"[item % 2]})  # fmt: skip
        rows += [{"user": draw.randrange(30), "listing": item, "at": DAY.format(day + draw.randrange(5), 20)}
                 for _ in range(9)]  # fmt: skip
    world.put_csv(tmp_path / "market" / "listings.csv", things)
    world.put_csv(tmp_path / "market" / "views.csv", sorted(rows, key=lambda row: row["at"]))
    return tmp_path / "market"


def test_what_is_sold_is_gone_and_its_status_describes_nothing(flea_market):
    found = proposed(flea_market)["items", "listings.csv"]
    assert (found["gone"], found["first_seen"], found["attributes"]) == ("sold_at", "listed_at", ["brand"])
    dataset = imported(flea_market)
    external = dict(
        zip(dataset.items["item_id"].to_pylist(), dataset.items["external_id"].to_pylist(), strict=True)
    )
    for day in (1, 12, 28):
        moment = datetime(2025, 3, day, 10, 30, tzinfo=UTC)
        truth = {item for item in range(world.ITEMS) if item % 3 and 1 + item % 20 + 5 <= day}
        assert {int(external[item]) for item in gone_before(dataset.artifact, moment).tolist()} == truth


def test_what_is_gone_is_no_candidate_of_a_later_test(flea_market, tmp_path):
    dataset = imported(flea_market)
    split = Split.open(split_dataset(dataset, tmp_path / "split", by="time"))
    gone = set(gone_before(dataset.artifact, split.test_from).tolist())
    seen = dataset.items.filter(pc.less(dataset.items["first_seen"], pa.scalar(split.test_from, TIME)))
    assert gone and set(answerable(dataset, split).tolist()) == set(seen["item_id"].to_pylist()) - gone


def test_a_run_has_what_is_gone_out_of_stock(flea_market, tmp_path, monkeypatch):
    monkeypatch.setattr("feature_repo.store.activate", lambda _: None)
    init(flea_market)
    run = Run(tmp_path / "run", str(flea_market), "nano", 0, "embedded")
    for stage in (stages.dataset, stages.split, stages.store):
        stage(run)
    dataset, split = stages.open_dataset(run), stages.open_split(run)
    gone = gone_before(dataset.artifact, split.end).tolist()
    assert gone and withdrawn(run.folder / "store") == dict.fromkeys(gone, "out_of_stock")


def test_withdrawing_leaves_what_somebody_said_of_an_item(tmp_path):
    (tmp_path / "data").mkdir()
    now = datetime(2025, 3, 1, tzinfo=UTC)
    for state in ("inactive", "active"):  # 1: put back by hand
        set_state(tmp_path, 1, state, now)
    set_state(tmp_path, 2, "inactive", now)
    before = changes(tmp_path)
    withdraw(tmp_path, np.array([1, 2, 3]), now)
    assert withdrawn(tmp_path) == {2: "inactive", 3: "out_of_stock"} and changes(tmp_path) > before


@pytest.mark.parametrize("repeats", [False, True])
def test_no_source_is_asked_for_what_is_gone_at_its_request(repeats, tmp_path):
    """Of two requests the second may not have what goes between them; what goes later both may have."""
    second_us = np.array([5, 15, 25], np.int64) * 1_000_000
    taken = Taken.of(EVENTS.empty_table(), half_life=1.0 if repeats else None)
    replace(taken, gone_item_id=np.array([7, 8, 9]), gone_us=second_us).save(tmp_path / "taken", {}, {})
    kept = Taken.open(open_artifact(tmp_path / "taken", "taken"))
    again = (RepeatsSource(kept, 1.0, None),) if repeats else ()
    parts = Parts(None, None, None, None, None, taken=kept)
    index = ItemIndex.build(np.arange(10), np.eye(10, dtype=np.float32))
    retriever = Retriever(index, None, again, None, None, {}, parts=parts)
    times = [datetime.fromtimestamp(second, UTC) for second in (10, 20)]
    asked = Requests.of([Request(1, history_of([3]), time) for time in times])
    own = [] if repeats else [3]
    assert [one.tolist() for one in retriever.asking(asked).exclude] == [[*own, 7], [*own, 7, 8]]
    fewer = replace(
        retriever, index=index.without(np.array([7]))
    )  # what is not returned at all need not be named
    assert [one.tolist() for one in fewer.asking(asked).exclude] == [own, [*own, 8]]
