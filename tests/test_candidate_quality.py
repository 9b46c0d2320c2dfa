"""What each source finds, alone, together and alone of all, counted by hand."""

import numpy as np
import pytest

from evaluation import candidate_quality as module
from evaluation.candidate_quality import ABSENT, candidate_quality, places
from evaluation.retrieval_quality import Relevant
from retrieval.jagged import stack


def listed(*lists):
    return stack((np.array(ids, np.int64), -np.arange(len(ids), dtype=np.float32)) for ids in lists)


# Request 0 wants 1 and 2, request 1 wants 3, request 2 wants nothing, request 3 wants 9, which nobody finds.
RELEVANT = Relevant(np.array([0, 2, 3, 3, 4]), np.array([1, 2, 3, 9]))
A = listed([1, 7, 2], [8, 3], [1], [4])
B = listed([5, 1], [3], [], [])
FUSED = listed([1, 5, 7, 2], [3, 8], [1], [4])


def test_every_share_is_that_counted_by_hand(monkeypatch):
    monkeypatch.setattr(module, "DEPTHS", (1, 2, 3))
    found = {
        one.name.removeprefix("candidates/"): one
        for one in candidate_quality({"a": A, "b": B}, FUSED, RELEVANT)
    }
    expected = {
        "a/recall@1": (1 / 2 + 0 + 0) / 3, "a/recall@2": (1 / 2 + 1 + 0) / 3, "a/recall@3": (1 + 1 + 0) / 3,
        "b/recall@1": (0 + 1 + 0) / 3, "b/recall@2": (1 / 2 + 1 + 0) / 3, "b/recall@3": (1 / 2 + 1 + 0) / 3,
        "a/unique@1": (1 / 2) / 3, "a/unique@2": 0, "a/unique@3": (1 / 2) / 3,
        "b/unique@1": 1 / 3, "b/unique@2": 0, "b/unique@3": 0,
        "union/recall@1": (1 / 2 + 1) / 3, "union/recall@2": (1 / 2 + 1) / 3, "union/recall@3": (1 + 1) / 3,
        "fused/recall@1": (1 / 2 + 1) / 3, "fused/recall@2": (1 / 2 + 1) / 3, "fused/recall@3": (1 / 2 + 1) / 3,
    }  # fmt: skip
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected)
    assert {one.n for one in found.values()} == {3}


def test_the_place_of_what_was_not_found_is_beyond_any_depth():
    assert places(A, RELEVANT).tolist() == [0, 2, 1, ABSENT]


def test_nothing_is_measured_where_nothing_was_wanted():
    nothing = Relevant(np.zeros(5, np.int64), np.empty(0, np.int64))
    assert not list(candidate_quality({"a": A}, FUSED, nothing))
