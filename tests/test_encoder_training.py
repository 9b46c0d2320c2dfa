"""Training learns a planted shop and resumes exactly; what it writes embeds every item that has content."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoder_world import COLOURS, SHAPES, START, TINY, item_row, png, shop
from safetensors.numpy import load_file

import encoder.train as train
from dataset.contracts import IMAGES, ITEMS, JUDGEMENTS, QUERIES, DataError, content_hash
from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.backbone.packing import Sample
from encoder.content import Content, item_content
from encoder.embed import embed
from encoder.encode import Encoder, save_encoder
from encoder.examples.corpus import read_corpus
from encoder.examples.pairs import Pairs, Relations, own_pairs
from encoder.examples.views import augmented, can_show, drop_tokens, show
from encoder.learner import Learner
from encoder.optim import Optimizers
from encoder.parts.discriminants import COUNT
from encoder.recipes import Recipe, dual, moon2, moon_embedding
from encoder.stages.contrast import OWN, Contrast, Kind
from encoder.stages.pretrain import KINDS, Pretrain, question, questions
from encoder.tokenizer import special_ids, train_tokenizer
from encoder.train import Schedule, train_encoder
from run.artifacts import open_artifact
from run.sizes import size


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


def learner(model, tokenizer, corpus, dial, batch):
    """A learner that knows nothing but that each item is itself."""
    none = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
    relations = Relations(own=own_pairs(corpus.items), variant=none, query=none, bought=none)
    shown = np.zeros(len(corpus.spu), dtype=np.int64)
    return Learner(model, tokenizer, corpus, relations, relations, shown, dial, batch, seed=0)


def test_unseen_combinations_of_colour_and_shape_are_found_by_their_words():
    """Every colour and every shape is trained on, eight pairings never; their words find their picture."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    unseen = [pairs[i * 6 + i % 6] for i in range(8)]
    shown = [p for p in pairs if p not in unseen]
    tokenizer = train_tokenizer([f"{c} {s}" for c, s in shown] * 5, vocabulary=320)
    config = small_config(64, 1, 32, len(tokenizer), special_ids(tokenizer))
    model = assemble(build_backbone(config, 32, seed=0), Parts(), 32, seed=0)
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
    dial = replace(size("nano"), item_width=32, hidden=64, layers=1, text_tokens=8, id_width=8, history=10)
    objective = Contrast(1.0, (OWN,)).begin(learner(model, tokenizer, corpus, dial, batch=48))
    optimizers = Optimizers(model, 80)
    for step in range(80):
        optimizers.update(objective.loss(np.random.default_rng((0, step)), step / 80), "contrast", step)
    encode = Encoder.__new__(Encoder)
    encode.width, encode.model, encode.tokenizer, encode._text_tokens = 32, model.eval(), tokenizer, 8
    encode._parts = Parts()
    words = encode.encode([Content(None, f"{c} {s}") for c, s in unseen])
    seen = encode.encode([Content(png(c, s, jitter=1), None) for c, s in pairs])
    found = [pairs[best] for best in (words @ seen.T).argmax(1)]
    assert np.mean([a == b for a, b in zip(found, unseen, strict=True)]) >= 0.875, list(
        zip(unseen, found, strict=True)
    )


@pytest.mark.parametrize("recipe", [moon_embedding(), moon2()], ids=lambda recipe: recipe.name)
def test_interrupted_training_continues_to_the_same_bits(world, tmp_path, monkeypatch, recipe):
    """Weights, optimizer, queue and the objective's own weights: whatever is forgotten changes a bit."""
    dataset, split = world
    recipe = replace(recipe, stages=tuple(replace(stage, fraction=0.2) for stage in recipe.stages))
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    whole = train_encoder(dataset, split, TINY, tmp_path / "whole", recipe=recipe, budget=0.5)
    update = Optimizers.update
    for name in [stage.name for stage in recipe.stages]:

        def killed(self, loss, stage, step, batch=(), name=name):
            if (stage, step) == (name, 3):  # a step after a save, so that one step is repeated
                raise KeyboardInterrupt
            update(self, loss, stage, step, batch)

        monkeypatch.setattr(Optimizers, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train_encoder(dataset, split, TINY, tmp_path / "parts", recipe=recipe, budget=0.5)
        assert not (tmp_path / "parts").exists()
        monkeypatch.setattr(Optimizers, "update", update)
    assert (tmp_path / "parts.partial").exists()
    steps = []

    def counted(self, loss, stage, step, batch=()):
        steps.append((stage, step))
        update(self, loss, stage, step, batch)

    monkeypatch.setattr(Optimizers, "update", counted)
    parts = train_encoder(dataset, split, TINY, tmp_path / "parts", recipe=recipe, budget=0.5)
    assert steps[0] == (recipe.stages[-1].name, 2)
    for name in ("model.safetensors", "parts.safetensors"):
        assert (parts.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert parts.config["losses"] == whole.config["losses"]
    assert not (tmp_path / "parts.partial").exists()


def test_a_partial_of_another_run_is_not_continued(world, tmp_path, monkeypatch):
    dataset, split = world
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 1)
    update = Optimizers.update

    def killed(self, loss, stage, step, batch=()):
        if step == 1:
            raise KeyboardInterrupt
        update(self, loss, stage, step, batch)

    monkeypatch.setattr(Optimizers, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(dataset, split, TINY, tmp_path / "e", seed=1, budget=0.1)
    monkeypatch.setattr(Optimizers, "update", update)
    fresh = train_encoder(dataset, split, TINY, tmp_path / "other", seed=2, budget=0.1)
    over = train_encoder(dataset, split, TINY, tmp_path / "e", seed=2, budget=0.1)
    assert (over.path / "model.safetensors").read_bytes() == (fresh.path / "model.safetensors").read_bytes()


def test_the_artifact_is_verified_named_and_a_checkpoint_to_start_from(world, trained, tmp_path):
    dataset, split = world
    assert open_artifact(trained.path, "encoder").id == trained.id
    assert trained.parents == {"dataset": dataset.artifact.id, "split": split.artifact.id}
    learnable = split.encoder_items(dataset.items)
    assert len(learnable) < len(dataset.items)  # the evaluation pool is kept away from the encoder
    pairs = trained.config["facts"]["1.relations"]["pairs"]
    assert pairs["own: image > words"] == sum(item % 12 != 11 for item in learnable)
    assert pairs["own: half > all"] == pairs["own: title > all"] == len(learnable)
    assert len(pairs) == 5 and min(pairs.values()) > 0
    again = train_encoder(dataset, split, TINY, tmp_path / "tuned", checkpoint=trained.path, budget=0.04)
    before, after = Encoder.open(trained), Encoder.open(again)
    assert after.id != before.id
    state = before.model.backbone.state_dict()
    moved = [
        (v - state[k]).norm() / (state[k].norm() + 1e-6) for k, v in after.model.backbone.state_dict().items()
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
    assert artifact.config["width"] == 32 + COUNT and artifact.config["widths"] == [32, 16]
    assert datetime.fromisoformat(artifact.config["as_of"]) == as_of
    items, queries = (load_file(artifact.file(f"{name}.safetensors")) for name in ("items", "queries"))
    assert items["item_id"].tolist() == sorted(row["item_id"] for row in rows)
    assert items["vector"].dtype == np.float32 and items["vector"].shape == (len(rows), 32 + COUNT)
    np.testing.assert_allclose(np.linalg.norm(items["vector"], axis=1), 1, atol=1e-5)
    encoder = Encoder.open(trained)
    for place in (0, 11, 30):  # item 11 has no picture
        row = rows[place]
        alone = encoder.encode([item_content(row, dataset.image_bytes(row["image_id"]))])[0]
        np.testing.assert_allclose(items["vector"][place], alone, atol=1e-5)
    assert queries["query_id"].tolist() == list(range(8))
    np.testing.assert_allclose(queries["vector"][2], encoder.encode([Content(None, "blue")])[0], atol=1e-5)


def test_a_naive_time_is_refused(world, trained, tmp_path):
    with pytest.raises(DataError, match="expected a time with a zone"):
        embed(trained, world[0], datetime(2024, 1, 1), tmp_path / "embedding")


def test_every_view_shows_what_its_name_says(world):
    dataset, _ = world
    tokenizer = train_tokenizer(["red disc"], vocabulary=270)
    corpus = read_corpus(dataset, tokenizer, 40, 16, np.arange(48))
    items, rng = corpus.items, np.random.default_rng(0)
    expected = {"title": (True, False), "details": (True, False), "words": (True, False), "image": (False, True),
                "title+image": (True, True), "details+image": (True, True), "all": (True, True)}  # fmt: skip
    for view, modalities in expected.items():
        rows = np.flatnonzero(can_show(items, view) & items.has_image)
        for row, sample in zip(rows, show(corpus, items, rows, view, rng), strict=True):
            assert (bool(sample.tokens), bool(sample.pictures)) == modalities
            title = [t for t, k in zip(items.tokens[row], items.kinds[row], strict=True) if k == 0]
            rest = items.tokens[row][len(title) :]
            whole = {"t": title, "d": rest, "i": []}.get(view[0], items.tokens[row])
            place = iter(whole)
            assert all(token in place for token in sample.tokens)  # some of them, in their order
    assert can_show(items, "image").sum() == 44 and can_show(items, "all").all()
    rows = np.tile(np.arange(len(items.ids)), 20)
    shown = show(corpus, items, rows, "any", rng)
    seen = {
        (bool(s.tokens), bool(s.pictures)) for s, has in zip(shown, items.has_image[rows], strict=True) if has
    }
    assert seen == {(True, False), (False, True), (True, True)}
    assert all(
        s.tokens and not s.pictures for s, has in zip(shown, items.has_image[rows], strict=True) if not has
    )


def test_token_dropout_leaves_some_of_the_words_in_their_order():
    samples = [Sample(list(range(n)), kinds=[n] * n) for n in (0, 1, 2, 40)] * 20
    parts = drop_tokens(samples, 0.3, np.random.default_rng(0))
    for whole, part in zip(samples, parts, strict=True):
        assert bool(part.tokens) == bool(whole.tokens) and len(part.kinds) == len(part.tokens)
        assert part.tokens == sorted(set(part.tokens) & set(whole.tokens))
    kept = [len(part.tokens) for part in parts[3::4]]
    assert 25 <= np.mean(kept) <= 31 and len(set(kept)) > 1


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
    tokenizer = train_tokenizer([item_content(r).words for r in dataset.items.to_pylist()], vocabulary=300)
    backbone = build_backbone(small_config(32, 1, 16, len(tokenizer), special_ids(tokenizer)), 16, 0)
    model = assemble(backbone, Parts(), 16, seed=0)
    corpus = read_corpus(dataset, tokenizer, 8, 16, np.arange(48))
    mine = learner(model, tokenizer, corpus, TINY, batch=12)
    loss = float(Pretrain(1.0).begin(mine).loss(np.random.default_rng(3), 0.0).detach())
    terms = []
    for sample in questions(mine, 6, np.random.default_rng(3))[1]:
        packed = model.pack([sample], causal=True)
        logp = backbone.logits(backbone(packed).hidden_TH).log_softmax(-1)
        length = len(packed.ids_T)
        terms += [
            -float(logp[place - 1, packed.ids_T[place]])
            for place in range(length - len(sample.chain), length)
        ]
        assert sample.chain[-1] == tokenizer.eos_token_id and len(sample.pictures) <= 1
    assert loss == pytest.approx(np.mean(terms), rel=1e-4)


def test_augmentation_changes_pictures_and_nothing_else():
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[4:12, 2:8] = (200, 40, 40)
    samples = [Sample([1], (pixels,)), Sample([2])] * 20
    changed = augmented(samples, np.random.default_rng(0))
    assert [s.tokens for s in changed] == [s.tokens for s in samples]
    pictures = np.stack([s.pictures[0] for s in changed if s.pictures])
    assert len(pictures) == 20 and pictures.min() >= 0 and pictures.max() <= 255
    assert (pictures.reshape(20, -1).std(axis=0) > 0).any()
    redder = pictures[..., 0].mean(axis=(1, 2)) - pictures[..., 1].mean(axis=(1, 2))
    assert (redder > -40).all()  # still a reddish thing on a light ground
    left = pictures[:, :, :8, 1].mean(axis=(1, 2)) < pictures[:, :, 8:, 1].mean(axis=(1, 2))
    assert 3 < left.sum() < 17  # mirrored about half of the time
    again = augmented(samples, np.random.default_rng(0))
    assert all(
        np.array_equal(a.pictures[0], b.pictures[0])
        for a, b in zip(changed, again, strict=True)
        if a.pictures
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
        artifact, fit_until, fit_log = split.artifact, split.fit_until, split.log.slice(0, 0)
        known_from, encoder_items = split.known_from, split.encoder_items

    own = Recipe("own", Parts(), (Contrast(1.0, (OWN,)),))
    alone = Bare()
    learned = set(split.encoder_items(dataset.items).tolist())
    alone.items = pa.Table.from_pylist(
        [r for r in Bare.items.to_pylist() if r["item_id"] in learned][:1], ITEMS
    )
    with pytest.raises(DataError, match="expected two items with words or pictures.* Nothing to learn from"):
        train_encoder(alone, Empty(), TINY, tmp_path / "e", recipe=own)
    pictures = train_encoder(Bare(), Empty(), TINY, tmp_path / "p", recipe=own, budget=0.1)
    (pairs,) = [facts["pairs"] for facts in pictures.config["facts"].values()]
    assert list(pairs) == ["own: image > image"], "pictures alone: each with itself in another view"
    bare = Bare()
    bare.items = Bare.items.set_column(
        Bare.items.column_names.index("image_id"),
        ITEMS.field("image_id"),
        pa.nulls(len(Bare.items), pa.string()),
    )
    nothing = train_encoder(bare, Empty(), TINY, tmp_path / "n", recipe=own)
    assert set(nothing.config["steps"].values()) == {0}, "nothing to encode either"


def test_a_stage_without_pairs_is_left_out(world, tmp_path, capsys):
    """This shop has no product with variants: the stage that asks for them is skipped, the other is not."""
    dataset, split = world
    variants = Kind(("variant",), "image", "image", 1.0)
    recipe = Recipe(
        "two", Parts(), (Contrast(0.5, (variants,), name="alike"), Contrast(0.5, (OWN,), name="own"))
    )
    artifact = train_encoder(dataset, split, TINY, tmp_path / "e", recipe=recipe, budget=0.1)
    assert artifact.config["steps"] == {"0.alike": 0, "1.own": 3}
    assert "stage left out: alike" in capsys.readouterr().err
    nothing = Recipe("none", Parts(), (Contrast(1.0, (variants,), name="alike"),))
    with pytest.raises(DataError, match="Nothing to learn from"):
        train_encoder(dataset, split, TINY, tmp_path / "none", recipe=nothing, budget=0.1)


def test_the_schedule_is_a_function_of_size_items_and_budget_only():
    small = Schedule.of(size("small"), 19_500)
    assert small == Schedule.of(size("small"), 19_500)
    assert Schedule.of(size("small"), 10**6) == small  # bounded: two cores must finish
    assert Schedule.of(size("small"), 19_500, 0.5).steps == pytest.approx(small.steps / 2, abs=1)
    assert Schedule.of(size("nano"), 3_000).steps < small.steps


def test_training_by_time_takes_about_that_time(world, tmp_path):
    dataset, split = world
    artifact = train_encoder(dataset, split, TINY, tmp_path / "e", recipe=dual(), cpu_seconds=2.0)
    assert artifact.config["trained_cpu_seconds"] == pytest.approx(2.0, rel=0.3)
    assert artifact.config["steps"]["0.contrast"] > 3


def test_saved_twice_is_the_same_bytes(trained, tmp_path):
    encoder = Encoder.open(trained)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_encoder(encoder.model, encoder.tokenizer, tmp_path / name)
    for file in sorted(p.name for p in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
