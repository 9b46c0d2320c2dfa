"""The fused tables are plain embedding tables with row-wise Adagrad, only faster."""

import numpy as np
import torch
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from ranker.inputs.bags import jagged
from ranker.inputs.id_tables import collection, is_table, lookup

RATE, EPS = 0.05, 1e-8


def bags(draw, count=400, rows=30):
    lengths = draw.integers(0, 2, count)
    return jagged(("item_id",), [draw.integers(0, rows, lengths.sum())], [lengths]), lengths.astype(bool)


def test_twenty_steps_equal_plain_rowwise_adagrad_with_duplicates():
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    fused = collection({"item_id": 30}, 8, RATE)
    weight = fused.state_dict()["embedding_bags.t_item_id.weight"].clone().double()
    accumulator = torch.zeros(30, dtype=torch.float64)
    target = torch.randn(400, 8)
    for _ in range(20):
        ids, candidate_mask = bags(draw)
        where = torch.from_numpy(candidate_mask)
        out = lookup(fused, ids)
        ((out - target) ** 2).sum().backward()
        plain = weight.clone().requires_grad_()
        looked = torch.zeros(400, 8, dtype=torch.float64)
        looked[where] = plain[ids.values()]
        ((looked - target) ** 2).sum().backward()
        touched = torch.unique(ids.values())
        accumulator[touched] += plain.grad[touched].square().mean(1)
        weight[touched] -= RATE * plain.grad[touched] / (accumulator[touched].sqrt() + EPS)[:, None]
    final = fused.state_dict()["embedding_bags.t_item_id.weight"]
    assert (final - weight).abs().max() < 1e-5


def test_bags_of_one_read_what_torchrecs_sequence_collection_reads():
    torch.manual_seed(0)
    fused = collection({"item_id": 30}, 8, RATE)
    sequence = EmbeddingCollection(
        [EmbeddingConfig(name="t_item_id", embedding_dim=8, num_embeddings=30, feature_names=["item_id"])]
    )
    with torch.no_grad():
        sequence.embeddings["t_item_id"].weight.copy_(fused.state_dict()["embedding_bags.t_item_id.weight"])
    values = torch.randint(0, 30, (100,))
    as_bags = jagged(("item_id",), [values.numpy()], [np.ones(100)])
    as_sequences = KeyedJaggedTensor(
        ["item_id"], values, lengths=torch.tensor([60, 0, 40], dtype=torch.int32)
    )
    assert torch.equal(lookup(fused, as_bags), sequence(as_sequences)["item_id"].values())


def test_an_empty_bag_reads_zeros_and_trains_nothing():
    fused = collection({"item_id": 30}, 8, RATE)
    before = fused.state_dict()["embedding_bags.t_item_id.weight"].clone()
    out = lookup(fused, jagged(("item_id",), [np.array([3])], [np.array([0, 1, 0])]))
    assert not out[[0, 2]].any()
    out.sum().backward()
    changed = (fused.state_dict()["embedding_bags.t_item_id.weight"] != before).any(1)
    assert changed.nonzero().flatten().tolist() == [3]


def test_the_dense_optimizer_is_told_which_weights_update_themselves():
    fused = collection({"item_id": 30}, 8, RATE)
    assert all(is_table(name) for name, _ in fused.named_parameters())
    assert not is_table("head.1.weight")
