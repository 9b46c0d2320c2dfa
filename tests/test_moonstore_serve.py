"""``python -m moonstore serve`` answers to the letter what ``feast serve`` answers.

Run: pytest tests/test_moonstore_serve.py
"""

import json
import runpy
import sys

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from feast import FeatureService, FeatureStore, feature_server
from feast.feature_server import get_app
from test_front_door import NOW, TYPES, entity_rows, item_view, online, values
from test_moonstore_contract import USER, open_repository, rate, rows, spending, write

from moonstore.serve import take_over

assert online  # a fixture


@pytest.fixture
def feasts(monkeypatch):
    """What ``take_over`` replaces, put back afterwards."""
    for name in ("get_app", "convert_response_to_dict", "JSONResponse"):
        monkeypatch.setattr(feature_server, name, getattr(feature_server, name))


def both(store, call):
    """What Feast's server and ours answer to ``call(client)``."""
    feasts = call(TestClient(get_app(store), raise_server_exceptions=False))
    take_over()
    return feasts, call(TestClient(feature_server.get_app(store), raise_server_exceptions=False))


def same(feasts, ours):
    """Asserts equal status and JSON, also in type and order (``1`` is not ``1.0``)."""
    assert ours.status_code == feasts.status_code
    assert ours.headers.get("content-type") == feasts.headers.get("content-type")
    assert json.dumps(json.loads(ours.content or "{}")) == json.dumps(json.loads(feasts.content or "{}"))


@pytest.mark.parametrize(
    "asked",
    [
        {"features": [f"item:{name}" for name in TYPES]},
        {"features": [f"item:{name}" for name in TYPES], "full_feature_names": True},
        {"features": ["item:float"], "include_feature_view_version_metadata": True},
        {"feature_service": "all"},
        {"feature_service": "none"},
        {"features": ["item:none"]},
        {"features": ["item:float"], "entities": {"other": [1]}},
        {"features": ["item:float"], "entities": {"item_id": "é-1"}},
        {"features": ["item:float"], "entities": {"item_id": []}},
    ],
    ids=lambda asked: " ".join(map(str, asked.values()))[-30:],
)
def test_every_request_is_answered_alike(tmp_path, online, feasts, asked):
    rng = np.random.default_rng(3)
    store = open_repository(tmp_path, online)
    view, entities = item_view("item", "text", TYPES)
    store.apply([*entities, view, FeatureService(name="all", features=[view])])
    frame = pd.DataFrame(entity_rows("text", range(20)))
    stored = frame.assign(event_timestamp=NOW - pd.to_timedelta(range(20), "ms"), **values(rng, 20))
    stored.loc[:2, "double"] = [np.inf, -np.inf, -0.0]
    store.write_to_online_store("item", stored)
    ids = [f"é-{number}" for number in (0, 1, 2, 5, 7, 5, 19)]
    body = {"entities": {"item_id": [*ids, "none"]}} | asked
    feasts, ours = both(store, lambda client: client.post("/get-online-features", json=body))
    same(feasts, ours)
    assert (ours.status_code == 200) == ("none" not in str(asked) and "entities" not in asked)


def test_on_demand_features_and_the_other_endpoints_are_feasts(tmp_path, online, feasts):
    write(tmp_path, rows())
    store = open_repository(tmp_path, online)
    store.apply([USER, spending(), rate()])
    entities = {"user_id": [1, 2, 9], "fee": [0.5, 2.0, 1.0]}
    body = {"features": ["spending:visits", "derived:total"], "entities": entities}
    row = {"user_id": [2], "visits": [7], "spent": [1.5], "event_timestamp": [str(NOW)]}
    new = {"feature_view_name": "spending", "df": row}

    def call(client):
        yield client.post("/write-to-online-store", json=new)
        yield client.post("/get-online-features", json=body)
        yield client.post("/push", json={"push_source_name": "none", "df": row})
        yield client.get("/health")

    for one in zip(*both(store, lambda client: list(call(client))), strict=True):
        same(*one)


def test_the_serve_command_starts_the_app(tmp_path, feasts, monkeypatch):
    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
        "online_store:\n  type: moonstore.sqlite_store.SqliteOnlineStore\n  path: online.db\n"
    )
    write(tmp_path, rows())
    started = []
    monkeypatch.setattr(feature_server.FeastServeApplication, "run", lambda self: started.append(self.load()))
    monkeypatch.setattr(sys, "argv", ["moonstore", "-c", str(tmp_path), "serve", "--port", "0"])
    monkeypatch.setattr("moonstore.serve.content", lambda answer: {"by": "moonstore"})
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("moonstore", run_name="__main__")
    assert ended.value.code == 0
    store = FeatureStore(str(tmp_path))
    store.apply([USER, spending()])
    body = {"features": ["spending:visits"], "entities": {"user_id": [1]}}
    assert TestClient(started[0]).post("/get-online-features", json=body).json() == {"by": "moonstore"}
