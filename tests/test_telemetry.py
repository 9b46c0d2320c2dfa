"""``/metrics`` counts what happened: every value by hand, from answers with known times."""

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dataset.records import Event
from feature_repo.ingest.ingestor import Ingested
from serving.answer import Answer, Stages
from serving.siblings import Siblings
from serving.telemetry import Telemetry

BOUNDS = "0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1.0 2.0 5.0 +Inf".split()


def live(**changed):
    """What telemetry reads of the service, with one thing changed."""
    moon = SimpleNamespace(
        retriever=SimpleNamespace(index=range(7)),
        items=changed.pop("items", None),
        artifacts={"index": "abc", "ranker": "def"},
        generation=changed.pop("generation", 3),
        withdrawn={7: "deleted"},
    )
    parts = {
        "stale_reason": "",
        "target_generation": 4,
        "switches": 2,
        "problem": "",
        "refused": {"new_items": 5},
        **changed,
    }
    return SimpleNamespace(current=moon, count_refused=dict, **parts)


def values(telemetry):
    """Every line of the page: name and labels -> value."""
    lines = telemetry.text().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }


def answer(retrieve_ms, hits=1, fallbacks=()):
    return Answer([None] * hits, {"retrieve": retrieve_ms}, tuple(fallbacks), "ranker")


def test_times_of_stages_are_counted_summed_and_put_into_buckets():
    telemetry = Telemetry(live())
    for ms in (1.5, 1.6, 30.0, 9000.0):
        telemetry.answered("/recommend", answer(ms))
    telemetry.answered("/search", answer(3.0))
    found = values(telemetry)

    def stage(what, endpoint="/recommend", bound=""):
        where = f'endpoint="{endpoint}",{bound}stage="retrieve"'
        return found[f"moon_stage_seconds_{what}{{{where}}}"]

    assert stage("count") == 4 and stage("sum") == pytest.approx(9.0331)
    assert stage("count", "/search") == 1 and stage("sum", "/search") == pytest.approx(0.003)
    below = [stage("bucket", bound=f'le="{bound}",') for bound in BOUNDS]
    assert below == [0, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 4]


def test_fallbacks_empty_answers_responses_and_events_are_counted():
    telemetry = Telemetry(live())
    telemetry.answered("/recommend", answer(1.0, hits=0, fallbacks=("no_history", "no_ranker")))
    telemetry.answered("/recommend", answer(1.0, hits=0, fallbacks=("no_history",)))
    telemetry.answered("/recommend", answer(1.0))
    for status in (200, 200, 404):
        telemetry.responded("/recommend", status, 0.003)
    telemetry.ingested(Ingested(accepted=5, duplicates=2, late=1))
    other = Event(event_id=1, user_id=1, item_id=1, type="click")
    telemetry.ingested(Ingested(accepted=1, duplicates=0, late=1, conflicts=(other, other)))
    found = values(telemetry)
    assert found['moon_fallbacks_total{endpoint="/recommend",fallback="no_history"}'] == 2
    assert found['moon_fallbacks_total{endpoint="/recommend",fallback="no_ranker"}'] == 1
    assert found['moon_empty_answers_total{endpoint="/recommend"}'] == 2
    assert found['moon_responses_total{endpoint="/recommend",status="200"}'] == 2
    assert found['moon_responses_total{endpoint="/recommend",status="404"}'] == 1
    events = {
        what: found[f'moon_events_total{{what="{what}"}}']
        for what in ("accepted", "duplicates", "late", "conflicts")
    }
    assert events == {"accepted": 6, "duplicates": 2, "late": 2, "conflicts": 2}


def test_what_makes_the_answers_is_published():
    found = values(Telemetry(live()))
    assert found["moon_index_items"] == 7 and found["moon_switches_total"] == 2
    assert (
        found['moon_artifact{id="abc",role="index"}'] == found['moon_artifact{id="def",role="ranker"}'] == 1
    )
    assert found['moon_generation{is="served"}'] == 3 and found['moon_generation{is="asked"}'] == 4
    assert found["moon_items_behind"] == 0 and found["moon_items_withdrawn"] == 1
    assert found['moon_dead_letters{kind="new_items"}'] == 5 and found['moon_dead_letters{kind="rows"}'] == 0
    assert not [name for name in found if "generation_refused" in name or "loaded_until" in name]


def test_what_is_wrong_is_published():
    unread = live(stale_reason="the store does not answer", problem="damaged", target_generation=None)
    found = values(Telemetry(unread))
    assert found["moon_items_behind"] == 1
    assert found['moon_generation_refused{reason="damaged"}'] == 1
    assert 'moon_generation{is="asked"}' not in found


@pytest.mark.parametrize("until, published", [("2026-01-01T00:00:00+00:00", True), ("", False)])
def test_the_end_of_the_last_load_is_published_where_there_was_one(until, published):
    found = values(Telemetry(live(items=SimpleNamespace(loaded_until=until))))
    assert found.get("moon_items_loaded_until_seconds") == (1767225600.0 if published else None)


def test_the_time_of_a_stage_is_in_milliseconds_and_adds_up(monkeypatch):
    clock = iter([10.0, 10.25, 20.0, 20.5, 30.0, 31.0])
    monkeypatch.setattr("serving.answer.time.perf_counter", lambda: next(clock))
    stages = Stages()
    for stage in ("features", "rank"):
        with stages.measure(stage):
            pass
    with pytest.raises(KeyError), stages.measure("features"):
        raise KeyError  # that it failed does not hide how long it took
    assert stages.ms == {"features": 1250.0, "rank": 500.0}


def test_whichever_process_is_asked_answers_for_all_that_share_the_port(tmp_path):
    one, two = Siblings(tmp_path, "1"), Siblings(tmp_path, "2")
    apps = [Telemetry(live(), siblings=each) for each in (one, two)]
    for app, answered in zip(apps, (3, 4), strict=True):
        for _ in range(answered):
            app.responded("/recommend", 200, 0.003)
        app.answered("/recommend", Answer([], {"rank": 1.0}, (), "ranker"))
        asyncio.run(first_of(app.share()))
    apps[0].responded("/recommend", 200, 0.003)  # its own numbers are those of now
    text = apps[0].text().decode()
    families = {one.name: one for one in text_string_to_metric_families(text)}
    counted = {one.labels["worker"]: one.value for one in families["moon_responses"].samples}
    assert counted == {"1": 4, "2": 4}
    assert text.count("# TYPE moon_responses_total counter") == 1
    observed = [one for one in families["moon_stage_seconds"].samples if one.name.endswith("_count")]
    assert {one.labels["worker"] for one in observed} == {"1", "2"} and all(
        one.value == 1 for one in observed
    )
    assert not list(tmp_path.glob("*.tmp"))


async def first_of(endless):
    """Run a task until it first waits."""
    task = asyncio.ensure_future(endless)
    await asyncio.sleep(0)
    task.cancel()
