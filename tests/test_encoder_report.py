"""Attention maps are the model's own weights, and the page of the encoder comparison says what was measured."""

import io
import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from encoder_world import TINY, png, shop
from PIL import Image
from scipy import stats
from sklearn.manifold import TSNE
from test_report import EVIL, Tags
from torch.nn.functional import scaled_dot_product_attention

from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.backbone.packing import Sample
from encoder.content import ATTRIBUTE, CATEGORY, TITLE, Content
from encoder.encode import Encoder
from encoder.recipes import dual, moon
from encoder.train import train_encoder
from evaluation.encoder_tasks import Labels
from evaluation.measurements import write_measurements
from evaluation.metrics import Measurement
from evaluation.report import Tile
from evaluation.science.encoders.curves import negative_curves, training_curves, width_curves
from evaluation.science.encoders.embedding_map import affinities, embedding_map, squared_distances, tsne
from evaluation.science.encoders.heat import Witness, content_heat, plain_attention, read_heat
from evaluation.science.encoders.held_out import hold_out
from evaluation.science.encoders.pictures import (
    Heated,
    HeatSide,
    Pictures,
    Question,
    find,
    heat_picture,
    untrained,
)
from evaluation.science.encoders.report import (
    Effort,
    EncoderPage,
    draw_page,
    read_rows,
    render_encoder_report,
)
from evaluation.science.encoders.significance import Difference, Judged, difference, judge
from evaluation.science.encoders.table import Cell

SPECIAL = {"pad": 0, "image": 1, "vision_start": 2, "vision_end": 3}


def model_of(parts=None, px=16, layers=2):
    config = small_config(64, layers, px, 40, SPECIAL)
    return assemble(build_backbone(config, px, seed=0), parts or Parts(), 32, seed=0).eval()


def picture(seed=0, px=16):
    return np.random.default_rng(seed).integers(0, 256, (px, px, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", ["all", "bool", "float", "causal", "shared heads"])
def test_plain_attention_is_the_kernel_and_its_weights_are_shares(case):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = torch.rand(5, 5) > 0.4
    mask.fill_diagonal_(True)
    how = {
        "all": {},
        "bool": {"attn_mask": mask, "scale": 0.7},
        "float": {"attn_mask": torch.randn(5, 5)},
        "causal": {"is_causal": True},
        "shared heads": {"enable_gqa": True},
    }[case]
    if case == "shared heads":
        key, value = key[:, :2], value[:, :2]
    out, weights = plain_attention(query, key, value, **how)
    torch.testing.assert_close(out, scaled_dot_product_attention(query, key, value, **how))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    if case == "bool":
        assert (weights[:, :, ~mask] == 0).all()


@pytest.mark.parametrize(
    "parts", [Parts(), Parts(region=True, experts="guided"), Parts(fire=True, fusion=True)]
)
def test_a_witness_changes_no_vector_and_sees_every_layer(parts):
    model = model_of(parts)
    pictures = (picture(0), picture(1)) if parts.region else (picture(0),)
    sample = Sample([5, 6, 7], pictures, kinds=[0, 1, 2])
    expected = model.vectors([sample])
    with Witness() as seen, torch.no_grad():
        found = model([sample]).vector_BD
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(seen.weights) == 4, "two vision and two language layers"
    for weights in seen.weights:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_shares_of_a_sequence_add_up_and_stand_for_their_tokens():
    model = model_of(Parts(region=True))
    heat = read_heat(model, Sample([5, 6, 7], (picture(0), picture(1))))
    assert heat.patches.shape == (4, 4) and heat.tokens.shape == (3,)
    assert heat.patches.sum() + heat.tokens.sum() + heat.region + heat.markers == pytest.approx(1)
    assert min(heat.patches.min(), heat.tokens.min(), heat.region, heat.markers) > 0
    words = read_heat(model, Sample([5, 6, 7]))
    assert words.patches.shape == (0, 0) and words.tokens.sum() == pytest.approx(1)
    alone = read_heat(model, Sample([], (picture(0),)))
    assert alone.patches.sum() + alone.markers == pytest.approx(1) and len(alone.tokens) == 0


def test_planted_attention_is_found_where_it_was_planted():
    """Queries that look for one key: every head of the last layer sends all attention to text token 6."""
    model = model_of()
    last = model.backbone.layers[-1].self_attn
    sample = Sample([5, 6, 7], (picture(0),))
    heads, width = 2, 32

    def planted(hidden_states, position_embeddings, **kwargs):
        length = hidden_states.shape[1]
        key = torch.zeros(1, heads, length, width)
        key[:, :, 4 + 2 + 1, 0] = 100.0  # four image tokens, two markers, then text token 6
        query = torch.zeros(1, heads, length, width)
        query[..., 0] = 1.0
        out = scaled_dot_product_attention(query, key, key)
        return out.transpose(1, 2).flatten(2), None

    last.forward = planted
    heat = read_heat(model, sample)
    np.testing.assert_allclose(heat.tokens, [0, 1, 0], atol=1e-3)
    assert heat.patches.sum() < 1e-3


def test_a_patch_that_the_vision_side_looks_at_is_found_in_its_place():
    """Both vision layers look at the one white patch: it gets 1 - 1/4 of the picture, and a fraction of the rest."""
    model = model_of()
    row, column = 2, 1
    shown = np.zeros((16, 16, 3), dtype=np.uint8)
    shown[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
    patches = model.backbone.vision.patchify(torch.from_numpy(shown[None]))
    white = int(patches.sum(1).argmax())

    def planted(hidden_states, **kwargs):
        key = torch.zeros(1, 1, 16, 8)
        key[:, :, white, 0] = 200.0
        query = torch.zeros(1, 1, 16, 8)
        query[..., 0] = 1.0
        scaled_dot_product_attention(query, key, key)
        return torch.zeros_like(hidden_states)

    for block in model.backbone.model.base_model.visual.blocks:
        block.attn.forward = planted
    heat = read_heat(model, Sample([], (shown,)))
    tokens = heat.patches.sum()
    with Witness() as seen, torch.no_grad():
        model([Sample([], (shown,))])
    token_V = seen.weights[-1].double().mean((0, 1, 2)).numpy()[1:5]
    expected = np.zeros((4, 4))
    for r in range(4):
        for c in range(4):
            expected[r, c] = token_V[r // 2 * 2 + c // 2] / 4 / 4  # what stays after two halvings
    expected[row, column] += tokens * 3 / 4
    np.testing.assert_allclose(heat.patches, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A comparison's folder: two encoders trained for a few steps on the tiny shop, and a made-up table."""
    folder = tmp_path_factory.mktemp("encoders")
    dataset, _ = shop(folder / "shop")
    bench = hold_out(dataset, folder / "split", items=14)
    for recipe in (moon(), dual()):
        out = folder / "encoders" / f"{recipe.name}.0"
        train_encoder(dataset, bench.split, TINY, out, recipe=recipe, budget=0.02)
    (folder / "table.json").write_text(json.dumps({n: cells(v) for n, v in MADE_UP.items()}))
    return folder, dataset


COLUMNS = {
    "encoder/a/recall@10": "a→b @10",
    "encoder/c/accuracy": "c",
    "encoder/anisotropy": "mean cosine",
    "encoder/effective_rank": "effective rank",
}
MADE_UP = {"random": 0.1, "dual": 0.3, "moon": 0.4, "moon without region": 0.35}


def cells(value, seeds=3):
    names = [*COLUMNS, "encoder/width_16/a/recall@10"]
    return {name: asdict(Cell(value + 0.01 * i, 0.002, seeds, 100)) for i, name in enumerate(names)}


def test_heat_of_a_content_gathers_pieces_into_words(trained):
    folder, _ = trained
    artifact = _encoder(folder, "moon")
    content = Content(png("red", "disc"), "reddish disc", "shapes disc", "red")
    heat = content_heat(Encoder.open(artifact), content)
    assert [(word, kind) for word, kind, _ in heat.words] == [
        ("reddish", TITLE), ("disc.", TITLE), ("shapes", CATEGORY), ("disc.", CATEGORY), ("red", ATTRIBUTE),
    ]  # fmt: skip
    assert sum(share for _, _, share in heat.words) == pytest.approx(heat.tokens.sum())
    assert len(heat.tokens) > len(heat.words), "reddish is more than one piece"
    assert heat.region > 0, "MOON reads the core region as well"
    bare = content_heat(Encoder.open(artifact), Content(None, "disc"))
    assert bare.patches.size == 0 and bare.words[0][2] == pytest.approx(1)


def _encoder(folder, name):
    from run.artifacts import open_artifact

    return open_artifact(folder / "encoders" / f"{name}.0", "encoder")


def test_before_training_is_the_model_training_starts_from(trained, monkeypatch):
    folder, dataset = trained
    artifact, begun = _encoder(folder, "moon"), {}

    def stop(learner, *args):
        begun.update({name: value.clone() for name, value in learner.model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr("encoder.train._train", stop)
    with pytest.raises(KeyboardInterrupt):
        split = hold_out(dataset, folder / "again", items=14).split
        train_encoder(dataset, split, TINY, folder / "stopped", recipe=moon(), budget=0.02)
    fresh = untrained(artifact).model.state_dict()
    assert fresh.keys() == begun.keys()
    for name, value in begun.items():
        assert torch.equal(fresh[name], value), name
    after = Encoder.open(artifact).model.state_dict()
    assert any(not torch.equal(fresh[name], value) for name, value in after.items())


def test_a_hot_patch_is_tinted_where_it_is_and_a_cold_one_stays_grey():
    strength = np.zeros((4, 4))
    strength[1, 3] = 1
    pixels = np.asarray(Image.open(io.BytesIO(heat_picture(png("blue", "bar"), strength)))).astype(int)
    side = len(pixels) // 4
    hot, cold = pixels[side + side // 2, -side // 2], pixels[3 * side, side // 2]
    assert hot[0] - hot[2] > 80
    assert np.ptp(cold) < 12


def test_affinities_have_the_perplexity_asked_for():
    vectors = np.random.default_rng(0).standard_normal((40, 5))
    near = affinities(vectors, 7.0)
    for i, row in enumerate(near):
        entropy = -sum(p * np.log2(p) for p in row if p > 0)
        assert 2**entropy == pytest.approx(7, rel=1e-6)
        assert row[i] == 0 and row.sum() == pytest.approx(1)
        far = [np.sum((vectors[i] - vectors[j]) ** 2) for j in range(40)]
        others = [j for j in np.argsort(far) if j != i]
        assert (np.diff(row[others]) <= 1e-12).all(), "nearer is likelier"


def test_a_map_keeps_planted_groups_together_and_is_the_same_every_time():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 25)
    vectors = rng.standard_normal((4, 16))[group] * 4 + rng.standard_normal((100, 16))
    place = tsne(vectors, perplexity=10)
    assert place.min() == 0 and place.max() == 1
    distance = squared_distances(place)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argsort(axis=1)[:, :10]] == group[:, None]).mean() > 0.99
    np.testing.assert_array_equal(place, tsne(vectors, perplexity=10))


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_map_is_as_good_as_scikit_learns(seed):
    """KL(P || Q), from the same start; ours fills 0..1, so its scale is looked for. Minima are local: 10 %."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((8, 12))[rng.integers(0, 8, 80)] * 2 + rng.standard_normal((80, 12))
    near = affinities(vectors, 10)
    near = (near + near.T) / 160

    def divergence(place):
        close = 1 / (1 + squared_distances(place))
        np.fill_diagonal(close, 0)
        far = close / close.sum()
        held = near > 0
        return np.sum(near[held] * np.log(near[held] / far[held]))

    theirs = divergence(TSNE(perplexity=10, method="exact", init="pca").fit_transform(vectors))
    place = tsne(vectors, 10)
    ours = min(divergence(place * scale) for scale in np.geomspace(2, 200, 60))
    assert ours < 1.1 * theirs


def test_agreement_of_a_map_is_counted_by_hand():
    rng = np.random.default_rng(0)
    label = np.array([0] * 12 + [1] * 13 + [-1] * 5)
    direction = rng.standard_normal((3, 8))
    vectors = direction[label] + 0.01 * rng.standard_normal((30, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = embedding_map("x", vectors.astype(np.float32), Labels("category_1", ["a", "b"], label, label))
    assert found.categories == ["b", "a"] and found.others
    assert [code for _, _, code in found.points] == [1] * 12 + [0] * 13 + [2] * 5
    pairs = [(i, j) for i in range(25) for j in range(25) if i != j]
    chance = np.mean([label[i] == label[j] for i, j in pairs])
    assert found.agreement == (1.0, pytest.approx(chance))


def test_found_are_the_nearest_with_their_cosines_and_the_relevant_are_hits():
    candidates = [Content(None, name) for name in "abc"]
    asked = [Question(Tile("q"), Content(None, "q"), frozenset({0}))]
    vectors = np.eye(3, dtype=np.float32)
    (tiles,) = find(np.array([[0.6, 0.0, 0.8]], dtype=np.float32), vectors, candidates, asked)
    assert [(t.title, t.caption, t.hit) for t in tiles] == [
        ("c", "0.80", False), ("a", "0.60", True), ("b", "0.00", False),
    ]  # fmt: skip


def test_a_difference_has_the_margin_of_welch():
    values = [0.48, 0.52, 0.5], [0.46, 0.465, 0.455, 0.46]
    first, second = (Cell(float(np.mean(v)), float(np.std(v, ddof=1)), len(v), 100) for v in values)
    found = difference(first, second)
    test = stats.ttest_ind(*values, equal_var=False)
    assert found.value == pytest.approx(0.04)
    assert found.margin == pytest.approx(test.confidence_interval(0.95).high - 0.04)
    assert found.real == (test.pvalue < 0.05)
    assert difference(Cell(0.5, 0.0, 3, 9), Cell(0.4, 0.0, 3, 9)) == Difference(pytest.approx(0.1), 0.0)
    alone = difference(Cell(0.9, None, 1, 9), second)
    assert alone.margin is None and not alone.real


@pytest.mark.parametrize(
    ("values", "word", "sentence"),
    [
        ([0.1, 0.2, 0.01], "better", "Better in 2 of 3 measures, most in b (+0.200); worse in none."),
        ([-0.1, 0.01, 0.01], "worse", "Better in none; worse in 1 of 3 measures, a (-0.100)."),
        (
            [-0.1, 0.2, 0],
            "mixed",
            "Better in 1 of 3 measures, b (+0.200); worse in 1 of 3 measures, a (-0.100).",
        ),
        ([0.01, -0.01, 0], "no difference", "None of 3 measures moves by more than chance."),
    ],
)
def test_a_verdict_says_what_the_numbers_say(values, word, sentence):
    judged = Judged("x", dict(zip("abc", (Difference(v, 0.05) for v in values), strict=True)))
    assert (judged.word, judged.sentence) == (word, sentence)


def test_one_seed_is_not_judged():
    judged = Judged("x", {"a": Difference(0.5, None)})
    assert judged.word == "not judged" and "single seed" in judged.sentence
    assert judge("x", {"m": Cell(0.5, None, 1, 9)}, {}, {"m": "a"}).differences == {}


def test_curves_by_width_end_at_the_full_width(trained):
    folder, _ = trained
    rows = read_rows(folder / "table.json")
    artifact = _encoder(folder, "moon")
    (plot,) = width_curves(rows, {"encoder/a/recall@10": "a"}, {"moon": artifact})
    (curve,) = plot.curves
    assert (curve.name, curve.x) == ("moon", [16, 32]) and curve.y == pytest.approx([0.44, 0.4])


def test_a_sweep_of_negatives_is_averaged_over_seeds(tmp_path):
    name = "encoder/a/recall@10"
    for size, seed, value in ((0, 0, 0.1), (0, 1, 0.3), (512, 0, 0.5), (512, 1, 0.6)):
        write_measurements(
            tmp_path / f"sweep_queue_{size}.{seed}.json", [Measurement(name, value, 9, "pool")]
        )
    (plot,) = negative_curves(tmp_path, {name: "a", "encoder/not/measured": "b"})
    (curve,) = plot.curves
    assert (curve.name, curve.x) == ("a", [0, 512]) and curve.y == pytest.approx([0.2, 0.55])
    (tmp_path / "sweep_queue_512.0.json").unlink()
    (tmp_path / "sweep_queue_512.1.json").unlink()
    assert negative_curves(tmp_path, {name: "a"}) == [], "one size is no curve"


def test_stages_of_training_follow_each_other(trained):
    class Two:
        config = {
            "losses": {
                "0.first": {"step": [1.0, 2.0], "loss": [5.0, 4.0]},
                "1.second": {"step": [1.0, 3.0], "loss": [9.0, 8.0]},
            }
        }

    (plot,) = training_curves({"x": Two()})
    assert [(curve.name, list(curve.x)) for curve in plot.curves] == [("first", [1, 2]), ("second", [3, 5])]
    (real,) = training_curves({"moon": _encoder(trained[0], "moon")})
    assert np.isfinite(real.curves[0].y).all()


def test_the_page_of_a_comparison_says_what_was_measured(trained):
    folder, dataset = trained
    for seed in (0, 1):
        for arm, value in (("supervised", 0.5), ("reinforced", 0.6)):
            name = "reasoning/image/greedy/attributes"
            measured = [Measurement(name, value + 0.001 * seed, 9, "held out")]
            write_measurements(folder / "reasoning" / f"{arm}.{seed}.json", measured)
    out = render_encoder_report(folder, dataset, COLUMNS, shipped="moon")
    page = out.read_text()
    assert out == folder / "report.html" and len(page) < 3_000_000
    assert not re.search(r"https?://|//cdn|@import|url\((?!#)", page)
    tags = Tags()
    tags.feed(page)
    assert not [tag for tag, _ in tags.found if tag in ("script", "link", "iframe", "object", "base")]
    assert all(a["src"].startswith("data:image/jpeg;base64,") for _, a in tags.found if "src" in a)
    links = [attrs["href"][1:] for tag, attrs in tags.found if tag == "a"]
    ids = {attrs.get("id") for _, attrs in tags.found}
    assert links == [
        "results", "against", "ablations", "efforts", "reasoning", "shape", "plots", "heat", "maps", "sheets",
        "limits",
    ]  # fmt: skip
    assert ids >= set(links)
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))
    for said in (
        "2 recipes of size nano, trained on 34 items of shapes",
        "with 1 seed, and tested on 14 held-out items",
        "moon: region +0.050",  # the recipe minus the recipe without
        "moon +0.100",  # minus dual
        "reinforced +0.100",  # minus supervised
        "Attention of moon, before and after training",
        "core region",
    ):
        assert said in text, said
    assert "<b>0.400</b>" in page and "<b>0.300</b>" not in page
    assert page.count('class="tile hit"') > 0
    assert 6 * 2 == len(re.findall(r'<div class="label">(?:moon|dual)</div>', page)), "a row an encoder"


def test_a_comparison_without_encoders_is_a_table(trained, tmp_path):
    folder, dataset = trained
    hold_out(dataset, tmp_path / "split", items=14)
    (tmp_path / "table.json").write_text(json.dumps({"random": cells(0.1, seeds=1)}))
    page = render_encoder_report(tmp_path, dataset, COLUMNS).read_text()
    assert "Model-free baselines, tested on 14 held-out items" in page
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["results", "shape", "limits"]


@pytest.mark.parametrize("content", ["[]", "{", '{"a": {"m": {"mean": 1}}}', '{"a": 1}'])
def test_a_table_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(ValueError, match="table.json: expected a comparison's table.*moon encoder compare"):
        read_rows(tmp_path / "table.json")
    with pytest.raises(ValueError, match="moon encoder compare"):
        read_rows(tmp_path / "absent.json")


def test_text_of_the_data_is_escaped_everywhere(tmp_path):
    tile = Tile(EVIL, None, EVIL)
    side = HeatSide(EVIL, None, 0.5, [(EVIL, 0.5, 1.0)])
    vectors = np.eye(12, dtype=np.float32)
    label = np.zeros(12, dtype=np.int64)
    judged = Judged(EVIL, {EVIL: Difference(1.0, 0.1)})
    page = EncoderPage(
        title=EVIL, summary=EVIL, columns={"m": EVIL}, rows={EVIL: {"m": Cell(0.5, 0.1, 3, 9)}}, baseline=EVIL,
        against=[judged], ablations=[judged], efforts={EVIL: Effort(1.0, 2.0, 3, 4)}, arms=[judged],
        pictures=Pictures(
            heat_of=EVIL, heat=[Heated(EVIL, [side])], fractions={EVIL: {"before": 0.5, "after": 0.5}}, averaged=1,
            maps=[embedding_map(EVIL, vectors, Labels("category_1", [EVIL], label, label))],
            sheets=[(tile, {EVIL: [tile]})],
        ),
        reasoning={EVIL: {}}, artifacts={EVIL: EVIL},
    )  # fmt: skip
    text = draw_page(tmp_path / "page.html", page).read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") > 15
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
