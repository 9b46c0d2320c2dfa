"""The id tables of a ranker that goes on: what they admit, how they grow, what they forget."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_world import NOW_US, SIGNATURE, Requests, make_frame, make_vectors
from safetensors.torch import load_file

from ranker import daily as training
from ranker.attempt import Attempt
from ranker.daily import STATE, Terms, train_day
from ranker.inputs.columns import learn_inputs
from ranker.inputs.growth import NOTHING, Known, grown
from ranker.inputs.hashing import ROWS_PER_ID, hash_integers
from ranker.inputs.rules.categories import FIRST, UNKNOWN, Dictionary, Hashed
from ranker.inputs.rules.numbers import CLIP
from ranker.recipes import recipe
from ranker.score import Ranker
from run.artifacts import open_artifact
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=8, ranker_slots=64)
VECTORS = make_vectors(400)
TERMS = Terms(recipe("attention"), TINY, None, None, 0, 1, 5e-3, 5e-2)


def tagged(name, **options):
    """The signature with tags on one feature."""
    features = (replace(one, options=options) if one.name == name else one for one in SIGNATURE.features)
    return replace(SIGNATURE, features=tuple(features))


def day_of(items, signature=SIGNATURE, seed=0):
    """Forty requests of users that are others every day, for some of the items; also in their histories."""
    draw = np.random.default_rng(seed)
    ids = VECTORS.ids[list(items)]
    candidates = [draw.choice(ids, 4, replace=False).tolist() for _ in range(40)]
    users = (draw.integers(0, 30, 40) + 1000 * seed).tolist()
    labels = [draw.random(4) < 0.4 for _ in range(40)]
    return Requests(
        make_frame(users, [draw.choice(ids, 3).tolist() for _ in range(40)], candidates, labels), signature
    )


def column(requests, name):
    table = (
        requests.frame.candidates
        if name in requests.frame.candidates.column_names
        else requests.frame.requests
    )
    values = table[name].combine_chunks()
    return (values.flatten() if pa.types.is_list(values.type) else values).to_pylist()


def test_a_table_that_doubles_changes_no_score(tmp_path, monkeypatch):
    """Of nothing that had a row: a day of many new items, of which none is learned, numbers read as before."""
    monkeypatch.setattr(training, "rescaled", lambda inputs, before, requests: (inputs, before))
    first, second = day_of(range(10)), day_of(range(300), seed=1)
    before = train_day(first, 0, None, TERMS, tmp_path / "a", {}, {})
    monkeypatch.setattr(Attempt, "begin_at_regression", lambda *_: None)  # it would learn of that day
    after = train_day(second, 1, before, replace(TERMS, epochs=0), tmp_path / "b", {}, {})
    one, other = (Ranker.open(made, None) for made in (before, after))
    rows = [ranker.encoder.inputs.items.rows for ranker in (one, other)]
    seen = set(VECTORS.ids[:10]) | set(column(second, "item_id")) | set(second.frame.history.item_id.tolist())
    assert rows[0] == 10 * ROWS_PER_ID and rows[1] >= len(seen) * ROWS_PER_ID / 2 > rows[1] / 4
    assert other.encoder.inputs.rules["user_id"].rows > one.encoder.inputs.rules["user_id"].rows
    spu = [len(ranker.encoder.inputs.rules["spu"].values) for ranker in (one, other)]
    assert spu[1] > spu[0]
    np.testing.assert_allclose(one.score(first.frame), other.score(first.frame), atol=1e-6)
    new = hash_integers(np.array(sorted(seen)))
    assert other.encoder.inputs.items.known(new).all() and not one.encoder.inputs.items.known(new).all()


def test_each_value_goes_on_with_its_own_row_and_accumulator(tmp_path):
    """The slow twin: value after value, where it was and where it is."""
    first, second = day_of(range(10)), day_of(range(300), seed=1)
    before = train_day(first, 0, None, TERMS, tmp_path / "a", {}, {})
    after = train_day(second, 1, before, replace(TERMS, epochs=0), tmp_path / "b", {}, {})
    models = [Ranker.open(made, None) for made in (before, after)]
    states = [load_file(made.file(STATE)) for made in (before, after)]
    for name, place in {"item_id": "items", "spu": "candidates", "segment": "requests"}.items():
        rules = [
            one.encoder.inputs.items if name == "item_id" else one.encoder.inputs.rules[name]
            for one in models
        ]
        tables = [
            one.model.get_parameter(f"tables.{place}.embedding_bags.t_{name}.weight").detach()
            for one in models
        ]
        memories = [s[f"tables/tables.{place}/t_{name}.weight/t_{name}.weight.momentum_1"] for s in states]
        values = {*column(first, name), *column(second, name)}
        known = set(column(first, name)) | (set(VECTORS.ids[:10].tolist()) if name == "item_id" else set())
        for value in values:
            if name == "item_id":  # also those that no row was looked up for yesterday
                old, new = (int(rule.of(hash_integers(np.array([value])))[0]) for rule in rules)
            else:
                old, new = (int(rule.ids(pa.array([value]))[0][0]) for rule in rules)
            assert torch.equal(tables[0][old], tables[1][new]), (name, value)
            if name == "item_id" or value in known:
                assert memories[0][old] == memories[1][new], (name, value)
            else:
                assert old == UNKNOWN and new >= FIRST and memories[1][new] == 0, (name, value)


def test_a_category_is_admitted_once_it_occurred_often_enough_on_whichever_days():
    signature = tagged("spu", kind="category", min_count="50")
    days = [day_of(range(10), signature, seed) for seed in range(3)]
    inputs, _ = learn_inputs(days[0], TINY.history)
    known, counts = {}, {}
    for number, day in enumerate(days):
        inputs, known, begins = grown(inputs, known, day, number)
        for value in column(day, "spu"):
            counts[value] = counts.get(value, 0) + 1
        often = sorted(value for value, count in counts.items() if count >= 50)
        assert inputs.rules["spu"].values == tuple(often), number
        assert len(begins["spu"].row) == inputs.rules["spu"].rows
    assert 0 < len(often) < len(counts)


def test_a_hashed_category_is_admitted_likewise_and_its_rows_stay_as_many_as_were_asked_for():
    signature = tagged("spu", kind="category", hashed="1024", min_count="50")
    days = [day_of(range(10), signature, seed) for seed in range(3)]
    inputs, _ = learn_inputs(days[0], TINY.history)
    known, counts = {}, {}
    for number, day in enumerate(days):
        before = inputs.rules["spu"]
        inputs, known, begins = grown(inputs, known, day, number)
        rule = inputs.rules["spu"]
        for value in column(day, "spu"):
            counts[value] = counts.get(value, 0) + 1
        rows = {int(hash_integers(np.array([v]))[0] % np.uint64(1024)): n for v, n in counts.items()}
        assert len(rows) == len(counts), "none shares a row here"
        for value, count in counts.items():
            row = int(hash_integers(np.array([value]))[0] % np.uint64(1024))
            assert rule.ids(pa.array([value]))[0][0] == (row if count >= 50 else 0)
            was = before.ids(pa.array([value]))[0][0]
            assert begins["spu"].row[row if count >= 50 else 0] == was, "as it was scored yesterday"
        assert rule.rows == 1024


def test_what_did_not_occur_for_so_many_days_is_forgotten(tmp_path):
    """Its row of a dictionary is gone; its row of a hashed table begins anew, as if nobody had been there."""
    terms, made = replace(TERMS, forget=2), None
    for number, items in enumerate([range(0, 20), range(10, 20), range(10, 20), range(10, 20)]):
        made = train_day(day_of(items, seed=number), number, made, terms, tmp_path / str(number), {}, {})
    states = [load_file(tmp_path / str(n) / STATE) for n in (2, 3)]
    rankers = [Ranker.open(open_artifact(tmp_path / str(n), "ranker"), None) for n in (2, 3)]
    old, new = VECTORS.ids[:10], VECTORS.ids[10:20]
    for rule in (one.encoder.inputs.rules["spu"] for one in rankers):
        assert set((new // 2).tolist()) <= set(rule.values)
    assert set((old // 2).tolist()) - set((new // 2).tolist()) <= set(
        rankers[0].encoder.inputs.rules["spu"].values
    )
    assert set(rankers[1].encoder.inputs.rules["spu"].values) == set((new // 2).tolist())
    name = "tables/tables.items/t_item_id.weight/t_item_id.weight.momentum_1"
    rule = rankers[1].encoder.inputs.items
    gone = set(rule.of(hash_integers(old)).tolist()) - set(rule.ids(pa.array(new))[0].tolist())
    assert rule.known(hash_integers(old)).mean() < 0.5 and rule.known(hash_integers(new)).all()
    stay = rule.ids(pa.array(new))[0]
    assert all(states[0][name][row] > 0 and states[1][name][row] == 0 for row in gone) and len(gone) > 5
    assert (states[1][name][stay] > 0).all()
    weight = rankers[1].model.get_parameter("tables.items.embedding_bags.t_item_id.weight").detach()
    assert weight[sorted(gone)].abs().max() <= 0.01
    assert sorted(states[1]["known/item_id/days"].tolist()) == [3] * 10
    kept = train_day(
        day_of(range(10, 20), seed=3), 3, made, replace(TERMS, forget=None), tmp_path / "k", {}, {}
    )
    assert set((new // 2).tolist()) <= set(Ranker.open(kept, None).encoder.inputs.rules["spu"].values)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 8), max_size=12), max_size=6), st.integers(1, 3), st.integers(1, 4))
def test_what_has_occurred_equals_a_count_by_hand(days, min_count, forget):
    known, counts, last = Known.none(), {}, {}
    for number, values in enumerate(days):
        known = known.and_on(number, np.array(values, np.uint64)).since(number - forget)
        for value in values:
            counts[value], last[value] = counts.get(value, 0) + 1, number
        for value in [one for one, day in last.items() if day < number - forget]:
            del counts[value], last[value]
        assert known.hashes.tolist() == sorted(counts)
        assert known.counts.tolist() == [counts[value] for value in sorted(counts)]
        assert known.days.tolist() == [last[value] for value in sorted(counts)]
        assert known.admitted(min_count).tolist() == [v for v in sorted(counts) if counts[v] >= min_count]


def test_the_first_day_begins_as_it_was_learned():
    """A ranker of one day is an ordinary one: nothing is moved, nothing is counted twice."""
    day = day_of(range(10))
    inputs, _ = learn_inputs(day, TINY.history)
    again, known, begins = grown(inputs, {}, day, 0)
    assert again == inputs and known["user_id"].counts.sum() == 40
    for name, one in begins.items():
        rule = inputs.items if name == "item_id" else inputs.rules[name]
        assert isinstance(rule, Dictionary | Hashed) and not one.anew.any() and NOTHING not in one.row
        assert one.row.tolist() == list(range(rule.rows))


def numbered(day, rate, age_us):
    """A day's requests with some numbers and ages of its candidates."""
    table = day.frame.candidates
    columns = {"rate_all": pa.array(rate, pa.float32()), "first_seen_us": pa.array(NOW_US - age_us)}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return Requests(replace(day.frame, candidates=table), day.signature)


def test_numbers_are_standardised_over_all_days_so_far(tmp_path):
    """The first day shows one user alone, so to speak: rates that hardly differ, of which some are not known."""
    draw, made = np.random.default_rng(0), None
    rates = [1.0 + 0.01 * draw.random(160), draw.random(160) - 2, draw.random(160)]
    rates = [[None if one < -1.9 or 1.0 < one < 1.001 else one for one in rate] for rate in rates]
    ages = [draw.integers(1, 10**spread, 160) * 1_000_000 for spread in (2, 6, 8)]
    for number, (rate, age_us) in enumerate(zip(rates, ages, strict=True)):
        day = numbered(day_of(range(10), seed=number), rate, age_us)
        made = train_day(day, number, made, TERMS, tmp_path / "r", {}, {})
        inputs = Ranker.open(made, None).encoder.inputs
        seen = np.array([one for rate in rates[: number + 1] for one in rate if one is not None], np.float32)
        rule, age = inputs.rules["rate_all"], inputs.rules["first_seen_us"]
        assert rule.mean == pytest.approx(seen.mean(dtype=np.float64))
        assert rule.deviation == pytest.approx(seen.std(dtype=np.float64)) and rule.absent
        logs = np.log1p(np.concatenate(ages[: number + 1]) / 1e6)
        assert (age.mean, age.deviation) == pytest.approx((logs.mean(), logs.std()))
        bounds = [one for each in ((seen, rule), (logs, age)) for one in (each[0].min(), each[0].max())]
        assert [rule.least, rule.most, age.least, age.most] == pytest.approx(bounds)
    told = rule.numbers(pa.array([-1.5, -1.8]), np.zeros(2, np.int64))[:, 0]
    assert told[0] > told[1] > -CLIP, "by the scale of the first day both would be cut"
    assert None in rates[0] and any(None in rate for rate in rates[1:])
