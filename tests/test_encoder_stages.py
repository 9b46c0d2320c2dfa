"""Stages of the recipes: which pairs they learn from, what counts as a negative, how their losses add up."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from encoder_world import TINY, shop

import encoder.stages.align as align
from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.content import item_content
from encoder.examples.corpus import read_corpus
from encoder.examples.pairs import Pairs, read_relations, variant_pairs
from encoder.learner import Learner
from encoder.recipes import moon, moon2, moon3, moon_embedding
from encoder.stages.contrast import NINE_KINDS, OWN, THREE_QUERIES, Contrast, Kind
from encoder.tokenizer import special_ids, train_tokenizer
from evaluation.science.encoders.compare import ablations


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    dataset, split = shop(tmp_path_factory.mktemp("shop"))
    tokenizer = train_tokenizer(
        [item_content(row).words for row in dataset.items.to_pylist()], vocabulary=300
    )
    corpus = read_corpus(dataset, tokenizer, 16, 16, np.arange(48))
    relations = read_relations(split.log, split.fit_until, dataset.judgements, corpus)
    shown = np.ones(len(corpus.spu), dtype=np.int64)
    return Learner(
        model(tokenizer, Parts()), tokenizer, corpus, relations, relations, shown, TINY, 16, seed=0
    )


def model(tokenizer, parts):
    config = small_config(32, 1, 16, len(tokenizer), special_ids(tokenizer))
    return assemble(build_backbone(config, 16, seed=0), parts, 32, seed=0)


def test_a_kind_of_pair_takes_the_first_relation_that_the_data_has(learner):
    found = {(k.query, k.item): k.relation for k, _ in Contrast(1.0, NINE_KINDS).begin(learner).kinds}
    assert found["title", "image"] == ("query",) and found["all", "all"] == ("bought",)
    assert found["image", "image"] == ("own",)  # no product of this shop has variants
    none = replace(learner.relations, query=Pairs(np.empty(0, np.int64), np.empty(0, np.int64)))
    bare = Contrast(1.0, NINE_KINDS).begin(replace(learner, relations=none))
    assert {(k.query, k.item): k.relation for k, _ in bare.kinds}["title", "image"] == ("own",)


def test_pairs_can_be_shown_as_their_kind_asks(learner):
    for kind, pairs in Contrast(1.0, THREE_QUERIES).begin(learner).kinds:
        if kind.query == "image":
            assert learner.corpus.items.has_image[pairs.anchor].all() and len(pairs) == 44


def test_variants_are_all_pairs_of_a_product_and_no_others():
    spu = np.array([7, 3, 7, 9, 3, 7])
    pairs = variant_pairs(spu)
    assert {*zip(pairs.anchor.tolist(), pairs.item.tolist(), strict=True)} == {
        (i, j) for i in range(6) for j in range(6) if i != j and spu[i] == spu[j]
    }
    assert len(variant_pairs(np.arange(4))) == 0


def test_the_queue_holds_the_items_of_the_step_before_and_adds_their_push(learner):
    objective = Contrast(1.0, (replace(OWN, temperature=0.1),), queue=64).begin(learner)
    alone = Contrast(1.0, (replace(OWN, temperature=0.1),)).begin(learner)
    rng = [np.random.default_rng(seed) for seed in (1, 1, 2, 2)]
    first, plain = objective.loss(rng[0], 0.0), alone.loss(rng[1], 0.0)
    assert torch.equal(first, plain)  # nothing waits in the queue yet
    vectors, items, _ = objective.queue.contents()
    assert (items >= 0).sum() == 16 and torch.allclose(vectors[:16].norm(dim=1), torch.ones(16), atol=1e-5)
    more, fewer = objective.loss(rng[2], 0.0), alone.loss(rng[3], 0.0)
    assert float(more.detach()) > float(fewer.detach())  # more negatives, more loss


def test_hard_negatives_are_added_to_the_loss(learner):
    kinds = (Kind(("own",), "half", "all", 1.0),)
    hard, plain = (Contrast(1.0, kinds, hard=yes).begin(learner) for yes in (True, False))
    losses = [float(one.loss(np.random.default_rng(3), 0.0).detach()) for one in (hard, plain)]
    assert losses[0] > losses[1]


@pytest.mark.parametrize("experts", ["none", "guided", "modality"])
def test_a_batch_in_chunks_has_the_vectors_gates_and_gradients_of_a_whole_one(learner, experts):
    samples = learner.corpus.samples(
        learner.corpus.items, np.arange(10), np.ones(10, dtype=bool), np.ones(10, dtype=bool)
    )
    found = []
    for chunk in (None, 4):
        torch.manual_seed(0)
        one = model(learner.tokenizer, Parts(experts=experts))
        encoded = replace(learner, model=one, chunk=chunk).encode(samples)
        loss = encoded.vector_BD.square().sum()
        if encoded.gate_BZ is not None:
            loss = loss + (encoded.gate_BZ[:, 0] * torch.arange(10)).sum()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None])
        found.append((encoded.vector_BD.detach(), encoded.gate_BZ, gradients))
    (whole, gates, gradient), (parts, chunk_gates, chunk_gradient) = found
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(chunk_gradient, gradient, atol=1e-4, rtol=1e-4)
    assert (gates is None) == (experts == "none")
    if gates is not None:
        torch.testing.assert_close(chunk_gates, gates, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("intra", "wanted"), [(True, (3 * 2 + 2 * 3) / 5), (False, 3 * 2 / 5)])
def test_without_experts_the_objectives_weigh_the_same(learner, monkeypatch, intra, wanted):
    monkeypatch.setattr(align, "RELATIONS", {"own": (1.0, 0.05)})
    monkeypatch.setattr(align, "inter_loss", lambda *a, **k: torch.tensor(2.0))
    monkeypatch.setattr(align, "intra_loss", lambda *a, **k: torch.tensor(3.0))
    objective = align.Align(1.0, intra=intra, augmented=False).begin(learner)
    assert float(objective.loss(np.random.default_rng(0), 0.0)) == pytest.approx(wanted)


def test_with_experts_the_weights_come_from_their_gates(learner, monkeypatch):
    monkeypatch.setattr(align, "inter_loss", lambda *a, **k: torch.tensor(2.0))
    monkeypatch.setattr(align, "intra_loss", lambda *a, **k: torch.tensor(3.0))
    mixed = replace(learner, model=model(learner.tokenizer, Parts(experts="modality")))
    objective = align.Align(1.0, augmented=False).begin(mixed)
    loss = objective.loss(np.random.default_rng(0), 0.0)
    omega = objective.facts()["omega"]
    assert omega["total"] == pytest.approx(1, abs=0.2)
    plain = 2 * sum(omega[name] for name in ("text", "image", "both")) + 3 * (
        omega["positive"] + omega["negative"]
    )
    assert plain < float(loss) < plain + 0.1  # what is left: balance and sparsity at a hundredth each
    loss.backward()
    assert objective.alignment.affinity_ZM.grad.abs().sum() > 0


def test_implausible_triplets_weigh_less_only_when_filtered(learner, monkeypatch):
    seen = []
    original = align.inter_loss
    monkeypatch.setattr(align, "inter_loss", lambda *a, **k: seen.append(a[5]) or original(*a, **k))
    for filtered in (True, False):
        align.Align(1.0, augmented=False, filtered=filtered).begin(learner).loss(
            np.random.default_rng(0), 0.0
        )
    weights = [weight is not None for weight in seen]
    assert weights == [True] * (len(seen) // 2) + [False] * (len(seen) // 2)


def test_an_ablation_leaves_out_one_thing():
    papers = {one.name: one for one in (moon_embedding(), moon(), moon2(), moon3())}
    for name, ablated in ablations().items():
        whole = papers[name.split(" without ")[0]]
        parts = [
            f.name for f in fields(Parts) if getattr(whole.parts, f.name) != getattr(ablated.parts, f.name)
        ]
        assert len(parts) + (whole.stages != ablated.stages) == 1, name


def test_a_kind_with_few_pairs_is_drawn_less(learner):
    kinds = (replace(OWN, weight=1.0), Kind(("query",), "all", "all", 1.0))
    objective = Contrast(1.0, kinds).begin(learner)
    counts = [len(pairs) for _, pairs in objective.kinds]
    assert objective.probability.tolist() == pytest.approx([count / sum(counts) for count in counts])
