"""What a request asks of retrieval: which items speak for a user, and requests in columns against one by one.

Run: pytest tests/test_retrieval_requests.py
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.contracts import TIME
from feature_repo.frame import Frame, History
from retrieval.requests import Request, Requests, history_of, interests

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DISLIKED = 5
behaviours = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=60)


def history(users):
    flat = [pair for user in users for pair in user]
    return History(
        np.cumsum([0, *(len(user) for user in users)]),
        np.array([item for item, _ in flat], np.int64),
        np.array([code for _, code in flat], np.int64),
        np.arange(len(flat), dtype=np.int64),
    )


def spoken(user):
    """The slow twin: walk back from the newest behaviour."""
    items = []
    for item, code in reversed(user):
        if code != DISLIKED and item not in items and len(items) < 20:
            items.append(item)
    return [(item, np.float32(0.9**rank)) for rank, item in enumerate(items)]


@given(st.lists(behaviours, max_size=5))
def test_the_newest_distinct_positive_items_speak_each_less_than_the_next_newer(users):
    found = interests(history(users))
    assert len(found.offsets) == len(users) + 1 and found.weight.dtype == np.float32
    for start, stop, user in zip(found.offsets[:-1], found.offsets[1:], users, strict=True):
        assert list(zip(found.item_id[start:stop], found.weight[start:stop], strict=True)) == spoken(user)


def test_a_session_is_a_history_of_clicks():
    session = history_of([7, 3, 7])
    assert session.item_id.tolist() == [7, 3, 7] and session.code.tolist() == [1, 1, 1]
    assert session.offsets.tolist() == [0, 3] and session.time_us.tolist() == [0, 0, 0]
    assert len(session) == 1 and len(history_of([]).item_id) == 0


def user_row(user, angle=0.5):
    return pa.table(
        {
            "request_id": [user],
            "user_id": [user],
            "time": pa.array([NOW], TIME),
            "query_id": pa.array([9 if user == 2 else None], pa.int64()),
            "angle": [angle],
        }
    )


def request(who, items=(), query=None, **more):
    return Request(who, history_of(items), NOW, None if query is None else np.float32(query), **more)


FOUR = [
    request(1, [5, 6], [1, 0], category="a", exclude=np.array([6]), user=user_row(1)),
    request(2, [], None, user=user_row(2)),
    request(3, [9], [0, 1], category="b", user=user_row(3)),
    request(4, [1, 2, 3], [0, 0], exclude=np.array([2, 8]), user=user_row(4)),
]


def same(ours, theirs):
    for name in ("offsets", "item_id", "code", "time_us"):
        np.testing.assert_array_equal(getattr(ours.history, name), getattr(theirs.history, name), name)
    np.testing.assert_array_equal(ours.query_vectors, theirs.query_vectors)
    assert ours.categories == theirs.categories and ours.users == theirs.users
    assert [one.tolist() for one in ours.exclude] == [one.tolist() for one in theirs.exclude]


def test_requests_in_columns_hold_what_each_asks():
    batch = Requests.of(FOUR)
    assert len(batch) == 4 and batch.categories == ("a", None, "b", None)
    assert batch.history.offsets.tolist() == [0, 2, 2, 3, 6]
    assert batch.history.item_id.tolist() == [5, 6, 9, 1, 2, 3]
    assert batch.query_vectors.dtype == np.float32
    assert batch.query_vectors.tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]
    assert batch.has_query().tolist() == [True, False, True, False]
    assert [one.tolist() for one in batch.exclude] == [[6], [], [], [2, 8]]
    assert batch.users["user_id"].to_pylist() == [1, 2, 3, 4]


def test_nobody_with_a_query_and_somebody_without_features():
    batch = Requests.of([FOUR[1], request(7, [5])])
    assert batch.query_vectors is None and batch.has_query().tolist() == [False, False]
    assert batch.users is None, "one of the two has no features"
    none = Requests.of([])
    assert len(none) == 0 and none.users is None and none.history.item_id.dtype == np.int64
    with pytest.raises(ValueError, match="too many values"):
        Requests.of([request(1, [], [1, 0]), request(2, [], [1, 0, 0])])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1], [2, 2, 0], []])
def test_selected_requests_are_those_asked_alone(rows):
    got = Requests.of(FOUR).select(np.array(rows, np.int64))
    if rows:
        wanted = Requests.of([FOUR[row] for row in rows])
        if wanted.query_vectors is None:
            assert not got.has_query().any()
            wanted = got
        same(got, wanted)
    assert len(got) == len(rows)
    bare = Requests.of([request(7, [5]), request(8, [6, 4])]).select(np.array([1]))
    assert bare.users is None and bare.query_vectors is None and bare.history.item_id.tolist() == [6, 4]


def test_the_requests_of_a_frame():
    users = pa.concat_tables([user_row(1), user_row(2)])
    past = history([[(5, 1), (4, 3), (5, 2)], []])
    frame = Frame(users, pa.table({"item_id": [1, 2, 3]}), np.array([0, 1, 3]), past)
    got = Requests.from_frame(frame)
    assert got.users is users and got.history is past and got.query_vectors is None
    assert got.categories == (None, None)
    assert got.user_id.tolist() == [1, 2] and got.query_id.tolist() == [-1, 9]
    assert got.texts == got.pictures == (None, None)
    assert [one.tolist() for one in got.exclude] == [[], []]


def test_the_two_towers_read_users_and_histories_without_candidates():
    frame = Requests.of(FOUR).two_tower_frame()
    assert frame.requests["user_id"].to_pylist() == [1, 2, 3, 4] and len(frame.candidates) == 0
    assert frame.offsets.tolist() == [0] * 5 and frame.offsets.dtype == np.int64
    assert frame.history.item_id.tolist() == [5, 6, 9, 1, 2, 3]


def test_columns_are_of_the_types_of_a_stored_history():
    for history in (history_of([7, 3]), history_of([]), Requests.of(FOUR).history, Requests.of([]).history):
        for name in ("offsets", "item_id", "code", "time_us"):
            assert getattr(history, name).dtype == np.int64, name
    chosen = Requests.of(FOUR).select(np.array([2, 0]))
    assert chosen.history.offsets.dtype == np.int64 and chosen.query_vectors.dtype == np.float32
    spoken = interests(Requests.of(FOUR).history)
    kinds = (spoken.offsets.dtype, spoken.item_id.dtype, spoken.weight.dtype)
    assert kinds == (np.int64, np.int64, np.float32)
    assert request(1).exclude.dtype == np.int64 and not len(request(1).exclude)
    assert Requests.of([request(1)]).has_query().dtype == Requests.of(FOUR).has_query().dtype == bool
    large = 2**62 + 1  # not a whole number in double precision
    assert history_of([large]).item_id.tolist() == [large]
