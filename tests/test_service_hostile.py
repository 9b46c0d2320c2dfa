"""Careless, curious and hostile requests: each is refused with a reason, at once, and nothing of it is kept.

``HOSTILE`` lists them; a line of it is one request. What is refused for want of a key is in test_service_keys.py.

Run: pytest tests/test_service_hostile.py
"""

import base64
import io
import json
import re
import struct
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_shop import ITEM_IDS, picture, recommender
from fastapi.testclient import TestClient
from PIL import Image

from feature_repo.ingest.ingestor import Ingested
from feature_repo.online import StoreUnavailable
from serving.app import create_app
from serving.headers import HEADERS
from serving.intake import Intake
from serving.settings import Settings
from serving.work import Work
from tests import promises

LIMIT = 2 * 2**20
EVENT = {"event_id": 1, "user_id": 2, "item_id": 3, "type": "click"}
ITEM = {"item_id": 10**6, "title": "mug"}
HELD = int(ITEM_IDS[0])


@dataclass(frozen=True)
class Hostile:
    """A request, the status it gets, and a word of the reason."""

    name: str
    method: str
    path: str
    status: int
    says: str = ""
    sent: dict[str, Any] = field(default_factory=dict)


def raw(body, kind="application/json"):
    return {
        "content": body if isinstance(body, bytes) else body.encode(),
        "headers": {"content-type": kind},
    }


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *extra):
    """A PNG that claims a size and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def tiff():
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "TIFF")
    return out.getvalue()


def ids():
    bad = ("-1", str(2**63), "NaN", "true", "7.0", "1e3", "", " 7", "٧", "9" * 5000, "0x10", "null", "1;drop")
    for value in bad:
        for path, name in (("/recommend", "user_id"), ("/similar", "item_id")):
            yield Hostile(f"{name} {value[:9]!r}", "GET", path, 422, name, {"params": {name: value}})


def counts():
    for k in ("0", "201", "-3", "1.5", "NaN", "9" * 400):
        yield Hostile(f"k {k[:9]}", "GET", "/recommend", 422, "k", {"params": {"user_id": "1", "k": k}})
    for query in ("user_id=1&k=2&k=3", "user_id=1&user_id=2", "user_id=1&category=Men&category=Women"):
        yield Hostile(f"repeated: {query}", "GET", f"/recommend?{query}", 422, "more than once")
    yield Hostile("repeated item_id", "GET", "/similar?item_id=7&item_id=8", 422, "more than once")
    yield Hostile("unknown parameter", "GET", "/recommend?user_id=1&catgory=Men", 422, "catgory")
    many = "&".join(f"session={n}" for n in range(101))
    yield Hostile("a session of 101 items", "GET", f"/recommend?user_id=1&{many}", 422, "session")


def bodies():
    """JSON that is broken, deep, long, repeated or of the wrong kind, at each door that reads JSON."""
    good = {"/search": {"text": "mug"}, "/events": [EVENT], "/items": ITEM}
    for path, one in good.items():
        text = json.dumps(one)
        inner = text[1:-1] if path != "/events" else text[2:-2]
        around = "{%s}" if path != "/events" else "[{%s}]"
        first = inner.split(":")[0]
        for name, body in {
            "empty": "",
            "truncated": text[:-2],
            "a number": "7",
            "null": "null",
            "not UTF-8": text.replace("mug", "\xff").encode("latin-1") if "mug" in text else b"[\xff]",
            "deep": '{"a":' * 50_000 + "1" + "}" * 50_000,
            "deep lists": "[" * 200_000,
            "an unknown field": around % f'{inner}, "admin": true',
            "a key twice": around % f"{inner}, {inner}",
            "a key twice, escaped": around % f'{inner}, "\\u00{ord(first[1]):02x}{first[2:]}: 1',
            "two documents": text + text,
            "NaN": around % f'{first}: NaN',
            "an integer of 5000 digits": around % f"{first}: {'9' * 5000}",
            "an integer as text": around % f'{first}: {{"$gt": 0}}',
            "200,000 empty objects": "[" + "{}," * 200_000 + "{}]",
            "400,000 numbers": "[" + "1," * 400_000 + "1]",
        }.items():  # fmt: skip
            yield Hostile(f"{path}: {name}", "POST", path, 422, sent=raw(body))
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
            yield Hostile(f"{path}: as {kind!r}", "POST", path, 415, "application/json", raw(text, kind))
        yield Hostile(f"{path}: too long", "POST", path, 413, "bytes", raw(" " * (LIMIT + 1)))
        yield Hostile(
            f"{path}: too long, in chunks",
            "POST",
            path,
            413,
            sent={
                "content": lambda: (b" " * 2**20 for _ in range(3)),
                "headers": {"content-type": "application/json"},
            },
        )
    yield Hostile("1,001 events", "POST", "/events", 413, "1000", {"json": [EVENT] * 1001})
    repeated = "[{" + '"event_id": 1, ' * 30_000 + json.dumps(EVENT)[1:] + "]"
    yield Hostile("one key 30,000 times", "POST", "/events", 422, "keys", raw(repeated))


def items():
    for name, changed in {
        "a price of 1e308": {"price": 1e308},
        "a negative price": {"price": -1},
        "a price as text": {"price": "0"},
        "no title and no picture": {"title": None},
        "a title of invisible characters": {"title": "\u200b\u202e\0"},
        "a title of 100,001 characters": {"title": "m" * 100_001},
        "101 categories": {"category": ["mug"] * 101},
        "an empty category": {"category": [""]},
        "a picture by address": {"image_base64": "http://169.254.169.254/latest/meta-data"},
        "a picture by path": {"image_base64": "file:///etc/passwd"},
    }.items():
        yield Hostile(f"an item with {name}", "POST", "/items", 422, sent={"json": ITEM | changed})
    yield Hostile(
        "an item that is there", "POST", "/items", 409, "overwrite", {"json": ITEM | {"item_id": HELD}}
    )
    yield Hostile(
        "overwriting by another word", "POST", "/items?overwrite=perhaps", 422, "overwrite", {"json": ITEM}
    )
    for name, changed in {
        "no type": {"type": None},
        "another type": {"type": "refund"},
        "a rating without a value": {"type": "rating"},
        "a rating of 1e308": {"type": "rating", "value": 1e308},
        "a time in 1970": {"event_time": "1970-01-01T00:00:00Z"},
        "an infinite rating": {"type": "rating", "value": "inf"},
        "a time without a zone": {"event_time": "2026-01-01T00:00:00"},
        "no time at all": {"event_time": "yesterday"},
        "a position below 0": {"position": -1},
    }.items():
        yield Hostile(f"an event with {name}", "POST", "/events", 422, sent={"json": [EVENT | changed]})


def states():
    for item_id in ("-1", str(2**63), "7.0", "x", "9" * 5000, "%00"):
        yield Hostile(f"deleting item {item_id[:9]}", "DELETE", f"/items/{item_id}", 422)
    gone = {"state": "inactive"}
    for name, status, sent in (
        ("an unknown state", 422, {"json": {"state": "free"}}),
        ("no state", 422, {"json": {}}),
        ("a state twice", 422, raw('{"state": "active", "state": "inactive"}')),
        ("another field", 422, {"json": gone | {"price": 0}}),
        ("a text", 415, raw(json.dumps(gone), "text/plain")),
    ):
        yield Hostile(f"changing an item's state by {name}", "PUT", "/items/7/state", status, sent=sent)
    yield Hostile("a state of an item that is no number", "PUT", "/items/x/state", 422, sent={"json": gone})


def pictures():
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * 2**26))
    for name, content in {
        "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\nshowpage\n",
        "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "a PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        "a TIFF": tiff(),
        "HTML": b"<!doctype html><img src=x onerror=alert(1)>",
        "50,000 x 50,000 pixels": png(50_000, 50_000),
        "a text chunk of 64 MB in a few kB": png(8, 8, bomb),
        "a truncated JPEG": picture("JPEG", (90, 90))[:-300],
        "noise": bytes(range(256)) * 40,
        "nothing": b"",
    }.items():
        encoded = base64.b64encode(content).decode()
        yield Hostile(f"{name} to /search", "POST", "/search", 422, sent={"json": {"image_base64": encoded}})
        yield Hostile(
            f"{name} to /items", "POST", "/items", 422, sent={"json": ITEM | {"image_base64": encoded}}
        )
        for path in ("/search", "/"):
            upload = {"files": {"image": ("a.png", content)}}
            yield Hostile(f"{name} as an upload to {path}", "POST", path, 422, sent=upload)
    large = {"files": {"image": ("a.png", b"x" * (2**20 + 1))}}
    for path in ("/search", "/"):
        yield Hostile(f"a picture of too many bytes to {path}", "POST", path, 413, "bytes", large)


def forms():
    one = ("image", ("a.png", picture()))
    part = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n"
    long = b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n--x--"
    for name, status, sent in (
        ("two files", 400, {"files": [one, one]}),
        ("500 files", 400, {"files": [one] * 500}),
        ("nine fields", 400, {"data": {f"f{n}": "x" for n in range(9)}, "files": [one]}),
        ("an unknown field", 422, {"data": {"admin": "1"}, "files": [one]}),
        ("a field twice", 422, {"data": {"k": ["5", "6"]}, "files": [one]}),
        ("a picture that is text", 422, {"files": {"image": (None, "text")}}),
        ("no boundary", 400, raw(b"--x\r\n\r\n--x--", "multipart/form-data")),
        ("20,000 parts", 400, raw(part * 20_000, "multipart/form-data; boundary=x")),
        ("a part of 100 kB of headers", 400, raw(long, "multipart/form-data; boundary=x")),
    ):  # fmt: skip
        for path in ("/search", "/"):
            yield Hostile(f"a form with {name} to {path}", "POST", path, status, sent=sent)


def addresses():
    for path in (
        "/image/../../etc/passwd",
        "/image/..%2f..%2f..%2fetc%2fpasswd",
        "/image/%2e%2e%2f%2e%2e%2frun.json",
        "/image/..%5c..%5cboot.ini",
        "/image/%00",
        "/image/" + "a" * 10_000,
        "/static/../keys.json",
        "/.git/config",
        "//etc/passwd",
        "/docs",
        "/recommend%0d%0aX-Evil:%201",
    ):
        yield Hostile(f"GET {path[:40]}", "GET", path, 404)
    evil = {"params": {"user_id": "1", "category": "x\r\nX-Evil: 1\r\n\r\n<script>"}}
    yield Hostile("line breaks in a category", "GET", "/recommend", 404, "category", evil)
    for method, path in (
        ("PUT", "/items"),
        ("PATCH", "/items"),
        ("DELETE", "/events"),
        ("GET", "/events"),
        ("POST", "/recommend"),
        ("TRACE", "/"),
        ("HEAD", "/recommend?user_id=1"),
        ("OPTIONS", "/events"),
    ):
        yield Hostile(f"{method} {path}", method, path, 405)
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    yield Hostile("a preflight of another site", "OPTIONS", "/items", 405, sent={"headers": preflight})


def hosts():
    for host in (
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "moon",
        "localhost@evil.example", "[::1].evil.example", "2130706433x", "localhost:80:80",
    ):  # fmt: skip
        for method, path in (("POST", "/items"), ("GET", "/recommend?user_id=1")):
            sent = {"json": ITEM} if method == "POST" else {}
            yield Hostile(
                f"{method} for host {host!r}", method, path, 400, "host", sent | {"headers": {"host": host}}
            )
    two = {"headers": [("host", "localhost"), ("host", "evil.example")]}
    yield Hostile("two hosts", "GET", "/recommend?user_id=1", 400, "host", two)


HOSTILE = [
    one
    for kind in (ids, counts, bodies, items, states, pictures, forms, addresses, hosts)
    for one in kind()
]  # fmt: skip


class Kept(Intake):
    """Where events and items would end up."""

    def __init__(self):
        self.work, self.failed, self.problem = Work("intake", 16), 0, ""
        self.events, self.items, self.states = [], {}, {}

    def unwritable(self):
        return ""

    def clear(self):
        self.events.clear()
        self.items.clear()
        self.states.clear()

    def nothing(self):
        return not self.events and not self.items and not self.states

    async def take(self, events):
        self.events += events
        return Ingested(len(events), 0, 0)

    async def kept(self, item_id):
        return self.items.get(item_id), "active"

    async def keep(self, item):
        self.items[item.item_id] = item

    async def set_state(self, item_id, state):
        self.states[item_id] = state


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    kept = Kept()
    settings = Settings(
        run=tmp_path_factory.mktemp("run"), max_body_bytes=LIMIT, max_image_bytes=2**20, burst=10**6
    )
    return TestClient(create_app(settings, recommender(), kept), raise_server_exceptions=False), kept


def reason(answer):
    """Why a request was refused, and nothing else; the page says it in its own way."""
    if answer.headers["content-type"].startswith("text/html"):
        assert "class='card'" not in answer.text
        (said,) = re.findall("<p class='flag'>(.*?)</p>", answer.text)
        return said
    assert set(answer.json()) == {"error"} and len(answer.text) < 1000
    return answer.json()["error"]


def test_there_is_one_of_each_name():
    assert len({one.name for one in HOSTILE}) == len(HOSTILE) > 200


@pytest.mark.parametrize("one", HOSTILE, ids=[one.name for one in HOSTILE])
def test_a_hostile_request_is_refused_at_once_and_leaves_nothing(service, one):
    client, kept = service
    kept.clear()
    sent = dict(one.sent)
    if callable(sent.get("content")):
        sent["content"] = sent["content"]()
    began = time.process_time()
    answer = client.request(one.method, one.path, **sent)
    assert time.process_time() - began < 1.5  # decoding a bomb takes longer
    assert answer.status_code == one.status, answer.text
    if one.method != "HEAD":
        assert one.says in reason(answer)
    promises.record(promises.REQUESTS, f"{one.method} {one.path[:60]} {one.name}", 1)
    assert "x-evil" not in answer.headers and "access-control-allow-origin" not in answer.headers
    assert {(name.decode(), value.decode()) for name, value in HEADERS} <= set(answer.headers.items())
    assert kept.nothing()


def test_after_all_of_them_the_service_answers_as_before(service):
    client, _ = service
    answer = client.get("/recommend?user_id=4&k=5")
    assert answer.status_code == 200 and answer.json()["order"] == "ranker"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "10.1.2.3", "shop.test"]
)
def test_a_service_answers_to_its_names_and_to_addresses(tmp_path, host):
    """No site can be named like an address, so that one is never a page of another site."""
    settings = Settings(run=tmp_path, hosts=("Shop.test",))
    client = TestClient(create_app(settings, recommender()))
    assert client.get("/recommend?user_id=1", headers={"host": host}).status_code == 200


def test_an_item_that_exists_is_replaced_only_when_that_is_asked_for(tmp_path):
    kept = Kept()
    client = TestClient(create_app(Settings(run=tmp_path), recommender(), kept))
    for item_id in (HELD, ITEM["item_id"]):  # one of the catalogue, and one that is posted now
        first, other = (
            ITEM | {"item_id": item_id},
            ITEM | {"item_id": item_id, "title": "free mugs", "price": 0},
        )
        if item_id != HELD:
            assert client.post("/items", json=first).status_code == 202
            assert client.post("/items", json=first).status_code == 202  # sent again: nothing changes
        assert client.post("/items", json=other).status_code == 409
        assert client.post("/items?overwrite=false", json=other).status_code == 409
        assert client.post("/items?overwrite=true", json=other).status_code == 202
        assert kept.items[item_id].title == "free mugs"


@pytest.mark.parametrize("path", ["/events", "/?user_id=4", "/readyz"])
def test_nobody_is_told_where_the_store_is(tmp_path, path):
    where = "Error 111 connecting to 10.0.0.9:6379; /var/lib/moon/store"
    kept, moon = Kept(), recommender()

    def away(*_, **__):
        raise StoreUnavailable(f"the online store does not answer: {where}")

    kept.take = moon.reader.read_user = away
    client = TestClient(create_app(Settings(run=tmp_path), moon, kept))
    answer = client.post(path, json=[EVENT]) if path == "/events" else client.get(path)
    assert "6379" not in answer.text and "/var/lib" not in answer.text
    assert path != "/events" or (answer.status_code == 503 and "does not answer" in answer.json()["error"])
