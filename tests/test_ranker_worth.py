"""What a feature is worth, in a shop where the segment decides and the age band says nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from ranker_world import SIGNATURE, Requests, auc, make_frame, make_vectors

from dataset.contracts import DataError
from evaluation import ablation
from feature_repo.signature import Feature
from moon import summary, verbs
from ranker.explain import explain
from ranker.recipes import attention, cube
from ranker.score import Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=8, ranker_slots=96)
VECTORS = make_vectors(24)
CLIP = Feature("clip", "photos", "clip", "candidate", "vector", pa.list_(pa.float32()))


def shop(requests, seed):
    """Users of the segment s0 like four of five items, the others one of five."""
    draw = np.random.default_rng(seed)
    candidates = [draw.choice(VECTORS.ids, 6, replace=False).tolist() for _ in range(requests)]
    users = draw.integers(0, 10**6, requests)
    labels = [draw.random(6) < (0.8 if user % 3 == 0 else 0.2) for user in users]
    frame = make_frame(users.tolist(), [[]] * requests, candidates, labels)
    noise = pa.array(draw.integers(0, 5, requests))
    place = frame.requests.column_names.index("age_band")
    return replace(frame, requests=frame.requests.set_column(place, "age_band", noise))


TRAIN, TEST = shop(300, 0), shop(150, 1)


def trained(out, **options):
    made = train_ctr(Requests(TRAIN), Requests(shop(60, 2)), VECTORS, TINY, out, {}, Training(**options))
    return Ranker.open(made, VECTORS)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run") / "all")


def test_an_explanation_names_the_features_that_decide(ranker):
    parts = explain(ranker, TEST)
    assert set(parts) == {one.name for one in Requests(TEST).signature.features}
    weight = {name: float(np.abs(part).mean()) for name, part in parts.items()}
    assert max(weight, key=weight.__getitem__) == "segment" and weight["segment"] > 3 * weight["age_band"]
    assert weight["rate_all"] == 0, "a number that never differed in training says nothing"
    often = np.repeat([segment == "s0" for segment in TEST.requests["segment"].to_pylist()], 6)
    assert parts["segment"][often].min() > parts["segment"][~often].max()


def test_what_is_explained_is_the_score_against_that_without_the_value(ranker):
    part = explain(ranker, TEST)["segment"]
    place = TEST.requests.column_names.index("segment")
    gone = TEST.requests.set_column(place, "segment", pa.nulls(len(TEST), pa.string()))
    expected = ranker.score(TEST) - ranker.score(replace(TEST, requests=gone))
    np.testing.assert_array_equal(part, expected)


def test_a_ranker_without_a_feature_neither_reads_nor_names_it(tmp_path):
    without = trained(tmp_path / "without", without=["segment"], epochs=1)
    assert "segment" not in explain(without, TEST)
    bare = replace(TEST, requests=TEST.requests.drop_columns(["segment"]))
    np.testing.assert_array_equal(without.score(bare), without.score(TEST))
    with pytest.raises(DataError, match="to do without .*, found segments"):
        trained(tmp_path / "no", without=["segments"])


@pytest.mark.parametrize("project", [{}, {"project": "3"}], ids=["as it is", "projected"])
def test_a_vector_of_the_store_is_a_feature_like_others(tmp_path, project):
    """A third party's vectors of the items, beside our own: the sign of their first component decides."""
    draw = np.random.default_rng(0)
    clip = {item: draw.normal(size=5) for item in VECTORS.ids.tolist()}
    signature = replace(SIGNATURE, features=(*SIGNATURE.features, replace(CLIP, options=project)))

    def liked(frame, seed):
        items = frame.candidates["item_id"].to_pylist()
        label = np.random.default_rng(seed).random(len(items)) < [
            0.9 if clip[i][0] > 0 else 0.1 for i in items
        ]
        table = frame.candidates.append_column(
            "clip", pa.array([clip[item].tolist() for item in items], CLIP.dtype)
        )
        place = table.column_names.index("label")
        return replace(frame, candidates=table.set_column(place, "label", pa.array(label.astype(np.float32))))

    train, valid, test = liked(TRAIN, 3), liked(shop(60, 2), 4), liked(TEST, 5)
    # No item of the test is known by its id: only its vector says what it is.
    hidden = test.candidates.set_column(0, "item_id", pa.array(np.arange(len(test.candidates)) + 10**9))
    for name in ("spu", "price", "category", "category_top", "attributes"):
        at = hidden.column_names.index(name)
        hidden = hidden.set_column(at, name, pa.nulls(len(hidden), hidden.schema.field(name).type))
    test = replace(test, candidates=hidden)
    label = test.candidates["label"].to_numpy()

    def quality(vectors, name):
        made = train_ctr(
            Requests(train, signature), Requests(valid, signature), vectors, TINY, tmp_path / name, {}
        )
        ranker = Ranker.open(made, vectors)
        tensors = [name for name, _ in ranker.model.named_parameters() if "vectors" in name]
        return ranker, auc(label, ranker.score(test)), tensors

    ranker, found, tensors = quality(VECTORS, "all")
    assert found > 0.7 and len(tensors) == (2 if project else 0)
    part = explain(ranker, test)["clip"]
    assert auc(label, part) > 0.7
    control, blind, _ = quality(None, "id_only")
    assert "clip" not in explain(control, test) and abs(blind - 0.5) < 0.1


def test_worth_is_the_loss_of_going_without(tmp_path, monkeypatch):
    """Each feature against the same rankers with all of them, seed by seed."""
    valid = Requests(shop(60, 2))
    artifact = SimpleNamespace(id="a")
    retriever = SimpleNamespace(artifacts={"embedding": artifact}, vectors=VECTORS)
    monkeypatch.setattr(ablation, "SEEDS", (0, 1))
    monkeypatch.setattr(ablation, "open_retrieval", lambda *where, **how: {})
    monkeypatch.setattr(ablation.Retriever, "open", lambda artifacts: retriever)
    monkeypatch.setattr(ablation, "as_stored", lambda vectors, store: vectors)
    monkeypatch.setattr(ablation, "ranker_frames", lambda *run: (Requests(TRAIN), valid, "pointwise"))
    scored = {}

    def measured(folder, dataset, split, size, rankers):
        for name, one in rankers.items():
            scored[name] = auc(TEST.candidates["label"].to_numpy(), one.score(TEST))
            yield f"ctr/{name.rsplit('_', 1)[0]}/auc", scored[name]

    monkeypatch.setattr(ablation, "measured_rankers", measured)
    split = SimpleNamespace(shows=True, rated=False, artifact=artifact)
    found = ablation.measure_worth(tmp_path, None, split, TINY, ["segment", "age_band"], cube())
    assert list(found) == ["segment", "age_band"]
    (segment,), (age_band,) = found.values()
    every = np.array([scored["all_0"], scored["all_1"]])
    gained = every - [scored["segment_0"], scored["segment_1"]]
    assert (segment.metric, segment.seeds) == ("auc", 2)
    assert segment.with_all == age_band.with_all == pytest.approx(every.mean())
    assert segment.with_all - segment.without == pytest.approx(gained.mean())
    assert segment.deviation == pytest.approx(gained.std(ddof=1))
    assert gained.min() > 0.1 and abs(age_band.with_all - age_band.without) < 0.05
    line = summary.worth(found).splitlines()[0]
    assert line.startswith(f"segment   auc {segment.with_all:.4f} with all, ") and line.endswith("(2 seeds)")


def test_worth_is_that_to_a_ranker_like_the_run_s_unless_another_is_named(tmp_path, monkeypatch):
    rates = Settings(TINY.id_width, 2e-3, 0.005)
    trained(tmp_path / "ranker_full", recipe=attention(), settings=rates, epochs=1)
    measured = []
    monkeypatch.setattr(ablation, "measure_worth", lambda *given: measured.append(given[-1].name) or {})
    monkeypatch.setattr(summary, "worth", lambda found: "")
    monkeypatch.setattr("feature_repo.store.apply_definitions", lambda store: None)
    for opened in ("open_dataset", "open_split"):
        monkeypatch.setattr(verbs, opened, lambda run: None)
    run = SimpleNamespace(folder=tmp_path, size=TINY)
    for named in (None, "cube"):
        verbs.worth(run, ["segment"], named)
    assert measured == ["attention", "cube"]
