"""Two towers find what a user truly likes, popular or not, known or cold."""

import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import TOWERS, WIDTH, catalogue, make_frame, make_vectors, unit
from ranker_world import Requests as AnyRequests
from safetensors.numpy import load_file

from dataset.contracts import DataError
from ranker.fit import Plan
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, select_requests
from ranker.inputs.hashing import hash_integers
from ranker.two_tower import negatives
from ranker.two_tower import train as train_module
from ranker.two_tower.model import sampled_softmax
from ranker.two_tower.train import TowerConfig, TwoTower, train_two_tower
from run.artifacts import MADE_BY, ArtifactError, open_artifact, write_artifact
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
NANO = size("nano")
GIVEN = train_module.GIVEN
ITEMS, COLD = 200, 40
VECTORS = make_vectors(ITEMS + COLD)
CATALOGUE = pa.table(catalogue(VECTORS.ids))
TASTES = unit(np.random.default_rng(99).normal(size=(60, WIDTH)))
CHANCE = np.exp(10 * TASTES @ VECTORS.matrix.T)


def Requests(frame):
    return AnyRequests(frame, TOWERS)


def purchases(count, seed, pool):
    """Each request: a history of 20 known items and the next one, drawn by taste from ``pool``."""
    draw = np.random.default_rng(seed)
    user = draw.integers(0, len(TASTES), count)
    old = CHANCE[:, :ITEMS] / CHANCE[:, :ITEMS].sum(1, keepdims=True)
    share = CHANCE[:, pool] / CHANCE[:, pool].sum(1, keepdims=True)
    histories = [VECTORS.ids[draw.choice(ITEMS, 20, p=old[u])].tolist() for u in user]
    bought = [pool[draw.choice(len(pool), p=share[u])] for u in user]
    candidates = [[int(VECTORS.ids[b])] for b in bought]
    return make_frame(user.tolist(), histories, candidates, [[1.0]] * count), user, np.array(bought)


def recall(score, bought, k=10):
    """Share of requests whose item is among the k best."""
    best = np.argsort(-score, axis=1)[:, :k]
    return float((best == bought[:, None]).any(1).mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    frame, _, _ = purchases(2000, 0, np.arange(ITEMS))
    out = tmp_path_factory.mktemp("run") / "two_tower"
    return train_two_tower(Requests(frame), VECTORS, CATALOGUE, NANO, out, {}, epochs=10)


@pytest.fixture(scope="module")
def towers(trained):
    return TwoTower.open(trained, VECTORS)


def test_recall_comes_near_that_of_the_true_tastes(towers):
    frame, user, bought = purchases(400, 1, np.arange(ITEMS))
    score = towers.user_vectors(frame) @ towers.item_vectors(CATALOGUE).T
    best = recall(CHANCE[user][:, :ITEMS], bought)
    assert best > 0.3
    assert recall(score[:, :ITEMS], bought) > 0.8 * best


def test_cold_items_are_found_by_content(towers):
    frame, user, bought = purchases(400, 2, np.arange(ITEMS, ITEMS + COLD))
    score = (towers.user_vectors(frame) @ towers.item_vectors(CATALOGUE).T)[:, ITEMS:]
    best = recall(CHANCE[user][:, ITEMS:], bought - ITEMS, k=5)
    assert recall(score, bought - ITEMS, k=5) > 0.6 * best


def fitted_scores(correct):
    """Free user-item scores fitted by in-batch sampled softmax to popularity-skewed choices."""
    draw = np.random.default_rng(0)
    users, items, batch = 4, 8, 32
    popularity = 2.0 ** -np.arange(items)
    affinity = np.exp(draw.normal(size=(users, items)))
    chance = popularity * affinity
    chance /= chance.sum(1, keepdims=True)
    share = chance.mean(0)
    score = torch.zeros(users, items, requires_grad=True)
    optimizer = torch.optim.Adam([score], lr=0.03)
    weight = torch.from_numpy(1 - (1 - share) ** batch if correct else np.ones(items)).float()
    for _ in range(1500):
        user = draw.integers(0, users, batch)
        chosen = (chance[user].cumsum(1) > draw.random((batch, 1))).argmax(1)
        sampled, positive = np.unique(chosen, return_inverse=True)
        optimizer.zero_grad()
        loss = sampled_softmax(
            score[user][:, sampled], torch.from_numpy(positive), weight[torch.from_numpy(sampled)]
        )
        loss.backward()
        optimizer.step()
    return score.detach().numpy(), chance, share


def error(score, truth):
    """Largest difference of two tables of log-probabilities, each row up to a constant."""
    gap = score - truth
    return float(np.abs(gap - gap.mean(1, keepdims=True)).max())


def test_the_correction_makes_scores_rank_by_probability_under_skewed_popularity():
    corrected, chance, _ = fitted_scores(correct=True)
    plain, _, _ = fitted_scores(correct=False)
    assert error(corrected, np.log(chance)) < 0.6
    assert error(plain, np.log(chance)) > 1.0


def test_the_chance_of_being_in_a_batch_is_counted_by_drawing_batches(monkeypatch):
    monkeypatch.setattr(negatives, "UNIFORM", 2)
    draw = np.random.default_rng(0)
    positives = np.array([4000, 300, 30, 3, 0] + [0] * 1995)
    owner = np.repeat(np.arange(2000), positives)
    hits = np.zeros(2000)
    for _ in range(200):
        both = [draw.choice(owner, 512), draw.integers(0, 4, 2)]
        hits[np.unique(np.concatenate(both))] += 1
    expected = negatives.inclusion(positives, len(owner), 512)
    np.testing.assert_allclose(expected, hits / 200, atol=0.12)
    assert not expected[4:].any(), "of what nobody took training says nothing"


def test_the_loss_is_the_textbook_corrected_softmax():
    score = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]])
    expected = torch.tensor([2.0, 0.5, 1.0])
    excluded = torch.tensor([[False, False, True], [False, False, False]])
    logit = score.numpy() - np.log(expected.numpy())
    first = -logit[0, 0] + np.log(np.exp(logit[0, :2]).sum())
    second = -logit[1, 1] + np.log(np.exp(logit[1]).sum())
    loss = sampled_softmax(score, torch.tensor([0, 1]), expected, excluded)
    assert float(loss) == pytest.approx((first + second) / 2, abs=1e-5)


def test_vectors_do_not_depend_on_the_batch(towers):
    frame, _, _ = purchases(30, 3, np.arange(ITEMS))
    users, items = towers.user_vectors(frame), towers.item_vectors(CATALOGUE)
    apart = [towers.user_vectors(select_requests(frame, np.array([r]))) for r in range(30)]
    np.testing.assert_allclose(users, np.concatenate(apart), atol=1e-5)
    np.testing.assert_allclose(items[7:9], towers.item_vectors(CATALOGUE.slice(7, 2)), atol=1e-5)


def test_empty_histories_unknown_items_and_no_candidates_are_answered(towers):
    nothing = make_frame([999_999, 1], [[], [5]], [[], []])
    assert np.isfinite(towers.user_vectors(nothing)).all()
    only_ids = type(nothing)(
        nothing.requests,
        pa.table({"item_id": pa.array([], pa.int64())}),
        np.zeros(3, np.int64),
        nothing.history,
    )
    np.testing.assert_array_equal(towers.user_vectors(only_ids), towers.user_vectors(nothing))
    assert towers.item_vectors(CATALOGUE.slice(0, 0)).shape == (0, towers.width)


def test_the_artifact_holds_the_whole_catalogue(trained, towers):
    stored = load_file(trained.file("items.safetensors"))
    assert stored["item_id"].tolist() == VECTORS.ids.tolist()
    np.testing.assert_allclose(stored["vector"], towers.item_vectors(CATALOGUE), atol=1e-6)


def test_positives_outside_the_catalogue_are_refused(tmp_path):
    frame, _, bought = purchases(50, 0, np.arange(ITEMS))
    first = int(VECTORS.ids[bought[0]])
    short = CATALOGUE.filter(pa.compute.not_equal(CATALOGUE["item_id"], first))
    with pytest.raises(
        DataError, match=rf"found {int((bought == bought[0]).sum())} others .item_id .{first}"
    ):
        train_two_tower(Requests(frame), VECTORS, short, NANO, tmp_path / "t", {})


def test_a_catalogue_without_a_column_is_refused_by_name(tmp_path):
    frame, _, _ = purchases(50, 0, np.arange(ITEMS))
    with pytest.raises(DataError, match=r"^candidates: 1 of \d+ expected columns are missing \(spu\)"):
        train_two_tower(Requests(frame), VECTORS, CATALOGUE.drop_columns(["spu"]), NANO, tmp_path / "t", {})


def test_of_few_users_nobody_is_held_out_and_every_epoch_is_run(tmp_path):
    frame = make_frame([1, 2, 3], [[], [], []], [[1000], [1007], [1014]], [[1.0]] * 3)
    made = train_two_tower(Requests(frame), VECTORS, CATALOGUE, NANO, tmp_path / "t", {}, epochs=4)
    outcome = made.config["outcome"]
    assert (outcome["epochs"], outcome["best"], list(outcome["valid_loss"])) == (4, 4, [])


def test_training_without_positives_is_refused(tmp_path):
    frame = make_frame([1, 2], [[], []], [[1000], [1007]], [[0.0], [0.0]])
    with pytest.raises(DataError, match="expected positives among 2 training requests, found none"):
        train_two_tower(Requests(frame), VECTORS, CATALOGUE, NANO, tmp_path / "t", {})


def test_other_vectors_and_edited_configurations_are_refused(trained, tmp_path):
    with pytest.raises(ArtifactError, match="trained with content embedding-1, given none"):
        TwoTower.open(trained, None)
    config = json.loads(trained.file("config.json").read_text()) | {"colour": "red"}
    with write_artifact(tmp_path / "t", "two_tower", trained.config) as folder:
        (folder / "model.safetensors").write_bytes(trained.file("model.safetensors").read_bytes())
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="colour"):
        TwoTower.open(open_artifact(tmp_path / "t", "two_tower"), VECTORS)


def test_towers_are_refused_under_a_service_that_has_changed_since(trained):
    signature = TwoTower.open(trained, VECTORS).encoder.inputs.signature
    assert signature.service and TwoTower.open(trained, VECTORS, signature)
    first, *others = signature.features
    changed = replace(signature, features=(*others, replace(first, name="brand", field="brand")))
    with pytest.raises(ArtifactError) as refused:
        TwoTower.open(trained, VECTORS, changed)
    for part in ("added: brand", f"lost: {first.name}", MADE_BY["two_tower"]):
        assert part in str(refused.value)


def sampler(requests=300, seed=5):
    """Requests of 60 users with one to three positives among five candidates each, and what draws from them."""
    draw = np.random.default_rng(seed)
    candidates = [VECTORS.ids[draw.choice(ITEMS, 5, replace=False)].tolist() for _ in range(requests)]
    labels = [[1.0] * int(n) + [0.0] * (5 - int(n)) for n in draw.integers(0, 4, requests)]
    frame = make_frame((np.arange(requests) % 60).tolist(), [[]] * requests, candidates, labels)
    code = FrameEncoder(learn_inputs(Requests(frame), 50, GIVEN)[0], VECTORS)
    positives = [
        [i for i, y in zip(ids, ys, strict=True) if y] for ids, ys in zip(candidates, labels, strict=True)
    ]
    return negatives.Sampler(Requests(frame), CATALOGUE, code, seed), positives


def test_a_twentieth_of_the_users_are_held_out_whole_and_nobody_without_a_positive_is_drawn():
    drawn, positives = sampler()
    with_one = {r for r, some in enumerate(positives) if some}
    held, learned = set(drawn.held_out.tolist()), set(drawn.learned.tolist())
    assert held | learned == with_one and not held & learned
    users = {r % 60 for r in held}
    assert len(users) == 3 and not users & {r % 60 for r in learned}
    assert drawn.per_batch == 32  # a sixteenth of the requests, 32 at least
    counts = np.zeros(ITEMS + COLD)
    for some in positives:
        np.add.at(counts, np.searchsorted(VECTORS.ids, some), 1)
    np.testing.assert_array_equal(drawn.taken, counts)
    missed = (1 - counts / len(with_one)) ** 32 * (1 - 1 / (counts > 0).sum()) ** negatives.UNIFORM
    np.testing.assert_allclose(drawn.chance, np.where(counts > 0, 1 - missed, 0), rtol=1e-5)


def test_the_chance_is_counted_over_all_pieces_in_which_requests_are_read(monkeypatch):
    whole, _ = sampler()
    monkeypatch.setattr(negatives, "ROWS", 7)
    pieces, _ = sampler()
    assert pieces.learned.tolist() == whole.learned.tolist()
    assert pieces.held_out.tolist() == whole.held_out.tolist()
    np.testing.assert_array_equal(pieces.chance, whole.chance)


def test_a_batch_holds_every_positive_once_against_distinct_items_and_excludes_its_siblings():
    drawn, positives = sampler()
    seen = []
    for sample in drawn.batches(drawn.learned, 0):
        items = sample.ids.values()[sample.user.history_mask.sum() :]
        assert len(items) == len(sample.chance) == sample.excluded.shape[1]
        ids = VECTORS.ids[
            [int(np.flatnonzero((VECTORS.matrix == v).all(1))[0]) for v in sample.item.content.numpy()]
        ]
        assert len(set(ids.tolist())) == len(ids) and (np.diff(ids) > 0).all()
        assert (ids < VECTORS.ids[ITEMS]).all(), "an item that nobody took is no negative"
        np.testing.assert_array_equal(sample.chance, drawn.chance[np.searchsorted(VECTORS.ids, ids)])
        chosen = ids[sample.positive].tolist()
        by_request = {}
        for request, item in zip(sample.request.tolist(), chosen, strict=True):
            by_request.setdefault(request, []).append(item)
        for row, (request, item) in enumerate(zip(sample.request.tolist(), chosen, strict=True)):
            siblings = set(by_request[request]) - {item}
            assert set(ids[sample.excluded[row].numpy()].tolist()) == siblings
        seen += [sorted(some) for some in by_request.values()]
    assert sorted(seen) == sorted(sorted(positives[r]) for r in drawn.learned.tolist())


def test_the_order_of_batches_follows_seed_and_epoch():
    drawn, _ = sampler()
    first = [sample.user.numbers.shape[0] for sample in drawn.batches(drawn.learned, 0)]
    assert sum(first) == len(drawn.learned) and max(first) == first[0] == 32
    positives = [next(iter(drawn.batches(drawn.learned, epoch))).positive.tolist() for epoch in (0, 0, 1)]
    assert positives[0] == positives[1] != positives[2]


def test_held_out_losses_are_meant_over_positives_not_batches(towers):
    drawn, _ = sampler()
    drawn.encoder = towers.encoder
    drawn.per_batch = 4
    samples = list(drawn.batches(drawn.held_out, 0))
    with torch.no_grad():
        losses = [float(train_module._loss(towers.model, sample)) for sample in samples]
    weights = [len(sample.positive) for sample in samples]
    assert len(set(weights)) > 1
    assert train_module._mean_loss(towers.model, drawn) == pytest.approx(np.average(losses, weights=weights))


def test_a_share_of_ids_is_hidden_while_training_and_those_that_nobody_took_afterwards(towers):
    model = TowerConfig.read(towers.artifact.file("config.json")).build()
    ids = VECTORS.ids[np.arange(8000) % 4]
    everywhere = np.ones((1, 8000), dtype=bool)
    keys = towers.encoder.item_ids(ids, ids[:0], everywhere, everywhere[:, :0])
    rows, times = keys.values()[:4], torch.tensor([0.0, 1.0, 2.0, 50.0])
    model.count(rows, times)
    assert model.bias[rows].detach().numpy() == pytest.approx(np.log(times.numpy() + 0.5))
    with torch.no_grad():
        model.hidden_bias.fill_(7.0)
    torch.manual_seed(0)
    found, bias = model.train().item_ids(keys)
    hidden = (found == 0).all(1)
    assert torch.equal(hidden, bias == 7)
    assert float(hidden.float().mean()) == pytest.approx(0.2, abs=0.03)
    found, bias = model.eval().item_ids(keys)
    assert (found == 0).all(1)[:4].tolist() == (bias == 7)[:4].tolist() == [True, False, False, False]


def test_an_items_bias_is_the_last_column_and_counts_once(towers):
    users, items = towers.user_vectors(purchases(3, 3, np.arange(ITEMS))[0]), towers.item_vectors(CATALOGUE)
    assert (users[:, -1] == 1).all()
    rows = towers.encoder.inputs.items.of(hash_integers(CATALOGUE["item_id"].to_numpy()))
    learned = towers.model.bias.detach().numpy()[rows]
    hidden = towers.model.taken.numpy()[rows] == 0
    assert hidden[ITEMS:].mean() > 0.7 and not hidden[:ITEMS].all(), (
        "an eighth shares a row with another item"
    )
    expected = np.where(hidden, float(towers.model.hidden_bias.detach()), learned)
    np.testing.assert_allclose(items[:, -1], expected, atol=1e-6)


def test_a_twentieth_of_the_users_chooses_the_epoch_and_what_is_missed_is_recorded(trained):
    outcome = trained.config["outcome"]
    assert len(outcome["valid_loss"]) == len(outcome["train_loss"]) == outcome["epochs"] <= 10
    assert 0 < min(outcome["valid_loss"]) <= max(outcome["valid_loss"]) < 1
    assert outcome["best"] == 1 + int(np.argmin(outcome["valid_loss"]))


def test_as_many_users_are_held_out_as_asked_for_none_twice(monkeypatch):
    monkeypatch.setattr(negatives, "VALID_FRACTION", 0.5)
    drawn, positives = sampler()
    asking = {r % 60 for r, some in enumerate(positives) if some}
    held, learned = ({r % 60 for r in rows.tolist()} for rows in (drawn.held_out, drawn.learned))
    assert len(asking) == 60 and len(held) == len(learned) == 30


def test_the_history_is_padded_on_the_left():
    frame = make_frame([1, 2], [[1000], [1007, 1014, 1021]], [[], []])
    code = FrameEncoder(learn_inputs(Requests(purchases(50, 0, np.arange(ITEMS))[0]), 50, GIVEN)[0], VECTORS)
    side, mask = negatives.user_side(code, frame)
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    assert side.history_mask.tolist() == mask.tolist()


def test_the_towers_have_the_tensors_that_their_features_ask_for(trained, towers):
    tables = {
        f"{place}.embedding_bags.t_{name}.weight"
        for place, names in (
            ("items", ["item_id"]),
            ("candidates", ["category", "category_top", "spu", "attributes"]),
            ("requests", ["age_band", "segment"]),
            ("behaviours", ["code", "age"]),
        )
        for name in names
    }
    dense = {
        "content.weight",
        "attend",
        "recency.weight",
        "item_numbers.weight",
        "taken",
        "bias",
        "hidden_bias",
    }
    mix = {f"user_mix.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert set(load_file(trained.file("model.safetensors"))) == tables | dense | mix
    config = TowerConfig.read(towers.artifact.file("config.json"))
    only = replace(config, content_width=0, content_id=None).build()
    assert set(dict(only.named_parameters())) == (tables | dense | mix) - {"content.weight"}


def test_a_damaged_file_of_the_towers_names_the_command_that_makes_it_again(trained, tmp_path):
    with write_artifact(tmp_path / "t", "two_tower", trained.config) as folder:
        (folder / "model.safetensors").write_bytes(b"junk")
        (folder / "config.json").write_bytes(trained.file("config.json").read_bytes())
    with pytest.raises(ArtifactError, match="Run 'moon retrieval' to make it again"):
        TwoTower.open(open_artifact(tmp_path / "t", "two_tower"), VECTORS)


def test_unless_told_otherwise_towers_are_trained_as_was_measured_best(monkeypatch, tmp_path):
    plans, jobs = [], []
    monkeypatch.setattr(train_module, "Checkpoints", lambda out, job, parents: jobs.append(job))

    def tell(model, plan, **_):
        plans.append((plan, model.id_dropout))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "fit", tell)
    frame = Requests(purchases(50, 0, np.arange(ITEMS))[0])
    for told in ({}, {"seed": 3, "epochs": 4}):
        with pytest.raises(KeyboardInterrupt):
            train_two_tower(frame, VECTORS, CATALOGUE, NANO, tmp_path / "t", {}, **told)
    assert plans == [(Plan(10, 10, 0.002, 0), 0.2), (Plan(4, 4, 0.002, 3), 0.2)]
    for job, (plan, _) in zip(jobs, plans, strict=True):  # rates that fall over more epochs are another job
        assert job["plan"] == asdict(plan)
        assert set(job) == {"plan", "requests", "config"} and job["requests"] == 50
        assert job["config"]["id_width"] == NANO.id_width


def test_requests_that_fit_in_one_piece_are_not_copied_and_more_are_the_same(towers, monkeypatch):
    frame, _, _ = purchases(30, 3, np.arange(ITEMS))
    pieces = []
    monkeypatch.setattr(
        train_module, "select_requests", lambda *one: pieces.append(one) or select_requests(*one)
    )
    whole, items = towers.user_vectors(frame), towers.item_vectors(CATALOGUE)
    assert not pieces and whole.dtype == items.dtype == np.float32
    monkeypatch.setattr(train_module, "ROWS", 7)
    np.testing.assert_allclose(towers.user_vectors(frame), whole, atol=1e-6)
    np.testing.assert_allclose(towers.item_vectors(CATALOGUE), items, atol=1e-6)
    assert [rows.tolist() for _, rows in pieces] == [list(range(n, min(n + 7, 30))) for n in range(0, 30, 7)]


def test_towers_say_how_they_were_made(trained, towers):
    outcome = trained.config["outcome"]
    assert trained.config == {
        "size": "nano",
        "seed": 0,
        "width": 2 * NANO.id_width + 1,
        "content_id": "embedding-1",
        "outcome": outcome,
    }
    assert towers.width == 2 * NANO.id_width + 1 and trained.kind == "two_tower"
    text = trained.file("config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n", "for people to read"
    assert not trained.path.with_name("two_tower.partial").exists()


def test_frames_without_a_column_are_refused_with_the_side_it_is_missing_from(towers):
    frame, _, _ = purchases(50, 0, np.arange(ITEMS))
    without = replace(frame, requests=frame.requests.drop_columns(["segment"]))
    with pytest.raises(DataError, match=r"^requests: 1 of 5 expected columns are missing \(segment\)"):
        towers.user_vectors(without)
    with pytest.raises(DataError, match=r"^candidates: 1 of 6 expected columns are missing \(spu\)"):
        towers.item_vectors(CATALOGUE.drop_columns(["spu"]))
    unlabelled = replace(frame, candidates=frame.candidates.drop_columns(["label"]))
    with pytest.raises(DataError, match=r"^candidates: 1 of 2 expected columns are missing \(label\)"):
        negatives.Sampler(Requests(unlabelled), CATALOGUE, towers.encoder, 0)


def test_towers_of_ids_alone_need_no_vectors_and_take_none(tmp_path):
    frame = make_frame([1, 2, 3], [[], [1007], []], [[1000], [1007], [1014]], [[1.0]] * 3)
    made = train_two_tower(Requests(frame), None, CATALOGUE, NANO, tmp_path / "t", {}, epochs=1)
    assert made.config["content_id"] is None
    only = TwoTower.open(made, None)
    users, items = only.user_vectors(frame), only.item_vectors(CATALOGUE)
    assert users.shape == (3, only.width) and items.shape == (ITEMS + COLD, only.width)
    assert np.isfinite(users).all() and np.isfinite(items).all()
    with pytest.raises(ArtifactError, match="trained with content none, given embedding-1"):
        TwoTower.open(made, VECTORS)


def test_unknown_content_adds_nothing_to_an_item(towers):
    known = CATALOGUE.slice(0, 5)
    unknown = towers.with_content(make_vectors(0))
    model = towers.model
    with torch.no_grad():
        assert not model.content(torch.zeros(3, WIDTH)).any()
        side = negatives.item_side(unknown.encoder, known)
        ids = known["item_id"].to_numpy()
        everywhere = np.ones((1, 5), dtype=bool)
        whole, bias = model.item_ids(unknown.encoder.item_ids(ids, ids[:0], everywhere, everywhere[:, :0]))
        parts = model.candidates(side.candidates).values().view(5, -1, towers.width - 1).sum(1)
        expected = torch.cat([whole + parts + model.item_numbers(side.numbers), bias[:, None]], dim=1)
    np.testing.assert_allclose(unknown.item_vectors(known), expected.numpy(), atol=1e-6)
    assert not np.allclose(towers.item_vectors(known), expected.numpy(), atol=1e-2)


def test_the_towers_are_their_formulas(towers):
    """The slow twin, a request at a time without padding; all weights are drawn, so that each of them matters."""
    config, code = TowerConfig.read(towers.artifact.file("config.json")), towers.encoder
    model = config.build().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
        model.taken.copy_(torch.arange(len(model.taken)) % 2)  # nobody took half of the ids
    w = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}

    def rows(table, name, values):
        rule = code.inputs.items if name == "item_id" else code.inputs.rules[name]
        own = rule.ids(values)[0]
        shown = w["taken"][own, None] > 0 if name == "item_id" else 1
        return w[f"{table}.embedding_bags.t_{name}.weight"][own] * shown

    def mixed(x):
        hidden = w["user_mix.0.weight"] @ x + w["user_mix.0.bias"]
        return w["user_mix.2.weight"] @ (hidden / (1 + np.exp(-hidden))) + w["user_mix.2.bias"]

    histories = [VECTORS.ids[:3].tolist(), [], [*VECTORS.ids[5:11].tolist(), 4]]  # nobody knows item 4
    frame = make_frame([3, 4, 5], histories, [[]] * 3)
    events = np.log1p([3, 0, 7])
    behaved = code.inputs.rules["user_events"]
    events = events.clip(behaved.least, behaved.most)
    numbers = ((events - behaved.mean) / behaved.deviation).clip(-5, 5)[:, None]
    expected = []
    for row, items in enumerate(histories):
        vectors, _ = VECTORS.gather(np.array(items, np.int64))
        minutes = 60 * np.arange(len(items), 0, -1)
        kind = (
            w["behaviours.embedding_bags.t_code.weight"][np.ones(len(items), int)]
            + w["behaviours.embedding_bags.t_age.weight"][np.log2(1 + minutes).astype(int)]
        )
        seen = rows("items", "item_id", pa.array(items, pa.int64())) + vectors @ w["content.weight"].T
        score = seen @ w["attend"] + kind @ w["recency.weight"][0]
        weight = np.exp(score - score.max(initial=0))
        pooled = weight @ seen / max(weight.sum(), 1e-300)
        profile = [
            rows("requests", name, frame.requests[name].combine_chunks())[row]
            for name in ("age_band", "segment")
        ]
        expected.append([*(pooled + mixed(np.concatenate([pooled, *profile, numbers[row]]))), 1])
    drawn = TwoTower(model, code)
    np.testing.assert_allclose(drawn.user_vectors(frame), expected, atol=1e-4)

    items = CATALOGUE.slice(20, 4)
    whole = rows("items", "item_id", items["item_id"].combine_chunks())
    for name in ("category", "category_top", "spu"):
        whole = whole + rows("candidates", name, items[name].combine_chunks())
    for row, bag in enumerate(items["attributes"].to_pylist()):
        whole[row] += rows("candidates", "attributes", pa.array(bag, pa.string())).sum(0)
    price, sold = code.inputs.rules["price"], np.log1p(items["price"].to_numpy())[:, None]
    whole = whole + ((sold - price.mean) / price.deviation) @ w["item_numbers.weight"].T
    whole = whole + VECTORS.matrix[20:24] @ w["content.weight"].T
    own = code.inputs.items.ids(items["item_id"].combine_chunks())[0]
    bias = np.where(w["taken"][own] > 0, w["bias"][own], w["hidden_bias"])
    np.testing.assert_allclose(drawn.item_vectors(items), np.column_stack([whole, bias]), atol=1e-4)


def test_a_batch_draws_between_32_and_512_requests(monkeypatch):
    monkeypatch.setattr(negatives, "STEPS", 1)
    drawn, _ = sampler(requests=900)
    assert len(drawn.learned) > 512 and drawn.per_batch == 512
    assert sampler(requests=20)[0].per_batch == 32
