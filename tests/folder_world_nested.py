"""Folders whose rows hold lists and objects, or whose tables explain each other, with a planted truth.

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
    put_csv,
    put_lines,
    story,
    title,
)

VISITS = EVENTS // 4  # of four events each


def visits(seed):
    """(number, user, its four items and times) of every visit, in order of time."""
    draw = random.Random(seed)
    for number, start in enumerate(moments(VISITS, seed)):
        items = draw.sample(range(ITEMS), 4)
        times = [start + timedelta(seconds=40 * place) for place in range(4)]
        yield number, draw.randrange(USERS), list(zip(items, times, strict=True))


def put_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def sessions_of_events(folder):
    """OTTO: a line per session, its events in a list of objects; no user and no catalogue."""
    kinds = ("clicks", "clicks", "carts", "orders")
    put_lines(
        folder / "train.jsonl",
        [
            {
                "session": number,
                "events": [
                    {"aid": item + 5000, "ts": int(time.timestamp() * 1000), "type": kinds[place]}
                    for place, (item, time) in enumerate(visit)
                ],
            }
            for number, _, visit in visits(31)
        ],
    )


def analytics(folder):
    """GA4 in BigQuery: events with lists of items, pages without any; a browser is two numbers with a dot."""
    rows = []
    for number, user, visit in visits(32):
        kinds = ("page_view", "view_item_list", "view_item", "purchase")
        for place, (item, time) in enumerate(visit):
            several = {"page_view": [], "view_item_list": [item, (item + 1) % ITEMS]}.get(
                kinds[place], [item]
            )
            rows.append(
                {
                    "event_date": time.strftime("%Y%m%d"),
                    "event_timestamp": str(int(time.timestamp() * 1e6)),
                    "event_name": kinds[place],
                    "event_params": [{"key": "ga_session_id", "value": {"int_value": str(number)}}],
                    "user_id": f"c{user}" if user % 3 == 0 else None,
                    "user_pseudo_id": f"{user + 1000000}.{1600000000 + user}",
                    "device": {"category": ("mobile", "desktop")[user % 2]},
                    "items": [
                        {
                            "item_id": f"G{one:05d}",
                            "item_name": title(one),
                            "item_category": NOUNS[one % 6],
                            "price": 5.0 + one,
                        }
                        for one in several
                    ],
                }
            )
    put_lines(folder / "events_20240301.json", rows)


def tracked(folder):
    """Segment: an event's properties in an object; a finished order lists its products there."""
    rows = []
    for number, user, visit in visits(33):
        who = {"anonymousId": f"{user:08x}-aaaa-4bbb", "userId": f"user_{user}" if user % 4 else None}
        for place, (item, time) in enumerate(visit):
            what = {
                "product_id": f"P{item:05d}",
                "sku": f"S-{item}",
                "name": title(item),
                "price": item + 9.5,
            }
            name = ("Product Viewed", "Product Added", "Product Removed", "Product Viewed")[place]
            rows.append({**who, "event": name, "properties": what, "timestamp": time.isoformat()})
        if number % 5 == 0:
            bought = [{"product_id": f"P{item:05d}", "quantity": 1} for item, _ in visit[:2]]
            what = {"order_id": f"o{number}", "products": bought}
            rows.append(
                {**who, "event": "Order Completed", "properties": what, "timestamp": time.isoformat()}
            )
    put_lines(folder / "track.jsonl", rows)


def documents(folder):
    """Shopify's answers: one indented document of orders with their lines, one of products with their variants."""
    orders = [
        {
            "id": 450789469 + number,
            "created_at": visit[0][1].strftime("%Y-%m-%dT%H:%M:%S-05:00"),
            "email": f"user{user}@example.com",
            "customer": {"id": 207119551 + user, "first_name": "Bob"},
            "line_items": [
                {"id": number * 10 + place, "product_id": 632910 + item, "title": title(item), "quantity": 1}
                for place, (item, _) in enumerate(visit)
            ],
        }
        for number, user, visit in visits(34)
    ]
    products = [
        {
            "id": 632910 + number,
            "title": title(number),
            "body_html": f"<p>{story(number)}</p>",
            "product_type": NOUNS[number % 6],
            "handle": f"p-{number}",
            "variants": [
                {"id": 808950 + number, "product_id": 632910 + number, "price": f"{10 + number}.00"}
            ],
        }
        for number in range(ITEMS)
    ]
    put_text(folder / "orders.json", json.dumps({"orders": orders}, indent=2))
    put_text(folder / "products.json", json.dumps({"products": products}))


def shown_in_a_cell(folder):
    """MIND: what was shown, and whether it was clicked, in one cell; what was read before in another; no header."""
    rows = []
    for number, user, visit in visits(35):
        shown = " ".join(f"N{item + 10000}-{int(place == 2)}" for place, (item, _) in enumerate(visit))
        before = " ".join(f"N{(user + one) % ITEMS + 10000}" for one in range(3)) if number % 9 else ""
        time = visit[0][1]
        said = f"{time.month}/{time.day}/{time.year} {time:%I:%M:%S %p}"
        rows.append(f"{number + 1}\tU{user + 1000}\t{said}\t{before}\t{shown}\n")
    put_text(folder / "behaviors.tsv", "".join(rows))
    put_text(
        folder / "news.tsv",
        "".join(
            f"N{n + 10000}\t{NOUNS[n % 6]}\t{NOUNS[n % 6]}{n % 3}\t{title(n)}\t{story(n)}\thttps://x.example/{n}.html\t[]\n"
            for n in range(ITEMS)
        ),
    )


def orders_without_dates(folder):
    """Instacart: lines of orders that are counted for each user; what aisle and department are is said elsewhere."""
    counts, orders, lines = {}, [], []
    for number, user, visit in visits(36):
        counts[user] = counts.get(user, 0) + 1
        orders.append(
            {
                "order_id": (number * 7919) % 100_003,
                "user_id": user + 1,
                "order_number": counts[user],
                "order_dow": visit[0][1].weekday(),
                "order_hour_of_day": f"{visit[0][1].hour:02d}",
            }
        )
        for place, (item, _) in enumerate(visit):
            row = {"order_id": orders[-1]["order_id"], "product_id": item + 1, "add_to_cart_order": place + 1}
            lines.append(row)
    put_csv(folder / "orders.csv", sorted(orders, key=lambda row: (row["user_id"], row["order_number"])))
    put_csv(folder / "order_products__prior.csv", sorted(lines, key=lambda row: row["order_id"]))
    put_csv(
        folder / "products.csv",
        [
            {
                "product_id": n + 1,
                "product_name": title(n),
                "aisle_id": n % 12 + 1,
                "department_id": n % 3 + 1,
            }
            for n in range(ITEMS)
        ],
    )
    put_csv(
        folder / "aisles.csv",
        [{"aisle_id": n + 1, "aisle": f"{ADJECTIVES[n % 10]} {NOUNS[n % 6]} {n}"} for n in range(12)],
    )
    put_csv(folder / "departments.csv", [{"department_id": n + 1, "department": NOUNS[n]} for n in range(3)])


def counted_days(folder):
    """Dunnhumby: days since a start, campaigns in tables of their own, spaces where nothing is known."""
    rows = [
        {
            "household_key": user + 1,
            "BASKET_ID": 26984851472 + number,
            "DAY": (time - moments(VISITS, 37)[0]).days + 1,
            "PRODUCT_ID": 1000000 + item * 13,
            "QUANTITY": 1 + item % 3,
            "SALES_VALUE": item + 0.99,
        }
        for number, user, visit in visits(37)
        for item, time in visit
    ]
    put_csv(folder / "transaction_data.csv", rows)
    put_csv(
        folder / "product.csv",
        [
            {
                "PRODUCT_ID": 1000000 + n * 13,
                "DEPARTMENT": ("HOME", "LIGHT")[n % 2],
                "SUB_COMMODITY_DESC": title(n).upper(),
                "SIZE": ("22 LB", " ", "1 KG")[n % 3],
            }
            for n in range(ITEMS)
        ],
    )
    put_csv(
        folder / "campaign_desc.csv",
        [{"DESCRIPTION": "Type A", "CAMPAIGN": n + 1, "START_DAY": n * 9} for n in range(9)],
    )
    put_csv(
        folder / "campaign_table.csv",
        [{"household_key": n % USERS + 1, "CAMPAIGN": n % 9 + 1} for n in range(2 * USERS)],
    )


def printed(folder):
    """Steam: lines that Python printed, the games of a user in a list; their prices are words, too."""
    owned = {}
    for _, user, visit in visits(38):
        owned.setdefault(user, {}).update((item, place) for place, (item, _) in enumerate(visit))
    put_text(
        folder / "users_items.json",
        "".join(
            repr(
                {
                    "user_id": f"u'{user}",
                    "items_count": len(games),
                    "items": [
                        {"item_id": str(item * 10), "item_name": title(item), "playtime_forever": minutes}
                        for item, minutes in games.items()
                    ],
                }
            )
            + "\n"
            for user, games in owned.items()
        ),
    )
    put_text(
        folder / "games.json",
        "".join(
            repr(
                {
                    "publisher": f"Maker {n % 9}",
                    "genres": [NOUNS[n % 6], "Indie"],
                    "title": title(n),
                    "price": "Free To Play" if n % 5 == 0 else 4.99,
                    "early_access": False,
                    "id": str(n * 10),
                }
            )
            + "\n"
            for n in range(ITEMS)
        ),
    )


def typed_names(folder):
    """RecBole: files by their endings, tabs, the type of each column behind its name."""
    rows = [
        f"{user + 1}\t{item + 1}\t{item % 5 + 1}\t{int(time.timestamp())}\n"
        for _, user, visit in visits(39)
        for item, time in visit
    ]
    put_text(
        folder / "films.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(rows),
    )
    put_text(
        folder / "films.item",
        "item_id:token\tmovie_title:token_seq\tclass:token\n"
        + "".join(f"{n + 1}\t{title(n)}\t{NOUNS[n % 6]}\n" for n in range(ITEMS)),
    )


def feed(folder):
    """A merchant's feed in XML, with numbers of its own and of the trade; a log that knows the shop's own."""
    entries = "".join(
        f"<item><g:gtin>{4006381333931 + n}</g:gtin><g:id>SKU{n}</g:id><g:title>{title(n)}</g:title>"
        f"<g:description>{story(n)}</g:description><g:price>{9 + n}.50 EUR</g:price>"
        f"<g:product_type>Home &gt; {NOUNS[n % 6]}</g:product_type>"
        f"<g:shipping><g:country>DE</g:country></g:shipping></item>\n"
        for n in range(ITEMS)
    )
    put_text(
        folder / "feed.xml",
        '<?xml version="1.0"?>\n<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel>'
        f"<title>Shop</title>\n{entries}</channel></rss>\n",
    )
    put_lines(
        folder / "clicks.jsonl",
        [
            {"user_id": f"u{user}", "item_id": f"SKU{item}", "timestamp": time.isoformat()}
            for _, user, visit in visits(40)
            for item, time in visit
        ],
    )


def backslashes(folder):
    """Book-Crossing: quotes inside cells have a backslash before them; most grades are 0, which means none."""
    books = [
        f'"{n * 7919:09d}X";"{title(n)}{chr(92) + chr(34) + "a" + chr(92) + chr(34) + "; b" if n % 7 == 0 else ""}"'
        f';"Author {n % 20}"\r\n'
        for n in range(ITEMS)
    ]
    put_text(folder / "BX-Books.csv", '"ISBN";"Book-Title";"Book-Author"\r\n' + "".join(books))
    rows = [
        f'"{user + 1}";"{item * 7919:09d}X";"{0 if place % 2 else item % 10 + 1}"\r\n'
        for _, user, visit in visits(41)
        for place, (item, _) in enumerate(visit)
    ]
    put_text(folder / "BX-Book-Ratings.csv", '"User-ID";"ISBN";"Book-Rating"\r\n' + "".join(rows))


def shop_database(folder):
    """Magento: lines have numbers of their own and name their order by another name than it; some were cancelled."""
    orders, lines = [], []
    for number, user, visit in visits(42):
        orders.append(
            {
                "entity_id": number + 1,
                "status": ("complete", "processing", "canceled")[number % 3],
                "customer_id": user + 1 if number % 7 else "NULL",
                "grand_total": "99.00",
            }
        )
        for item, time in visit:
            lines.append(
                {
                    "item_id": len(lines) + 1,
                    "order_id": number + 1,
                    "created_at": time.strftime("%Y-%m-%d %H:%M:%S"),
                    "product_id": item + 70,
                    "sku": f"MG-{item}",
                    "qty_ordered": "1.0000",
                }
            )
    put_csv(folder / "sales_order.csv", orders)
    put_csv(folder / "sales_order_item.csv", lines)
    put_csv(
        folder / "catalog_product.csv",
        [{"sku": f"MG-{n}", "name": title(n), "price": f"{n + 9}.00"} for n in range(ITEMS)],
    )


def variants_and_products(folder):
    """Amazon reviews of 2023: a review names a variant and its product, the catalogue has products alone."""
    put_lines(
        folder / "meta_Beauty.jsonl",
        [
            {"title": title(n), "rating_number": n + 3, "parent_asin": f"B00{n:07d}"}
            | {"images": [{"large": f"https://m.example/{n}.jpg", "variant": "MAIN"}]}
            for n in range(ITEMS)
        ],
    )
    put_lines(
        folder / "Beauty.jsonl",
        [
            {
                "rating": float(item % 5 + 1),
                "asin": f"B0{item % 2}{item:07d}",
                "parent_asin": f"B00{item:07d}",
                "user_id": f"AE{user:026d}",
                "timestamp": int(time.timestamp() * 1000),
            }
            for _, user, visit in visits(43)
            for item, time in visit
        ],
    )


def pairs_by_spaces(folder):
    """SASRec: users and items between spaces, in order of time, and nothing else."""
    put_text(
        folder / "beauty.txt",
        "".join(f"{user + 1} {item + 1}\n" for _, user, visit in visits(44) for item, _ in visit),
    )
