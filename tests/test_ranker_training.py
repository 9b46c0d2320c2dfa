"""In a world whose click probabilities are known, the click model finds them; faults are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranker_world import Requests, auc, make_frame, make_vectors, make_world
from safetensors.torch import load_file, save_file

from dataset.contracts import DataError
from feature_repo.frame import Frame
from ranker import attempt
from ranker import train as train_module
from ranker.attempt import Data
from ranker.controls import shuffled
from ranker.epoch import epoch_batches
from ranker.fit import Plan
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, select_requests
from ranker.learner import TrainingError
from ranker.losses import training_loss
from ranker.recipes import attention, cube
from ranker.score import Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from run.artifacts import Artifact, ArtifactError, open_artifact, write_artifact
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
NANO = size("nano")
OLD, NEW = np.arange(0, 240), np.arange(240, 300)


@pytest.fixture(scope="module")
def world():
    return make_world(requests=400, old_items=OLD)


@pytest.fixture(scope="module")
def valid():
    return make_world(requests=80, old_items=OLD, seed=1)


@pytest.fixture(scope="module")
def full(world, valid, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "ranker_full"
    return train_ctr(Requests(world.frame), Requests(valid.frame), world.vectors, NANO, out, {})


def label(frame):
    return frame.candidates["label"].to_numpy()


def test_the_full_model_comes_within_three_points_of_the_best_possible_auc(full, world):
    test = make_world(requests=200, old_items=OLD, seed=2)
    best = auc(label(test.frame), test.probability)
    found = auc(label(test.frame), Ranker.open(full, world.vectors).score(test.frame))
    assert found > best - 0.03


def unseen_items():
    """Histories of items seen in training, candidates that nobody ever met, of the same users."""
    old, new = (make_world(requests=200, old_items=pool, seed=3) for pool in (OLD, NEW))
    row_of = {user: row for row, user in enumerate(old.frame.requests["user_id"].to_pylist())}
    pairs = [(row_of[u], n) for n, u in enumerate(new.frame.requests["user_id"].to_pylist()) if u in row_of]
    before, after = (np.array(rows) for rows in zip(*pairs, strict=True))
    assert len(pairs) > 150
    known, shown = select_requests(old.frame, before), select_requests(new.frame, after)
    frame = Frame(known.requests, shown.candidates, shown.offsets, known.history)
    return frame, new.probability.reshape(200, -1)[after].ravel()


def test_unseen_items_are_ranked_by_content_and_not_by_ids(full, world, valid, tmp_path):
    frame, probability = unseen_items()
    best = auc(label(frame), probability)
    assert auc(label(frame), Ranker.open(full, world.vectors).score(frame)) > best - 0.05
    only = train_ctr(Requests(world.frame), Requests(valid.frame), None, NANO, tmp_path / "id_only", {})
    assert abs(auc(label(frame), Ranker.open(only, None).score(frame)) - 0.5) < 0.06


def test_shuffled_vectors_tell_nothing_about_unseen_items(world, valid, tmp_path):
    control = shuffled(world.vectors, seed=0)
    assert sorted(map(tuple, control.matrix)) == sorted(map(tuple, world.vectors.matrix))
    assert not np.array_equal(control.matrix, world.vectors.matrix)
    made = train_ctr(
        Requests(world.frame), Requests(valid.frame), control, NANO, tmp_path / "r", {}, Training(epochs=3)
    )
    frame, _ = unseen_items()
    assert abs(auc(label(frame), Ranker.open(made, control).score(frame)) - 0.5) < 0.07
    with pytest.raises(ArtifactError, match="embedding-1-shuffled-0, given embedding-1"):
        Ranker.open(made, world.vectors)


def test_listwise_training_ranks_one_positive_above_sampled_negatives(world, valid, tmp_path):
    draw = np.random.default_rng(5)

    def one_positive(source):
        f = source.frame
        candidates, histories, labels = [], [], []
        for r in range(len(f)):
            span = slice(*f.offsets[r : r + 2])
            share = source.probability[span] / source.probability[span].sum()
            candidates.append(f.candidates["item_id"].to_numpy()[span].tolist())
            labels.append(np.eye(len(share))[draw.choice(len(share), p=share)])
            histories.append(f.history.item_id[slice(*f.history.offsets[r : r + 2])].tolist())
        return make_frame(f.requests["user_id"].to_pylist(), histories, candidates, labels)

    train, check = one_positive(world), one_positive(valid)
    made = train_ctr(
        Requests(train), Requests(check), world.vectors, NANO, tmp_path / "r", {}, Training(loss="listwise")
    )
    assert made.config["loss"] == "listwise"
    test = make_world(requests=100, old_items=OLD, seed=2)
    score = Ranker.open(made, world.vectors).score(test.frame)
    assert auc(label(test.frame), score) > auc(label(test.frame), test.probability) - 0.05


def test_position_bias_is_learned_and_left_out_of_the_score(tmp_path):
    """Clicks depend on the place alone: the position logits take it all and the score stays flat."""
    draw = np.random.default_rng(0)
    ids = make_vectors(50).ids
    chance = np.array([0.6, 0.3, 0.15, 0.1, 0.05])
    frame = make_frame(
        [int(u) for u in draw.integers(0, 40, 500)],
        [[]] * 500,
        [draw.choice(ids, 5, replace=False).tolist() for _ in range(500)],
        [draw.random(5) < chance for _ in range(500)],
        positions=[np.arange(5)] * 500,
    )
    made = train_ctr(
        Requests(frame), Requests(make_frame([], [], [])), None, NANO, tmp_path / "r", {}, Training(epochs=20)
    )
    ranker = Ranker.open(made, None)
    learned = 10 * ranker.model.position.detach().numpy()
    assert (np.diff(learned) < 0).all()
    assert learned[0] - learned[-1] > 1.5  # the planted log-odds differ by 3.3
    assert auc(label(frame), -np.tile(np.arange(5), 500)) > 0.75
    places = ranker.score(frame).reshape(500, 5).mean(0)
    assert np.ptp(places) < 0.3


def test_equal_seeds_give_equal_bits_and_saving_loses_none(world, valid, full, tmp_path):
    again = train_ctr(
        Requests(world.frame), Requests(valid.frame), world.vectors, NANO, tmp_path / "ranker_full", {}
    )
    assert again.id == full.id
    first = Ranker.open(full, world.vectors).score(valid.frame)
    assert np.array_equal(first, Ranker.open(again, world.vectors).score(valid.frame))


def test_a_loss_that_is_not_finite_stops_before_the_tables_learn_from_it(world, tmp_path, monkeypatch):
    seen = {}

    def broken(model, batch, *how):
        seen.setdefault("model", model)
        seen.setdefault("before", {n: p.detach().clone() for n, p in model.named_parameters()})
        return model(batch).sum() * float("nan")

    monkeypatch.setattr(attempt, "training_loss", broken)
    with pytest.raises(TrainingError, match="loss is nan in epoch 1, step 1"):
        train_ctr(Requests(world.frame), Requests(world.frame), world.vectors, NANO, tmp_path / "r", {})
    for name, parameter in seen["model"].named_parameters():
        assert torch.equal(parameter, seen["before"][name]), name
    assert not (tmp_path / "r").exists()


def test_training_without_requests_is_refused(tmp_path):
    nobody = make_frame([], [], [])
    with pytest.raises(DataError, match="expected training requests, found none"):
        train_ctr(Requests(nobody), Requests(nobody), None, NANO, tmp_path / "r", {})


def test_parents_are_recorded(world, valid, tmp_path):
    parents = {"embedding": Artifact(Path("embedding"), "embedding", "embedding-1", {}, {})}
    both = Requests(valid.frame)
    made = train_ctr(both, both, world.vectors, NANO, tmp_path / "r", parents, Training(epochs=1))
    assert made.parents == {"embedding": "embedding-1"}
    assert made.config["embedding_id"] == "embedding-1"


@pytest.mark.parametrize("given", [None, make_vectors(300, vector_id="embedding-2")], ids=["none", "other"])
def test_another_embedding_is_refused(full, given):
    with pytest.raises(ArtifactError, match="trained with embedding embedding-1, given"):
        Ranker.open(full, given)


def rewritten(full, out, change):
    """The artifact with its tensors or configuration changed, under a valid manifest."""
    tensors = load_file(full.file("model.safetensors"))
    config = json.loads(full.file("config.json").read_text())
    change(tensors, config)
    with write_artifact(out, "ranker", full.config) as folder:
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
    return open_artifact(out, "ranker")


def poison(tensors, config):
    tensors["head.1.weight"][0, 0] = float("nan")


def drop(tensors, config):
    del tensors["head.1.weight"]


def add(tensors, config):
    tensors["tail"] = torch.zeros(1)


def reshape(tensors, config):
    tensors["head.1.weight"] = torch.zeros(3, 3)


def typo(tensors, config):
    config["id_widht"] = 1


@pytest.mark.parametrize(
    "change,message",
    [
        (poison, r"head.1.weight: 1 of \d+ weights are not finite"),
        (drop, r"1 missing \['head.1.weight'\], 0 unexpected"),
        (add, r"0 missing \[\], 1 unexpected \['tail'\]"),
        (reshape, r"head.1.weight: expected .* found .*\(3, 3\)"),
        (typo, "not a click model's configuration .*id_widht"),
    ],
)
def test_damaged_rankers_are_refused(full, world, tmp_path, change, message):
    with pytest.raises(ArtifactError, match=message):
        Ranker.open(rewritten(full, tmp_path / "r", change), world.vectors)


def test_an_untouched_copy_of_the_same_files_opens(full, world, tmp_path):
    same = Ranker.open(rewritten(full, tmp_path / "r", lambda t, c: None), world.vectors)
    one = make_frame([1], [world.vectors.ids[:4].tolist()], [world.vectors.ids[:9].tolist()])
    assert np.array_equal(same.score(one), Ranker.open(full, world.vectors).score(one))


def test_every_request_with_a_candidate_is_in_one_batch_of_an_epoch(world):
    """In an order drawn from (seed, epoch); a request without candidates has nothing to teach."""
    source = world.frame
    frame = make_frame(
        [*source.requests["user_id"].to_pylist()[:60], 7],
        [[]] * 61,
        [
            *(
                source.candidates["item_id"].to_numpy()[10 * r : 10 * r + 1 + r % 9].tolist()
                for r in range(60)
            ),
            [],
        ],
        [*(np.full(1 + r % 9, r / 64) for r in range(60)), np.empty(0)],
    )
    counts = np.diff(frame.offsets)
    encoder = FrameEncoder(learn_inputs(Requests(frame), 50)[0], None)

    def drawn(seed, epoch):
        batches = list(epoch_batches(Requests(frame), counts, encoder, 30, (seed, epoch)))
        assert all(b.candidate_mask.numel() <= 30 for b in batches)
        return [round(float(one) * 64) for b in batches for one in b.label[:, 0]]

    assert sorted(drawn(0, 0)) == list(range(60))
    assert drawn(0, 0) == drawn(0, 0) != drawn(0, 1)
    assert drawn(0, 0) != drawn(1, 0)


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_the_validation_loss_is_that_of_all_requests_at_once(full, world, valid, monkeypatch, loss):
    ranker = Ranker.open(full, world.vectors)
    uneven = select_requests(valid.frame, np.arange(70))
    with torch.no_grad():
        whole = training_loss(ranker.model, ranker.encoder.batch(uneven), loss)
    for size_of_piece in (512, 32, 7):
        monkeypatch.setattr(attempt, "VALID_REQUESTS", size_of_piece)
        found = attempt._validate(ranker.model, Requests(uneven), ranker.encoder, loss)
        assert found == pytest.approx(float(whole), rel=1e-4), size_of_piece


def test_shuffling_keeps_ids_in_place_and_gives_them_others_vectors():
    vectors = make_vectors(300)
    first, again, other = shuffled(vectors, 0), shuffled(vectors, 0), shuffled(vectors, 1)
    assert np.array_equal(first.ids, vectors.ids) and np.array_equal(first.queries.ids, vectors.queries.ids)
    assert np.array_equal(first.matrix, again.matrix) and not np.array_equal(first.matrix, other.matrix)
    assert (first.matrix == vectors.matrix).all(1).mean() < 0.05
    assert sorted(map(tuple, first.queries.matrix)) == sorted(map(tuple, vectors.queries.matrix))
    assert not np.array_equal(first.queries.matrix, vectors.queries.matrix)
    assert (first.id, other.id) == ("embedding-1-shuffled-0", "embedding-1-shuffled-1")


def test_a_file_that_is_no_safetensors_or_of_another_precision_is_refused(full, world, tmp_path):
    def halved(tensors, config):
        tensors["head.1.weight"] = tensors["head.1.weight"].half()

    with pytest.raises(ArtifactError, match=r"head.1.weight: expected torch.float32 .* found torch.float16"):
        Ranker.open(rewritten(full, tmp_path / "half", halved), world.vectors)
    with write_artifact(tmp_path / "junk", "ranker", full.config) as folder:
        (folder / "model.safetensors").write_bytes(b"junk")
        (folder / "config.json").write_bytes(full.file("config.json").read_bytes())
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        Ranker.open(open_artifact(tmp_path / "junk", "ranker"), world.vectors)


def test_a_ranker_reads_other_vectors_of_its_embedding_and_of_no_other(full, world):
    ranker = Ranker.open(full, world.vectors)
    more = make_vectors(300)
    other = ranker.with_vectors(more)
    assert other.encoder.vectors is more and ranker.encoder.vectors is world.vectors
    assert (other.model, other.artifact, other.encoder.inputs) == (
        ranker.model,
        ranker.artifact,
        ranker.encoder.inputs,
    )
    with pytest.raises(ArtifactError, match=r"trained with embedding embedding-1, given embedding-2\. Run"):
        ranker.with_vectors(make_vectors(300, vector_id="embedding-2"))


def planned(monkeypatch, loss="pointwise", **told):
    """How a ranker would be trained: the plan and the configuration; nothing is trained.

    A checkpoint is continued by a job of the same content: one that may train for more epochs is the same job.
    """

    class Told(Exception):
        pass

    def tell(model, plan, **_):
        raise Told(plan)

    configurations, jobs = [], []
    monkeypatch.setattr(attempt, "Checkpoints", lambda out, job, parents: jobs.append(job))
    real = train_module.CtrConfig
    monkeypatch.setattr(train_module, "CtrConfig", lambda **kept: configurations.append(kept) or real(**kept))
    monkeypatch.setattr(attempt, "fit", tell)
    one = Requests(make_frame([1], [[]], [make_vectors(9).ids[:3].tolist()], [[1.0, 0.0, 0.0]]))
    with pytest.raises(Told) as said:
        train_ctr(one, one, None, NANO, Path("nowhere"), {}, Training(loss=loss, **told))
    plan = said.value.args[0]
    of_plan = {
        "epochs": None,
        "patience": plan.patience,
        "learning_rate": plan.learning_rate,
        "seed": plan.seed,
        "averaged": True,
    }
    assert {name: jobs[0][name] for name in ("plan", "requests")} == {"plan": of_plan, "requests": 1}
    told = {"plan", "requests", "config", "service", "features", "embedding_version"}
    assert set(jobs[0]) == told and jobs[0]["config"]["loss"] == loss
    return plan, configurations[0]


def test_unless_told_otherwise_rankers_are_trained_as_was_measured_best(monkeypatch):
    plan, config = planned(monkeypatch)
    assert plan == Plan(epochs=30, patience=5, learning_rate=0.001, seed=0, averaged=True)
    assert (config["learning_rate"], config["table_learning_rate"]) == (0.001, 0.00003)
    slow, fast = (0.001, 0.00003), (0.002, 0.005)
    assert train_module.LEARNING_RATES == {
        "pointwise": (slow, fast),
        "listwise": ((0.002, 0.0005), (0.002, 0.0)),
    }
    told, _ = planned(monkeypatch, loss="listwise", seed=7, epochs=3)
    assert told == Plan(3, 5, 0.002, 7, averaged=True)
    assert planned(monkeypatch, loss="listwise")[1]["table_learning_rate"] == 0.0005


@pytest.mark.parametrize(
    ("candidates", "validated", "expected"),
    [
        (17 * 512, True, (12, 2)),  # an epoch of 17 steps: two make 34, three would be more than 50
        (17 * 512 - 1, True, (18, 3)),  # 16 whole ones
        (12 * 512, True, (24, 4)),
        (0, True, (30, 5)),
        (10**9, True, (12, 2)),
        (512, False, (12, 2)),  # nothing would say when to stop
    ],
)
def test_patience_is_fifty_steps_within_two_and_five_epochs(candidates, validated, expected):
    some = Requests(make_frame([1], [[]], [[1]], [[1.0]])) if validated else None
    plan = train_module.planned(Data(some, some, np.array([candidates]), None, 512, {}), 0.1, 0)
    assert (plan.epochs, plan.patience) == expected
    assert train_module.planned(Data(some, some, np.array([512]), None, 512, {}), 0.1, 0, 7).epochs == 7


def test_the_validation_requests_choose_between_a_recipe_and_a_plainer_one(world, valid, tmp_path):
    rates = Settings(NANO.id_width, 0.002, 0.005)
    requests, checked = Requests(world.frame), Requests(valid.frame)

    def made(name, **told):
        out = tmp_path / name
        training = Training(settings=rates, epochs=2, **told)
        return train_ctr(requests, checked, world.vectors, NANO, out, {}, training)

    alone = {one.name: made(one.name, recipe=one) for one in (cube(), attention())}
    loss = {recipe: min(one.config["outcome"]["valid_loss"]) for recipe, one in alone.items()}
    assert loss["cube"] < loss["attention"], "items are liked for their vectors here"
    for name, first, second in (("stays", cube(), attention()), ("changes", attention(), cube())):
        (tmp_path / f"{name}.3.partial").mkdir()  # of a job that tried more, and was given up
        chosen = made(name, recipe=first, plainer=second)
        assert chosen.config["recipe"] == "cube"
        weights = [one.file("model.safetensors").read_bytes() for one in (chosen, alone["cube"])]
        assert weights[0] == weights[1], "the same as if nothing else had been tried"
        scored = [Ranker.open(one, world.vectors).score(valid.frame) for one in (chosen, alone["cube"])]
        np.testing.assert_array_equal(*scored)
        assert not list(tmp_path.glob("*.partial*")), "nothing is left of the others"


def test_a_loss_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="unknown loss 'pairwise': expected one of pointwise, listwise"):
        Training(loss="pairwise")


def test_a_ranker_says_how_it_was_made(full, world):
    outcome = full.config["outcome"]
    assert full.config == {
        "recipe": "cube",
        "size": "nano",
        "history": NANO.behaviours,
        "seed": 0,
        "loss": "pointwise",
        "embedding_id": "embedding-1",
        "outcome": outcome,
    }
    assert set(outcome) == {"epochs", "best", "train_loss", "valid_loss"} and full.kind == "ranker"
    assert outcome["best"] == 1 + int(np.argmin(outcome["valid_loss"]))
    text = full.file("config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n", "for people to read"
    assert sorted(path.name for path in full.path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert not full.path.with_name("ranker_full.partial").exists()


def untrained(path, seed=0, **parents):
    """A ranker that was trained for no epoch at all, on one request."""
    one = Requests(make_frame([1], [[]], [make_vectors(9).ids[:3].tolist()], [[1.0, 0.0, 0.0]]))
    return train_ctr(one, one, None, NANO, path, parents, Training(seed=seed, epochs=0))


def test_a_ranker_names_its_parents_and_begins_where_its_seed_says(tmp_path):
    parent = untrained(tmp_path / "parent")
    made, other = untrained(tmp_path / "a", split=parent), untrained(tmp_path / "b", seed=1)
    assert made.parents == {"split": parent.id} and parent.parents == {}
    first, again, another = (load_file(one.file("model.safetensors")) for one in (parent, made, other))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, tensor in first.items():
        if "embedding_bags" in name:  # an untrained id has almost no effect: evenly between -0.01 and 0.01
            assert not torch.equal(tensor, another[name])
            assert tensor.min() < -0.005 and tensor.max() > 0.005 and tensor.abs().max() <= 0.01
            assert float(tensor.std()) == pytest.approx(0.01 / 3**0.5, rel=0.25), name
    assert first["position"].shape == (1,), "no place was logged"
    assert made.config["outcome"] == {"epochs": 0, "best": 0, "train_loss": [], "valid_loss": []}
