"""Frames become jagged tensors: nothing shifted, nothing read outside a slice, nothing silently absent."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import NOW_US, Requests, make_frame, make_vectors

from dataset.contracts import DataError
from feature_repo.frame import Frame, History
from feature_repo.signature import Signature
from ranker.inputs import columns
from ranker.inputs.bags import jagged
from ranker.inputs.columns import Inputs, learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, select_requests, size_groups
from ranker.inputs.hashing import hash_integers, hash_strings, remainder, table_rows
from ranker.inputs.padding import slots

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
    ids = code.ids("candidate", sliced, np.ones(stop - start, dtype=bool)).to_dict()
    assert list(ids) == ["category", "category_top", "spu", "attributes"]
    bags = [whole["attributes"][row].as_py() for row in range(start, stop)]
    words = code.inputs.rules["attributes"].values
    assert ids["attributes"].lengths().tolist() == [len(bag) for bag in bags]
    assert ids["attributes"].values().tolist() == [2 + words.index(text) for bag in bags for text in bag]
    spu = [2 + code.inputs.rules["spu"].values.index(one) for one in sliced["spu"].to_pylist()]
    assert ids["spu"].values().tolist() == spu


def test_ids_lie_in_the_slots_they_are_meant_for():
    table = small_frame().candidates.slice(0, 3)
    where = np.array([[True, False, True], [False, True, False]])
    ids = encoder().ids("candidate", table, where).to_dict()["spu"]
    assert ids.lengths().tolist() == [1, 0, 1, 0, 1, 0]
    spu = encoder().inputs.rules["spu"].values
    assert [spu[row - 2] for row in ids.values().tolist()] == table["spu"].to_pylist()


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
    np.testing.assert_allclose(
        batch.candidate_numbers[batch.candidate_mask][:, 0], (price - price.mean()) / price.std(), atol=1e-5
    )
    assert list(inputs.numbers("candidate"))[0] == "price"
    assert inputs.rules["first_seen_us"].deviation == 1.0  # a constant column is not divided by zero


def test_missing_columns_are_named_all_at_once():
    frame = small_frame()
    cut = Frame(frame.requests, frame.candidates.drop_columns(["price", "spu"]), frame.offsets, frame.history)
    with pytest.raises(DataError, match=r"2 of \d+ expected columns are missing \(spu, price\)"):
        encoder().batch(cut)


def test_match_columns_are_found_and_then_required():
    ids = VECTORS.ids
    with_match = make_frame([1], [[]], [ids[:3].tolist()], matches={"match_two_tower": [0.1, 0.2, 0.3]})
    inputs = learn_inputs(Requests(with_match), 50)[0]
    assert inputs.columns("candidate")[-1] == "match_two_tower"
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

    inputs = encoder().inputs
    assert Inputs.from_json(json.loads(json.dumps(inputs.to_json()))) == inputs
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


def test_matches_enter_as_they_are_but_for_the_heavy_tailed():
    ids = VECTORS.ids
    scores = {"match_two_tower": [-0.5, 0.0, 0.5, 1.0], "match_cooccurrence": [0.0, 1e-3, 9e-3, 1.0]}
    frame = make_frame([1], [[]], [ids[:4].tolist()], matches=scores)
    code = FrameEncoder(learn_inputs(Requests(frame), 50)[0], None)
    expected = [np.log1p(np.array(scores["match_cooccurrence"]) / 1e-3), np.array(scores["match_two_tower"])]
    expected = np.stack([(one - one.mean()) / one.std() for one in expected], axis=1)
    np.testing.assert_allclose(code.batch(frame).candidate_numbers[0, :, -2:], expected, atol=1e-5)


def test_what_is_learned_counts_every_chunk_once(monkeypatch):
    """Distinct ids give the rows of the tables, eight for each and eight at least; histories count as items."""
    frame = small_frame()
    frame.history.item_id[-1] = VECTORS.ids[30]  # remembered and never shown
    whole = learn_inputs(Requests(frame), 50)
    monkeypatch.setattr(columns, "CHUNK_REQUESTS", 2)
    inputs, counts = learn_inputs(Requests(frame), 50)
    assert counts.tolist() == whole[1].tolist() == [2, 5, 1]
    assert inputs.position_share == whole[0].position_share
    for side in ("request", "candidate"):
        assert inputs.rows(side) == whole[0].rows(side) and inputs.columns(side) == whole[0].columns(side)
    rows = inputs.rows("request") | inputs.rows("candidate")
    for name in ("user_id", "query_id"):  # hashed
        assert rows[name] == max(8, 8 * len(set(frame.requests[name].to_pylist()) - {None})), name
    for name in ("category", "category_top", "spu"):
        assert rows[name] == 2 + len(set(frame.candidates[name].to_pylist())), name
    texts = {text for bag in frame.candidates["attributes"].to_pylist() for text in bag}
    assert rows["attributes"] == 2 + len(texts)
    met = {*frame.candidates["item_id"].to_pylist(), *frame.history.item_id.tolist()}
    assert inputs.items.rows == 8 * len(met) and inputs.history == 50
    price = np.log1p(frame.candidates["price"].to_numpy().astype(np.float64))
    for learned in (inputs, whole[0]):
        found = learned.rules["price"]
        assert (found.mean, found.deviation) == pytest.approx((price.mean(), price.std()), rel=1e-5)


def test_behaviours_are_told_by_kind_and_by_age_in_doubling_minutes():
    minutes = [0.0, 0.5, 1.0, 2.9, 3.0, 7.0, 1e10, -4.0]
    history = History(
        np.array([0, 8]), np.arange(8), np.array([1, 2, 3, 4, 5, 1, 2, 3]),
        np.array([NOW_US - int(m * 60e6) for m in minutes]),
    )  # fmt: skip
    ids, _ = encoder().behaviours(history, np.array([NOW_US]), np.ones((1, 8), dtype=bool))
    ids = ids.to_dict()
    assert ids["age"].values().tolist() == [0, 0, 1, 1, 2, 3, 31, 0]
    assert ids["code"].values().tolist() == [1, 2, 3, 4, 5, 1, 2, 3]


def test_every_id_of_a_batch_is_the_row_its_hash_names():
    frame, code = small_frame(), encoder()
    batch = code.batch(frame)

    def expected(name, hashed):
        rule = code.inputs.items if name == "item_id" else code.inputs.rules[name]
        return [int(one % np.uint64(rule.rows)) for one in hashed]

    items = np.concatenate([frame.candidates["item_id"].to_numpy(), frame.history.item_id])
    assert batch.items.values().tolist() == expected("item_id", hash_integers(items))
    requests = batch.requests.to_dict()
    users = frame.requests["user_id"].to_numpy()
    assert requests["user_id"].values().tolist() == expected("user_id", hash_integers(users))
    assert requests["query_id"].values().tolist() == expected("query_id", hash_integers(np.array([2, 777])))
    segments = code.inputs.rules["segment"].values
    found = [segments[row - 2] for row in requests["segment"].values().tolist()]
    assert found == frame.requests["segment"].to_pylist()
    assert batch.position.tolist()[2] == [0, -1, -1, -1, -1]
    assert batch.history_known.tolist() == batch.history_mask.tolist()
    assert batch.target_known.tolist() == batch.candidate_mask.tolist()


def test_vectors_that_came_after_the_request_are_unknown_to_it():
    """Of candidates, behaviours and queries alike; one that came a microsecond before is known."""
    late = {int(VECTORS.ids[one]) for one in (1, 3, 5)}
    stamps = np.where(np.isin(VECTORS.ids, list(late)), NOW_US, NOW_US - 1)
    queries = replace(VECTORS.queries, available_us=np.full(len(VECTORS.queries.ids), NOW_US))
    frame = small_frame()
    batch = encoder(vectors=replace(VECTORS, available_us=stamps, queries=queries)).batch(frame)
    items = frame.candidates["item_id"].to_pylist()
    assert batch.target_known[batch.candidate_mask].tolist() == [one not in late for one in items]
    behaved = frame.history.item_id.tolist()
    assert batch.history_known[batch.history_mask].tolist() == [one not in late for one in behaved]
    assert not batch.query_known.any() and not batch.query_content.any()
    unknown = batch.candidate_mask & ~batch.target_known
    assert unknown.any() and not batch.target_content[unknown].any()
    always = encoder().batch(frame)
    assert always.target_known.tolist() == always.candidate_mask.tolist()


def test_without_vectors_there_is_no_content_but_who_asked_is_known():
    batch = encoder(vectors=None).batch(small_frame())
    assert batch.target_content.shape == (3, 5, 0) and batch.history_content.shape == (3, 3, 0)
    assert batch.query_content.shape == (3, 0) and batch.query_known.tolist() == [False, True, True]
    assert not batch.target_known.any() and not batch.history_known.any()


def test_remainders_are_those_of_integers():
    hashes = hash_integers(np.arange(-50, 50))
    for divisor in (1, 8, 1000, 12_440):
        assert remainder(hashes, divisor).tolist() == [int(one) % divisor for one in hashes]


def test_jagged_tensors_keep_keys_values_and_lengths_together():
    ids = jagged(
        ("a", "b"), [np.array([1, 2]), np.array([3])], [np.array([2, 0]), np.array([0, 1])]
    ).to_dict()
    assert ids["a"].values().tolist() == [1, 2] and ids["a"].lengths().tolist() == [2, 0]
    assert ids["b"].values().tolist() == [3] and ids["b"].lengths().tolist() == [0, 1]


def test_frames_without_a_column_are_refused_with_the_side_it_is_missing_from():
    frame, code = small_frame(), encoder()
    requests = frame.requests.drop_columns(["segment", "age_band"])
    shown = frame.candidates.drop_columns(["price"])
    short = Frame(requests, frame.candidates, frame.offsets, frame.history)
    for read in (code.batch, lambda one: learn_inputs(Requests(one), 50)):
        with pytest.raises(DataError, match=r"^requests: 2 of 7 expected columns .*\(age_band, segment\)"):
            read(short)
    short = Frame(frame.requests, shown, frame.offsets, frame.history)
    for read in (code.batch, lambda one: learn_inputs(Requests(one), 50)):
        with pytest.raises(DataError, match=r"^candidates: 1 of 14 expected columns are missing \(price\)"):
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


def nothing_but_ids(frame):
    """The frame of a store without features."""
    requests = frame.requests.select(["request_id", "user_id", "time", "query_id"])
    return Frame(requests, frame.candidates.select(["item_id", "label"]), frame.offsets, frame.history)


def test_a_store_without_features_makes_batches_of_ids():
    frame = nothing_but_ids(small_frame())
    inputs = learn_inputs(Requests(frame, Signature("ctr_v1", ())), 50, given=())[0]
    batch = FrameEncoder(inputs, VECTORS).batch(frame)
    assert batch.items.values().tolist() == encoder().batch(small_frame()).items.values().tolist()
    assert batch.candidates.keys() == batch.requests.keys() == []
    assert (batch.candidates.stride(), batch.requests.stride()) == (15, 3)
    assert batch.candidate_numbers.shape == (3, 5, 0) and batch.request_numbers.shape == (3, 0)


def test_what_is_left_out_is_not_read_and_must_be_there():
    frame = small_frame()
    without = learn_inputs(Requests(frame), 50, without=["price", "segment"])[0]
    assert "price" not in without.columns("candidate") and "segment" not in without.columns("request")
    assert without.signature == Requests(frame).signature
    bare = frame.candidates.drop_columns(["price"])
    FrameEncoder(without, VECTORS).batch(Frame(frame.requests, bare, frame.offsets, frame.history))
    with pytest.raises(DataError, match="service ctr_v1 to do without .*, found prise"):
        learn_inputs(Requests(frame), 50, without=["prise"])


def test_every_tensor_of_a_batch_has_its_type_and_shape():
    batch = encoder().batch(small_frame())
    width = VECTORS.width
    expected = {
        "candidate_numbers": ((3, 5, 9), torch.float32),
        "request_numbers": ((3, 1), torch.float32),
        "candidate_mask": ((3, 5), torch.bool),
        "history_mask": ((3, 3), torch.bool),
        "target_content": ((3, 5, width), torch.float32),
        "target_known": ((3, 5), torch.bool),
        "history_content": ((3, 3, width), torch.float32),
        "history_known": ((3, 3), torch.bool),
        "query_content": ((3, width), torch.float32),
        "query_known": ((3,), torch.bool),
        "found_slot": ((3, 5, 0), torch.int64),
        "found_mask": ((3, 5, 0), torch.bool),
        "found_cosine": ((3, 5, 0), torch.float32),
        "found_times": ((3, 5, 0), torch.int64),
        "found_count": ((3, 5), torch.int64),
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
