"""The recipe ``cube`` is the click model of release 0.1.0 to the bit, and a new module needs no product file.

``made_by_0_1_0/rankers`` are rankers that release 0.1.0 trained for two epochs on ``full_frame(60)``, and what they
said of ``full_frame(30, seed=1)``.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from click_model_0_1_0 import ClickModel010
from ranker_world import SIGNATURE, Requests, auc, full_frame, make_vectors, make_world
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from feature_repo.signature import Feature, Signature
from moon import stages
from moon.cli import app
from ranker import recipes, score
from ranker.controls import shuffled
from ranker.modules.ids import Ids
from ranker.modules.module import Module, Output
from ranker.modules.numbers import Numbers
from ranker.recipes import Recipe, RecipeError, recipe
from ranker.score import RENAMED, Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from run.artifacts import Artifact, ArtifactError, open_artifact, write_artifact
from run.folder import Run
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
MADE_BY_0_1_0 = Path(__file__).with_name("made_by_0_1_0") / "rankers"
NANO = size("nano")
TINY = replace(NANO, id_width=4, history=8, ranker_slots=128)
VECTORS = make_vectors(24)
TRAIN, VALID = full_frame(60), full_frame(30, seed=1)


def trained(out, vectors=VECTORS, **options):
    training = Training(**{"epochs": 2} | options)
    return train_ctr(Requests(TRAIN), Requests(VALID), vectors, TINY, out, {}, training)


def as_now(tensors):
    for before, now in RENAMED.items():
        tensors = {now + n.removeprefix(before) if n.startswith(before) else n: t for n, t in tensors.items()}
    return tensors


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
@pytest.mark.parametrize(
    "vectors", [VECTORS, None, shuffled(VECTORS, 0)], ids=["full", "id_only", "shuffled"]
)
def test_cube_learns_the_weights_of_release_0_1_0_to_the_bit(tmp_path, monkeypatch, vectors, loss):
    made = trained(tmp_path / "now", vectors, loss=loss, seed=3)
    monkeypatch.setattr(score, "ClickModel", lambda shape, recipe: ClickModel010(shape))
    before = trained(tmp_path / "before", vectors, loss=loss, seed=3)
    assert made.config["outcome"] == before.config["outcome"]
    old, now = (load_file(one.file("model.safetensors")) for one in (before, made))
    assert as_now(old).keys() == now.keys()
    for name, tensor in as_now(old).items():
        assert torch.equal(tensor, now[name]), name


@pytest.mark.parametrize("vectors", [VECTORS, None], ids=["full", "id_only"])
def test_a_ranker_made_by_release_0_1_0_opens_and_says_what_it_said(vectors):
    name = "id_only" if vectors is None else "full"
    path = MADE_BY_0_1_0 / f"ranker_{name}"
    ranker = Ranker.open(open_artifact(path, "ranker"), vectors)
    assert ranker.score(VALID).std() > 0.01
    said = load_file(MADE_BY_0_1_0 / f"{name}_scores.safetensors")["score"].numpy()
    np.testing.assert_allclose(ranker.score(VALID), said, atol=1e-6)  # another CPU rounds otherwise
    config = score.CtrConfig.read(path / "config.json")
    twin = ClickModel010(config.shape)
    twin.load_state_dict(load_file(path / "model.safetensors"), strict=False)
    assert np.array_equal(Ranker(twin.eval(), ranker.encoder).score(VALID), ranker.score(VALID))


def test_a_ranker_is_refused_under_a_service_that_has_changed_since(tmp_path):
    made, of = trained(tmp_path / "r", epochs=1), SIGNATURE.features
    assert Ranker.open(made, VECTORS, SIGNATURE).encoder.inputs.signature == SIGNATURE
    brand = replace(of[0], name="brand", field="brand")
    number = replace(of[3], kind="number")
    changed = Signature(SIGNATURE.service, (*of[1:3], number, *of[4:], brand))
    with pytest.raises(ArtifactError) as refused:
        Ranker.open(made, VECTORS, changed)
    for part in ("added: brand", f"lost: {of[0].name}", f"changed: {of[3].name}, kind", "Run 'moon ranker'"):
        assert part in str(refused.value)
    vector = Feature("vector", "item_embedding_v2", "vector", "candidate", "vector", pa.list_(pa.float32()))
    Ranker.open(made, VECTORS, Signature(SIGNATURE.service, (*of, vector)))  # embeddings are checked by id
    before = open_artifact(MADE_BY_0_1_0 / "ranker_full", "ranker")
    assert Ranker.open(before, VECTORS, changed).score(VALID).std() > 0.01


def test_unknown_recipes_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(RecipeError, match="unknown recipe 'cub': expected one of cube"):
        recipe("cub")
    made = trained(tmp_path / "r")
    content = json.loads(made.file("config.json").read_text())
    assert content["recipe"] == {
        "name": "cube",
        "modules": {
            "ids": {"module": "Ids"},
            "interest": {"module": "Interest"},
            "numbers": {"module": "Numbers"},
            "cube": {"module": "Cube"},
        },
    }

    def changed(**keys):
        with write_artifact(tmp_path / "changed", "ranker", made.config) as folder:
            save_file(load_file(made.file("model.safetensors")), folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(content | keys))
        return open_artifact(tmp_path / "changed", "ranker")

    assert np.array_equal(
        Ranker.open(changed(), VECTORS).score(VALID), Ranker.open(made, VECTORS).score(VALID)
    )
    for recipe_now, message in (
        ({"name": "dien", "modules": {}}, "unknown recipe 'dien': expected one of cube"),
        ({"name": "cube", "modules": {"ids": {"module": "Ids"}}}, "recipe cube: trained as .* by now it is"),
        ({"name": "cube", "modules": content["recipe"]["modules"], "depth": 2}, "recipe cube: trained as"),
        ({"modules": {}}, "'name'"),
    ):
        with pytest.raises(ArtifactError, match=rf"{message}.*Run 'moon ranker'"):
            Ranker.open(changed(recipe=recipe_now), VECTORS)


class Similarity(Module):
    """A newcomer's module: how alike a candidate is to the behaviours, by content."""

    def __init__(self, widths, power=1.0):
        super().__init__()
        self.power = power
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.per_candidate = 1

    def forward(self, target_content_RNV, history_content_RLV, history_known_RL):
        alike = target_content_RNV @ history_content_RLV.transpose(1, 2)
        mean = alike.sum(-1) / history_known_RL.sum(-1).clamp(min=1)[:, None]
        return Output(self.scale * mean.sign()[..., None] * mean.abs()[..., None] ** self.power)


def similar():
    return Recipe("similar", {"ids": Ids, "numbers": Numbers, "similarity": partial(Similarity, power=0.5)})


def test_a_module_of_ones_own_learns_planted_truth_without_a_line_of_the_product(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "similar", similar)
    old = np.arange(240)
    worlds = [make_world(requests=r, old_items=old, seed=s) for r, s in ((400, 0), (80, 1))]
    requests, training = [Requests(one.frame) for one in worlds], Training(recipe=similar())
    made = train_ctr(*requests, worlds[0].vectors, NANO, tmp_path / "r", {}, training)
    assert made.config["recipe"] == "similar"
    assert json.loads(made.file("config.json").read_text())["recipe"]["modules"]["similarity"] == {
        "module": "Similarity",
        "power": 0.5,
    }
    test = make_world(requests=200, old_items=old, seed=2)
    label = test.frame.candidates["label"].to_numpy()
    ranker = Ranker.open(made, worlds[0].vectors)
    assert auc(label, ranker.score(test.frame)) > auc(label, test.probability) - 0.04
    learned = ranker.model.get_parameter("parts.similarity.scale").detach()
    assert float(learned) != 1.0
    control = train_ctr(*requests, None, NANO, tmp_path / "id_only", {}, training)
    assert "parts.similarity.scale" not in load_file(control.file("model.safetensors"))


@pytest.mark.parametrize(
    ("given", "loss", "chosen", "plainer"),
    [
        ([], "pointwise", "cube", "attention"),
        ([], "listwise", "cube", None),
        (["--recipe", "similar"], "pointwise", "similar", None),
        (["--settings", "best.json"], "pointwise", "cube", None),
        (["--history", "2000", "--recipe", "similar"], "pointwise", "similar", None),
    ],
)
def test_the_command_trains_the_recipe_and_its_controls(tmp_path, monkeypatch, given, loss, chosen, plainer):
    """Beside a recipe that nobody chose, those that read vectors try the one without, where clicks can tell."""
    monkeypatch.setattr("ranker.settings.Settings.read", lambda path: Settings(8, 1e-3, 1e-3))
    run, seen, lengths = Run(tmp_path, "marketplace", "nano", 0, "embedded"), [], set()
    monkeypatch.setitem(recipes.RECIPES, "similar", similar)
    monkeypatch.setattr("moon.journey.load", lambda folder: run)
    monkeypatch.setattr("moon.journey.do", lambda run, verb, **options: getattr(stages, verb)(run, **options))
    nothing = Artifact(tmp_path, "embedding", "embedding-1", {}, {})
    monkeypatch.setattr(
        stages, "open_split", lambda run: SimpleNamespace(artifact=nothing, ranks=True, shows=True, end=None)
    )
    monkeypatch.setattr(stages, "open_dataset", lambda run: None)
    opened = SimpleNamespace(
        artifacts={"embedding": nothing},
        vectors=VECTORS,
        without_content=lambda: "blind",
        without_vectors=lambda: "plain",
    )
    frames = [SimpleNamespace(stored=one, history=None) for one in (TRAIN, VALID)]
    monkeypatch.setattr("retrieval.retriever.open_retrieval", lambda folder, fitted: {})
    monkeypatch.setattr("retrieval.retriever.Retriever.open", lambda artifacts: opened)
    monkeypatch.setattr("retrieval.readings.ranker_frames", lambda *place: (*frames, loss))
    monkeypatch.setattr("retrieval.readings.ordering_frame", lambda *place: "asked")
    monkeypatch.setattr("retrieval.readings.matched", lambda *read: read)
    monkeypatch.setattr("feature_repo.embeddings.as_stored", lambda vectors, store: vectors)
    monkeypatch.setattr("moon.searching.judged_pairs", lambda *place: ())
    monkeypatch.setattr("moon.searching.build", lambda *place: None)
    monkeypatch.setattr(stages, "open_encoder", lambda run: None)
    monkeypatch.setattr(
        stages, "replace", lambda one, **changes: one if one is opened else replace(one, **changes)
    )
    monkeypatch.setattr("feature_repo.store.apply_definitions", lambda store: None)
    monkeypatch.setattr("feature_repo.frames.context.context_unknown", lambda *place: "")

    def record(train, valid, vectors, size, out, parents, training, ranks, asked):
        lengths.add(size.behaviours)
        plainer = None if training.plainer is None else training.plainer.name
        seen.append((out.name, training.recipe.name, plainer, (train, valid), asked))

    monkeypatch.setattr("ranker.train.train_ctr", record)
    assert CliRunner().invoke(app, ["ranker", *given]).exit_code == 0
    plain, blind = (tuple((one, reader, None) for one in (TRAIN, VALID)) for reader in ("plain", "blind"))
    assert seen == [
        (
            f"ranker_{control}",
            chosen,
            plainer if control in ("full", "shuffled") else None,
            {"full": tuple(frames), "id_only": blind}.get(control, plain),
            ("asked", {"full": opened, "id_only": "blind"}.get(control, "plain"), None),
        )
        for control in ("full", "plain_content", "id_only", "shuffled")
    ]
    assert lengths == {2000 if "--history" in given else 50}
    seen.clear()
    refused = CliRunner().invoke(app, ["ranker", "--recipe", "cub"])
    assert str(refused.exception) == f"unknown recipe 'cub': expected one of {', '.join(recipes.RECIPES)}"
    assert "similar" in recipes.RECIPES
    assert not seen


def test_options_of_another_value_are_another_ranker(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "similar", similar)
    made = trained(tmp_path / "r", recipe=similar())
    flat = lambda: replace(similar(), modules=similar().modules | {"similarity": Similarity})  # noqa: E731
    monkeypatch.setitem(recipes.RECIPES, "similar", flat)
    with pytest.raises(ArtifactError, match=r"trained as .*'power': 0.5.* Run 'moon ranker'"):
        Ranker.open(made, VECTORS)


def test_a_recipe_that_cannot_be_built_says_why(tmp_path):
    class Guess(Module):
        def forward(self, target_RND, taste_RT):
            return Output(target_RND)

    with pytest.raises(RecipeError, match="module guess reads taste_RT: expected fields of Features: beh"):
        trained(tmp_path / "r", recipe=Recipe("guess", {"ids": Ids, "guess": Guess}))
    alone = Recipe("alone", {"similarity": Similarity})
    with pytest.raises(RecipeError, match="recipe alone: all its 1 modules read content vectors"):
        trained(tmp_path / "r", None, recipe=alone)
    with pytest.raises(RecipeError, match="expected a class of ranker module or a partial of one"):
        trained(tmp_path / "r", recipe=Recipe("wrong", {"ids": torch.nn.Linear}))
    assert trained(tmp_path / "alone", recipe=alone, epochs=1).config["recipe"] == "alone"
