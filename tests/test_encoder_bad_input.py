"""What sellers upload and machines do to an encoder: bombs, cut files, endless titles, lost numbers, kills."""

import io
import struct
import time
import unicodedata
import zlib

import numpy as np
import pytest
import torch
from encoder_world import png
from PIL import Image

from dataset.contracts import DataError
from dataset.pictures import MOST_PIXELS
from encoder.optim import Optimizers
from encoder.pictures.decode import decode_image
from encoder.tokenizer import tokenize, train_tokenizer

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


@pytest.mark.parametrize(
    ("kind", "said"),
    [("EPS", "cannot identify"), ("PPM", "cannot identify")]
    + [(kind, f"found {kind}, which is not opened: JPEG, PNG") for kind in ("TIFF", "ICO")],
)
def test_formats_that_no_shop_shows_are_not_opened(kind, said):
    with pytest.raises(DataError, match=said):
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
