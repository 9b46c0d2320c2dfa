"""The relevance head knows a planted rule and says how sure it is."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import DAY, START
from ranker_world import auc, make_vectors, unit
from safetensors.torch import load_file, save_file

from dataset.contracts import DataError
from feature_repo.create import create_store
from feature_repo.online import OnlineReader
from feature_repo.signature import Feature, Signature, open_signature
from feature_repo.store import materialize, open_store
from moonstore.errors import StoreError
from ranker import relevance as module
from ranker.judgements import JudgedPairs, items_as_stored, judged_pairs, require_judgeable
from ranker.relevance import Relevance, RelevanceModel, learned, train_relevance
from run.artifacts import ArtifactError, open_artifact, write_artifact

WIDTH = 16


NOTHING = learned(Signature("", ()), {})  # a head that reads vectors alone


def train(query, item, label, out, parents, **named):
    return train_relevance(JudgedPairs(query, item, label, np.arange(len(label))), out, parents, **named)


def raw_of(model, query, item):
    """Of a head that reads vectors alone."""
    return model.raw(
        query, item, module.described(module.FrameEncoder(NOTHING, None), module.of_items({}, len(item)))
    )


def pairs(count, seed):
    """Relevance depends on agreement in the first half of the dimensions only."""
    draw = np.random.default_rng(seed)
    query, item = unit(draw.normal(size=(count, WIDTH))), unit(draw.normal(size=(count, WIDTH)))
    agreement = (query[:, : WIDTH // 2] * item[:, : WIDTH // 2]).sum(1)
    probability = 1 / (1 + np.exp(-(14 * agreement - 1)))
    return query, item, (draw.random(count) < probability).astype(np.float32), probability


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    query, item, label, _ = pairs(12_000, 0)
    yield train(query, item, label, tmp_path_factory.mktemp("run") / "relevance", {})
    torch.set_num_threads(before)


def test_the_planted_rule_is_found_where_the_cosine_misses_it(trained):
    query, item, label, probability = pairs(3000, 1)
    best, cosine = auc(label, probability), auc(label, (query * item).sum(1))
    found = auc(label, Relevance.open(trained).score(query, item, {}))
    assert cosine < best - 0.08
    assert found > best - 0.03


def test_scores_are_calibrated_log_odds(trained):
    query, item, label, _ = pairs(6000, 2)
    chance = 1 / (1 + np.exp(-Relevance.open(trained).score(query, item, {})))
    assert abs(chance.mean() - label.mean()) < 0.03
    for part in np.array_split(np.argsort(chance), 6):
        assert abs(chance[part].mean() - label[part].mean()) < 0.07


def test_one_query_against_many_items_is_the_same_as_pairs(trained):
    relevance, (query, item, _, _) = Relevance.open(trained), pairs(50, 3)
    np.testing.assert_allclose(
        relevance.score(query[0], item, {}), relevance.score(np.repeat(query[:1], 50, 0), item, {}), atol=1e-6
    )
    assert relevance.score(query[0], item[:0], {}).shape == (0,)


def test_equal_seeds_give_equal_bits(tmp_path):
    query, item, label, _ = pairs(500, 4)
    first = train(query, item, label, tmp_path / "a", {})
    assert train(query, item, label, tmp_path / "b", {}).id == first.id


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda q, i, y: (q[:3], i, y), "pairs of equal shape"),
        (lambda q, i, y: (q * np.where(np.arange(len(q)) == 2, np.nan, 1)[:, None], i, y), r"rows \[2\]"),
        (lambda q, i, y: (q, i, y + 3), "labels from 0 to 1, found 3.0 to 4.0"),
        (lambda q, i, y: (q, i, y * 0), "relevant and irrelevant pairs"),
    ],
)
def test_bad_pairs_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        train(*change(*pairs(20, 5)[:3]), tmp_path / "r", {})


def test_weights_that_are_not_finite_are_refused(trained, tmp_path):
    tensors = load_file(trained.file("model.safetensors"))
    tensors["line"][0] = float("inf")
    with write_artifact(tmp_path / "r", "relevance", {}) as folder:
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_bytes(trained.file("config.json").read_bytes())
    with pytest.raises(ArtifactError, match="line: 1 of 2 weights are not finite"):
        Relevance.open(open_artifact(tmp_path / "r", "relevance"))


def test_the_network_is_the_formula_with_its_own_line(trained):
    """[cos, sqrt(V) q*t, |q-t|] through the network, beside the cosine; then line[0] x + line[1]."""
    model = Relevance.open(trained).model
    query, item, _, _ = pairs(7, 6)
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.named_parameters()}
    cosine = (query * item).sum(1, keepdims=True)
    features = np.concatenate([cosine, query * item * 4.0, np.abs(query - item)], axis=1)
    hidden = features @ w["pair.0.weight"].T + w["pair.0.bias"]
    hidden = hidden / (1 + np.exp(-hidden)) @ w["pair.2.weight"].T + w["pair.2.bias"]
    raw = (cosine * w["cosine.weight"] + w["cosine.bias"] + hidden)[:, 0]
    found = Relevance.open(trained).score(query, item, {})
    np.testing.assert_allclose(found, w["line"][0] * raw + w["line"][1], atol=1e-4)


def held_out_losses(monkeypatch, out, **changes):
    """Train on little, and the held-out loss of every epoch, in order; the artifact."""
    for name, value in changes.items():
        monkeypatch.setattr(module, name, value)
    losses, real = [], module.functional.binary_cross_entropy_with_logits

    def heard(logits, target):
        value = real(logits, target)
        if not value.requires_grad:
            losses.append(float(value))
        return value

    monkeypatch.setattr(module.functional, "binary_cross_entropy_with_logits", heard)
    query, item, label, _ = pairs(400, 7)
    made = train(query, item, label, out, {})
    monkeypatch.undo()
    return losses, made


def test_the_best_epoch_is_kept_and_three_without_a_better_one_are_the_last(monkeypatch, tmp_path):
    losses, made = held_out_losses(monkeypatch, tmp_path / "r", LEARNING_RATE=0.2)
    best = int(np.argmin(losses))
    assert best < len(losses) - 1 < 19 and len(losses) - 1 - best == 3
    assert made.config == {"seed": 0, "pairs": 400, "held_out_loss": losses[best]}
    only, kept = held_out_losses(monkeypatch, tmp_path / "short", LEARNING_RATE=0.2, EPOCHS=best + 1)
    assert only == losses[: best + 1]
    for name in ("model.safetensors", "config.json"):
        assert kept.file(name).read_bytes() == made.file(name).read_bytes()
    assert json.loads(made.file("config.json").read_text())["width"] == WIDTH


def test_the_line_is_platts_with_one_observation_pulling_to_the_identity():
    """Against a grid: log loss of a x + b on the held-out pairs plus ((a-1)^2 + b^2) / n."""
    query, item, label, _ = (torch.from_numpy(np.asarray(one)).float() for one in pairs(300, 8))
    torch.manual_seed(0)
    model = RelevanceModel(WIDTH, NOTHING)
    with torch.no_grad():
        model.cosine.weight.fill_(3.0)
    raw = raw_of(model, query, item).detach()
    module._calibrate(model, raw, label)
    raw = raw.double().numpy()
    a, b = (float(one) for one in model.line)

    def objective(slope, shift):
        logit = slope * raw + shift
        return (np.logaddexp(0, logit) - label.numpy() * logit).mean() + ((slope - 1) ** 2 + shift**2) / 300

    around = [objective(a + da, b + db) for da in (-0.02, 0, 0.02) for db in (-0.02, 0, 0.02)]
    assert int(np.argmin(around)) == 4 and (a, b) != (1.0, 0.0)


def test_judged_pairs_are_the_parts_judgements_and_as_many_drawn_items_that_are_irrelevant():
    vectors = make_vectors(50)
    judged = pa.table(
        {
            "query_id": pa.array([0, 1, 2, 77, 3], pa.int64()),  # 77 has no vector
            "item_id": pa.array([*vectors.ids[:4].tolist(), 5], pa.int64()),  # nor has item 5
            "relevance": pa.array([1.0, 0.5, 0.25, 1.0, 1.0], pa.float32()),
            "part": ["train", "train", "test", "train", "train"],
        }
    )
    found = judged_pairs(SimpleNamespace(judgements=judged), vectors, "train", seed=4)
    drawn = np.random.default_rng(4).choice(vectors.ids, 4)
    places = {int(one): row for row, one in enumerate(vectors.ids)}
    expected = [(0, 0, 1.0), (1, 1, 0.5)]  # query, row of the item, relevance
    expected += [(q, places[int(drawn[n])], 0.0) for n, q in ((0, 0), (1, 1), (3, 3))]
    np.testing.assert_array_equal(found.query, vectors.queries.matrix[[q for q, _, _ in expected]])
    np.testing.assert_array_equal(found.item, vectors.matrix[[row for _, row, _ in expected]])
    assert found.relevance.tolist() == [r for _, _, r in expected] and len(found) == 5
    assert found.item_id.tolist() == [int(vectors.ids[row]) for _, row, _ in expected]


def test_training_is_adamw_on_shuffled_batches_of_all_but_a_held_out_seventh(monkeypatch, tmp_path):
    """The slow twin, two epochs long; 15 % of the pairs are held out, then calibrate."""
    monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(module, "BATCH", 64)
    query, item, label, _ = pairs(300, 9)
    made = train(query, item, label, tmp_path / "r", {}, seed=3)
    draw = np.random.default_rng(3)
    order = draw.permutation(300)
    held, learned = order[:45], order[45:]
    torch.manual_seed(3)
    model = RelevanceModel(WIDTH, NOTHING)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    q, t, y = (torch.from_numpy(one.astype(np.float32)) for one in (query, item, label))
    for _ in range(2):
        for rows in np.split(learned, [64, 128, 192]):
            model.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                raw_of(model, q[rows], t[rows]), y[rows]
            )
            loss.backward()
            optimizer.step()
        learned = draw.permutation(learned)
    module._calibrate(model, raw_of(model, q[held], t[held]).detach(), y[held])
    found = Relevance.open(made).model
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_pairs_scored_a_few_at_a_time_are_scored_alike(trained, monkeypatch):
    relevance, (query, item, _, _) = Relevance.open(trained), pairs(50, 3)
    whole = relevance.score(query, item, {})
    monkeypatch.setattr(module, "ROWS", 7)
    np.testing.assert_allclose(relevance.score(query, item, {}), whole, atol=1e-6)
    assert whole.dtype == relevance.score(query[0], item[:0], {}).dtype == np.float32
    assert relevance.width == WIDTH and relevance.artifact is trained


def test_a_head_says_what_it_was_made_of_and_another_seed_makes_another(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EPOCHS", 1)
    query, item, label, _ = pairs(60, 4)
    with write_artifact(tmp_path / "e", "embedding", {}) as folder:
        (folder / "content").write_text("vectors")
    embedding = open_artifact(tmp_path / "e", "embedding")
    made = train(query, item, label, tmp_path / "a", {"embedding": embedding})
    assert made.parents == {"embedding": embedding.id} and made.kind == "relevance"
    assert (made.config["seed"], made.config["pairs"]) == (0, 60)
    other = train(query, item, label, tmp_path / "b", {}, seed=1)
    assert other.config["seed"] == 1 and not np.array_equal(
        Relevance.open(made).score(query, item, {}), Relevance.open(other).score(query, item, {})
    )
    assert load_file(made.file("model.safetensors"))["pair.0.weight"].shape == (32, 2 * WIDTH + 1)
    assert json.loads(made.file("config.json").read_text()) == {"width": 16, "inputs": NOTHING.to_json()}


def test_a_head_with_another_configuration_is_refused(trained, tmp_path):
    with write_artifact(tmp_path / "r", "relevance", {}) as folder:
        (folder / "model.safetensors").write_bytes(trained.file("model.safetensors").read_bytes())
        (folder / "config.json").write_text('{"width": 16, "depth": 2}')
    with pytest.raises(
        ArtifactError, match=r"expected a config of width and inputs, found \['depth', 'width'\]. Run 'moon"
    ):
        Relevance.open(open_artifact(tmp_path / "r", "relevance"))


FIELDS = (
    Feature("quality", "v", "quality", "candidate", "number", pa.float32()),
    Feature("brand", "v", "brand", "candidate", "category", pa.string()),
    Feature("listed", "v", "listed", "candidate", "timestamp", pa.int64()),
)
SERVICE = Signature("relevance_v1", FIELDS)


def described_pairs(count, seed):
    """Half of what makes an item relevant is its brand and its quality, which a quarter lacks."""
    query, item, _, _ = pairs(count, seed)
    draw = np.random.default_rng(seed)
    brand, quality = draw.integers(0, 3, count), draw.normal(size=count)
    missing = draw.random(count) < 0.25
    agreement = (query[:, : WIDTH // 2] * item[:, : WIDTH // 2]).sum(1)
    logit = 8 * agreement + 2 * np.where(missing, 0, quality) + 2 * (brand - 1)
    items = {
        "quality": pa.array(quality, pa.float32(), mask=missing),
        "brand": pa.array([f"b{one}" for one in brand]),
        "listed": pa.array(np.zeros(count, np.int64)),
    }
    chance = 1 / (1 + np.exp(-logit))
    return query, item, (draw.random(count) < chance).astype(np.float32), items, chance


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    query, item, label, items, _ = described_pairs(6000, 0)
    out = tmp_path_factory.mktemp("described") / "relevance"
    return train(query, item, label, out, {}, signature=SERVICE, items=items)


def test_features_of_items_that_the_service_names_are_learned_from(described, tmp_path):
    query, item, label, items, chance = described_pairs(3000, 1)
    head = Relevance.open(described, SERVICE)
    assert [one.name for one in head.features] == [
        "quality",
        "brand",
    ]  # a judgement has no time: nothing has an age
    best, found = auc(label, chance), auc(label, head.score(query, item, items))
    unknown = {"quality": pa.nulls(3000, pa.float32()), "brand": pa.nulls(3000, pa.string())}
    assert found > best - 0.03 and auc(label, head.score(query, item, unknown)) < best - 0.08
    with pytest.raises(DataError, match="candidates: 1 of 3 expected columns are missing .brand."):
        head.score(query, item, {"quality": items["quality"]})


def test_pairs_with_features_are_scored_alike_alone(described):
    query, item, _, items, _ = described_pairs(40, 2)
    head = Relevance.open(described)
    whole = head.score(query, item, items)
    for row in range(40):
        one = {name: column.slice(row, 1) for name, column in items.items()}
        np.testing.assert_allclose(
            head.score(query[row], item[row : row + 1], one), whole[row : row + 1], atol=1e-5
        )


def test_a_head_is_refused_under_a_service_that_has_changed(described):
    fields = (*FIELDS[:1], FIELDS[2], Feature("colour", "v", "colour", "candidate", "category", pa.string()))
    with pytest.raises(ArtifactError) as refused:
        Relevance.open(described, Signature("relevance_v1", fields))
    said = str(refused.value)
    assert (
        "added: colour (v:colour" in said and "lost: brand (v:brand" in said and "Run 'moon ranker'" in said
    )


def test_a_head_of_release_0_1_0_opens_whatever_the_service(trained, tmp_path):
    with write_artifact(tmp_path / "r", "relevance", {}) as folder:
        (folder / "model.safetensors").write_bytes(trained.file("model.safetensors").read_bytes())
        (folder / "config.json").write_text('{"width": 16}\n')
    query, item, _, _ = pairs(9, 4)
    head = Relevance.open(open_artifact(tmp_path / "r", "relevance"), SERVICE)
    np.testing.assert_array_equal(head.score(query, item, {}), Relevance.open(trained).score(query, item, {}))


VECTOR = pa.list_(pa.float32())
COMPARED = (
    Feature("vector", "item_embedding_v1", "vector", "candidate", "vector", VECTOR),
    Feature("query_vector", "query_embedding_v1", "query_vector", "query", "vector", VECTOR),
)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (FIELDS, "the tag vectors: .item, query.*found vectors of nothing"),
        (COMPARED[:1], "found vectors of candidate"),
        (
            (*COMPARED, Feature("segment", "user_profile", "segment", "user", "category", pa.string())),
            "expected vectors and stored features of items, found segment .of the user.",
        ),
    ],
)
def test_a_service_that_the_head_cannot_read_is_refused(tiny_world, tmp_path, features, said):
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    with pytest.raises(StoreError, match=said):
        require_judgeable(open_store(tmp_path / "store"), Signature("relevance_v1", features))


def test_the_head_reads_of_an_item_what_serving_reads_of_it(tiny_world, tmp_path, monkeypatch):
    """A service with the profile: joined for training, read online, and both through the head's own inputs."""
    store_dir, until = tmp_path / "store", START + 40 * DAY
    (tmp_path / "repository" / "mine").mkdir(parents=True)
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    (tmp_path / "repository" / "mine" / "search.py").write_text(
        "from feast import FeatureService\nfrom feature_repo.features import item_profile, item_stats\n"
        "relevance_v1 = FeatureService(name='relevance_v1', features=[item_profile, item_stats])"
    )
    create_store(store_dir, tiny_world.dataset, tiny_world.split)
    materialize(store_dir, until)
    store = open_store(store_dir)
    signature = open_signature(store, "relevance_v1")
    ids = np.append(tiny_world.item_ids, [10**9, tiny_world.item_ids[0]])
    offline = items_as_stored(store, signature, ids, until)
    online = OnlineReader(store_dir, 5).read_items(ids, until).columns
    assert {"price", "shown_all"} <= set(offline) and offline["price"][len(ids) - 2].as_py() is None
    for name, column in offline.items():
        assert column.to_pylist() == online[name].to_pylist(), name
