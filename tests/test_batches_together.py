"""Batches whose requests are encoded together are those that would be encoded alone."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from ranker_world import Requests, make_frame, make_vectors
from torchrec import KeyedJaggedTensor

from ranker import ranks
from ranker.inputs.batch import Batch
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder

VECTORS = make_vectors(40)


def uneven():
    """Requests with one to five candidates, none to four behaviours and, some of them, a query."""
    draw, ids = np.random.default_rng(3), VECTORS.ids
    counts = draw.integers(1, 6, 23)
    return make_frame(
        user_id=list(range(23)),
        history=[draw.choice(ids, n).tolist() for n in draw.integers(0, 5, 23)],
        candidates=[draw.choice(ids, n).tolist() for n in counts],
        labels=[draw.integers(0, 2, n) for n in counts],
        query_id=[None, 2, 777] * 7 + [None, None],
        positions=[np.arange(n) for n in counts],
    )


@pytest.mark.parametrize("at_once,behaviours", [(1, 1000), (3, 1000), (8, 1000), (8, 4 * 5 * 2)])
def test_batches_that_are_encoded_together_are_those_encoded_alone(monkeypatch, at_once, behaviours):
    """The slow twin encodes each batch from its own requests."""
    monkeypatch.setattr(ranks, "AT_ONCE", at_once)
    monkeypatch.setattr(ranks, "BEHAVIOURS", behaviours)
    stored = Requests(uneven())
    code = FrameEncoder(learn_inputs(stored, 4)[0], VECTORS)
    order = np.random.default_rng(4).permutation(23)
    groups = [order[start : start + 5] for start in range(0, 23, 5)]
    together = list(ranks.ALL.batches(stored, code, groups))
    assert len(together) == len(groups)
    for batch, rows in zip(together, groups, strict=True):
        alone = code.batch(stored.select(rows))
        for one in fields(Batch):
            mine, theirs = getattr(batch, one.name), getattr(alone, one.name)
            if isinstance(theirs, KeyedJaggedTensor):
                assert mine.keys() == theirs.keys() and mine.stride() == theirs.stride()
                assert torch.equal(mine.lengths(), theirs.lengths()), one.name
                mine, theirs = mine.values(), theirs.values()
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), one.name


def test_no_more_is_encoded_together_than_memory_was_meant_for():
    groups = [np.arange(n) for n in (5, 5, 5, 2, 30)]
    whole = [[len(rows) for rows in some] for some in ranks.together(iter(groups), 10)]
    assert whole == [[5, 5, 5, 2, 30]]
    most = ranks.BEHAVIOURS // 10
    assert [[len(rows) for rows in some] for some in ranks.together(groups, most)] == [[5, 5], [5, 2], [30]]
    nine = [np.arange(1)] * 9
    assert [len(some) for some in ranks.together(nine, 10)] == [ranks.AT_ONCE, 9 - ranks.AT_ONCE]
