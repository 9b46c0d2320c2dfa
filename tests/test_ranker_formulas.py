"""Every ranker module computes its paper's formula: restated in loops, in float64, values and gradients."""

import math
from dataclasses import fields

import pytest
import torch
from torch.nn.functional import silu

from ranker.model import run
from ranker.modules.attention import TargetAttention
from ranker.modules.codes import Codes
from ranker.modules.cross import Cross
from ranker.modules.cube import Cube
from ranker.modules.din import Din, PairWeights
from ranker.modules.hstu import Hstu
from ranker.modules.logistic import Logistic
from ranker.modules.make import Make
from ranker.modules.module import Features, Widths
from ranker.modules.muse import Muse
from ranker.modules.nearest import nearest
from ranker.modules.pairs import Pairs
from ranker.modules.prelu import Prelu
from ranker.modules.sata import SaTa
from ranker.modules.sim import Sim
from ranker.modules.simtier import SimTier, tiers
from ranker.modules.twin import Twin
from ranker.modules.vector import Vector

D, V, HISTORY = 4, 6, 8
WIDTHS = Widths(
    ids=D, item=3 * D, user=2 * D, content=V, history=HISTORY, candidate_numbers=3, request_numbers=2
)
LENGTHS, COUNTS = (7, 3, 0), (3, 2, 2)  # behaviours and candidates of three requests
K = 4  # most behaviours that were found for a candidate


def drawn_features(seed=0):
    """Three requests as the ranker pads them; some vectors are unknown."""
    draw = torch.Generator().manual_seed(seed)
    requests, slots, memory = len(COUNTS), max(COUNTS), max(LENGTHS)
    candidates = torch.arange(slots) < torch.tensor(COUNTS)[:, None]
    behaviours = torch.arange(memory) >= memory - torch.tensor(LENGTHS)[:, None]
    known = {
        "target_known_RN": candidates & (torch.rand(requests, slots, generator=draw) < 0.8),
        "history_known_RL": behaviours & (torch.rand(requests, memory, generator=draw) < 0.8),
        "query_known_R": torch.tensor([True, False, True]),
    }
    found = (torch.rand(requests, slots, K, generator=draw) < 0.6) & candidates[..., None]
    found &= behaviours.any(1)[:, None, None]
    masks = known | {"candidate_mask_RN": candidates, "history_mask_RL": behaviours, "found_mask_RNK": found}
    masks["found_times_RNK"] = torch.randint(1, 4, found.shape, generator=draw) * found
    masks["found_count_RN"] = masks["found_times_RNK"].sum(-1)
    size = {
        "R": requests, "N": slots, "L": memory, "K": K, "D": D, "V": V, "I": 3 * D, "U": 2 * D, "F": 3, "G": 2
    }  # fmt: skip
    filled = {"RN": candidates, "RL": behaviours, "RNK": found}
    out = dict(masks)
    for field in fields(Features):
        name, letters = field.name, field.name.rsplit("_", 1)[1]
        if name in out:
            continue
        if name == "found_cosine_RNK":
            out[name] = (2 * torch.rand(requests, slots, K, generator=draw, dtype=torch.float64) - 1) * found
            continue
        values = torch.randn([size[letter] for letter in letters], generator=draw, dtype=torch.float64)
        if "content" in name:
            values = torch.nn.functional.normalize(values, dim=-1)
        where = known.get(f"{name.split('_')[0]}_known_{letters[:-1]}") if "content" in name else None
        where = filled.get(letters[:-1]) if where is None else where
        out[name] = (values if where is None else values * where[..., None]).requires_grad_()
    return Features(**out)


class One:
    """One candidate and its request: rows instead of padded tensors, behaviours as a list."""

    def __init__(self, features, r, n):
        self.target, self.item, self.user = (
            features.target_RND[r, n],
            features.item_RNI[r, n],
            features.user_RU[r],
        )
        self.numbers, self.asked = features.candidate_numbers_RNF[r, n], features.request_numbers_RG[r]
        self.vector, self.known = features.target_content_RNV[r, n], bool(features.target_known_RN[r, n])
        self.query = features.query_content_RV[r]
        places = features.history_mask_RL[r].nonzero()[:, 0].tolist()
        self.past = [
            Behaviour(
                features.behaved_RLD[r, b], features.history_RLD[r, b], features.history_content_RLV[r, b],
                bool(features.history_known_RL[r, b]),
            )
            for b in places
        ]  # fmt: skip
        self.seen = [b for b in self.past if b.known]
        there = features.found_mask_RNK[r, n].nonzero()[:, 0].tolist()
        self.found = [(features.found_RNKD[r, n, k], features.found_cosine_RNK[r, n, k]) for k in there]
        self.times = [int(features.found_times_RNK[r, n, k]) for k in there]
        self.matched = int(features.found_count_RN[r, n])


class Behaviour:
    def __init__(self, item, whole, vector, known):
        self.item, self.whole, self.vector, self.known = item, whole, vector, known


def zeros(width):
    return torch.zeros(width, dtype=torch.float64)


def mean(rows, width):
    return sum(rows) / len(rows) if rows else zeros(width)


def softmax(scores):
    whole = sum(math.e**s for s in scores)
    return [math.e**s / whole for s in scores]


def weighted(weights, rows, width):
    return sum((w * row for w, row in zip(weights, rows, strict=True)), zeros(width))


def most_alike(scores, count):
    """Places of the largest scores, ties apart."""
    return set(sorted(range(len(scores)), key=lambda place: -float(scores[place]))[:count])


def interest_and_product(interest, target):
    return torch.cat([interest, interest * target])


def logistic(module, one):
    request = torch.cat([one.user, one.asked])
    own = torch.cat([one.item, one.numbers])
    return (module.candidate.weight[0] @ own + module.candidate.bias[0] + module.request.weight[0] @ request)[
        None
    ]


def pairs(module, one):
    past = mean([b.whole for b in one.past], D)
    every = [*one.item.split(D), *one.user.split(D), past]
    return sum(every[i] @ every[j] for i in range(len(every)) for j in range(i))[None]


def cross(module, one):
    past = mean([b.whole for b in one.past], D)
    first = x = torch.cat([one.item, one.numbers, one.user, past, one.asked])
    for layer in module.layers:
        x = torch.stack([first[i] * (layer.weight[i] @ x + layer.bias[i]) + x[i] for i in range(len(x))])
    return x


def pair_weight(weights: PairWeights, q, k):
    """The perceptron on [q, k, q - k, q * k] with the whole first layer."""
    first = torch.cat(
        [part.weight for part in (weights.query, weights.key, weights.difference, weights.product)], 1
    )
    return weights.rest(first @ torch.cat([q, k, q - k, q * k]) + weights.query.bias)[0]


def test_prelu_is_pytorchs_with_its_gradients():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    weigh = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    found = []
    for kind in (Prelu, torch.nn.PReLU):
        one, given = kind(init=0.3).double(), x.clone().requires_grad_()
        (one(given) * weigh).sum().backward()
        found.append((one(x), given.grad, one.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def din(module, one):
    weights = [pair_weight(module.weights, one.target, b.whole) for b in one.past]
    return interest_and_product(weighted(weights, [b.whole for b in one.past], D), one.target)


def vector(module, one):
    return one.vector


def simtier(module, one):
    return module.weight * histogram([one.vector @ b.vector for b in one.seen if one.known], module.count)


def histogram(cosines, count):
    edges = [-1 + 2 * i / count for i in range(count + 1)]
    inside = [sum(low < s <= high for s in cosines) for low, high in zip(edges, edges[1:], strict=False)]
    return torch.tensor([math.log(1 + n) for n in inside], dtype=torch.float64)


def sata(module, one):
    past = [(b.whole, one.vector @ b.vector) for b in one.past]
    return interest_and_product(semantic(module.attention, one, past), one.target)


def semantic(attention, one, behaviours):
    """Of behaviours and the cosine of each."""
    scores = []
    for whole, alike in behaviours:
        by_id = (attention.query.weight @ one.target) @ (attention.key.weight @ whole) / D**0.5
        scores.append(attention.mix[0] * by_id + attention.mix[1] * alike + attention.mix[2] * by_id * alike)
    return weighted(softmax(scores), [attention.value.weight @ whole for whole, _ in behaviours], D)


def muse(module, one):
    interest = interest_and_product(semantic(module.attention, one, one.found), one.target)
    cosines = [alike for (_, alike), times in zip(one.found, one.times, strict=True) for _ in range(times)]
    return torch.cat([interest, module.weight * histogram(cosines, module.count)])


def sim(module, one):
    """Multi-head attention, a head after the other."""
    found = []
    for head in torch.arange(D).chunk(module.heads):
        q, k, v = (layer.weight[head] for layer in (module.query, module.key, module.value))
        scores = [(q @ one.target) @ (k @ whole) / len(head) ** 0.5 for whole, _ in one.found]
        found.append(weighted(softmax(scores), [v @ whole for whole, _ in one.found], len(head)))
    interest, count = torch.cat(found), torch.tensor([math.log(1 + one.matched)], dtype=torch.float64)
    return torch.cat([interest_and_product(interest, one.target), count])


def twin(module, one):
    scores = [
        (module.query.weight @ one.target) @ (module.key.weight @ b.item) / D**0.5
        + module.cross.weight[0] @ (b.whole - b.item)
        for b in one.past
    ]
    kept = sorted(most_alike(scores, module.keep))
    rows = [module.value.weight @ one.past[place].item for place in kept]
    return interest_and_product(weighted(softmax([scores[p] for p in kept]), rows, D), one.target)


def make(module, one):
    weights = [pair_weight(module.weights, one.vector, b.vector) for b in one.seen]
    interest = weighted(weights, [b.vector for b in one.seen], V)
    hidden = module.hidden(torch.cat([interest, one.vector, interest * one.vector]))
    return torch.cat([interest, hidden, module.logit(hidden)])


def codes_of(module, content):
    left, found = content.detach(), []
    for centres in module.centres:
        distance = [float((left - centre).square().sum()) for centre in centres]
        found.append(distance.index(min(distance)))
        left = left - centres[found[-1]]
    return found


def embedded(module, content, known):
    if not known:
        return zeros(D)
    levels = [t.weight[c] for t, c in zip(module.of_level, codes_of(module, content), strict=True)]
    near = most_alike([content @ item for item in module.items], module.near)
    return sum(levels) + mean([module.of_item.weight[place] for place in near], D)


def codes(module, one):
    target = embedded(module, one.vector, one.known)
    past = [embedded(module, b.vector, True) for b in one.seen]
    q, k = module.attention.query.weight, module.attention.key.weight
    interest = weighted(softmax([(q @ target) @ (k @ row) / D**0.5 for row in past]), past, D)
    first = codes_of(module, one.vector)[0]
    same = sum(codes_of(module, b.vector)[0] == first for b in one.seen) if one.known else 0
    share = torch.tensor([same / max(len(one.seen), 1)], dtype=torch.float64)
    return torch.cat([target, interest, target * interest, share])


def norm(layer, row):
    spread = ((row - row.mean()) ** 2).mean()
    return (row - row.mean()) / (spread + layer.eps) ** 0.5 * layer.weight + layer.bias


def hstu(module, one):
    rows = [b.whole for b in one.past]
    for unit in module.units:
        parts = [silu(unit.inside.weight @ norm(unit.before, x) + unit.inside.bias).split(D) for x in rows]
        after = []
        for i, x in enumerate(rows):
            read = zeros(D)
            for j in range(i + 1):
                score = silu(parts[i][2] @ parts[j][3] + unit.distance[i - j]) / HISTORY
                read = read + score * parts[j][1]
            after.append(x + unit.outside(norm(unit.between, read) * parts[i][0]))
        rows = after
    scores = [silu(module.query(one.target) @ module.key(x)) / HISTORY for x in rows]
    interest = norm(module.norm, weighted(scores, [module.value(x) for x in rows], D))
    return interest_and_product(interest, one.target)


def cube(module, one):
    """Figure 5 of MOON, branch by branch; its id branches are the modules Ids and Interest."""
    alike = [one.vector @ b.vector if b.known else zeros(1)[0] for b in one.past]
    temperature = module.extractor.log_temperature.exp()
    weights = softmax([s / temperature for s, b in zip(alike, one.past, strict=True) if b.known])
    fusion = weighted(weights, [b.whole for b in one.seen], D)
    content = weighted(weights, [b.vector for b in one.seen], V)
    seen = [s for s, b in zip(alike, one.past, strict=True) if b.known]
    summary = (
        [weighted(weights, seen, 1).sum(), sum(seen) / len(seen), max(seen)] if seen else [zeros(1)[0]] * 3
    )
    vector = torch.stack([zeros(1)[0]] * (HISTORY - len(alike)) + alike)
    liked, item = module.content_mix(content), module.content_mix(one.vector)
    known = torch.tensor([float(one.known)], dtype=torch.float64)
    return torch.cat(
        [vector, torch.stack(summary), fusion, fusion * one.target, liked, item, liked * item,
         (one.vector @ one.query)[None], known]
    )  # fmt: skip


FORMULAS = [
    (Logistic, logistic, {}),
    (Pairs, pairs, {}),
    (Cross, cross, {"layers": 3}),
    (Din, din, {"hidden": 8}),
    (Sim, sim, {}),
    (Twin, twin, {"keep": 3}),
    (Hstu, hstu, {}),
    (Vector, vector, {}),
    (SimTier, simtier, {"count": 7}),
    (SaTa, sata, {}),
    (Muse, muse, {"count": 7}),
    (Make, make, {"hidden": 8}),
    (Codes, codes, {"levels": 2, "centres": 5, "sample": 9, "near": 3}),
    (Cube, cube, {}),
]


@pytest.mark.parametrize("kind,plain,options", FORMULAS, ids=lambda one: getattr(one, "__name__", ""))
def test_a_module_computes_its_formula(kind, plain, options):
    torch.manual_seed(1)
    module = kind(WIDTHS, **options).double()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.add_(0.3 * torch.randn_like(weight) if name != "items" else 0)
    features = drawn_features()
    places = features.candidate_mask_RN.nonzero().tolist()
    fast = run(module, features).candidate[features.candidate_mask_RN]
    slow = torch.stack([plain(module, One(features, r, n)) for r, n in places])
    assert fast.shape == slow.shape == (sum(COUNTS), module.per_candidate)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    learn = [one for one in module.parameters() if one.requires_grad]
    learn += [
        getattr(features, n) for n in module.reads() if n.endswith(("D", "I", "U"))
    ]  # embeddings of ids
    if learn:  # a module of frozen vectors alone has nothing that learns
        total = ((fast * weight).sum(), (slow * weight).sum())
        gradients = (torch.autograd.grad(one, learn, materialize_grads=True) for one in total)
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


def test_the_request_side_of_vectors_is_their_mean_and_the_query():
    features = drawn_features()
    said = run(Vector(WIDTHS), features).request
    for r in range(len(COUNTS)):
        one = One(features, r, 0)
        expected = torch.cat([mean([b.vector for b in one.seen], V), one.query])
        torch.testing.assert_close(said[r], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_item_that_is_in_the_history_is_in_the_highest_tier_whatever_rounding_does(dtype):
    draw = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(500, 64, generator=draw), dim=-1)
    if dtype == torch.bfloat16:
        vectors = vectors.to(dtype).float()
    module = SimTier(Widths(4, 4, 4, 64, 1, 0, 0))
    with torch.no_grad():
        module.weight.fill_(1)
        known = torch.ones(500, 1, dtype=torch.bool)
        said = module(vectors[:, None], vectors[:, None], known, known).candidate[:, 0]
        opposite = module(vectors[:, None], -vectors[:, None], known, known).candidate[:, 0]
    assert (said[:, -1] == math.log(2)).all() and (said[:, :-1] == 0).all()
    assert (opposite[:, 0] == math.log(2)).all() and (opposite[:, 1:] == 0).all()


def test_rounding_does_not_lift_a_cosine_over_the_edge_of_its_tier():
    """Orthogonal vectors, and all that are as alike as an edge says, are counted below it."""
    edges = torch.linspace(-1, 1, 21, dtype=torch.float64)
    for noise in (-1e-7, 0.0, 1e-7):
        cosine = (edges[1:] + noise).float()[None, None]
        for place in range(20):
            one = torch.zeros(1, 1, 20, dtype=torch.bool)
            one[..., place] = True
            assert tiers(cosine, one, 20).nonzero().tolist() == [[0, 0, place]], (noise, place)


def plainly_nearest(query, key, allowed, keep):
    """Places by score, largest first; of equals the latest."""
    places = [place for place in range(len(key)) if allowed[place]]
    return sorted(places, key=lambda place: (-round(float(query @ key[place]), 3), -place))[:keep]


@pytest.mark.parametrize("block", [1, 40, 1 << 19])
def test_a_search_finds_what_a_sort_finds_in_blocks_of_any_size(block, monkeypatch):
    """Half of the behaviours are on the same three items, so equals stand at every border."""
    monkeypatch.setattr("ranker.modules.nearest.BLOCK", block)
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 5, 6, generator=draw), torch.randn(3, 20, 6, generator=draw)
    key[:, ::2] = key[:, torch.randint(3, (10,), generator=draw)]
    allowed = torch.rand(3, 20, generator=draw) < torch.tensor([[0.9], [0.15], [0.0]])
    for keep in (1, 4, 19, 20, 30):
        found = nearest(query, key, allowed, keep)
        for r, n in [(r, n) for r in range(3) for n in range(5)]:
            real = found.real_RNK[r, n]
            expected = plainly_nearest(query[r, n], key[r], allowed[r], keep)
            assert sorted(found.place_RNK[r, n, real].tolist()) == sorted(expected), (keep, r, n)
            scores = (key[r] @ query[r, n])[found.place_RNK[r, n, real]]
            torch.testing.assert_close(found.score_RNK[r, n, real], scores)


def test_codes_learn_the_clusters_there_are():
    """Vectors around three centres, each of two halves: level 1 finds the centres, level 2 the halves."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.eye(6, dtype=torch.float32)[:3].repeat_interleave(40, 0)
    half = torch.eye(6)[3] * torch.tensor([0.2, -0.2]).repeat(60)[:, None]
    vectors = centre + half + 0.001 * torch.randn(120, 6, generator=draw)
    module = Codes(Widths(4, 4, 4, 6, 8, 0, 0), levels=2, centres=3, sample=16, near=4)
    module.learn(vectors, seed=0)
    first = torch.tensor([codes_of(module, row)[0] for row in vectors])
    assert [len(set(first[start : start + 40].tolist())) for start in (0, 40, 80)] == [1, 1, 1]
    assert len(set(first.tolist())) == 3
    second = torch.tensor([codes_of(module, row)[1] for row in vectors])
    assert set(second[::2].tolist()).isdisjoint(second[1::2].tolist())
    assert all(any(torch.equal(item, row) for row in vectors) for item in module.items)


def test_attention_says_what_the_paper_says_of_no_history():
    assert not TargetAttention(D)(
        torch.ones(1, 2, D), torch.ones(1, 3, D), torch.zeros(1, 3, dtype=torch.bool)
    ).any()
