"""Rewards and group-relative policy optimisation: plain restatements, properties, and a policy that learns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.losses.grpo import group_advantages, grpo_loss, kl_estimate
from encoder.losses.rewards import (
    RewardWeights,
    attribute_reward,
    field_rewards,
    format_reward,
    length_reward,
    retrieval_reward,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


# --- rewards ------------------------------------------------------------------------------------------------

fields = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xyz"), max_size=4)


@given(fields, fields)
def test_the_attribute_reward_is_the_share_of_true_fields_that_are_said(said, true):
    reward = attribute_reward(said, true)
    right = sum(1 for name in true if name in said and said[name] == true[name])
    assert reward == (right / len(true) if true else 0.0)
    assert attribute_reward(true, true) == float(bool(true))
    assert set(field_rewards(said, true)) == set(true)
    assert attribute_reward({**said, "invented": "x"}, true) == reward


@given(fields, st.permutations("abcd"))
def test_the_format_reward_asks_for_each_field_once_in_order(said, asked):
    assert format_reward(said, list(said)) == 1.0
    assert format_reward(said, asked) == float(tuple(said) == tuple(asked))


def test_what_is_no_chain_earns_neither_format_nor_attributes():
    assert format_reward(None, []) == format_reward(None, ["a"]) == 0.0
    assert attribute_reward(None, {"a": "x"}) == 0.0
    assert field_rewards(None, {"a": "x"}) == {"a": 0.0}


def test_the_length_reward_includes_both_bounds():
    assert [length_reward(n, 3, 5) for n in range(2, 7)] == [0.0, 1.0, 1.0, 1.0, 0.0]


def plain_reciprocal_rank(rollout, candidates, positive, masked):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
            sum(x * x for x in a) * sum(y * y for y in b)
        )

    own, rank = cosine(rollout, candidates[positive]), 1.0
    for place, candidate in enumerate(candidates):
        if place != positive and not masked[place]:
            score = cosine(rollout, candidate)
            rank += 1.0 if score > own else 0.5 if score == own else 0.0
    return 1 / rank


def test_the_retrieval_reward_is_the_reciprocal_rank_among_fair_competitors():
    torch.manual_seed(0)
    rollout = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    candidate = torch.randn(6, 5, dtype=torch.float64)
    positive, masked = torch.arange(12) % 6, torch.rand(12, 6) < 0.3
    masked[torch.arange(12), positive] = True  # the positive is never masked away
    reward = retrieval_reward(rollout, candidate, positive, masked)
    wanted = [
        plain_reciprocal_rank(*row)
        for row in zip(
            rollout.tolist(), [candidate.tolist()] * 12, positive.tolist(), masked.tolist(), strict=True
        )
    ]
    assert reward.tolist() == pytest.approx(wanted, abs=1e-6)
    assert len(set(wanted)) > 3 and not reward.requires_grad
    assert torch.equal(reward, retrieval_reward(3 * rollout, 2 * candidate, positive, masked))
    unmasked = retrieval_reward(rollout, candidate, positive)
    assert (unmasked <= reward + 1e-12).all() and (unmasked < reward).any()


def test_a_collapsed_space_earns_the_reward_of_chance():
    same = torch.ones(4, 3)
    assert retrieval_reward(same, same, torch.arange(4)).tolist() == pytest.approx([1 / 2.5] * 4)


def test_the_total_is_the_weighted_sum():
    parts = {name: torch.tensor([float(n + 1), 0.0]) for n, name in enumerate(RewardWeights.__annotations__)}
    total = RewardWeights(format=1, length=10, retrieval=100, attributes=1000).total(parts)
    assert total.tolist() == [4321.0, 0.0]


# --- the objective ------------------------------------------------------------------------------------------


def plain_advantages(rewards):
    out = []
    for group in rewards:
        mean = sum(group) / len(group)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / len(group))
        out.append([(r - mean) / deviation if deviation > 1e-6 else 0.0 for r in group])
    return out


def plain_grpo(policy, sampled, reference, advantage, mask, clip, weight):
    total = 0.0
    for i in range(len(policy)):
        own, count = 0.0, sum(mask[i])
        for t in range(len(policy[i])):
            if mask[i][t]:
                ratio = math.exp(policy[i][t] - sampled[i][t])
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                a = advantage[i][t] if isinstance(advantage[i], list) else advantage[i]
                r = math.exp(reference[i][t] - policy[i][t])
                own += min(ratio * a, clipped * a) - weight * (r - math.log(r) - 1)
        total += own / count if count else 0.0
    return -total / len(policy)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_the_loss_equals_its_formula_in_a_plain_loop(seed, by_token):
    torch.manual_seed(seed)
    policy, sampled, reference = (-torch.rand(6, 5, dtype=torch.float64) * 2 for _ in range(3))
    mask = torch.rand(6, 5) < 0.7
    shape = (6, 5) if by_token else (6,)
    advantage = torch.randn(*shape, dtype=torch.float64)
    got = grpo_loss(policy, sampled, reference, advantage, mask, clip=0.2, kl_weight=0.3)
    plain = [x.tolist() for x in (policy, sampled, reference, advantage, mask)]
    assert float(got) == pytest.approx(plain_grpo(*plain, 0.2, 0.3), abs=1e-12)


def test_padding_changes_neither_loss_nor_gradient_whatever_it_holds():
    torch.manual_seed(1)
    policy = (-torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    sampled, reference = -torch.rand(4, 3, dtype=torch.float64), -torch.rand(4, 3, dtype=torch.float64)
    advantage, mask = torch.randn(4, dtype=torch.float64), torch.ones(4, 3, dtype=torch.bool)
    loss = grpo_loss(policy, sampled, reference, advantage, mask)
    (gradient,) = torch.autograd.grad(loss, policy)
    junk = torch.tensor([[1e4, -1e4]] * 4, dtype=torch.float64)
    padded = torch.cat([policy.detach(), junk], 1).requires_grad_()
    wide = grpo_loss(
        padded, torch.cat([sampled, -junk], 1), torch.cat([reference, -junk], 1), advantage,
        torch.cat([mask, torch.zeros(4, 2, dtype=torch.bool)], 1),
    )  # fmt: skip
    assert float(wide.detach()) == pytest.approx(float(loss.detach()), abs=1e-12)
    wide.backward()
    assert torch.allclose(padded.grad[:, :3], gradient) and not padded.grad[:, 3:].any()


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_advantages_are_those_of_the_group(rewards):
    got = group_advantages(torch.tensor(rewards, dtype=torch.float64))
    for row, wanted in zip(got.tolist(), plain_advantages(rewards), strict=True):
        assert row == pytest.approx(wanted, abs=1e-9)
    shifted = group_advantages(3 * torch.tensor(rewards, dtype=torch.float64) + 7)
    assert torch.allclose(shifted, got)


def test_equal_rewards_teach_nothing_even_when_rounding_tells_them_apart():
    rewards = torch.tensor([[0.1 + 0.2, 0.3, 0.3, 0.3], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert rewards[0, 0] != rewards[0, 1]
    advantage = group_advantages(rewards)
    assert not advantage[0].any() and advantage[1].abs().min() > 0.5


def test_a_group_without_variance_contributes_the_gradient_of_the_divergence_only():
    torch.manual_seed(2)
    policy = (-torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    reference, mask = -torch.rand(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.bool)
    advantage = group_advantages(torch.full((1, 4), 0.7, dtype=torch.float64)).flatten()
    (alone,) = torch.autograd.grad(
        grpo_loss(policy, policy.detach(), reference, advantage, mask, kl_weight=0), policy
    )
    assert not alone.any()
    loss = grpo_loss(policy, policy.detach(), reference, advantage, mask, kl_weight=0.5)
    (gradient,) = torch.autograd.grad(loss, policy)
    (wanted,) = torch.autograd.grad(0.5 * kl_estimate(policy, reference).mean(1).mean(), policy)
    assert torch.allclose(gradient, wanted) and wanted.abs().max() > 0


def test_the_clip_stops_pushing_a_token_that_has_moved_enough_but_lets_it_come_back():
    sampled = torch.zeros(1, 2, dtype=torch.float64) - 1
    for moved, advantage, pushed in (
        (0.5, 1.0, False),
        (0.5, -1.0, True),
        (-0.5, -1.0, False),
        (-0.5, 1.0, True),
    ):
        policy = (sampled + moved).requires_grad_()
        mask = torch.ones(1, 2, dtype=torch.bool)
        grpo_loss(policy, sampled, sampled, torch.tensor([advantage]), mask, kl_weight=0).backward()
        assert bool(policy.grad.any()) is pushed


def test_the_divergence_is_never_negative_and_right_on_average():
    torch.manual_seed(3)
    policy, reference = (torch.randn(6, dtype=torch.float64).log_softmax(0) for _ in range(2))
    estimate = kl_estimate(policy, reference)
    assert (estimate >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    assert float((policy.exp() * estimate).sum()) == pytest.approx(float(exact), abs=1e-12)


def bandit(kl_weight, steps=150, reward_of=lambda token: float(token == 2)):
    """A policy over 4 tokens, 8 rollouts a step, from uniform; returns its final probabilities."""
    torch.manual_seed(4)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        tokens = torch.multinomial(logits.softmax(0).detach(), 8, replacement=True)
        rewards = torch.tensor([[reward_of(int(token)) for token in tokens]])
        chance = logits.log_softmax(0)[tokens][:, None]
        start = torch.full((8, 1), math.log(0.25), dtype=torch.float64)
        loss = grpo_loss(
            chance,
            chance.detach(),
            start,
            group_advantages(rewards).flatten(),
            chance > -99,
            kl_weight=kl_weight,
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 0.2 * gradient).detach().requires_grad_()
    return logits.softmax(0).tolist()


def test_a_policy_learns_the_one_rewarded_token_of_four():
    assert bandit(0.0)[2] > 0.95


def test_the_divergence_keeps_a_policy_near_its_reference():
    free, held, none = bandit(0.0)[2], bandit(0.5)[2], bandit(0.0, reward_of=lambda token: 0.3)
    assert 0.25 < held < free - 0.1
    assert none == pytest.approx([0.25] * 4)
