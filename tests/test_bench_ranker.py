"""The benchmark of the ranker: one file for all, equal answers of the fast and the padded form, and who is absent."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from bench_world import FEW
from typer.testing import CliRunner

from evaluation.bench import ranker
from evaluation.bench.impressions import generate, read_impressions, write_impressions
from evaluation.bench.lines import line
from evaluation.bench.peers import Fuxi, Ours, Rechub, padded
from moon.cli import app


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    made, probability = generate(2600, 10, **FEW, seed=1)
    path = tmp_path_factory.mktemp("impressions") / "all.parquet"
    write_impressions(path, made)
    return read_impressions(path, probability, 10, **FEW)


def test_clicks_are_drawn_with_the_known_probabilities():
    made, probability = generate(4000, 10, **FEW)
    clicked = made["label"].to_numpy()
    likely = probability > np.median(probability)
    for half in (likely, ~likely):
        sure = np.sqrt((probability[half] * (1 - probability[half])).sum()) / half.sum()
        assert abs(clicked[half].mean() - probability[half].mean()) < 4 * sure


def test_parts_are_cut_between_requests_and_keep_every_row(given):
    parts = [part["request_id"].to_numpy() for part in (given.train, given.valid, given.test)]
    assert [len(part) for part in parts] == [20_000, 2000, 4000]
    assert len(np.unique(np.concatenate([np.unique(part) for part in parts]))) == 2600
    assert 0.65 < given.best < 0.9


def test_histories_are_padded_on_the_left():
    part = pa.table(
        {
            "user_id": [1, 2],
            "item_id": [3, 4],
            "category": [5, 6],
            "history": [[7, 8], [9]],
            "label": pa.array([0, 1], pa.float32()),
        }
    )
    assert padded(part, 3)["history"].tolist() == [[0, 7, 8], [0, 0, 9]]
    assert padded(part.slice(1), 2)["history"].tolist() == [[0, 9]]


def test_an_impression_scores_alike_alone_and_beside_those_of_its_request(given):
    together = Ours(given, 0, (1e-3, 0.05), grouped=True)
    together.epoch(0)
    alone = Ours(given, 0, (1e-3, 0.05), grouped=False)
    alone.model.load_state_dict(together.model.state_dict())
    np.testing.assert_allclose(together.scores(given.test), alone.scores(given.test), rtol=0, atol=1e-5)


class Knowing:
    """Has learned all once it was trained."""

    trained = False

    def epoch(self, seed):
        self.trained = True

    def scores(self, part):
        label = part["label"].to_numpy()
        return label if self.trained else -label


def test_a_contestant_is_examined_after_its_training(given):
    assert ranker.trained(Knowing(), given, 0)[1] == 1.0


def test_ours_is_measured_with_its_loader(measured):
    lines = {one.name: one for one in measured("bench_peers").lines}
    assert all(one.value > 0 for name, one in lines.items() if "less" not in name)
    assert lines["DIN, ours: the loader, times the training with it"].goal == 5.0


def test_long_histories_are_measured_beside_padded_samples_of_equal_logits(measured):
    lines = measured("bench_lengths").lines
    exact = [one for one in lines if "largest difference" in one.name]
    assert len(exact) == 2 and all(one.met for one in exact)
    assert [one.goal for one in lines if one.goal] == [5.0, 1e-5, 5.0, 8.0, 9.0, 1e-5]
    assert all(one.value > 0 for one in lines if one not in exact)


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(Rechub, marks=pytest.mark.peer("torch_rechub")),
        pytest.param(Fuxi, marks=pytest.mark.peer("fuxictr")),
    ],
)
def test_a_peer_learns_what_it_is_given(peer, given):
    one = peer(given, 0, 1e-3)
    one.epoch(0)
    assert len(one.scores(given.valid)) == len(given.valid)


def test_absent_libraries_are_named_with_their_install_command(monkeypatch):
    monkeypatch.setattr(Rechub, "needs", ("no_such_library",))
    monkeypatch.setattr(Fuxi, "needs", ("torch",))
    monkeypatch.setattr(ranker, "bench_ranker", lambda: iter([line("speed", [3.0])]))
    shown = CliRunner().invoke(app, ["bench", "ranker"])
    assert shown.exit_code == 0 and "speed" in shown.stdout
    assert (
        "torch-rechub" in shown.stderr and "pip install" in shown.stderr and "FuxiCTR (" not in shown.stderr
    )
    monkeypatch.setattr(Rechub, "needs", ("torch",))
    assert ranker.left_out() == ""


def test_one_thread_only_while_it_measures(monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(ranker, "bench_peers", lambda: iter(()))
    monkeypatch.setattr(ranker, "bench_lengths", lambda: iter([seen.append(torch.get_num_threads())]))
    torch.set_num_threads(2)
    try:
        list(ranker.bench_ranker())
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
