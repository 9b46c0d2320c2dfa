"""The service follows the active generation: it takes over whole, and one that cannot be opened changes nothing.

Run: pytest tests/test_live.py
"""

import shutil
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from test_service_refuses_mixed_artifacts import run, write  # noqa: F401  (the fixture)

from dataset.contracts import DataError
from feature_repo import dead_letters
from feature_repo.create import create_store
from feature_repo.ingest.clock import ShopClock
from feature_repo.online import StoreUnavailable
from moonstore.errors import StoreError
from run import generations
from run.artifacts import open_artifact
from run.generations import GenerationError
from serving import live as live_module
from serving.app import create_app
from serving.live import Live
from serving.recommend import STORE_AWAY
from serving.settings import Settings


def seal(folder, seed):
    """A generation whose ranker is another."""
    parents = {name: open_artifact(folder / name, name, "test") for name in ("split", "embedding")}
    write(folder, "ranker_full", "ranker", parents, seed)
    return generations.seal(folder, generations.open_parts(folder), {})


@pytest.fixture(scope="module")
def some_store(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live") / "store"
    create_store(folder, tiny_world.dataset, tiny_world.split)
    return folder


@pytest.fixture
def two(run, some_store):  # noqa: F811
    """A run of two generations, the first of them active, and a store that holds the vectors of neither."""
    shutil.copytree(some_store, run / "store")
    sealed = [seal(run, 1), seal(run, 2)]
    generations.point(run, 1)
    return run, [one.artifacts["ranker_full"] for one in sealed]


def ready(client):
    response = client.get("/readyz")
    return response.status_code, response.json()


def test_without_an_active_generation_nothing_is_served(run):  # noqa: F811
    with pytest.raises(GenerationError, match="no generation is active. Run 'moon demo'"):
        create_app(Settings(run=run))


def test_what_is_activated_takes_over_and_goes_back(two):
    run, rankers = two  # noqa: F811
    live = Live.open(Settings(run=run))
    first = live.current
    live.look()
    assert live.current is first and (live.target_generation, live.problem, live.switches) == (1, "", 0)
    generations.point(run, 2)
    live.look()
    assert (
        live.current.artifacts["ranker"] == rankers[1]
        and live.current.generation == live.target_generation == 2
    )
    assert (
        first.artifacts["ranker"] == rankers[0] and first.recommend(4, 3).hits
    )  # requests under way end with it
    generations.point_back(run)
    live.look()
    assert live.current.artifacts["ranker"] == rankers[0] and live.switches == 2


def test_a_generation_that_cannot_be_opened_is_reported_and_the_old_one_serves_on(two):
    run, rankers = two  # noqa: F811
    weights = generations.folder_of(run, 2) / "ranker_full" / "weights.json"
    weights.unlink()
    weights.write_text("damaged")
    with TestClient(create_app(Settings(run=run))) as client:
        body = ready(client)[1]
        assert body["generation"] == {"served": 1, "asked": 1, "problem": ""}
        assert (
            body["items"]["loaded_until"] is None and "moon embeddings activate" in body["items"]["problem"]
        )
        generations.point(run, 2)
        wait_for(lambda: ready(client)[1]["generation"]["problem"])
        status, body = ready(client)
        assert status == 200 and body["status"] == "ready" and body["artifacts"]["ranker"] == rankers[0]
        assert body["generation"]["served"] == 1 and body["generation"]["asked"] == 2
        assert "ArtifactError" in body["generation"]["problem"] and "sha256" in body["generation"]["problem"]
        metrics = client.get("/metrics").text
        assert 'moon_generation{is="served"} 1.0' in metrics and 'moon_generation{is="asked"} 2.0' in metrics
        assert "moon_generation_refused{reason=" in metrics
        answer = client.get("/recommend?user_id=4&k=3").json()
        assert answer["artifacts"]["ranker"] == rankers[0] and answer["order"] == "ranker"
        weights.write_text("2")
        generations.point_back(run)
        generations.point(run, 2)  # asked for again, it is tried again
        wait_for(lambda: ready(client)[1]["generation"]["served"] == 2)
        assert ready(client)[1]["generation"]["problem"] == ""
        assert client.get("/recommend?user_id=4&k=3").json()["artifacts"]["ranker"] == rankers[1]
        assert "moon_generation_refused{" not in client.get("/metrics").text


def test_a_broken_generation_costs_itself_across_a_restart(two):
    run, rankers = two  # noqa: F811
    generations.point(run, 2)
    weights = generations.folder_of(run, 2) / "ranker_full" / "weights.json"
    whole = weights.read_text()
    weights.unlink()
    weights.write_text("damaged")
    for _ in range(2):
        live = Live.open(Settings(run=run))
        assert live.current.artifacts["ranker"] == rankers[0] and live.current.recommend(4, 3).hits
        assert (live.current.generation, live.target_generation) == (1, 2) and "sha256" in live.problem
        assert live.count_refused() == {"generations": 1}
    (letter,) = dead_letters.letters(run / "store")
    assert letter.id == "generations/2" and "sha256" in letter.reason and letter.attempts == 2
    assert letter.record["generation"] == 2 and letter.door == "serve"
    weights.write_text(whole)
    live = Live.open(Settings(run=run))
    assert live.current.generation == 2 and live.problem == "" and live.count_refused() == {}


def test_a_service_that_cannot_know_what_was_deleted_does_not_start(two):
    run, _ = two  # noqa: F811
    (run / "store" / "data" / "item_states.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="item_states.db: expected the states of the items"):
        Live.open(Settings(run=run))


def test_a_mixture_is_not_served(two):
    run, _ = two  # noqa: F811
    other = {"embedding": write(run, "other", "embedding", {}, 5)}
    write(generations.folder_of(run, 2), "ranker_full", "ranker", other, 5)
    live = Live.open(Settings(run=run))
    generations.point(run, 2)
    live.look()
    assert live.current.generation == 1 and "ranker_full: made from embedding" in live.problem


def test_the_thread_looks_and_ends(two):
    run, rankers = two  # noqa: F811
    live = Live(Live.open(Settings(run=run)).current, Settings(run=run), every_s=0.01)
    live.start()
    assert (live._thread.name, live._thread.daemon) == ("live", True), "it ends with the process"
    generations.point(run, 2)
    wait_for(lambda: live.current.artifacts["ranker"] == rankers[1])
    (run / "generations" / "current.json").write_text("not JSON")
    time.sleep(0.05)  # which the thread survives
    (run / "generations" / "current.json").unlink()
    generations.point(run, 1)
    wait_for(lambda: live.current.artifacts["ranker"] == rankers[0])
    live.stop()
    assert not live._thread.is_alive()


def test_a_recommender_given_by_hand_stays_until_it_is_replaced(two):
    run, _ = two  # noqa: F811
    live = Live(Live.open(Settings(run=run)).current)
    generations.point(run, 2)
    live.look()
    assert live.current.generation == 1
    other = Live.open(Settings(run=run)).current
    live.replace(other)
    assert live.current is other and live.switches == 1


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Whole:
    """A recommender that nothing was withdrawn from."""

    def __init__(self, number):
        self.number, self.generation, self.artifacts = number, None, {"embedding": "e1"}

    def without(self, withdrawn):
        assert not withdrawn
        return self


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """A live recommender over a scripted store, what the store holds, and what was built from it."""
    store = SimpleNamespace(loaded="monday", items=(), refused={}, error=None, built=[])

    def refreshed(*parts):
        if store.error:
            raise store.error
        store.built.append(parts)
        return Whole(len(store.built))

    for name, value in {
        "embedding_of": lambda folder, embedding: (folder, embedding),
        "matrix_key": lambda folder, embedding: store.loaded,
        "open_store": lambda folder: "store",
        "open_item_matrix": lambda opened, embedding: (opened, embedding),
        "refreshed": refreshed,
    }.items():
        monkeypatch.setattr(live_module, name, value)
    for name, value in {
        "fingerprint": lambda folder: store.items,
        "new_items": lambda folder: list(store.items),
    }.items():
        monkeypatch.setattr(live_module.new_items, name, value)
    monkeypatch.setattr(live_module.dead_letters, "counts", lambda folder: store.refused)
    first = Whole(0)
    return Live(first, Settings(run=tmp_path)), store, first


def test_the_dead_letter_is_counted_when_somebody_asks_and_once_for_each_check(watched, monkeypatch):
    live, store, _ = watched
    counted = []
    monkeypatch.setattr(
        live_module.dead_letters, "counts", lambda folder: counted.append(folder) or {"events": len(counted)}
    )
    for _ in range(5):
        live.look()
    assert counted == [] and live.refused == {}
    assert [live.count_refused() for _ in range(3)] == [{"events": 1}] * 3
    live.look()
    assert live.refused == {"events": 1} and live.count_refused() == live.refused == {"events": 2}
    assert set(counted) == {live._settings.run / "store"}
    assert Live(live.current).count_refused() == {}, "nothing is watched"


def test_each_load_and_each_new_item_is_taken_over_once(watched):
    live, store, first = watched
    assert live.current is first
    live.look()
    embedding = (live._settings.run / "store", "e1")
    assert store.built == [(first, "store", ("store", embedding), [])] and live.current.number == 1
    live.look()
    assert live.current.number == 1, "nothing has changed"
    store.items, store.refused = ("new",), {"new_items": 2}
    live.look()
    assert store.built[1] == (first, "store", ("store", embedding), ["new"]) and live.current.number == 2
    assert (live.count_refused(), live.stale_reason, live.switches) == ({"new_items": 2}, "", 0)
    store.loaded = "tuesday"
    live.look()
    live.look()
    assert live.current.number == len(store.built) == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [(StoreError("lost"), "lost"), (StoreUnavailable("lost"), STORE_AWAY), (DataError("lost"), "lost")],
)
def test_while_the_store_cannot_be_read_the_last_answers_stay_and_it_is_tried_again(
    watched, error, reason, caplog
):
    live, store, _ = watched
    live.look()
    store.loaded, store.error = "tuesday", error
    live.look()
    live.look()
    assert live.current.number == 1 and live.stale_reason == reason
    said = [record.getMessage() for record in caplog.records if record.name == "moon.serving"]
    assert said == ["not up to date: lost"], "the same reason is said once"
    store.error = None
    live.look()
    assert live.current.number == 2 and live.stale_reason == ""


def test_the_clock_belongs_to_the_run_and_no_start_moves_it_back(two):
    run, _ = two  # noqa: F811
    first = Live.open(Settings(run=run)).current
    began = first.now()
    ShopClock(run / "store", began).set(began + timedelta(days=3))  # it has been running for three days, say
    set_to = (run / "store" / "data" / "clock.json").read_bytes()
    second = Live.open(Settings(run=run)).current
    assert (run / "store" / "data" / "clock.json").read_bytes() == set_to
    assert began + timedelta(days=3) <= first.now() <= second.now() <= first.now()
    moon = Live.open(Settings(run=run, clock="wall")).current
    assert abs(moon.now() - datetime.now(UTC)) < timedelta(minutes=1)
