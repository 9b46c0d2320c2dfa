"""Photos choose their product: the loss is the textbook's, and who learned by it finds products in new photos."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_world import COLOURS, SHAPES, TINY, item_row, png
from torch.nn import functional as F

from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.backbone.packing import Sample
from encoder.examples.corpus import Corpus, Side
from encoder.examples.pairs import Pairs, Relations
from encoder.learner import Learner, NothingToLearn
from encoder.optim import Optimizers
from encoder.pictures.decode import decode_image
from encoder.stages.photos import Photos, mixup, mixup_loss, supervised_contrast
from encoder.tokenizer import special_ids, tokenize, train_tokenizer

PX = 32
NOTHING = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
PRODUCTS = [(colour, shape) for colour in list(COLOURS)[:4] for shape in SHAPES[:3]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def photo(colour, shape, jitter):
    return decode_image(png(colour, shape, jitter=jitter), PX)


@pytest.fixture(scope="module")
def learner():
    """Twelve products without pictures, each with four photos."""
    words = [f"{colour} {shape}" for colour, shape in PRODUCTS]
    tokenizer = train_tokenizer(words * 5, vocabulary=320)
    tokens = tokenize(tokenizer, words, 8)
    count, taken = len(words), (-3, -1, 1, 3)
    photos = [photo(*one, jitter) for one in PRODUCTS for jitter in taken]
    items = Side(np.arange(count), tokens, [[0] * len(t) for t in tokens], np.full(count, -1))
    queries = Side(np.arange(len(photos)), [[]] * len(photos), [[]] * len(photos), np.arange(len(photos)))
    records = [item_row(n, *one, None) for n, one in enumerate(PRODUCTS)]
    corpus = Corpus(items, queries, np.arange(count), records, [None] * len(photos), np.stack(photos))
    asked = Pairs(np.arange(len(photos)), np.repeat(np.arange(count), len(taken)))
    relations = Relations(**dict.fromkeys(Relations.__dataclass_fields__, NOTHING) | {"query": asked})
    config = small_config(64, 1, PX, len(tokenizer), special_ids(tokenizer))
    model = assemble(build_backbone(config, PX, seed=0), Parts(), 32, seed=0)
    dial = replace(TINY, image_px=PX, text_tokens=8)
    return Learner(model, tokenizer, corpus, relations, relations, np.ones(count), dial, 24, seed=0)


def test_a_mixed_photo_chooses_both_its_products():
    score = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.5, 0.0]])
    none = torch.zeros(3, 3, dtype=torch.bool)
    found = mixup_loss(score, torch.tensor([0, 1]), torch.tensor([2, 1]), 0.75, none)

    def own(row, target):
        return math.log(sum(math.exp(s) for s in row)) - row[target]

    rows = score.tolist()
    wanted = np.mean([0.75 * own(rows[0], 0) + 0.25 * own(rows[0], 2), own(rows[1], 1)])
    assert float(found) == pytest.approx(wanted, abs=1e-6)


def test_a_variant_is_no_negative():
    score = torch.tensor([[0.0, 9.0, 1.0]])
    variants = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    first = torch.tensor([0])
    found = mixup_loss(score, first, first, 1.0, variants)
    assert float(found) == pytest.approx(math.log(1 + math.e), abs=1e-6)


def test_photos_of_one_product_choose_each_other():
    generator = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(6, 4, generator=generator), dim=1)
    product = [0, 1, 0, 2, 0, 1]
    losses = []
    for one in range(6):
        others = [two for two in range(6) if two != one]
        whole = sum(math.exp(float(unit[one] @ unit[two]) / 0.1) for two in others)
        same = [two for two in others if product[two] == product[one]]
        if same:
            losses.append(
                -np.mean([math.log(math.exp(float(unit[one] @ unit[two]) / 0.1) / whole) for two in same])
            )
    assert len(losses) == 5
    assert float(supervised_contrast(unit, torch.tensor(product))) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(supervised_contrast(unit, torch.arange(6))) == 0


def test_photos_are_mixed_by_weight():
    samples = [Sample([], (np.full((2, 2, 3), value, np.uint8),)) for value in (0, 100)]
    mixed = mixup(samples, np.array([1, 0]), 0.75)
    assert [sample.pictures[0].mean() for sample in mixed] == [25.0, 75.0]


def test_each_product_of_a_batch_is_encoded_once(learner, monkeypatch):
    seen = []
    encode = Learner.encode
    monkeypatch.setattr(Learner, "encode", lambda self, s: seen.append(len(s)) or encode(self, s))
    objective = Photos(1.0).begin(learner)
    objective.loss(np.random.default_rng(0), 0.0)
    assert seen == [48 + 12] and objective.facts() == {"photos": 48, "products": 12}


def test_photos_of_one_product_teach_nothing(learner):
    one = Pairs(np.arange(4), np.zeros(4, np.int64))
    with pytest.raises(NothingToLearn, match="photos of two products or more, found 4"):
        Photos(1.0).begin(replace(learner, relations=replace(learner.relations, query=one)))


def test_new_photos_find_their_product(learner):
    objective = Photos(1.0).begin(learner)
    optimizers = Optimizers(learner.model, 160)
    for step in range(160):
        optimizers.update(objective.loss(np.random.default_rng((0, step)), step / 160), "photos", step)
    corpus, model = learner.corpus, learner.model.eval()
    photos = [Sample([], (photo(*one, 0),)) for one in PRODUCTS]
    words = [Sample(tokens) for tokens in corpus.items.tokens]
    score = F.normalize(model.vectors(photos), dim=1) @ F.normalize(model.vectors(words), dim=1).T
    assert (score.argmax(1) == torch.arange(12)).float().mean() >= 0.8
