"""Training learns a planted shop and resumes exactly; what it writes embeds every item that has content."""

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoder_world import COLOURS, SHAPES, START, TINY, item_row, png, shop
from safetensors.numpy import load_file

import encoder.train as train
from dataset.contracts import IMAGES, ITEMS, JUDGEMENTS, QUERIES, DataError, content_hash
from encoder.backbone import build_backbone, small_config
from encoder.content import Content, item_text
from encoder.embed import embed
from encoder.encode import Encoder, save_encoder
from encoder.examples.corpus import read_corpus
from encoder.examples.pairs import Pairs
from encoder.model import EncoderModel, Sample
from encoder.optim import Optimizers
from encoder.posttrain import Positives, augmented, halved, own_pairs, posttrain_loss, shown_modalities
from encoder.pretrain import KINDS, pretrain_loss, question
from encoder.tokenizer import special_ids, train_tokenizer
from encoder.train import schedule, train_encoder
from moon.artifacts import open_artifact
from moon.sizes import size


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    dataset, split = world
    return train_encoder(dataset, split, TINY, tmp_path_factory.mktemp("run") / "encoder", budget=0.2)


def test_unseen_combinations_of_colour_and_shape_are_found_by_their_words():
    """Every colour and every shape is trained on, eight pairings never; their words find their picture."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    unseen = [pairs[i * 6 + i % 6] for i in range(8)]
    shown = [p for p in pairs if p not in unseen]
    tokenizer = train_tokenizer([f"{c} {s}" for c, s in shown] * 5, vocabulary=320)
    config = small_config(64, 1, 32, len(tokenizer), special_ids(tokenizer))
    backbone = build_backbone(config, 32, seed=0)
    torch.manual_seed(0)
    model = EncoderModel(backbone, 32, 0)
    pictures = [png(c, s, jitter=j) for c, s in shown for j in (-2, 0, 2)]
    rows = [
        item_row(n, *shown[n // 3], picture, spu=n // 3, attributes=[], category=[])
        for n, picture in enumerate(pictures)
    ]

    class Shop:
        items = pa.Table.from_pylist(rows, ITEMS)
        images = pa.Table.from_pylist(
            [{"image_id": content_hash(p), "bytes": p, "width": 32, "height": 32} for p in set(pictures)],
            IMAGES,
        )
        queries = QUERIES.empty_table()

    corpus = read_corpus(Shop(), tokenizer, 8, 32, np.arange(len(rows)))
    none = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
    positives = Positives(own=own_pairs(corpus), part=none, query=none, item=none)
    optimizers = Optimizers(model, 80)
    for step in range(80):
        loss = posttrain_loss(model, corpus, positives, 48, (32, 16), np.random.default_rng((0, step)))
        optimizers.update(loss, "posttrain", step)
    encode = Encoder.__new__(Encoder)
    encode.width, encode._model, encode._tokenizer, encode._text_tokens = 32, model.eval(), tokenizer, 8
    words = encode.encode([Content(None, f"{c} {s}") for c, s in unseen])
    seen = encode.encode([Content(png(c, s, jitter=1), None) for c, s in pairs])
    found = [pairs[best] for best in (words @ seen.T).argmax(1)]
    assert np.mean([a == b for a, b in zip(found, unseen, strict=True)]) >= 0.875, list(
        zip(unseen, found, strict=True)
    )


def test_interrupted_training_continues_to_the_same_bits(world, tmp_path, monkeypatch):
    dataset, split = world
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    whole = train_encoder(dataset, split, TINY, tmp_path / "whole", budget=0.3)
    for stop in (("pretrain", 3), ("posttrain", 3)):  # a step after a save, so that one step is repeated
        update = Optimizers.update

        def killed(self, loss, stage, step, update=update, stop=stop):
            if (stage, step) == stop:
                raise KeyboardInterrupt
            update(self, loss, stage, step)

        monkeypatch.setattr(Optimizers, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train_encoder(dataset, split, TINY, tmp_path / "parts", budget=0.3)
        assert not (tmp_path / "parts").exists()
        monkeypatch.setattr(Optimizers, "update", update)
    assert (tmp_path / "parts.partial" / "weights.safetensors").exists()
    steps = []
    monkeypatch.setattr(
        Optimizers,
        "update",
        lambda self, loss, stage, step: (steps.append((stage, step)), update(self, loss, stage, step)),
    )
    parts = train_encoder(dataset, split, TINY, tmp_path / "parts", budget=0.3)
    assert steps[0] == ("posttrain", 2)
    assert parts.id == whole.id  # the id covers the hash of every weight
    assert not (tmp_path / "parts.partial").exists()


def test_a_partial_of_another_run_is_not_continued(world, tmp_path, monkeypatch):
    dataset, split = world
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 1)
    update = Optimizers.update

    def killed(self, loss, stage, step):
        if step == 1:
            raise KeyboardInterrupt
        update(self, loss, stage, step)

    monkeypatch.setattr(Optimizers, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(dataset, split, TINY, tmp_path / "e", seed=1, budget=0.04)
    monkeypatch.setattr(Optimizers, "update", update)
    fresh = train_encoder(dataset, split, TINY, tmp_path / "other", seed=2, budget=0.04)
    over = train_encoder(dataset, split, TINY, tmp_path / "e", seed=2, budget=0.04)
    assert over.id == fresh.id


def test_the_artifact_is_verified_named_and_a_checkpoint_to_start_from(world, trained, tmp_path):
    dataset, split = world
    assert open_artifact(trained.path, "encoder", "moon encoder").id == trained.id
    assert trained.parents == {"dataset": dataset.artifact.id, "split": split.artifact.id}
    learnable = split.encoder_items(dataset.items)
    assert len(learnable) < len(dataset.items)  # the evaluation pool is kept away from the encoder
    assert trained.config["pairs"]["own"] == sum(item % 12 != 11 for item in learnable)
    assert min(trained.config["pairs"].values()) > 0
    again = train_encoder(dataset, split, TINY, tmp_path / "tuned", checkpoint=trained.path, budget=0.04)
    before, after = Encoder.open(trained), Encoder.open(again)
    assert after.id != before.id
    state = before._model.backbone.state_dict()
    moved = [
        (v - state[k]).norm() / (state[k].norm() + 1e-6)
        for k, v in after._model.backbone.state_dict().items()
    ]
    assert 0 < float(torch.stack(moved).max()) < 0.5  # nudged from the checkpoint, not started again


def test_bulk_embedding_equals_encoding_one_by_one_and_leaves_out_what_has_no_content(
    world, trained, tmp_path
):
    dataset, _ = world
    rows = dataset.items.to_pylist()
    nothing = item_row(1000, "red", "disc", None, title=None, category=[], attributes=[])

    class WithEmpty:
        artifact, images, queries = dataset.artifact, dataset.images, dataset.queries
        items = pa.Table.from_pylist([nothing, *reversed(rows)], ITEMS)

    as_of = START + timedelta(days=9)
    artifact = embed(trained, WithEmpty(), as_of, tmp_path / "embedding")
    assert artifact.kind == "embedding" and artifact.parents["encoder"] == trained.id
    assert artifact.config["items_without_content"] == 1 and artifact.config["queries_without_content"] == 0
    assert artifact.config["width"] == 32 and artifact.config["widths"] == [32, 16]
    assert datetime.fromisoformat(artifact.config["as_of"]) == as_of
    items, queries = (load_file(artifact.file(f"{name}.safetensors")) for name in ("items", "queries"))
    assert items["item_id"].tolist() == sorted(row["item_id"] for row in rows)
    assert items["vector"].dtype == np.float32 and items["vector"].shape == (len(rows), 32)
    np.testing.assert_allclose(np.linalg.norm(items["vector"], axis=1), 1, atol=1e-5)
    encoder = Encoder.open(trained)
    for place in (0, 11, 30):  # item 11 has no picture
        row = rows[place]
        alone = encoder.encode([Content(dataset.image_bytes(row["image_id"]), item_text(row))])[0]
        np.testing.assert_allclose(items["vector"][place], alone, atol=1e-5)
    assert queries["query_id"].tolist() == list(range(8))
    np.testing.assert_allclose(queries["vector"][2], encoder.encode([Content(None, "blue")])[0], atol=1e-5)


def test_a_naive_time_is_refused(world, trained, tmp_path):
    with pytest.raises(DataError, match="expected a time with a zone"):
        embed(trained, world[0], datetime(2024, 1, 1), tmp_path / "embedding")


def test_encoding_names_what_has_neither_picture_nor_words(trained):
    encoder = Encoder.open(trained)
    with pytest.raises(DataError, match=r"neither in 2, first \[1, 2\]"):
        encoder.encode([Content(None, "red"), Content(None, None), Content(None, " ")])
    assert encoder.encode([]).shape == (0, 32)
    with pytest.raises(DataError, match="expected a picture"):
        encoder.encode([Content(b"junk", "red")])


def test_each_missing_part_still_gives_a_unit_vector(trained):
    encoder = Encoder.open(trained)
    picture = png("red", "disc", px=90)
    both, image, text = encoder.encode(
        [Content(picture, "red disc"), Content(picture, None), Content(None, "red disc")]
    )
    for vector in (both, image, text):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(both, image) and not np.allclose(both, text)
    np.testing.assert_array_equal(
        encoder.encode([Content(picture, "")])[0], encoder.encode([Content(picture, None)])[0]
    )


def test_every_anchor_shows_something_and_all_three_modalities_occur(world):
    dataset, _ = world
    tokenizer = train_tokenizer(["red disc"], vocabulary=270)
    items = read_corpus(dataset, tokenizer, 8, 16, np.arange(48)).items
    rows = np.tile(np.arange(len(items.ids)), 20)
    text, image = shown_modalities(items, rows, np.random.default_rng(0))
    has_image = items.has_image[rows]
    assert (text | image).all() and text[~has_image].all()
    seen = {(bool(t), bool(i)) for t, i in zip(text[has_image], image[has_image], strict=True)}
    assert seen == {(True, False), (False, True), (True, True)}


def test_a_part_of_an_item_is_some_of_its_words_in_their_order():
    samples = [Sample(list(range(n)), None) for n in (1, 2, 40)] * 10
    parts = halved(samples, np.random.default_rng(0))
    for whole, part in zip(samples, parts, strict=True):
        assert part.tokens and part.tokens == sorted(set(part.tokens) & set(whole.tokens))
    kept = [len(part.tokens) for part in parts[2::3]]
    assert 10 <= np.mean(kept) <= 30 and len(set(kept)) > 1


def test_questions_have_answers_from_the_item_and_none_is_invented():
    rng = np.random.default_rng(0)
    row = item_row(1, "red", "disc", None, description="Round and red.")
    answers = {kind: question(row, kind, rng)[1] for kind in KINDS}
    assert answers == {
        "description": "Round and red.",
        "attribute": "red",
        "title": "red disc",
        "subject": "disc",
    }
    for kind in ("attribute", "title"):
        asked = question(row, kind, rng)[0]
        assert (
            answers[kind] not in asked.split("What")[1] if kind == "attribute" else answers[kind] not in asked
        )
    bare = {**row, "title": None, "description": None, "category": [], "attributes": []}
    assert [question(bare, kind, rng) for kind in KINDS] == [None] * 4


def test_pretraining_scores_the_answers_only(world):
    """The loss equals the mean negative log-probability of answer tokens, taken one sequence at a time."""
    dataset, _ = world
    tokenizer = train_tokenizer([item_text(r) for r in dataset.items.to_pylist()], vocabulary=300)
    backbone = build_backbone(small_config(32, 1, 16, len(tokenizer), special_ids(tokenizer)), 16, 0)
    model = EncoderModel(backbone, 16, 0)
    corpus = read_corpus(dataset, tokenizer, 8, 16, np.arange(48))
    seen = []
    collate = model.collate
    model.collate = lambda samples: (seen.extend(samples), collate(samples))[1]
    loss = float(pretrain_loss(model, corpus, tokenizer, 6, 8, np.random.default_rng(3)).detach())
    rng = np.random.default_rng(3)
    lengths = []
    for row in rng.integers(len(corpus.records), size=6).tolist():
        asked = question(corpus.records[row], KINDS[int(rng.integers(len(KINDS)))], rng)
        if asked is not None:
            lengths.append(len(tokenizer(asked[1])["input_ids"][:8]) + 1)
    terms = []
    for sample, length in zip(seen, lengths, strict=True):
        ids, mask, pixels = collate([sample])
        logp = backbone.logits(backbone(ids, mask, pixels, bidirectional=False)).log_softmax(-1)[0]
        terms += [
            -float(logp[place - 1, ids[0, place]]) for place in range(ids.shape[1] - length, ids.shape[1])
        ]
        assert int(ids[0, -1]) == tokenizer.eos_token_id
    assert loss == pytest.approx(np.mean(terms), rel=1e-4)


def test_augmentation_changes_pictures_and_nothing_else():
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[4:12, 2:8] = (200, 40, 40)
    samples = [Sample([1], pixels), Sample([2], None)] * 20
    changed = augmented(samples, np.random.default_rng(0))
    assert [s.tokens for s in changed] == [s.tokens for s in samples]
    pictures = np.stack([s.pixels for s in changed if s.pixels is not None])
    assert len(pictures) == 20 and pictures.min() >= 0 and pictures.max() <= 255
    assert (pictures.reshape(20, -1).std(axis=0) > 0).any()
    redder = pictures[..., 0].mean(axis=(1, 2)) - pictures[..., 1].mean(axis=(1, 2))
    assert (redder > -40).all()  # still a reddish thing on a light ground
    left = pictures[:, :, :8, 1].mean(axis=(1, 2)) < pictures[:, :, 8:, 1].mean(axis=(1, 2))
    assert 3 < left.sum() < 17  # mirrored about half of the time
    again = augmented(samples, np.random.default_rng(0))
    assert all(
        np.array_equal(a.pixels, b.pixels)
        for a, b in zip(changed, again, strict=True)
        if a.pixels is not None
    )


def test_nothing_to_learn_from_is_said(world, tmp_path):
    dataset, split = world
    wordless = {"title": None, "category": [], "attributes": [], "description": None}

    class Bare:
        artifact, images, judgements, queries = (
            dataset.artifact,
            dataset.images,
            JUDGEMENTS.empty_table(),
            dataset.queries,
        )
        items = pa.Table.from_pylist([{**r, **wordless} for r in dataset.items.to_pylist()], ITEMS)

    class Empty:
        artifact, fit_until, log = split.artifact, split.fit_until, split.log.slice(0, 0)
        encoder_items = split.encoder_items

    with pytest.raises(DataError, match="nothing to learn from"):
        train_encoder(Bare(), Empty(), TINY, tmp_path / "e")


def test_the_schedule_is_a_function_of_size_items_and_budget_only():
    small = schedule(size("small"), 19_500)
    assert small == schedule(size("small"), 19_500)
    assert schedule(size("small"), 10**6) == small  # bounded: two cores must finish
    assert schedule(size("small"), 19_500, 0.5).posttrain_steps == pytest.approx(
        small.posttrain_steps / 2, abs=1
    )
    assert schedule(size("nano"), 3_000).posttrain_steps < small.posttrain_steps


def test_saved_twice_is_the_same_bytes(trained, tmp_path):
    encoder = Encoder.open(trained)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_encoder(encoder._model, encoder._tokenizer, tmp_path / name)
    for file in sorted(p.name for p in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
