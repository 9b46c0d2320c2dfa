"""What learns is refused, before any work, on data or features that have changed since they were stored."""

import folder_world as world
import pytest
from conftest import make_world
from feast import FeatureView, Field
from feast.types import Int64

from feature_repo import features
from feature_repo.create import create_store
from feature_repo.store import known_until, materialize, require_as_defined
from moon import journey, stages
from moonstore.errors import StoreError
from run.folder import JourneyError


@pytest.fixture
def store_dir(tmp_path):
    tiny = make_world(seed=1)
    create_store(tmp_path / "store", tiny.dataset, tiny.split)
    return tmp_path / "store"


@pytest.fixture
def changed(monkeypatch):
    """Today's features say of a count what no null is, as a release after the store's may."""

    def change(name="shown_7d", **tags):
        view = features.item_stats
        fields = [
            Field(name=one.name, dtype=one.dtype, tags=tags if one.name == name else one.tags)
            for one in view.features
        ]
        other = FeatureView(
            name=view.name, entities=[features.item], ttl=view.ttl,
            schema=[Field(name="item_id", dtype=Int64), *fields], source=view.batch_source,
        )  # fmt: skip
        monkeypatch.setattr(features, "item_stats", other)

    return change


def test_a_store_of_other_features_is_refused_until_it_is_taken_as_it_is(store_dir, changed, monkeypatch):
    require_as_defined(store_dir)
    changed(null="7", transform="log")
    with pytest.raises(StoreError, match=(
        "item_stats:shown_7d is Int64 null=0 there and Int64 null=7 transform=log now. Run 'moon store'"
    )):  # fmt: skip
        require_as_defined(store_dir)
    with pytest.raises(StoreError):
        require_as_defined(store_dir)  # to look has registered nothing
    monkeypatch.setattr("feature_repo.services.item_stats", features.item_stats)
    materialize(store_dir, known_until(store_dir))
    require_as_defined(store_dir)


@pytest.mark.parametrize(
    "verb",
    ["encoder", "embed", "retrieval", "ranker", "daily", "evaluate", "frame", "ranker --tune", "seeds"],
)
def test_what_learns_from_a_store_asks_it_first(verb, tmp_path, store_dir, changed, monkeypatch):
    run = journey.Run(tmp_path, "marketplace", "nano", 0, "embedded")
    monkeypatch.setattr(journey, "_done", lambda run, stage: True)
    asked = next(one for one in (*journey.STAGES, *journey.VERBS) if one.verb == verb)
    journey._require(run, asked)
    changed(null="7")
    with pytest.raises(StoreError, match="Run 'moon store'"):
        journey._require(run, asked)


@pytest.mark.parametrize("verb", ["store", "ingest", "fold", "materialize", "serve"])
def test_what_makes_a_store_or_only_adds_to_it_does_not(verb, tmp_path, store_dir, changed, monkeypatch):
    run = journey.Run(tmp_path, "marketplace", "nano", 0, "embedded")
    monkeypatch.setattr(journey, "_done", lambda run, stage: True)
    changed(null="7")
    journey._require(run, next(one for one in (*journey.STAGES, *journey.VERBS) if one.verb == verb))


def test_what_a_description_says_now_is_imported_before_anything_is_learned(tmp_path, monkeypatch):
    """Until now the stages after the import went on with what the description had said."""
    monkeypatch.chdir(tmp_path)
    world.rated_films(tmp_path / "films")
    monkeypatch.setattr(journey, "STAGES", journey.STAGES[:2])
    run = journey.start(str(tmp_path / "films"), None, None, 0, "embedded")
    journey.travel(run)
    description = tmp_path / "films" / "moon.toml"
    description.write_text(description.read_text().replace('title = "title"', 'description = "title"'))
    with pytest.raises(
        JourneyError, match="Run 'moon demo --data .*films --run runs/films' to import it again"
    ):
        journey.do(run, "split")
    assert journey._done(run, journey.STAGES[1])
    journey.travel(run)
    journey.do(run, "split")


def test_retrieval_registers_what_has_changed_in_a_repository(monkeypatch, tmp_path):
    """It had learned by what was registered, which only the ranker's training renewed: then the two did not agree."""
    done = []
    monkeypatch.setattr("feature_repo.store.apply_definitions", lambda folder: done.append(folder))
    monkeypatch.setattr("retrieval.build.build_retrieval", lambda *_, **__: done.append("built"))
    for opened in ("open_dataset", "open_split"):
        monkeypatch.setattr(f"moon.stages.{opened}", lambda run: None)
    stages.retrieval(journey.Run(tmp_path, "marketplace", "nano", 0, "embedded"))
    assert done == [tmp_path / "store", "built"]
