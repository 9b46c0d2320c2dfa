"""MOON3.0's two stages on the shop of shapes: losses as their parts restated, a reference that stays, a gain."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_world import TINY, item_row, shop

from dataset.contracts import DataError
from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.examples.corpus import Side, catalogue_texts, read_corpus
from encoder.examples.pairs import read_relations
from encoder.generate import chain_log_probabilities, policy_logits, write_chains
from encoder.learner import Learner
from encoder.losses.alignment import RHO
from encoder.losses.grpo import group_advantages, grpo_loss
from encoder.losses.rewards import RewardWeights
from encoder.optim import Optimizers
from encoder.parts.chain import chain_body, chain_fields, chain_values, read_chain
from encoder.stages.chaining import TrueChains
from encoder.stages.contrast import OWN
from encoder.stages.reason import Reason, Reinforce, Reinforcing
from encoder.tokenizer import special_ids, train_tokenizer
from evaluation.science.encoders.reasoning import reasoning_arms

SIZE = replace(TINY, text_tokens=20)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    dataset, split = shop(tmp_path_factory.mktemp("shop"), items=96)
    ids = dataset.items["item_id"].to_numpy()
    records = dataset.items.to_pylist()
    names = chain_fields(records)
    bodies = [chain_body(chain_values(record, names)) for record in records]
    tokenizer = train_tokenizer([*catalogue_texts(dataset, ids), *bodies], vocabulary=400)
    corpus = read_corpus(dataset, tokenizer, SIZE.text_tokens, SIZE.image_px, ids)
    relations = read_relations(split.log, split.fit_until, dataset.judgements, corpus)
    return tokenizer, corpus, relations


def learner_of(world, parts=None, batch=8, seed=0):
    tokenizer, corpus, relations = world
    config = small_config(SIZE.hidden, 2, SIZE.image_px, len(tokenizer), special_ids(tokenizer))
    model = assemble(
        build_backbone(config, SIZE.image_px, seed), parts or Parts(fusion=True), SIZE.item_width, seed
    )
    return Learner(
        model=model, tokenizer=tokenizer, corpus=corpus, relations=relations, purchases=relations,
        shown=np.ones(len(corpus.spu)), size=SIZE, batch=batch, seed=seed,
    )  # fmt: skip


def test_the_true_chains_are_those_of_the_catalogue(world):
    tokenizer, corpus, _ = world
    assert chain_fields(corpus.records) == ("category", "colour")
    chains = TrueChains.of(tokenizer, corpus.records, ("category", "colour"))
    assert chains.values[9] == {"category": "square", "colour": "green"}
    lengths = [len(tokens) - 1 for tokens in chains.tokens]
    assert (chains.shortest, chains.longest) == (min(lengths), max(lengths))
    assert max(lengths) <= SIZE.text_tokens


def plain_next_token(model, samples):
    """Each sequence alone, each token of its chain in turn."""
    losses = []
    for sample in samples:
        packed = model.pack([sample])
        chances = policy_logits(model.backbone, model.backbone(packed).hidden_TH).log_softmax(-1)
        start = len(packed.ids_T) - len(sample.chain)
        losses += [-chances[start + n - 1, token] for n, token in enumerate(sample.chain) if n]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("parts", [Parts(fusion=True), Parts(experts="modality")], ids=["fusion", "experts"])
def test_the_supervised_loss_is_contrast_plus_next_tokens_of_the_true_chains(world, parts, leak):
    learner, weight = learner_of(world, parts), 0.7
    stage = Reason(1.0, chain_loss_weight=weight, leak=leak).begin(learner)
    got = stage.loss(np.random.default_rng(5), 0.0)
    drawn = stage.draw(learner.batch, np.random.default_rng(5))
    left, right = (
        stage.with_true_chains(drawn.left, drawn.left_row),
        stage.with_true_chains(drawn.right, drawn.right_row),
    )
    for sample, row in zip(left, drawn.left_row, strict=True):
        assert sample.chain == stage.chains.tokens[row]
    seen = [*left, *right] if leak else [*drawn.left, *drawn.right]
    one, other = vectors(learner.model, seen).chunk(2)
    wanted = stage.contrast(one, other, drawn) + weight * plain_next_token(learner.model, [*left, *right])
    if parts.experts != "none":
        wanted = wanted + RHO * learner.model(seen).balance
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), abs=1e-4)


def rolled(stage, seed):
    """The batch, the chains and the chained samples (queries, items) of one step, drawn again."""
    rng, learner = np.random.default_rng(seed), stage.learner
    drawn = stage.draw(learner.batch // 2, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    both, pairs, copies = [*drawn.left, *drawn.right], len(drawn.left), stage.stage.rollouts
    backbone, marks = learner.model.backbone, stage.chains.marks
    counts = [copies] * pairs + [1] * pairs
    written = write_chains(backbone, both, marks, stage.chains.longest, counts, generator)
    chained = written.chained(both, marks)
    return drawn, written, chained[: pairs * copies], chained[pairs * copies :]


def vectors(model, samples):
    return torch.cat([model([sample]).vector_BD for sample in samples])


def test_the_loss_of_reinforcement_is_contrast_on_own_chains_plus_grpo(world):
    learner = learner_of(world)
    stage = Reinforce(
        1.0, contrast_weight=0.5, grpo_weight=2.0, chain_loss_weight=0.3, rollouts=3, kl_weight=0.1
    ).begin(learner)
    with torch.no_grad():  # away from the reference, so that the divergence has a say
        for parameter in learner.model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02
            )
    got = stage.loss(np.random.default_rng(6), 0.0)
    drawn, written, queries, items = rolled(stage, 6)
    count = len(queries)
    mask, sampled = written.drawn_RL[:count], written.log_probability_RL[:count]
    query, item = vectors(learner.model, queries), vectors(learner.model, items)
    wanted = 0.5 * sum(stage.contrast(query[g::3], item, drawn) for g in range(3)) / 3

    def chances(model):
        rows = []
        for sample in queries:
            packed = model.pack([sample])
            rows.append(chain_log_probabilities(model.backbone, packed, model.backbone(packed).hidden_TH)[0])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, : mask.shape[1]]

    parts = stage.rewards(written.chains[:count], query, item, drawn)
    advantage = group_advantages(RewardWeights().total(parts).view(-1, 3)).flatten()
    policy, reference = chances(learner.model), chances(stage.reference[0])
    assert not torch.allclose(policy, reference, atol=1e-2)
    wanted = wanted + 2.0 * grpo_loss(policy, sampled, reference, advantage, mask, kl_weight=0.1)
    wanted = wanted + 0.3 * plain_next_token(
        learner.model, stage.with_true_chains(drawn.left, drawn.left_row)
    )
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), abs=1e-3)


def test_the_rewards_are_those_of_the_chains_written(world):
    learner = learner_of(world, batch=12)
    stage = Reinforce(1.0, kinds=(OWN,), rollouts=2).begin(learner)
    drawn, written, queries, items = rolled(stage, 1)
    chains, asked = stage.chains, written.chains[: len(queries)]
    rows = drawn.left_row.repeat(2)
    asked[0] = chains.tokens[rows[0]]  # one rollout says the truth
    query, item = vectors(learner.model, queries), vectors(learner.model, items)
    parts = stage.rewards(asked, query, item, drawn)
    said = [learner.tokenizer.decode(chain).replace(" ", "") for chain in asked]
    true = [learner.tokenizer.decode(chains.tokens[row]).replace(" ", "") for row in rows]
    assert parts["attributes"][0] == parts["format"][0] == 1.0
    for n in range(1, len(said)):
        if said[n] != true[n]:
            assert parts["attributes"][n] < 1.0
    score = torch.nn.functional.normalize(query.detach()) @ torch.nn.functional.normalize(item.detach()).T
    same = torch.tensor(chains_of_equal_words(learner, drawn))
    for n in range(len(query)):
        rivals = [score[n, b] for b in range(len(item)) if b != n // 2 and not same[n // 2, b]]
        rank = 1 + sum(float(rival > score[n, n // 2]) for rival in rivals)
        assert float(parts["retrieval"][n]) == pytest.approx(1 / rank)


def chains_of_equal_words(learner, drawn):
    """Items of equal words are no competitors of each other."""
    words = [tuple(learner.corpus.items.tokens[row]) for row in drawn.right_row]
    return [[one == other for other in words] for one in words]


def train(learner, stage, steps, scale=1.0):
    objective = stage.begin(learner)
    optimizers = Optimizers(learner.model, steps, scale)
    for step in range(steps):
        optimizers.update(objective.loss(np.random.default_rng((3, step)), step / steps), "test", step)
    return objective


def test_without_reward_the_policy_s_words_get_no_gradient_from_the_chains(world):
    learner = learner_of(world)
    head = learner.model.backbone.model.get_output_embeddings().weight
    assert Reinforce(1.0, grpo_weight=0.0).begin(learner).reference == ()
    loss = (
        Reinforce(1.0, grpo_weight=0.0, contrast_weight=0.0)
        .begin(learner)
        .loss(np.random.default_rng(0), 0.0)
    )
    loss.backward()
    assert head.grad is None or not head.grad.any()


def test_a_resumed_stage_has_the_reference_it_began_with(world):
    learner = learner_of(world)
    stage = Reinforce(1.0, rollouts=2).begin(learner)
    stage.loss(np.random.default_rng(0), 0.0)
    kept = {name: tensor.clone() for name, tensor in stage.tensors().items()}
    began = copy.deepcopy(learner.model.state_dict())
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1.0)
    resumed = Reinforce(1.0, rollouts=2).begin(learner)
    resumed.restore(kept)
    for name, tensor in resumed.reference[0].state_dict().items():
        assert torch.equal(tensor, began[name])
    assert np.allclose(resumed.earned, stage.earned) and len(resumed.earned) == 1
    assert not list(resumed.parameters())  # the reference is not trained
    assert set(resumed.facts()["rewards"]) == {"format", "length", "retrieval", "attributes"}


def test_items_without_fields_cannot_be_reasoned_about(world):
    learner = learner_of(world)
    bare = [
        item_row(n, "red", "disc", None, category=[], attributes=[]) for n in range(len(learner.corpus.spu))
    ]
    with pytest.raises(DataError, match="category or attributes"):
        Reason(1.0).begin(replace(learner, corpus=replace(learner.corpus, records=bare)))


@pytest.mark.slow
def test_supervision_teaches_the_form_and_a_reward_changes_what_is_said(world, monkeypatch):
    learner = learner_of(world, batch=16)
    train(learner, Reason(1.0, kinds=(OWN,)), 180, scale=4.0)
    shares = []

    def red(self, written, *_):
        said = [read_chain(learner.tokenizer, chain) for chain in written]
        well_formed = [one is not None and list(one) == ["category", "colour"] for one in said]
        reds = [form and one["colour"] == "red" for one, form in zip(said, well_formed, strict=True)]
        shares.append((np.mean(well_formed), np.mean(reds)))
        none = torch.zeros(len(said))
        return {"attributes": torch.tensor(reds).float(), "format": none, "length": none, "retrieval": none}

    monkeypatch.setattr(Reinforcing, "rewards", red)
    train(
        learner, Reinforce(1.0, kinds=(OWN,), contrast_weight=0.0, kl_weight=0.0, rollouts=6), 25, scale=4.0
    )
    formed, reds = np.array(shares).T
    assert formed[0] > 0.5  # before the first step of reinforcement
    assert reds[:3].mean() < 0.25  # an eighth of the items are red
    assert reds[-3:].mean() > 0.6


def test_every_arm_starts_from_the_same_model_and_is_measured_on_the_same_items(world):
    learner = learner_of(world)
    held = learner.corpus
    kept = [row for row in range(len(held.records)) if held.items.has_image[row]][:12]
    side = Side(*(np.array(x)[kept] if isinstance(x, np.ndarray) else [x[row] for row in kept] for x in (
        held.items.ids, held.items.tokens, held.items.kinds, held.items.image)))  # fmt: skip
    held = replace(held, items=side, records=[held.records[row] for row in kept], spu=held.spu[kept])
    began = copy.deepcopy(learner.model.state_dict())
    arms = {"before": None, "again": None, "own chains": Reinforce(1.0, grpo_weight=0.0, rollouts=2)}
    measured = {arm: {} for arm in arms}
    for arm, one in reasoning_arms(learner, held, 0.01, arms):
        measured[arm][one.name] = one.value
        assert one.n == (1 if one.name.endswith("steps") else 12)
    assert measured["before"] == measured["again"] != measured["own chains"]
    assert measured["own chains"]["reasoning/steps"] == 1
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, began[name])
    for name in ("image/greedy/colour", "words/sampled/attributes", "image-words/true chain/recall@10"):
        assert 0 <= measured["before"][f"reasoning/{name}"] <= 1
