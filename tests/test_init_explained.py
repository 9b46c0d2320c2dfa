"""``moon init`` where tables explain each other's ids, or items have no id at all; and what the import makes of it.

Run: pytest tests/test_init_explained.py
"""

import folder_world as world
import folder_world_nested as nested
import pytest
from test_init import imported, sections

from dataset.importers import import_path
from dataset.tables import Dataset
from moon.describing import init


def ratings(seed, item="movieId", start=1):
    return [
        {
            "userId": user + 1,
            item: number + start,
            "rating": number % 5 + 1,
            "timestamp": int(time.timestamp()),
        }
        for _, user, visit in nested.visits(seed)
        for number, time in visit
    ]


def by_id(dataset):
    return {row["external_id"]: row for row in dataset.items.to_pylist()}


def test_a_table_between_two_numberings_leads_to_the_titles(tmp_path):
    """The Movies Dataset: ratings have one id, films another, and links both, as fractions."""
    world.put_csv(tmp_path / "ratings_small.csv", ratings(51))
    genre = [[{"id": 16, "name": noun.title()}, {"id": 35, "name": "Comedy"}] for noun in world.NOUNS]
    world.put_csv(
        tmp_path / "movies_metadata.csv",
        [
            {"genres": str(genre[n % 6]), "id": 862 + n * 7, "title": world.title(n)}
            for n in range(world.ITEMS)
        ],
    )
    world.put_csv(
        tmp_path / "links.csv",
        [{"movieId": n + 1, "tmdbId": f"{862 + n * 7}.0"} for n in range(world.ITEMS)],
    )
    init(tmp_path)
    found = sections(tmp_path / "moon.toml")
    assert set(found) == {("items", "links.csv"), ("events", "ratings_small.csv")}
    assert found["items", "links.csv"]["lookup"] == {"tmdbId": ["movies_metadata.csv", "id"]}
    items = by_id(imported(tmp_path))
    assert {key: (row["title"], row["category"]) for key, row in items.items()} == {
        str(n + 1): (world.title(n), [world.NOUNS[n % 6].title()]) for n in range(world.ITEMS)
    }


def test_rows_about_other_ids_are_no_items(tmp_path):
    """Goodbooks: the books' ids at another site, with tags; authors; none of them is what was rated."""
    world.put_csv(tmp_path / "ratings.csv", ratings(52, "book_id"))
    world.put_csv(
        tmp_path / "books.csv",
        [
            {"book_id": n + 1, "goodreads_book_id": 27000 + n, "title": world.title(n)}
            for n in range(world.ITEMS)
        ],
    )
    world.put_csv(
        tmp_path / "book_tags.csv",
        [{"goodreads_book_id": 27000 + n, "tag_id": n % 9, "count": 9} for n in range(world.ITEMS)],
    )
    world.put_csv(
        tmp_path / "book_authors.csv", [{"author_id": n + 1, "name": f"Author {n}"} for n in range(20)]
    )
    init(tmp_path)
    found = sections(tmp_path / "moon.toml")
    assert set(found) == {("items", "books.csv"), ("events", "ratings.csv")}
    assert set(by_id(imported(tmp_path))) == {str(n + 1) for n in range(world.ITEMS)}


def test_items_without_an_id_are_known_by_their_names(tmp_path):
    """Groceries: a member, a day and what was bought, in words."""
    rows = [
        {
            "Member_number": user + 1000,
            "Date": time.strftime("%d-%m-%Y"),
            "itemDescription": world.title(item),
        }
        for _, user, visit in nested.visits(53)
        for item, time in visit
    ]
    world.put_csv(tmp_path / "Groceries_dataset.csv", rows)
    dataset = imported(tmp_path)
    assert {row["title"] for row in dataset.items.to_pylist()} == {world.title(n) for n in range(world.ITEMS)}
    assert len(dataset.events) == len(rows) and len(dataset.users) == world.USERS


def test_pictures_in_objects_and_ids_that_say_no_more_are_found(tmp_path):
    """A catalogue as datasets of pictures are stored: bytes and path in an object, a bare id in both tables."""
    world.put_parquet(
        tmp_path / "data/train-00000-of-00001.parquet",
        [
            {
                "image": {"bytes": world.picture(n), "path": f"{n}.png"},
                "id": n + 100,
                "productDisplayName": world.title(n),
            }
            for n in range(world.ITEMS)
        ],
    )
    world.put_csv(
        tmp_path / "events.csv",
        [
            {"user_id": user, "id": item + 100, "timestamp": int(time.timestamp()), "event": "view"}
            for _, user, visit in nested.visits(54)
            for item, time in visit
        ],
    )
    dataset = imported(tmp_path)
    for key, row in by_id(dataset).items():
        assert row["title"] == world.title(int(key) - 100)
        assert dataset.image_bytes(row["image_id"]) == world.picture(int(key) - 100)


def test_the_oldest_layout_of_all_is_read_as_it_is(tmp_path):
    """MovieLens 100K: tabs in ``u.data``, bars in ``u.item`` with a flag for each genre, no names anywhere."""
    rows = [
        f"{one['userId']}\t{one['movieId']}\t{one['rating']}\t{one['timestamp']}\n" for one in ratings(56)
    ]
    nested.put_text(tmp_path / "u.data", "".join(rows))
    films = [
        f"{n + 1}|{world.title(n)} é|01-Jan-1995||http://x.example/{n}|{n % 2}|{n % 3 // 2}\n"
        for n in range(world.ITEMS)
    ]
    (tmp_path / "u.item").write_bytes("".join(films).encode("latin-1"))
    nested.put_text(
        tmp_path / "u.user", "".join(f"{n + 1}|{20 + n}|{'MF'[n % 2]}\n" for n in range(world.USERS))
    )
    nested.put_text(tmp_path / "README", "SUMMARY")
    init(tmp_path)
    found = sections(tmp_path / "moon.toml")
    assert set(found) == {("items", "u.item"), ("users", "u.user"), ("events", "u.data")}
    assert found["items", "u.item"]["title"] == "column2" and "category" not in found["items", "u.item"]
    assert found["events", "u.data"]["value"] == "column3"
    dataset = imported(tmp_path)
    assert len(dataset.events) == len(rows)
    assert by_id(dataset)["7"]["title"] == f"{world.title(6)} é"


def test_months_are_parts_of_one_log(tmp_path):
    rows = [
        {
            "event_time": time.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "event_type": "view",
            "product_id": item,
            "user_id": user,
        }
        for _, user, visit in nested.visits(55)
        for item, time in visit
    ]
    world.put_csv(tmp_path / "2019-Oct.csv", rows[:500])
    world.put_csv(tmp_path / "2019-Nov.csv", rows[500:])
    init(tmp_path)
    assert set(sections(tmp_path / "moon.toml")) == {("events", "2019-*.csv")}
    assert len(imported(tmp_path).events) == len(rows)


def test_items_of_two_tables_without_categories_are_all_kept(tmp_path):
    """An item that only one of them has was refused, for a category that is null."""
    for place, name in enumerate(("old", "new")):
        numbers = range(place * 20, place * 20 + 30)  # ten are in both
        world.put_csv(tmp_path / f"{name}.csv", [{"sku": f"S{n}", "name": world.title(n)} for n in numbers])
    tables = [f'[[items]]\nfiles = ["{name}.csv"]\nid = "sku"\ntitle = "name"\n' for name in ("old", "new")]
    (tmp_path / "moon.toml").write_text('[data]\nname = "shop"\n' + "".join(tables))
    dataset = Dataset.open(import_path(tmp_path, tmp_path / "dataset"))
    assert set(by_id(dataset)) == {f"S{n}" for n in range(50)}
    assert not dataset.artifact.config["quarantined"]


@pytest.mark.parametrize("column", ["event_id", "sequence"])
def test_a_column_called_as_ours_stays_beside_the_event(tmp_path, column):
    world.put_csv(
        tmp_path / "log.csv",
        [{"user": n % 7, "item": n % 9, "time": 1_709_251_200 + n, column: f"e{n % 5}"} for n in range(90)],
    )
    (tmp_path / "moon.toml").write_text(
        '[data]\nname = "shop"\n[[events]]\nfiles = ["log.csv"]\nuser = "user"\nitem = "item"\ntime = "time"\n'
        f'time_format = "s"\ntype = "click"\ncontext = ["{column}"]\n'
    )
    dataset = Dataset.open(import_path(tmp_path, tmp_path / "dataset"))
    assert len(dataset.events) == 90
    kept = dataset.extra.get("event")
    name = "source_event_id" if column == "event_id" else column
    assert kept is not None and kept.column(name).to_pylist() == [f"e{n % 5}" for n in range(90)]
