"""The wide path is the decomposition of words and looks, keeps what training would forget, and is saved."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_world import COLOURS, SHAPES, START, TINY, event, item_row, png
from scipy import linalg
from sklearn.feature_extraction.text import TfidfVectorizer
from test_encoder_benchmark import written

from dataset.split import Split, split_dataset
from encoder import model
from encoder.assemble import Parts
from encoder.backbone.packing import Sample
from encoder.encode import Content, Encoder, item_content
from encoder.parts import wide as module
from encoder.parts.wide import LOOKS, SEEN, THUMBNAIL, Wide, thumbnails
from encoder.recipes import Recipe
from encoder.stages.contrast import OWN, Contrast
from encoder.train import train_encoder
from evaluation.facets import Facets, remembered
from run.artifacts import open_artifact

RNG = np.random.default_rng(0)
VOCABULARY, PX = 30, 16


def some_items(count):
    often = 1 / np.arange(1, VOCABULARY) ** 1.2  # a few words in most texts: the directions differ in length
    tokens = [
        RNG.choice(np.arange(1, VOCABULARY), size=RNG.integers(2, 7), p=often / often.sum()).tolist()
        for _ in range(count)
    ]
    pictures = [RNG.integers(0, 256, size=(PX, PX, 3), dtype=np.uint8) for _ in range(count)]
    tokens[0], pictures[1], pictures[2] = [], None, None
    return tokens, pictures


def fitted(tokens, pictures, width):
    path = Wide(VOCABULARY, width)
    shown = np.flatnonzero([picture is not None for picture in pictures])
    looks = np.zeros((len(tokens), 3 * THUMBNAIL**2), dtype=np.float32)
    looks[shown] = thumbnails(torch.from_numpy(np.stack([pictures[row] for row in shown]))).numpy()
    path.fit(tokens, looks, shown)
    return path


def samples_of(tokens, pictures):
    return [
        Sample(text, () if picture is None else (picture,))
        for text, picture in zip(tokens, pictures, strict=True)
    ]


def plain_rows(tokens, pictures):
    """TF-IDF of the tokens that a text has by scikit-learn, and thumbnails less their mean; both of unit rows."""
    texts = [" ".join(f"w{token}" for token in text) for text in tokens]
    words = TfidfVectorizer(token_pattern=r"\S+", binary=True).fit_transform(texts).toarray()
    looks = np.zeros((len(tokens), THUMBNAIL, THUMBNAIL, 3))
    for row, picture in enumerate(pictures):
        if picture is not None:
            cells = picture.reshape(THUMBNAIL, PX // THUMBNAIL, THUMBNAIL, PX // THUMBNAIL, 3)
            looks[row] = 1 - cells.mean(axis=(1, 3)) / 255
    looks = looks.transpose(0, 3, 1, 2).reshape(len(tokens), -1)
    shown = np.array([picture is not None for picture in pictures])
    looks[shown] -= looks[shown].mean(axis=0)
    looks[shown] /= np.linalg.norm(looks[shown], axis=1, keepdims=True)
    return words, looks


def unit(rows):
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 1e-6, norm, np.inf)


def test_wide_enough_its_products_are_those_of_words_and_looks(monkeypatch):
    monkeypatch.setattr(module, "EVENING", 0.0)
    tokens, pictures = ([*one, *one[:3]] for one in some_items(20))  # more items than their rows have rank
    found = fitted(tokens, pictures, 40)(samples_of(tokens, pictures)).numpy()
    words, looks = plain_rows(tokens, pictures)
    np.testing.assert_allclose(found @ found.T, words @ words.T + SEEN**2 * looks @ looks.T, atol=2e-3)


def test_narrower_it_is_the_best_projection_with_its_directions_evened():
    tokens, pictures = some_items(60)
    found = fitted(tokens, pictures, 8)(samples_of(tokens, pictures)).numpy()
    words, looks = plain_rows(tokens, pictures)
    apart = linalg.block_diag(words, LOOKS * looks)  # words and looks of an item are rows of their own
    _, singular, direction = np.linalg.svd(apart, full_matrices=False)
    kept = direction[:8].T * singular[:8] ** -module.EVENING
    said, seen = unit(words @ kept[: words.shape[1]]), unit(looks @ kept[words.shape[1] :])
    expected = said + SEEN * seen
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-2)


def test_what_is_said_counts_once_and_alike_whatever_the_picture():
    tokens, pictures = some_items(60)
    path = fitted(tokens, pictures, 20)
    both = path(samples_of(tokens, pictures))[3:]
    said = path.words(tokens[3:])
    seen = path(samples_of([[]] * 57, pictures[3:]))
    torch.testing.assert_close(both, said + seen, atol=1e-5, rtol=0)
    torch.testing.assert_close(said.norm(dim=1), torch.ones(57))
    assert seen.norm(dim=1).max() < SEEN + 1e-5 and seen.norm(dim=1).median() > SEEN - 1e-5
    torch.testing.assert_close(path.words([[*text, *text, text[0]] for text in tokens[3:]]), said)


def test_a_sample_does_not_depend_on_the_others_and_reads_what_it_has():
    tokens, pictures = some_items(40)
    path = fitted(tokens, pictures, 40)
    samples = samples_of(tokens, pictures)
    together = path(samples)
    alone = torch.cat([path([sample]) for sample in samples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    words, looks = path([replace(samples[5], pictures=())]), path([replace(samples[5], tokens=[])])
    assert (words @ together[5]).item() > (words @ looks.T).item()
    # The core region is a second picture: only the whole one is read.
    twice = path([replace(samples[5], pictures=(pictures[5], pictures[6]))])
    torch.testing.assert_close(twice[0], together[5])


def test_nothing_to_fit_gives_zeros_and_no_error():
    path = Wide(VOCABULARY, 8)
    none, nobody = np.zeros((1, 3 * THUMBNAIL**2), dtype=np.float32), np.empty(0, dtype=np.int64)
    path.fit([[]], none, nobody)
    assert not path([Sample([3]), Sample([], (np.zeros((PX, PX, 3), np.uint8),))]).any()
    path.fit([[], [4, 5]], np.concatenate([none, none]), nobody)
    assert torch.isfinite(path([Sample([4]), Sample([9])])).all()


@pytest.fixture(scope="module")
def branded(tmp_path_factory):
    """Items of which the words say a brand that pictures do not show."""
    folder, rows, images = tmp_path_factory.mktemp("branded"), [], {}
    for number, (colour, shape, brand) in enumerate(
        itertools.product(COLOURS, SHAPES, ("acme", "bolt", "core"))
    ):
        picture = png(colour, shape, jitter=number % 3 - 1)
        content = item_row(number, colour, shape, picture, title=f"{brand} {colour} {shape}")
        rows.append({**content, "attributes": [("brand", brand)]})
        images[content["image_id"]] = picture
    events = [
        event(n, n % 20, (n * 7) % len(rows), START, event_time=START, position=None) for n in range(60)
    ]
    dataset = written(folder / "dataset", rows, images, events)
    split = Split.open(split_dataset(dataset, folder / "split", pool=np.empty(0, np.int64)))
    return folder, dataset, split


def memory(branded, name, recipe):
    folder, dataset, split = branded
    artifact = train_encoder(dataset, split, TINY, folder / name, recipe=recipe, budget=0.5)
    rows = dataset.items.to_pylist()
    vectors = Encoder.open(artifact).encode(
        [item_content(r, dataset.image_bytes(r["image_id"])) for r in rows]
    )
    number = np.arange(len(rows))
    learn = (number // 3 + number // 18) % 2 == 0
    facets = Facets.of(*([r for r, yes in zip(rows, side, strict=True) if yes] for side in (learn, ~learn)))
    return {one.name: one.value for one in remembered(facets, vectors[learn], vectors[~learn], "t", "e")}


def test_what_pictures_cannot_show_is_forgotten_without_the_wide_path_and_kept_with_it(branded):
    pictures_to_words = (Contrast(1.0, (OWN,)),)
    kept = memory(branded, "wide", Recipe("wide", Parts(wide=True), pictures_to_words))
    lost = memory(branded, "narrow", Recipe("narrow", Parts(), pictures_to_words))
    assert kept["e/facets/brand/accuracy"] > 0.95 and lost["e/facets/brand/accuracy"] < 0.8
    assert kept["e/facets/category_2/accuracy"] > 0.95


def test_a_title_finds_its_item_because_the_backbone_is_no_longer_than_it_may_be(branded, monkeypatch):
    """The brand is in the title, and a backbone that learns to match pictures and words forgets it."""
    folder, dataset, split = branded
    contents = [item_content(row, dataset.image_bytes(row["image_id"])) for row in dataset.items.to_pylist()]
    titles = [Content(None, one.text) for one in contents]
    recipe, found = Recipe("wide", Parts(wide=True), (Contrast(1.0, (OWN,)),)), {}
    shipped = model.DEEP
    for length in (shipped, 100.0):
        monkeypatch.setattr(model, "DEEP", length)
        artifact = train_encoder(dataset, split, TINY, folder / f"deep{length}", recipe=recipe, budget=0.5)
        encoder = Encoder.open(artifact)
        score = encoder.encode(titles) @ encoder.encode(contents).T
        found[length] = np.mean(score.argmax(axis=1) == np.arange(len(contents)))
        with torch.no_grad():
            encoder.model.head.weight.mul_(1000)  # whatever it learns
        np.testing.assert_allclose(encoder.encode(titles) @ encoder.encode(contents).T, score, atol=1e-5)
    assert found[shipped] > 0.95 and found[100.0] < 0.8


def test_it_is_saved_with_the_encoder(branded):
    folder, dataset, split = branded
    recipe = Recipe("wide", Parts(wide=True), (Contrast(1.0, (OWN,)),))
    artifact = train_encoder(dataset, split, TINY, folder / "saved", recipe=recipe, budget=0.01)
    first, second = (Encoder.open(open_artifact(folder / "saved", "encoder")).model.wide for _ in range(2))
    assert artifact.config["parts"]["wide"] and first.words_VD.any() and first.looks_PD.any()
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
