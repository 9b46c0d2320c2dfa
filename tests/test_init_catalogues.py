"""``moon init`` finds the catalogue of a log by the ids that they share, however these and the tables are written.

Run: pytest tests/test_init_catalogues.py
"""

import random

import folder_world as world
import pytest
from test_init import imported, sections

from moon.describing import init

KINDS = ("急須", "漫画", "着物", "抹茶")


def proposed(folder):
    init(folder)
    return sections(folder / "moon.toml")


def bought(names, user, item, time, seed, **more):
    """Rows of a log: who bought what, when."""
    draw = random.Random(seed)
    return [
        {time: one.strftime("%Y-%m-%d %H:%M:%S +0000"), user: f"u{draw.randrange(world.USERS):03d}@x.example"}
        | {item: draw.choice(names), **more}
        for one in world.moments(world.EVENTS, seed)
    ]


def test_the_rows_of_further_pictures_have_no_id_and_hide_none(tmp_path):
    """An export of variants: what all of them share stands in the product's first row, the last row is a picture."""
    rows, skus = [], []
    for number in range(world.ITEMS):
        first = {
            "Handle": f"product-{number}", "Title": world.title(number), "Body (HTML)": world.story(number),
            "Vendor": f"Maker {number % 4}", "Product Category": f"Home > {world.NOUNS[number % 6].title()}",
            "Option1 Value": "", "Variant SKU": "", "Variant Price": "", "Image Src": f"https://x.example/{number}.jpg?v=1",
            "Link": f"https://x.example/{number}.html",
        }  # fmt: skip
        later = dict.fromkeys(first, "") | {"Handle": f"product-{number}"}
        for variant in range(2):
            skus.append(f"{number:03d}-{'SL'[variant]}")
            own = {
                "Option1 Value": "SL"[variant],
                "Variant SKU": skus[-1],
                "Variant Price": f"{number + 5}.90",
            }
            rows.append((later if variant else first) | own)
        rows.append(later | {"Image Src": f"https://x.example/{number}-b.jpg"})
    world.put_csv(tmp_path / "products_export.csv", rows)
    world.put_csv(tmp_path / "orders_export.csv", bought(skus, "Email", "Lineitem sku", "Created at", 1))
    found = proposed(tmp_path)
    items = found["items", "products_export.csv"]
    assert (items["id"], items["product"]) == ("Variant SKU", "Handle")
    assert "'Image Src' names pictures, none is here: put the files beside it, e.g. 0.jpg" in init(tmp_path)
    assert "'Link' names" not in init(tmp_path)
    made = imported(tmp_path).items.to_pylist()
    assert len(made) == 2 * world.ITEMS
    for one in made:
        number, size = int(one["external_id"][:3]), one["external_id"][4]
        assert one["title"] == world.title(number) and one["description"] == world.story(number)
        assert one["category"] == ["Home", world.NOUNS[number % 6].title()]
        assert dict(one["attributes"]) == {"Vendor": f"Maker {number % 4}", "Option1 Value": size}


@pytest.mark.parametrize("spaced", [True, False], ids=["ids in words", "ids without"])
def test_ids_with_slashes_and_spaces_are_the_same_in_log_and_catalogue(tmp_path, spaced):
    """No name says what the columns are; the catalogue is written again, file by file, where it changes."""
    ids = [f"A{number % 9}/{number:03d}{' XL' if spaced else ''}" for number in range(world.ITEMS)]
    for month in range(3):
        rows = [
            {
                "Kennung": one,
                "Bezeichnung": f"{world.title(number)}{' (neu)' if number % 3 < month else ''}",
                "Preis": "1.299,50 €",
            }
            for number, one in enumerate(ids)
            if number % 3 == month or number % 3 < month and number % 5 == 0
        ]
        world.put_csv(tmp_path / "katalog" / f"teile_2025-0{month + 1}-01.csv", rows, ";", "cp1252")
    world.put_csv(tmp_path / "vorgaenge.csv", bought(ids, "Kundennr", "Kennung", "Datum", 2), ";")
    found = proposed(tmp_path)
    pattern = "katalog/teile_2025-0*.csv"
    assert found["items", pattern]["id"] == "Kennung" and found["items", pattern]["title"] == "Bezeichnung"
    assert found["events", "vorgaenge.csv"]["item"] == "Kennung"
    assert "from 1299.5 to 1299.5" in init(tmp_path)
    made = imported(tmp_path).items.to_pylist()
    assert len(made) == world.ITEMS and {one["price"] for one in made} == {1299.5}
    assert all(
        one["title"].endswith("(neu)") == (int(one["external_id"][3:6]) % 15 in (0, 10)) for one in made
    )


def test_names_in_another_script(tmp_path):
    goods = [
        {"商品番号": f"商品 {n:03d}/{'赤青'[n % 2]}", "商品名": f"新しい{KINDS[n % 4]} 第{n}号"}
        | {"カテゴリー": f"店＞{KINDS[n % 4]}", "価格": f"￥{n * 37 + 1000:,}"}
        for n in range(world.ITEMS)
    ]  # fmt: skip
    log = bought([one["商品番号"] for one in goods], "会員ID", "商品番号", "日時", 3)
    for number, row in enumerate(log):
        row["行動"] = ("閲覧", "閲覧", "カート追加", "購入")[number % 4]
    world.put_csv(tmp_path / "商品一覧.csv", goods, encoding="utf-8-sig")
    world.put_csv(tmp_path / "行動履歴.csv", log, encoding="utf-8-sig")
    found = proposed(tmp_path)
    items, events = found["items", "商品一覧.csv"], found["events", "行動履歴.csv"]
    assert (items["id"], items["title"], items["price"]) == ("商品番号", "商品名", "価格")
    assert (items["category"], items["category_separator"]) == ("カテゴリー", "＞")
    assert (events["user"], events["item"], events["time"]) == ("会員ID", "商品番号", "日時")
    assert events["types"] == {"閲覧": "click", "カート追加": "cart", "購入": "purchase"}
    assert imported(tmp_path).items["price"].to_pylist()[:1] != [None]


def test_a_number_of_every_row_is_no_slate(tmp_path):
    """Ids above 2^53: of each impression, which no two rows share; of what was shown together there is no column."""
    base, ads = 2**53 + 1, range(world.ITEMS)
    rows = [
        {
            "impression_id": base + 10_000 + 4 * number + place, "timestamp": int(time.timestamp()),
            "cookie": f"c{number % world.USERS}", "ad_id": base + (number * 7 + place) % world.ITEMS,
            "slot": place + 1, "is_click": int(place == number % 4),
        }
        for number, time in enumerate(world.moments(world.EVENTS // 3, 4))
        for place in range(4)
    ]  # fmt: skip
    world.put_lines(tmp_path / "log" / "2024-03.jsonl.gz", rows)
    world.put_csv(tmp_path / "ads.csv", [{"ad_id": base + n, "headline": world.title(n)} for n in ads])
    found = proposed(tmp_path)["events", "log/2024-03.jsonl.gz"]
    assert "request" not in found and found["clicked"] == "is_click"
    events = imported(tmp_path).events.to_pandas()
    slates = events[events["type"] == "impression"].groupby("request_id")["item_id"].nunique()
    assert set(slates) == {4} and len(slates) > 0.9 * world.EVENTS // 3
    assert set(events["item_id"]) == {base + n for n in ads}


@pytest.mark.parametrize(("shared", "doubted"), [(20, True), (50, False)])
def test_a_log_of_items_that_the_catalogue_lacks_is_doubted(tmp_path, shared, doubted):
    goods = [{"sku": f"S-{n:03d}", "title": world.title(n), "price": n + 1} for n in range(world.ITEMS)]
    ids = [f"S-{n:03d}" if n < shared else f"other-{n}" for n in range(world.ITEMS)]
    world.put_csv(tmp_path / "products.csv", goods)
    world.put_csv(tmp_path / "orders.csv", bought(ids, "customer_id", "sku", "created_at", 5))
    said = init(tmp_path)
    assert (
        f"{world.ITEMS - shared} of {world.ITEMS} values of 'sku' are not in 'sku' of products.csv" in said
    ) is doubted


SCRIPTS = {
    "商品ID 商品名称 类目 价格 用户ID 行为类型 时间": ("浏览 收藏 购买", "¥{}"),
    "상품번호 상품명 카테고리 가격 회원번호 행동 일시": ("조회 장바구니 구매", "{}원"),
    "Артикул_товара Название Категория Цена ID_покупателя Действие Дата": (
        "просмотр корзина покупка",
        "{} руб.",
    ),
    "رقم_المنتج اسم_المنتج فئة سعر معرف_العميل نوع تاريخ": ("مشاهدة سلة شراء", "{} ر.س"),
    "Référence_produit Nom_du_produit Catégorie Prix_TTC N°_client Type Date": (
        "vue panier achat",
        "{},00 €",
    ),
}


@pytest.mark.parametrize("columns", SCRIPTS)
def test_names_of_many_languages(tmp_path, columns):
    item, title, category, price, user, kind, time = (one.replace("_", " ") for one in columns.split())
    kinds, money = SCRIPTS[columns][0].split(), SCRIPTS[columns][1]
    goods = [
        {
            item: f"{100 + n}-AB",
            title: world.title(n),
            category: world.NOUNS[n % 6],
            price: money.format(n + 5),
        }
        for n in range(world.ITEMS)
    ]
    log = bought([one[item] for one in goods], user, item, time, 6)
    log = [row | {kind: kinds[number % 3]} for number, row in enumerate(log)]
    world.put_csv(tmp_path / "a.csv", goods)
    world.put_csv(tmp_path / "b.csv", log)
    found = proposed(tmp_path)
    items, events = found["items", "a.csv"], found["events", "b.csv"]
    assert [items[key] for key in ("id", "title", "category", "price")] == [item, title, category, price]
    assert [events[key] for key in ("user", "item", "time")] == [user, item, time]
    assert events["types"] == dict(zip(kinds, ("click", "cart", "purchase"), strict=True))
    assert sorted(imported(tmp_path).items["price"].to_pylist())[:2] == [5, 6]
