"""Losses, optimizers and positives against plain restatements."""

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoder_world import START, event

from dataset.contracts import EVENTS, JUDGEMENTS
from encoder.examples.corpus import Side
from encoder.examples.pairs import item_pairs, query_pairs
from encoder.losses.info_nce import false_negatives, info_nce, matryoshka_info_nce
from encoder.optim import Muon, Optimizers, orthogonalise


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def plain_info_nce(anchors, items, masked, temperature):
    """The formula, one pair at a time."""

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    count, total = len(anchors), 0.0
    for i in range(count):
        own = math.exp(cosine(anchors[i], items[i]) / temperature)
        rest = [j for j in range(count) if j != i]
        over_items = sum(
            math.exp(cosine(anchors[i], items[j]) / temperature) for j in rest if not masked[i][j]
        )
        over_anchors = sum(
            math.exp(cosine(anchors[j], items[i]) / temperature) for j in rest if not masked[j][i]
        )
        total -= math.log(own / (own + over_items)) + math.log(own / (own + over_anchors))
    return total / (2 * count)


def test_masked_info_nce_equals_its_formula_in_a_plain_loop():
    torch.manual_seed(0)
    anchors, items = torch.randn(7, 12, dtype=torch.float64), torch.randn(7, 12, dtype=torch.float64)
    masked = (torch.rand(7, 7) < 0.3) & ~torch.eye(7, dtype=torch.bool)
    assert masked.any()
    for temperature in (0.05, 1.0):
        wanted = plain_info_nce(anchors, items, masked.tolist(), temperature)
        assert float(info_nce(anchors, items, masked, temperature)) == pytest.approx(wanted, rel=1e-9)


def test_matryoshka_is_the_mean_over_prefixes_each_on_its_own():
    torch.manual_seed(1)
    anchors, items = torch.randn(5, 16), torch.randn(5, 16)
    masked = torch.zeros(5, 5, dtype=torch.bool)
    wanted = np.mean([plain_info_nce(anchors[:, :w], items[:, :w], masked.tolist(), 0.2) for w in (16, 8, 4)])
    assert float(matryoshka_info_nce(anchors, items, masked, (16, 8, 4), 0.2)) == pytest.approx(
        wanted, rel=1e-5
    )


def test_a_masked_item_gives_no_gradient():
    torch.manual_seed(2)
    anchors, items = torch.randn(2, 4), torch.randn(2, 4, requires_grad=True)
    masked = torch.tensor([[False, True], [True, False]])
    info_nce(anchors, items, masked).backward()
    assert float(items.grad.abs().max()) < 1e-6


def test_false_negatives_are_copies_variants_other_positives_and_the_anchor_itself():
    anchor = torch.tensor([1, 2, 1, 4, 5])
    item = torch.tensor([10, 10, 12, 13, 14])
    spu = torch.tensor([100, 100, 102, 103, 103])
    anchor_spu = torch.tensor([-1, -2, -3, 102, -5])
    found = false_negatives(anchor, item, spu, anchor_spu).tolist()
    wanted = [[False] * 5 for _ in range(5)]
    # (2, 1): item 10 is a positive of anchor 1 in another pair, so no copy of it is a negative of that anchor
    for i, j in ((0, 1), (1, 0), (0, 2), (2, 0), (3, 4), (4, 3), (3, 2), (2, 1)):
        wanted[i][j] = True
    assert found == wanted


@pytest.mark.parametrize("shape", [(6, 6), (12, 4), (4, 12)])
def test_our_muon_takes_the_steps_of_torchs(shape):
    torch.manual_seed(3)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(4)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    fast, slow = Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        fast.step()
        slow.step()
    moved = (theirs - start).norm()
    assert (
        float((ours.detach() - theirs.detach()).norm() / moved.detach()) < 0.02
    )  # theirs rounds to bfloat16
    values = torch.linalg.svdvals(orthogonalise(torch.randn(8, 5)))
    assert 0.5 < float(values.min()) and float(values.max()) < 1.3


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_any_weight_moves(bad):
    model = torch.nn.Linear(3, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = Optimizers(model, steps=10)
    if bad == "loss":
        loss = model(torch.ones(1, 3)).sum() * float("nan")
    else:
        loss = (model(torch.ones(1, 3)) * 0).sqrt().sum()  # the loss is 0, its gradient is not a number
    with pytest.raises(FloatingPointError, match="posttrain step 7"):
        optimizers.update(loss, "posttrain", 7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_optimizer_state_survives_a_round_trip_exactly():
    def step(model, optimizers, n):
        optimizers.update(model(torch.full((2, 4), float(n + 1))).square().sum(), "posttrain", n)

    torch.manual_seed(4)
    first = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    second = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    one = Optimizers(first, 10)
    step(first, one, 0)
    two = Optimizers(second, 10)
    second.load_state_dict(first.state_dict())
    two.load(one.tensors())
    for n in (1, 2):
        step(first, one, n)
        step(second, two, n)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_rate_warms_up_then_falls_to_a_twentieth():
    optimizers = Optimizers(torch.nn.Linear(2, 2), steps=200)
    shares = [optimizers.schedule(step) for step in range(200)]
    assert shares[0] == pytest.approx(0.05) and shares[19] == 1.0 and shares[20] == 1.0
    assert all(a >= b for a, b in zip(shares[20:], shares[21:], strict=False))
    assert shares[-1] == pytest.approx(0.05, abs=1e-3)


def side(ids):
    return Side(np.array(ids), [[1]] * len(ids), [[0]] * len(ids), np.full(len(ids), -1))


def log(*events):
    return pa.Table.from_pylist([event(n, *e[:3], **e[3]) for n, e in enumerate(events)], EVENTS)


HOUR = timedelta(hours=1)


def test_items_pair_when_one_user_takes_both_within_a_day():
    items = side([50, 40, 30, 20])  # ids in no order: rows 0..3
    # User 1 gives 20-30 twice and never 20-20.
    table = log(
        (1, 20, START, {}), (1, 30, START + 3 * HOUR, {}), (1, 20, START + 4 * HOUR, {}),
        (1, 40, START + 40 * HOUR, {}),  # more than a day later
        (2, 50, START, {}), (3, 40, START, {}),  # other users
        (4, 50, START, {"type": "impression"}), (4, 40, START, {}),  # seen, not taken
        (5, 50, START, {"type": "rating", "value": 5.0}), (5, 40, START, {"type": "rating", "value": 4.0}),
        (6, 50, START, {"type": "rating", "value": 2.0}), (6, 30, START, {"type": "rating", "value": 4.0}),
        (7, 999, START, {}), (7, 30, START, {}),  # an item that is not in the catalogue
    )  # fmt: skip
    pairs = item_pairs(table, START + 100 * HOUR, items)
    found = sorted(
        tuple(sorted((items.ids[a], items.ids[b]))) for a, b in zip(pairs.anchor, pairs.item, strict=True)
    )
    assert found == [(20, 30), (20, 30), (40, 50)]


def test_pairs_never_use_what_was_not_yet_available():
    items, queries = side([1, 2, 3]), side([7])
    late = {"available_time": START + 50 * HOUR}
    table = log(
        (1, 1, START, {"query_id": 7}), (1, 2, START, {}), (1, 3, START, {**late, "query_id": 7}),
        (2, 1, START + 60 * HOUR, {"query_id": 7}), (2, 3, START + 60 * HOUR, {}),
    )  # fmt: skip
    none = JUDGEMENTS.empty_table()
    for until, expected_items, expected_queries in (
        (START + 50 * HOUR, {(0, 1)}, {(0, 0)}),  # strictly before: the late event is not known yet
        (START + 51 * HOUR, {(0, 1), (0, 2), (1, 2)}, {(0, 0), (0, 2)}),
        (START, set(), set()),
    ):
        pairs = item_pairs(table, until, items)
        assert {
            tuple(sorted(p)) for p in zip(pairs.anchor.tolist(), pairs.item.tolist(), strict=True)
        } == expected_items
        asked = query_pairs(table, until, none, queries, items)
        assert set(zip(asked.anchor.tolist(), asked.item.tolist(), strict=True)) == expected_queries


def test_only_training_judgements_above_one_half_become_pairs():
    rows = [
        (7, 1, 1.0, "train"),
        (7, 2, 0.5, "train"),
        (7, 3, 1.0, "test"),
        (7, 1, 0.9, "train"),
        (8, 1, 1.0, "train"),
    ]
    judged = pa.Table.from_pylist(
        [dict(zip(("query_id", "item_id", "relevance", "part"), row, strict=True)) for row in rows],
        JUDGEMENTS,
    )
    pairs = query_pairs(EVENTS.empty_table(), START, judged, side([7]), side([1, 2, 3]))
    assert list(zip(pairs.anchor.tolist(), pairs.item.tolist(), strict=True)) == [(0, 0)]
