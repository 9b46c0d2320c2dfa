"""More folders with a planted truth: the layouts of data sets that many people have, small.

Every function writes one layout into an empty folder; see ``folder_world``.
"""

import json
import random
from datetime import timedelta

from folder_world import (
    ADJECTIVES,
    EVENTS,
    ITEMS,
    NOUNS,
    USERS,
    moments,
    picture,
    put_csv,
    story,
    title,
)

GENRES = ("Drama|Comedy", "Comedy", "Action|Drama", "Drama", "Comedy|Action")


def properties(folder):
    """Retailrocket: views, carts and buys; what items are in a long table of (time, item, property, value)."""
    draw = random.Random(21)
    rows = []
    for number, time in enumerate(moments(EVENTS, 21)):
        kind = draw.choices(("view", "addtocart", "transaction"), (8, 2, 1))[0]
        rows.append(
            {
                "timestamp": int(time.timestamp() * 1000),
                "visitorid": draw.randrange(USERS) * 31,
                "event": kind,
                "itemid": draw.randrange(ITEMS) * 7 + 100,
                "transactionid": number if kind == "transaction" else "",
            }
        )
    put_csv(folder / "events.csv", rows)
    said = []
    for item in range(ITEMS):
        for week, time in enumerate(moments(3, item)):
            said.append((time, item, "790", f"n{item * 1000 + week * 1200}.000"))
        said.append((moments(1, item)[0], item, "categoryid", str(item % 6 + 50)))
        said.append((moments(1, item + 900)[0], item, "available", str(item % 2)))
        said.append((moments(1, item + 1800)[0], item, "888", f"{item * 37} {item * 91} n48.000"))
    draw.shuffle(said)
    names = ("timestamp", "itemid", "property", "value")
    for part in range(2):
        put_csv(
            folder / f"item_properties_part{part + 1}.csv",
            [
                dict(zip(names, (int(time.timestamp() * 1000), item * 7 + 100, key, value), strict=True))
                for time, item, key, value in said[part::2]
            ],
        )
    put_csv(
        folder / "category_tree.csv",
        [{"categoryid": 50 + n, "parentid": 40 + n // 3} for n in range(6)]
        + [{"categoryid": 40, "parentid": ""}],
    )


def rated_products(folder):
    """Amazon reviews of 2014: reviewers, stars and seconds; products with lists of categories inside lists."""
    draw = random.Random(22)
    folder.mkdir(parents=True, exist_ok=True)
    products = [
        {
            "asin": f"B000{n:06d}",
            "title": title(n),
            "price": n + 0.99,
            "imUrl": f"http://ecx.example.com/images/I/{n}.jpg",
            "related": {"also_bought": [f"B000{(n + 1) % ITEMS:06d}"], "also_viewed": []},
            "salesRank": {"Home & Kitchen": n * 10 + 1},
            "brand": f"Maker {n % 4}",
            "description": story(n),
            "categories": [["Home & Kitchen", "Furniture", NOUNS[n % 6].title()]],
        }
        for n in range(ITEMS)
    ]  # fmt: skip
    (folder / "meta_Home_and_Kitchen.json").write_text("".join(json.dumps(one) + "\n" for one in products))
    rows = []
    for time in moments(EVENTS, 22):
        word = draw.choice(ADJECTIVES)
        rows.append(
            {
                "reviewerID": f"A{draw.randrange(USERS):013X}",
                "asin": f"B000{draw.randrange(ITEMS):06d}",
                "reviewerName": f"Name {draw.randrange(9)}",
                "helpful": [draw.randrange(3), 3],
                "reviewText": f"I bought this for my house and it is {word}, just as it should be",
                "overall": float(draw.randrange(1, 6)),
                "summary": f"Very {word}",
                "unixReviewTime": int(time.timestamp()) // 86400 * 86400,
                "reviewTime": time.strftime("%m %d, %Y").replace(" 0", " "),
            }
        )
    (folder / "reviews_Home_and_Kitchen_5.json").write_text("".join(json.dumps(one) + "\n" for one in rows))


def cancelled_bills(folder):
    """Online Retail: lines of bills, month before day; cancellations have a C and less than nothing."""
    draw = random.Random(23)
    rows = []
    for number, time in enumerate(moments(EVENTS, 23)):
        item, back = draw.randrange(ITEMS), number // 3 % 11 == 0
        rows.append(
            {
                "InvoiceNo": f"{'C' if back else ''}{536365 + number // 3}",
                "StockCode": f"{22000 + item}" if item % 3 else f"{84000 + item}B",
                "Description": title(item).upper(),
                "Quantity": draw.randrange(1, 9) * (-1 if back else 1),
                "InvoiceDate": f"{time.month}/{time.day}/{time.year} {time.hour}:{time.minute:02d}",
                "UnitPrice": item + 0.55,
                "CustomerID": "" if number // 3 % 5 == 0 else f"{12346 + number // 3 % USERS}.0",
                "Country": ("United Kingdom", "France", "EIRE")[number // 3 % USERS % 3],
            }
        )
    put_csv(folder / "data.csv", rows)


def behaviours(folder):
    """Taobao: user, item, category, behaviour and seconds, without a header."""
    draw = random.Random(24)
    rows = [
        {
            "a": draw.randrange(USERS) * 13 + 1,
            "b": (item := draw.randrange(ITEMS)) * 997 + 2_000,
            "c": item % 6 + 4_000_000,
            "d": draw.choices(("pv", "cart", "fav", "buy"), (8, 1, 1, 1))[0],
            "e": int(time.timestamp()),
        }
        for time in moments(EVENTS, 24)
    ]
    rows.sort(key=lambda row: (row["a"], row["e"]))
    put_csv(folder / "UserBehavior.csv", rows, header=False)


def sessions(folder):
    """Yoochoose: clicks and buys of sessions, no user at all and no header; buys have a price and a count."""
    draw = random.Random(25)
    clicks, buys = [], []
    for number, time in enumerate(moments(EVENTS // 4, 25)):
        for click in range(4):
            item = draw.randrange(ITEMS)
            when = (time + timedelta(seconds=40 * click)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
            clicks.append(
                {
                    "a": number + 1,
                    "b": when,
                    "c": 214530000 + item,
                    "d": ("0", "S", str(item % 12))[click % 3],
                }
            )
            if click == 3 and number % 4 == 0:
                buys.append(
                    {
                        "a": number + 1,
                        "b": when,
                        "c": 214530000 + item,
                        "d": item * 100 + 99,
                        "e": draw.randrange(1, 4),
                    }
                )
    put_csv(folder / "yoochoose-clicks.dat", clicks, header=False)
    put_csv(folder / "yoochoose-buys.dat", buys, header=False)


def double_colons(folder):
    """MovieLens 1M: '::' between the cells, no header, Latin letters."""
    draw = random.Random(26)
    folder.mkdir(parents=True, exist_ok=True)
    films = [f"{n}::{title(n)}é ({1950 + n})::{GENRES[n % 5]}" for n in range(1, ITEMS + 1)]
    people = [
        f"{n}::{'FM'[n % 2]}::{(1, 18, 25, 35)[n % 4]}::{n % 21}::{10000 + n * 7}"
        for n in range(1, USERS + 1)
    ]
    ratings = [
        f"{draw.randint(1, USERS)}::{draw.randint(1, ITEMS)}::{draw.randint(1, 5)}::{int(time.timestamp())}"
        for time in moments(EVENTS, 26)
    ]
    for name, lines in (("movies", films), ("users", people), ("ratings", ratings)):
        (folder / f"{name}.dat").write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))


def labelled(folder):
    """What an advertising system logs: a row per impression, with 0 or 1 for the click."""
    draw = random.Random(27)
    rows = []
    for number, time in enumerate(moments(EVENTS, 27)):
        rows.append(
            {
                "id": f"{number:016x}",
                "user_id": f"u{draw.randrange(USERS)}",
                "ad_id": f"ad{(item := draw.randrange(ITEMS))}",
                "campaign": f"c{item % 5}",
                "device": draw.choice(("phone", "web")),
                "ts": time.strftime("%Y-%m-%d %H:%M:%S"),
                "clicked": int(draw.random() < 0.2),
            }
        )
    put_csv(folder / "train.csv", rows)


def pictures_of_a_log(folder):
    """A log of clicks, a folder of pictures that are named after its items, and no catalogue."""
    draw = random.Random(28)
    rows = [
        {
            "user": f"u{draw.randrange(USERS)}",
            "sku": f"S{draw.randrange(ITEMS):04d}",
            "time": time.isoformat(),
        }
        for time in moments(EVENTS, 28)
    ]
    put_csv(folder / "clicks.csv", rows)
    for number in range(ITEMS):
        path = folder / f"img/S{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


LAYOUTS = (
    properties,
    rated_products,
    cancelled_bills,
    behaviours,
    sessions,
    double_colons,
    labelled,
    pictures_of_a_log,
)
