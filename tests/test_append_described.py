"""New files under a ``moon.toml`` join the dataset as those of a known format do, with their left-over columns.

Run: pytest tests/test_append_described.py
"""

from __future__ import annotations

import pytest

from dataset.adapters.canonical import NO_CLOCK
from dataset.contracts import DataError
from dataset.identity import event_key
from dataset.importers import append_described, import_path
from dataset.tables import Dataset, noticed
from moon import journey, stages
from run.artifacts import open_artifact
from run.folder import JourneyError

TOML = """
[data]
name = "shop"

[[items]]
files = ["items/*.csv"]
id = "sku"
title = "name"
price = "price"

[[users]]
files = ["users.csv"]
id = "user"
age = "age"

[[events]]
files = ["log/*.csv"]
user = "user"
item = "sku"
time = "time"
type = "click"
context = ["device"]
"""
HEADS = {"items": "sku,name,price,brand", "users": "user,age,town", "log": "user,sku,time,device"}
FIRST = {
    "items": ["A1,red lamp,3,Lux", "B2,oak chair,4,Wood", "C3,tall shelf,5,Wood"],
    "users": ["ann,30,Bonn", "bob,40,Kiel"],
    "log": [
        f"{'ann bob eve'.split()[n % 3]},{'A1 B2 X9'.split()[n % 3]},2024-03-{n + 1:02d}T10:00:00Z,phone"
        for n in range(9)
    ],
}  # fmt: skip
LATER = {
    "items": [
        "B2,oak chair,6,Oak",
        "X9,blue rug,7,Rug",
        "D4,clock,8,Tick",
    ],  # changed; known by the log alone; new
    "users": ["bob,41,Ulm", "kim,20,Bonn"],
    "log": [
        "ann,C3,2024-03-20T10:00:00Z,tablet",  # an item that the new files do not list
        "zoe,A1,2024-03-21T10:00:00Z,phone",
        "kim,Z7,2024-03-21T11:00:00Z,phone",
        "bob,D4,2024-03-22T10:00:00Z,phone",
    ],
}


NOTHING = {"items": [], "users": []}


def write(folder, *days, toml=True):
    for name, place in (("items", "items/{}.csv"), ("users", "users.csv"), ("log", "log/{}.csv")):
        for number, day in enumerate(days):
            rows = [row for one in days for row in one[name]] if "{}" not in place else day.get(name, [])
            if rows:
                path = folder / place.format(number + len(str(folder)))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join([HEADS[name], *rows]) + "\n")
    if toml:
        (folder / "moon.toml").write_text(TOML)
    return folder


def opened(path):
    return Dataset.open(open_artifact(path, "dataset"))


def rows(table, key):
    return sorted((row for row in table.to_pylist()), key=lambda row: row[key])


@pytest.fixture
def grew(tmp_path):
    import_path(write(tmp_path / "first", FIRST), tmp_path / "dataset")
    later = write(tmp_path / "later", LATER, toml=False)
    done = append_described(tmp_path / "first", later, opened(tmp_path / "dataset"))
    assert done.added["events"] == 4 and done.changed["items"] == 2
    return opened(tmp_path / "dataset")


def test_files_under_a_description_join_as_if_they_had_been_there(grew, tmp_path):
    whole = Dataset.open(import_path(write(tmp_path / "all", FIRST, LATER), tmp_path / "whole"))
    for name, key in (("items", "item_id"), ("users", "user_id"), ("events", "event_id")):
        assert rows(getattr(grew, name), key) == rows(getattr(whole, name), key), name
    assert len(grew.items) == 6 and len(grew.users) == 5
    assert grew.extra.keys() == whole.extra.keys() == {"item", "user", "event"}
    for entity, table in grew.extra.items():
        assert rows(table, f"{entity}_id") == rows(whole.extra[entity], f"{entity}_id"), entity
    assert sorted(grew.extra["item"]["brand"].to_pylist()) == ["Lux", "Oak", "Rug", "Tick", "Wood"]
    assert grew.artifact.config["extra"] == whole.artifact.config["extra"]


def test_an_item_that_only_the_log_names_keeps_what_is_known_of_it(grew):
    titles = dict(zip(grew.items["external_id"].to_pylist(), grew.items["title"].to_pylist(), strict=True))
    assert titles == {
        "A1": "red lamp", "B2": "oak chair", "C3": "tall shelf", "X9": "blue rug", "D4": "clock", "Z7": None
    }  # fmt: skip


def test_any_of_the_files_may_be_missing_but_not_all(grew, tmp_path):
    write(
        tmp_path / "more",
        {"log": ["ann,B2,2024-03-23T10:00:00Z,phone"], "items": [], "users": []},
        toml=False,
    )
    done = append_described(tmp_path / "first", tmp_path / "more", grew)
    assert done.told() == "1 new events; 0 events already there"
    assert append_described(tmp_path / "first", tmp_path / "more", opened(tmp_path / "dataset")).is_nothing
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="expected some of the files .'items/..csv', 'users.csv'"):
        append_described(tmp_path / "first", tmp_path / "none", grew)


def test_a_left_over_column_that_alone_has_changed_is_news(grew, tmp_path):
    other = write(tmp_path / "more", {"items": ["A1,red lamp,3,Shine"], "users": [], "log": []}, toml=False)
    done = append_described(tmp_path / "first", other, grew)
    assert done.told() == "1 changed left-over columns; 0 events already there"
    brands = opened(tmp_path / "dataset").extra["item"]["brand"].to_pylist()
    assert sorted(brands) == ["Oak", "Rug", "Shine", "Tick", "Wood"]
    (other / "items/0.csv").unlink(missing_ok=True)
    for path in (other / "items").iterdir():
        path.write_text("sku,name,price\nA1,red lamp,9\n")
    append_described(tmp_path / "first", other, opened(tmp_path / "dataset"))
    after = opened(tmp_path / "dataset")
    assert sorted(after.extra["item"]["brand"].to_pylist()) == sorted(brands)
    assert 9.0 in after.items["price"].to_pylist()
    for path in (other / "items").iterdir():
        path.write_text("sku,name,price,made\nA1,red lamp,9,Rome\n")
    append_described(tmp_path / "first", other, after)
    extra = opened(tmp_path / "dataset").extra["item"].to_pylist()
    assert [(row["brand"], row["made"]) for row in extra if row["made"]] == [("Shine", "Rome")]
    assert len(extra) == len(brands)


def test_items_that_say_when_they_were_first_there_say_so_whatever_is_appended(tmp_path):
    dated = {
        **FIRST,
        "items": [f"{row},2024-02-0{n + 1}T00:00:00Z" for n, row in enumerate(FIRST["items"])],
    }
    folder = write(tmp_path / "first", dated)
    for path in (folder / "items").iterdir():
        path.write_text(path.read_text().replace("brand", "brand,since"))
    toml = TOML.replace('price = "price"', 'price = "price"\nfirst_seen = "since"')
    (folder / "moon.toml").write_text(toml)
    before = Dataset.open(import_path(folder, tmp_path / "dataset"))
    write(tmp_path / "more", {"log": LATER["log"][:1], "items": [], "users": []}, toml=False)
    append_described(folder, tmp_path / "more", before)
    after = opened(tmp_path / "dataset")
    assert len(after.events) == 10
    assert rows(after.items.select(["item_id", "first_seen"]), "item_id") == rows(
        before.items.select(["item_id", "first_seen"]), "item_id"
    )


def test_without_times_what_is_appended_was_there_from_the_start(tmp_path):
    def untimed(files):
        return {**files, "log": [",".join(row.split(",")[:2]) for row in files["log"]]}

    folders = [write(tmp_path / name, untimed(one)) for name, one in (("first", FIRST), ("later", LATER))]
    for folder in folders:
        (folder / "moon.toml").write_text(
            TOML.replace('time = "time"\n', "").replace('context = ["device"]\n', "")
        )
        for path in (folder / "log").iterdir():
            path.write_text(path.read_text().replace(",time,device", ""))
    before = Dataset.open(import_path(folders[0], tmp_path / "dataset"))
    append_described(folders[0], folders[1], before)
    after = opened(tmp_path / "dataset")
    assert len(after.items) == 6 and len(after.users) == 5
    for table in (after.items, after.users):
        assert set(table["first_seen"].to_pylist()) == {NO_CLOCK}


def test_files_are_not_appended_under_another_description(grew, tmp_path):
    (tmp_path / "first" / "moon.toml").write_text(TOML.replace('price = "price"\n', ""))
    with pytest.raises(DataError, match="expected the description that the dataset was imported under"):
        append_described(tmp_path / "first", tmp_path / "later", grew)


def test_the_journey_appends_under_the_runs_description_and_never_imports_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journey, "STAGES", journey.STAGES[:1])
    write(tmp_path / "first", FIRST)
    write(tmp_path / "later", LATER, toml=False)
    run = journey.start(str(tmp_path / "first"), tmp_path / "run", "nano", 0, "embedded")
    journey.travel(run)
    assert "4 new events" in journey.do(run, "dataset --append", folders=[tmp_path / "later"])
    (tmp_path / "first" / "moon.toml").write_text(TOML.replace('price = "price"\n', ""))
    with pytest.raises(JourneyError, match="found 1 appended sources in it"):
        journey.travel(run)
    assert len(stages.open_dataset(run).events) == 13
    (tmp_path / "first" / "moon.toml").write_text(TOML)
    journey.travel(run)
    assert len(stages.open_dataset(run).events) == 13


NAMED = """
[data]
name = "shop"
ids = { item = "text", user = "integer" }

[[events]]
files = ["log.csv"]
id = "event"
user = "user"
item = "sku"
time = "time"
type = "impression"
clicked = "clicked"
"""


def test_events_with_ids_of_their_own_are_known_again_by_them(tmp_path):
    head, first = "event,user,sku,time,clicked", "7,1,1,2024-03-01T10:00:00Z,1"
    second, third = "b-8,2,2,2024-03-02T10:00:00Z,0", "9,1,2,2024-03-03T10:00:00Z,0"
    for day, rows in (
        ("1", [first, second]),
        ("2", [first, third, "b-8,2,1,2024-03-04T10:00:00Z,0"]),
    ):
        (tmp_path / day).mkdir()
        (tmp_path / day / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    (tmp_path / "1/moon.toml").write_text(NAMED)
    dataset = Dataset.open(import_path(tmp_path / "1", tmp_path / "d"))
    assert dataset.artifact.config["event_ids"] == "given"
    kinds = dataset.artifact.config["ids"]
    assert (kinds["item_id"], kinds["user_id"]) == ("text", "integer")  # though all are small integers so far
    keys = {"7": 7, "click of 7": event_key("click", 7), "b-8": event_key("", "b-8")}
    assert set(dataset.events["event_id"].to_pylist()) == set(keys.values())
    done = append_described(tmp_path / "1", tmp_path / "2", dataset)
    assert (done.already_there, done.added["events"], done.refused) == (2, 1, 1)
    after = Dataset.open(open_artifact(tmp_path / "d", "dataset"))
    assert set(after.events["event_id"].to_pylist()) == {*keys.values(), 9}
    (other,) = after.quarantine.to_pylist()
    assert other["rule"] == "another event has this event_id"


def test_an_id_in_one_log_of_two_is_refused(tmp_path):
    other = '[[events]]\nfiles = ["b.csv"]\nuser = "user"\nitem = "sku"\ntime = "time"\ntype = "click"\n'
    (tmp_path / "moon.toml").write_text(NAMED + other)
    with pytest.raises(DataError, match="expected an id in every table \\[\\[events\\]\\], or in none"):
        import_path(tmp_path, tmp_path / "d")


def test_types_that_the_description_does_not_list_are_named_with_where_to_list_them(tmp_path):
    """Of an import and of files that are appended; also where so many rows are of them that all is refused."""
    toml = TOML.replace('type = "click"', 'type_column = "device"\ntypes = { phone = "click" }').replace(
        'context = ["device"]\n', ""
    )
    folder = write(tmp_path / "first", {**FIRST, "log": [*FIRST["log"], "ann,A1,2024-03-19T10:00:00Z,wink"]})
    (folder / "moon.toml").write_text(toml)
    dataset = Dataset.open(import_path(folder, tmp_path / "dataset"))
    said = "1 types of events are not among 'types' of moon.toml, first 'wink' (1 rows): list them there as "
    assert any(line.startswith(said) for line in noticed(dataset.artifact.config))
    clicks = [f"ann,B2,2024-03-2{n}T10:00:00Z,phone" for n in range(4)]
    later = write(
        tmp_path / "later", {**NOTHING, "log": [*clicks, "bob,B2,2024-03-25T10:00:00Z,nod"]}, toml=False
    )
    told = append_described(folder, later, dataset).told()
    assert "4 new events" in told and "1 unknown type" in told
    assert "'types' of moon.toml, first 'nod' (1 rows)" in told and "import everything anew" in told
    nods = [f"ann,C3,2024-04-2{n}T10:00:00Z,nod" for n in range(4)]
    worse = write(tmp_path / "worse", {**NOTHING, "log": nods}, toml=False)
    with pytest.raises(DataError, match=r"at most 50%.*'types' of moon.toml, first 'nod' \(4 rows\)"):
        append_described(folder, worse, opened(tmp_path / "dataset"))


def test_a_refused_day_names_its_folder_and_another_append_as_the_next_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "first", FIRST)
    monkeypatch.setattr(journey, "STAGES", journey.STAGES[:1])
    run = journey.start(str(tmp_path / "first"), tmp_path / "run", "nano", 0, "embedded")
    journey.travel(run)
    day = tmp_path / "day"
    (day / "log").mkdir(parents=True)
    (day / "log" / "1.csv").write_text("user,sku,device\nann,A1,phone\n")
    (tmp_path / "none").mkdir()
    for folder in (day, tmp_path / "none"):
        with pytest.raises(DataError) as refused:
            journey.do(run, "dataset --append", folders=[folder])
        assert str(refused.value).startswith(f"{folder}: not appended. ")
        assert str(refused.value).endswith(
            f"Then run 'moon dataset --run {run.folder} --append {folder}' again."
        )
        assert "'moon dataset'" not in str(refused.value)
    assert len(stages.open_dataset(run).events) == 9
