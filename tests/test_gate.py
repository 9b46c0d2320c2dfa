"""The gate and the layer around it, one request at a time: who comes in, what the others are told, what is noted.

Requests are ASGI scopes and the clock is the test's; whole services are in test_service_keys.py.

Run: pytest tests/test_gate.py
"""

import asyncio
import base64
import contextvars
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset.contracts import DataError
from feature_repo.ingest.arrivals import TooManyEvents
from serving import access as access_module
from serving.access import Access
from serving.gate import Gate
from serving.headers import HEADERS
from serving.keys import ANYONE, STRANGER, Caller, Key, KeyRing, KeysError, create_key, digest_of, revoke_key
from serving.limits import MOST_CALLERS, Buckets
from serving.logs import REQUEST_ID, JsonLines
from serving.refusals import error_response
from serving.settings import Settings

READ, WRITE, ALL = "key to read", "key to write", "key for all"
KEYS = [
    Key(name="reader", scopes=("read",), sha256=digest_of(READ)),
    Key(name="writer", scopes=("write",), sha256=digest_of(WRITE)),
    Key(name="all", scopes=("write", "read", "admin"), sha256=digest_of(ALL)),
]


class Sent(list):
    """What an application answered."""

    async def send(self, message):
        self.append(message)

    @property
    def status(self):
        return self[0]["status"]

    @property
    def headers(self):
        return [(name.decode(), value.decode()) for name, value in self[0]["headers"]]

    @property
    def json(self):
        return json.loads(self[1]["body"])


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


def ask(app, method="GET", path="/recommend", host="localhost", client=("10.0.0.1", 1), **headers):
    """One request; the application behind says who came in."""
    named = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "client": client, "headers": named}
    if host is not None:
        scope["headers"] = [(b"host", host.encode()), *named]
    sent = Sent()
    asyncio.run(app(scope, receive, sent.send))
    return sent


async def inside(scope, receive, send):
    """Whoever comes in is told who they are."""
    caller = scope["caller"]
    content = json.dumps([caller.name, sorted(caller.scopes)]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": content})


def gate(keys=KEYS, **settings):
    return Gate(inside, Settings(run=Path("run"), **settings), KeyRing(None, keys))


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("method", "authorization", "name"),
    [
        ("GET", f"Bearer {READ}", "reader"),
        ("GET", f"bEARER {READ}", "reader"),
        ("GET", f"Bearer   {READ} ", "reader"),
        ("GET", basic(f"me:{READ}"), "reader"),
        ("GET", basic(f"me:{READ}").replace("Basic", "bASIC"), "reader"),
        ("GET", basic(f":{READ}"), "reader"),
        ("GET", basic(READ), None),
        ("GET", basic(f"{READ}:me"), None),
        ("GET", basic(f"me:{READ}") + "!", None),
        ("GET", "Basic gP8=", None),
        ("HEAD", basic(f"me:{READ}"), None),
        ("GET", READ, None),
        ("GET", f"Digest {READ}", None),
        ("GET", "Bearer", None),
        ("GET", "", None),
    ],
)
def test_a_key_is_what_follows_bearer_or_the_password_of_a_browser(method, authorization, name):
    """Keys of this test have spaces in them, so that only the first one divides."""
    sent = ask(gate(), method, authorization=authorization)
    assert sent.status == (200 if name else 401)
    assert name is None or sent.json == [name, ["read"]]


def test_a_password_may_hold_colons():
    key = Key(name="colon", scopes=("read",), sha256=digest_of("a:b"))
    assert ask(gate([key]), authorization=basic("me:a:b")).json == ["colon", ["read"]]


def test_who_has_no_key_is_told_how_to_send_one():
    bearer, browser = ("www-authenticate", 'Bearer realm="moon"'), (
        "www-authenticate", 'Basic realm="moon", charset="UTF-8"',
    )  # fmt: skip
    for method, asked, scope in (
        ("GET", [bearer, browser], "read"),
        ("POST", [bearer], "write"),
        ("HEAD", [bearer], "read"),
    ):
        sent = ask(gate(), method, "/items")
        assert sent.status == 401
        assert sent.json == {"error": f"expected 'Authorization: Bearer KEY' with a key of scope {scope}"}
        assert [(name.lower(), value) for name, value in sent.headers if "www" in name.lower()] == asked


def test_a_key_for_something_else_is_told_what_it_may_and_what_is_needed():
    for method, path, key, says in (
        ("POST", "/items", READ, "this key may read; scope needed: write"),
        ("GET", "/recommend", WRITE, "this key may write; scope needed: read"),
        ("GET", "/metrics", READ, "this key may read; scope needed: admin"),
    ):
        sent = ask(gate(), method, path, authorization=f"Bearer {key}")
        assert (sent.status, sent.json) == (403, {"error": says})
        assert not [one for one in sent.headers if one[0].lower() == "www-authenticate"]
    two = Key(name="two", scopes=("write", "read"), sha256=digest_of("2"))
    sent = ask(gate([two]), path="/metrics", authorization="Bearer 2")
    assert sent.json == {"error": "this key may read and write; scope needed: admin"}


def test_without_keys_everybody_may_do_everything_and_a_probe_asks_for_none():
    assert ask(gate(None), "POST", "/items").json == ["", ["admin", "read", "write"]]
    for path in ("/healthz", "/readyz"):
        assert ask(gate(), path=path).json == ["", []]
        assert ask(gate(), path=path, authorization=f"Bearer {ALL}").json == [
            "all",
            ["admin", "read", "write"],
        ]
    assert (ANYONE, STRANGER) == (
        Caller("", frozenset({"read", "write", "admin"})), Caller("", frozenset()),
    )  # fmt: skip
    assert KeyRing(None, []).caller("any") is None and KeyRing(None, KEYS).caller(None) is None


@pytest.mark.parametrize(
    ("length", "status"),
    [("0", 200), ("1000", 200), ("1001", 413), ("9" * 5000, 413), ("-1", 413), ("1e2", 413), ("", 413)],
)
def test_a_body_is_refused_by_what_it_says_of_its_length(length, status):
    sent = ask(gate(max_body_bytes=1000), "POST", authorization=f"Bearer {WRITE}", content_length=length)
    assert sent.status == status
    if status == 413:
        assert sent.json == {"error": f"the body has {length[:20]} bytes: at most 1000 are read"}


def test_a_body_that_says_nothing_of_its_length_is_let_in():
    assert ask(gate(max_body_bytes=1), "POST", authorization=f"Bearer {WRITE}").status == 200


@pytest.mark.parametrize(
    ("host", "ours"),
    [("shop.test", True), ("SHOP.test:8000", True), ("Front.Test", True), ("testserver", True), ("localhost", True),
     ("127.0.0.1", True), ("[::1]:80", True), ("10.0.0.5:8000", True), ("shop.test:", False),
     ("shop.test:x", False), ("other.test", False), ("[shop.test]", False), (None, False)],
)  # fmt: skip
def test_only_its_own_names_and_addresses_reach_a_service(host, ours):
    sent = ask(gate(host="Shop.Test", hosts=("frONT.test",)), host=host, authorization=f"Bearer {READ}")
    assert sent.status == (200 if ours else 400)
    if not ours:
        assert sent.json == {
            "error": "this service does not answer to that host name: see 'moon serve --allow-host NAME'"
        }


def test_the_limit_counts_by_key_else_by_address_and_says_when_to_come_back(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("serving.gate.Buckets", lambda per_s, burst: Buckets(per_s, burst, lambda: now[0]))
    tight = gate(requests_per_s=1, burst=1)
    statuses = lambda times, **sent: [ask(tight, **sent).status for _ in range(times)]  # noqa: E731
    mine = {"authorization": f"Bearer {READ}"}
    assert statuses(2, **mine) == [200, 429]
    assert statuses(1, client=("10.0.0.2", 1), **mine) == [429], "from wherever it is sent"
    assert statuses(2, authorization="Bearer no") == [401, 429]
    assert statuses(2, client=("10.0.0.3", 1)) == [401, 429], "another address"
    assert statuses(2, client=None) == [401, 429], "none at all"
    now[0] = 0.25
    sent = ask(tight, **mine)
    assert sent.json == {"error": "too many requests"}
    assert [value for name, value in sent.headers if name == "retry-after"] == ["1"]
    keyless = gate(None, requests_per_s=1, burst=1)
    assert [ask(keyless, client=(address, 1)).status for address in "aab"] == [200, 429, 200]


def test_a_wait_is_said_in_whole_seconds_rounded_up(monkeypatch):
    for wait, said in ((0.01, "1"), (1.0, "1"), (1.2, "2")):
        monkeypatch.setattr("serving.gate.Buckets", lambda *_, w=wait: SimpleNamespace(wait_s=lambda who: w))
        assert ("retry-after", said) in ask(gate()).headers


def test_what_is_no_request_passes_the_gate_and_the_layer_around_it():
    passed = []

    async def app(scope, receive, send):
        passed.append(scope)

    for layer in (Gate(app, Settings(run=Path("run")), KeyRing(None, KEYS)), Access(app, None)):
        asyncio.run(layer({"type": "lifespan"}, receive, None))
    assert passed == [{"type": "lifespan"}] * 2


def test_a_bucket_by_hand():
    now = [100.0]
    bucket = Buckets(2, 3, lambda: now[0])
    assert [bucket.wait_s("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    now[0] += 0.25
    assert bucket.wait_s("a") == 0.25
    now[0] += 0.25
    assert [bucket.wait_s("a"), bucket.wait_s("a")] == [0, 0.5]
    now[0] += 1000
    assert [bucket.wait_s("a") for _ in range(4)] == [0, 0, 0, 0.5], "no more than it holds"
    assert MOST_CALLERS == 10_000 and Buckets(1, 1)._most == 10_000 and Buckets(1, 1)._clock is time.monotonic


def test_a_key_file_is_written_as_it_is_documented(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "keys.json"
    moment = datetime(2026, 3, 1, 4, 5, 6, 789, UTC)
    monkeypatch.setattr("serving.keys.datetime", SimpleNamespace(now=lambda zone: moment.astimezone(zone)))
    monkeypatch.setattr("serving.keys.secrets", SimpleNamespace(token_urlsafe=lambda size: "s" * size))
    key = create_key(path, "shop", ["write", "read", "write"])
    assert key == "moon_" + "s" * 32
    digest = digest_of(key)
    assert json.loads(path.read_text()) == {
        "keys": [
            {"name": "shop", "scopes": ["write", "read"], "sha256": digest, "created": "2026-03-01T04:05:06Z"}
        ]
    }
    assert digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert revoke_key(path, digest[:8]) == 1
    with pytest.raises(KeysError, match=r"no key 'shop'; there are: none\. Run 'moon keys list'\.$"):
        revoke_key(path, "shop")


@pytest.mark.parametrize(
    ("name", "fits"),
    [("a" * 64, True), ("a" * 65, False), ("", False), ("A.z_9-", True), ("a b", False), ("ä", False)],
)
def test_a_name_is_short_and_plain(name, fits, tmp_path):
    if fits:
        create_key(tmp_path / "keys.json", name, ["read"])
    else:
        with pytest.raises(KeysError, match="at most 64 letters"):
            create_key(tmp_path / "keys.json", name, ["read"])


def test_the_fault_of_a_keys_file_is_named_by_its_place(tmp_path):
    path = tmp_path / "keys.json"
    for content, place in (
        ('{"keys": [{"name": "a", "scopes": ["root"], "sha256": "%s"}]}' % ("0" * 64), "keys.0.scopes.0"),
        ('{"keys": [], "more": 1}', "more"),
        ('{"keys": [{"name": "a", "scopes": ["read"], "sha256": "%s", "b": 1}]}' % ("0" * 64), "keys.0.b"),
        ("7", "the whole"),
    ):
        path.write_text(content)
        with pytest.raises(KeysError, match=rf"keys\.json: expected .* found a fault at {place}: "):
            KeyRing(path)


LATER = 0.1234567


class Telemetry:
    """Keeps what is counted."""

    def __init__(self):
        self.in_flight, self.counted = 0, []

    def responded(self, *what):
        self.counted.append((*what, self.in_flight))


@pytest.fixture
def clock(monkeypatch):
    """The layer's clock: each look is LATER seconds after the one before."""
    looks = iter(range(100))
    monkeypatch.setattr(access_module, "time", SimpleNamespace(perf_counter=lambda: next(looks) * LATER))


@pytest.mark.parametrize(("known", "name"), [(True, "reader"), (False, "")])
def test_a_request_is_one_line_one_count_and_one_answer(clock, caplog, known, name):
    telemetry, seen = Telemetry(), []

    async def app(scope, receive, send):
        seen.append((telemetry.in_flight, REQUEST_ID.get()))
        scope["route"] = SimpleNamespace(path_format="/image/{image_id}")
        if known:
            scope["caller"] = Caller("reader", frozenset())
        await send({"type": "http.response.start", "status": 204, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"c"})

    caplog.set_level(logging.INFO, "moon.access")
    sent = ask(Access(app, telemetry), "PUT", "/image/7", x_request_id="mine")
    assert seen == [(1, "mine")]
    assert sent[0]["headers"] == [(b"a", b"b"), *HEADERS, (b"x-request-id", b"mine")]
    assert sent[1] == {"type": "http.response.body", "body": b"c"}
    assert telemetry.counted == [("/image/{image_id}", 204, LATER, 0)]
    (record,) = caplog.records
    record.created = 1.5
    REQUEST_ID.set("mine")
    assert json.loads(JsonLines().format(record)) == {
        "time": "1970-01-01T00:00:01.500+00:00",
        "level": "info",
        "logger": "moon.access",
        "message": "answered",
        "request_id": "mine",
        "method": "PUT",
        "route": "/image/{image_id}",
        "status": 204,
        "ms": 123.46,
        "key": name,
    }


def test_an_id_that_the_client_does_not_give_is_sixteen_digits_and_a_header_like_it_is_none(clock):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path_format="/")
        await send({"type": "http.response.start", "status": 200})

    sent = ask(Access(app, Telemetry()), x_other="mine")
    (found,) = [value for name, value in sent.headers if name == "x-request-id"]
    assert len(found) == 16 and int(found, 16) >= 0
    assert sent[0]["headers"][:-1] == list(HEADERS)


def test_outside_of_requests_there_is_no_id():
    assert contextvars.Context().run(REQUEST_ID.get) == ""


def test_a_log_that_is_off_is_not_written_and_the_count_goes_on(clock, caplog):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path_format="/")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    telemetry = Telemetry()
    caplog.set_level(logging.WARNING, "moon.access")
    ask(Access(app, telemetry))
    assert not caplog.records and telemetry.counted == [("/", 200, LATER, 0)]


def test_the_headers_of_every_answer():
    headers = {name.decode(): value.decode() for name, value in HEADERS}
    policy = headers.pop("content-security-policy").split("; ")
    assert headers == {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
    }
    assert policy[1].startswith("style-src 'sha256-") and len(base64.b64decode(policy[1][18:-1])) == 32
    assert [policy[0], *policy[2:]] == [
        "default-src 'none'",
        "img-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]


@pytest.mark.parametrize("status", [400, 499, 500, 503])
def test_a_failure_of_the_service_names_the_request_and_a_refusal_does_not(status):
    REQUEST_ID.set("r9")
    answer = error_response(status, "why", {"Retry-After": "1"})
    assert answer.status_code == status and answer.headers["retry-after"] == "1"
    named = {"request_id": "r9"} if status >= 500 else {}
    assert json.loads(answer.body) == {"error": "why", **named}


def test_faults_of_data_are_refused_by_their_kind():
    from fastapi import FastAPI

    from feature_repo.ingest.item_states import UnknownItem
    from feature_repo.online import StoreUnavailable
    from serving.refusals import add_refusals

    app = FastAPI()
    add_refusals(app)
    REQUEST_ID.set("r8")
    for error, status, content in (
        (TooManyEvents("7 of 3"), 413, {"error": "7 of 3"}),
        (DataError("no time"), 422, {"error": "no time"}),
        (UnknownItem("no item 7"), 404, {"error": "no item 7"}),
        (
            StoreUnavailable("10.0.0.9"),
            503,
            {
                "error": "the online store does not answer; what was received is kept, telling it again is safe",
                "request_id": "r8",
            },
        ),
    ):
        kind = next(kind for kind in type(error).__mro__ if kind in app.exception_handlers)
        answer = asyncio.run(app.exception_handlers[kind](None, error))
        assert (answer.status_code, json.loads(answer.body)) == (status, content)
        assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
