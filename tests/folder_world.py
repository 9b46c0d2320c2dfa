"""Folders as shops and researchers have them, small, with a planted truth: what is which table, and how many of it.

Every function writes one layout into an empty folder, with names and formats of its own.
"""

import csv
import gzip
import io
import json
import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ITEMS, USERS, EVENTS = 60, 40, 900
NOUNS = ("lamp", "chair", "table", "sofa", "shelf", "mirror")
ADJECTIVES = ("red", "oak", "small", "tall", "soft", "round", "plain", "bright", "heavy", "old")
START = datetime(2024, 3, 1, tzinfo=UTC)


def title(number):
    return f"{ADJECTIVES[number % 10].title()} {NOUNS[number % 6]} No {number}"


def story(number):
    thing, kind = f"{ADJECTIVES[number % 10]} {NOUNS[number % 6]}", ADJECTIVES[number % 7]
    return f"A {thing} for every home, made of the best {kind} wood we know"


def moments(count, seed=0):
    """Rising times over some weeks."""
    draw = random.Random(seed)
    seconds = sorted(draw.randrange(60 * 86_400) for _ in range(count))
    return [START + timedelta(seconds=one) for one in seconds]


def picture(number):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 40 % 256, number * 7 % 256, 99)).save(out, "PNG")
    return out.getvalue()


def put_csv(path, rows, delimiter=",", encoding="utf-8", header=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    if header:
        writer.writerow(rows[0])
    writer.writerows(list(row.values()) for row in rows)
    raw = text.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def put_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def put_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def shop_export(folder):
    """A shop system's export: a product over several rows, one per variant; order lines; customers."""
    draw = random.Random(1)
    rows, lines = [], []
    for number in range(ITEMS // 2):
        for variant in range(2):
            rows.append(
                {
                    "Handle": f"product-{number}",
                    "Title": "" if variant else title(number),
                    "Body (HTML)": "" if variant else story(number),
                    "Vendor": f"Maker {number % 4}",
                    "Type": f"Home > {NOUNS[number % 6].title()}",
                    "Option1 Value": ("S", "L")[variant],
                    "Variant SKU": f"{number:04d}-{'SL'[variant]}",
                    "Variant Grams": 100 * (number + 1),
                    "Variant Price": f"{number + 9}.50",
                    "Image Src": f"https://cdn.shop.example/files/p{number}.jpg?v=1",
                    "Status": ("active", "draft")[number % 5 == 0],
                }
            )
    for number, time in enumerate(moments(EVENTS, 1)):
        one = draw.choice(rows)
        lines.append(
            {
                "Name": f"#{1000 + number // 2}",
                "Email": f"user{(number // 2) * 7 % USERS}@example.com",
                "Created at": time.strftime("%Y-%m-%d %H:%M:%S +0000"),
                "Lineitem quantity": draw.randrange(1, 4),
                "Lineitem name": one["Title"],
                "Lineitem price": one["Variant Price"],
                "Lineitem sku": one["Variant SKU"],
            }
        )
    put_csv(folder / "products_export.csv", rows, encoding="utf-8-sig")
    put_csv(folder / "orders_export.csv", lines)
    put_csv(
        folder / "customers_export.csv",
        [
            {
                "Email": f"user{n}@example.com",
                "First Name": f"N{n}",
                "Country": ("DE", "FR")[n % 2],
                "Total Spent": f"{n}.00",
            }
            for n in range(USERS)
        ],
    )


def rated_films(folder):
    """MovieLens-like: films with genres, ratings in seconds, tags, links; gzipped csv."""
    draw = random.Random(2)
    put_csv(
        folder / "movies.csv.gz",
        [
            {
                "movieId": n,
                "title": f"{title(n)} ({1950 + n})",
                "genres": ("Drama|Comedy", "Comedy", "Action|Drama")[n % 3],
            }
            for n in range(1, ITEMS + 1)
        ],
    )
    times = [int(one.timestamp()) for one in moments(EVENTS, 2)]
    ratings = [
        {
            "userId": draw.randrange(1, USERS + 1),
            "movieId": draw.randrange(1, ITEMS + 1),
            "rating": draw.randrange(1, 11) / 2,
            "timestamp": one,
        }
        for one in times
    ]  # fmt: skip
    put_csv(folder / "ratings.csv", ratings)
    put_csv(
        folder / "tags.csv",
        [
            {**{k: one[k] for k in ("userId", "movieId")}, "tag": "fun", "timestamp": one["timestamp"]}
            for one in ratings[:50]
        ],
    )
    put_csv(
        folder / "links.csv", [{"movieId": n, "imdbId": f"{n + 114000:07d}"} for n in range(1, ITEMS + 1)]
    )


def purchase_log(folder):
    """A log of JSON lines in epoch milliseconds, by month, and no catalogue: the log says what the items are."""
    draw = random.Random(3)
    for month, times in enumerate((moments(EVENTS, 3)[:500], moments(EVENTS, 3)[500:])):
        rows = []
        for time in times:
            item = draw.randrange(ITEMS)
            rows.append(
                {
                    "visitor": f"v{draw.randrange(USERS):03d}",
                    "product_id": f"{item:05d}",
                    "product_name": title(item),
                    "brand": f"Maker {item % 4}",
                    "ts": int(time.timestamp() * 1000),
                    "event": draw.choices(
                        ("page_view", "add_to_cart", "checkout", "remove_from_cart"), (8, 3, 1, 1)
                    )[0],
                    "unit_price": round(item * 1.1 + 1, 2),
                    "device": draw.choice(("phone", "web")),
                }
            )
        put_lines(folder / f"log/2024-0{month + 3}.jsonl.gz", rows)


def lake(folder):
    """A data lake: Hive-partitioned clicks in microseconds, catalogue in parquet, pictures in a folder."""
    draw = random.Random(4)
    put_parquet(
        folder / "catalog/part-0.parquet",
        [
            {
                "article": f"A{n:04d}",
                "name": title(n),
                "category_path": ["Home", NOUNS[n % 6].title()],
                "colour": ADJECTIVES[n % 5],
                "weight_kg": n / 7,
                "in_stock": bool(n % 2),
            }
            for n in range(ITEMS)
        ],
    )
    days = {}
    for time in moments(EVENTS, 4):
        days.setdefault(time.date().isoformat(), []).append(
            {
                "client_id": draw.randrange(10**9, 10**9 + USERS),
                "article": f"A{draw.randrange(ITEMS):04d}",
                "t": time.replace(tzinfo=None),
            }
        )
    for day, rows in days.items():
        put_parquet(folder / f"clicks/dt={day}/part-0.parquet", rows)
    for number in range(ITEMS - 5):
        path = folder / f"photos/{number % 3}/A{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def bills(folder):
    """Lines of bills: semicolons, Windows letters, decimal commas, day before month, gaps in the customers."""
    draw = random.Random(5)
    rows = []
    for number, time in enumerate(moments(EVENTS, 5)):
        item = draw.randrange(ITEMS)
        rows.append(
            {
                "InvoiceNo": 536365 + number // 3,
                "StockCode": f"{85000 + item}{'A' if item % 2 else ''}",
                "Description": f"CAFÉ {title(item).upper()}",
                "Quantity": draw.randrange(1, 9),
                "InvoiceDate": time.strftime("%d/%m/%Y %H:%M"),
                "UnitPrice": f"{item},{item % 10}5",
                "CustomerID": "" if number // 3 % 7 == 0 else 17000 + number // 3 % USERS,
                "Country": "Côte d'Ivoire" if number % 2 else "France",
            }
        )
    put_csv(folder / "Online Retail.csv", rows, delimiter=";", encoding="cp1252")


def reviews(folder):
    """Reviews and their products as a marketplace dumps them: JSON lines, lists, prices in text."""
    draw = random.Random(6)
    put_lines(
        folder / "meta_Home.jsonl.gz",
        [
            {
                "main_category": "Home",
                "title": title(n),
                "average_rating": 4.1,
                "description": [story(n)],
                "price": f"${n + 1}.99",
                "images": [{"large": f"https://m.example/{n}.jpg"}],
                "store": f"Maker {n % 4}",
                "categories": ["Home", NOUNS[n % 6].title()],
                "details": {"Brand": "x"},
                "parent_asin": f"B00{n:07d}",
            }
            for n in range(ITEMS)
        ],
    )
    put_lines(
        folder / "Home.jsonl.gz",
        [
            {
                "rating": float(draw.randrange(1, 6)),
                "title": "Nice one",
                "text": f"I like it a lot because it is {draw.choice(ADJECTIVES)}",
                "images": [],
                "asin": f"B00{draw.randrange(ITEMS):07d}",
                "user_id": f"AE{draw.randrange(USERS):06d}XQ",
                "timestamp": int(time.timestamp() * 1000),
                "helpful_vote": 0,
                "verified_purchase": True,
            }
            for time in moments(EVENTS, 6)
        ],
    )


def judged_search(folder):
    """Search relevance: products, queries and labels in words, tabs between the cells."""
    draw = random.Random(7)
    put_csv(
        folder / "product.csv",
        [
            {
                "product_id": n,
                "product_name": title(n),
                "product_class": NOUNS[n % 6],
                "category hierarchy": f"Home / {NOUNS[n % 6]}",
                "product_description": story(n),
                "rating_count": n,
                "average_rating": 4.5,
            }
            for n in range(ITEMS)
        ],
        "\t",
    )
    put_csv(
        folder / "query.csv",
        [{"query_id": n, "query": f"{ADJECTIVES[n % 10]} {NOUNS[n % 6]}"} for n in range(30)],
        "\t",
    )
    put_csv(
        folder / "label.csv",
        [
            {
                "id": n,
                "query_id": n % 30,
                "product_id": draw.randrange(ITEMS),
                "label": ("Exact", "Partial", "Irrelevant")[n % 3],
            }
            for n in range(300)
        ],
        "\t",
    )


def without_header(folder):
    """The oldest of all: four numbers between tabs, no header; films in a file of their own with bars."""
    draw = random.Random(8)
    times = [int(one.timestamp()) for one in moments(EVENTS, 8)]
    rows = [
        {
            "a": draw.randrange(1, USERS + 1),
            "b": draw.randrange(1, ITEMS + 1),
            "c": draw.randrange(1, 6),
            "d": one,
        }
        for one in times
    ]
    put_csv(folder / "ratings.tsv", rows, "\t", header=False)


def slates(folder):
    """What was shown and what was clicked, with positions, the search and its words."""
    draw = random.Random(9)
    rows = []
    for number, time in enumerate(moments(EVENTS // 5, 9)):
        shown = draw.sample(range(ITEMS), 5)
        user, words = f"m-{draw.randrange(USERS)}", f"{draw.choice(ADJECTIVES)} {draw.choice(NOUNS)}"
        for place, item in enumerate(shown):
            row = {
                "impression_id": f"i{number}",
                "member": user,
                "listing": f"L{item}",
                "rank": place,
                "search_term": words,
            }
            rows.append({**row, "occurred_at": time.isoformat(), "kind": "impression"})
            if place == 0:
                rows.append(
                    {**row, "occurred_at": (time + timedelta(seconds=9)).isoformat(), "kind": "click"}
                )
    put_csv(folder / "interactions.csv", rows)
    put_csv(
        folder / "listings.csv", [{"id": f"L{n}", "headline": title(n), "cost": n + 1} for n in range(ITEMS)]
    )


def order_lines(folder):
    """A marketplace's tables: what was ordered is in one, by whom and when in another, what it is in a third."""
    draw = random.Random(10)
    times = moments(EVENTS // 2, 10)
    put_csv(
        folder / "shop_orders_dataset.csv",
        [
            {
                "order_id": f"{n:08x}",
                "customer_id": f"{n % USERS:06x}",
                "order_status": ("delivered", "shipped")[n % 9 == 0],
                "order_purchase_timestamp": time.strftime("%Y-%m-%d %H:%M:%S"),
                "order_estimated_delivery_date": (time + timedelta(days=9)).strftime("%Y-%m-%d 00:00:00"),
            }
            for n, time in enumerate(times)
        ],
    )
    lines = [
        {
            "order_id": f"{n // 2:08x}",
            "order_item_id": n % 2 + 1,
            "product_id": f"{draw.randrange(ITEMS):05x}p",
            "seller_id": f"s{draw.randrange(5)}",
            "shipping_limit_date": (times[n // 2] + timedelta(days=3)).strftime("%Y-%m-%d %H:%M:%S"),
            "price": f"{n % 50}.90",
            "freight_value": "8.72",
        }
        for n in range(EVENTS)
    ]
    put_csv(folder / "shop_order_items_dataset.csv", lines)
    put_csv(
        folder / "shop_products_dataset.csv",
        [
            {"product_id": f"{n:05x}p", "product_category_name": NOUNS[n % 6], "product_weight_g": n * 10}
            for n in range(ITEMS)
        ],
    )


LAYOUTS = (
    order_lines,
    shop_export,
    rated_films,
    purchase_log,
    lake,
    bills,
    reviews,
    judged_search,
    without_header,
    slates,
)
