"""The attribute chain: its text, its tokens, and the decoder that writes it, against plain restatements."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_world import item_row, png
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.backbone.packing import CHAIN, Sample
from encoder.generate import chain_log_probabilities, policy_logits, write_chains
from encoder.parts.chain import (
    CATEGORY,
    EMB,
    END_THINK,
    THINK,
    add_chain_marks,
    chain_body,
    chain_fields,
    chain_marks,
    chain_tokens,
    chain_values,
    clean,
    item_fields,
    parse_chain,
    read_chain,
)
from encoder.pictures.decode import decode_image
from encoder.tokenizer import SPECIALS, special_ids, tokenize, train_tokenizer

TOKENIZER = train_tokenizer(["category: disc; colour: red", "blue square in blue"] * 20, vocabulary=300)
MARKS = chain_marks(TOKENIZER)
PX = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


# --- the text -----------------------------------------------------------------------------------------------


def chain_text(row, names):
    """The true chain of an item, all three marks included."""
    return f"<think>{chain_body(chain_values(row, names))}</think><|emb|>"


def record(**changes):
    return item_row(1, "red", "disc", None, **changes)


def test_a_chain_reads_as_in_the_paper_s_figure():
    row = record(category=["shop", "Dress"], attributes=[("Color", "Dark Blue"), ("fit", "Slim"), ("x", "y")])
    text = chain_text(row, ("category", "Color", "fit"))
    assert text == "<think>category: Dress; Color: Dark Blue; fit: Slim</think><|emb|>"
    assert parse_chain(text) == {"category": "Dress", "Color": "Dark Blue", "fit": "Slim"}


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    " ;:<>/\\|thinkemb\n", max_size=9
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(words, words), max_size=4), st.lists(words, max_size=2))
def test_any_unicode_values_survive_text_and_tokens(attributes, category):
    row = record(attributes=attributes, category=category)
    names = tuple(item_fields(row))
    true = chain_values(row, names)
    assert parse_chain(chain_text(row, names)) == (true or None)
    assert read_chain(TOKENIZER, chain_tokens(TOKENIZER, [true])[0]) == (true or None)
    assert all(clean(word) == word for pair in true.items() for word in pair)


def test_values_that_spell_special_tokens_stay_words():
    for special in SPECIALS:
        true = chain_values(record(attributes=[("note", f"a {special} b")]), ("note",))
        tokens = chain_tokens(TOKENIZER, [true])[0]
        assert not set(tokens[1:-2]) & {TOKENIZER.get_vocab()[s] for s in SPECIALS}
        assert read_chain(TOKENIZER, tokens) == true
        raw = chain_tokens(TOKENIZER, [{"note": f"a {special} b"}])[0]  # tokenizers have marks of other forms
        assert not set(raw[1:-2]) & {TOKENIZER.get_vocab()[s] for s in SPECIALS}


@pytest.mark.parametrize(
    "text",
    [
        "", THINK, "colour: red", f"{THINK}{END_THINK}{EMB}", f"{THINK}colour: red{END_THINK}",
        f"{THINK}colour: red{EMB}", f"{THINK}colour red{END_THINK}{EMB}", f"{THINK}colour:red{END_THINK}{EMB}",
        f"{THINK}colour: {END_THINK}{EMB}", f"{THINK}: red{END_THINK}{EMB}",
        f"{THINK}colour: red;{END_THINK}{EMB}", f"{THINK}colour: red; {END_THINK}{EMB}",
        f"{THINK}colour: red; colour: blue{END_THINK}{EMB}", f"{THINK}colour: a: b{END_THINK}{EMB}",
        f"{THINK}colour:  red{END_THINK}{EMB}", f"{THINK} colour: red{END_THINK}{EMB}",
        f"{THINK}colour: red{END_THINK}{EMB} ", f"{THINK}{THINK}colour: red{END_THINK}{EMB}",
        f"{THINK}colour: red{END_THINK}{EMB}{EMB}", f"{THINK}colour: red{END_THINK} {EMB}",
    ],
)  # fmt: skip
def test_anything_but_the_exact_form_is_no_chain(text):
    assert parse_chain(text) is None


def test_a_chain_without_its_marks_in_place_is_no_chain():
    good = chain_tokens(TOKENIZER, [{"colour": "red"}])[0]
    assert read_chain(TOKENIZER, good) == {"colour": "red"}
    for bad in (good[1:], good[:-1], good[:-2], good[:-2] + good[-1:], good + good[-1:], [], good[:1] + good):
        assert read_chain(TOKENIZER, bad) is None


def test_an_attribute_called_category_does_not_hide_the_category():
    row = record(category=["a", "b"], attributes=[("category", "c"), ("colour", "red")])
    assert item_fields(row) == {CATEGORY: "b", "colour": "red"}


# --- which fields -------------------------------------------------------------------------------------------


def catalogue(count=480):
    """Planted: shade tells most; hue is its coarse copy; code never repeats; rare is mostly absent."""
    rows = []
    for n in range(count):
        shade = n % 12
        attributes = [("shade", f"s{shade}"), ("hue", f"h{shade // 4}"), ("code", f"c{n}"), ("same", "one")]
        attributes += [("size", f"z{n // 12 % 3}")] + ([("rare", f"r{n % 2}")] if n % 3 == 0 else [])
        rows.append(record(category=["shop", f"k{n // 36 % 5}"], attributes=attributes))
    return rows


def test_the_chain_asks_what_tells_items_apart_and_can_be_learnt():
    assert chain_fields(catalogue()) == ("size", "category", "shade")  # from least to most uncertain
    assert chain_fields(catalogue(), most=2) == ("category", "shade")
    assert chain_fields([]) == ()
    assert chain_fields([record(category=[], attributes=[])] * 20) == ()


def test_the_fields_do_not_depend_on_the_order_of_the_catalogue():
    rows = catalogue()
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert chain_fields(shuffled) == chain_fields(rows)


# --- writing ------------------------------------------------------------------------------------------------


def model_of(parts=None, layers=3, seed=0):
    config = small_config(32, layers, PX, len(TOKENIZER), special_ids(TOKENIZER))
    model = assemble(build_backbone(config, PX, seed), parts or Parts(), 16, seed)
    with torch.no_grad():  # far from its start, so that every part has a say and argmax is not one word
        for number, parameter in enumerate(model.parameters()):
            torch.manual_seed(number)
            parameter.add_(torch.randn_like(parameter), alpha=0.3 if parameter.ndim > 1 else 0.1)
    return model.eval()


def inputs():
    first, second = (decode_image(png(c, s), PX) for c, s in (("red", "disc"), ("blue", "square")))
    tokens = tokenize(TOKENIZER, ["red disc", "blue square in blue", "red"], 32)
    return [
        Sample(tokens[1], (second,)),
        Sample(tokens[0]),
        Sample([], (first,)),
        Sample(tokens[2], (first, second), kinds=[1] * len(tokens[2])),
        Sample(tokens[1], kinds=[2] * len(tokens[1])),
    ]


PARTS = [
    Parts(),
    Parts(fire=True, fusion=True),
    Parts(experts="modality"),
    Parts(experts="guided", fire=True),
]


def slow_logits(model, sample, chain):
    """Logits behind the last token of ``chain``: the whole sequence again, alone, without a cache."""
    packed = model.pack([replace(sample, chain=chain)])
    hidden = model.backbone(packed).hidden_TH
    return policy_logits(model.backbone, hidden[(packed.part_T == CHAIN).nonzero()[-1, 0]])


@pytest.mark.parametrize("parts", PARTS, ids=str)
@torch.no_grad()
def test_greedy_decoding_equals_reading_everything_again_at_each_step(parts):
    model = model_of(parts)
    rollouts = write_chains(model.backbone, inputs(), MARKS, longest=9)
    assert len({tuple(chain) for chain in rollouts.chains}) > 1
    for row, (sample, chain) in enumerate(zip(inputs(), rollouts.chains, strict=True)):
        assert chain[0] == MARKS.think
        for step in range(1, len(chain)):
            slow = slow_logits(model, sample, chain[:step]).log_softmax(-1)
            assert int(slow.argmax()) == chain[step]
            assert float(rollouts.log_probability_RL[row, step - 1]) == pytest.approx(
                float(slow[chain[step]]), abs=1e-4
            )


@pytest.mark.parametrize("parts", PARTS, ids=str)
@torch.no_grad()
def test_sampled_log_probabilities_equal_those_of_the_packed_reading(parts):
    model, samples, copies = model_of(parts), inputs(), [2, 1, 3, 1, 1]
    rollouts = write_chains(model.backbone, samples, MARKS, 9, copies, torch.Generator().manual_seed(1))
    assert rollouts.inputs == [0, 0, 1, 2, 2, 2, 3, 4]
    packed = model.pack(rollouts.chained(samples, MARKS))
    again = chain_log_probabilities(model.backbone, packed, model.backbone(packed).hidden_TH)
    again = again[:, : rollouts.drawn_RL.shape[1]].masked_fill(~rollouts.drawn_RL, 0)
    assert torch.allclose(again, rollouts.log_probability_RL, atol=1e-4)
    assert (rollouts.log_probability_RL[rollouts.drawn_RL] < 0).all()


@torch.no_grad()
def test_chains_stop_at_their_end_and_are_cut_at_the_longest():
    model = model_of()
    free = write_chains(model.backbone, inputs(), MARKS, 6, [40] * 5, torch.Generator().manual_seed(2))
    ended = [chain for chain in free.chains if chain[-1] == MARKS.emb]
    cut = [chain for chain in free.chains if chain[-1] != MARKS.emb]
    assert ended and cut
    assert all(MARKS.emb not in chain[:-1] for chain in free.chains)
    assert all(len(chain) == 7 for chain in cut)
    assert free.drawn_RL.sum(1).tolist() == [len(chain) - 1 for chain in free.chains]
    chained = [sample.chain for sample in free.chained(inputs(), MARKS)]
    assert all(chain[-1] == MARKS.emb and chain.count(MARKS.emb) == 1 for chain in chained)
    assert not free.log_probability_RL[~free.drawn_RL].any()


@torch.no_grad()
def test_samples_are_drawn_with_the_policy_s_own_probabilities():
    model, sample = model_of(seed=3), inputs()[0]
    wanted = slow_logits(model, sample, [MARKS.think]).softmax(-1)
    drawn = write_chains(model.backbone, [sample], MARKS, 1, [4000], torch.Generator().manual_seed(3))
    counts = torch.bincount(torch.tensor([chain[1] for chain in drawn.chains]), minlength=len(wanted))
    likely = wanted > 0.02
    assert likely.sum() > 2
    error = (counts / 4000 - wanted)[likely].abs() / (wanted * (1 - wanted) / 4000)[likely].sqrt()
    assert error.max() < 4.5


@torch.no_grad()
def test_an_input_s_chain_depends_on_no_other_input_and_not_on_the_chunks(monkeypatch):
    model, samples = model_of(), inputs()
    together = write_chains(model.backbone, samples, MARKS, 8).chains
    assert together == [write_chains(model.backbone, [sample], MARKS, 8).chains[0] for sample in samples]
    monkeypatch.setattr("encoder.generate.AT_ONCE", 2)
    assert write_chains(model.backbone, samples, MARKS, 8).chains == together


@torch.no_grad()
def test_a_chain_never_says_a_picture():
    model = model_of()
    config = model.backbone.config
    never = [config.image_token_id, config.video_token_id, config.vision_start_token_id]
    logits = policy_logits(model.backbone, torch.randn(3, 32))
    assert (logits[:, never] == float("-inf")).all() and (logits == float("-inf")).sum() == 3 * len(
        set(never)
    )


# --- a checkpoint without the marks -------------------------------------------------------------------------


def test_a_tokenizer_without_the_marks_gets_them_and_the_model_rows_for_them():
    tokenizer = train_tokenizer(["red disc"] * 5, vocabulary=270)
    plain = train_without_marks()
    config = small_config(32, 1, PX, len(plain), special_ids(plain))
    model = AutoModelForImageTextToText.from_config(config)
    before = model.get_input_embeddings().weight.detach().clone()
    add_chain_marks(plain, model)
    marks = chain_marks(plain)
    rows = model.get_input_embeddings().weight
    assert len(rows) >= max(marks.think, marks.end_think, marks.emb) + 1
    for mark in (marks.think, marks.end_think, marks.emb):
        assert torch.allclose(rows[mark], before.mean(0), atol=1e-6)
    assert torch.equal(rows[: len(before)], before)
    assert read_chain(plain, chain_tokens(plain, [{"colour": "red"}])[0]) == {"colour": "red"}
    assert set(special_ids(plain)) == set(special_ids(tokenizer))
    again = model.get_input_embeddings().weight.detach().clone()
    add_chain_marks(plain, model)
    assert torch.equal(model.get_input_embeddings().weight, again)


def train_without_marks():
    import encoder.tokenizer as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPECIALS", SPECIALS[:5])
        return module.train_tokenizer(["red disc"] * 5, vocabulary=270)
