"""Frames become jagged tensors: nothing shifted, nothing read outside a slice, nothing silently absent."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import NOW_US, Requests, make_frame, make_vectors

from dataset.contracts import DataError
from feature_repo.frame import Frame, History
from ranker.inputs import columns
from ranker.inputs.columns import BAG, CANDIDATE_IDS, Inputs, learn_inputs, number
from ranker.inputs.frame_encoder import (
    FrameEncoder,
    behaviour_ids,
    jagged,
    select_requests,
    size_groups,
    slots,
)
from ranker.inputs.hashing import hash_integers, hash_strings, table_rows

VECTORS = make_vectors(40)


def small_frame():
    ids = VECTORS.ids
    return make_frame(
        user_id=[1, 2, 3],
        history=[ids[:3].tolist(), [], ids[5:6].tolist()],
        candidates=[ids[:2].tolist(), ids[2:7].tolist(), ids[9:10].tolist()],
        labels=[[1, 0], [0, 0, 1, 0, 0], [1]],
        query_id=[None, 2, 777],
        positions=[[0, 1], [0, 1, 2, 3, 4], [0]],
    )


def encoder(frame=None, vectors=VECTORS):
    return FrameEncoder(learn_inputs(Requests(frame or small_frame()), 50)[0], vectors)


def test_hashes_are_the_same_in_every_run():
    # the published first outputs of splitmix64 for the seeds 0, 1 and 2^64 - 1
    splitmix = [16294208416658607535, 10451216379200822465, 16490336266968443936]
    assert hash_integers(np.array([0, 1, -1])).tolist() == splitmix
    red = int.from_bytes(hashlib.blake2b(b"colour=red", digest_size=8).digest(), "little")
    assert red == 2968809934448323355
    hashed = hash_strings(pa.array(["colour=red", None, "", "colour=red"])).tolist()
    assert hashed[0] == hashed[3] == red
    assert hashed[1] == hashed[2] != red


def test_ids_spread_over_the_rows_of_a_table():
    rows = hash_integers(np.arange(10_000) * 64) % table_rows(10_000)
    assert len(np.unique(rows)) > 0.93 * 10_000


@pytest.mark.parametrize("start,stop", [(0, 8), (2, 7), (7, 8)])
def test_bags_of_a_sliced_arrow_column_are_the_slice(start, stop):
    whole = small_frame().candidates
    sliced = whole.slice(start, stop - start)
    code = encoder()
    everywhere = np.ones((1, stop - start), dtype=bool)
    ids = code.candidate_ids(sliced, everywhere).to_dict()
    assert list(ids) == [*CANDIDATE_IDS, BAG]
    bags = [whole[BAG][row].as_py() for row in range(start, stop)]
    expected = [
        int(hash_strings(pa.array([text]))[0] % np.uint64(code.inputs.rows[BAG]))
        for bag in bags
        for text in bag
    ]
    assert ids[BAG].lengths().tolist() == [len(bag) for bag in bags]
    assert ids[BAG].values().tolist() == expected
    spu = [
        int(hash_integers(np.array([v]))[0] % np.uint64(code.inputs.rows["spu"]))
        for v in sliced["spu"].to_pylist()
    ]
    assert ids["spu"].values().tolist() == spu


def test_null_and_empty_bags_are_empty():
    frame = small_frame()
    bags = pa.array([None, [], ["a"], None, ["a", "b"], [], [], []], pa.list_(pa.string()))
    at = frame.candidates.column_names.index(BAG)
    changed = frame.candidates.set_column(at, BAG, bags)
    ids = encoder().candidate_ids(changed, np.ones((1, 8), dtype=bool)).to_dict()[BAG]
    assert ids.lengths().tolist() == [0, 0, 1, 0, 2, 0, 0, 0]
    assert len(ids.values()) == 3


def test_candidates_fill_from_the_left_and_histories_from_the_right():
    batch = encoder().batch(small_frame())
    assert batch.candidate_mask.tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    assert batch.history_mask.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert batch.label.tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert batch.position[0].tolist() == [0, 1, -1, -1, -1]
    assert (batch.history_content[2, 2].numpy() == VECTORS.matrix[5]).all()
    assert (batch.target_content[1, 1].numpy() == VECTORS.matrix[3]).all()
    assert not batch.target_content[2, 1:].any()
    lengths = batch.items.lengths().tolist()
    assert lengths == [
        *batch.candidate_mask.flatten().int().tolist(),
        *batch.history_mask.flatten().int().tolist(),
    ]


def test_queries_are_found_by_id_or_given():
    batch = encoder().batch(small_frame())
    assert batch.query_known.tolist() == [False, True, False]  # none, known, unknown
    assert (batch.query_content[1].numpy() == VECTORS.queries.matrix[2]).all()
    assert batch.requests.to_dict()["query_id"].lengths().tolist() == [0, 1, 1]
    given = np.zeros((3, VECTORS.width), np.float32)
    given[0, 0] = 1
    assert encoder().batch(small_frame(), given).query_known.tolist() == [True, False, False]


def test_numbers_are_standardised_over_the_training_rows():
    frame = small_frame()
    inputs = encoder().inputs
    batch = encoder().batch(frame)
    price = np.log1p(frame.candidates["price"].to_numpy())
    column = inputs.candidate_numbers.index("price")
    np.testing.assert_allclose(
        batch.candidate_numbers[batch.candidate_mask][:, column],
        (price - price.mean()) / price.std(),
        atol=1e-5,
    )
    assert inputs.scale["age_s"][1] == 1.0  # a constant column is not divided by zero


def test_missing_columns_are_named_all_at_once():
    frame = small_frame()
    cut = Frame(frame.requests, frame.candidates.drop_columns(["price", "spu"]), frame.offsets, frame.history)
    with pytest.raises(DataError, match=r"2 of \d+ expected columns are missing \(spu, price\)"):
        encoder().batch(cut)


def test_match_columns_are_found_and_then_required():
    ids = VECTORS.ids
    with_match = make_frame([1], [[]], [ids[:3].tolist()], matches={"match_two_tower": [0.1, 0.2, 0.3]})
    inputs = learn_inputs(Requests(with_match), 50)[0]
    assert inputs.matches == ("match_two_tower",)
    with pytest.raises(DataError, match="match_two_tower"):
        FrameEncoder(inputs, VECTORS).batch(make_frame([1], [[]], [ids[:3].tolist()]))


def test_numbers_that_are_not_finite_are_refused():
    bad = make_frame([1], [[]], [VECTORS.ids[:3].tolist()], matches={"match_x": [0.1, np.nan, 0.3]})
    with pytest.raises(DataError, match=r"match_x: 1 of 3 values are null or not finite \(rows \[1\]\)"):
        learn_inputs(Requests(bad), 50)


def test_longer_histories_than_in_training_are_refused():
    inputs = learn_inputs(Requests(small_frame()), 2)[0]
    with pytest.raises(DataError, match="at most 2 behaviours per request, found 3"):
        FrameEncoder(inputs, VECTORS).batch(small_frame())


def test_what_was_learned_survives_json():
    import json
    from dataclasses import asdict

    inputs = encoder().inputs
    assert Inputs.from_json(json.loads(json.dumps(asdict(inputs)))) == inputs
    assert inputs.position_share == (3 / 8, 2 / 8, 1 / 8, 1 / 8, 1 / 8)


def test_selected_requests_are_the_requests():
    frame = small_frame()
    chosen = select_requests(frame, np.array([2, 0]))
    assert chosen.requests["user_id"].to_pylist() == [3, 1]
    assert chosen.candidates["item_id"].to_pylist() == VECTORS.ids[[9, 0, 1]].tolist()
    assert chosen.history.item_id.tolist() == VECTORS.ids[[5, 0, 1, 2]].tolist()
    assert chosen.history.offsets.tolist() == [0, 1, 4]
    assert (chosen.history.time_us < NOW_US).all()


def test_groups_hold_every_request_once_within_the_budget():
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 60, 500)
    counts[7] = 1000
    groups = list(size_groups(counts, draw.permutation(500), 256))
    assert sorted(np.concatenate(groups)) == list(range(500))
    assert all(len(g) == 1 or len(g) * counts[g].max() <= 256 for g in groups)
    assert sum(len(g) * counts[g].max() for g in groups) < 1.15 * counts.sum()


def test_no_history_at_all_is_one_empty_slot():
    assert slots(np.zeros(3, dtype=np.int64), left=False).tolist() == [[False]] * 3


def test_numbers_enter_as_their_kind_says():
    table = pa.table(
        {
            "price": [0.0, 1.0, 9.0, -3.0],  # log(1 + x), nothing below 0
            "rate_all": [0.0, 0.5, 1.0, 0.25],  # as it is
            "match_two_tower": [-0.5, 0.0, 0.5, 1.0],  # as it is
            "match_cooccurrence": [0.0, 1e-3, 9e-3, -1.0],  # log(1 + x / 0.001)
        }
    )
    logs = [0.0, np.log(2), np.log(10), 0.0]
    for name, expected in {
        "price": logs, "match_cooccurrence": logs, "rate_all": [0.0, 0.5, 1.0, 0.25],
        "match_two_tower": [-0.5, 0.0, 0.5, 1.0],
    }.items():  # fmt: skip
        np.testing.assert_allclose(number(table, name), expected, rtol=1e-6, err_msg=name)
        assert number(table, name).dtype == np.float32


def test_standardised_numbers_are_cut_at_five_deviations():
    code = encoder()
    code = FrameEncoder(Inputs(**{**vars(code.inputs), "scale": {"rate_all": (1.0, 0.5)}}), None)
    table = pa.table({"rate_all": [1.0, 1.5, 3.4, 9.0, -9.0]})
    np.testing.assert_allclose(code.numbers(table, ("rate_all",))[:, 0], [0, 1, 4.8, 5, -5], rtol=1e-6)


def test_what_is_learned_counts_every_chunk_once(monkeypatch):
    """Distinct ids give the rows of the tables, eight for each and eight at least; histories count as items."""
    frame = small_frame()
    frame.history.item_id[-1] = VECTORS.ids[30]  # remembered and never shown
    whole = learn_inputs(Requests(frame), 50)
    monkeypatch.setattr(columns, "CHUNK_REQUESTS", 2)
    inputs, counts = learn_inputs(Requests(frame), 50)
    assert counts.tolist() == whole[1].tolist() == [2, 5, 1]
    assert inputs.rows == whole[0].rows and inputs.position_share == whole[0].position_share
    for table, names in ((frame.requests, columns.REQUEST_IDS), (frame.candidates, CANDIDATE_IDS)):
        for name in names:
            assert inputs.rows[name] == max(8, 8 * len(set(table[name].to_pylist()) - {None})), name
    texts = {text for bag in frame.candidates[BAG].to_pylist() for text in bag}
    assert inputs.rows[BAG] == 8 * len(texts)
    met = {*frame.candidates["item_id"].to_pylist(), *frame.history.item_id.tolist()}
    assert inputs.rows["item_id"] == 8 * len(met) and inputs.history == 50 and inputs.matches == ()
    price = np.log1p(frame.candidates["price"].to_numpy().astype(np.float64))
    assert inputs.scale["price"] == pytest.approx((price.mean(), price.std()), rel=1e-5)
    assert inputs.scale["price"] == pytest.approx(whole[0].scale["price"])


def test_behaviours_are_told_by_kind_and_by_age_in_doubling_minutes():
    minutes = [0.0, 0.5, 1.0, 2.9, 3.0, 7.0, 1e10, -4.0]
    history = History(
        np.array([0, 8]), np.arange(8), np.array([1, 2, 3, 4, 5, 1, 2, 3]),
        np.array([NOW_US - int(m * 60e6) for m in minutes]),
    )  # fmt: skip
    ids = behaviour_ids(history, np.array([NOW_US]), np.ones((1, 8), dtype=bool)).to_dict()
    assert ids["age"].values().tolist() == [0, 0, 1, 1, 2, 3, 31, 0]
    assert ids["code"].values().tolist() == [1, 2, 3, 4, 5, 1, 2, 3]


def test_every_id_of_a_batch_is_the_row_its_hash_names():
    frame, code = small_frame(), encoder()
    batch, rows = code.batch(frame), code.inputs.rows

    def expected(name, hashed):
        return [int(one % np.uint64(rows[name])) for one in hashed]

    items = np.concatenate([frame.candidates["item_id"].to_numpy(), frame.history.item_id])
    assert batch.items.values().tolist() == expected("item_id", hash_integers(items))
    requests = batch.requests.to_dict()
    users = frame.requests["user_id"].to_numpy()
    assert requests["user_id"].values().tolist() == expected("user_id", hash_integers(users))
    assert requests["query_id"].values().tolist() == expected("query_id", hash_integers(np.array([2, 777])))
    segments = hash_strings(pa.array(frame.requests["segment"].to_pylist()))
    assert requests["segment"].values().tolist() == expected("segment", segments)
    assert batch.position.tolist()[2] == [0, -1, -1, -1, -1]
    assert batch.history_known.tolist() == batch.history_mask.tolist()
    assert batch.target_known.tolist() == batch.candidate_mask.tolist()


def test_without_vectors_there_is_no_content_but_who_asked_is_known():
    batch = encoder(vectors=None).batch(small_frame())
    assert batch.target_content.shape == (3, 5, 0) and batch.history_content.shape == (3, 3, 0)
    assert batch.query_content.shape == (3, 0) and batch.query_known.tolist() == [False, True, True]
    assert not batch.target_known.any() and not batch.history_known.any()


def test_jagged_tensors_keep_keys_values_and_lengths_together():
    ids = jagged(
        ("a", "b"), [np.array([1, 2]), np.array([3])], [np.array([2, 0]), np.array([0, 1])]
    ).to_dict()
    assert ids["a"].values().tolist() == [1, 2] and ids["a"].lengths().tolist() == [2, 0]
    assert ids["b"].values().tolist() == [3] and ids["b"].lengths().tolist() == [0, 1]


def test_frames_without_a_column_are_refused_with_the_side_it_is_missing_from():
    frame, code = small_frame(), encoder()
    requests = frame.requests.drop_columns(["segment", "user_found"])
    shown = frame.candidates.drop_columns(["price"])
    short = Frame(requests, frame.candidates, frame.offsets, frame.history)
    with pytest.raises(DataError, match=r"^requests: 2 of 7 expected columns .*\(segment, user_found\)"):
        code.batch(short)
    with pytest.raises(DataError, match=r"^requests: 2 of 6 expected columns .*\(segment, user_found\)"):
        learn_inputs(Requests(short), 50)
    short = Frame(frame.requests, shown, frame.offsets, frame.history)
    for read in (code.batch, lambda one: learn_inputs(Requests(one), 50)):
        with pytest.raises(DataError, match=r"^candidates: 1 of 15 expected columns are missing \(price\)"):
            read(short)


@pytest.mark.parametrize(
    ("counts", "sizes"), [([1] * 20, [8, 8, 4]), ([2] * 9, [4, 4, 1]), ([9, 9], [1, 1]), ([0] * 5, [5])]
)
def test_groups_of_equal_requests_are_as_large_as_the_budget_allows(counts, sizes):
    groups = list(size_groups(np.array(counts), np.arange(len(counts)), 8))
    assert [len(group) for group in groups] == sizes
    assert np.concatenate(groups).tolist() == list(range(len(counts)))


def test_groups_keep_the_order_among_requests_of_equal_size():
    counts = np.array([1, 2] * 60)
    order = np.random.default_rng(0).permutation(120)
    groups = np.concatenate(list(size_groups(counts, order, 40)))
    assert groups.tolist() == [r for r in order if counts[r] == 1] + [r for r in order if counts[r] == 2]


def test_a_missing_text_is_the_empty_text():
    assert hash_strings(pa.array([None, "", "a"])).tolist()[0] == hash_strings(pa.array([""])).tolist()[0]


def test_every_tensor_of_a_batch_has_its_type_and_shape():
    batch = encoder().batch(small_frame())
    width = VECTORS.width
    expected = {
        "candidate_numbers": ((3, 5, len(encoder().inputs.candidate_numbers)), torch.float32),
        "request_numbers": ((3, 2), torch.float32),
        "candidate_mask": ((3, 5), torch.bool),
        "history_mask": ((3, 3), torch.bool),
        "target_content": ((3, 5, width), torch.float32),
        "target_known": ((3, 5), torch.bool),
        "history_content": ((3, 3, width), torch.float32),
        "history_known": ((3, 3), torch.bool),
        "query_content": ((3, width), torch.float32),
        "query_known": ((3,), torch.bool),
        "position": ((3, 5), torch.int64),
        "label": ((3, 5), torch.float32),
    }
    for name, (shape, kind) in expected.items():
        tensor = getattr(batch, name)
        assert (tuple(tensor.shape), tensor.dtype) == (shape, kind), name
    for name in ("items", "candidates", "requests", "behaviours"):
        ids = getattr(batch, name)
        assert (ids.values().dtype, ids.lengths().dtype) == (torch.int64, torch.int32), name
    assert batch.shape == (3, 5, 3)


def test_a_frame_without_labels_and_places_has_zeros_and_no_places():
    frame = small_frame()
    bare = frame.candidates.drop_columns(["label", "position"])
    batch = encoder().batch(Frame(frame.requests, bare, frame.offsets, frame.history))
    assert not batch.label.any() and (batch.position == -1).all()
    assert (batch.label.dtype, batch.position.dtype) == (torch.float32, torch.int64)
    only = FrameEncoder(encoder().inputs, None).batch(frame)
    assert only.target_content.shape == (3, 5, 0) and not only.target_known.any()
    assert only.query_content.shape == (3, 0) and only.query_known.tolist() == [False, True, True]
    assert only.query_content.dtype == torch.float32
