"""What names of files and columns usually mean.

A name is evidence, not proof: every guess is also checked against the values (``guessing.tables``).
"""

from __future__ import annotations

import re
from functools import cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NOUNS = {
    "item": _words(
        "item product sku article asin aid movie film book song track video news listing offer goods good variant "
        "recipe restaurant business ad content game app artist album hotel course isbn ean upc gtin pid iid mid "
        "handle stock merchandise prod show anime podcast document doc post story poi venue plu model creative "
        "campaign material artikel produkt produit producto prodotto articulo articolo ware livre libro buch "
        "商品 製品 品番 作品 产品 物品 상품 제품 товар منتج"
    ),
    "user": _words(
        "user customer visitor client member buyer shopper reviewer person account consumer viewer household profile "
        "patron reader listener subscriber uid cust cid usr guest kunde benutzer nutzer utilisateur usuario cliente "
        "acheteur utente device cookie email mail anonymous pseudo kunden "
        "会員 顧客 ユーザー 用户 会员 顾客 고객 회원 사용자 "
        "пользователь покупатель клиент مستخدم عميل"
    ),
    "session": _words(
        "session request visit basket order invoice impression slate receipt ticket page trip sess cart sid playlist "
        "bestellung commande pedido ordine rechnung 注文 订单 주문 заказ طلب"
    ),
    "query": _words("query search keyword term phrase searchterm q suche recherche busqueda"),
}
IDS = _words(
    "id ids key code no nr number num uid guid uuid pk ref identifier hash idx index uri urn nummer numero "
    "番号 コード 编号 번호 код номер رقم معرف"
)
COUNT = _words("num number nb")  # before what is counted: "num_pages"
UNKNOWN = _words("anonymous pseudo")  # of a user who has not said who they are
CALLED = _words("name login nick nickname")  # of a user who has no other id
OWN_IDS = _words(
    "email mail sku asin aid isbn ean upc gtin pid iid uid handle mid cid sid plu"
)  # a noun that is an id
TIME = _words(
    "time timestamp ts t tm date datetime day dat dt when at created updated occurred moment clock epoch unix "
    "fecha datum zeit ora hora heure timestampms modified "
    "日時 時刻 日付 时间 日期 일시 시간 날짜 дата время تاريخ وقت"
)
UPDATED = _words(
    "updated modified changed update version valid lastmodified geändert 更新日 更新日時 更新时间 수정일"
)
CREATED = _words(
    "created added published release released launch launched listed available registered signup joined since "
    "publish angelegt 登録日 発売日 创建时间 上架时间 등록일"
)
GONE = _words(
    "gone sold expired expire expiry ended ends removed delisted discontinued until closed gelöscht 削除日 下架时间"
)
STATE = _words("status availability available stock sold active")  # of an item today: no description of it
TYPE = _words(
    "type event action behavior behaviour activity interaction feedback kind operation verb vorgang "
    "行動 行为 행동 действие"
)
CLICKED = _words("click clicked label clk")  # of a column of 0 and 1
SKIPPED = _words("skip skipped")  # of such a column, too
BOUGHT = _words("purchase purchased bought buy ordered conversion converted")  # of such a column, too
RATING = _words("rating rate star stars score overall grade note puntuacion bewertung")
AVERAGE = _words("average avg mean")  # of many ratings: none of a user
POSITION = _words("position rank slot pos place")
RELEVANCE = _words("relevance relevancy label grade gain judgement judgment rel esci relevant")
PART = _words("split part fold set subset usage partition")
TITLE = _words(
    "title name headline caption display label titel titre titulo titolo nombre nom bezeichnung nome designation "
    "名前 名称 商品名 产品名 상품명 标题 タイトル 제목 이름 название имя عنوان اسم"
)
DESCRIPTION = _words(
    "description desc detail details body about overview summary plot abstract synopsis text bullet features "
    "beschreibung descripcion descrizione long content blurb 説明 详情 描述 설명 описание وصف"
)
CATEGORY = {
    "category": 5, "categories": 5, "cat": 5, "cate": 5, "subcategory": 5, "genre": 5, "taxonomy": 5, "breadcrumb": 5,
    "kategorie": 5, "categorie": 5, "catégorie": 5, "categoria": 5, "categoría": 5,
    "department": 4, "type": 4, "aisle": 4, "class": 3, "group": 3,
    "section": 3, "collection": 2, "family": 3, "level": 3, "topic": 3, "theme": 2, "cuisine": 3, "subclass": 3,
    "genero": 5, "gruppe": 3, "commodity": 3, "warengruppe": 5,
    "カテゴリー": 5, "カテゴリ": 5, "分類": 5, "类别": 5, "类目": 5,
    "分类": 5, "카테고리": 5, "категория": 5, "فئة": 5,
}  # fmt: skip
TAGS = _words("genre tag tags keyword keywords topic cuisine genres topics")
PROPERTY = _words("property attribute attr feature key field spec tag")
PRICE = {
    "price": 5,
    "preis": 5,
    "prix": 5,
    "precio": 5,
    "prezzo": 5,
    "cost": 3,
    "msrp": 3,
    "amount": 2,
    "value": 1,
    **dict.fromkeys(("価格", "値段", "价格", "가격", "цена", "سعر"), 5),
}
PRODUCT = _words("parent group model style master family spu base root code")
ATTRIBUTE = _words(
    "brand vendor manufacturer color colour size material gender season style author publisher language country "
    "director actor actors cast maker fabric pattern shape flavor flavour marke farbe marque couleur marca "
    "ブランド 品牌 브랜드 бренд"
)
IMAGE = _words(
    "image img picture photo pic jpeg jpg png thumbnail thumb poster cover icon imurl bytes bild imagen images "
    "pictures photos foto media 画像 图片 이미지"
)
AGE = _words("age alter edad eta")
SEGMENT = _words(
    "segment gender sex tier club status loyalty membership plan group level cohort class city country region state "
    "type occupation income geschlecht"
)
QUANTITY = _words("qty quantity count units amount menge anzahl cantidad quantite")
NOISE = _words("unnamed")  # pandas writes its row numbers under "Unnamed: 0"
OTHERS = (
    set(CATEGORY)
    | set(PRICE)
    | TITLE
    | DESCRIPTION
    | IMAGE
    | ATTRIBUTE
    | RATING
    | QUANTITY
    | POSITION
    | TIME
    | TYPE
    | _words("frequency freq total average avg mean ratio flag is has discount tax")
) - {"product", "event", "rate", "code", "model", "label", "display", "type", "content", "article", "long"}

TABLES = {
    "items": _words(
        "catalog catalogue inventory assortment meta metadata titles feed katalog catalogo stock listings dim"
    )
    | (NOUNS["item"] - {"show", "ad"}),
    "users": NOUNS["user"] | _words("people members demographics audience"),
    "events": _words(
        "event click log transaction order purchase interaction rating review view session sale behavior behaviour "
        "impression history action activity cart basket visit feedback playback play watch invoice line retail "
        "bestellung commande pedido vente venta ventas verkauf consumption clickstream"
    ),
    "queries": _words("query search term keyword queries searches"),
    "judgements": _words("judgement judgment label qrel relevance annotation labels qrels esci"),
    "images": _words("image picture photo poster thumbnail img"),
}  # words of the name of a file or a folder
NEGATIVE = _words(
    "remove delete cancel return refund dislike un unlike skip unsubscribe rm removed cancelled returned canceled "
    "refunded voided failed storniert retoure 返品 退货 取消 キャンセル 환불 취소 возврат"
)
TYPES = {
    "purchase": _words(
        "purchase buy order transaction checkout paid sale sales conversion bought complete purchased payment "
        "invoice ordered bestellung commande pedido achat compra kauf gekauft receipt retail sold sell rent "
        "rented rental booking booked reservation reserved 購入 注文 购买 订单 下单 구매 주문 покупка заказ شراء"
    ),
    "cart": _words(
        "cart addtocart added basket bag atc fav favorite favourite wishlist save bookmark like add carts like "
        "warenkorb korb merkzettel panier favori carrito cesta carrello "
        "カート カート追加 お気に入り 加购 加购物车 收藏 장바구니 찜 "
        "корзина سلة"
    ),
    "impression": _words(
        "impression show shown exposure display displayed served imp impressions exposed 表示 曝光 노출 показ"
    ),
    "click": _words(
        "click view pv open detail visit browse watch play read listen pageview clicked viewed stream views visits "
        "clickstream session seen tap clickout interaction plays listening look looked klick ansicht "
        "ansehen angesehen aufruf gesehen "
        "clic vue vu voir vista visto ver visita visite 閲覧 クリック 浏览 点击 조회 클릭 просмотр клик مشاهدة نقرة"
    ),
    "rating": _words("rating rate review rated reviews ratings stars"),
}  # the first match counts
GRADES = {
    "exact": 1.0, "perfect": 1.0, "excellent": 1.0, "e": 1.0, "relevant": 1.0, "yes": 1.0, "good": 0.7,
    "partial": 0.5, "fair": 0.4, "substitute": 0.3, "s": 0.3, "complement": 0.1, "c": 0.1, "bad": 0.0,
    "irrelevant": 0.0, "i": 0.0, "no": 0.0, "not": 0.0,
}  # fmt: skip
ALL = (
    frozenset().union(*NOUNS.values(), IDS, TIME, TYPE, TITLE, CATEGORY, PRICE, IMAGE, RATING)
    | DESCRIPTION | UPDATED | CREATED | {"unit", "sale", "list", "path", "url", "sub", "brand", "event", "file"}
)  # fmt: skip


WRAPPED = re.compile(
    r"^(properties|attributes|payload|data|params|fields|traits|body|_source|_doc)\.|:(token|float)(_seq)?$"
)  # objects that hold a whole event; the types that RecBole writes behind names


@cache
def tokens(name: str) -> tuple[str, ...]:
    """The words of a name in lower case and singular: ``visitorid`` is "visitor id", ``eventTime`` "event time"."""
    name = WRAPPED.sub("", name.rpartition("[].")[2])
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    spaced = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", spaced)
    found: list[str] = []
    for word in re.split(r"[\W_]+", spaced):
        found += _split(re.sub(r"\d+$", "", word.lower()) or word.lower()) if word else []
    return tuple(found)


def _split(word: str) -> list[str]:
    if word in ALL:
        return [word]
    single = singular(word)
    if single in ALL:
        return [single]
    for place in range(2, len(word) - 1):
        if word[:place] in ALL and (singular(word[place:]) in ALL):
            return [word[:place], singular(word[place:])]
    return [single]


def singular(word: str) -> str:
    """A plural word without its ending."""
    if word.endswith("ies") and len(word) > 4 and word not in ("movies", "series", "cookies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes")):
        return word[:-2]
    return (
        word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else word
    )


def names_id_of(name: str, entity: str) -> float:
    """How surely a column of this name holds ids of an entity, 0 to 1."""
    words = tokens(name)
    nouns = [word for word in words if word in NOUNS[entity]]
    if entity == "user" and nouns:
        words = tuple(word for word in words if word not in CALLED)
    if not nouns or any(word in OTHERS - NOUNS[entity] for word in words):
        return 0.0
    if len(words) > 1 and words[0] in COUNT:
        return 0.0
    if entity == "session" and words[-1] in nouns and len(words) > 1 and words[0] in NOUNS["user"]:
        return 0.8  # a user's session, no user
    others = [one for one in NOUNS if one != entity and set(words) & (NOUNS[one] - NOUNS[entity])]
    ids = IDS if len(words) <= 2 else IDS - COUNT
    is_id = any(word in ids for word in words) or any(word in OWN_IDS for word in nouns)
    first = next(one for word in words for one in NOUNS if word in NOUNS[one])
    if entity == "user" and set(words) & UNKNOWN:
        return 0.8 if is_id else 0.3
    certain = 1.0 if is_id and len(words) <= 2 else 0.9 if is_id else 0.8 if len(words) == 1 else 0.3
    return certain * (0.5 if others and first != entity else 0.8 if others else 1.0)


def is_bare_id(name: str) -> bool:
    """Whether the name is that of an id without saying of what: ``id``, ``_id``, ``key``."""
    words = tokens(name)
    return bool(words) and all(word in IDS for word in words)


def is_event_id(name: str) -> bool:
    """Whether the name is that of an event's own id; a bare ``id`` is as often the number of a row in its file."""
    words = set(tokens(name))
    return (
        bool(words & {"event", "interaction"})
        and bool(words & IDS)
        and words <= {"event", "interaction"} | IDS
    )


def is_unnamed(name: str) -> bool:
    """Whether the importer made the name up, for a file without a header."""
    return re.fullmatch(r"column\d+", name) is not None


def event_type(text: str) -> str | None:
    """The event type that a word of a log, or the name of a file, stands for."""
    words = set(tokens(text)) | {text.lower().replace("_", "").replace("-", "").replace(" ", "")}
    if is_taken_back(text):
        return None
    if "list" in words and words & TYPES["click"]:
        return "impression"  # a list that was seen is no click on each of its items
    return next((kind for kind, known in TYPES.items() if words & known), None)


def is_taken_back(text: str) -> bool:
    """Whether a word of a log says that something was undone."""
    return bool(set(tokens(text)) & NEGATIVE)


def table_of(name: str) -> str | None:
    """Which table a file or folder of this name usually is."""
    words = tokens(name)
    for table in ("judgements", "images", "queries", "events", "users", "items"):
        if set(words) & TABLES[table]:
            return table
    return None
