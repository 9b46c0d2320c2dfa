"""What the endpoints say, word for word: the document, readiness, answers, arrivals, and what their bodies may be.

The shop behind them is fake and nothing is trained; what the answers are made of is in test_service_answers.py.

Run: pytest tests/test_endpoints_to_the_letter.py
"""

import asyncio
import base64
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from fake_shop import ARTIFACTS, ITEM_IDS, picture, recommender
from fastapi.testclient import TestClient
from test_service_hostile import EVENT, ITEM, Kept

from dataset.contracts import DataError
from dataset.records import DELETED, Event, Item, ItemState
from feature_repo.ingest.ingestor import Ingested
from serving import telemetry as telemetry_module
from serving.answer import Answer, Hit
from serving.app import create_app
from serving.bodies import refuse_repeated
from serving.endpoints.answers import _content, _server_timing
from serving.endpoints.arrivals import _conflicts
from serving.endpoints.operations import _degraded
from serving.keys import create_key
from serving.openapi import REFUSALS, refused_with
from serving.questions import Refused, SearchQuestion
from serving.settings import Settings

HELD = int(ITEM_IDS[0])
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
    "required": ["error"],
}


@pytest.fixture
def moon():
    return recommender()


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def client(tmp_path, moon, kept):
    settings = Settings(run=tmp_path, max_image_bytes=10_000, max_image_pixels=10_000, body_deadline_s=5)
    return TestClient(create_app(settings, moon, kept), raise_server_exceptions=False)


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def test_the_document_says_how_a_key_is_sent(document):
    assert document["components"]["securitySchemes"] == {
        "key": {"type": "http", "scheme": "bearer"},
        "browser": {
            "type": "http",
            "scheme": "basic",
            "description": "GET, and POST of the page; the password is a key",
        },
    }
    assert document["security"] == [{"key": []}, {"browser": []}, {}]
    assert document["info"]["title"] == "Moon" and "HTTPValidationError" in document["components"]["schemas"]


def test_the_document_names_every_refusal_of_every_route(document):
    everywhere = {400, 401, 403, 413, 429}
    own = {
        ("/recommend", "get"): {200, 404, 422, 503},
        ("/similar", "get"): {200, 404, 422, 503},
        ("/search", "post"): {200, 408, 415, 422, 503},
        ("/image/{image_id}", "get"): {200, 404, 422, 503},
        ("/", "get"): {200, 422, 503},
        ("/", "post"): {200, 408, 415, 422, 503},
        ("/events", "post"): {200, 408, 409, 415, 422, 503},
        ("/items", "post"): {202, 408, 409, 415, 422, 503},
        ("/items/{item_id}/state", "put"): {202, 404, 408, 415, 422, 503},
        ("/items/{item_id}", "delete"): {202, 404, 422, 503},
        ("/readyz", "get"): {200, 503},
        ("/metrics", "get"): {200},
    }
    found = {
        (path, method): {int(status) for status in one["responses"]}
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    }
    assert found.pop(("/healthz", "get")) == {200}
    assert found == {route: statuses | everywhere for route, statuses in own.items()}
    responses = document["paths"]["/metrics"]["get"]["responses"]
    for status in everywhere:
        assert responses[str(status)] == {
            "description": REFUSALS[status],
            "content": {"application/json": {"schema": ERROR}},
        }
    assert list(refused_with(503, 404, 400)) == [400, 401, 403, 404, 413, 429, 503]


def test_the_document_shows_every_body_with_an_example_that_is_valid(document):
    def body(path, method="post"):
        found = document["paths"][path][method]["requestBody"]
        assert found["required"] is True
        return found["content"]

    assert {path: list(body(path)) for path in ("/events", "/items", "/search")} == {
        "/events": ["application/json"],
        "/items": ["application/json"],
        "/search": ["application/json", "multipart/form-data"],
    }
    events = body("/events")["application/json"]
    assert (events["schema"]["type"], events["schema"]["maxItems"]) == ("array", 1000)
    assert events["schema"]["items"]["properties"].keys() == Event.model_json_schema()["properties"].keys()
    assert events["example"] == [{"event_id": 900001, "user_id": 1, "item_id": 10001, "type": "click"}]
    assert Event.model_validate_json(json.dumps(events["example"][0])).type == "click"
    item = body("/items")["application/json"]
    assert item["schema"]["properties"].keys() == Item.model_json_schema()["properties"].keys()
    assert item["example"] == {
        "item_id": 900001, "title": "red striped mug", "category": ["kitchen", "mug"], "price": 12.5,
    }  # fmt: skip
    assert Item.model_validate_json(json.dumps(item["example"])).price == 12.5
    state = body("/items/{item_id}/state", "put")["application/json"]
    assert state["example"] == {"state": "out_of_stock"}
    assert ItemState.model_validate(state["example"]).state == "out_of_stock"
    search = body("/search")
    assert search["application/json"]["example"] == {"text": "red striped mug", "k": 5}
    assert SearchQuestion.model_validate(search["application/json"]["example"]).k == 5
    assert (
        search["application/json"]["schema"]["properties"].keys()
        == SearchQuestion.model_json_schema()["properties"].keys()
    )
    form = search["multipart/form-data"]
    assert form["example"] == {"text": "red striped mug", "k": "5"}
    assert form["schema"]["properties"]["image"] == {
        "type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF or BMP",
    }  # fmt: skip
    assert list(form["schema"]["properties"]) == ["text", "user_id", "k", "image"]
    kinds = document["paths"]["/image/{image_id}"]["get"]["responses"]["200"]["content"]
    assert {"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"} == set(kinds)


READY = {
    "status": "ready",
    "problems": [],
    "artifacts": ARTIFACTS,
    "generation": {"served": None, "asked": None, "problem": ""},
    "items": {"loaded_until": None, "problem": "", "withdrawn": 0},
    "writes": {"failed": 0, "problem": ""},
    "dead_letters": {},
}


def test_readiness_says_everything_to_an_admin_and_its_state_to_others(client, moon, tmp_path):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == READY
    moon.items, moon.generation = SimpleNamespace(loaded_until="2026"), 3
    moon.withdrawn = {HELD: DELETED, HELD + 1: "inactive"}
    changed = READY["generation"] | {"served": 3}
    items = {"loaded_until": "2026", "problem": "", "withdrawn": 2}
    assert client.get("/readyz").json() == READY | {"generation": changed, "items": items}
    key = create_key(tmp_path / "keys.json", "shop", ["read", "write"])
    for headers in ({}, {"Authorization": f"Bearer {key}"}):
        answer = client.get("/readyz", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_service_that_takes_nothing_is_ready(tmp_path, moon):
    client = TestClient(create_app(Settings(run=tmp_path), moon))
    assert client.get("/readyz").json() == READY
    for method, path, sent in (
        ("POST", "/events", [EVENT]), ("POST", "/items", ITEM), ("PUT", "/items/7/state", {"state": "active"}),
        ("DELETE", "/items/7", None),
    ):  # fmt: skip
        answer = client.request(method, path, json=sent)
        assert answer.status_code == 503
        assert answer.json()["error"] == "this service accepts no events or items"


def test_degraded_is_the_store_and_what_cannot_be_written_and_what_was_not():
    moon = SimpleNamespace(degraded=lambda: ["the store"])
    intake = SimpleNamespace(unwritable=lambda: "the disk", problem="the last one")
    assert _degraded(moon, intake) == ["the store", "the disk", "the last one"]
    assert _degraded(moon, None) == ["the store"]
    intake.unwritable, intake.problem = lambda: "", ""
    assert _degraded(moon, intake) == ["the store"]


def test_a_failed_write_is_told_until_one_succeeds(client, kept):
    kept.failed, kept.problem = 2, "the disk is full"
    answer = client.get("/readyz")
    assert answer.status_code == 200 and answer.json() == READY | {
        "status": "degraded",
        "problems": ["the disk is full"],
        "writes": {"failed": 2, "problem": "the disk is full"},
    }
    text = client.get("/metrics").text
    assert "moon_writes_failed_total 2.0" in text and "moon_writes_failing 1.0" in text


def test_a_service_without_an_index_is_not_ready_whatever_else_is_wrong(client, moon, kept):
    moon.unready, kept.problem = lambda: ["no index"], "the disk is full"
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == READY | {
        "status": "not ready",
        "problems": ["no index", "the disk is full"],
        "writes": {"failed": 0, "problem": "the disk is full"},
    }


def test_metrics_are_prometheus_text(client):
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_an_answer_is_written_as_it_is_documented():
    card = SimpleNamespace(
        item_id=7, title="mug", category="kitchen", price=1.5, image_id="0a", first_seen="not shown"
    )
    answer = Answer(
        [Hit(card, 0.25, {"match_similar": 0.5})],
        {"features": 1.23456, "rank": 2.0},
        ("no_history",),
        "ranker",
    )
    assert _content(answer, {"index": "abc"}) == {
        "hits": [
            {
                "item_id": 7, "score": 0.25, "title": "mug", "category": "kitchen", "price": 1.5, "image_id": "0a",
                "matches": {"match_similar": 0.5},
            }
        ],
        "order": "ranker",
        "fallbacks": ["no_history"],
        "timings_ms": {"features": 1.235, "rank": 2.0},
        "artifacts": {"index": "abc"},
    }  # fmt: skip
    assert _server_timing(answer) == "features;dur=1.23, rank;dur=2.00"


def test_a_picture_may_be_kept_for_a_day_by_the_browser_alone(client):
    answer = client.get(f"/image/{0:016x}")
    assert answer.content == picture() and answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "private, max-age=86400"
    missing = client.get("/image/nothing")
    assert (missing.status_code, missing.json()) == (404, {"error": "no such picture"})


def test_twenty_items_are_answered_unless_another_number_is_asked_for(client):
    for ask in (
        lambda **k: client.get("/similar", params={"item_id": HELD, **k}),
        lambda **k: client.post("/search", json={"text": "even", **k}),
        lambda **k: client.post("/search", files={"image": ("a", picture())}, data=k),
    ):
        assert len(ask().json()["hits"]) == 20
        assert len(ask(k=3).json()["hits"]) == 3


def test_a_field_of_a_form_that_is_left_empty_is_not_there(client):
    sent = {"text": "even", "user_id": "", "k": ""}
    answer = client.post("/search", data=sent, files={"image": ("empty", b"")})
    assert answer.status_code == 200 and len(answer.json()["hits"]) == 20


def test_what_a_client_sends_with_a_request_reaches_the_store(client, moon):
    asked = {"user_id": "4", "context": '{"device": "phone", "pages": 3}'}
    assert client.get("/recommend", params=asked).status_code == 200
    assert moon.reader.context == {"device": "phone", "pages": 3}
    client.get("/recommend?user_id=4")
    assert moon.reader.context is None


def test_an_explanation_is_in_every_hit_when_it_is_asked_for(client, monkeypatch):
    def explain(ranker, frame):
        ids = frame.candidates["item_id"].to_numpy()
        return {"price": (ids / 1e15).astype(np.float32)}

    monkeypatch.setattr("serving.ranked.explain", explain)
    asked = client.get("/recommend?user_id=4&k=5&explain=true").json()
    assert len(asked["hits"]) == 5
    for hit in asked["hits"]:
        assert hit["explanation"] == {"price": pytest.approx(hit["item_id"] / 1e15)}
    for query in ("", "&explain=false"):
        hits = client.get(f"/recommend?user_id=4&k=5{query}").json()["hits"]
        assert hits and all("explanation" not in hit for hit in hits)
    assert client.get("/recommend?user_id=4&explain=perhaps").status_code == 422


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ("[1]", "context: expected a JSON object"),
        ("phone", "context: expected a JSON object"),
        ("[" * 3000, "context: expected a JSON object"),
        ('{"a": 1, "a": 2}', "expected each key of a JSON object once, found 'a' more than once"),
        ("{" + " " * 4000 + "}", "query.context: String should have at most 4000 characters"),
    ],
)
def test_a_context_that_is_no_object_is_refused(client, context, said):
    answer = client.get("/recommend", params={"user_id": "4", "context": context})
    assert answer.status_code == 422 and said in answer.json()["error"]


def test_a_context_that_no_feature_reads_is_refused(client, moon, monkeypatch):
    def read_user(user_id, time, context):
        raise DataError("context: expected some of device, found 'devise'. Did you mean device?")

    monkeypatch.setattr(moon.reader, "read_user", read_user)
    answer = client.get("/recommend", params={"user_id": "4", "context": '{"devise": "phone"}'})
    assert answer.status_code == 422 and "Did you mean device?" in answer.json()["error"]


def test_a_session_may_repeat_itself_and_has_at_most_a_hundred_items(client):
    session = lambda count: "&".join(["user_id=4", *(f"session={HELD}" for _ in range(count))])  # noqa: E731
    assert client.get(f"/recommend?{session(100)}").status_code == 200
    assert client.get(f"/recommend?{session(101)}").status_code == 422


def test_every_answer_is_counted_under_its_own_address(client):
    client.get("/recommend?user_id=4")
    client.get(f"/similar?item_id={HELD}")
    client.post("/search", json={"text": "even"})
    lines = client.get("/metrics").text.splitlines()
    counted = {line.split('"')[1] for line in lines if line.startswith("moon_stage_seconds_count")}
    assert counted == {"/recommend", "/similar", "/search"}


def test_what_is_given_twice_is_named_in_short(client):
    with pytest.raises(Refused) as refused:
        refuse_repeated(["a" * 50, "b", "a" * 50])
    assert refused.value.status == 422
    assert refused.value.reason == f"{'a' * 40}: expected once, found more than once"
    refuse_repeated(["a", "b", "b"], lists=("b",))


@pytest.mark.parametrize("text", [None, "", " ", "\t"])
def test_a_search_for_nothing_is_refused_in_json_and_in_a_form(client, text):
    for answer in (
        client.post("/search", json={"text": text}),
        client.post("/search", data={"text": text or ""}, files={"user_id": (None, "4")}),
        client.post("/search", data={"text": text or ""}, files={"image": ("empty", b"")}),
    ):
        assert answer.status_code == 422 and set(answer.json()) == {"error"}


JSON = "application/json"


@pytest.mark.parametrize(
    ("kind", "status"), [(JSON, 200), ("Application/JSON; charset=utf-8", 200), ("text/json", 415), ("", 415)]
)
def test_the_content_type_says_what_a_body_is(client, kind, status):
    answer = client.post("/search", content=b'{"text": "even"}', headers={"content-type": kind})
    assert answer.status_code == status
    found = repr(kind or "no content type")
    if status == 415:
        assert answer.json()["error"] == f"expected application/json or multipart/form-data, found {found}"
        answer = client.post("/events", content=b"[]", headers={"content-type": kind})
        assert answer.json()["error"] == f"expected application/json, found {found}"


def test_every_fault_of_a_question_is_named(client):
    said = client.get("/recommend?k=0").json()["error"].split("; ")
    assert len(said) == 2 and "user_id" in said[0] and "k" in said[1]


def test_a_picture_may_have_so_many_bytes_and_pixels_and_no_more(client):
    whole = picture(size=(100, 100))
    padded = whole + b"\0" * (10_000 - len(whole))
    for content, status in ((padded, 200), (padded + b"\0", 413), (picture(size=(100, 101)), 422)):
        answer = client.post("/search", files={"image": ("a", content)})
        assert answer.status_code == status, answer.text
        encoded = base64.b64encode(content).decode()
        answer = client.post("/items?overwrite=true", json=ITEM | {"image_base64": encoded})
        assert answer.status_code == (202 if status == 200 else status), answer.text


def test_a_body_that_does_not_arrive_is_refused_with_the_deadline(tmp_path):
    app = create_app(Settings(run=tmp_path, body_deadline_s=0.01), recommender(), Kept())
    for path, kind in (
        ("/events", b"application/json"),
        ("/search", b"application/json"),
        ("/search", b"multipart/form-data; boundary=x"),
    ):
        sent = []

        async def silent():
            await asyncio.sleep(5)

        async def send(message, sent=sent):
            sent.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
            "root_path": "", "scheme": "http", "query_string": b"", "server": ("t", 80), "client": ("t", 1),
            "headers": [(b"host", b"localhost"), (b"content-type", kind), (b"content-length", b"9")],
        }  # fmt: skip
        asyncio.run(asyncio.wait_for(app(scope, silent, send), 4))
        assert sent[0]["status"] == 408
        assert json.loads(sent[1]["body"]) == {"error": "the body did not arrive within 0.01 s"}


class Known(Kept):
    """An intake in which each item has a state."""

    def __init__(self, states):
        super().__init__()
        self.known = states

    async def kept(self, item_id):
        return self.items.get(item_id), self.known.get(item_id, "active")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("there", "same", "state", "stored"),
    [
        ("nowhere", False, "active", True),
        ("catalogue", False, "active", None),
        ("catalogue", False, DELETED, True),
        ("kept", False, "active", None),
        ("kept", False, DELETED, True),
        ("kept", True, "active", False),
        ("kept", True, "inactive", None),
        ("kept", True, DELETED, True),
    ],
)
def test_an_item_is_stored_refused_or_already_as_it_should_be(
    tmp_path, moon, there, same, state, stored, overwrite
):
    """None: only where it may be overwritten."""
    item_id = HELD if there == "catalogue" else 10**6
    sent = {"item_id": item_id, "title": "mug"}
    kept = Known({item_id: state})
    before = Item(item_id=item_id, title="mug" if same else "cup")
    if there == "kept":
        kept.items[item_id] = before
    saved = []

    async def keep(item):
        saved.append(item)

    kept.keep = keep
    client = TestClient(create_app(Settings(run=tmp_path), moon, kept))
    answer = client.post(f"/items?overwrite={'true' if overwrite else 'false'}", json=sent)
    if stored is None and not overwrite:
        assert answer.status_code == 409 and not saved
        reason = f"item {item_id} exists: POST it to /items?overwrite=true to replace it"
        assert answer.json() == {"error": reason}
        return
    assert (answer.status_code, answer.json()) == (202, {"item_id": item_id})
    assert saved == ([] if stored is False else [Item(item_id=item_id, title="mug")])


def test_a_state_is_told_back(client, kept):
    answer = client.put(f"/items/{HELD}/state", json={"state": "out_of_stock"})
    assert (answer.status_code, answer.json()) == (202, {"item_id": HELD, "state": "out_of_stock"})
    answer = client.delete("/items/7")
    assert (answer.status_code, answer.json()) == (202, {"item_id": 7, "state": "deleted"})
    assert kept.states == {HELD: "out_of_stock", 7: "deleted"}


def test_events_whose_id_is_anothers_are_counted_and_the_first_three_named(client, kept):
    events = [Event(event_id=n, user_id=1, item_id=1, type="click") for n in (4, 5, 6, 7)]

    async def take(_):
        return Ingested(accepted=2, duplicates=1, late=0, conflicts=tuple(events))

    kept.take = take
    answer = client.post("/events", json=[EVENT])
    assert answer.status_code == 409
    assert answer.json() == {"accepted": 2, "duplicates": 1, **_conflicts(events)}
    said = _conflicts(events)
    assert "event_id" in said["error"].split(": 4 events")[0].split()
    assert said["conflicts"] == 4 and said["error"].endswith(
        "4 events were refused (event_id [4, 5, 6]), the others were taken. Give each event its own event_id, or "
        "each sender a name (sender)."
    )
    text = client.get("/metrics").text
    for what, count in (("accepted", 2), ("duplicates", 1), ("late", 0), ("conflicts", 4)):
        assert f'moon_events_total{{what="{what}"}} {count}.0' in text


def test_an_application_starts_and_ends_its_parts_in_order(tmp_path, moon, kept, monkeypatch):
    did = []
    monkeypatch.setattr("serving.app.Live.start", lambda self: did.append("start"))
    monkeypatch.setattr("serving.app.Live.stop", lambda self: did.append("stop"))
    monkeypatch.setattr("serving.app.Work.close", lambda self: did.append(self.name))
    with TestClient(create_app(Settings(run=tmp_path, most_waiting=7), moon, kept)) as client:
        assert did == ["start"]
        text = client.get("/metrics").text
        for name in ("answering", "parsing", "examining", "intake"):
            assert f'moon_inside{{thread="{name}"}} 0.0' in text
            assert f'moon_busy_total{{thread="{name}"}} 0.0' in text
    assert did == ["start", "stop", "answering", "parsing", "examining", "intake"]


def test_no_page_of_documentation_brings_scripts_of_another_site(client):
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 200]


def test_every_refusal_has_its_own_name_in_the_metrics():
    assert telemetry_module.REFUSED == {
        400: "host",
        401: "key",
        403: "scope",
        404: "not found",
        405: "method",
        408: "too slow",
        409: "conflict",
        413: "too large",
        415: "content type",
        422: "invalid",
        429: "rate",
        503: "unavailable",
    }


def test_the_store_that_does_not_answer_is_in_the_log(client, kept, caplog):
    from feature_repo.online import StoreUnavailable

    async def away(_):
        raise StoreUnavailable("10.0.0.9")

    kept.take = away
    with caplog.at_level(logging.WARNING, "moon.serving"):
        answer = client.post("/events", json=[EVENT])
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert "10.0.0.9" in caplog.messages


def test_the_page_is_made_of_what_was_asked_and_nothing_else(client, moon, monkeypatch):
    monkeypatch.setattr("serving.endpoints.answers.render", lambda one, *asked: repr((one is moon, *asked)))
    assert client.get("/").text == repr((True, "", "", "", ""))
    asked = {"user_id": "1", "category": "2", "item_id": "3", "text": "4"}
    assert client.get("/", params=asked).text == repr((True, "1", "2", "3", "4"))


def test_every_body_that_is_read_is_required(document):
    paths = document["paths"].values()
    bodies = [
        one["requestBody"]["required"] for path in paths for one in path.values() if "requestBody" in one
    ]
    assert bodies == [True] * 5  # /search, the page's form, /events, /items and a state
