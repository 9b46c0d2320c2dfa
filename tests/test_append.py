"""A dataset that grew day by day is the dataset of all files at once, and so is everything made from it.

Run: pytest tests/test_append.py
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from encoder_world import event
from hypothesis import given, settings
from hypothesis import strategies as st
from test_importers import article, picture, put, write

from dataset.adapters import globo, hm, movielens
from dataset.append import append
from dataset.contracts import EVENTS, DataError
from dataset.identity import IMPORTED
from dataset.importers import append_files, import_dataset
from dataset.tables import Dataset, write_dataset
from dataset.upsert import upserted
from run.artifacts import open_artifact

KEYS = {"items": "item_id", "images": "image_id", "users": "user_id"}
FIRST = date(2020, 9, 1)
ARTICLES = [f"0{100 + n}001" for n in range(12)]


def opened(folder: Path) -> Dataset:
    return Dataset.open(open_artifact(folder, "dataset"))


def hm_files(folder, articles=None, customers=None, sales=None, pictures=()):
    """Raw H&M files; None: the file is not there. ``sales`` are (day, customer, number of the article)."""
    folder.mkdir(parents=True, exist_ok=True)
    if articles is not None:
        write(folder / "articles.csv", hm.RAW_SCHEMAS["articles.csv"], articles)
    if customers is not None:
        rows = [{"customer_id": f"{n:064x}", "age": age} for n, age in customers]
        write(folder / "customers.csv", hm.RAW_SCHEMAS["customers.csv"], rows)
    if sales is not None:
        rows = [
            {"t_dat": FIRST + timedelta(days=d), "customer_id": f"{u:064x}", "article_id": ARTICLES[a]}
            for d, u, a in sales
        ]
        write(folder / "transactions_train.csv", hm.RAW_SCHEMAS["transactions_train.csv"], rows)
    for name, shade in pictures:
        put(folder / f"images/{name[:3]}/{name}.jpg", picture(shade))


def hm_growth(folder):
    """Two days and their union: new and changed articles, a new picture, new customers, one known by sales only."""
    rng = np.random.default_rng(0)
    first = [(int(rng.integers(5)), int(rng.integers(1, 9)), int(rng.integers(6))) for _ in range(60)]
    later = [(int(rng.integers(5, 9)), int(rng.integers(1, 12)), int(rng.integers(9))) for _ in range(40)]
    old = [article(ARTICLES[n]) for n in range(8)]
    changed = article(ARTICLES[2], prod_name="Another top", detail_desc=None)
    new = [article(ARTICLES[8])]
    shown, more = [(ARTICLES[0], 10), (ARTICLES[2], 20)], [(ARTICLES[0], 30), (ARTICLES[8], 40)]
    hm_files(folder / "1", old, [(1, 20.0), (2, None)], first, shown)
    hm_files(folder / "2", [old[0], changed, *new], [(2, 30.0), (30, 40.0)], later, more)
    hm_files(
        folder / "all",
        [*old[:2], changed, *old[3:], *new],
        [(1, 20.0), (2, 30.0), (30, 40.0)],
        [*first, *later],
        [*more, shown[1]],
    )
    return "hm_fashion"


def ml_growth(folder):
    """Two days of ratings, one film never rated on the first, one new, one with another title."""
    rng = np.random.default_rng(1)
    names = [f"Film {n} (1995)" for n in range(8)]
    movies = [{"movieId": n + 1, "title": name, "genres": "Crime"} for n, name in enumerate(names)]

    def rated(count, start, most):
        return [
            {
                "userId": int(rng.integers(1, 9)),
                "movieId": int(rng.integers(1, most)),
                "rating": 4.5,
                "timestamp": t,
            }
            for t in (start + rng.permutation(count * 3)[:count]).tolist()
        ]

    first, later = rated(50, 1_000_000_000, 6), rated(30, 1_000_001_000, 9)
    changed = {**movies[1], "title": "Film one again"}
    days = {
        "1": (movies[:7], first, [(1, 5)]),
        "2": ([changed, movies[7]], later, [(8, 9)]),
        "all": ([movies[0], changed, *movies[2:]], [*first, *later], [(1, 5), (8, 9)]),
    }
    for day, (films, ratings, shown) in days.items():
        write(folder / day / "movies.csv", movielens.RAW_SCHEMAS["movies.csv"], films)
        write(folder / day / "ratings.csv", movielens.RATING, ratings)
        for movie, shade in shown:
            put(folder / day / f"posters/{movie}.jpg", picture(shade))
    return "ml_posters"


def globo_growth(folder):
    """Clicks in the source's own order, a session that goes on over midnight, an article first read on day two."""
    rng = np.random.default_rng(2)
    names = ("user_id", "session_id", "article_id", "timestamp_ms")

    def clicks(count, start, users):
        user, at = rng.integers(1, users, count), start + np.sort(rng.integers(0, 40, count)) * 1000
        article = rng.integers(70, 70 + users, count)
        return [
            dict(zip(names, (int(u), int(u) + 10, int(a), int(t)), strict=True))
            for u, a, t in zip(user, article, at, strict=True)
        ]

    first, later = clicks(60, 1_506_826_800_000, 6), clicks(40, 1_506_826_839_000, 9)
    for day, rows in (("1", first), ("2", later), ("all", [*first, *later])):
        write(folder / day / "clicks.parquet", globo.SCHEMA, rows)
    return "scale_globo"


GROWTHS = {"hm": hm_growth, "ml": ml_growth, "globo": globo_growth}


def grown(growth, folder) -> tuple[Dataset, Dataset]:
    """The dataset that grew by a day, and that of all files at once."""
    name = GROWTHS[growth](folder / "raw")
    import_dataset(name, folder / "raw/1", folder / "dataset")
    append_files(name, folder / "raw/2", opened(folder / "dataset"))
    import_dataset(name, folder / "raw/all", folder / "whole")
    return opened(folder / "dataset"), opened(folder / "whole")


@pytest.mark.parametrize("growth", GROWTHS)
def test_a_dataset_that_grew_is_the_dataset_of_all_files_at_once(tmp_path, growth):
    grew, whole = grown(growth, tmp_path)
    assert grew.events.equals(whole.events) and len(grew.events) == len(whole.events) >= 80
    for name, key in KEYS.items():
        one, other = (getattr(dataset, name).sort_by(key) for dataset in (grew, whole))
        assert one.to_pylist() == other.to_pylist(), name
    config, expected = grew.artifact.config, whole.artifact.config
    for name in ("rows", "ties", "last_event_id", "first_seen"):
        assert config[name] == expected[name]
    assert [one["source"] for one in config["appended"]] == ["2"]


@pytest.mark.parametrize("growth", GROWTHS)
def test_the_same_files_again_are_counted_and_change_nothing(tmp_path, growth):
    grew, _ = grown(growth, tmp_path)
    name = GROWTHS[growth](tmp_path / "raw")
    for day in ("2", "all"):
        done = append_files(name, tmp_path / "raw" / day, grew)
        assert done.is_nothing and done.already_there == (40 if day == "2" else 100) - (growth == "ml") * (
            10 if day == "2" else 20
        )
        assert opened(tmp_path / "dataset").artifact.id == grew.artifact.id
    left = tmp_path / "dataset.previous"  # of an append that was killed when all was written
    left.mkdir()
    assert append_files(name, tmp_path / "raw" / day, grew).is_nothing and not left.exists()
    assert "nothing new" in done.told() and "events already there" in done.told()


def test_only_what_is_new_of_a_file_that_overlaps_is_added(tmp_path):
    hm_files(tmp_path / "1", [article(a) for a in ARTICLES], [], [(0, 1, 0), (0, 1, 0), (0, 2, 1)])
    hm_files(tmp_path / "2", sales=[(0, 1, 0), (0, 1, 0), (0, 1, 0), (0, 2, 1), (1, 2, 1)])
    import_dataset("hm_fashion", tmp_path / "1", tmp_path / "dataset")
    done = append_files("hm_fashion", tmp_path / "2", opened(tmp_path / "dataset"))
    assert (done.already_there, done.added["events"]) == (3, 2)
    days = [
        (row["event_time"].date() - FIRST).days for row in opened(tmp_path / "dataset").events.to_pylist()
    ]
    assert days == [0, 0, 0, 0, 1]


def test_a_late_event_takes_its_place_and_no_event_its_number(tmp_path):
    hm_files(
        tmp_path / "1", [article(a) for a in ARTICLES], [], [(3, 1, 0), (5, 2, 1), (5, 3, 11), (9, 2, 2)]
    )
    hm_files(tmp_path / "2", sales=[(4, 1, 3)])
    import_dataset("hm_fashion", tmp_path / "1", tmp_path / "dataset")
    before = {row["event_id"]: row for row in opened(tmp_path / "dataset").events.to_pylist()}
    append_files("hm_fashion", tmp_path / "2", opened(tmp_path / "dataset"))
    events = opened(tmp_path / "dataset").events.to_pylist()
    assert [row["event_id"] for row in events if row["event_id"] in before] == list(before)
    assert all(row == before[row["event_id"]] for row in events if row["event_id"] in before)
    assert [(row["event_time"].date() - FIRST).days for row in events] == [3, 4, 5, 5, 9]
    assert events[1]["event_id"] == IMPORTED + 5


def test_an_item_that_comes_without_its_picture_and_a_user_without_age_keep_them(tmp_path):
    hm_files(tmp_path / "1", [article(ARTICLES[0])], [(1, 33.0)], [(0, 1, 0)], [(ARTICLES[0], 7)])
    hm_files(tmp_path / "2", [article(ARTICLES[0], prod_name="New name")], [(1, None)], [(1, 1, 0)])
    import_dataset("hm_fashion", tmp_path / "1", tmp_path / "dataset")
    before = opened(tmp_path / "dataset")
    append_files("hm_fashion", tmp_path / "2", before)
    (item,), (user,) = (
        getattr(opened(tmp_path / "dataset"), name).to_pylist() for name in ("items", "users")
    )
    assert item == {**before.items.to_pylist()[0], "title": "New name"} and item["image_id"] is not None
    assert user["age"] == 33.0


def test_an_event_under_a_used_id_is_set_aside_and_the_same_event_is_counted(tmp_path):
    hm_files(tmp_path / "1", [article(a) for a in ARTICLES], [], [(0, 1, 0), (0, 2, 1)])
    hm_files(tmp_path / "2", sales=[(0, 1, 0), (0, 2, 1), (4, 3, 2), (5, 3, 3)])
    import_dataset("hm_fashion", tmp_path / "1", tmp_path / "dataset")
    dataset = opened(tmp_path / "dataset")
    tables, config = hm.hm_fashion(tmp_path / "2", some=True)
    numbers = pa.array(
        [IMPORTED + one for one in (1, 2, 2, 3)]
    )  # as sent by a source that names its events; the third is another event
    tables = replace(tables, events=tables.events.set_column(0, tables.events.field(0), numbers))
    done = append(dataset, tables, {**config, "event_ids": "given"}, "2")
    assert (done.already_there, done.added["events"], done.refused) == (2, 1, 1)
    after = opened(tmp_path / "dataset")
    assert after.events.column("event_id").to_pylist() == [IMPORTED + one for one in (1, 2, 3)]
    assert after.quarantine.select(["rule", "value"]).to_pylist() == [
        {"rule": "another event has this event_id", "value": str(IMPORTED + 2)}
    ]


def test_new_files_do_not_change_what_ids_are_to_clients(tmp_path):
    def named(tables, names):
        """The tables with other names of the users."""
        place = tables.users.column_names.index("external_id")
        return replace(
            tables, users=tables.users.set_column(place, tables.users.field(place), names(tables.users))
        )

    def digits(users):
        return users.column("user_id").cast(pa.string())

    hm_files(tmp_path / "1", [article(a) for a in ARTICLES], [(1, 30.0)], [(0, 1, 0)])
    tables, config = hm.hm_fashion(tmp_path / "1")
    write_dataset(tmp_path / "dataset", named(tables, digits), config)
    dataset = opened(tmp_path / "dataset")
    kinds = dataset.artifact.config["ids"]
    assert (kinds["item_id"], kinds["user_id"], kinds["event_id"]) == ("text", "int64", "any")
    hm_files(tmp_path / "2", [], [(2, 40.0)], [(1, 2, 0)])
    tables, config = hm.hm_fashion(tmp_path / "2", some=True)
    with pytest.raises(DataError, match="users: expected ids of the kind int64, as is stated, found text"):
        append(dataset, tables, config, "2")
    assert opened(tmp_path / "dataset").artifact.id == dataset.artifact.id
    append(dataset, named(tables, digits), config, "2")
    after = opened(tmp_path / "dataset")
    assert after.artifact.config["ids"] == kinds and len(after.users) == 2


def shown(number, user, item, hour, request):
    at = datetime(2020, 9, 2, hour, tzinfo=UTC)
    return event(number, user, item, at, type="impression", request_id=request, position=0)


def ids_of(folder):
    return sorted(opened(folder).events["event_id"].to_pylist())


def test_a_request_that_is_there_is_not_another_users(tmp_path):
    hm_files(tmp_path / "1", [article(a) for a in ARTICLES], [(1, 20.0), (2, 20.0)], [(0, 1, 0)])
    tables, config = hm.hm_fashion(tmp_path / "1")
    users, items = (tables.users["user_id"].to_pylist(), tables.items["item_id"].to_pylist())
    first = [shown(1, users[0], items[0], 5, 7), shown(2, users[0], items[1], 5, 7)]
    write_dataset(tmp_path / "d", replace(tables, events=pa.Table.from_pylist(first, EVENTS)), config)
    new = [
        shown(3, users[0], items[2], 5, 7),
        shown(4, users[1], items[3], 6, 8),
        shown(5, users[0], items[3], 6, 9),
    ]
    other = [*new, {**shown(6, users[1], items[4], 6, 9)}, shown(7, users[1], items[5], 6, 10)]
    given = {**config, "event_ids": "given"}
    done = append(
        opened(tmp_path / "d"), replace(tables, events=pa.Table.from_pylist(other, EVENTS)), given, "2"
    )
    assert ids_of(tmp_path / "d") == [1, 2, 3, 4, 7] and done.refused == 2
    mixed = [
        shown(8, users[1], items[5], 9, 7),
        shown(9, users[1], items[5], 8, 11),
        shown(10, users[0], items[0], 8, 12),
    ]
    append(opened(tmp_path / "d"), replace(tables, events=pa.Table.from_pylist(mixed, EVENTS)), given, "3")
    after = opened(tmp_path / "d")
    assert ids_of(tmp_path / "d") == [1, 2, 3, 4, 7, 9, 10]  # what was there stays
    entries = after.quarantine.select(["rule", "row"]).to_pylist()
    assert entries == [{"rule": "request of several users", "row": row} for row in (2, 3, 0)]


def test_files_that_do_not_fit_leave_the_dataset_as_it_was(tmp_path):
    hm_files(tmp_path / "1", [article(a) for a in ARTICLES[:4]], [], [(0, 1, 0), (0, 2, 1)])
    import_dataset("hm_fashion", tmp_path / "1", tmp_path / "dataset")
    before = opened(tmp_path / "dataset")
    hm_files(tmp_path / "empty")
    with pytest.raises(DataError, match="missing"):
        append_files("hm_fashion", tmp_path / "empty", before)
    hm_files(tmp_path / "strange", sales=[(1, 1, 0), (1, 1, 7), (1, 1, 8)])
    with pytest.raises(DataError, match="found 2 of 3 .2 unknown item_id"):
        append_files("hm_fashion", tmp_path / "strange", before)
    hm_files(tmp_path / "renamed", [article(ARTICLES[0][1:])])
    with pytest.raises(DataError, match="stand for two: '0100001' and '100001'"):
        append_files("hm_fashion", tmp_path / "renamed", before)
    assert opened(tmp_path / "dataset").artifact.id == before.artifact.id


def test_an_event_refused_for_its_item_comes_with_the_file_that_brings_the_item(tmp_path):
    hm_files(tmp_path / "1", [article(a) for a in ARTICLES[:4]], [], [(0, 1, 0), (0, 2, 1), (0, 2, 5)])
    hm_files(tmp_path / "2", [article(ARTICLES[5])], None, [(0, 1, 0), (0, 2, 1), (0, 2, 5)])
    import_dataset("hm_fashion", tmp_path / "1", tmp_path / "dataset")
    done = append_files("hm_fashion", tmp_path / "2", opened(tmp_path / "dataset"))
    assert (done.already_there, done.added["events"]) == (2, 1)
    assert len(opened(tmp_path / "dataset").events) == 3


def test_a_simulated_shop_does_not_grow(tmp_path):
    hm_files(tmp_path / "1", [article(ARTICLES[0])], [], [(0, 1, 0)])
    tables, config = hm.hm_fashion(tmp_path / "1")
    truth = pa.table({"event_id": [1], "click_probability": pa.array([0.5], pa.float32())})
    write_dataset(tmp_path / "dataset", replace(tables, truth=truth), config)
    with pytest.raises(DataError, match="found a simulated shop"):
        append(opened(tmp_path / "dataset"), tables, config, "again")


@settings(max_examples=25, deadline=None)
@given(
    old=st.dictionaries(st.integers(0, 30), st.integers(0, 3), max_size=20),
    new=st.dictionaries(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 3)), max_size=20),
)
def test_rows_are_replaced_or_added_as_in_a_dictionary(old, new):
    schema = pa.schema([("id", pa.int64()), ("value", pa.int64())])
    one, other = (pa.table([list(part), list(part.values())], schema=schema) for part in (old, new))
    table, added, changed = upserted(one, other, ["id"], ["value"])
    said = {key: old.get(key) if value is None else value for key, value in new.items()}
    expected = old | said
    assert dict(zip(*table.to_pydict().values(), strict=True)) == expected
    assert list(table["id"].to_pylist()) == list(expected)
    assert added == len(new.keys() - old.keys())
    assert changed == sum(expected[key] != old[key] for key in old)


def test_a_day_at_a_time_is_the_same_whatever_the_days_hold(tmp_path):
    rng = np.random.default_rng(3)
    sales = [
        (int(d), int(rng.integers(1, 7)), int(rng.integers(12))) for d in np.sort(rng.integers(0, 6, 80))
    ]
    whole = [article(a) for a in ARTICLES]
    hm_files(tmp_path / "all", whole, [], sales)
    import_dataset("hm_fashion", tmp_path / "all", tmp_path / "whole")
    hm_files(tmp_path / "0", whole, [], [one for one in sales if one[0] == 0])
    import_dataset("hm_fashion", tmp_path / "0", tmp_path / "dataset")
    for day in range(1, 6):
        hm_files(tmp_path / f"{day}", sales=[one for one in sales if one[0] == day])
        append_files("hm_fashion", tmp_path / f"{day}", opened(tmp_path / "dataset"))
    grew, at_once = opened(tmp_path / "dataset"), opened(tmp_path / "whole")
    assert grew.events.equals(at_once.events)
    assert grew.users.sort_by("user_id").equals(at_once.users.sort_by("user_id"))
