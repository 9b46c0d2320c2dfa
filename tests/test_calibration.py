"""Maps fitted to planted miscalibration undo it, keep the order, and are part of the model wherever it scores."""

import json

import numpy as np
import pytest
from ranker_world import Requests, make_world
from scipy.optimize import brute
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from dataset.contracts import DataError
from evaluation.metrics import expected_calibration_error, log_loss
from moon import cli
from ranker import attempt
from ranker.calibration import METHODS, Calibration, calibrated
from ranker.explain import explain
from ranker.recipes import simtier
from ranker.score import Ranker
from ranker.train import Training, train_ctr
from run.artifacts import ArtifactError, open_artifact
from run.sizes import size

DRAW = np.random.default_rng(0)
TRUE = DRAW.normal(-1.5, 1.2, 40_000)  # log-odds of clicks
LABEL = (DRAW.random(len(TRUE)) < expit(TRUE)).astype(np.float32)
HALF = len(TRUE) // 2
WRONG = {  # what a model says instead
    "temperature": 2.5 * TRUE,
    "platt": 0.5 * TRUE + 1.0,
    "isotonic": np.sinh(TRUE),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_error_is_undone_on_impressions_that_were_not_fitted(method):
    said = WRONG[method].astype(np.float32)
    made = calibrated(method, said[:HALF], LABEL[:HALF])
    found, label = made(said[HALF:]), LABEL[HALF:]
    before, after = (expected_calibration_error(label, expit(x)) for x in (said[HALF:], found))
    assert after < 0.018 and after < before / 3
    assert log_loss(label, expit(found)) < log_loss(label, expit(TRUE[HALF:])) + 0.004
    middle = np.abs(TRUE[HALF:] + 1.5) < 1.2
    assert np.abs(found - TRUE[HALF:])[middle].mean() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_the_order_is_that_of_the_scores_also_where_nothing_was_fitted(method):
    said = WRONG["isotonic"][:2000].astype(np.float32)
    made = calibrated(method, said, LABEL[:2000])
    everywhere = np.linspace(said.min() - 20, said.max() + 20, 4001)
    assert (np.diff(made(everywhere)) > 0).all() and np.isfinite(made(everywhere)).all()
    backwards = calibrated(method, -said, LABEL[:2000])
    assert (np.diff(backwards(np.linspace(-5, 5, 11))) > 0).all(), "a model that is wrong keeps its order"
    assert made(np.zeros((0,), np.float32)).shape == (0,) and made(said).dtype == np.float32
    assert Calibration.from_json(json.loads(json.dumps(vars(made)))) == made


def test_temperature_and_platt_are_the_least_log_loss():
    said, label = WRONG["platt"][:5000], LABEL[:5000]
    other = LogisticRegression(C=1e9, tol=1e-8).fit(said[:, None], label)
    low, high = calibrated("platt", said, label).calibrated
    assert (high - low) / 2 == pytest.approx(other.coef_[0, 0], abs=1e-3)
    assert (high + low) / 2 == pytest.approx(other.intercept_[0], abs=1e-3)
    scale = brute(lambda a: log_loss(label, expit(a[0] * said)), [slice(0.01, 3, 0.01)], finish=None)
    assert calibrated("temperature", said, label).calibrated[1] == pytest.approx(scale, abs=0.01)


def test_isotonic_passes_through_the_pools():
    """Three pools written out: the second and third impressions are in the wrong order."""
    logits = np.repeat([-2.0, -1.0, 0.0, 3.0], 10)
    label = np.concatenate([np.arange(10) < k for k in (1, 5, 3, 9)])
    made = calibrated("isotonic", logits, label)
    odds = [
        np.log(1.45 / 9.55),
        np.log(8.45 / 12.55),
        np.log(9.45 / 1.55),
    ]  # with one impression at the rate of all
    assert made.logit == pytest.approx((-2.0, -0.5, 3.0)) and made.calibrated == pytest.approx(odds)
    assert made(np.array([-3.0, -0.5, 1.25, 5.0])) == pytest.approx(
        [odds[0] - 1, odds[1], (odds[1] + odds[2]) / 2, odds[2] + 2]
    )


def test_what_cannot_be_calibrated_is_refused():
    for label in (np.zeros(4), np.ones(4), np.zeros(0)):
        with pytest.raises(DataError, match=f"{int(label.sum())} clicks of {len(label)} impressions"):
            calibrated("platt", np.zeros(len(label)), label)
    with pytest.raises(DataError, match="unknown calibration 'beta': expected one of temperature, platt"):
        calibrated("beta", TRUE, LABEL)


TRAIN, VALID, TEST = (make_world(requests=r, seed=s) for r, s in ((150, 0), (120, 1), (100, 2)))
NANO = size("nano")


def trained(out, **how):
    training = Training(recipe=simtier(), epochs=2, **how)
    return train_ctr(Requests(TRAIN.frame), Requests(VALID.frame), TRAIN.vectors, NANO, out, {}, training)


def test_the_map_is_in_the_artifact_and_in_every_score(tmp_path, one_thread):
    plain = Ranker.open(trained(tmp_path / "plain"), TRAIN.vectors)
    made = trained(tmp_path / "platt", calibrate="platt")
    ranker = Ranker.open(made, TRAIN.vectors)
    label = VALID.frame.candidates["label"].to_numpy()
    expected = calibrated("platt", plain.score(VALID.frame), label)
    assert made.id != plain.artifact.id and ranker.calibration == expected
    found = ranker.score(TEST.frame)
    np.testing.assert_allclose(found, expected(plain.score(TEST.frame)), atol=1e-6)
    np.testing.assert_array_equal(ranker.with_vectors(TRAIN.vectors).score(TEST.frame), found)
    slope = (expected.calibrated[1] - expected.calibrated[0]) / 2
    for name, part in explain(ranker, TEST.frame).items():
        np.testing.assert_allclose(part, slope * explain(plain, TEST.frame)[name], atol=1e-5)
    truth = TEST.frame.candidates["label"].to_numpy()
    assert log_loss(truth, expit(found)) < log_loss(truth, expit(plain.score(TEST.frame)))


def test_a_map_that_is_none_is_refused_with_the_command_that_makes_another(tmp_path, one_thread):
    made = trained(tmp_path / "r", calibrate="temperature")
    path = made.file("calibration.json")
    content = json.loads(path.read_text())
    for changed in (
        {"logit": [1.0, 1.0]},
        {"calibrated": [1.0]},
        {"method": "beta"},
        {"more": 1},
        {"logit": None},
    ):
        path.write_text(json.dumps(content | changed))
        with pytest.raises(
            ArtifactError, match=r"calibration.json: expected an increasing map.* Run 'moon ranker'"
        ):
            Ranker.open(made, TRAIN.vectors)
    with pytest.raises(ArtifactError):
        open_artifact(made.path, "ranker")  # the manifest notices first


def test_training_refuses_a_calibration_that_cannot_be_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "fit", lambda *given, **how: pytest.fail("trained"))
    with pytest.raises(DataError, match="unknown calibration 'beta'"):
        trained(tmp_path / "r", calibrate="beta")
    with pytest.raises(DataError, match="logged impressions to calibrate with"):
        trained(tmp_path / "r", calibrate="platt", loss="listwise")
    with pytest.raises(DataError, match="found 0 clicks of 0 impressions"):
        shown, none = Requests(TRAIN.frame), Requests(Requests(VALID.frame).take(0, 0))
        train_ctr(shown, none, TRAIN.vectors, NANO, tmp_path / "r", {}, Training(calibrate="platt"))


def test_the_command_hands_the_method_on(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_do", lambda verb, run, **options: seen.append(options["calibrate"]))
    assert CliRunner().invoke(cli.app, ["ranker", "--calibrate", "isotonic"]).exit_code == 0
    assert seen == ["isotonic"]
    assert CliRunner().invoke(cli.app, ["ranker", "--compare", "1", "--calibrate", "platt"]).exit_code == 2
