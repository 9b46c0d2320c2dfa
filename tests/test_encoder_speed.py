"""Every fast path of the encoder gives what its slow twin gives, forward and gradient."""

import copy

import numpy as np
import pytest
import torch
from test_encoder_backbone import FAMILIES, checkpoint
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from encoder.backbone.attention import TextAttention, VisionAttention
from encoder.backbone.backbone import build_backbone, load_backbone, small_config
from encoder.backbone.kernels import (
    PatchProjection,
    RMSNorm,
    SwiGLU,
    norm_and_rotate,
    plain_rms_norm,
    plain_rotate,
    plain_swiglu,
    rms_norm,
    rotate,
    swiglu,
)
from encoder.backbone.packing import Sample, pack
from encoder.examples.augment import COLOUR, SMALLEST_CROP, augment
from encoder.optim import Muon, Optimizers, orthogonalise


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def angles(tokens, width):
    half = torch.randn(tokens, width // 2)
    return torch.cat([half, half], dim=-1).cos(), torch.cat([half, half], dim=-1).sin()


def plain_norm_and_rotate(x, weight, cos, sin):
    return plain_rotate(plain_rms_norm(x, weight, 1e-6), cos, sin)


TWINS = {
    "rms_norm": (
        lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: plain_rms_norm(x, w, 1e-6), [(3, 5, 8), (8,)], False,
    ),
    "rotate": (rotate, plain_rotate, [(6, 2, 8)], True),
    "norm_and_rotate": (
        lambda x, w, c, s: norm_and_rotate(x, w, 1e-6, c, s), plain_norm_and_rotate, [(6, 2, 8), (8,)], True,
    ),
    "swiglu": (swiglu, plain_swiglu, [(7, 6), (7, 6)], False),
}  # fmt: skip


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", TWINS)
def test_a_kernel_equals_its_plain_twin_forward_and_gradient(name, strided):
    fast, plain, shapes, turns = TWINS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape) * 3 for shape in shapes]
    if strided:  # the same numbers, every other one in memory
        inputs = [torch.stack([x, x], dim=-1)[..., 0] for x in inputs]
    more = angles(6, 8) if turns else ()
    found = [x.requires_grad_() for x in inputs]
    wanted = [x.detach().clone().requires_grad_() for x in inputs]
    out, expected = fast(*found, *more), plain(*wanted, *more)
    assert out.grad_fn.name() != expected.grad_fn.name(), "the fast path was not taken"
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fast(*found, *more), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)  # nothing was changed in place
    grad = torch.randn_like(expected)
    out.backward(grad)
    expected.backward(grad)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_rms_norm_of_three_and_four_is_the_textbook_value():
    found = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(found, torch.tensor([[3 / 12.5**0.5, 8 / 12.5**0.5]]))


def test_half_precision_takes_the_plain_path_and_keeps_its_type():
    x = torch.randn(4, 2, 8, dtype=torch.bfloat16)
    weight = torch.ones(8, dtype=torch.bfloat16)
    cos, sin = angles(4, 8)
    assert rms_norm(x, weight, 1e-6).dtype is torch.bfloat16
    assert rotate(x, cos, sin).dtype is torch.bfloat16
    assert swiglu(x, x).dtype is torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quickened_model_keeps_its_names_numbers_and_gradients(family, tmp_path):
    """The published model's own causal forward pass and gradients; names decide whether a checkpoint loads."""
    reference = checkpoint(family, tmp_path)
    backbone = load_backbone(tmp_path, px=112)
    assert backbone.model.state_dict().keys() == reference.state_dict().keys()
    swapped = {type(part) for part in backbone.modules()}
    assert {RMSNorm, SwiGLU, PatchProjection, VisionAttention} <= swapped
    assert (TextAttention in swapped) == (family == "qwen3_vl")  # the older two have no norms of heads
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    packed = pack([Sample([30, 31, 32], (pixels,))], backbone.image_prefix, torch.device("cpu"), causal=True)
    found = backbone(packed).hidden_TH
    grid = torch.tensor([[1, backbone.vision.grid, backbone.vision.grid]])
    wanted = reference.base_model(
        input_ids=packed.ids_T[None],
        attention_mask=torch.ones_like(packed.ids_T)[None],
        use_cache=False,
        pixel_values=backbone.vision.patchify(packed.pixels_NSS3),
        image_grid_thw=grid,
        mm_token_type_ids=(packed.ids_T == backbone.config.image_token_id).int()[None],
    ).last_hidden_state[0]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    grad = torch.randn_like(wanted)
    found.backward(grad)
    wanted.backward(grad)
    theirs = dict(reference.named_parameters())
    for name, mine in backbone.model.named_parameters():
        if theirs[name].grad is not None:
            torch.testing.assert_close(mine.grad, theirs[name].grad, atol=1e-4, rtol=1e-3, msg=name)


def small():
    special = {"pad": 0, "image": 2, "vision_start": 3, "vision_end": 4}
    return build_backbone(small_config(64, 2, 32, 300, special), 32, seed=0)


def mixed(count=7):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [
        Sample(rng.integers(5, 300, size=1 + 3 * (row % 4)).tolist(), (picture[row],) if row % 2 else ())
        for row in range(count)
    ]


def test_training_is_reproducible_to_the_bit():
    gradients = []
    for _ in range(2):
        backbone = small()
        packed = pack(mixed(), backbone.image_prefix, torch.device("cpu"))
        backbone(packed).hidden_TH.square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_sequence_does_not_depend_on_its_neighbours():
    backbone, samples = small(), mixed()
    packed = pack(samples, backbone.image_prefix, torch.device("cpu"))
    together = backbone(packed).hidden_TH
    for place, row in enumerate(packed.order_B.tolist()):
        alone = backbone(pack([samples[row]], backbone.image_prefix, torch.device("cpu"))).hidden_TH
        torch.testing.assert_close(together[packed.sequence_T == place], alone, atol=1e-5, rtol=1e-5)


def test_a_saved_quickened_model_loads_into_the_published_class(tmp_path):
    backbone = small()
    backbone.save(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for name, weight in copy.deepcopy(backbone.model.state_dict()).items():
        assert torch.equal(model.state_dict()[name], weight), name


def plain_newton_schulz(matrix):
    """K. Jordan's iteration on one matrix."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


@pytest.mark.parametrize("shape", [(6, 6), (12, 4), (4, 12)])
def test_matrices_orthogonalised_together_are_those_orthogonalised_alone(shape):
    torch.manual_seed(0)
    matrices = torch.randn(5, *shape) * torch.logspace(-3, 3, 5)[:, None, None]
    for found, matrix in zip(orthogonalise(matrices), matrices, strict=True):
        torch.testing.assert_close(found, plain_newton_schulz(matrix), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        orthogonalise(matrices[0]), plain_newton_schulz(matrices[0]), atol=1e-5, rtol=1e-5
    )


def test_matrices_side_by_side_take_the_steps_of_separate_ones():
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 8), torch.randn(3, 8, 8)
    whole = torch.nn.Parameter(start.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in start.chunk(4, dim=1)]
    one, many = Muon([whole], side_by_side={whole: 4}), Muon(parts)
    for gradient in gradients:
        whole.grad = gradient.clone()
        for part, piece in zip(parts, gradient.chunk(4, dim=1), strict=True):
            part.grad = piece.clone()
        one.step()
        many.step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in parts], dim=1))


def test_patch_mergers_are_four_matrices_to_the_optimizer(monkeypatch):
    seen = []
    monkeypatch.setattr("encoder.optim.orthogonalise", lambda x: seen.append(tuple(x.shape)) or x)
    backbone = small()
    optimizers = Optimizers(backbone, steps=10)
    packed = pack(mixed(), backbone.image_prefix, torch.device("cpu"))
    optimizers.update(backbone(packed).hidden_TH.square().mean(), "test", 0)
    assert (8, 256, 64) in seen and not any(
        shape[1:] == (256, 256) for shape in seen
    )  # two mergers of width 64


def plain_augment(pixels, rng):
    """The same draws through an affine grid of every pixel."""
    count = len(pixels)
    scale = rng.uniform(SMALLEST_CROP, 1.0, size=(count, 1))
    shift = rng.uniform(-1, 1, size=(count, 2)) * (1 - scale)
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    gain = rng.uniform(1 - COLOUR, 1 + COLOUR, (count, 1)) * rng.uniform(1 - COLOUR, 1 + COLOUR, (count, 3))
    affine = np.zeros((count, 2, 3))
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = scale[:, 0] * mirror, scale[:, 0], shift
    picture = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    grid = F.affine_grid(torch.from_numpy(affine), list(picture.shape), align_corners=False)
    cropped = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
    return (cropped * torch.from_numpy(gain)[:, :, None, None]).clamp(0, 255).permute(0, 2, 3, 1).numpy()


def test_augmented_pictures_are_those_of_an_affine_grid():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), dtype=np.uint8)
    found = augment(pixels, np.random.default_rng(1))
    np.testing.assert_allclose(found, plain_augment(pixels, np.random.default_rng(1)), atol=0.01)
