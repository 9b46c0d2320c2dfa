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

from encoder.backbone.attention import prefix_mask
from encoder.backbone.backbone import BackboneError, build_backbone, load_backbone, small_config
from encoder.backbone.packing import Sample, pack, token_positions
from encoder.backbone.vision import Vision
from encoder.model import EncoderModel
from encoder.pictures.decode import decode_image
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
        Sample(tokens[0], (pictures[0],)),
        Sample(tokens[1], (pictures[1],)),
        Sample(tokens[2]),
        Sample([], (pictures[1],)),
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
    """Our layer loop, packing, positions and attention against what the model computes by itself, causally."""
    reference = checkpoint(family, tmp_path).eval()
    backbone = load_backbone(tmp_path, px=50).eval()
    assert backbone.vision.px % (backbone.vision.patch * 2) == 0 and backbone.vision.px >= 50
    several = samples(backbone.vision.px)
    packed = pack(several, backbone.image_prefix, torch.device("cpu"), causal=True)
    with torch.no_grad():
        found = backbone(packed).hidden_TH
    for place, row in enumerate(packed.order_B.tolist()):
        mine = packed.sequence_T == place
        ids, inputs = packed.ids_T[mine][None], {}
        if several[row].pictures:
            pixels = torch.from_numpy(several[row].pictures[0])[None]
            grid = torch.tensor([[1, backbone.vision.grid, backbone.vision.grid]])
            inputs = {"pixel_values": backbone.vision.patchify(pixels), "image_grid_thw": grid,
                      "mm_token_type_ids": (ids == SPECIAL["image"]).int()}  # fmt: skip
        with torch.no_grad():
            wanted = reference.base_model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs
            )
        reference.base_model.rope_deltas = None
        torch.testing.assert_close(found[mine], wanted.last_hidden_state[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_future_is_seen_unless_it_is_a_chain_or_all_is_causal(family, tmp_path):
    checkpoint(family, tmp_path)
    backbone = load_backbone(tmp_path, px=28).eval()
    pixels = samples(backbone.vision.px)[0].pictures
    for text, chain, causal, sees in (
        ([30, 31], [], False, True), ([30, 31], [], True, False), ([30], [31], False, False),
    ):  # fmt: skip
        states = []
        for last in (31, 20):
            tokens, answer = (text, [last]) if chain else ([*text[:-1], last], [])
            sample = Sample(tokens, pixels, chain=answer)
            with torch.no_grad():
                states.append(backbone(pack([sample], backbone.image_prefix, torch.device("cpu"), causal)))
        before, after = (state.hidden_TH[:-1] for state in states)
        assert torch.equal(before, after) != sees


def test_the_prefix_mask_is_its_definition():
    for length, prefix in ((5, 3), (4, 0), (3, 1)):
        mask = prefix_mask(length, prefix, torch.device("cpu"))
        assert mask.tolist() == [[to < prefix or to <= at for to in range(length)] for at in range(length)]
    assert prefix_mask(4, 4, torch.device("cpu")) is None


def test_two_pictures_stand_one_after_the_other():
    """Start, 2 x 2 tokens and end of the first, of the second, then a word; M-RoPE goes on after each."""
    assert token_positions(13, 2, 4).tolist() == [
        [0, 1, 1, 1, 1, 3, 4, 5, 5, 5, 5, 7, 8],
        [0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 6, 7, 8],
        [0, 1, 2, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8],
    ]


def test_positions_go_on_after_a_picture():
    positions = token_positions(8, 1, 4)  # start, 2 x 2 picture, end, two words
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 3, 4, 5],
        [0, 1, 1, 2, 2, 3, 4, 5],
        [0, 1, 2, 1, 2, 3, 4, 5],
    ]
    assert token_positions(3, 0, 4).tolist() == [[0, 1, 2]] * 3


def small_model(width=16):
    backbone = build_backbone(small_config(32, 2, 32, len(TOKENIZER), SPECIAL), 32, seed=0)
    return EncoderModel(backbone, width).eval()


def test_a_vector_does_not_depend_on_its_batch(monkeypatch):
    model = small_model()
    rng = np.random.default_rng(0)
    mixed = [*samples(32), *(Sample(rng.integers(10, 200, size=n).tolist()) for n in (1, 3, 9, 30))]
    with torch.no_grad():
        together = model(mixed).vector_BD
        alone = torch.cat([model([sample]).vector_BD for sample in mixed])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        order = rng.permutation(len(mixed))
        torch.testing.assert_close(
            model([mixed[i] for i in order]).vector_BD, together[order], atol=1e-5, rtol=0
        )
    for limit in (1, 40):
        monkeypatch.setattr("encoder.model.TOKENS_AT_ONCE", {"cpu": limit})
        torch.testing.assert_close(model.vectors(mixed), together, atol=1e-5, rtol=0)


def test_the_mean_is_over_every_token_of_the_sample():
    model = small_model()
    sample = samples(32)[0]
    with torch.no_grad():
        packed = model.pack([sample])
        wanted = model.head(model.backbone(packed).hidden_TH.mean(0))
        torch.testing.assert_close(model([sample]).vector_BD[0], wanted, atol=1e-5, rtol=0)


def test_a_missing_picture_takes_no_tokens():
    packed = small_model().pack([Sample([30, 31])])
    assert packed.ids_T.tolist() == [30, 31] and packed.pixels_NSS3 is None


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
    packed = model.pack(samples(32))
    with torch.no_grad():
        found, wanted = (one(packed).hidden_TH for one in (again.eval(), model.backbone))
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


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
