"""Day after day: each day is measured from itself alone, then learned from as it was known at its end."""

import os
import re
import shutil
import signal
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranker_world import DAY_US, NOW_US, Requests, auc, make_frame, make_world
from typer.testing import CliRunner

from dataset.contracts import TIME
from dataset.days import Day, days_of
from evaluation import daily as module
from evaluation import drift, sheets
from evaluation.daily import Log, train_daily
from evaluation.run import daily_measures
from moon import cli, summary
from ranker import attempt
from ranker import daily as training
from ranker import fit as fit_module
from ranker.daily import Terms
from ranker.inputs.frame_encoder import select_requests
from ranker.linear import LinearPath
from ranker.recipes import attention, recipe
from ranker.regression import begin
from ranker.score import Ranker
from run.artifacts import open_artifact, write_artifact
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=50, ranker_slots=200)
FIRST = NOW_US // DAY_US + 1
EACH, EMPTY, DAYS = 60, 2, 5  # requests of a day; which day nobody asks; how many there are
WORLD = make_world(requests=EACH * (DAYS - 1), items=80)
HOUR_US = DAY_US // 24


class Labelled(Requests):
    """What ``retrieval.examples.MatchedFrames`` offers, in memory."""

    def only(self, rows, label):
        frame = select_requests(self.frame, rows)
        place = frame.candidates.column_names.index("label")
        column = pa.array(np.asarray(label, np.float32))
        return Labelled(replace(frame, candidates=frame.candidates.set_column(place, "label", column)))


def make_log(days=DAYS, delay_us=0):
    """So many days of the world, of which nobody asks on one; likes become known after the delay."""
    every = [day for day in range(DAYS) if day != EMPTY]
    day = np.repeat(every, EACH)
    time_us = (FIRST + day) * DAY_US + np.tile(1 + np.arange(EACH) * (DAY_US // EACH), len(every))
    kept = np.flatnonzero(day < days)
    frame, time_us = select_requests(WORLD.frame, kept), time_us[kept]
    place = frame.requests.column_names.index("time")
    frame = replace(frame, requests=frame.requests.set_column(place, "time", pa.array(time_us).cast(TIME)))
    label = frame.candidates["label"].to_numpy()
    shown_us = np.repeat(time_us, np.diff(frame.offsets))
    chance = WORLD.probability[: len(label)]
    return Log(
        requests=Labelled(frame),
        time_us=time_us,
        user_id=frame.requests["user_id"].to_numpy(),
        item_id=frame.candidates["item_id"].to_numpy(),
        offsets=frame.offsets,
        label=label,
        liked_us=np.where(label > 0, shown_us + delay_us, np.iinfo(np.int64).max),
        plain=np.log(chance / (1 - chance))[:, None],
        end_us=(FIRST + days) * DAY_US,
    )


def terms(**changed):
    given = {"recipe": recipe("simtier"), "size": TINY, "vectors": WORLD.vectors, "encoder": "e", "seed": 0}
    return Terms(**(given | {"epochs": 2, "learning_rate": 5e-3, "table_learning_rate": 5e-3} | changed))


def date_of(day):
    return str(np.datetime64(FIRST + day, "D"))


def measured(folder, day):
    return drift.figures(folder)[date_of(day)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All days in one go."""
    folder = tmp_path_factory.mktemp("whole") / "daily"
    dates = train_daily(folder, make_log(), terms(), {})
    return folder, dates


@pytest.mark.parametrize("day", [1, 3, 4])
def test_a_days_figures_are_those_of_that_day_alone(whole, tmp_path, day):
    """Computed by hand from the ranker that a log makes which ends where the day begins."""
    log = make_log()
    train_daily(tmp_path / "d", make_log(day), terms(), {})
    made = tmp_path / "d" / "ranker"
    made = open_artifact(made if made.exists() else tmp_path / "d" / "first", "ranker")
    rows = np.flatnonzero(log.time_us // DAY_US == FIRST + day)
    frame = select_requests(log.requests.frame, rows)
    label, score = frame.candidates["label"].to_numpy(), Ranker.open(made, WORLD.vectors).score(frame)
    chance = 1 / (1 + np.exp(-score.astype(np.float64)))
    found = measured(whole[0], day)
    assert found["ranker/auc"].value == pytest.approx(auc(label, score), abs=1e-12)
    assert found["ranker/auc"].n == len(label) == EACH * 10
    loss = -np.mean(np.where(label > 0, np.log(chance), np.log1p(-chance)))
    rate = label.mean()
    assert found["ranker/ne"].value == pytest.approx(
        loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    )
    assert found["ranker/calibration"].value == pytest.approx(chance.sum() / label.sum())
    mine = log.candidates(rows)
    assert found["logistic/auc"].value == pytest.approx(auc(label, WORLD.probability[mine])), (
        "it knows the truth"
    )


def test_where_tastes_drift_going_on_beats_the_ranker_of_the_first_day(tmp_path):
    """After the first day everybody likes what they did not like before."""
    log = make_log()
    day = np.repeat(log.time_us // DAY_US - FIRST, np.diff(log.offsets))
    label = np.where(day > 0, 1 - log.label, log.label)
    shown_us = np.repeat(log.time_us, np.diff(log.offsets))
    log = replace(log, label=label, liked_us=np.where(label > 0, shown_us, np.iinfo(np.int64).max))
    train_daily(tmp_path / "d", log, terms(epochs=8), {})
    last = measured(tmp_path / "d", DAYS - 1)
    assert last["ranker/auc"].value > 0.6 > 0.4 > last["first/auc"].value
    assert last["ranker/ne"].value < last["first/ne"].value - 0.3


def visits(block=8, blocks=4, each=6):
    """Small days: those of one segment come for some days, then those of another, who like what the first do not."""
    draw, days = np.random.default_rng(0), block * blocks
    day = np.repeat(np.arange(days), each)
    segment = day // block % 2
    user = 3 * draw.integers(0, 5, len(day)) + segment
    shown = [draw.choice(WORLD.vectors.ids, 10, replace=False) for _ in day]
    labels = [
        draw.random(10) < np.where(ids // 7 % 5 % 2 == one, 0.9, 0.1)
        for ids, one in zip(shown, segment, strict=True)
    ]
    frame = make_frame(user.tolist(), [[]] * len(day), shown, labels)
    time_us = (FIRST + day) * DAY_US + np.tile(1 + np.arange(each), days)
    place = frame.requests.column_names.index("time")
    frame = replace(frame, requests=frame.requests.set_column(place, "time", pa.array(time_us).cast(TIME)))
    label = frame.candidates["label"].to_numpy()
    return Log(
        requests=Labelled(frame),
        time_us=time_us,
        user_id=user,
        item_id=frame.candidates["item_id"].to_numpy(),
        offsets=frame.offsets,
        label=label,
        liked_us=np.where(label > 0, np.repeat(time_us, 10), np.iinfo(np.int64).max),
        plain=np.zeros((len(label), 1)),
        end_us=(FIRST + days) * DAY_US,
    )


def test_where_days_are_small_earlier_requests_beside_them_keep_what_the_day_does_not_show(
    tmp_path, monkeypatch
):
    found, log = {}, visits()
    for name in ("replayed", "alone"):
        if name == "alone":
            monkeypatch.setattr(module, "replayed", lambda *given: np.empty(0, np.int64))
        train_daily(tmp_path / name, log, terms(recipe=attention(), epochs=4, table_learning_rate=5e-2), {})
        back = [measured(tmp_path / name, day) for day in (16, 24)]  # those of a segment come back
        found[name] = [np.mean([one[f"ranker/{what}"].value for one in back]) for what in ("auc", "logloss")]
    assert found["replayed"][0] > 0.7 > 0.5 > found["alone"][0], found
    assert found["replayed"][1] < found["alone"][1] - 0.2, found


@pytest.mark.parametrize("late_us, forget", [(0, None), (DAY_US, 1)], ids=["at once", "late, forgetting"])
def test_what_is_learned_again_was_measured_before_and_is_as_it_was(tmp_path, monkeypatch, late_us, forget):
    """Brute force: request by request, what training reads each night, with labels as known by then."""
    log, done, real = make_log(delay_us=late_us), [], module.train_day
    whole_frame = log.requests.frame
    asked, again = whole_frame.requests["request_id"].to_pylist(), {"trained": 0, "regression": 0}

    def train(requests, day, *given):
        done.append(("learn", day - FIRST))
        *_, trained, _, past = given
        for what, one in (("trained", trained), ("regression", past)):
            again[what] += earlier(one.frame, day)
        return real(requests, day, *given)

    def earlier(frame, day):
        end_us, found = (day + 1) * DAY_US, 0
        for place, name in enumerate(frame.requests["request_id"].to_pylist()):
            row = asked.index(name)
            own, once = (
                select_requests(one, np.array([r])) for one, r in ((frame, place), (whole_frame, row))
            )
            when = int(log.time_us[row] // DAY_US)
            assert when <= day and (forget is None or when >= day - forget)
            assert when == day or ("measure", when - FIRST) in done or when == FIRST, "measured before"
            assert own.requests.equals(once.requests)
            assert own.candidates.drop_columns("label").equals(once.candidates.drop_columns("label"))
            assert np.array_equal(own.history.item_id, once.history.item_id)
            rows = slice(log.offsets[row], log.offsets[row + 1])
            known = np.where(log.liked_us[rows] < end_us, log.label[rows], 0)
            assert own.candidates["label"].to_numpy().tolist() == known.tolist()
            found += when < day
        return found

    measure = module._measure

    def measuring(folder, log, days, *given):
        done.append(("measure", days[-1].number - FIRST))
        return measure(folder, log, days, *given)

    monkeypatch.setattr(module, "train_day", train)
    monkeypatch.setattr(module, "_measure", measuring)
    train_daily(tmp_path / "d", log, terms(forget=forget), {})
    assert done == [
        ("learn", 0), *((what, day) for day in (1, 3, 4) for what in ("measure", "learn"))
    ]  # fmt: skip
    assert again["trained"] == (3 * EACH if forget is None else 2 * EACH), "on day 3 the day before was empty"
    assert again["regression"] == (6 * EACH if forget is None else 2 * EACH), (
        "of all days that are not forgotten"
    )


def test_as_much_is_drawn_again_as_a_day_has_or_fills_a_batch():
    draw = np.random.default_rng(0)
    counts, often = draw.integers(1, 9, 50), np.zeros(50)
    for today, slots in ((40, 64), (10, 64), (64, 64), (500, 64)):
        wanted = max(today, slots - today)
        for seed in range(300):
            rows = training.replayed(counts, today, slots, (seed, 1))
            assert np.array_equal(rows, np.unique(rows)), "each once, in order"
            total = counts[rows].sum()
            assert total == counts.sum() if wanted > counts.sum() else wanted <= total < wanted + 8
            often[rows] += wanted < counts.sum()
        assert np.array_equal(rows, training.replayed(counts, today, slots, (seed, 1)))
    assert often.std() < 0.2 * often.mean(), "evenly"
    assert not len(training.replayed(counts[:0], 40, 64, (0, 1)))


def test_some_users_of_the_first_day_say_when_to_stop(whole):
    user_id = np.repeat(np.arange(23), 3)
    out = training.held_out(user_id, 0)
    assert out.sum() == 3 * 4 and all(len(set(out[user_id == one])) == 1 for one in range(23))
    assert not np.array_equal(out, training.held_out(user_id, 1))
    assert not training.held_out(user_id[:12], 0).any(), "too few to tell"
    outcome = open_artifact(whole[0] / "first", "ranker").config["outcome"]
    assert len(outcome["valid_loss"]) == outcome["epochs"] > 2
    assert not open_artifact(whole[0] / "ranker", "ranker").config["outcome"]["valid_loss"]


def test_the_first_day_is_all_there_is_until_the_second(whole):
    assert measured(whole[0], 1)["ranker/auc"].value == measured(whole[0], 1)["first/auc"].value
    ranker = open_artifact(whole[0] / "ranker", "ranker")
    assert list(ranker.config["days"]) == [date for day, date in enumerate(whole[1]) if day != EMPTY]


def test_every_day_begins_at_a_regression_of_what_it_learns_from(tmp_path, monkeypatch):
    """On the first day untrained, then with all else that was learned by the day before."""
    read, found, examples_of, fit = [], [], attempt.examples_of, attempt.fit

    def seen(*given):
        read.append(examples_of(*given))
        return read[-1]

    def begun(model, *given, **named):
        found.append({name: one.detach().clone() for name, one in model.named_parameters()})
        return fit(model, *given, **named)

    monkeypatch.setattr(attempt, "examples_of", seen)
    monkeypatch.setattr(attempt, "fit", begun)
    train_daily(tmp_path / "d", make_log(2), terms(), {})
    assert len(found) == len(read) == 2
    for model, given in zip(found, read, strict=True):
        line = LinearPath(len(model["line.candidate"]), len(model["line.request"]))
        begin(line, given)
        for name, expected in line.named_parameters():
            torch.testing.assert_close(model[f"line.{name}"], expected.detach())
    assert len(read[1].liked) > len(read[0].liked), "earlier requests beside those of the day"
    first = Ranker.open(open_artifact(tmp_path / "d" / "first", "ranker"), WORLD.vectors).model
    for name, one in first.named_parameters():
        if not name.startswith(("line.", "tables.")):
            torch.testing.assert_close(found[1][name], one.detach())


def test_an_empty_day_is_skipped_and_said(tmp_path, capsys):
    dates = train_daily(tmp_path / "d", make_log(3), terms(), {})
    assert dates == [str(np.datetime64(FIRST + day, "D")) for day in range(2)], "the log ends with who asked"
    train_daily(tmp_path / "e", make_log(4), terms(), {})
    said = capsys.readouterr().err
    empty = str(np.datetime64(FIRST + EMPTY, "D"))
    assert f"{empty}: no requests, not measured" in said
    assert f"{empty}: nothing to learn from at its end, skipped" in said
    assert empty not in drift.figures(tmp_path / "e")


def test_killed_within_a_day_it_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "EVERY_S", 0.0)
    folder, real, seen, stop = tmp_path / "d", attempt.epoch_batches, [], -1

    def batches(*given, **rest):
        for batch in real(*given, **rest):
            if len(seen) == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(1)
            yield batch

    monkeypatch.setattr(attempt, "epoch_batches", batches)
    for drawn in np.random.default_rng().integers(1, 10, 2).tolist():
        stop = drawn
        child = get_context("fork").Process(target=train_daily, args=(folder, make_log(), terms(), {}))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    stop = -1
    train_daily(folder, make_log(), terms(), {})
    for name in ("ranker", "first"):
        assert open_artifact(folder / name, "ranker").id == open_artifact(whole[0] / name, "ranker").id
    for day in (1, 3, 4):
        assert measured(folder, day) == measured(whole[0], day)


def test_a_log_that_has_grown_goes_on_with_its_new_days(whole, tmp_path, monkeypatch):
    """With the vectors of another embedding by the same encoder, as a new day's items need."""
    folder, trained, real = tmp_path / "d", [], module.train_day
    monkeypatch.setattr(
        module, "train_day", lambda *given: (trained.append(given[1] - FIRST), real(*given))[1]
    )
    train_daily(folder, make_log(4), terms(), {})
    grown = terms(vectors=replace(WORLD.vectors, id="embedding-2"))
    train_daily(folder, make_log(), grown, {})
    assert trained == [0, 1, 3, 4]
    made, once = (open_artifact(one / "ranker", "ranker") for one in (folder, whole[0]))
    assert made.config == once.config
    frame = make_log().requests.frame
    scores = [Ranker.open(a, t.vectors).score(frame) for a, t in ((made, grown), (once, terms()))]
    assert np.array_equal(*scores)
    assert measured(folder, 4) == measured(whole[0], 4)


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"recipe": attention()}, "another recipe"),
        ({"encoder": "f"}, "another encoder"),
        ({"forget": 3}, "another forget"),
    ],
    ids=["recipe", "encoder", "forget"],
)
def test_under_other_terms_it_begins_anew_and_says_why(whole, tmp_path, capsys, changed, why):
    folder = tmp_path / "d"
    train_daily(folder, make_log(2), terms(), {})
    train_daily(folder, make_log(2), terms(**changed), {})
    assert f"trained otherwise ({why}): starting afresh" in capsys.readouterr().err
    assert open_artifact(folder / "first", "ranker").config["terms"] != terms().to_json()


def test_another_service_or_another_past_begins_anew(tmp_path, capsys):
    folder, log = tmp_path / "d", make_log(2)
    train_daily(folder, log, terms(), {})
    before = open_artifact(folder / "ranker", "ranker")
    signature = log.requests.signature
    less = replace(signature, features=signature.features[:-1])
    requests = Labelled(log.requests.frame, less)
    requests.only = lambda rows, label: Labelled(log.requests.only(rows, label).frame, less)
    train_daily(folder, replace(log, requests=requests), terms(), {})
    assert re.search(r"trained otherwise \(lost: .*rate_all.*\): starting afresh", capsys.readouterr().err)
    train_daily(folder, log, terms(), {})
    assert "trained otherwise (added: rate_all" in capsys.readouterr().err
    changed = replace(log, label=1 - log.label, liked_us=np.where(log.label > 0, 2**62, log.time_us.max()))
    train_daily(folder, changed, terms(), {})
    date = str(np.datetime64(FIRST, "D"))
    assert f"another log on {date}" in capsys.readouterr().err
    train_daily(folder, log, terms(), {})
    assert open_artifact(folder / "ranker", "ranker").id == before.id


def test_a_like_that_came_to_be_known_on_a_later_day_is_part_of_that_days_past():
    """A request of the first day is learned from again on the second, with its likes by then."""
    late, never = make_log(2, delay_us=DAY_US), make_log(2)
    never = replace(never, liked_us=np.full(len(never.label), np.iinfo(np.int64).max))
    first, second = (
        [module._identity(log, day) for day in module.days_of(log.time_us, log.end_us)]
        for log in (late, never)
    )
    assert first[0] == second[0] and first[1] != second[1]


def test_a_like_that_comes_late_is_learned_only_by_those_who_wait(tmp_path):
    """What becomes known after a day has no part in what is learned at its end; waiting, it has."""
    late, on_time = make_log(1, delay_us=DAY_US), make_log(1)
    never = replace(late, label=late.label * 0, liked_us=np.full(len(late.label), np.iinfo(np.int64).max))
    trained = {}
    for name, log in {"late": late, "never": never, "on time": on_time}.items():
        train_daily(tmp_path / name, log, terms(), {})
        trained[name] = open_artifact(tmp_path / name / "first", "ranker").id
    assert trained["late"] == trained["never"] != trained["on time"]
    longer = replace(late, end_us=late.end_us + 2 * DAY_US)
    train_daily(tmp_path / "waits", longer, terms(), {}, timedelta(days=1))
    made, once = (open_artifact(tmp_path / one / "first", "ranker") for one in ("waits", "on time"))
    frame = on_time.requests.frame
    assert made.config["day"] > once.config["day"], "a day later"
    losses = [one.config["outcome"]["train_loss"] for one in (made, once)]
    both = min(
        map(len, losses)
    )  # held-out users, whose requests were drawn by other seeds, say when each stops
    assert both > 2 and losses[0][:both] == pytest.approx(losses[1][:both], abs=0.1)
    scores = [Ranker.open(one, WORLD.vectors).score(frame) for one in (made, once)]
    assert auc(on_time.label, scores[0]) == pytest.approx(auc(on_time.label, scores[1]), abs=0.05)


@pytest.mark.parametrize("wait_h", [0, 1, 24, 30])
def test_days_are_those_of_a_loop_over_the_requests(wait_h):
    draw = np.random.default_rng(wait_h)
    time_us = np.sort(draw.integers(100 * DAY_US, 106 * DAY_US, 300))
    time_us = time_us[time_us // DAY_US != 103]
    time_us[:2] = 100 * DAY_US, 101 * DAY_US - HOUR_US  # at the turn of a day, and a wait before one
    end_us, wait_us = 106 * DAY_US - 7 * HOUR_US, wait_h * HOUR_US
    found = {day.number: day for day in days_of(time_us, end_us, wait_us)}
    assert list(found) == list(range(100, max(found) + 1)) and max(found) <= 105
    for number in range(100, 110):
        day = found.get(number, Day(number, np.empty(0, int), np.empty(0, int)))
        asked = [n for n, t in enumerate(time_us) if t // DAY_US == number and t + wait_us <= end_us]
        ends = [(one + 1) * DAY_US for one in range(100, 110)]
        first = [next(e for e in ends if e > t and e >= t + wait_us) for t in time_us]
        learned = [n for n, e in enumerate(first) if e == (number + 1) * DAY_US and e <= end_us]
        assert day.asked.tolist() == asked and day.learned.tolist() == learned, number


def test_the_table_and_the_page_show_every_day(whole):
    drift.write_drift(whole[0])
    said = summary.days(whole[0].parent)
    lines = said.splitlines()
    assert lines[0] == "| day | ranker | AUC | GAUC | NE | calibration |"
    assert len([line for line in lines if line.startswith("| 20")]) == 3 * 3
    found = measured(whole[0], 4)["ranker/auc"].value
    assert any(line.startswith(f"| {whole[1][4]} | daily | {found:.4f} | ") for line in lines)
    page = (whole[0] / "drift.html").read_text()
    assert [curve.x for curve in drift.drift(whole[0])[0].curves] == [[2, 4, 5]] * 3, (
        "the third day was empty"
    )
    assert drift.drift(whole[0] / "nothing") == []
    assert page.count("<svg") == 4 and f"Day 1 is {whole[1][0]}" in page and f"{found:.4f}" in page
    assert summary.days(whole[0]) == "", "nothing was trained there"


def test_all_days_together_are_measured_by_what_was_predicted_on_each(whole, tmp_path):
    """By hand; a day on which one of the ways predicted nothing is left out for all."""
    folder = tmp_path / "d"
    shutil.copytree(whole[0], folder)
    found = {one.name: one for one in drift.pooled(folder)}
    log = make_log()
    rows = log.candidates(np.flatnonzero(log.time_us // DAY_US > FIRST))
    table = pa.concat_tables([pq.read_table(drift.path_of(folder, date_of(day))) for day in (1, 3, 4)])
    assert table["label"].to_numpy().tolist() == log.label[rows].tolist()
    for way in ("ranker", "first", "logistic"):
        chance, label = table[way].to_numpy(), log.label[rows]
        assert found[f"daily/{way}/auc"].value == pytest.approx(auc(label, chance), abs=1e-12)
        assert found[f"daily/{way}/calibration"].value == pytest.approx(chance.sum() / label.sum())
        assert found[f"daily/{way}/auc"].n == len(rows)
    assert found["daily/ranker/auc"].split == f"{date_of(1)} to {date_of(4)}"
    path = drift.path_of(folder, date_of(1))
    pq.write_table(pq.read_table(path).drop_columns("logistic"), path)
    fewer = {one.name: one for one in drift.pooled(folder)}
    assert {one.split for one in fewer.values()} == {f"{date_of(3)} to {date_of(4)}"}
    assert fewer["daily/ranker/auc"].n == len(rows) * 2 // 3
    assert not list(drift.pooled(tmp_path / "nothing"))


def test_the_report_shows_days_of_its_own_split_alone(tmp_path):
    made = {}
    for name in ("split", "another"):
        with write_artifact(tmp_path / name, "split", {"name": name}):
            pass
        made[name] = open_artifact(tmp_path / name, "split")
    train_daily(tmp_path / "daily", make_log(4), terms(), {"split": made["split"]})

    def evidence(split):
        return sheets.Evidence(tmp_path, None, SimpleNamespace(artifact=made[split]), None, {})

    titles = [plot.title for plot in sheets.days_of_ranker(evidence("split"))]
    assert titles == [f"Day after day: {label}" for label in drift.METRICS.values()]
    assert {one.name.split("/")[1] for one in daily_measures(evidence("split"))} == set(drift.WAYS)
    assert sheets.days_of_ranker(evidence("another")) == list(daily_measures(evidence("another"))) == []


def test_the_command_hands_its_options_on_and_refuses_what_means_nothing(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_do", lambda verb, run, **options: seen.append((verb, options)))
    monkeypatch.setattr(cli, "_tell_days", lambda run: None)
    asked = "--wait 1.5 --forget 7 --recipe muse --requests 50".split()
    for words in ([], asked):
        assert CliRunner().invoke(cli.app, ["ranker", "--daily", *words]).exit_code == 0
    assert seen == [
        ("daily", dict.fromkeys(("recipe", "history", "requests", "forget")) | {"wait": 0.0}),
        ("daily", {"recipe": "muse", "history": None, "wait": 1.5, "requests": 50, "forget": 7}),
    ]
    for words in (["--ranks", "2"], ["--compare", "3"], ["--without", "price"]):
        refused = CliRunner().invoke(cli.app, ["ranker", "--daily", *words])
        assert refused.exit_code == 2 and "expected without --daily" in refused.output
    for words in (["--wait", "1"], ["--forget", "2"], ["--requests", "2"]):
        refused = CliRunner().invoke(cli.app, ["ranker", *words])
        assert refused.exit_code == 2 and re.search("expected with (--compare or )?--daily", refused.output)
    assert CliRunner().invoke(cli.app, ["ranker", "--daily", "--wait", "-1"]).exit_code == 2
