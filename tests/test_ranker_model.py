"""The fast, grouped model equals the slow, per-candidate one, and a candidate's score is its own affair."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_world import Requests, make_frame, make_vectors, with_random_tables
from torchrec import EmbeddingBagCollection

from feature_repo.frame import Frame
from ranker import score as score_module
from ranker.calibration import calibrated
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, select_requests
from ranker.inputs.id_tables import bag_configs
from ranker.inputs.search import Search
from ranker.losses import LOSSES, training_loss
from ranker.modules.attention import TargetAttention
from ranker.modules.cube import Content, Extractor
from ranker.recipes import cube
from ranker.score import CtrConfig, Ranker, score_together

VECTORS = make_vectors(60)


def frame_of(counts, memories, seed=0, known=True):
    draw = np.random.default_rng(seed)
    ids = VECTORS.ids if known else VECTORS.ids + 1
    return make_frame(
        user_id=list(range(len(counts))),
        history=[draw.choice(ids, m).tolist() for m in memories],
        candidates=[draw.choice(ids, n, replace=False).tolist() for n in counts],
        labels=[draw.integers(0, 2, n) for n in counts],
        query_id=[None if r % 2 else r % 4 for r in range(len(counts))],
        positions=[np.arange(n) for n in counts],
    )


FRAME = frame_of([3, 7, 1, 4], [5, 0, 12, 2])


def ranker(vectors=VECTORS, seed=0):
    inputs = learn_inputs(Requests(FRAME), 20)[0]
    config = CtrConfig(
        recipe=cube(),
        inputs=inputs,
        id_width=8,
        content_width=0 if vectors is None else vectors.width,
        embedding_id=None if vectors is None else vectors.id,
        loss="pointwise",
        learning_rate=1e-3,
        table_learning_rate=0.02,
    )
    torch.manual_seed(seed)
    return Ranker(with_random_tables(config.build().eval()), FrameEncoder(inputs, vectors))


def candidates_of(frame, rows):
    """The same frame with only these candidates."""
    rows = np.asarray(rows)
    owner = np.repeat(np.arange(len(frame)), np.diff(frame.offsets))[rows]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(frame)))]).astype(np.int64)
    return Frame(frame.requests, frame.candidates.take(rows), offsets, frame.history)


def one_by_one(frame):
    """Each candidate as a request of its own."""
    for request in range(len(frame)):
        single = select_requests(frame, np.array([request]))
        for row in range(int(single.offsets[-1])):
            yield candidates_of(single, [row])


def test_rankers_that_read_alike_share_batches_and_score_as_each_alone(monkeypatch):
    made, batch = [], FrameEncoder.batch
    monkeypatch.setattr(FrameEncoder, "batch", lambda *given: (made.append(1), batch(*given))[1])
    rankers = {"a": ranker(), "blind": ranker(vectors=None), "b": ranker(seed=1)}
    searching = ranker(seed=2)
    searching.encoder = FrameEncoder(searching.encoder.inputs, VECTORS, Search("content", keep=3, recent=2))
    rankers["searching"] = searching
    rankers["calibrated"] = ranker(seed=3)
    rankers["calibrated"].calibration = calibrated("platt", np.linspace(-1, 1, 8), np.arange(8.0) % 2)
    other = frame_of([2, 2], [3, 1], seed=5)
    rankers["learned_from_others"] = Ranker(
        rankers["a"].model, FrameEncoder(learn_inputs(Requests(other), 20)[0], VECTORS)
    )
    found = score_together(rankers, FRAME)
    assert list(found) == list(rankers) and len(made) == 4, "a, b and calibrated read one batch"
    for name, scores in found.items():
        np.testing.assert_array_equal(scores, rankers[name].score(FRAME), err_msg=name)
    assert np.abs(found["a"] - found["b"]).max() > 0.01


@pytest.mark.parametrize("vectors", [VECTORS, None], ids=["full", "id_only"])
def test_many_requests_score_as_one_candidate_at_a_time(vectors):
    fast = ranker(vectors).score(FRAME)
    slow = np.concatenate([ranker(vectors).score(single) for single in one_by_one(FRAME)])
    np.testing.assert_allclose(fast, slow, atol=1e-5)
    assert fast.std() > 0.01


def test_gradients_of_the_grouped_form_are_those_of_single_candidates():
    """Dense weights and, through plain tables with the same rows, the ids' embeddings."""

    def gradients(frames):
        subject = ranker()
        tables = subject.model.tables
        for place in ("items", "candidates", "requests", "behaviours"):
            fused = getattr(tables, place)
            rows = {c.feature_names[0]: c.num_embeddings for c in fused.embedding_bag_configs()}
            plain = EmbeddingBagCollection([replace(c) for c in bag_configs(rows, 8)])
            plain.load_state_dict(fused.state_dict())
            setattr(tables, place, plain)
        total = sum(
            (LOSSES["pointwise"](
                subject.model(batch) + subject.model.position_logit(batch), batch.label, batch.candidate_mask
            ) * batch.candidate_mask.sum() for batch in map(subject.encoder.batch, frames)),
            start=torch.zeros(()),
        )  # fmt: skip
        total.backward()
        return {name: p.grad for name, p in subject.model.named_parameters()}

    fast, slow = gradients([FRAME]), gradients(list(one_by_one(FRAME)))
    assert set(fast) == set(slow)
    for name, gradient in fast.items():
        assert gradient is not None, name
        assert torch.allclose(gradient, slow[name], atol=1e-5), name


def test_a_candidates_score_ignores_the_other_candidates():
    subject, frame = ranker(), frame_of([9], [6])
    alone = subject.score(frame)
    order = np.random.default_rng(1).permutation(9)
    np.testing.assert_allclose(subject.score(candidates_of(frame, order)), alone[order], atol=1e-6)
    np.testing.assert_allclose(subject.score(candidates_of(frame, [2, 5])), alone[[2, 5]], atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 15)), min_size=1, max_size=8), st.integers(0, 99))
def test_batch_size_and_padding_do_not_matter(shape, seed):
    counts, memories = zip(*shape, strict=True)
    frame, subject = frame_of(list(counts), list(memories), seed), SUBJECT
    together = subject.score(frame)
    apart = [subject.score(select_requests(frame, np.array([r]))) for r in range(len(frame))]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


def test_unknown_users_items_and_empty_histories_have_finite_scores():
    frame = frame_of([4, 2], [0, 3], known=False)
    for vectors in (VECTORS, None):
        assert np.isfinite(ranker(vectors).score(frame)).all()
    assert len(ranker().score(frame_of([0, 0], [0, 3]))) == 0


def test_position_is_for_training_only():
    subject = ranker()
    with torch.no_grad():
        subject.model.position.copy_(torch.randn(len(subject.model.position)))
    batch = subject.encoder.batch(FRAME)
    np.testing.assert_allclose(
        subject.score(FRAME), subject.model(batch)[batch.candidate_mask].detach(), atol=1e-5
    )
    logged = subject.model.position_logit(batch)[batch.candidate_mask].detach()
    assert logged.std() > 0.1
    assert abs(float(logged.mean())) < 1e-5  # the training average is taken out
    unlogged = Frame(
        FRAME.requests, FRAME.candidates.drop_columns(["position"]), FRAME.offsets, FRAME.history
    )
    assert not subject.model.position_logit(subject.encoder.batch(unlogged)).any()
    np.testing.assert_allclose(subject.score(unlogged), subject.score(FRAME))


def test_target_attention_is_the_textbook_formula():
    torch.manual_seed(0)
    attention = TargetAttention(6)
    torch.nn.init.normal_(attention.query.weight)
    torch.nn.init.normal_(attention.key.weight)
    target, history = torch.randn(3, 2, 6), torch.randn(3, 4, 6)
    allowed = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    out = attention(target, history, allowed)
    for r in range(3):
        for n in range(2):
            expected = torch.zeros(6)
            places = [b for b in range(4) if allowed[r, b]]
            if places:
                q = attention.query.weight @ target[r, n]
                s = [
                    math.exp(float(q @ (attention.key.weight @ history[r, b])) / math.sqrt(6)) for b in places
                ]
                expected = sum(w / sum(s) * history[r, b] for w, b in zip(s, places, strict=True))
            assert torch.allclose(out[r, n], expected, atol=1e-5)


def test_cube_branches_are_the_papers_table():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    known = torch.tensor([[0, 1, 1], [0, 0, 0]]).bool()
    content = Content(
        target_RNV=unit(torch.randn(2, 2, 5), dim=-1),
        history_RLV=unit(torch.randn(2, 3, 5), dim=-1) * known[..., None],
        history_known_RL=known,
        query_RV=unit(torch.randn(2, 5), dim=-1),
        query_known_R=torch.tensor([True, False]),
    )
    e = torch.randn(2, 3, 4)
    extractor = Extractor(history=5)
    with torch.no_grad():
        extractor.log_temperature.fill_(math.log(0.3))
    out = extractor(content, e)
    for r in range(2):
        for n in range(2):
            t = content.target_RNV[r, n]
            places = [b for b in range(3) if known[r, b]]
            s = {b: float(t @ content.history_RLV[r, b]) for b in places}
            norm = sum(math.exp(v / 0.3) for v in s.values())
            w = {b: math.exp(v / 0.3) / norm for b, v in s.items()}
            listed = torch.tensor([0.0, 0.0] + [s.get(b, 0.0) for b in range(3)])
            assert torch.allclose(out.similarity_RNK[r, n], listed, atol=1e-5)
            fusion = sum((w[b] * e[r, b] for b in places), start=torch.zeros(4))
            interest = sum((w[b] * content.history_RLV[r, b] for b in places), start=torch.zeros(5))
            assert torch.allclose(out.fusion_RND[r, n], fusion, atol=1e-5)
            assert torch.allclose(out.content_RNV[r, n], interest, atol=1e-5)
            assert torch.equal(out.target_RNV[r, n], t)
            asked = r == 0
            cosine = float(t @ content.query_RV[r]) if asked else 0.0
            assert float(out.query_target_RN1[r, n, 0]) == pytest.approx(cosine, abs=1e-6)
            summary = [
                sum(w[b] * s[b] for b in places),
                sum(s.values()) / max(len(s), 1),
                max(s.values(), default=0.0),
            ]
            assert torch.allclose(out.summary_RN3[r, n], torch.tensor(summary), atol=1e-5)
        behaved = [
            float(content.query_RV[r] @ content.history_RLV[r, b]) if r == 0 else 0.0 for b in range(3)
        ]
        assert torch.allclose(out.query_behaviour_RK[r], torch.tensor([0.0, 0.0, *behaved]), atol=1e-6)
        assert torch.equal(out.query_RV[r], content.query_RV[r] * (r == 0))


def test_listwise_loss_is_the_cross_entropy_of_each_request():
    logit = torch.tensor([[1.0, 2.0, 9.0], [0.5, -1.0, 3.0], [4.0, 4.0, 4.0]])
    label = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    candidate_mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool()
    first = -math.log(math.exp(1) / (math.exp(1) + math.exp(2)))
    z = math.log(math.exp(0.5) + math.exp(-1) + math.exp(3))
    second = 0.5 * ((z + 1) + (z - 3))
    assert float(LOSSES["listwise"](logit, label, candidate_mask)) == pytest.approx(
        (first + second) / 2, abs=1e-5
    )


def test_pointwise_loss_counts_real_candidates_only():
    subject = ranker()
    batch = subject.encoder.batch(FRAME)
    logit = subject.model(batch)[batch.candidate_mask]
    label = batch.label[batch.candidate_mask]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, label)
    assert torch.allclose(training_loss(subject.model, batch, "pointwise"), expected, atol=1e-6)


SUBJECT = ranker()


def test_one_request_alone_is_not_copied_to_be_scored(monkeypatch):
    copied = []
    monkeypatch.setattr(
        score_module, "select_requests", lambda *one: copied.append(one) or select_requests(*one)
    )
    one = select_requests(FRAME, np.array([1]))
    alone = SUBJECT.score(one)
    assert not copied and alone.dtype == np.float32
    np.testing.assert_allclose(SUBJECT.score(FRAME)[3:10], alone, atol=1e-5)
    assert copied


def test_given_queries_follow_their_requests_into_the_pieces(monkeypatch):
    """Searches without an id, a piece of one request each: as if every request were scored alone."""
    draw = np.random.default_rng(3)
    given = np.zeros((len(FRAME), VECTORS.width), np.float32)
    given[[0, 2, 3]] = VECTORS.matrix[draw.integers(0, 60, 3)]
    expected = [
        SUBJECT.score(select_requests(FRAME, np.array([row])), given[[row]]) for row in range(len(FRAME))
    ]
    monkeypatch.setattr(score_module, "SLOTS", 1)
    found = SUBJECT.score(FRAME, given)
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
    assert not np.allclose(found, SUBJECT.score(FRAME), atol=1e-3), "the queries matter"


def test_the_click_model_has_the_tensors_that_its_files_have_always_had():
    tables = {
        f"tables.{place}.embedding_bags.t_{name}.weight"
        for place, names in (
            ("items", ["item_id"]),
            ("candidates", ["category", "category_top", "spu", "attributes"]),
            ("requests", ["user_id", "query_id", "age_band", "segment"]),
            ("behaviours", ["code", "age"]),
        )
        for name in names
    }
    dense = {
        "position", "candidate_input.weight", "candidate_input.bias", "request_input.weight",
        *(f"head.{layer}.{kind}" for layer in (1, 3) for kind in ("weight", "bias")),
        *(f"parts.interest.{mix}_mix.{kind}" for mix in ("item", "user") for kind in ("weight", "bias")),
        "parts.interest.attention.query.weight", "parts.interest.attention.key.weight",
    }  # fmt: skip
    content = {
        "parts.cube.extractor.log_temperature",
        "parts.cube.content_mix.weight",
        "parts.cube.content_mix.bias",
    }
    assert set(dict(SUBJECT.model.named_parameters())) == tables | dense | content
    assert set(dict(ranker(None).model.named_parameters())) == tables | dense
