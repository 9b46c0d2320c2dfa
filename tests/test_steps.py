"""What follows a click: labelled by a plain loop's rules, learned over every impression, ranked by."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import DAY_US, NOW_US, Requests, auc, make_frame, make_vectors
from typer.testing import CliRunner

from dataset.contracts import EVENTS, DataError
from dataset.later import followed, steps_of
from evaluation.metrics import expected_calibration_error
from moon import cli
from ranker.inputs.columns import Inputs
from ranker.recipes import vector
from ranker.score import CONFIG, CtrConfig, Ranker
from ranker.steps import entire_space_loss, log_chances, log_odds
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
NANO = replace(size("nano"), id_width=4)


def log_of(rows):
    """(user, item, type, microseconds after NOW_US) of each event."""
    times = [datetime.fromtimestamp((NOW_US + after) / 1e6, UTC) for *_, after in rows]
    columns = {
        "event_id": range(len(rows)),
        "user_id": [row[0] for row in rows],
        "item_id": [row[1] for row in rows],
        "type": [row[2] for row in rows],
        "event_time": times,
        "available_time": times,
    }
    return pa.table(
        {one.name: pa.array(columns.get(one.name, [None] * len(rows)), one.type) for one in EVENTS}
    )


def test_a_step_is_ascribed_as_a_loop_over_all_pairs_does():
    draw = np.random.default_rng(0)
    rows = [
        (int(u), int(i), kind, int(after))
        for u, i, kind, after in zip(
            draw.integers(0, 3, 60), draw.integers(0, 3, 60), draw.choice(["click", "cart", "purchase"], 60),
            draw.integers(-DAY_US, 3 * DAY_US, 60), strict=True,
        )
    ]  # fmt: skip
    shown = (draw.integers(0, 4, 200), draw.integers(0, 4, 200), NOW_US + draw.integers(0, 2 * DAY_US, 200))
    clicked = draw.random(200) < 0.6
    found = followed(log_of(rows), ("cart", "purchase"), *shown, clicked)
    assert list(found) == ["cart", "purchase"]
    for step, kinds in (("cart", ("cart", "purchase")), ("purchase", ("purchase",))):
        slow = [
            bool(c) and any(
                (user, item) == (u, i) and kind in kinds and 0 <= NOW_US + after - t <= DAY_US
                for user, item, kind, after in rows
            )
            for u, i, t, c in zip(*shown, clicked, strict=True)
        ]  # fmt: skip
        assert found[step].tolist() == slow and 0 < sum(slow) < clicked.sum()
    assert not followed(log_of([]), ("cart",), *shown, clicked)["cart"].any()


def test_steps_are_those_of_the_log_in_order_and_a_log_without_any_is_refused():
    assert steps_of(log_of([(1, 1, "purchase", 0), (1, 1, "cart", 0)])) == ("cart", "purchase")
    assert steps_of(log_of([(1, 1, "purchase", 0), (1, 1, "click", 0)])) == ("purchase",)
    with pytest.raises(DataError, match="types cart or purchase .* found click. Train without --rank-by"):
        steps_of(log_of([(1, 1, "click", 0)]))


def test_chances_loss_and_odds_are_the_formula_written_out():
    torch.manual_seed(0)
    logit = torch.randn(2, 3, 3, dtype=torch.float64) * 2
    label = (torch.rand(2, 3, 2) < 0.5).double()
    filled = torch.tensor([[True, True, False], [True, True, True]])
    total = 0.0
    for r, n in filled.nonzero().tolist():
        chance = 1.0
        for t in range(3):
            chance *= 1 / (1 + np.exp(-float(logit[r, n, t])))
            assert float(log_chances(logit)[r, n, t].exp()) == pytest.approx(chance)
            assert float(log_odds(logit, t)[r, n]) == pytest.approx(np.log(chance / (1 - chance)))
            if t:
                happened = float(label[r, n, t - 1])
                total -= happened * np.log(chance) + (1 - happened) * np.log(1 - chance)
    assert float(entire_space_loss(logit, label, filled)) == pytest.approx(total / 5)


@pytest.mark.parametrize("size_of", [0.0, 30.0, 90.0])
def test_extreme_logits_have_finite_gradients(size_of):
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        logit = (size_of * torch.tensor([[signs]], dtype=torch.float32)).requires_grad_()
        for happened in (0.0, 1.0):
            loss = entire_space_loss(
                logit, torch.full((1, 1, 1), happened), torch.ones(1, 1, dtype=torch.bool)
            )
            (gradient,) = torch.autograd.grad(loss, logit)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def shop(requests, seed):
    """Clicks follow the first number of an item's vector, purchases of what was clicked the second."""
    draw = np.random.default_rng(seed)
    vectors = make_vectors(200)
    row = np.array([draw.choice(200, 10, replace=False) for _ in range(requests)]).ravel()
    click = 1 / (1 + np.exp(-(4 * vectors.matrix[row, 0] - 0.5)))
    buy = click / (1 + np.exp(-(6 * vectors.matrix[row, 1] - 0.5)))
    clicked = draw.random(len(row)) < click
    bought = clicked & (draw.random(len(row)) < buy / click)
    frame = make_frame(
        [r % 20 for r in range(requests)], [[]] * requests, vectors.ids[row].reshape(requests, 10).tolist(), [clicked]
    )  # fmt: skip
    labelled = frame.candidates.append_column("label_purchase", pa.array(bought.astype(np.float32)))
    return vectors, replace(frame, candidates=labelled), click, buy, clicked, bought


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    (vectors, train, *_), (_, valid, *_) = shop(500, 0), shop(120, 1)

    def trained(name, train, valid, **how):
        training = Training(recipe=vector(), **how)
        one = train_ctr(Requests(train), Requests(valid), vectors, NANO, folder / name, {}, training)
        return one, Ranker.open(one, vectors)

    plain = [
        replace(one, candidates=one.candidates.drop_columns(["label_purchase"])) for one in (train, valid)
    ]
    return {
        "clicks": trained("clicks", *plain),
        "by_click": trained("by_click", train, valid, rank_by="click"),
        "by_purchase": trained("by_purchase", train, valid, rank_by="purchase", calibrate="platt"),
    }


def test_planted_purchases_are_found_where_clicks_say_nothing_of_them(made):
    _, test, click, buy, clicked, bought = shop(300, 2)
    score = {name: ranker.score(test) for name, (_, ranker) in made.items()}
    assert auc(bought, score["by_purchase"]) > auc(bought, buy) - 0.03
    assert auc(bought, score["by_purchase"]) > auc(bought, score["clicks"]) + 0.1
    assert auc(clicked, score["by_click"]) > auc(clicked, click) - 0.03
    chance = 1 / (1 + np.exp(-score["by_purchase"]))
    assert expected_calibration_error(bought, chance) < 0.03, "a chance of a purchase, over every impression"
    assert abs(np.corrcoef(chance, buy)[0, 1]) > 0.9


def test_the_steps_are_part_of_the_artifact_and_a_model_of_clicks_has_none(made):
    for name, (artifact, ranker) in made.items():
        config = CtrConfig.read(artifact.file(CONFIG))
        steps = () if name == "clicks" else ("purchase",)
        assert (config.inputs.steps, len(ranker.model.steps)) == (steps, len(steps))
        content = config.inputs.to_json()
        assert Inputs.from_json(content) == config.inputs
        if not steps:
            assert Inputs.from_json({k: v for k, v in content.items() if k != "steps"}) == config.inputs
    _, by_purchase = made["by_purchase"]
    _, test, *_ = shop(20, 3)
    served = replace(test, candidates=test.candidates.drop_columns(["label", "label_purchase"]))
    np.testing.assert_array_equal(by_purchase.score(served), by_purchase.score(test))
    again = by_purchase.with_vectors(make_vectors(200))
    np.testing.assert_array_equal(again.score(test), by_purchase.score(test))


def test_a_step_that_is_not_learned_cannot_be_ranked_by(tmp_path):
    vectors, frame, *_ = shop(5, 0)
    with pytest.raises(DataError, match="cannot rank by 'cart': expected one of click, purchase"):
        one = Requests(frame)
        train_ctr(one, one, vectors, NANO, tmp_path / "r", {}, Training(rank_by="cart"))


def test_the_command_hands_on_what_to_rank_by(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_do", lambda verb, run, **options: seen.append(options.get("rank_by")))
    assert CliRunner().invoke(cli.app, ["ranker", "--rank-by", "purchase"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["ranker"]).exit_code == 0
    assert seen == ["purchase", None]
    assert CliRunner().invoke(cli.app, ["ranker", "--tune", "3", "--rank-by", "cart"]).exit_code == 2
