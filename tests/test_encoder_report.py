"""Attention maps are the model's own weights, and the page of the encoder comparison says what was measured."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from encoder.assemble import Parts, assemble
from encoder.backbone import build_backbone, small_config
from encoder.packing import Sample
from encoder.parts.heat import Witness, plain_attention, read_heat

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
    """Both vision layers look at the one white patch: it gets 1 - 1/4 of the picture, and a share of the rest."""
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
