"""Who may do what: keys with scopes, from a file or the environment, made, revoked and replaced while it runs.

Run: pytest tests/test_service_keys.py
"""

import base64
import hmac
import json
import os
from types import SimpleNamespace

import pytest
from fake_shop import recommender
from fastapi.testclient import TestClient
from test_service_hostile import EVENT, ITEM, Kept
from typer.testing import CliRunner

from moon.cli import app as moon
from serving.app import create_app
from serving.keys import (
    ENVIRONMENT,
    SCOPES,
    KeyRing,
    KeysError,
    create_key,
    digest_of,
    is_loopback,
    read_keys,
    require_keys,
    revoke_key,
    scope_of,
)
from serving.limits import Buckets
from serving.server import serve
from serving.settings import Settings


@pytest.fixture(autouse=True)
def no_keys_of_this_machine(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def keys_file(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def keys(keys_file):
    """A key of each scope, by scope."""
    return {scope: create_key(keys_file, f"{scope}er", [scope]) for scope in SCOPES}


def client_of(run, **settings):
    kept = Kept()
    app = create_app(Settings(run=run, **settings), recommender(), kept)
    return TestClient(app, raise_server_exceptions=False), kept


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


REQUESTS = {
    ("GET", "/"): "read",
    ("GET", "/recommend?user_id=4"): "read",
    ("GET", "/similar?item_id=7"): "read",
    ("POST", "/search"): "read",
    ("GET", f"/image/{0:016x}"): "read",
    ("GET", "/openapi.json"): "read",
    ("POST", "/"): "read",
    ("GET", "/nowhere"): "read",
    ("POST", "/events"): "write",
    ("POST", "/items"): "write",
    ("DELETE", "/items/7"): "write",
    ("PUT", "/items/7/state"): "write",
    ("POST", "/nowhere"): "write",
    ("GET", "/metrics"): "admin",
}
BODIES = {
    "/search": {"text": "mug"},
    "/events": [EVENT],
    "/items": ITEM,
    "/items/7/state": {"state": "out_of_stock"},
}


def test_every_route_needs_its_scope_and_no_other_serves(tmp_path, keys):
    client, _ = client_of(tmp_path)
    for (method, path), needed in REQUESTS.items():
        for scope, key in keys.items():
            answer = client.request(method, path, json=BODIES.get(path), headers=bearer(key))
            if scope == needed:
                assert answer.status_code not in (401, 403), (method, path, answer.text)
            else:
                assert answer.status_code == 403, (method, path, scope)
                assert f"scope needed: {needed}" in answer.json()["error"]
    routes = {(method, one.path) for one in client.app.routes for method in one.methods}
    tried = {(method, path.split("?")[0]) for method, path in REQUESTS}
    for method, path in routes:
        filled = path.replace("{image_id}", f"{0:016x}").replace("{item_id}", "7")
        assert filled in ("/healthz", "/readyz") or method == "HEAD" or (method, filled) in tried, path


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer moon_" + "x" * 43},
        {"Authorization": "Bearer " + "x" * 9000},
        {"Authorization": "Bearer \xff"},
        {"Authorization": "Basic ***"},
        {"Authorization": "Digest username=x"},
    ],
)  # fmt: skip
def test_without_a_known_key_nothing_is_read_or_kept(tmp_path, keys, sent):
    client, kept = client_of(tmp_path)
    sent = {name: value.encode("latin-1") for name, value in sent.items()}
    for (method, path), needed in REQUESTS.items():
        answer = client.request(method, path, json=BODIES.get(path), headers=sent)
        assert answer.status_code == 401 and f"of scope {needed}" in answer.json()["error"]
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert kept.nothing()


def test_the_probes_are_open_and_tell_details_to_an_admin_only(tmp_path, keys):
    client, _ = client_of(tmp_path)
    assert client.get("/healthz").json() == {"status": "alive"}
    for headers in ({}, bearer("nobody"), bearer(keys["read"])):
        assert client.get("/readyz", headers=headers).json() == {"status": "ready"}
    assert {"status", "problems", "artifacts"} <= set(
        client.get("/readyz", headers=bearer(keys["admin"])).json()
    )


def test_a_browser_sends_a_key_as_a_password_and_only_to_read(tmp_path, keys):
    client, kept = client_of(tmp_path)
    asked = client.get("/").headers.get_list("WWW-Authenticate")
    assert [one.split()[0] for one in asked] == [
        "Bearer",
        "Basic",
    ]  # each on a line of its own: Chrome reads no list
    assert "Basic" not in client.post("/items", json=ITEM).headers["WWW-Authenticate"]
    assert client.get("/", auth=("me", keys["read"])).status_code == 200
    assert client.get("/", auth=("me", "wrong")).status_code == 401
    key = create_key(tmp_path / "keys.json", "all", SCOPES)
    assert client.post("/items", json=ITEM, auth=("me", key)).status_code == 401
    assert client.post("/items", json=ITEM, headers=bearer(key)).status_code == 202
    assert list(kept.items) == [ITEM["item_id"]]


def test_a_key_counts_from_the_next_request_on_and_a_revoked_one_no_longer(tmp_path, keys_file):
    client, _ = client_of(tmp_path)
    ask = lambda key: client.get("/recommend?user_id=4", headers=bearer(key)).status_code  # noqa: E731
    assert ask("anything") == 200  # no keys, on loopback: everything is allowed
    old = create_key(keys_file, "shop", ["read"])
    assert ask(old) == 200 and ask("anything") == 401
    new = create_key(keys_file, "shop", ["read"])  # two of one name, while the shop changes over
    assert ask(old) == ask(new) == 200
    assert revoke_key(keys_file, digest_of(old)[:8]) == 1
    assert ask(old) == 401 and ask(new) == 200
    assert revoke_key(keys_file, "shop") == 1
    assert ask(new) == 401 and ask("anything") == 401  # an empty list is not an open door


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": [{"name": "x"}]}', None])
def test_a_file_that_breaks_while_it_runs_changes_nothing(tmp_path, keys_file, keys, content, caplog):
    client, _ = client_of(tmp_path)
    keys_file.write_text(content) if content is not None else keys_file.unlink()
    assert client.get("/recommend?user_id=4", headers=bearer(keys["read"])).status_code == 200
    assert client.get("/recommend?user_id=4").status_code == 401
    assert content is None or "stay in force" in caplog.text
    if content is not None:
        with pytest.raises(KeysError, match="expected"):
            KeyRing(keys_file)


def test_only_digests_are_stored_and_nobody_else_reads_them(keys_file, keys):
    text = keys_file.read_text()
    assert all(key not in text and digest_of(key) in text for key in keys.values())
    assert keys_file.stat().st_mode & 0o777 == 0o600
    assert len({*keys.values()}) == 3 and all(len(key) >= 48 for key in keys.values())


def test_every_digest_is_compared_in_constant_time(keys_file, keys, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "serving.keys.hmac",
        SimpleNamespace(compare_digest=lambda *two: compared.append(two) or hmac.compare_digest(*two)),
    )
    assert KeyRing(keys_file).caller(keys["read"]).name == "reader"  # the first of three
    assert compared == [(key.sha256, digest_of(keys["read"])) for key in read_keys(keys_file)]


def test_keys_come_from_the_option_else_the_environment_else_the_run(tmp_path, keys_file, monkeypatch):
    other = tmp_path / "other.json"
    own, theirs = create_key(keys_file, "own", ["read"]), create_key(other, "theirs", ["read"])
    name = lambda settings, key: (found := KeyRing.open(settings).caller(key)) and found.name  # noqa: E731
    assert name(Settings(run=tmp_path), own) == "own"
    assert name(Settings(run=tmp_path, keys=other), theirs) == "theirs"
    assert name(Settings(run=tmp_path, keys=other), own) is None
    monkeypatch.setenv(ENVIRONMENT, other.read_text())
    assert name(Settings(run=tmp_path), theirs) == "theirs"
    assert name(Settings(run=tmp_path), own) is None
    assert name(Settings(run=tmp_path, keys=keys_file), own) == "own"
    with pytest.raises(KeysError, match="moon keys create"):
        KeyRing.open(Settings(run=tmp_path, keys=tmp_path / "absent.json"))
    monkeypatch.setenv(ENVIRONMENT, "secret")
    with pytest.raises(KeysError, match=ENVIRONMENT) as refused:
        KeyRing.open(Settings(run=tmp_path))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.5", False), ("shop.example", False), ("", False)],
)  # fmt: skip
def test_other_machines_are_not_served_without_keys(tmp_path, keys_file, host, alone):
    assert is_loopback(host) == alone
    settings = Settings(run=tmp_path, host=host)
    if alone:
        require_keys(settings)
        return
    with pytest.raises(KeysError, match="Run 'moon keys create NAME --scope read'"):
        serve(settings)  # before anything is loaded: there is no run
    keys_file.write_text('{"keys": []}')
    with pytest.raises(KeysError, match="expected API keys"):
        require_keys(settings)
    create_key(keys_file, "shop", ["read"])
    require_keys(settings)


def test_the_command_line_makes_lists_and_revokes_keys(keys_file):
    def run(*words):
        done = CliRunner().invoke(moon, ["keys", *words, "--keys", str(keys_file)])
        return done.exception or done.stdout.strip()

    key = run("create", "shop", "--scope", "read", "--scope", "write")
    caller = KeyRing(keys_file).caller(key)
    assert caller.name == "shop" and caller.scopes == {"read", "write"}
    assert run("list").split("\t")[:3] == ["shop", digest_of(key)[:8], "read,write"] and key not in run(
        "list"
    )
    assert isinstance(run("create", "a b", "--scope", "read"), KeysError)
    assert isinstance(run("create", "shop", "--scope", "root"), KeysError)
    assert "shop" in str(run("revoke", "shpo"))
    assert run("revoke", "shop") == "1 revoked" and run("list") == ""
    assert json.loads(keys_file.read_text()) == {"keys": []}
    assert sorted(os.listdir(keys_file.parent)) == ["keys.json", "keys.json.lock"]


def test_events_have_the_name_of_their_key_as_sender_unless_they_name_one(tmp_path, keys):
    client, kept = client_of(tmp_path)
    told = [EVENT, EVENT | {"event_id": 2, "sender": "till 7"}]
    assert client.post("/events", json=told, headers=bearer(keys["write"])).status_code == 200
    assert [one.sender for one in kept.events] == ["writeer", "till 7"]
    (tmp_path / "open").mkdir()
    client, kept = client_of(tmp_path / "open")  # without keys
    assert client.post("/events", json=told).status_code == 200
    assert [one.sender for one in kept.events] == ["", "till 7"]


def test_a_scope_is_needed_for_whatever_is_added():
    assert scope_of("GET", "/new") == "read" and scope_of("POST", "/search") == "read"
    assert {scope_of(method, "/new") for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")} == {"write"}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("seed", range(5))
def test_a_bucket_lets_through_what_its_slow_twin_does(seed):
    """The twin fills its buckets tick by tick, in whole numbers: a tick is 1/8 s, a token 8 parts, 5 parts a tick."""
    import random

    rng, clock = random.Random(seed), Clock()
    buckets, parts = Buckets(5, 4, clock), {}
    for _ in range(400):
        for _ in range(rng.choice((0, 0, 1, 2, 9))):
            clock.now += 1 / 8
            parts = {who: min(4 * 8, held + 5) for who, held in parts.items()}
        who = rng.choice("abc")
        held = parts.setdefault(who, 4 * 8)
        wait = buckets.wait_s(who)
        assert (wait == 0) == (held >= 8)
        assert wait == pytest.approx(max(0, 8 - held) / 5 / 8)
        parts[who] -= 8 if held >= 8 else 0


def test_only_so_many_callers_are_remembered():
    buckets = Buckets(1, 1, Clock(), most=3)
    assert [buckets.wait_s(who) for who in "abcabc"] == [0, 0, 0, 1, 1, 1]
    assert buckets.wait_s("d") == 0 and buckets.wait_s("b") == 1  # "a" was quiet longest
    assert buckets.wait_s("a") == 0


def test_too_many_requests_wait_and_one_caller_is_not_anothers_burden(tmp_path, keys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("serving.gate.Buckets", lambda per_s, burst: Buckets(per_s, burst, clock))
    client, _ = client_of(tmp_path, requests_per_s=1, burst=2)
    ask = lambda headers, path="/similar?item_id=7": client.get(path, headers=headers)  # noqa: E731
    read, admin = bearer(keys["read"]), bearer(keys["admin"])
    assert [ask(read).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(read)
    assert refused.headers["Retry-After"] == "1" and refused.json() == {"error": "too many requests"}
    assert ask(admin, "/metrics").status_code == 200
    assert [ask({}).status_code for _ in range(3)] == [401, 401, 429]  # a guesser is held up by address
    assert all(client.get("/readyz").status_code == 200 for _ in range(9))  # a balancer never is
    clock.now = 0.9
    assert ask(read).status_code == 429
    clock.now = 1.0
    assert ask(read).status_code == 200 and ask(read).status_code == 429
    metrics = ask(admin, "/metrics").text
    assert (
        'moon_refused_total{reason="rate"} 5.0' in metrics
        and 'moon_refused_total{reason="key"} 2.0' in metrics
    )


def test_the_default_limits_are_beyond_what_one_process_answers():
    usual = Settings(run=None)
    assert usual.requests_per_s >= 100 and usual.burst >= 1000


def test_base64_of_a_key_is_not_a_key(tmp_path, keys):
    client, _ = client_of(tmp_path)
    encoded = base64.b64encode(keys["read"].encode()).decode()
    assert client.get("/", headers=bearer(encoded)).status_code == 401
