"""A check of the store finds what is wrong with it, and says so by its exit code.

Run: pytest tests/test_features_check.py
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, free_port, make_world
from fake_shop import recommender
from typer.testing import CliRunner

from evaluation.report import ReportContent, render_report
from evaluation.sheets import Evidence, store_check
from feature_repo.check import _drift, _fractions, check_store, to_text
from feature_repo.create import create_store
from feature_repo.ingest.ingestor import HistoryWriter
from feature_repo.online import StoreUnavailable
from feature_repo.store import materialize, open_store, use_profile
from moon.cli import app
from moonstore.batch import Batch

MOMENT = START + 40 * DAY


@pytest.fixture
def loaded(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    materialize(tmp_path / "store", MOMENT)
    return tmp_path / "store"


def by_view(findings):
    return {one.view: one for one in findings}


def test_a_loaded_store_has_no_problems(loaded):
    findings = by_view(check_store(loaded))
    assert not any(one.problems for one in findings.values())
    for view in ("item_profile", "item_stats", "user_history", "user_events"):
        assert findings[view].coverage == findings[view].parity == 1.0 and findings[view].entities > 5
    assert "no problems" in to_text(list(findings.values()))


def test_a_store_that_was_never_loaded_says_so(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    problems = {problem for one in check_store(tmp_path / "store") for problem in one.problems}
    assert problems == {"never loaded: run 'moon materialize'"}


def test_what_differs_and_what_is_missing_is_named(loaded):
    store = open_store(loaded)
    connection = store._get_provider().online_store._get_conn(store.config)
    with connection:
        connection.execute("UPDATE moon_item_profile SET value = X'3500000000' WHERE feature_name = 'price'")
        connection.execute("DELETE FROM moon_user_profile")
    findings = by_view(check_store(loaded))
    assert findings["item_profile"].parity < 0.5 and set(findings["item_profile"].wrong) == {"price"}
    assert findings["user_profile"].coverage == 0.0 and findings["user_profile"].parity is None
    text = to_text(list(findings.values()))
    assert "item_profile: " in text and "differ from offline, in price" in text
    assert "user_profile: 0.0% of the entities are online, expected 99%" in text


def test_a_pushed_event_is_newer_not_wrong(tiny_world, loaded):
    later = make_world(seed=1).split.log
    known = later.column("available_time").to_pylist()
    rows = [row for row, when in enumerate(known) if when >= MOMENT]
    HistoryWriter(loaded).push(later.take(rows))
    history = by_view(check_store(loaded))["user_history"]
    assert history.newer > 0 and not history.problems


def priced(values):
    count = len(values)
    return Batch([pa.array(np.arange(count))], {"price": pa.array(values)}, np.zeros(count, np.int64), None)


def test_drift_is_the_stability_index():
    old, new = np.random.default_rng(0).normal(size=(2, 5000))
    edges = np.quantile(old, np.arange(1, 10) / 10)
    p, q = _fractions(new + 0.5, edges), _fractions(old, edges)
    by_hand = sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True))
    before = {"price": {"edges": edges.tolist(), "shares": q.tolist()}}
    index, name = _drift(before, priced(new + 0.5))
    assert name == "price" and index == pytest.approx(by_hand) and 0.15 < index < 0.35
    assert _drift(before, priced(new))[0] < 0.01


def test_prices_that_drift_are_reported_against_the_last_sound_check(tmp_path):
    world = make_world(seed=3, items=900, events=50)
    create_store(tmp_path / "store", world.dataset, world.split)
    materialize(tmp_path / "store", MOMENT)
    assert not any(one.problems for one in check_store(tmp_path / "store"))
    path = tmp_path / "store" / "data" / "item_profile.parquet"
    table = pq.read_table(path)
    dearer = np.nan_to_num(table.column("price").to_numpy()) * 3 + 100
    place = table.schema.get_field_index("price")
    pq.write_table(table.set_column(place, table.schema.field(place), [dearer.astype(np.float32)]), path)
    materialize(tmp_path / "store", MOMENT)
    profile = by_view(check_store(tmp_path / "store"))["item_profile"]
    assert profile.parity == 1.0 and profile.drift[1] == "price"
    assert any("price has drifted" in problem for problem in profile.problems)


def test_the_report_of_a_run_holds_the_problems_of_its_store(loaded, tmp_path):
    def shown():
        content = ReportContent("Run", "A run.", store=store_check(loaded))
        return render_report(tmp_path / "report.html", content).read_text()

    assert "no problems</span>" in shown() and "item_profile" in shown()
    store = open_store(loaded)
    connection = store._get_provider().online_store._get_conn(store.config)
    with connection:
        connection.execute("UPDATE moon_item_profile SET value = X'3500000000' WHERE feature_name = 'price'")
    page = shown()
    assert "1 problem</span>" in page
    assert (
        "differ from offline, in price" in page.split('<span class="badge bad">item_profile</span>')[1][:100]
    )


def test_a_store_that_does_not_answer_is_left_out_of_the_report(loaded, tmp_path):
    use_profile(loaded, "redis", f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreUnavailable, match="the online store does not answer"):
        check_store(loaded)
    content = ReportContent("Run", "A run.", store=store_check(loaded))
    page = render_report(tmp_path / "report.html", content).read_text()
    assert "Not examined: the online store does not answer" in page and "item_profile" not in page


def test_a_run_is_reported_though_its_store_does_not_answer(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text('{"profile": "redis"}')
    moon = recommender()
    moon.reader.available = False
    monkeypatch.setattr("evaluation.sheets.open_recommender", lambda *_: moon)
    example = Evidence(tmp_path, None, None, None, {}).served_example()
    assert example["history"] == [] and example["fallbacks"] == ["store_unavailable"]
    assert len(example["recommended"]) == 5


def test_the_command_prints_the_table_and_fails_where_something_is_wrong(tiny_world, tmp_path):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    (tmp_path / "run.json").write_text(
        '{"data": "marketplace", "size_name": "nano", "seed": 0, "profile": "embedded"}'
    )
    result = CliRunner().invoke(app, ["features", "check", "--run", str(tmp_path)])
    assert result.exit_code == 1 and "never loaded" in result.output
    materialize(tmp_path / "store", MOMENT)
    result = CliRunner().invoke(app, ["features", "check", "--run", str(tmp_path)])
    assert result.exit_code == 0 and "item_profile" in result.output


ON_DEMAND = """
import numpy as np
import pandas as pd
from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String
from feature_repo.features import item_profile, user_profile

sent = [Field(name="time_us", dtype=Int64), Field(name="device", dtype=String)]
request = RequestSource(name="request", schema=sent)


@on_demand_feature_view(sources=[item_profile], schema=[Field(name="double_price", dtype=Float64)])
def double(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"double_price": inputs["price"] * 2.0})


@on_demand_feature_view(
    sources=[item_profile, user_profile, request], schema=[Field(name="for_whom", dtype=String)], mode="python"
)
def for_whom(inputs: dict) -> dict:
    parts = zip(inputs["category_top"], inputs["segment"], inputs["device"], inputs["time_us"])
    return {"for_whom": [f"{top}, {segment}, {device}, {time}" for top, segment, device, time in parts]}
"""


@pytest.fixture
def with_on_demand(tiny_world, tmp_path, monkeypatch):
    mine = tmp_path / "repository" / "mine"
    mine.mkdir(parents=True)
    monkeypatch.setattr("feature_repo.store.REPOSITORY", mine.parent)
    (mine / "mine.py").write_text(ON_DEMAND)
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    return tmp_path / "store", mine / "mine.py"


def test_on_demand_views_are_computed_from_both_sides(with_on_demand, tiny_world):
    store_dir, _ = with_on_demand
    unloaded = by_view(check_store(store_dir))["double"]
    assert unloaded.problems == ("it reads item_profile, of which nothing is loaded: run 'moon materialize'",)
    materialize(store_dir, MOMENT)
    findings = by_view(check_store(store_dir))
    prices = tiny_world.dataset.items["price"].to_numpy()
    assert findings["double"].entities == len(prices) and findings["double"].parity == 1.0
    assert findings["double"].nulls == (float(np.isnan(prices).mean()), "double_price")
    # One row per item, users repeated beside them; what a caller would send is not known, so nulls say nothing.
    assert findings["for_whom"].entities == len(prices) and findings["for_whom"].nulls is None
    assert not any(one.problems for one in findings.values())

    store = open_store(store_dir)
    connection = store._get_provider().online_store._get_conn(store.config)
    with connection:
        connection.execute("UPDATE moon_item_profile SET value = X'3500000000' WHERE feature_name = 'price'")
    priced = int((~np.isnan(prices)).sum())
    damaged = by_view(check_store(store_dir))["double"]
    assert damaged.wrong["double_price"] >= priced - 1 and "differ from offline" in damaged.problems[0]


def test_a_function_that_fails_on_what_is_stored_is_a_problem(with_on_demand):
    store_dir, file = with_on_demand
    file.unlink()
    file.with_name("other.py").write_text(
        ON_DEMAND.replace('inputs["price"] * 2.0', 'inputs["price"].map(lambda one: 1 / (float(one) - 3.5))')
    )
    materialize(store_dir, MOMENT)
    (problem,) = by_view(check_store(store_dir))["double"].problems
    assert problem.startswith("on-demand view double: failed on") and "division by zero" in problem
