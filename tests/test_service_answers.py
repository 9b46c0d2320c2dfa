"""What every endpoint answers: to a user, to a stranger, when something is broken, and to hostile input."""

import asyncio
import base64
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from fake_shop import (
    ARTIFACTS,
    EVEN,
    ITEM_IDS,
    ODD,
    FakeRelevance,
    picture,
    recommender,
)
from fastapi.testclient import TestClient

from feature_repo.signature import Feature
from retrieval.requests import history_of
from serving.app import create_app
from serving.settings import Settings

LIMIT = 200_000


@pytest.fixture
def moon():
    return recommender()


@pytest.fixture
def client(moon, tmp_path):
    settings = Settings(run=tmp_path, max_body_bytes=LIMIT, max_image_bytes=50_000, max_image_pixels=10_000)
    return TestClient(create_app(settings, moon), raise_server_exceptions=False)


def ids_of(response):
    assert response.status_code == 200, response.text
    return [hit["item_id"] for hit in response.json()["hits"]]


def test_a_user_gets_what_their_history_points_at_in_the_rankers_order(client, moon):
    response = client.get("/recommend", params={"user_id": 4, "k": 5})
    ids = ids_of(response)
    assert ids == sorted(ids, reverse=True) and set(ids) <= set(EVEN[3:].tolist())  # not the 3 already bought
    body = response.json()
    assert body["order"] == "ranker" and body["fallbacks"] == []
    assert body["artifacts"] == ARTIFACTS
    assert set(body["hits"][0]["matches"]) == {
        "match_similar",
        "match_profile",
        "match_popular",
        "match_query",
    }
    assert {part.split(";")[0] for part in response.headers["Server-Timing"].split(", ")} == {
        "features", "retrieve", "rank", "cards",
    }  # fmt: skip
    assert moon.ranker.frame.candidates.column_names[1:] == [
        "match_similar", "match_profile", "match_popular", "match_query", "match_behaviours",
    ]  # fmt: skip


def test_a_category_narrows_and_an_unknown_one_is_not_found(client):
    everything = set(ITEM_IDS[:20].tolist())
    assert set(ids_of(client.get("/recommend?user_id=4&k=200&category=Women"))) <= everything
    shoes = ids_of(client.get("/recommend", params={"user_id": 999, "k": 3, "category": "Women > Shoes"}))
    assert shoes == ITEM_IDS[19:16:-1].tolist()  # all are popular, and the ranker prefers larger ids
    response = client.get("/recommend?user_id=4&category=Pets")
    assert response.status_code == 404 and "no item has category 'Pets'" in response.json()["error"]


@pytest.mark.parametrize(("user_id", "fallback"), [(10**9, "unknown_user"), (50, "empty_history")])
def test_strangers_and_newcomers_get_popular_items_in_the_rankers_order(client, moon, user_id, fallback):
    popular = ITEM_IDS[: moon.per_source].tolist()
    response = client.get("/recommend", params={"user_id": user_id, "k": 4})
    assert ids_of(response) == popular[::-1][:4], "the ranker prefers larger ids"
    assert response.json()["fallbacks"] == [fallback] and response.json()["order"] == "ranker"
    moon.ranker.fails = "raises"
    response = client.get("/recommend", params={"user_id": user_id, "k": 4})
    assert ids_of(response) == popular[:4] and response.json()["order"] == "popularity"


@pytest.mark.parametrize(("user_id", "fallback"), [(10**9, "unknown_user"), (50, "empty_history")])
def test_one_who_acted_on_nothing_that_is_in_the_catalogue_is_a_stranger(client, moon, user_id, fallback):
    read_user = moon.reader.read_user

    def gone(user_id, time, **rest):  # their one event is on an item that does not exist, or no longer
        user = read_user(user_id, time)
        return replace(user, history=history_of([12345]))

    moon.reader.read_user, moon.ranker = gone, None
    response = client.get("/recommend", params={"user_id": user_id, "k": 4})
    assert ids_of(response) == ITEM_IDS[:4].tolist()
    assert response.json()["fallbacks"] == [fallback] and response.json()["order"] == "popularity"


def test_a_session_speaks_for_a_stranger(client):
    response = client.get(
        "/recommend", params={"user_id": 10**9, "k": 5, "session": [int(ODD[0]), int(ODD[1])]}
    )
    assert set(ids_of(response)) <= set(ODD[2:].tolist())
    assert response.json()["order"] == "ranker"


def test_without_the_store_the_session_or_popularity_answers(client, moon):
    moon.reader.available = False
    response = client.get("/recommend?user_id=4&k=4")
    assert ids_of(response) == ITEM_IDS[:4].tolist()
    assert response.json()["fallbacks"] == ["store_unavailable"]
    response = client.get("/recommend", params={"user_id": 4, "k": 4, "session": int(ODD[0])})
    assert set(ids_of(response)) <= set(ODD[1:].tolist())
    assert response.json()["order"] == "retrieval" and response.json()["fallbacks"] == ["store_unavailable"]
    ready = client.get("/readyz")  # a balancer that took out every process would make it an outage
    assert ready.status_code == 200 and ready.json()["status"] == "degraded"
    assert "does not answer" in ready.json()["problems"][0]
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/?user_id=4").status_code == 200
    moon.reader.available = True
    assert client.get("/recommend?user_id=4&k=4").json()["order"] == "ranker"
    assert client.get("/readyz").json()["status"] == "ready"


@pytest.mark.parametrize("fails", ["raises", "nan"])
def test_a_broken_ranker_is_counted_and_retrieval_order_answers(client, moon, fails, caplog):
    moon.ranker.fails = fails
    response = client.get("/recommend?user_id=4&k=4")
    assert set(ids_of(response)) <= set(EVEN[3:].tolist())
    scores = [hit["score"] for hit in response.json()["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert response.json()["order"] == "retrieval" and response.json()["fallbacks"] == ["ranker_error"]
    assert "the ranker failed" in caplog.text
    assert moon.counts["ranker_error"] == 1
    metrics = client.get("/metrics").text
    assert 'moon_fallbacks_total{endpoint="/recommend",fallback="ranker_error"} 1.0' in metrics


def test_fewer_hits_than_asked_when_fewer_exist(client):
    found = ids_of(client.get("/recommend?user_id=999&k=200"))
    assert len(found) == len(set(found)) == 40  # all there are


def test_the_newest_items_follow_where_too_few_are_popular(client, moon):
    """Ten items were never acted on; they come last, the newest first, and only of the category asked for."""
    seen = dict(
        zip(*(moon.catalogue._items[name].to_pylist() for name in ("item_id", "first_seen")), strict=True)
    )
    moon.ranker = None
    answer = client.get("/recommend?user_id=999&k=200").json()
    assert answer["order"] == "popularity"
    found = [hit["item_id"] for hit in answer["hits"]]
    acted_on = set(moon.retriever.popular._item_ids.tolist())
    assert set(found[:30]) == acted_on and acted_on.isdisjoint(found[30:])
    assert found[30:] == sorted(found[30:], key=lambda item: (seen[item], item), reverse=True)
    assert ids_of(client.get("/recommend?user_id=999&k=30")) == found[:30], (
        "nothing is added to a full answer"
    )
    moon.retriever.popular._item_ids = np.empty(0, np.int64)
    moon.retriever.popular._score = np.empty(0, np.float32)
    moon.retriever.popular._best.clear()
    answer = client.get("/recommend?user_id=999&k=3").json()
    newest = sorted(seen, key=lambda item: (seen[item], item), reverse=True)
    assert answer["order"] == "newest" and [hit["item_id"] for hit in answer["hits"]] == newest[:3]


def test_similar_items_are_of_the_same_kind_and_never_the_item_itself(client):
    response = client.get("/similar", params={"item_id": int(ODD[0]), "k": 19})
    assert set(ids_of(response)) == set(ODD[1:].tolist())
    assert response.headers["Server-Timing"].startswith("retrieve;dur=")
    for unknown in (10**9, 0, 2**63 - 1):
        response = client.get("/similar", params={"item_id": unknown})
        assert response.status_code == 404 and response.json() == {"error": f"no item {unknown}"}


def test_search_by_text_and_by_picture(client):
    assert set(ids_of(client.post("/search", json={"text": "even things", "k": 5}))) <= set(EVEN.tolist())
    encoded = base64.b64encode(picture("JPEG")).decode()
    assert set(ids_of(client.post("/search", json={"image_base64": encoded, "k": 5}))) <= set(ODD.tolist())
    form = client.post("/search", data={"k": "5", "text": "x"}, files={"image": ("a.png", picture())})
    assert set(ids_of(form)) <= set(ODD.tolist()) and len(ids_of(form)) == 5
    assert {"encode", "retrieve", "cards"} == {
        part.split(";")[0] for part in form.headers["Server-Timing"].split(", ")
    }
    hits = client.post("/search", json={"text": "even", "k": 40}).json()["hits"]
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True) and len(hits) == 40
    assert hits[0]["matches"]["match_query"] == pytest.approx(scores[0], abs=1e-6)


def test_a_known_searcher_gets_the_rankers_opinion_and_an_unknown_one_does_not(client, moon):
    plain = client.post("/search", json={"text": "even", "k": 10})
    known = client.post("/search", json={"text": "even", "k": 10, "user_id": 4})
    assert known.json()["order"] == "relevance+ranker" and ids_of(known) != ids_of(plain)
    np.testing.assert_array_equal(moon.ranker.query_vectors, [[1, 0, 0, 0]])
    stranger = client.post("/search", json={"text": "even", "k": 10, "user_id": 10**9})
    assert ids_of(stranger) == ids_of(plain) and stranger.json()["fallbacks"] == ["unknown_user"]
    moon.relevance = FakeRelevance()
    judged = client.post("/search", json={"text": "even", "k": 10})
    assert ids_of(judged) == ids_of(plain) and "relevance" in judged.json()["timings_ms"]
    moon.reader.available = False
    away = client.post("/search", json={"text": "even", "k": 10, "user_id": 4})
    assert ids_of(away) == ids_of(plain) and away.json()["fallbacks"] == ["store_unavailable"]


@pytest.mark.parametrize(
    "bad", ["-1", str(2**63), "NaN", "true", "7.0", "1e3", "", " 7", "٧", "9" * 5000, "0x10"]
)
def test_ids_in_addresses_are_digits_within_int64(client, bad):
    for path, name in (("/recommend", "user_id"), ("/similar", "item_id")):
        response = client.get(path, params={name: bad})
        assert response.status_code == 422 and name in response.json()["error"], (path, bad)


@pytest.mark.parametrize("k", ["0", "201", "-3", "1.5", "NaN"])
def test_k_is_bounded(client, k):
    assert client.get("/recommend", params={"user_id": 1, "k": k}).status_code == 422


def test_unknown_parameters_are_refused(client):
    response = client.get("/recommend?user_id=1&catgory=Men")
    assert response.status_code == 422 and "catgory" in response.json()["error"]
    assert client.post("/search", json={"text": "a", "n": 3}).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "a", "user_id": -1}',
        b'{"text": "a", "user_id": 9223372036854775808}',
        b'{"text": "a", "user_id": NaN}',
        b'{"text": "a", "k": Infinity}',
        b'{"text": "a", "user_id": true}',
        b'{"text": "a", "user_id": "7"}',
        b'{"text": "a", "user_id": 7.0}',
        b'{"text": "a", "k": 201}',
        b'{"text": 5}',
        b'{"text": ',
        b"",
        b"[1]",
        b"{}",
        b'{"text": "   "}',
        b'{"text": "\xff"}',
        b'{"image_base64": "***"}',
        b'{"image_base64": ""}',
        b'{"image_base64": "AAAA"}',
        b'{"text": "' + b"a" * 1001 + b'"}',
        b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"text": "a", "user_id": ' + b"9" * 5000 + b"}",
    ],
)
def test_bad_bodies_are_refused_with_a_reason(client, body):
    response = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.json()["error"]
    assert len(response.text) < 1000


def test_huge_bodies_are_refused_before_they_are_parsed(client):
    for headers in (
        {"content-type": "application/json"},
        {"content-type": "multipart/form-data; boundary=x"},
    ):
        response = client.post("/search", content=b" " * (LIMIT + 1), headers=headers)
        assert response.status_code == 413, response.text
    streamed = client.post(
        "/search", content=(b" " * 50_000 for _ in range(5)), headers={"content-type": "application/json"}
    )
    assert streamed.status_code == 413
    assert client.post("/search", content=b"text=a").status_code == 415


def test_pictures_must_be_small_and_decodable(client):
    def search(content):
        return client.post("/search", files={"image": ("a.png", content)})

    assert search(picture()).status_code == 200
    assert search(picture(size=(100, 101))).status_code == 422
    assert "pixels" in search(picture(size=(100, 101))).json()["error"]
    noise = np.random.default_rng(0).bytes(60_000)
    assert search(noise).status_code == 413
    assert "do not decode" in search(noise[:1000]).json()["error"]
    truncated = search(picture("JPEG", (90, 90))[:-200])
    assert truncated.status_code == 422 and "do not decode" in truncated.json()["error"]
    assert client.post("/search", files={"image": (None, "text")}).status_code == 422
    assert client.post("/search", files={"image": ("a.png", b"")}).status_code == 422


def test_a_body_that_never_arrives_is_given_up(moon, tmp_path):
    app = create_app(Settings(run=tmp_path, body_deadline_s=0), moon)
    sent = []

    async def receive():
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/search", "raw_path": b"/search",
        "root_path": "", "scheme": "http", "query_string": b"", "server": ("t", 80), "client": ("t", 1),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"9")],
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 5))
    assert sent[0]["status"] == 408


def test_metrics_count_what_happened(client):
    client.get("/recommend?user_id=999&k=3")
    client.get("/recommend?user_id=-1")
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        'moon_fallbacks_total{endpoint="/recommend",fallback="unknown_user"} 1.0',
        'moon_responses_total{endpoint="/recommend",status="200"} 1.0',
        'moon_responses_total{endpoint="/recommend",status="422"} 1.0',
        'moon_responses_total{endpoint="unknown",status="404"} 1.0',
        'moon_stage_seconds_count{endpoint="/recommend",stage="retrieve"} 1.0',
        "moon_index_items 40.0",
        f'moon_artifact{{id="{ARTIFACTS["index"]}",role="index"}} 1.0',
    ):
        assert line in text, line


def test_empty_answers_are_counted(client, moon):
    moon.retriever.popular.index = moon.retriever.index
    moon.retriever.popular._item_ids = np.empty(0, np.int64)
    moon.retriever.popular._score = np.empty(0, np.float32)
    moon.catalogue.__dict__["newest"] = np.empty(0, np.int64)
    assert ids_of(client.get("/recommend?user_id=999")) == []
    assert 'moon_empty_answers_total{endpoint="/recommend"} 1.0' in client.get("/metrics").text


def test_a_failure_is_a_500_in_json_that_tells_nothing(client, moon):
    moon.encoder.encode = lambda contents: 1 / 0
    response = client.post("/search", json={"text": "a"})
    assert response.status_code == 500 and "division" not in response.text
    assert 'moon_responses_total{endpoint="/search",status="500"} 1.0' in client.get("/metrics").text


def test_readiness_names_a_store_that_was_not_loaded(client, moon):
    moon.example_users = (777,)
    response = client.get("/readyz")
    assert response.status_code == 200 and response.json()["status"] == "degraded"
    assert "moon materialize" in response.json()["problems"][0]


def test_a_service_without_items_is_not_ready(client, moon):
    moon.unready = lambda: ["the index holds no item"]
    response = client.get("/readyz")
    assert response.status_code == 503 and response.json()["status"] == "not ready"


def test_the_page_shows_history_and_hits_and_escapes_what_it_shows(client):
    page = client.get("/?user_id=4").text
    assert "Recommended to user 4" in page and "What the user did" in page and "/image/" in page
    assert "&lt;item&gt;" in page and "<item>" not in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert client.get("/").status_code == 200
    assert "Like item" in client.get("/", params={"item_id": int(ODD[0])}).text
    assert (
        "<script" not in client.get("/", params={"text": "<script>alert(1)</script>"}).text
    )  # markup is no text
    found = client.get("/", params={"text": "<new>alert(1)"}).text
    assert "<new" not in found and "Found for “&lt;new&gt;alert(1)”" in found
    for broken in (
        {"user_id": "x"},
        {"item_id": "5"},
        {"user_id": "4", "category": "Pets"},
        {"user_id": "9" * 19},
    ):
        assert "class='flag'" in client.get("/", params=broken).text


def test_pictures_are_served_by_id_as_what_they_are(client, moon):
    response = client.get(f"/image/{0:016x}")
    assert response.headers["content-type"] == "image/png" and response.content == picture()
    assert (
        response.headers["cache-control"] == "private, max-age=86400"
    )  # no proxy gives it to one without a key
    for kind in ("JPEG", "GIF", "BMP", "WEBP"):
        moon.catalogue.image_bytes = {"a": picture(kind)}.get
        assert client.get("/image/a").headers["content-type"] == f"image/{kind.lower()}"
    assert client.get("/image/none").status_code == 404


def test_answers_are_json_even_where_the_catalogue_is_not_a_number(client):
    response = client.get("/similar", params={"item_id": int(ODD[2]), "k": 40})
    prices = {hit["item_id"]: hit["price"] for hit in json.loads(response.text)["hits"]}
    assert prices[int(ITEM_IDS[1])] is None and prices[int(ITEM_IDS[3])] == 1.5


def test_a_wrong_setting_is_refused(tmp_path):
    with pytest.raises(ValueError, match="embedded, redis"):
        Settings(run=tmp_path, profile="radis")


def test_an_explanation_is_what_each_feature_adds_to_the_score_and_only_when_asked(monkeypatch):
    """The fake ranker adds the price to a part of the id; without the price the score is that part alone."""
    moon = recommender()
    price = Feature("price", "item_profile", "price", "candidate", "number", pa.float32())
    segment = Feature("segment", "user_profile", "segment", "request", "number", pa.float32())
    of = {"candidate": [price], "request": [segment]}
    moon.ranker.encoder = SimpleNamespace(inputs=SimpleNamespace(features=lambda side: of.get(side, [])))
    prices = {int(one): float(row % 5) for row, one in enumerate(ITEM_IDS)}
    plain = moon.reader.with_candidates

    def with_candidates(user, item_ids):
        frame = plain(user, item_ids)
        column = pa.array([prices[one] for one in item_ids.tolist()], pa.float32())
        requests = user.requests.append_column("segment", pa.array([2.0], pa.float32()))
        return replace(frame, candidates=frame.candidates.append_column("price", column), requests=requests)

    def score(frame, query_vectors=None):
        numbers = frame.candidates["price"].fill_null(0.0).to_numpy()
        return (frame.candidates["item_id"].to_numpy() / 1e17 + numbers).astype(np.float32)

    monkeypatch.setattr(moon.reader, "with_candidates", with_candidates)
    monkeypatch.setattr(moon.ranker, "score", score)
    asked = moon.recommend(4, 6, explained=True)
    assert asked.order == "ranker" and "explain" in asked.timings_ms
    for hit in asked.hits:
        assert hit.parts == pytest.approx({"segment": 0.0, "price": prices[int(hit.card.item_id)]}, abs=1e-6)
    assert {hit.parts["price"] for hit in asked.hits} > {4.0}
    plainly = moon.recommend(4, 6)
    assert [hit.card.item_id for hit in plainly.hits] == [hit.card.item_id for hit in asked.hits]
    assert {hit.parts for hit in plainly.hits} == {None} and "explain" not in plainly.timings_ms
    moon.reader.available = False
    popular = moon.recommend(77, 6, explained=True)  # nobody ranked these
    assert [hit.parts for hit in popular.hits] == [None] * 6


def test_the_form_of_the_page_searches_for_words_and_a_picture(client, moon):
    found = client.post("/", files={"image": ("a.png", picture())}, data={"text": ""})
    assert found.status_code == 200 and "Found for the picture" in found.text
    shown = re.findall(r"<a class='card' href='/\?item_id=(\d+)'", found.text)
    assert [int(item) for item in shown] == ids_of(
        client.post("/search", files={"image": ("a", picture())}, data={"k": "24"})
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}  # as a browser sends a form without a file
    field = "--x\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n"
    nothing = field % ('"image"; filename=""\r\nContent-Type: application/octet-stream', "")
    words = client.post("/", content=field % ('"text"', "even <new>") + nothing + "--x--", headers=kind)
    assert words.status_code == 200 and "Found for “even &lt;new&gt;”" in words.text
    for refused in (
        client.post("/", content=field % ('"text"', " ") + nothing + "--x--", headers=kind),
        client.post("/", files={"image": ("a", b"no picture")}),
    ):
        assert refused.status_code == 422 and "<p class='flag'>" in refused.text and "<form" in refused.text


def test_the_document_of_the_api_is_made_once(client):
    assert client.app.openapi() is client.app.openapi()
    assert set(client.app.openapi()["paths"]["/"]) == {"get", "post"}
