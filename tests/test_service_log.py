"""What the service says about its requests: an id on each, a line in the log without people or queries, and metrics.

Run: pytest tests/test_service_log.py
"""

import asyncio
import io
import json
import logging
import os
import re

import pytest
from fake_shop import recommender
from fastapi import FastAPI
from fastapi.testclient import TestClient
from test_service_hostile import EVENT, ITEM, Kept

from feature_repo.online import StoreUnavailable
from serving.access import Access
from serving.app import create_app
from serving.keys import create_key
from serving.logs import REQUEST_ID, JsonLines
from serving.settings import Settings
from serving.telemetry import Telemetry


@pytest.fixture
def said():
    """What the service writes, as a function that returns the lines."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("moon")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def moon():
    return recommender()


@pytest.fixture
def client(moon, tmp_path):
    return TestClient(create_app(Settings(run=tmp_path), moon, Kept()), raise_server_exceptions=False)


@pytest.mark.parametrize(("given", "kept"), [("a-1.B_2", True), ("x" * 64, True), ("x" * 65, False), ("", False),
    ("a b", False), ("<script>", False), ('a"b', False), ("é", False)])  # fmt: skip
def test_a_request_keeps_its_id_if_it_is_harmless_and_gets_one_otherwise(client, given, kept):
    answer = client.get("/healthz", headers={"X-Request-ID": given.encode("latin-1")})
    (found,) = answer.headers.get_list("x-request-id")
    assert (found == given) == kept and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", found)


def test_every_request_has_an_id_of_its_own(client):
    assert len({client.get("/healthz").headers["x-request-id"] for _ in range(20)}) == 20


def test_a_line_says_what_was_asked_of_what_and_nothing_about_whom(tmp_path, said):
    key = create_key(tmp_path / "keys.json", "shop", ["read", "write"])
    client = TestClient(create_app(Settings(run=tmp_path), recommender(), Kept()))
    mine = {"Authorization": f"Bearer {key}", "X-Request-ID": "r1"}
    asked = [
        client.get("/recommend?user_id=4&category=Women", headers=mine),
        client.post("/search", json={"text": "secret wish", "user_id": 4}, headers=mine),
        client.post("/items", json=ITEM, headers=mine),
        client.post("/events", json=[EVENT | {"user_id": 777_777}], headers=mine),
        client.get("/image/0000000000000003", headers=mine),
        client.get("/image/0000000000000003"),
        client.get("/no/where?user_id=777777", headers=mine),
    ]
    lines = [line for line in said() if line["logger"] == "moon.access"]
    routes = [
        "/recommend",
        "/search",
        "/items",
        "/events",
        "/image/{image_id}",
        "/image/{image_id}",
        "unknown",
    ]
    assert [line["route"] for line in lines] == routes
    assert (
        [line["status"] for line in lines]
        == [one.status_code for one in asked]
        == [200, 200, 202, 200, 200, 401, 404]
    )
    assert [line["key"] for line in lines] == ["shop"] * 5 + ["", "shop"]
    assert [line["request_id"] for line in lines][:5] == ["r1"] * 5
    assert all(0 < line["ms"] < 60_000 and line["time"].startswith("20") for line in lines)
    text = json.dumps(said())
    for private in (
        "secret wish",
        "777777",
        "user_id",
        "mug",
        "Women",
        "0000000000000003",
        key,
        "testclient",
    ):
        assert private not in text


def test_what_goes_wrong_is_found_in_the_log_by_the_id_that_the_client_was_given(client, moon, said):
    moon.encoder.encode = lambda contents: 1 / 0
    answer = client.post("/search", json={"text": "secret wish"}, headers={"X-Request-ID": "r2"})
    assert answer.status_code == 500 and answer.json()["request_id"] == "r2"
    failure, access = (line for line in said() if line["request_id"] == "r2")
    assert "ZeroDivisionError" in failure["traceback"] and failure["message"] == "POST /search failed"
    assert access["status"] == 500 and "secret wish" not in json.dumps(failure)


def test_fallbacks_do_not_tell_whose(client, moon, said):
    moon.ranker.fails = "raises"
    client.get("/recommend?user_id=4")
    moon.reader.available = False
    client.get("/recommend?user_id=4")
    lines = [line for line in said() if line["logger"] == "moon.serving"]
    assert len(lines) == 2 and not any(re.search(r"\b4\b", line["message"]) for line in lines)


def test_the_store_that_is_away_is_named_in_the_log_alone(tmp_path, said):
    def away(*_, **__):
        raise StoreUnavailable("no answer from 10.0.0.9:6379")

    kept = Kept()
    kept.take = away
    client = TestClient(create_app(Settings(run=tmp_path), recommender(), kept))
    answer = client.post("/events", json=[EVENT], headers={"X-Request-ID": "r3"})
    assert answer.status_code == 503 and answer.json()["request_id"] == "r3" and "6379" not in answer.text
    assert any("6379" in line["message"] and line["request_id"] == "r3" for line in said())
    metrics = client.get("/metrics").text
    assert 'moon_refused_total{reason="unavailable"} 1.0' in metrics


def call(app, path, receive, method="POST"):
    """Send a request whose client does what ``receive`` says; what was answered."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "root_path": "", "app": FastAPI(), "scheme": "http", "query_string": b"", "server": ("t", 80),
        "client": ("t", 1),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"9")],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


@pytest.mark.parametrize("path", ["/search", "/events", "/items"])
def test_a_client_that_hangs_up_is_a_line_and_no_failure(tmp_path, said, path):
    app = create_app(Settings(run=tmp_path), recommender(), Kept())

    async def receive():
        return {"type": "http.disconnect"}

    assert call(app, path, receive) == []
    (line,) = said()
    assert line["status"] == 499 and line["level"] == "info" and "traceback" not in line


def test_half_an_answer_is_not_finished_as_if_it_were_whole():
    """The server must see the failure: only a closed connection tells the client that something is missing."""

    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise RuntimeError("broken")

    async def receive():
        raise AssertionError("nothing is read")

    telemetry = Telemetry(None)
    with pytest.raises(RuntimeError, match="broken"):
        call(Access(half, telemetry), "/half", receive, "GET")
    assert telemetry.in_flight == 0


def test_requests_are_timed_from_end_to_end_and_counted_while_they_run(client, moon):
    seen = []
    moon.encoder.encode = lambda contents, encode=moon.encoder.encode: (
        seen.append(REQUEST_ID.get()), encode(contents)
    )[1]  # fmt: skip
    for _ in range(3):
        client.post("/search", json={"text": "mug"}, headers={"X-Request-ID": "r4"})
    client.post("/search", content=b"mug")
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['moon_request_seconds_count{endpoint="/search"}'] == "4.0"
    assert values['moon_request_seconds_bucket{endpoint="/search",le="+Inf"}'] == "4.0"
    assert 0 < float(values['moon_request_seconds_sum{endpoint="/search"}']) < 60
    assert values["moon_requests_in_flight"] == "1.0"  # the question itself
    assert values['moon_refused_total{reason="content type"}'] == "1.0"
    assert int(float(values["process_open_fds"])) > 0 and float(values["process_resident_memory_bytes"]) > 1e7
    assert abs(float(values["process_cpu_seconds_total"]) - sum(os.times()[:2])) < 5
    assert seen == ["r4"] * 3
