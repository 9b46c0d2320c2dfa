"""One code path for our own small model and for published Qwen-VL checkpoints."""

import json
import shutil

import numpy as np
import pytest
import torch
from encoder_world import png
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from encoder.backbone import (
    BackboneError,
    Vision,
    build_backbone,
    load_backbone,
    small_config,
    token_positions,
)
from encoder.images import decode_image
from encoder.model import EncoderModel, Sample
from encoder.tokenizer import special_ids, tokenize, train_tokenizer

TOKENIZER = train_tokenizer(["red disc", "blue square"] * 20, vocabulary=280)
SPECIAL = special_ids(TOKENIZER)
IDS = {
    "image_token_id": SPECIAL["image"],
    "video_token_id": SPECIAL["image"],
    "vision_start_token_id": SPECIAL["vision_start"],
    "vision_end_token_id": SPECIAL["vision_end"],
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def checkpoint(family, folder):
    """A tiny checkpoint folder as that family's ``save_pretrained`` leaves it: patch 14 or 8, two frames."""
    text = {
        "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    vision = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    torch.manual_seed(1)
    if family == "qwen3_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 48, "patch_size": 8, "out_hidden_size": 32,
                   "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}  # fmt: skip
        config = Qwen3VLConfig(text_config={**text, "head_dim": 16}, vision_config=vision, **IDS)
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 48, "patch_size": 14, "out_hidden_size": 32,
                   "window_size": 56, "fullatt_block_indexes": [1]}  # fmt: skip
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS)
    else:
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, **IDS)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=vision["patch_size"]).save_pretrained(folder)
    return model


FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")


def samples(px, texts=("red disc", "blue square in blue", "red")):
    pictures = [decode_image(png(c, s), px) for c, s in (("red", "disc"), ("blue", "square"))]
    tokens = tokenize(TOKENIZER, list(texts), 32)
    return [
        Sample(tokens[0], pictures[0]),
        Sample(tokens[1], pictures[1]),
        Sample(tokens[2], None),
        Sample([], pictures[1]),
    ]


@pytest.mark.parametrize(("patch", "temporal"), [(8, 1), (14, 2)])
def test_patches_equal_those_of_the_published_image_processor(patch, temporal):
    px = patch * 6
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(3, px, px, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(patch_size=patch, temporal_patch_size=temporal, do_resize=False)
    wanted = processor([Image.fromarray(p) for p in pixels], return_tensors="np")
    vision = Vision(px, patch, temporal, 2, tuple(processor.image_mean), tuple(processor.image_std))
    np.testing.assert_allclose(
        vision.patchify(torch.from_numpy(pixels)).numpy(), wanted["pixel_values"], atol=1e-5
    )
    assert wanted["image_grid_thw"].tolist() == [[1, vision.grid, vision.grid]] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_the_published_models_own_forward_pass(family, tmp_path):
    """Our mask, positions and picture attention against what the model computes by itself, causally."""
    reference = checkpoint(family, tmp_path).eval()
    backbone = load_backbone(tmp_path, px=50).eval()
    assert backbone.vision.px % (backbone.vision.patch * 2) == 0 and backbone.vision.px >= 50
    model = EncoderModel(backbone, 16, pad=0)
    for sample in samples(backbone.vision.px):
        ids, mask, pixels = model.collate([sample])
        inputs = {}
        if pixels is not None:
            grid = torch.tensor([[1, backbone.vision.grid, backbone.vision.grid]])
            inputs = {"pixel_values": backbone.vision.patchify(pixels), "image_grid_thw": grid,
                      "mm_token_type_ids": (ids == SPECIAL["image"]).int()}  # fmt: skip
        with torch.no_grad():
            wanted = reference.base_model(
                input_ids=ids, attention_mask=mask.long(), use_cache=False, **inputs
            )
            found = backbone(ids, mask, pixels, bidirectional=False)
        reference.base_model.rope_deltas = None
        torch.testing.assert_close(found, wanted.last_hidden_state, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_future_is_seen_only_when_bidirectional(family, tmp_path):
    checkpoint(family, tmp_path)
    backbone = load_backbone(tmp_path, px=28).eval()
    model = EncoderModel(backbone, 16, pad=0)
    ids, mask, pixels = model.collate(samples(backbone.vision.px)[:2])
    changed = ids.clone()
    changed[:, -1] = 20
    last = mask.shape[1] - 1
    with torch.no_grad():
        for bidirectional in (False, True):
            before, after = (backbone(x, mask, pixels, bidirectional)[1, : last - 1] for x in (ids, changed))
            assert mask[1].all() and torch.equal(before, after) != bidirectional


def test_positions_go_on_after_a_picture():
    positions = token_positions(8, 4)  # start, 2 x 2 picture, end, two words
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 3, 4, 5],
        [0, 1, 1, 2, 2, 3, 4, 5],
        [0, 1, 2, 1, 2, 3, 4, 5],
    ]
    assert token_positions(3, 0).tolist() == [[0, 1, 2]] * 3


def small_model(width=16):
    backbone = build_backbone(small_config(32, 2, 32, len(TOKENIZER), SPECIAL), 32, seed=0)
    return EncoderModel(backbone, width, SPECIAL["pad"]).eval()


def test_a_vector_does_not_depend_on_its_batch():
    model = small_model()
    rng = np.random.default_rng(0)
    mixed = [*samples(32), *(Sample(rng.integers(10, 200, size=n).tolist(), None) for n in (1, 3, 9, 30))]
    with torch.no_grad():
        together = model(mixed)
        for limit in (1, 3):
            torch.testing.assert_close(model(mixed, limit=limit), together, atol=1e-5, rtol=0)
        order = rng.permutation(len(mixed))
        torch.testing.assert_close(model([mixed[i] for i in order]), together[order], atol=1e-5, rtol=0)


def test_padding_is_not_pooled():
    model = small_model()
    sample = samples(32)[0]
    ids, mask, pixels = model.collate([sample])
    with torch.no_grad():
        hidden = model.backbone(ids, mask, pixels, bidirectional=True)
        wanted = model.head(hidden[0, : mask.sum()].mean(0))
        longer = model.collate([sample, Sample([30] * 40, None)])
        padded = model.backbone(*longer, bidirectional=True)[0]
    torch.testing.assert_close(model([sample])[0], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[: mask.sum()], hidden[0], atol=1e-5, rtol=0)


def test_a_missing_picture_takes_no_tokens():
    model = small_model()
    ids, mask, pixels = model.collate([Sample([30, 31], None)])
    assert ids.tolist() == [[30, 31]] and mask.all() and pixels is None


def test_equal_seeds_give_equal_weights_and_leave_the_callers_chance_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = small_model(), small_model()
    state = one.backbone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in two.backbone.state_dict().items())
    torch.manual_seed(5)
    build_backbone(small_config(32, 1, 32, len(TOKENIZER), SPECIAL), 32, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_saved_loads_to_the_same_states(tmp_path):
    model = small_model()
    model.backbone.save(tmp_path)
    again = load_backbone(tmp_path, 32)
    assert again.vision == model.backbone.vision
    batch = model.collate(samples(32))
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(*batch, bidirectional=True),
            model.backbone(*batch, bidirectional=True),
            atol=0,
            rtol=0,
        )


def test_a_folder_that_is_no_such_checkpoint_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"found no config\.json"):
        load_backbone(tmp_path, 32)
    good = tmp_path / "good"
    checkpoint("qwen3_vl", good)
    (good / "preprocessor_config.json").rename(tmp_path / "kept.json")
    with pytest.raises(BackboneError, match=r"found no preprocessor_config\.json"):
        load_backbone(good, 32)
    shutil.copy(tmp_path / "kept.json", good / "preprocessor_config.json")
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(BackboneError, match="found 'bert'"):
        load_backbone(good, 32)


def test_missing_and_misshapen_tensors_are_refused(tmp_path):
    checkpoint("qwen3_vl", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if "layers.1.mlp" in name)
    save_file({k: v for k, v in tensors.items() if k != lost}, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 tensors missing.*layers\.1\.mlp"):
        load_backbone(tmp_path, 32)
    save_file({**tensors, lost: tensors[lost][:-1].contiguous()}, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError):
        load_backbone(tmp_path, 32)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError):
        load_backbone(tmp_path, 32)
