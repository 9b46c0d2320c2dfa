"""The speed benchmark of the encoder: its baseline is the same model, its lines say what they should."""

import json

import numpy as np
import pytest
import torch
from bench_world import DIAL

from encoder.backbone.packing import Sample
from evaluation.bench.encoder import Contest, contents
from evaluation.bench.lines import Line, line, to_json, to_text


@pytest.fixture(scope="module")
def contest():
    torch.set_num_threads(1)
    return Contest(contents(12), DIAL)


def test_the_plain_loop_is_the_same_model(contest):
    """Its vectors are ours when we read causally and from its pixels, padding and all."""
    pixels = contest.plain.decode([content.image for content in contest.shown])
    words = [content.words for content in contest.shown]
    assert len({len(tokens) for tokens, _ in contest.tokens}) > 1
    with torch.no_grad():
        for pictured, texts in ((pixels, words), (pixels, None), (None, words)):
            found = contest.plain(pictured, texts)
            cut = contest.plain.tokenizer(words)["input_ids"]
            samples = [
                Sample(
                    cut[row][: DIAL.text_tokens] if texts else [],
                    (pixels[row],) if pictured is not None else (),
                )
                for row in range(12)
            ]
            packed = contest.ours.pack(samples, causal=True)
            wanted = contest.ours.encoded(packed, contest.ours.backbone(packed)).vector_BD
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_both_sides_train_and_embed_all(contest):
    before = [contest.ours.head.weight.clone(), contest.plain.head.weight.clone()]
    contest.train_ours()
    contest.train_plain()
    after = [contest.ours.head.weight, contest.plain.head.weight]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for vectors in (contest.embed_ours(), contest.embed_plain()):
        assert vectors.shape == (12, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_lines_name_ratios_shares_and_goals(measured):
    lines = measured("bench_encoder").lines
    by = {one.name: one for one in lines}
    assert len(by) == len(lines)
    for what, goal in (("training", 2.0), ("embedding", 3.0)):
        ours, plain, ratio = (
            by[f"{what} 32 px: {name}"]
            for name in ("items per CPU-second", "items per CPU-second, plain loop", "times the plain loop")
        )
        assert ratio.value == pytest.approx(ours.value / plain.value)
        assert (ratio.goal, ratio.met, ratio.n) == (goal, ratio.value >= goal, 1)
    shares = [one.value for one in lines if "fraction of" in one.name and "matmul" not in one.name]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1)
    reached = [one.value for one in lines if "matmul rate" in one.name]
    assert len(reached) == 2 and all(0 < one < 1 for one in reached)


def test_a_line_is_the_median_and_the_table_says_whether_the_goal_is_met():
    lines = [line("fast", [1.0, 9.0, 3.0], goal=2.0), line("slow", [1.0], goal=2.0), line("odd", [5.0])]
    assert lines[0] == Line("fast", 3.0, 2.0, True, 3) and lines[1].met is False and lines[2].met is None
    assert [tuple(row) for row in json.loads(to_json(lines))] == [("name", "value", "goal", "met", "n")] * 3
    rows = to_text(lines).splitlines()
    assert rows[1].split() == ["fast", "3", "2", "yes", "3"] and rows[2].split()[3] == "no"
    assert rows[3].split() == ["odd", "5", "1"]
