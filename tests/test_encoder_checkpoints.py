"""Real checkpoints: more families than Qwen-VL, adapters that train alone and merge away, bfloat16, refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from encoder_world import COLOURS, SHAPES, TINY, png, shop
from safetensors.torch import load_file, save_file
from test_encoder_backbone import SPECIAL, TOKENIZER, checkpoint, samples
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, InternVLConfig, PreTrainedTokenizerFast, SmolVLMConfig

from encoder.assemble import Parts, assemble
from encoder.backbone import backbone as module
from encoder.backbone.backbone import BackboneError, load_backbone
from encoder.backbone.checkpoints import MARKERS
from encoder.backbone.packing import Sample, pack
from encoder.content import Content
from encoder.encode import Encoder
from encoder.optim import Optimizers
from encoder.parts.discriminants import COUNT
from encoder.parts.lora import add_lora, block_layers, merge, trainable_parameters
from encoder.pictures.decode import decode_image
from encoder.recipes import dual, ours
from encoder.tokenizer import SPECIALS, tokenize
from encoder.train import train_encoder
from evaluation.bench.gpu import gpu_run, recall
from run.artifacts import open_artifact

QWEN = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
WHOLE = {
    "internvl": ("<img>", "</img>"),
    "smolvlm": ("<fake_token_around_image>", "<global-img>"),
}  # family: its picture markers
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def whole_checkpoint(family, folder):
    """A tiny InternVL or SmolVLM folder with a tokenizer that knows the family's markers."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str()),
        pad_token=TOKENIZER.pad_token,
        eos_token=TOKENIZER.eos_token,
        additional_special_tokens=[*SPECIALS[2:], *WHOLE[family]],
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    torch.manual_seed(1)
    if family == "internvl":
        config = InternVLConfig(
            text_config={"model_type": "qwen2", **text},
            vision_config={**vision, "image_size": [56, 56], "patch_size": [14, 14]},
            image_token_id=SPECIAL["image"],
        )
    else:
        config = SmolVLMConfig(
            text_config={"model_type": "llama", **text},
            vision_config={**vision, "image_size": 56, "patch_size": 14},
            image_token_id=SPECIAL["image"],
            scale_factor=2,
        )
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def made(family, folder):
    return (checkpoint if family in QWEN else whole_checkpoint)(family, folder)


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("px", [56, 84])  # the picture side it was made for, and a larger one
def test_other_families_states_equal_their_own_forward_pass(family, px, tmp_path):
    reference = whole_checkpoint(family, tmp_path).eval()
    backbone = load_backbone(tmp_path, px=px - 3).eval()
    assert backbone.vision.px == px and backbone.vision.tokens == (px // 28) ** 2
    several = samples(px)
    packed = pack(several, backbone.image_prefix, CPU, causal=True, rows_and_columns=False)
    mean, std = (torch.tensor(values) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    with torch.no_grad():
        found = backbone(packed).hidden_TH
        for place, row in enumerate(packed.order_B.tolist()):
            mine = packed.sequence_T == place
            ids, inputs = packed.ids_T[mine][None], {}
            if several[row].pictures:
                pixels = torch.tensor(several[row].pictures[0]) / 255
                whole = ((pixels - mean) / std).permute(2, 0, 1)[None]
                inputs = {"pixel_values": whole[:, None] if family == "smolvlm" else whole}
            wanted = reference.base_model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs
            ).last_hidden_state[0]
            torch.testing.assert_close(found[mine], wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", WHOLE)
def test_a_picture_of_another_family_stands_between_its_own_markers(family, tmp_path, monkeypatch):
    whole_checkpoint(family, tmp_path)
    tokens = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    name = {token["id"]: token["content"] for token in tokens}
    prefix = [name[token] for token in load_backbone(tmp_path, 56).image_prefix]
    picture = ["<|image_pad|>"] * 4
    assert (
        prefix
        == {
            "internvl": ["<img>", *picture, "</img>"],
            "smolvlm": ["<fake_token_around_image>", "<global-img>", *picture, "<fake_token_around_image>"],
        }[family]
    )
    monkeypatch.setitem(MARKERS, family, (("<picture>",), ()))
    with pytest.raises(BackboneError, match=f"expected the {family} tokenizer to know <picture>"):
        load_backbone(tmp_path, 56)


def model_of(folder, **parts):
    return assemble(load_backbone(folder, 28), Parts(**parts), 16, seed=0)


@pytest.mark.parametrize("family", WHOLE)
def test_what_leans_on_qwens_vision_layers_says_so(family, tmp_path):
    whole_checkpoint(family, tmp_path)
    with pytest.raises(BackboneError, match=f"Qwen-VL, found {family}"):
        model_of(tmp_path, fire=True)


def learn(model, steps=4):
    """Some steps of contrast between pictures and the words that name them."""
    px = model.px
    pairs = [(c, s) for c in list(COLOURS)[:3] for s in SHAPES[:2]]
    words = [Sample(ids) for ids in tokenize(TOKENIZER, [f"{c} {s}" for c, s in pairs], 8)]
    pictures = [Sample([], (decode_image(png(c, s), px),)) for c, s in pairs]
    optimizers = Optimizers(model, steps)
    losses = []
    for step in range(steps):
        left, right = model(words).vector_BD, model(pictures).vector_BD
        loss = F.cross_entropy(F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / 0.1, torch.arange(6))
        optimizers.update(loss, "test", step)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", [*QWEN, *WHOLE])
def test_adapters_begin_as_nothing_train_alone_and_merge_into_an_ordinary_folder(family, tmp_path):
    made(family, tmp_path / "base")
    plain, model = (model_of(tmp_path / "base").eval() for _ in range(2))
    names = set(model.backbone.model.state_dict())
    torch.manual_seed(0)
    add_lora(model.backbone.model, rank=4, alpha=8)
    several = samples(model.px)
    with torch.no_grad():
        assert torch.equal(model(several).vector_BD, plain(several).vector_BD)
    learning = {name for name, part in model.named_parameters() if part.requires_grad}
    assert {name.split(".")[-3] for name in learning if "lora" in name} == {"lora_A", "lora_B"}
    assert {name for name in learning if "lora" not in name} == {"head.weight"}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learn(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == learning
    with torch.no_grad():
        wanted = model(several).vector_BD
        assert not torch.allclose(wanted, plain(several).vector_BD, atol=1e-3)
    merge(model.backbone.model)
    assert set(model.backbone.model.state_dict()) == names
    model.backbone.save(tmp_path / "tuned")
    for file in (tmp_path / "base").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "tuned")
    again = model_of(tmp_path / "tuned").eval()
    again.head.load_state_dict(model.head.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(several).vector_BD, wanted, atol=1e-5, rtol=0)


def test_an_adapter_is_its_formula(tmp_path):
    """y = W x + (alpha / rank) B A x, and as many numbers as A and B have."""
    checkpoint("qwen3_vl", tmp_path)
    model = load_backbone(tmp_path, 28).model
    names = block_layers(model)
    shapes = {name: model.get_submodule(name).weight.shape for name in names}
    add_lora(model, rank=3, alpha=12)
    assert trainable_parameters(model) == sum(3 * (rows + columns) for rows, columns in shapes.values())
    layer = model.get_submodule(names[0])
    down, up = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    torch.nn.init.normal_(up)
    x = torch.randn(5, shapes[names[0]][1])
    with torch.no_grad():
        wanted = F.linear(x, layer.base_layer.weight, layer.base_layer.bias) + 12 / 3 * (x @ down.T) @ up.T
        torch.testing.assert_close(layer(x), wanted)


def test_adapters_go_where_they_are_asked_to_and_nowhere_is_an_error(tmp_path):
    checkpoint("qwen3_vl", tmp_path)
    model = model_of(tmp_path, experts="guided")
    names = block_layers(model.backbone.model)
    assert any("visual" in name for name in names) and not any("lm_head" in name for name in names)
    replaced = f"language_model.layers.{len(model.backbone.layers) - 1}.mlp"
    assert not any(replaced in name for name in names)  # experts stand in its place
    with pytest.raises(ValueError, match="linear layers within 'audio'"):
        add_lora(model.backbone.model, within="audio")
    add_lora(model.backbone.model, rank=2, within="language_model")
    learning = [name for name, part in model.named_parameters() if part.requires_grad]
    assert not any("visual" in name for name in learning)
    assert any(name.startswith("backbone.experts") for name in learning)


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("qwen3_vl", {}),
        ("internvl", {}),
        ("qwen3_vl", {"experts": "guided"}),
        ("qwen3_vl", {"experts": "modality", "fire": True, "fusion": True}),
    ],
)
def test_bfloat16_keeps_the_direction_of_every_vector_and_learns(family, parts, tmp_path, monkeypatch):
    made(family, tmp_path)
    model = model_of(tmp_path, **parts)
    several = samples(model.px)
    with torch.no_grad():
        exact = model(several).vector_BD
        monkeypatch.setattr(module, "BFLOAT16_DEVICES", ("cpu",))
        rounded = model(several).vector_BD
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert float(F.cosine_similarity(exact, rounded).min()) > 1 - 2e-2
    losses = learn(model, 12)
    assert losses[-1] < losses[0] < float("inf")
    assert all(part.dtype == torch.float32 for part in model.parameters())


@pytest.fixture
def folder(tmp_path):
    checkpoint("qwen3_vl", tmp_path)
    return tmp_path


def rewrite(folder, change):
    """Change the tensors of a checkpoint folder."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_tensors_that_belong_nowhere_are_refused_and_named(folder):
    extra = {f"model.language_model.layers.{n}.mlp.up_proj.weight": torch.zeros(48, 32) for n in (7, 8)}
    rewrite(folder, lambda tensors: {**tensors, **extra})
    with pytest.raises(BackboneError, match=r"2 tensors in the weights that no qwen3_vl.*layers\.7\.mlp"):
        load_backbone(folder, 28)


def test_stored_rotary_frequencies_are_no_surprise(folder):
    rewrite(folder, lambda tensors: {**tensors, "visual.rotary_pos_emb.inv_freq": torch.zeros(8)})
    assert load_backbone(folder, 28).hidden_size == 32


def test_weights_that_are_not_finite_are_refused_and_named(folder):
    def damage(tensors):
        name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
        tensors[name][3, 4] = float("nan")
        return tensors

    rewrite(folder, damage)
    with pytest.raises(BackboneError, match=r"1 tensors not finite.*layers\.1\.mlp\.up_proj"):
        load_backbone(folder, 28)


@pytest.mark.parametrize("text", ["{", "[]", '"qwen3_vl"'])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_settings_file_that_is_no_object_is_refused(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(BackboneError, match=name):
        load_backbone(folder, 28)


def test_a_config_of_another_family_or_shape_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for changed in (
        {"model_type": "qwen2_vl"},
        {"text_config": {**config["text_config"], "hidden_size": 48}},
        {"text_config": {**config["text_config"], "hidden_size": "wide"}},
        {"text_config": {**config["text_config"], "num_hidden_layers": 1}},
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(BackboneError):
            load_backbone(folder, 28)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_training_with_adapters_from_a_folder_ends_in_a_folder(family, world, tmp_path):
    """Another family's folder in, an encoder out that is that family's folder again, nudged in its blocks only."""
    made(family, tmp_path / "base")
    tuned = train_encoder(
        *world, TINY, tmp_path / "tuned", recipe=ours(), checkpoint=tmp_path / "base", budget=0.04, lora=4
    )
    assert tuned.config["lora"] == 4 and not (tmp_path / "tuned.partial").exists()
    before, after = (load_backbone(path, 28).model.state_dict() for path in (tmp_path / "base", tuned.path))
    assert before.keys() == after.keys()
    moved = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert moved and moved <= set(block_layers(load_backbone(tmp_path / "base", 28).model))
    encoder = Encoder.open(tuned)
    vectors = encoder.encode([Content(png("red", "disc"), None), Content(None, "red disc")])
    assert vectors.shape == (2, 32 + COUNT) and vectors.dtype == np.float32


def test_the_dual_encoder_takes_no_checkpoint(world, tmp_path):
    with pytest.raises(ValueError, match="takes no checkpoint and no adapters"):
        train_encoder(*world, TINY, tmp_path / "e", recipe=dual(), lora=4)


def test_recall_counts_ties_against_itself():
    asked, found = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    found[1] = found[0]  # row 0 ties with row 1; row 1 is beaten by none but scores what 2 and 3 score
    assert [recall(asked, found, depth) for depth in (1, 2, 4)] == [0.5, 0.75, 1.0]


def test_the_gpu_command_measures_speed_memory_and_recall_on_any_machine(world, tmp_path):
    checkpoint("qwen3_vl", tmp_path / "base")
    dataset, split = world
    lines = {
        line.name: line for line in gpu_run(dataset, split, tmp_path / "base", tmp_path / "e", TINY, 4, 0.04)
    }
    assert 0 < lines["trained parameters"].value < lines["parameters"].value
    for what in ("training", "embedding"):
        assert lines[f"{what} speed"].value > 0 and 0 < lines[f"{what} memory"].value < 64
    pool = lines["image to text recall@1"].n
    assert 0 < pool <= len(split.pool)
    for way in ("image to text", "text to image"):
        shares = [lines[f"{way} recall@{depth}"].value for depth in (1, 5, 10)]
        assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1
    assert Encoder.open(open_artifact(tmp_path / "e", "encoder")).width == 32 + COUNT
