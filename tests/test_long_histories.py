"""A long history is searched: its latest behaviours and those found for a candidate are all that a model reads."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import (
    NOW_US,
    Requests,
    auc,
    categories_of,
    full_frame,
    make_frame,
    make_vectors,
    unit,
    with_random_tables,
)

from dataset.contracts import DataError
from feature_repo.frame import History
from feature_repo.side_information import SideInformation, ViewRows
from feature_repo.vectors import Vectors, VectorTable
from ranker.epoch import epoch_batches
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.inputs.search import Found, Search, shortened
from ranker.learner import Learner
from ranker.losses import training_loss
from ranker.modules.ids import Ids
from ranker.modules.sim import Sim
from ranker.ranks import ALL
from ranker.recipes import RECIPES, Recipe, RecipeError
from ranker.score import CtrConfig, Ranker

ITEMS = 40
VECTORS = make_vectors(ITEMS)
HISTORY = 60
NO_QUERIES = VectorTable(np.empty(0, np.int64), np.empty((0, 16), np.float32))


def long_frame(requests=6, seed=0, lengths=None):
    """Requests of ten candidates with long histories, some of them on items that have no vector."""
    draw = np.random.default_rng(seed)
    ids = np.append(VECTORS.ids, [3, 4, 5])
    lengths = draw.integers(0, HISTORY + 1, requests) if lengths is None else lengths
    frame = make_frame(
        draw.integers(0, 8, requests).tolist(),
        [draw.choice(ids, length).tolist() for length in lengths],
        [draw.choice(ids, 10, replace=False).tolist() for _ in range(requests)],
        [draw.integers(0, 2, 10) for _ in range(requests)],
    )
    return replace(frame, history=replace(frame.history, side=categories_of(ITEMS)))


def asked(frame):
    return np.full(len(frame), NOW_US)


def each(frame):
    """(number, candidate, behaviours as rows of the history) of every candidate."""
    ids = frame.candidates["item_id"].to_numpy()
    for r in range(len(frame)):
        for c in range(frame.offsets[r], frame.offsets[r + 1]):
            yield c, int(ids[c]), list(range(frame.history.offsets[r], frame.history.offsets[r + 1]))


def vector_of(item):
    return dict(zip(VECTORS.ids.tolist(), VECTORS.matrix, strict=True)).get(int(item))


def test_a_search_by_content_finds_the_latest_behaviour_on_each_of_the_items_most_alike():
    frame = long_frame()
    found = Search("content", keep=5, recent=3).of(frame, asked(frame), VECTORS)
    behaved = frame.history.item_id
    for c, item, rows in each(frame):
        target = vector_of(item)
        latest = {int(behaved[row]): row for row in rows if vector_of(behaved[row]) is not None}
        alike = sorted(latest, key=lambda one: -float(vector_of(one) @ target)) if target is not None else []
        assert sorted(found.place[c][found.real[c]]) == sorted(latest[one] for one in alike[:5])
        met = [int(behaved[row]) for row in rows]
        assert found.count[c] == found.times[c].sum() == sum(met.count(one) for one in alike[:5])
        for place, cosine, times, real in zip(
            found.place[c], found.cosine[c], found.times[c], found.real[c], strict=True
        ):
            if real:
                assert cosine == pytest.approx(float(vector_of(behaved[place]) @ target), abs=1e-6)
                assert times == met.count(int(behaved[place]))
            else:
                assert cosine == times == 0


def test_a_search_by_category_finds_the_latest_behaviours_of_it_and_counts_all():
    frame = long_frame()
    found = Search("category", keep=4, recent=3).of(frame, asked(frame), None)
    category = frame.history.side.category(frame.history.item_id, frame.history.time_us).to_pylist()
    mine = frame.candidates["category"].to_pylist()
    for c, _, rows in each(frame):
        same = [row for row in rows if category[row] is not None and category[row] == mine[c]]
        assert sorted(found.place[c][found.real[c]]) == same[-4:]
        assert found.count[c] == len(same)
    assert found.count.max() > 4


def test_an_unknown_or_empty_category_is_nobody_s():
    frame, ids = make_frame([1], [[7, 1007, 1014]], [[1000, 1001, 1002]]), [7, 1007, 1014]
    rows = {"item_id": ids, "time_us": np.zeros(3, np.int64), "category": ["hat", "", None]}
    side = SideInformation((), lambda: ViewRows(pa.record_batch(rows), 0))
    place = frame.candidates.column_names.index("category")
    candidates = frame.candidates.set_column(place, "category", pa.array(["hat", "", None]))
    frame = replace(frame, candidates=candidates, history=replace(frame.history, side=side))
    search = Search("category", keep=3, recent=1)
    assert search.of(frame, asked(frame), None).count.tolist() == [1, 0, 0]
    without = replace(frame, history=replace(frame.history, side=SideInformation()))
    assert search.of(without, asked(frame), None).count.tolist() == [0, 0, 0]


def test_what_is_neither_recent_nor_found_is_left_out_and_the_rest_is_found_again():
    behaved = np.arange(100, 109)
    history = History(np.array([0, 6, 6, 9]), behaved, behaved, behaved)
    place = np.array([[0, 2], [5, 0], [0, 0], [6, 7]])
    real = np.array([[True, True], [True, False], [False, False], [True, True]])
    found = Found(place, real, real.astype(np.float32), real.astype(np.int64), real.sum(1))
    left, age = shortened(history, np.array([0, 2, 3, 4]), found, recent=2)
    assert left.item_id.tolist() == [100, 102, 104, 105, 106, 107, 108]
    assert left.offsets.tolist() == [0, 4, 4, 7]
    # The latest last: 100, 102, 104, 105; nothing; 106, 107, 108.
    assert age[real].tolist() == [4, 3, 1, 3, 2]


def config(recipe, vectors=VECTORS, inputs=None):
    return CtrConfig(
        recipe=recipe,
        inputs=inputs or learn_inputs(Requests(long_frame(40)), HISTORY)[0],
        id_width=8,
        content_width=0 if vectors is None else vectors.width,
        embedding_id=None if vectors is None else vectors.id,
        loss="pointwise",
        learning_rate=1e-3,
        table_learning_rate=0.05,
    )


def built(recipe, vectors=VECTORS):
    """A model with random tables, and its encoder."""
    torch.manual_seed(0)
    of = config(recipe, vectors)
    return with_random_tables(of.build().eval()), FrameEncoder(of.inputs, vectors, recipe.search)


TOPICS, OLD, SHOWN = 20, 400, 10


def eras(seed, users=60, requests=360):
    """Users lived through eras: half of an era's behaviours are on items of its topic, and a click is likely where
    the candidate's topic had an era at any time. The latest behaviours say nothing of the earlier eras.
    """
    draw = np.random.default_rng(seed)
    ids = np.arange(TOPICS * 20, dtype=np.int64) + 1000
    topic = np.arange(len(ids)) % TOPICS
    noise = 0.3 * draw.normal(size=(len(ids), 16)) / 4
    vectors = Vectors(
        ids, unit(np.eye(TOPICS, 16)[topic] + np.eye(TOPICS, 16, -4)[topic] + noise), NO_QUERIES, "e"
    )
    loved = draw.integers(0, TOPICS, (users, 8))
    met = np.where(
        draw.random((users, OLD)) < 0.5, np.repeat(loved, OLD // 8, 1), draw.integers(0, TOPICS, (users, OLD))
    )
    past = ids[met + TOPICS * draw.integers(0, 20, met.shape)]
    user = np.arange(requests) % users
    aimed = draw.random((requests, SHOWN)) < 0.5
    shown = np.where(
        aimed, loved[user[:, None], draw.integers(0, 8, aimed.shape)], draw.integers(0, TOPICS, aimed.shape)
    )
    chance = np.where((shown[..., None] == loved[user][:, None]).any(-1), 0.8, 0.1)
    label = draw.random(shown.shape) < chance
    items = ids[shown + TOPICS * draw.integers(0, 20, shown.shape)]
    return vectors, topic, past[user], items, label


def trained_auc(name, world, length):
    """AUC on the last hundred requests of a recipe that was trained on the others, with histories of some length."""
    vectors, topic, past, items, label = world
    history = past[:, -length:].tolist()
    frame = make_frame([1] * len(items), history, items.tolist(), list(label.astype(float)))
    category = pa.array([f"t{one}" for one in topic])
    rows = {"item_id": vectors.ids, "time_us": np.zeros(len(topic), np.int64), "category": category}
    side = SideInformation((), lambda: ViewRows(pa.record_batch(rows), 0))
    place = frame.candidates.column_names.index("category")
    shown = category.take(pa.array(frame.candidates["item_id"].to_numpy() - 1000))
    frame = replace(
        frame,
        candidates=frame.candidates.set_column(place, "category", shown),
        history=replace(frame.history, side=side),
    )
    train, test = (
        Requests(Requests(frame).take(0, len(items) - 100)),
        Requests(frame).take(len(items) - 100, len(items)),
    )
    chosen = RECIPES[name]()
    if chosen.search is not None:
        chosen = replace(chosen, search=replace(chosen.search, recent=20))
    torch.manual_seed(0)
    inputs, counts = learn_inputs(train, length)
    made = replace(config(chosen, vectors, inputs), table_learning_rate=1e-3)
    model, encoder = made.build(), FrameEncoder(inputs, vectors, chosen.search)
    learner = Learner(model.train(), 1e-2)
    for epoch in range(3):
        for batch in epoch_batches(train, counts, encoder, 256, (0, epoch)):
            learner.step(training_loss(model, batch, "pointwise"), "the test")
    return auc(label[-100:].ravel(), Ranker(model.eval(), encoder).score(test))


def test_a_search_knows_what_users_loved_long_ago_and_a_short_history_does_not(one_thread):
    world = eras(0)
    truncated = trained_auc("attention", world, 20)
    for name in SEARCHING:
        assert trained_auc(name, world, OLD) > truncated + 0.12, (name, truncated)


SEARCHING = [name for name, one in RECIPES.items() if one().search is not None]


@pytest.mark.parametrize("name", SEARCHING)
def test_a_long_history_scores_as_the_whole_of_it_would(name):
    """The slow twin: nothing is left out of the history, and what was found is looked up in all of it."""
    search = replace(RECIPES[name]().search, recent=7, keep=6)
    recipe = replace(RECIPES[name](), search=search)
    model, encoder = built(recipe)
    frame = long_frame()
    fast = encoder.batch(frame)
    found = search.of(frame, asked(frame), VECTORS)
    lengths = np.diff(frame.history.offsets)
    row = np.repeat(np.arange(len(frame)), 10)
    slot = lengths.max() - (frame.history.offsets[1:][row][:, None] - found.place)
    whole = replace(
        FrameEncoder(encoder.inputs, VECTORS).batch(frame),
        found_slot=torch.from_numpy(np.where(found.real, slot, 0)).view(*fast.found_slot.shape),
        **{
            name: getattr(fast, name) for name in ("found_mask", "found_cosine", "found_times", "found_count")
        },
    )
    assert fast.shape[2] < whole.shape[2]
    for part in (model.eval(), model.train()):
        torch.testing.assert_close(part(fast), part(whole), atol=1e-5, rtol=0)
    gradients = []
    for batch in (fast, whole):
        model.zero_grad()
        training_loss(model, batch, "pointwise").backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model, _ = built(recipe)  # its tables learned
        model.train()
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for one, weight in gradients[0].items():
        torch.testing.assert_close(weight, gradients[1][one], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", SEARCHING)
def test_a_candidate_scores_alike_in_training_and_alone(name):
    model, encoder = built(RECIPES[name]())
    frame = long_frame()
    ranker = Ranker(model, encoder)
    together = ranker.score(frame)
    model.train()
    batch = encoder.batch(frame)
    np.testing.assert_allclose(model(batch)[batch.candidate_mask].detach(), together, atol=1e-5)
    model.eval()
    for c, _, _ in each(frame):
        r = c // 10
        one = Requests(frame).take(r, r + 1)
        alone = replace(
            one, candidates=one.candidates.slice(c % 10, 1), offsets=np.array([0, 1], dtype=np.int64)
        )
        np.testing.assert_allclose(ranker.score(alone), together[[c]], atol=1e-5)


@pytest.mark.parametrize("name", SEARCHING)
def test_batches_encoded_together_score_as_those_encoded_alone(name):
    model, encoder = built(RECIPES[name]())
    stored, groups = Requests(long_frame()), [np.array([2, 0]), np.array([1])]
    for batch, rows in zip(ALL.batches(stored, encoder, groups), groups, strict=True):
        alone = encoder.batch(stored.select(rows))
        torch.testing.assert_close(model(batch), model(alone), atol=1e-6, rtol=0)


def test_an_old_behaviour_matters_where_it_is_found_and_a_recent_one_everywhere():
    ids = VECTORS.ids
    past = ids[10:40].tolist()
    model, encoder = built(replace(RECIPES["sim_soft"](), search=Search("content", keep=1, recent=4)))

    def scored(behaved):
        frame = make_frame([1], [behaved], [ids[:8].tolist()], [[0] * 8])
        found = encoder.search.of(frame, asked(frame), VECTORS)
        return Ranker(model, encoder).score(frame), found.place[:, 0]

    before, place = scored(past)
    spare = next(row for row in range(26) if row not in place)  # old, and found for nobody
    met, now = scored([*past[:spare], int(ids[3]), *past[spare + 1 :]])
    assert (np.flatnonzero(~np.isclose(met, before, atol=1e-6)) == np.flatnonzero(now == spare)).all()
    assert now[3] == spare and (now != spare).any()
    recent, _ = scored([*past[:-1], int(ids[9])])
    assert not np.isclose(recent, before, atol=1e-6).any()


def test_a_history_longer_than_the_model_s_is_refused():
    """Not cut: what was trained on so many behaviours says nothing of more; the store is asked for as many."""
    inputs = learn_inputs(Requests(long_frame(6, lengths=[20] * 6)), 20)[0]
    for search in (None, Search("content", keep=5, recent=5)):
        encoder = FrameEncoder(inputs, VECTORS, search)
        assert encoder.batch(long_frame(2, lengths=[20, 3])).shape[0] == 2
        with pytest.raises(DataError, match="at most 20 behaviours per request, found 21"):
            encoder.batch(long_frame(2, lengths=[21, 3]))


def test_a_control_without_vectors_has_no_search_by_content():
    model, encoder = built(RECIPES["sim_soft"](), None)
    assert "sim" not in model.parts
    assert encoder.batch(long_frame()).found_slot.shape[2] == 0
    assert "sim" in built(RECIPES["sim_hard"](), None)[0].parts


def test_a_recipe_without_a_search_cannot_read_what_was_found():
    with pytest.raises(RecipeError, match="recipe lost: module sim reads what a search found"):
        config(Recipe("lost", {"ids": Ids, "sim": Sim})).build()
    for wrong in (("colour", 3, 3), ("content", 0, 3), ("content", 3, 0)):
        with pytest.raises(ValueError, match="expected to search by category or content"):
            Search(*wrong)


def test_requests_without_histories_or_candidates_with_vectors_are_scored():
    model, encoder = built(RECIPES["muse"]())
    nobody = full_frame(4)
    empty = replace(nobody, history=nobody.history.rows(slice(0), np.zeros(5, np.int64)))
    scored = Ranker(model, encoder).score(long_frame(3, lengths=[0, 0, 0]))
    assert np.isfinite(scored).all() and len(scored) == 30
    assert encoder.search.of(empty, asked(empty), VECTORS).count.sum() == 0
