"""Every loss of the MOON papers against its formula in plain loops, its limits and its invariances."""

import math
from itertools import pairwise

import pytest
import torch

from encoder.losses.alignment import inter_loss, intra_loss, total
from encoder.losses.circle import circle_loss, matryoshka_circle_loss
from encoder.losses.filtering import THRESHOLD, confidence, margin_at, triplet_weights
from encoder.losses.info_nce import (
    false_extra_negatives,
    info_nce,
    matryoshka_info_nce,
    one_way_info_nce,
    over_widths,
)

B, N, D = 6, 5, 8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def batch():
    """Anchors, items, masked items, further negatives, masked negatives and weights of a random batch."""
    rng = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=rng)

    masked_BB = (torch.rand(B, B, generator=rng) < 0.3) & ~torch.eye(B, dtype=torch.bool)
    masked_BN = torch.rand(B, N, generator=rng) < 0.3
    assert masked_BB.any() and masked_BN.any()
    return (
        normal(B, D),
        normal(B, D),
        masked_BB,
        normal(N, D),
        masked_BN,
        torch.rand(B, dtype=torch.float64, generator=rng),
    )


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def negatives_of(row, anchors, items, masked, extra, masked_extra):
    """Cosines of one anchor with all that may be pushed away from it."""
    found = [cosine(anchors[row], items[j]) for j in range(B) if j != row and not masked[row, j]]
    return found + [cosine(anchors[row], extra[n]) for n in range(len(extra)) if not masked_extra[row, n]]


def mean(losses, weights=None):
    weights = [1.0] * len(losses) if weights is None else weights.tolist()
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def plain_one_way(temperature, anchors, items, masked, extra=(), masked_extra=(), weights=None):
    losses = []
    for row in range(B):
        own = math.exp(cosine(anchors[row], items[row]) / temperature)
        rest = negatives_of(row, anchors, items, masked, extra, masked_extra)
        losses.append(-math.log(own / (own + sum(math.exp(s / temperature) for s in rest))))
    return mean(losses, weights)


def plain_circle(gamma, margin, anchors, items, masked, extra=(), masked_extra=(), weights=None):
    losses = []
    for row in range(B):
        s_p = cosine(anchors[row], items[row])
        pull = math.exp(-gamma * max(1 + margin - s_p, 0) * (s_p - (1 - margin)))
        push = sum(
            math.exp(gamma * max(s_n + margin, 0) * (s_n - margin))
            for s_n in negatives_of(row, anchors, items, masked, extra, masked_extra)
        )
        losses.append(math.log(1 + push * pull))
    return mean(losses, weights)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_with_further_negatives_and_weights_equals_its_formula(batch, temperature):
    anchors, items, masked, extra, masked_extra, weights = batch
    one_way = plain_one_way(temperature, anchors, items, masked, extra, masked_extra, weights)
    back = plain_one_way(temperature, items, anchors, masked.T, weights=weights)
    found = one_way_info_nce(anchors, items, masked, temperature, extra, masked_extra, weights)
    assert float(found) == pytest.approx(one_way, rel=1e-9)
    both = info_nce(anchors, items, masked, temperature, extra, masked_extra, weights)
    assert float(both) == pytest.approx((one_way + back) / 2, rel=1e-9)


def test_further_negatives_without_a_mask_all_count(batch):
    anchors, items, masked, extra, _, _ = batch
    none = torch.zeros(B, N, dtype=torch.bool)
    wanted = plain_one_way(0.2, anchors, items, masked, extra, none)
    assert float(one_way_info_nce(anchors, items, masked, 0.2, extra)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("gamma", "margin"), [(64.0, 0.25), (8.0, 0.4), (1.0, 0.0)])
def test_circle_loss_equals_its_formula(batch, gamma, margin):
    anchors, items, masked, extra, masked_extra, weights = batch
    wanted = plain_circle(gamma, margin, anchors, items, masked, extra, masked_extra, weights)
    assert float(circle_loss(*batch, gamma=gamma, margin=margin)) == pytest.approx(wanted, rel=1e-9)
    wanted = plain_circle(gamma, margin, anchors, items, masked)
    assert float(circle_loss(*batch[:3], gamma=gamma, margin=margin)) == pytest.approx(wanted, rel=1e-9)


def test_matryoshka_losses_are_means_over_prefixes_of_every_vector(batch):
    anchors, items, masked, extra, masked_extra, weights = batch
    widths = (8, 4, 2)
    cut = [(anchors[:, :w], items[:, :w], masked, extra[:, :w], masked_extra, weights) for w in widths]
    wanted = mean([plain_circle(64.0, 0.25, *each) for each in cut])
    found = matryoshka_circle_loss(anchors, items, masked, widths, extra, masked_extra, weights)
    assert float(found) == pytest.approx(wanted, rel=1e-9)
    wanted = mean(
        [
            (plain_one_way(0.2, *each) + plain_one_way(0.2, each[1], each[0], masked.T, weights=weights)) / 2
            for each in cut
        ]
    )
    found = matryoshka_info_nce(anchors, items, masked, widths, 0.2, extra, masked_extra, weights)
    assert float(found) == pytest.approx(wanted, rel=1e-9)
    assert float(over_widths(lambda w: torch.tensor(float(w)), (2, 4, 12))) == 6


@pytest.mark.parametrize("loss", [info_nce, one_way_info_nce, inter_loss])
def test_gradients_of_info_nce_are_those_of_finite_differences(batch, loss):
    anchors, items, masked, extra, masked_extra, weights = batch

    def of(a, i, n):
        return loss(
            a, i, masked, temperature=0.3, negatives_ND=n, masked_negatives_BN=masked_extra, weight_B=weights
        )

    vectors = [each.clone().requires_grad_() for each in (anchors, items, extra)]
    assert torch.autograd.gradcheck(of, vectors)


def test_the_gradient_of_circle_loss_takes_its_weights_as_constants(batch):
    """The weights of the start, held fixed in plain loops, have the finite differences of the gradient."""
    anchors, items, masked, gamma, margin = *batch[:3], 8.0, 0.25
    far = [1 + margin - cosine(anchors[b], items[b]) for b in range(B)]
    near = [[max(cosine(anchors[b], items[j]) + margin, 0) for j in range(B)] for b in range(B)]

    def held(moved):
        losses = []
        for b in range(B):
            pull = math.exp(-gamma * far[b] * (cosine(moved[b], items[b]) - (1 - margin)))
            rest = [j for j in range(B) if j != b and not masked[b, j]]
            push = sum(math.exp(gamma * near[b][j] * (cosine(moved[b], items[j]) - margin)) for j in rest)
            losses.append(math.log(1 + push * pull))
        return mean(losses)

    moving = anchors.clone().requires_grad_()
    circle_loss(moving, items, masked, gamma=gamma, margin=margin).backward()
    for place in ((0, 0), (2, 5), (5, 3)):
        step = torch.zeros_like(anchors)
        step[place] = 1e-6
        wanted = (held(anchors + step) - held(anchors - step)) / 2e-6
        assert float(moving.grad[place]) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("loss", [info_nce, circle_loss])
def test_what_is_masked_gives_no_gradient(batch, loss):
    anchors, items, _, extra, _, _ = batch
    all_masked = ~torch.eye(B, dtype=torch.bool)
    moving = [each.clone().requires_grad_() for each in (anchors, items, extra)]
    masked_extra = torch.ones(B, N, dtype=torch.bool)
    value = loss(moving[0], moving[1], all_masked, negatives_ND=moving[2], masked_negatives_BN=masked_extra)
    value.backward()
    assert value.tolist() == pytest.approx(0, abs=1e-12)
    assert all(float(each.grad.abs().max()) < 1e-12 for each in moving)


@pytest.mark.parametrize("loss", [info_nce, circle_loss, inter_loss])
def test_the_order_of_the_batch_and_the_length_of_vectors_do_not_matter(batch, loss):
    anchors, items, masked, extra, masked_extra, weights = batch
    rows, columns = torch.randperm(B), torch.randperm(N)
    wanted = loss(
        anchors, items, masked, negatives_ND=extra, masked_negatives_BN=masked_extra, weight_B=weights
    )
    found = loss(
        3 * anchors[rows],
        0.1 * items[rows],
        masked[rows][:, rows],
        negatives_ND=2 * extra[columns],
        masked_negatives_BN=masked_extra[rows][:, columns],
        weight_B=5 * weights[rows],
    )
    assert float(found) == pytest.approx(float(wanted), rel=1e-12)


def test_a_pair_of_weight_zero_has_no_loss_but_is_still_a_negative(batch):
    anchors, items, _, _, _, _ = batch
    free = torch.zeros(B, B, dtype=torch.bool)
    weights = torch.ones(B, dtype=torch.float64)
    weights[0] = 0
    moving = items.clone().requires_grad_()
    loss = one_way_info_nce(anchors, moving, free, 0.5, weight_B=weights)
    assert loss.tolist() == pytest.approx(plain_one_way(0.5, anchors, items, free, weights=weights), rel=1e-9)
    loss.backward()
    assert float(moving.grad[0].norm()) > 1e-4


def test_circle_loss_is_near_zero_when_apart_and_finite_when_all_is_wrong():
    eye = torch.eye(4, 8)
    free = torch.zeros(4, 4, dtype=torch.bool)
    # three negatives at s_n = 0 beside s_p = 1: log(1 + 3 exp(-2 gamma m^2))
    assert float(circle_loss(eye, eye, free)) == pytest.approx(math.log1p(3 * math.exp(-8)), rel=1e-3)
    assert float(circle_loss(eye, eye, free, gamma=256.0)) < 1e-12
    wrong = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    # positives opposite, negatives equal: gamma (a_n (1 - m) + a_p (2 - m)) = 64 (1.25 * .75 + 2.25 * 1.75)
    for gamma in (64.0, 256.0, 4096.0):
        loss = circle_loss(wrong, -wrong.detach(), free[:2, :2], gamma=gamma)
        assert loss.tolist() == pytest.approx(gamma * (1.25 * 0.75 + 2.25 * 1.75), rel=1e-6)
        assert torch.isfinite(torch.autograd.grad(loss, wrong)[0]).all()


def test_for_large_gamma_circle_loss_is_the_hinge_of_the_nearest_negative(batch):
    """As gamma grows, L / gamma tends to [max_j a_n (s_n - m) - a_p (s_p - (1 - m))]_+, a triplet loss."""
    anchors, items, masked, extra, masked_extra, _ = batch
    margin, wanted = 0.25, []
    for row in range(B):
        s_p = cosine(anchors[row], items[row])
        rest = negatives_of(row, anchors, items, masked, extra, masked_extra)
        push = max(max(s_n + margin, 0) * (s_n - margin) for s_n in rest)
        wanted.append(max(push - (1 + margin - s_p) * (s_p - 1 + margin), 0))
    loss = circle_loss(anchors, items, masked, extra, masked_extra, gamma=1e5, margin=margin) / 1e5
    assert float(loss) == pytest.approx(mean(wanted), rel=1e-4)


def test_circle_loss_pulls_what_is_far_from_its_optimum_harder_than_what_is_near():
    """The reason of the paper's choice: at equal s_p - s_n, InfoNCE's pulls are equal, circle's are not."""
    free = torch.zeros(2, 2, dtype=torch.bool)

    def pulls(loss, s_p, s_n):
        score = torch.tensor([s_p, s_n], dtype=torch.float64, requires_grad=True)
        up = (1 - score**2).clamp(min=0).sqrt()
        items = torch.stack([torch.stack([score[0], up[0]]), torch.stack([score[1], -up[1]])])
        anchors = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
        positive, negative = torch.autograd.grad(loss(anchors, items, free, weights), score)[0].tolist()
        return -positive / negative

    def nce(a, i, m, w):
        return one_way_info_nce(a, i, m, weight_B=w)

    def circle(a, i, m, w):
        return circle_loss(a, i, m, weight_B=w)

    assert pulls(nce, 0.9, 0.6) == pytest.approx(1) and pulls(nce, 0.3, 0.0) == pytest.approx(1)
    assert pulls(circle, 0.9, 0.6) == pytest.approx((1.25 - 0.9) / (0.6 + 0.25))
    assert pulls(circle, 0.3, 0.0) == pytest.approx((1.25 - 0.3) / (0.0 + 0.25))


def test_further_negatives_are_false_as_the_keys_say():
    anchor = torch.tensor([1, 2, 1, 4])
    item = torch.tensor([10, 11, 12, 13])
    spu = torch.tensor([100, 101, 102, 103])
    anchor_spu = torch.tensor([-1, -2, -3, 105])
    #                       own, variant, other, anchor's variant, positive of anchor 1 in its other pair
    negative_item = torch.tensor([10, 20, 21, 22, 12])
    negative_spu = torch.tensor([100, 101, 104, 105, 102])
    found = false_extra_negatives(anchor, item, spu, anchor_spu, negative_item, negative_spu)
    assert found.tolist() == [
        [True, False, False, False, True],
        [False, True, False, False, False],
        [True, False, False, False, True],
        [False, False, False, True, False],
    ]
    keys = torch.randint(0, 5, (4, 9))
    others = torch.randint(0, 5, (2, 30))
    wanted = [
        [
            any(
                keys[0, k] == keys[0, b] and (keys[1, k] == others[0, n] or keys[2, k] == others[1, n])
                for k in range(9)
            )
            or bool(keys[3, b] == others[1, n])
            for n in range(30)
        ]
        for b in range(9)
    ]
    assert false_extra_negatives(*keys, *others).tolist() == wanted


def test_alignment_runs_from_query_to_product_and_from_image_to_text_only(batch):
    anchors, items, masked, extra, masked_extra, weights = batch
    wanted = plain_one_way(0.05, anchors, items, masked, extra, masked_extra, weights)
    assert float(inter_loss(*batch)) == pytest.approx(wanted, rel=1e-9)
    wanted = plain_one_way(0.05, anchors, items, masked, weights=weights)
    assert float(intra_loss(anchors, items, masked, weights)) == pytest.approx(wanted, rel=1e-9)
    back = plain_one_way(0.05, items, anchors, masked.T, weights=weights)
    assert wanted != pytest.approx(back, rel=1e-3)


def test_the_total_weighs_each_objective_by_its_own_omega():
    losses = {"text": torch.tensor(2.0), "image": torch.tensor(3.0)}
    omega = {
        "image": torch.tensor(0.25, requires_grad=True),
        "text": torch.tensor(0.5),
        "pos": torch.tensor(9.0),
    }
    value = total(losses, omega, torch.tensor(1.5), torch.tensor(4.0), rho=0.1, sigma=0.01)
    assert value.tolist() == pytest.approx(0.5 * 2 + 0.25 * 3 + 0.1 * 1.5 + 0.01 * 4)
    value.backward()
    assert float(omega["image"].grad) == 3
    with pytest.raises(KeyError, match="image"):
        total(losses, {"text": omega["text"]}, torch.tensor(0.0), torch.tensor(0.0))


def test_confidence_is_a_sigmoid_of_the_gap_beyond_the_margin():
    positive, negative = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.2, 0.2, 0.2])
    wanted = [1 / (1 + math.exp(-10 * (gap - 0.3))) for gap in (0.7, 0.3, -0.1)]
    assert confidence(positive, negative, 0.3, 10).tolist() == pytest.approx(wanted, rel=1e-5)
    assert wanted[1] == 0.5


def test_the_margin_decays_so_that_harder_triplets_come_to_count():
    margins = [margin_at(step / 10) for step in range(11)]
    assert all(a > b for a, b in pairwise(margins)) and margins[-1] == pytest.approx(0)
    positive, negative = torch.linspace(-1, 1, 201), torch.zeros(201)
    in_full = [int((triplet_weights(positive, negative, p) == 1).sum()) for p in (0.0, 0.5, 1.0)]
    # gaps from margin + ln(1.5) / 10 = margin + .0405 on, in steps of .01
    assert in_full == [76, 86, 96]


def test_triplets_below_the_threshold_weigh_less_without_a_jump_and_never_nothing():
    gap = torch.linspace(-2, 2, 2001, dtype=torch.float64, requires_grad=True)
    weights = triplet_weights(gap, torch.zeros(2001), 0.5)
    phi = confidence(gap, torch.zeros(2001), margin_at(0.5)).tolist()
    assert weights.tolist() == pytest.approx([1 if p >= THRESHOLD else p / THRESHOLD for p in phi])
    assert float(weights.min()) > 0 and float(weights.max()) == 1
    assert float(weights.diff().max()) < 0.01
    assert not weights.requires_grad
