"""Rows of different lengths, against the plainest Python that says the same.

Run: pytest tests/test_jagged.py
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataset.jagged import entries, offsets_of, owners
from retrieval.jagged import best_first, group_best, stack

SCORES = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 2.0])  # few, so that many are equal
answers = st.dictionaries(st.integers(-5, 60), SCORES, max_size=30)


def arrays(scored):
    return np.array(list(scored), np.int64), np.array(list(scored.values()), np.float32)


def sorted_best(scored, k):
    return sorted(scored.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


def pairs(ids, scores):
    return list(zip(ids.tolist(), scores.tolist(), strict=True))


@given(answers, st.integers(1, 40))
def test_the_best_come_first_and_equal_scores_by_id(scored, k):
    assert pairs(*best_first(*arrays(scored), k)) == sorted_best(scored, k)


@given(st.lists(answers, min_size=1, max_size=6), st.integers(1, 8), st.randoms())
def test_each_request_keeps_its_own_best_whatever_order_the_rows_come_in(requests, k, chance):
    rows = [(place, *pair) for place, scored in enumerate(requests) for pair in scored.items()]
    chance.shuffle(rows)
    request, item_id, score = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([],) * 3
    got = group_best(
        np.asarray(request, np.int64),
        np.asarray(item_id, np.int64),
        np.asarray(score, np.float32),
        len(requests),
        k,
    )
    assert [pairs(*answer) for answer in got] == [sorted_best(scored, k) for scored in requests]
    assert len(got) == len(requests)


@given(st.lists(st.integers(0, 5), max_size=8))
def test_offsets_and_owners_say_the_same_of_the_rows(counts):
    offsets = offsets_of(np.array(counts, np.int64))
    assert offsets.dtype == np.int64 and offsets.tolist() == [sum(counts[:n]) for n in range(len(counts) + 1)]
    assert owners(offsets).tolist() == [place for place, count in enumerate(counts) for _ in range(count)]


def test_answers_one_after_the_other():
    stacked = stack([(np.array([4, 2]), np.array([1.0, 0.5], np.float32)), arrays({}), arrays({7: 3.0})])
    assert stacked.offsets.tolist() == [0, 2, 2, 3] and stacked.item_id.tolist() == [4, 2, 7]
    assert stacked.score.tolist() == [1.0, 0.5, 3.0] and len(stacked) == 3
    assert pairs(*stacked[0]) == [(4, 1.0), (2, 0.5)] and pairs(*stacked[1]) == []
    nothing = stack([])
    assert len(nothing) == 0 and nothing.item_id.dtype == np.int64 and nothing.score.dtype == np.float32


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=12))
def test_entries_of_stretches_come_stretch_after_stretch(stretches):
    starts, counts = np.array(stretches, np.int64).reshape(-1, 2).T
    places, offsets = entries(starts, counts)
    assert places.tolist() == [place for start, count in stretches for place in range(start, start + count)]
    assert offsets.tolist() == [sum(counts[:row].tolist()) for row in range(len(stretches) + 1)]
