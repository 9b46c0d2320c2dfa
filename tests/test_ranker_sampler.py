"""The two-tower model's batches hold what they say: who is held out, what is positive, what may not be a negative."""

import numpy as np
import pyarrow as pa
import pytest
from ranker_world import TOWERS, Requests, catalogue, make_frame, make_vectors

from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.two_tower import negatives
from ranker.two_tower.negatives import Sampler, inclusion

VECTORS = make_vectors(30)
CATALOGUE = pa.table(catalogue(VECTORS.ids)).sort_by("item_id")


@pytest.fixture(autouse=True)
def few_even_draws(monkeypatch):
    """So few that an item's own positives decide its chance."""
    monkeypatch.setattr(negatives, "UNIFORM", 9)


def world(requests=60, users=40):
    """Requests with one to three candidates; some liked none of theirs, some two."""
    draw = np.random.default_rng(5)
    candidates = [draw.choice(VECTORS.ids, 1 + n % 3, replace=False).tolist() for n in range(requests)]
    labels = [
        [float(place < n % 4 - 1 or n % 4 == 1) for place in range(len(c))] for n, c in enumerate(candidates)
    ]
    histories = [draw.choice(VECTORS.ids, n % 5).tolist() for n in range(requests)]
    return make_frame(draw.integers(0, users, requests).tolist(), histories, candidates, labels)


def sampler(frame, seed=0):
    train = Requests(frame, TOWERS)
    return Sampler(train, CATALOGUE, FrameEncoder(learn_inputs(train, 50, ())[0], VECTORS), seed)


def liked(frame, request):
    own = slice(frame.offsets[request], frame.offsets[request + 1])
    items, label = (frame.candidates[name].to_numpy()[own] for name in ("item_id", "label"))
    return items[label > 0].tolist()


def test_the_users_held_out_teach_nothing_and_every_request_with_a_positive_is_used_once():
    frame = world()
    drawn = sampler(frame)
    user = frame.requests["user_id"].to_numpy()
    with_positive = [r for r in range(len(frame)) if liked(frame, r)]
    assert sorted([*drawn.learned, *drawn.held_out]) == with_positive
    assert len(drawn.held_out) and not set(user[drawn.learned]) & set(user[drawn.held_out])


def test_an_items_chance_counts_its_positives_over_all_requests():
    frame = world()
    drawn = sampler(frame)
    everything = [item for r in range(len(frame)) for item in liked(frame, r)]
    counts = np.array([everything.count(item) for item in VECTORS.ids])
    requests = sum(bool(liked(frame, r)) for r in range(len(frame)))
    np.testing.assert_allclose(drawn.chance, inclusion(counts, requests, drawn.per_batch), rtol=1e-6)
    assert drawn.per_batch == 32


def test_reading_a_few_requests_at_a_time_changes_nothing(monkeypatch):
    frame = world()
    whole = sampler(frame)
    monkeypatch.setattr(negatives, "ROWS", 7)
    pieces = sampler(frame)
    for name in ("chance", "learned", "held_out"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_batch_names_every_positive_and_excludes_the_others_of_its_request(epoch, monkeypatch):
    frame = world()
    drawn = sampler(frame)
    ids = CATALOGUE["item_id"].to_numpy()
    found, asked = [], []
    encoded = FrameEncoder.item_ids

    def remembering(encoder, behaved, sampled, *where):
        asked.append(sampled)
        return encoded(encoder, behaved, sampled, *where)

    monkeypatch.setattr(FrameEncoder, "item_ids", remembering)
    for sample in drawn.batches(drawn.learned, epoch):
        columns = asked[-1]  # the sampled items
        np.testing.assert_array_equal(sample.chance.numpy(), drawn.chance[np.searchsorted(ids, columns)])
        assert (np.diff(columns) > 0).all(), "every sampled item once"
        positives = columns[sample.positive.numpy()]
        of_request = [set(positives[sample.request.numpy() == r]) for r in sample.request.numpy()]
        for row, own in enumerate(of_request):
            excluded = set(columns[sample.excluded.numpy()[row]])
            assert excluded == own - {positives[row]}
        found += positives.tolist()
    assert sorted(found) == sorted(item for r in drawn.learned for item in liked(frame, r))


def test_every_epoch_has_an_order_of_its_own_and_the_same_seed_the_same():
    drawn = sampler(world())
    first, again, second = (
        np.concatenate([s.positive.numpy() for s in drawn.batches(drawn.learned, epoch)])
        for epoch in (0, 0, 1)
    )
    assert (first == again).all() and (len(first) != len(second) or (first != second).any())
