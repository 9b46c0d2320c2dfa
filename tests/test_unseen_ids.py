"""An id that training did not meet has no row of a table; content orders such items as well as the others."""

import numpy as np
import pytest
import torch
from ranker_world import Requests, auc, make_frame, make_vectors, make_world

from feature_repo.frame import Frame
from ranker.inputs.bits import from_text
from ranker.inputs.columns import Inputs
from ranker.inputs.frame_encoder import select_requests
from ranker.inputs.growth import grown
from ranker.inputs.hashing import hash_integers
from ranker.inputs.rules.categories import Hashed
from ranker.inputs.seen import are_seen, filter_of
from ranker.score import Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
NANO = size("nano")
OLD, NEW = np.arange(0, 240), np.arange(240, 300)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    train, valid = (make_world(requests=n, old_items=OLD, seed=seed) for n, seed in ((600, 0), (80, 1)))
    training = Training(settings=Settings(NANO.id_width, 2e-3, 0.02, id_dropout=0.2))
    out = tmp_path_factory.mktemp("unseen") / "r"
    requests, checked = Requests(train.frame), Requests(valid.frame)
    artifact = train_ctr(requests, checked, train.vectors, NANO, out, {}, training)
    return Ranker.open(artifact, train.vectors)


@pytest.mark.parametrize("count", [0, 1, 2_000])
def test_every_id_is_found_again_and_of_others_hardly_any(count):
    hashes = hash_integers(np.arange(count) * 3)
    filled = from_text(filter_of(hashes))
    assert are_seen(filled, hashes).all()
    others = are_seen(filled, hash_integers(np.arange(20_000) * 3 + 1))
    assert others.mean() < 0.006


def test_an_unseen_item_or_user_has_no_row_and_reads_no_strangers(ranker):
    """Rows that are taken by others are the ones that could be read by mistake."""
    ids, items = make_vectors(300).ids, ranker.encoder.inputs.items
    taken = np.unique(items.of(hash_integers(ids[OLD])))
    stranger = next(
        i for i in range(5_000, 90_000)
        if items.of(hash_integers(np.array([i])))[0] in taken and not items.known(hash_integers(np.array([i])))[0]
    )  # fmt: skip
    frame = make_frame([3, 77_777], [[int(ids[0]), stranger]] * 2, [[int(ids[1]), stranger]] * 2)
    with torch.no_grad():
        found = ranker.model.features(ranker.encoder.batch(frame))
    assert not found.target_RND[:, 1].any() and not found.behaved_RLD[:, 1].any(), "an item"
    assert found.target_RND[:, 0].any(dim=-1).all() and found.behaved_RLD[:, 0].any(dim=-1).all()
    place = list(ranker.encoder.inputs.rows("request")).index("user_id")
    user = found.user_RU.view(2, -1, NANO.id_width)[:, place]
    assert user[0].any() and not user[1].any(), "a user"


def test_unseen_items_are_ordered_by_content_as_well_as_seen_ones(ranker):
    old, new = (make_world(requests=300, old_items=pool, seed=3) for pool in (OLD, NEW))
    first = {user: row for row, user in reversed(list(enumerate(old.frame.requests["user_id"].to_pylist())))}
    pairs = [(first[u], row) for row, u in enumerate(new.frame.requests["user_id"].to_pylist()) if u in first]
    before, after = (np.array(rows) for rows in zip(*pairs, strict=True))
    known, shown = select_requests(old.frame, before), select_requests(new.frame, after)
    unseen = Frame(known.requests, shown.candidates, shown.offsets, known.history)
    chance = new.probability.reshape(300, -1)[after].ravel()

    def lost(frame, probability):
        label = frame.candidates["label"].to_numpy()
        return auc(label, probability) - auc(label, ranker.score(frame))

    assert lost(unseen, chance) < lost(old.frame, old.probability) + 0.01


def test_what_was_seen_survives_json_and_grows_by_the_day(ranker):
    inputs = Inputs.from_json(ranker.encoder.inputs.to_json())
    assert inputs == ranker.encoder.inputs
    ids = make_vectors(300).ids
    new = hash_integers(ids[NEW])
    assert inputs.items.known(hash_integers(ids[OLD])).all() and inputs.items.known(new).mean() < 0.1
    _, yesterday, _ = grown(inputs, {}, Requests(make_world(requests=300, old_items=OLD).frame), 1)
    today, _, _ = grown(inputs, yesterday, Requests(make_world(requests=300, old_items=NEW).frame), 2)
    assert today.items.known(new).all() and today.items.known(hash_integers(ids[OLD])).all()
    assert Hashed(8).known(new).all(), "a rule of an earlier release knows all"
