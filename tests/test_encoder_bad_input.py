"""What sellers upload and machines do to an encoder: bombs, cut files, endless titles, lost numbers, kills."""

import io
import multiprocessing
import os
import signal
import struct
import time
import unicodedata
import zlib

import numpy as np
import pytest
import torch
from encoder_world import TINY, png, shop
from PIL import Image

import encoder.train
from dataset.contracts import DataError
from dataset.pictures import MOST_PIXELS
from dataset.split import Split
from dataset.tables import Dataset
from encoder.optim import Optimizers
from encoder.pictures.decode import decode_image
from encoder.tokenizer import tokenize, train_tokenizer
from run.artifacts import open_artifact

RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
TITLES = {
    "chinese": "红色连衣裙 女士 夏季",
    "arabic": "فستان أحمر للنساء",
    "hindi": "लाल पोशाक महिलाओं के लिए",
    "thai": "เดรสสีแดงสำหรับผู้หญิง",
    "emoji": "👗❤️ 👩🏽‍🦰 sale 🔥🔥",
    "mixed": "Größe 38 – 赤い靴 – حذاء",
    "control": "red\x00 \u200bdress\ufeff",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def saved(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def declared(width, height):
    """A PNG of a few bytes whose header promises ``width`` x ``height`` grey pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "side", [8_000, 12_000]
)  # the second is past Pillow's warning, still below its error
def test_a_bomb_is_refused_by_its_header(side):
    with pytest.raises(DataError, match=f"{side} x {side} pixels, at most {MOST_PIXELS}"):
        decode_image(declared(side, side), 16)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 8)])
def test_a_bomb_beyond_every_limit_is_refused(width, height):
    with pytest.raises(DataError, match="expected a picture"):
        decode_image(declared(width, height), 16)


def test_a_large_photograph_is_read_at_a_fraction_of_its_size():
    side = int(MOST_PIXELS**0.5)
    photograph = Image.new("L", (side, side), 200)
    photograph.paste(40, (0, 0, side, side // 2))
    square = decode_image(saved(photograph, "JPEG"), 16)
    assert abs(int(square[4, 8, 0]) - 40) <= 3 and abs(int(square[12, 8, 0]) - 200) <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_of_any_kind_the_first_frame_counts(kind):
    moving = saved(RED, kind, save_all=True, append_images=[BLUE, BLUE], duration=50)
    assert np.abs(decode_image(moving, 16)[8, 8].astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PPM", "ICO"])
def test_formats_that_no_shop_shows_are_not_opened(kind):
    with pytest.raises(DataError, match="cannot identify"):
        decode_image(saved(RED, kind), 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_picture_cut_short_anywhere_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, size=(48, 48, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), kind)
    assert decode_image(whole, 16).shape == (16, 16, 3)
    for share in (0.01, 0.1, 0.5, 0.9, 0.97):
        with pytest.raises(DataError, match="expected a picture"):
            decode_image(whole[: int(len(whole) * share)], 16)


def test_flipped_bits_give_a_picture_or_a_refusal_and_nothing_else():
    rng = np.random.default_rng(0)
    wholes = [png("red", "disc"), *(saved(RED, kind) for kind in ("JPEG", "GIF", "WEBP", "BMP"))]
    refused = 0
    for number in range(400):
        content = bytearray(wholes[number % len(wholes)])
        for place in rng.integers(len(content), size=3):
            content[place] ^= 1 << int(rng.integers(8))
        try:
            assert decode_image(bytes(content), 16).shape == (16, 16, 3)
        except DataError:
            refused += 1
    assert 20 < refused < 400


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_a_line_or_a_dot_is_still_a_square(size):
    assert decode_image(saved(Image.new("RGB", size, "red")), 16).shape == (16, 16, 3)


TOKENIZER = train_tokenizer(["red shoe for women", "rote Schuhe größe 38"] * 3, vocabulary=300)


@pytest.mark.parametrize("script", TITLES)
def test_composed_and_decomposed_letters_are_one_text_in_every_script(script):
    composed, decomposed = (unicodedata.normalize(form, TITLES[script]) for form in ("NFC", "NFD"))
    [one], [other] = (tokenize(TOKENIZER, [text], 500) for text in (composed, decomposed))
    assert one and one == other
    assert TOKENIZER.decode(one) == composed


def test_ten_thousand_words_are_the_first_few():
    title = "red shoe for women " * 2_500
    [whole] = TOKENIZER(["red shoe for women " * 40], add_special_tokens=False)["input_ids"]
    assert tokenize(TOKENIZER, [title], 24) == [whole[:24]]


def test_a_million_letters_without_a_space_are_read_at_once():
    before = time.process_time()
    [ids] = tokenize(TOKENIZER, ["x" * 1_000_000], 24)
    assert len(ids) == 24
    assert time.process_time() - before < 0.5  # a whole reading takes seconds


def test_half_a_surrogate_pair_is_a_question_mark():
    assert tokenize(TOKENIZER, ["red \ud83d shoe"], 24) == tokenize(TOKENIZER, ["red ? shoe"], 24)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_number_lost_names_the_step_and_every_item_of_the_batch(bad):
    model = torch.nn.Linear(3, 3)
    optimizers = Optimizers(model, steps=10)
    loss = model(torch.ones(1, 3)).sum() * float("nan")
    if bad == "gradient":
        loss = (model(torch.ones(1, 3)) * 0).sqrt().sum()
    with pytest.raises(FloatingPointError, match=r"posttrain step 7, 3 items \[41, 7, 900\].*weights kept"):
        optimizers.update(loss, "posttrain", 7, batch=np.array([41, 7, 900]))


def train_shop(folder, out, steps):
    """Train on the shop in ``folder``, saving after every step and counting steps; in a process of its own."""
    torch.set_num_threads(1)
    encoder.train.CHECKPOINT_EVERY = 1
    update = Optimizers.update

    def counted(self, *arguments, **named):
        update(self, *arguments, **named)
        steps.value += 1

    Optimizers.update = counted
    dataset, split = (
        Dataset.open(open_artifact(folder / "dataset", "dataset")),
        Split.open(open_artifact(folder / "split", "split")),
    )
    encoder.train.train_encoder(dataset, split, TINY, out, budget=0.4)


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_one_step_and_no_bit(tmp_path):
    """SIGKILL at random moments of a step or of a save; what is left leads to the uninterrupted run's bits."""
    shop(tmp_path)
    processes = multiprocessing.get_context(
        "forkserver"
    )  # torch is imported once, in a process that only forks
    processes.set_forkserver_preload(["encoder.train", "pytest"])
    steps = processes.RawValue("i", 0)

    def live(out, more=None, seconds=None):
        """Train until done, or killed so long after so many more steps; how the process ended."""
        before = steps.value
        child = processes.Process(target=train_shop, args=(tmp_path, out, steps))
        child.start()
        while more is not None and child.is_alive() and steps.value < before + more:
            time.sleep(0.001)
        child.join(seconds)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        return child.exitcode

    assert live(tmp_path / "whole") == 0
    needed, steps.value = steps.value, 0
    rng = np.random.default_rng()
    ends = [live(tmp_path / "parts", int(rng.integers(3, 6)), rng.uniform(0, 0.15)) for _ in range(3)]
    assert ends.count(-signal.SIGKILL) >= 2, (ends, needed, steps.value)
    assert live(tmp_path / "parts") == 0
    assert needed <= steps.value <= needed + len(ends), (ends, needed, steps.value)
    whole, parts = (open_artifact(tmp_path / name, "encoder") for name in ("whole", "parts"))
    for file in sorted(path.name for path in whole.path.iterdir() if path.name != "manifest.json"):
        assert whole.file(file).read_bytes() == parts.file(file).read_bytes(), file
    assert whole.config["losses"] == parts.config["losses"]
    kept = {"dataset", "dataset.pixels_16", "split", "whole", "parts"}
    assert {path.name for path in tmp_path.iterdir()} == kept
