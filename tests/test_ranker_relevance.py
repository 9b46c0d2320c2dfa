"""The relevance head knows a planted rule and says how sure it is."""

import numpy as np
import pytest
import torch
from ranker_world import auc, unit
from safetensors.torch import load_file, save_file

from dataset.contracts import DataError
from ranker.relevance import Relevance, train_relevance
from run.artifacts import ArtifactError, open_artifact, write_artifact

WIDTH = 16


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
    yield train_relevance(query, item, label, tmp_path_factory.mktemp("run") / "relevance", {})
    torch.set_num_threads(before)


def test_the_planted_rule_is_found_where_the_cosine_misses_it(trained):
    query, item, label, probability = pairs(3000, 1)
    best, cosine = auc(label, probability), auc(label, (query * item).sum(1))
    found = auc(label, Relevance.open(trained).score(query, item))
    assert cosine < best - 0.08
    assert found > best - 0.03


def test_scores_are_calibrated_log_odds(trained):
    query, item, label, _ = pairs(6000, 2)
    chance = 1 / (1 + np.exp(-Relevance.open(trained).score(query, item)))
    assert abs(chance.mean() - label.mean()) < 0.03
    for part in np.array_split(np.argsort(chance), 6):
        assert abs(chance[part].mean() - label[part].mean()) < 0.07


def test_one_query_against_many_items_is_the_same_as_pairs(trained):
    relevance, (query, item, _, _) = Relevance.open(trained), pairs(50, 3)
    np.testing.assert_allclose(
        relevance.score(query[0], item), relevance.score(np.repeat(query[:1], 50, 0), item), atol=1e-6
    )
    assert relevance.score(query[0], item[:0]).shape == (0,)


def test_equal_seeds_give_equal_bits(tmp_path):
    query, item, label, _ = pairs(500, 4)
    first = train_relevance(query, item, label, tmp_path / "a", {})
    assert train_relevance(query, item, label, tmp_path / "b", {}).id == first.id


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
        train_relevance(*change(*pairs(20, 5)[:3]), tmp_path / "r", {})


def test_weights_that_are_not_finite_are_refused(trained, tmp_path):
    tensors = load_file(trained.file("model.safetensors"))
    tensors["line"][0] = float("inf")
    with write_artifact(tmp_path / "r", "relevance", {}) as folder:
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_bytes(trained.file("config.json").read_bytes())
    with pytest.raises(ArtifactError, match="line: 1 of 2 weights are not finite"):
        Relevance.open(open_artifact(tmp_path / "r", "relevance"))
