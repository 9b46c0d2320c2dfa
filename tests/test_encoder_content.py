"""What the encoder reads: pictures of any kind, text in any script, missing parts."""

import io
import json

import numpy as np
import pytest
from encoder_world import item_row, png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.contracts import DataError
from encoder.content import TITLE, Content, item_content, query_content, tokenize_fields
from encoder.pictures.decode import decode_image, decode_images
from encoder.tokenizer import SPECIALS, special_ids, tokenize, train_tokenizer

TEXTS = [
    "red shoe for women",
    "blue shoe for men",
    "rote Schuhe größe 38",
    "سلة تسوق",
    "赤い靴 レディース",
    "👟 sneaker",
]


def saved(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_wide_picture_is_centred_on_white(kind):
    square = decode_image(saved(Image.new("RGB", (60, 20), (200, 0, 0)), kind), 30)
    assert square.shape == (30, 30, 3) and square.dtype == np.uint8
    assert (square[:8] > 240).all() and (square[-8:] > 240).all()
    np.testing.assert_allclose(square[15, 15], [200, 0, 0], atol=4)


def test_every_mode_becomes_its_own_colour():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0] + [0] * 765)
    wanted = {
        "CMYK": (saved(red.convert("CMYK"), "JPEG"), (255, 0, 0)),
        "palette": (saved(palette), (255, 0, 0)),
        "transparent": (saved(Image.new("RGBA", (16, 16), (0, 0, 0, 0))), (255, 255, 255)),
        "half alpha": (saved(Image.new("RGBA", (16, 16), (255, 0, 0, 128))), (255, 127, 127)),
        "transparent palette": (saved(palette, transparency=0), (255, 255, 255)),
        "grey": (saved(Image.new("L", (16, 16), 90)), (90, 90, 90)),
        "16 bit": (saved(Image.fromarray(np.full((16, 16), 90 << 8, np.uint16))), (90, 90, 90)),
        "black and white": (saved(Image.new("1", (16, 16), 1)), (255, 255, 255)),
    }
    for name, (content, colour) in wanted.items():
        middle = decode_image(content, 8)[4, 4].astype(int)
        assert np.abs(middle - colour).max() <= 3, (name, middle, colour)


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("lime", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(content, 8)[4, 4], [0, 255, 0])


def test_a_rotated_photo_is_turned_upright():
    photo = Image.new("RGB", (32, 32), "white")
    photo.paste((0, 0, 255), (0, 0, 32, 8))  # blue at the top of the stored pixels
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    square = decode_image(saved(photo, "JPEG", exif=exif, quality=95), 32)
    assert square[2, 16, 0] > 200 and square[29, 16, 0] < 60


@pytest.mark.parametrize("content", [b"", b"not a picture", png("red", "disc")[:60]])
def test_broken_bytes_are_refused_not_guessed(content):
    with pytest.raises(DataError, match="expected a picture"):
        decode_image(content, 16)


def test_a_broken_picture_is_named(caplog):
    assert decode_images({"abc": b"junk", "x": png("red", "disc")}, ["abc", "x"], 16)[0] == ["x"]
    assert "image abc" in caplog.text


def test_the_words_of_an_item_are_what_there_is_in_order():
    row = item_row(1, "red", "disc", None, description="A disc.", category=["toys", "discs"])
    assert item_content(row).words == "red disc. toys discs. red. A disc."
    assert item_content({**row, "title": None, "attributes": []}).words == "toys discs. A disc."
    bare = {**row, "title": " ", "attributes": {"size": "L"}, "category": [], "description": ""}
    assert item_content(bare).words == "L"
    empty = {**row, "title": None, "attributes": [], "category": [], "description": None}
    assert item_content(empty).words == ""
    assert item_content(empty).is_empty and not item_content(empty, b"x").is_empty


def test_every_token_knows_which_field_it_is_of():
    contents = [
        item_content(item_row(1, "red", "disc", None, description="A disc.")),
        Content(None, "blue"),
        Content(b"x"),
    ]
    tokenizer = train_tokenizer(["red disc shapes"] * 9, vocabulary=300)
    (tokens, kinds), query, nothing = tokenize_fields(tokenizer, contents, 40)
    fields = [[t for t, k in zip(tokens, kinds, strict=True) if k == kind] for kind in range(4)]
    assert [tokenizer.decode(ids) for ids in fields] == ["red disc", ". shapes disc", ". red", ". A disc."]
    assert kinds == sorted(kinds)
    assert tokenizer.decode(query[0]) == "blue" and set(query[1]) == {TITLE} and nothing == ([], [])
    for limit in range(len(tokens)):
        assert tokenize_fields(tokenizer, contents[:1], limit)[0] == (tokens[:limit], kinds[:limit])


def test_a_query_is_its_words_and_picture():
    assert query_content({"query_id": 1, "text": "red", "image_id": None}) == Content(None, "red")
    assert query_content({"query_id": 1, "text": None, "image_id": "a"}, b"x") == Content(b"x", None)
    assert Content(None, "  ").is_empty


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_in_any_script_survives_tokenizing(text):
    import unicodedata

    text = unicodedata.normalize("NFC", text.strip())
    [ids] = tokenize(TOKENIZER, [text], 1000)
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text.strip())


TOKENIZER = train_tokenizer(TEXTS * 3, vocabulary=300)


def test_specials_have_ids_of_their_own_and_cannot_be_typed_by_a_seller():
    ids = special_ids(TOKENIZER)
    assert len({*ids.values()}) == 4 and len(TOKENIZER) <= 300
    assert [TOKENIZER.convert_ids_to_tokens(n) for n in range(len(SPECIALS))] == list(SPECIALS)
    [typed] = tokenize(TOKENIZER, ["a <|image_pad|> b <|vision_start|>"], 1000)
    assert not set(typed) & set(ids.values())


def test_tokens_are_cut_and_blank_text_has_none():
    long, blank = tokenize(TOKENIZER, ["red shoe " * 50, "  "], 7)
    assert len(long) == 7 and blank == []
    assert tokenize(TOKENIZER, [], 7) == []


def test_the_tokenizer_is_the_same_every_time():
    again = train_tokenizer(TEXTS * 3, vocabulary=300)
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(TOKENIZER.backend_tokenizer.to_str())
