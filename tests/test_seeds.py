"""The rankers of ``moon seeds`` are trained as the one that serves."""

from types import SimpleNamespace

import pytest

from evaluation import ablation, seeds


@pytest.mark.parametrize("rated", [False, True])
def test_what_orders_a_rated_answer_is_learned_for_every_seed(rated, tmp_path, monkeypatch):
    """Without it the candidates' order alone was measured, which is not what is served."""
    frame = SimpleNamespace(history=5, stored=None)
    asked, taught = object() if rated else None, []
    retriever = SimpleNamespace(artifacts={"embedding": None}, vectors=None)
    retriever.without_vectors = retriever.without_content = lambda: retriever
    made = SimpleNamespace(recipe=None, inputs=SimpleNamespace(history=5))
    fakes = {
        "config_of": lambda folder: made,
        "open_retrieval": lambda folder, fitted=False: {},
        "as_stored": lambda vectors, folder: vectors,
        "ranker_frames": lambda *_: (frame, frame, "pointwise"),
        "ordering_frame": lambda *_: asked,
        "controls": lambda vectors, seed: {"full": SimpleNamespace(tastes=True, plain=False, vectors=None)},
        "train_ctr": lambda *_, asked=None: taught.append(asked),
        "Ranker": SimpleNamespace(open=lambda *_: None),
        "Retriever": SimpleNamespace(open=lambda *_: retriever),
        "measured_rankers": lambda *_: [("ctr/full/auc", 0.5)],
        "replace": lambda size, **_: size,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(seeds, name, fake)
    monkeypatch.setattr("retrieval.readings.matched", lambda asked, *_: asked)
    split = SimpleNamespace(ranks=True, artifact=None)
    assert seeds.measure_seeds(tmp_path, None, split, None)["ctr/full/auc"]["mean"] == 0.5
    assert taught == [asked] * len(seeds.SEEDS)


@pytest.mark.parametrize("rated", [False, True])
def test_what_a_feature_is_worth_is_measured_in_that_order_too(rated, tmp_path, monkeypatch):
    asked, taught = object() if rated else None, []
    frame = SimpleNamespace(history=5, signature=SimpleNamespace(features=[]))
    retriever = SimpleNamespace(artifacts={"embedding": None}, vectors=None)
    fakes = {
        "open_retrieval": lambda folder, fitted=False: {},
        "as_stored": lambda vectors, folder: vectors,
        "ranker_frames": lambda *_: (frame, frame, "pointwise"),
        "ordering_frame": lambda *_: asked,
        "matched": lambda asked, *_: asked,
        "train_ctr": lambda *_, asked=None: taught.append(asked),
        "Ranker": SimpleNamespace(open=lambda *_: None),
        "Retriever": SimpleNamespace(open=lambda *_: retriever),
        "measured_rankers": lambda *_: [],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(ablation, name, fake)
    split = SimpleNamespace(artifact=None)
    ablation.measure_worth(tmp_path, None, split, None, (), None)
    assert taught == [asked] * len(seeds.SEEDS)
