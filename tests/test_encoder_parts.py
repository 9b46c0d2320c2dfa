"""Experts, dual alignment, fusion and FIRE against plain restatements of their formulas."""

import copy
import math

import pytest
import torch
from torch import nn

from encoder.parts import experts as experts_module
from encoder.parts.experts import GuidedExperts, ModalityExperts, load_balance, per_sequence
from encoder.parts.fire import Fire
from encoder.parts.fusion import ModalityFusion
from encoder.parts.modality import OBJECTIVES, DualAlignment

H = 6


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class FeedForward(nn.Module):
    """The gated block of the Qwen family."""

    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(H, 10)
        self.up_proj = nn.Linear(H, 10, bias=False)
        self.down_proj = nn.Linear(10, H, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def value(scalar):
    return scalar.item()


def gradients(module, inputs, scalar):
    module.zero_grad()
    inputs = inputs.detach().requires_grad_()
    scalar(inputs).backward()
    zero = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
    return [inputs.grad, *zero]


def assert_equal_gradients(module, inputs, fast, slow):
    for one, other in zip(gradients(module, inputs, fast), gradients(module, inputs, slow), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# --- experts ---------------------------------------------------------------------------------------------


def slow_modality(mixture, hidden_TH):
    """Every expert on every token, one token at a time."""
    rows, weights = [], []
    for h in hidden_TH:
        gate = torch.exp(mixture.router.weight @ h)
        gate = gate / gate.sum()
        chosen = sorted(range(len(gate)), key=lambda z: -gate[z].item())[: mixture.top]
        total = sum(gate[z] for z in chosen)
        weight = [gate[z] / total if z in chosen else 0 * total for z in range(len(gate))]
        rows.append(sum(w * f(h) for w, f in zip(weight, mixture.experts, strict=True)))
        weights.append(torch.stack(weight))
    return torch.stack(rows), torch.stack(weights)


@pytest.mark.parametrize(("experts", "top"), [(4, 2), (5, 3), (2, 2), (40, 2)])
def test_grouped_experts_equal_every_expert_on_every_token(experts, top):
    """With 40 experts and 11 tokens most experts are idle."""
    mixture, hidden = ModalityExperts(FeedForward(), H, experts, top).double(), torch.randn(11, H).double()
    torch.nn.init.normal_(mixture.router.weight)
    routed, (slow, weights) = mixture(hidden), slow_modality(mixture, hidden)
    torch.testing.assert_close(routed.hidden_TH, slow)
    torch.testing.assert_close(routed.weight_TZ, weights)
    torch.testing.assert_close(routed.probability_TZ, (hidden @ mixture.router.weight.T).softmax(1))
    target, used = torch.randn_like(hidden), torch.randn_like(weights)

    def loss(hidden, weight):
        return (hidden - target).square().sum() + (weight * used).sum()

    assert_equal_gradients(
        mixture,
        hidden,
        lambda x: loss((routed := mixture(x)).hidden_TH, routed.weight_TZ),
        lambda x: loss(*slow_modality(mixture, x)),
    )


def slow_guided(mixture, hidden_TH, kinds):
    rows, chosen = [], []
    for h, kind in zip(hidden_TH, kinds, strict=True):
        gate = torch.exp(mixture.router.weight @ h)
        gate = gate / gate.sum()
        best = max(range(len(gate)), key=lambda z: gate[z].item())
        expert = {1: len(gate), 2: len(gate) + 1}.get(kind, best)
        scale = gate[best] / gate[best].item() if kind == 0 else 1.0
        rows.append(mixture.experts[expert](h) * scale)
        chosen.append(expert)
    return torch.stack(rows), chosen


@pytest.mark.parametrize("experts", [3, 4, 6])
def test_guided_experts_equal_one_token_at_a_time(experts):
    mixture, hidden = GuidedExperts(FeedForward(), H, experts).double(), torch.randn(12, H).double()
    kinds = [0, 1, 2, 0, 0, 2, 1, 0, 0, 1, 0, 0]
    routed, (slow, chosen) = mixture(hidden, torch.tensor(kinds)), slow_guided(mixture, hidden, kinds)
    torch.testing.assert_close(routed.hidden_TH, slow)
    assert routed.weight_TZ.tolist() == nn.functional.one_hot(torch.tensor(chosen), experts).tolist()
    router = (hidden @ mixture.router.weight.T).softmax(1)
    for t, kind in enumerate(kinds):
        wanted = [*router[t].tolist(), 0, 0] if kind == 0 else [0] * experts
        assert routed.probability_TZ[t].tolist() == pytest.approx(wanted)
    target = torch.randn_like(hidden)
    assert_equal_gradients(
        mixture,
        hidden,
        lambda x: (mixture(x, torch.tensor(kinds)).hidden_TH - target).square().sum(),
        lambda x: (slow_guided(mixture, x, kinds)[0] - target).square().sum(),
    )
    if experts > 3:
        assert mixture.router.weight.grad.abs().max() > 1e-4  # the factor of 1 does teach the router
    without = mixture(hidden)
    torch.testing.assert_close(without.hidden_TH, mixture(hidden, torch.zeros(12, dtype=int)).hidden_TH)
    assert not without.weight_TZ[:, -2:].any()


@pytest.mark.parametrize("kind", [ModalityExperts, GuidedExperts])
def test_an_upcycled_mixture_starts_as_the_block_it_replaces(kind, monkeypatch):
    block, hidden = FeedForward(), torch.randn(50, H)
    kinds = torch.randint(0, 3, (50,))
    wanted = block(hidden)
    start = kind(block, H)
    off = (start(hidden, kinds).hidden_TH - wanted).norm() / wanted.norm()
    assert 1e-4 < off < 0.05
    first, second = start.experts[0].up_proj.weight, start.experts[1].up_proj.weight
    assert not torch.equal(first, second) and first is not block.up_proj.weight
    assert torch.equal(start.experts[0].gate_proj.bias, block.gate_proj.bias)
    monkeypatch.setattr(experts_module, "NOISE", 0.0)
    torch.testing.assert_close(kind(block, H)(hidden, kinds).hidden_TH, wanted)


def test_equal_seeds_give_equal_experts():
    block, states = FeedForward(), []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(ModalityExperts(block, H).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", [ModalityExperts, GuidedExperts])
def test_the_router_finds_the_planted_expert(kind):
    """Two kinds of token need two different blocks; only the router learns."""
    left, right = torch.randn(2, H, H)
    mixture = kind(nn.Linear(H, H, bias=False), H, 2 if kind is ModalityExperts else 4)
    with torch.no_grad():
        for expert, matrix in zip(mixture.experts, (left, right), strict=False):
            expert.weight.copy_(matrix)
    centre = 2 * torch.randn(H)
    side = torch.arange(200) % 2
    hidden = torch.randn(200, H) + torch.where(side[:, None] == 0, centre, -centre)
    wanted = torch.where(side[:, None] == 0, hidden @ left.T, hidden @ right.T)
    optimizer = torch.optim.Adam([mixture.router.weight], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (mixture(hidden).hidden_TH - wanted).square().mean().backward()
        optimizer.step()
    assert (mixture(hidden).weight_TZ.argmax(1) == side).double().mean() > 0.98


def test_load_balance_is_the_switch_loss():
    weight = torch.tensor([[0.7, 0.3, 0, 0], [0, 0.6, 0.4, 0], [0.5, 0, 0, 0.5]])
    probability = torch.tensor([[0.6, 0.3, 0.05, 0.05], [0.1, 0.5, 0.3, 0.1], [0.4, 0.1, 0.1, 0.4]])
    total = 0.0
    for z in range(4):
        chosen = sum(1 for t in range(3) if weight[t, z] > 0) / 6
        total += 4 * chosen * sum(value(probability[t, z]) for t in range(3)) / 3
    assert value(load_balance(weight, probability)) == pytest.approx(total)
    uniform = torch.full((8, 4), 0.25)
    assert value(load_balance(torch.eye(4).repeat(2, 1), uniform)) == pytest.approx(1)
    one = torch.tensor([[1.0, 0, 0, 0]]).repeat(5, 1)
    collapsed = (100 * one).double().softmax(1)
    assert value(load_balance(one, collapsed)) == pytest.approx(4)


def test_load_balance_counts_only_what_the_router_decided():
    mixture, hidden = GuidedExperts(FeedForward(), H, 5), torch.randn(30, H)
    kinds = torch.arange(30) % 3
    some, own = mixture(hidden, kinds), mixture(hidden[kinds == 0])
    guided = load_balance(some.weight_TZ, some.probability_TZ)
    torch.testing.assert_close(
        guided, load_balance(own.weight_TZ[:, :3], own.probability_TZ[:, :3])
    )  # the guided experts do not exist for it, and neither do their tokens
    guided.backward()
    assert mixture.router.weight.grad.abs().sum() > 0
    nothing = mixture(hidden, torch.ones(30, dtype=int))
    assert value(load_balance(nothing.weight_TZ, nothing.probability_TZ)) == 0


def test_gate_of_a_sequence_is_the_mean_over_its_tokens():
    weight, sequence = torch.rand(9, 4), [2, 0, 0, 1, 2, 2, 1, 0, 2]
    gate = per_sequence(weight, torch.tensor(sequence), 3)
    for b in range(3):
        rows = [weight[t] for t in range(9) if sequence[t] == b]
        torch.testing.assert_close(gate[b], sum(rows) / len(rows))


def test_a_bfloat16_mixture_keeps_its_router_in_float32():
    """Shares rounded to bfloat16 sum to 1 within 0.4 % only."""
    mixture, hidden = ModalityExperts(FeedForward(), H).bfloat16(), torch.randn(200, H).bfloat16()
    routed = mixture(hidden)
    assert routed.hidden_TH.dtype == torch.bfloat16
    assert (routed.weight_TZ.sum(1) - 1).abs().max() < 1e-6


def test_experts_refuse_counts_that_cannot_learn():
    for top in (1, 5):
        with pytest.raises(ValueError, match=f"top: expected 2 to 4, the number of experts, found {top}"):
            ModalityExperts(FeedForward(), H, experts=4, top=top)
    with pytest.raises(ValueError, match="experts: expected category, attribute and .* found 2"):
        GuidedExperts(FeedForward(), H, experts=2)


# --- dual alignment --------------------------------------------------------------------------------------


def test_objective_weights_and_sparsity_equal_their_formulas():
    alignment = DualAlignment(experts=4).double()
    gates = [torch.rand(b, 4).double().softmax(1) for b in (3, 1, 5, 2, 2)]
    gates[1] = gates[1][:0]  # no sequence asked with an image
    affinity = alignment.affinity_ZM.tolist()
    share = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in affinity]
    weight = alignment.objective_weights(gates)
    for m, gate in enumerate(gates):
        total = sum(share[z][m] * value(row[z]) for row in gate for z in range(4))
        assert value(weight[m]) == pytest.approx(total / len(gate) if len(gate) else 0.0)
    entropy = sum(-sum(p * math.log(p) for p in row) for row in share) / 4
    assert value(alignment.sparsity()) == pytest.approx(entropy)


def test_objective_weights_sum_to_one_on_shared_sequences_and_teach_gates_and_matrix():
    alignment = DualAlignment(experts=4)
    gate = torch.rand(6, 4).softmax(1).requires_grad_()
    weight = alignment.objective_weights([gate] * 5)
    assert value(weight.sum()) == pytest.approx(1)
    (weight * torch.arange(5.0)).sum().backward()
    assert gate.grad.abs().min() > 0 and alignment.affinity_ZM.grad.abs().min() > 0


def test_a_sparse_matrix_serves_one_objective_per_expert():
    alignment = DualAlignment(experts=2, objectives=("a", "b", "c"))
    with torch.no_grad():
        alignment.affinity_ZM.copy_(torch.tensor([[200.0, 0, 0], [0, 0, 200.0]]))
    assert value(alignment.sparsity()) == pytest.approx(0, abs=1e-6)
    gate = torch.tensor([[0.25, 0.75]])
    weight = alignment.objective_weights([gate] * 3)
    assert weight.tolist() == pytest.approx([0.25, 0, 0.75])
    seen = alignment.watch(weight)
    assert seen["c"] == pytest.approx(0.75) and seen["b"] == pytest.approx(0)
    assert seen["effective"] == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))


def test_watching_tells_equal_weights_from_collapsed_ones():
    alignment = DualAlignment(experts=4)
    equal = alignment.watch(torch.full((5,), 0.2))
    assert list(equal) == [*OBJECTIVES, "total", "effective"]
    assert equal["total"] == pytest.approx(1) and equal["effective"] == pytest.approx(5)
    assert alignment.watch(torch.tensor([0, 0, 0.3, 0, 0]))["effective"] == pytest.approx(1)
    assert alignment.watch(torch.zeros(5))["effective"] == 0


# --- fusion ----------------------------------------------------------------------------------------------


def slow_fusion(fusion, row, present):
    """One sequence, one head at a time; ``row`` holds the three pooled states."""
    width, heads = fusion.values[0].out_features, fusion.heads
    there = [s for s in range(3) if present[s]]
    if not there:
        return torch.zeros(width).double()
    fused = torch.zeros(width).double()
    for k in range(heads):
        score = {
            s: math.exp(value(fusion.gates[s].weight[k] @ row[s] + fusion.gates[s].bias[k])) for s in there
        }
        for d in range(k, width, heads):
            fused[d] = sum(
                score[s] / sum(score.values()) * (fusion.values[s].weight[d] @ row[s]) for s in there
            )
    result = fused / fused.norm()
    two = [s for s in there if s < 2]
    for s in two:
        unit = fusion.units[s].weight @ row[s]
        result = result + unit / unit.norm() / len(two)
    return result


PRESENCE = [[a, b, c] for a in (True, False) for b in (True, False) for c in (True, False)]


def fusion_with_gates():
    fusion = ModalityFusion(H, 8, heads=4).double()
    for parameter in fusion.gates.parameters():
        nn.init.normal_(parameter)
    return fusion


def test_fusion_equals_its_formula_for_every_set_of_sources():
    fusion, sources = fusion_with_gates(), torch.randn(3, 8, H).double()
    out = fusion(*sources, torch.tensor(PRESENCE))
    for b, present in enumerate(PRESENCE):
        torch.testing.assert_close(out[b], slow_fusion(fusion, sources[:, b], present))


@pytest.mark.parametrize("filler", [1e30, float("nan"), float("inf")])
def test_an_absent_source_has_no_influence_and_no_gradient(filler):
    fusion, sources, present = fusion_with_gates(), torch.randn(3, 8, H).double(), torch.tensor(PRESENCE)
    absent = ~present.T[:, :, None].expand_as(sources)
    filled = sources.masked_fill(absent, filler).requires_grad_()
    out = fusion(*filled, present)
    assert torch.equal(out, fusion(*sources, present))
    out.square().sum().backward()
    assert not filled.grad[absent].any()
    assert all(torch.isfinite(p.grad).all() for p in fusion.parameters())
    # Alone, an absent source's own weights learn nothing.
    fusion.zero_grad()
    fusion(*filled.detach(), present)[1].sum().backward()  # image and text, no chain
    assert not fusion.values[2].weight.grad.any() and not fusion.gates[2].bias.grad.any()
    assert fusion.values[0].weight.grad.any() and fusion.gates[0].bias.grad.any()


def test_every_head_starts_as_the_mean_of_the_present_sources():
    fusion, sources = ModalityFusion(H, 8, heads=2).double(), torch.randn(3, 2, H).double()
    out = fusion(*sources, torch.tensor([[True, False, True]] * 2))
    mean = (fusion.values[0](sources[0]) + fusion.values[2](sources[2])) / 2
    unit = nn.functional.normalize(fusion.units[0](sources[0]), dim=1)
    torch.testing.assert_close(out, nn.functional.normalize(mean, dim=1) + unit)


def test_fusion_refuses_a_width_its_heads_cannot_share():
    with pytest.raises(ValueError, match="width: expected a multiple of 4 heads, found 10"):
        ModalityFusion(H, 10, heads=4)


# --- FIRE ------------------------------------------------------------------------------------------------


def features_of(blocks, tokens=5, merge=2, width=3):
    return [torch.randn(tokens * merge**2, width).double() for _ in range(blocks)]


def moved(fire):
    for parameter in fire.parameters():
        nn.init.normal_(parameter)
    return fire


def plain_token(patches, v):
    """The normalised features of token v: its four consecutive patches end to end."""
    x = torch.cat([patches[4 * v + i] for i in range(4)])
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


def test_fire_equals_its_formulas():
    fire, features = moved(Fire(3, H, 2, vision_layers=12, layers=12)).double(), features_of(12)
    assert fire.taps == (2, 5, 8, 11) and fire.injected == {0: 2, 1: 5} and fire.carry_from == {10: 1, 11: 2}
    added = fire.embeddings(features)
    for v in range(5):
        tokens = [plain_token(features[tap], v) for tap in (2, 5, 8, 11)]
        gate = [math.exp(value(g.weight[0] @ x + g.bias)) for g, x in zip(fire.gates, tokens, strict=True)]
        parts = [
            w / sum(gate) * (p.weight @ x) for w, p, x in zip(gate, fire.projectors, tokens, strict=True)
        ]
        torch.testing.assert_close(added[v], sum(parts))
        for layer, tap in ((0, 2), (1, 5)):
            wanted = fire.injectors[layer].weight @ plain_token(features[tap], v)
            torch.testing.assert_close(fire.after(layer, features)[v], wanted)
    assert all(fire.after(layer, features) is None for layer in range(2, 12))
    early = torch.randn(9, H).double()
    for late in (10, 11):
        torch.testing.assert_close(fire.skip(late, early)[4], early[4] * fire.scales[str(late)])


@pytest.mark.parametrize(
    ("layers", "injected", "carried"),
    [
        (1, {}, {}),
        (2, {0: 0}, {1: -1}),
        (3, {0: 0, 1: 1}, {1: -1, 2: 0}),
        (4, {0: 0, 1: 1}, {2: 0, 3: 1}),
        (5, {0: 0, 1: 1}, {3: 1, 4: 2}),
        (12, {0: 0, 1: 1}, {10: 1, 11: 2}),
    ],
)
def test_fire_fits_shallow_models(layers, injected, carried):
    """Every residual skips a layer or is read by one; from 5 layers up it is the paper's figure."""
    fire = Fire(3, H, 2, vision_layers=2, layers=layers)
    assert fire.taps == (0, 1)
    assert fire.injected == injected and fire.carry_from == carried


def run(fire, features, layers):
    """A toy language model with FIRE in it: what the encoder does, every token an image token."""
    x = torch.linspace(-1, 1, 5 * H).view(5, H).double()
    x = x + fire.embeddings(features)
    outputs = {-1: x}
    for layer in range(layers):
        if layer in fire.carry_from:
            x = x + fire.skip(layer, outputs[fire.carry_from[layer]])
        x = x + torch.sin((layer + 2) * x)
        added = fire.after(layer, features)
        x = x if added is None else x + added
        outputs[layer] = x
    return x


@pytest.mark.parametrize("layers", [2, 12])
def test_fire_changes_nothing_at_first_and_learns_from_the_first_step(layers):
    fire, features = Fire(3, H, 2, vision_layers=2, layers=layers).double(), features_of(2)
    before = run(fire, features, layers)
    nothing = copy.deepcopy(fire)
    nothing.embeddings = lambda features: 0
    nothing.after = lambda layer, features: None
    nothing.carry_from = {}
    assert torch.equal(before, run(nothing, features, layers))
    optimizer = torch.optim.SGD(fire.parameters(), lr=1e-2)
    before.square().mean().backward()
    zeros = [*fire.projectors.parameters(), *fire.injectors.parameters(), *fire.scales.parameters()]
    assert all(not p.any() and p.grad.any() for p in zeros)
    optimizer.step()
    features = [f.requires_grad_() for f in features]
    optimizer.zero_grad()
    after = run(fire, features, layers)
    assert not torch.equal(after, before)
    after.square().mean().backward()
    assert all(p.grad.any() for p in fire.gates.parameters()) and all(f.grad.any() for f in features)
