"""``moon init`` on folders that are less tidy: what says nothing of an item, who is not named, rows that do not fit.

Run: pytest tests/test_init_rough.py
"""

import random
import shutil
from collections import Counter

import folder_world as world
import pytest
from test_init import imported, sections

from dataset.contracts import DataError
from dataset.split import Split, split_dataset
from moon.describing import init

DAY = "2024-07-{:02d} 12:00:00"


def proposed(folder):
    init(folder)
    return sections(folder / "moon.toml")


def test_a_country_that_nearly_all_have_is_the_customers_and_not_the_items(tmp_path):
    """Of every item nearly all rows say UK, as nearly all rows do; of every customer all rows say one country."""
    draw = random.Random(0)
    rows = [
        {
            "InvoiceNo": 536365 + number // 3,
            "StockCode": 22000 + (item := draw.randrange(world.ITEMS)),
            "Description": world.title(item),
            "InvoiceDate": DAY.format(1 + number % 28),
            "CustomerID": 12346 + (customer := number // 3 % 60),
            "Country": "France" if customer == 7 else "United Kingdom",
            "Colour": ("red", "blue", "green")[item % 3],
        }
        for number in range(1200)
    ]
    world.put_csv(tmp_path / "Online Retail.csv", rows)
    found = proposed(tmp_path)
    assert found["items", "Online Retail.csv"]["attributes"] == ["Colour"]
    assert found["users", "Online Retail.csv"]["segment"] == "Country"


def test_places_in_a_film_are_no_orders_of_users(tmp_path):
    """A table of casts beside ratings: 'order' counts 1, 2, 3, ... anew in every film."""
    draw = random.Random(1)
    cast = [
        {"movie": film, "people": draw.randrange(900), "order": place + 1, "leading": int(place < 2)}
        for film in range(world.ITEMS)
        for place in range(draw.randint(3, 12))
    ]
    world.put_csv(tmp_path / "castings.csv", cast)
    films = [{"movie": film, "title": world.title(film)} for film in range(world.ITEMS)]
    world.put_csv(tmp_path / "movies.csv", films)
    rates = [
        {"user": one % 50, "movie": draw.randrange(world.ITEMS), "rate": draw.randint(1, 10), "time": 1.5e9 + one}
        for one in range(1500)
    ]  # fmt: skip
    world.put_csv(tmp_path / "rates.csv", rates)
    assert [files for role, files in proposed(tmp_path) if role == "events"] == ["rates.csv"]
    orders = [{"order_id": number // 4, "product_id": draw.randrange(40)} for number in range(900)]
    other = tmp_path / "baskets"
    other.mkdir()
    world.put_csv(other / "order_products.csv", orders)  # baskets alone are a log
    assert proposed(other)["events", "order_products.csv"]["user"] == "order_id"


def test_who_is_not_named_is_known_by_the_visit(tmp_path):
    """The truth is a loop: a row belongs to its user, or to its session; a session 7 is not the user 7."""
    draw = random.Random(2)
    rows = [
        {
            "session_id": (session := number // 4),
            "user_id": "" if session % 3 else session % 40,
            "item_id": 500 + draw.randrange(world.ITEMS),
            "time": DAY.format(1 + session % 28).replace("12:", f"{number % 4 + 10}:"),
        }
        for number in range(1000)
    ]
    world.put_csv(tmp_path / "views.csv", rows)
    found = proposed(tmp_path)["events", "views.csv"]
    assert (found["user"], found["visitor"], found["request"]) == ("user_id", "session_id", "session_id")
    dataset = imported(tmp_path)
    names = dict(zip(*(dataset.users[name].to_pylist() for name in ("user_id", "external_id")), strict=True))
    expected = Counter(
        str(row["user_id"]) if row["user_id"] != "" else f"session_id {row['session_id']}" for row in rows
    )
    assert Counter(names[one] for one in dataset.events["user_id"].to_pylist()) == expected
    assert "7" not in expected or "session_id 7" in expected


def test_rows_that_end_with_a_delimiter_are_rows_of_a_table(tmp_path):
    lines = [
        "User-ID\tLocation\tAge",
        *(f"{user}\tplace {user % 5}\t{20 + user % 9}\t" for user in range(60)),
    ]
    (tmp_path / "users_info.dat").write_text("\n".join(lines) + "\n")
    draw = random.Random(3)
    rows = [
        {"user": draw.randrange(60), "item": draw.randrange(90), "rating": draw.randint(1, 5)}
        for _ in range(900)
    ]
    world.put_csv(tmp_path / "ratings.csv", rows)
    assert proposed(tmp_path)["users", "users_info.dat"]["id"] == "User-ID"
    ages = {row["external_id"]: row["age"] for row in imported(tmp_path).users.to_pylist()}
    assert ages["7"] == 27


def test_a_table_with_a_broken_row_is_left_out_and_its_row_is_said(tmp_path):
    lines = ["book\tname\tyear", *(f"{book}\t{world.title(book)}\t1990" for book in range(200))]
    lines[120] += "\tCompany"
    (tmp_path / "books.dat").write_text("\n".join(lines) + "\n")
    (tmp_path / "lines.dat").write_text("a;b;c\n" + "\n".join(f"{one};{one}" for one in range(60)) + "\n")
    world.put_csv(tmp_path / "clicks.csv", [{"user": one % 30, "book": one % 70, "time": DAY.format(1 + one % 28)}
                                           for one in range(600)])  # fmt: skip
    assert {role for role, _ in proposed(tmp_path)} == {"events"}
    text = (tmp_path / "moon.toml").read_text()
    assert "books.dat: expected a table, found: CSV Error on Line: 121" in text
    assert "lines.dat: no table: ';' cuts row 1 into 3 cells, row 2 into 2" in text


def test_a_file_called_ratings_holds_ratings_whatever_its_column_is_called(tmp_path):
    draw = random.Random(4)
    for file, numbers in (("anime_ratings.dat", range(1, 11)), ("anime_history.dat", (1, 1))):
        rows = [
            {"User_ID": draw.randrange(60), "Anime_ID": draw.randrange(80), "Feedback": draw.choice(numbers)}
            for _ in range(900)
        ]
        world.put_csv(tmp_path / file, rows, delimiter="\t")
    found = proposed(tmp_path)
    assert set(found) == {("events", "anime_ratings.dat")}
    log = found["events", "anime_ratings.dat"]
    assert (log["type"], log["value"], log["value_scale"]) == ("rating", "Feedback", [1.0, 10.0])


def test_a_log_without_names_whose_items_are_words(tmp_path):
    """Steam: user, name of a game, "purchase" or "play", hours; no header, no times, no number for a game."""
    draw = random.Random(5)
    rows = []
    for number in range(700):
        user, game = 151603712 + number % 60, f"{world.title(draw.randrange(80))} {number % 7}"
        rows.append({"a": user, "b": game, "c": "purchase", "d": "1.0", "e": 0})
        if number % 2:
            rows.append({"a": user, "b": game, "c": "play", "d": f"{draw.random() * 90:.1f}", "e": 0})
    world.put_csv(tmp_path / "steam-200k.csv", rows, header=False)
    found = proposed(tmp_path)
    log = found["events", "steam-200k.csv"]
    assert (log["user"], log["item"], log["type_column"]) == ("column1", "column2", "column3")
    assert log["types"] == {"purchase": "purchase", "play": "click"}
    assert found["items", "steam-200k.csv"]["title"] == "column2"
    items = imported(tmp_path).items.to_pylist()
    assert items and all(row["title"] == row["external_id"] for row in items)


def test_impressions_of_nobody_say_that_a_user_is_missing(tmp_path):
    draw = random.Random(6)
    rows = [
        {"timestamp": DAY.format(1 + one % 28), "item_id": draw.randrange(46), "click": int(one % 9 == 0)}
        for one in range(900)
    ]  # fmt: skip
    world.put_csv(tmp_path / "women.csv", rows)
    with pytest.raises(DataError, match="no column says whose: a log needs a user or a session"):
        init(tmp_path)


def test_ratings_without_times_that_are_sorted_by_user_are_not_cut_by_their_rows(tmp_path):
    """Cut by the order of the rows, everybody who is asked would be a stranger."""
    draw = random.Random(7)
    rows = [
        {"user": user, "item": draw.randrange(90), "rating": draw.randint(1, 5)}
        for user in range(60)
        for _ in range(20)
    ]
    world.put_csv(tmp_path / "untimed/ratings.csv", rows)
    timed = [{**row, "time": 1_500_000_000 + number} for number, row in enumerate(rows)]
    draw.shuffle(timed)
    world.put_csv(tmp_path / "timed/ratings.csv", timed)
    for name, expected in (("untimed", "users"), ("timed", "time")):
        dataset = imported(tmp_path / name)
        split = Split.open(split_dataset(dataset, tmp_path / f"{name}_split"))
        assert split.by == expected and split.shows and split.rated
        shutil.rmtree(tmp_path / "dataset")
