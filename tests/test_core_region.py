"""The core region holds the product: planted shapes are found, nothing breaks on arbitrary pictures."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from encoder.pictures.decode import decode_image
from encoder.pictures.region import core_region, crop, departures, salient_box

BOX = (30, 24, 86, 100)


def overlap(a, b):
    """Intersection over union of two boxes."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def background(kind, width=128, height=128):
    y, x = np.mgrid[0:height, 0:width]
    if kind == "plain":
        return np.full((height, width, 3), 238, dtype=np.uint8)
    if kind == "gradient":
        return np.stack([120 + 0.8 * x, 200 - 0.5 * y, 90 + 0.3 * x + 0.3 * y], -1).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 12, size=(height, width, 3))
    return (200 + noise).clip(0, 255).astype(np.uint8)


def planted(kind, shape, box, colour, width=128, height=128):
    picture = Image.fromarray(background(kind, width, height))
    draw = ImageDraw.Draw(picture)
    inside = [box[0], box[1], box[2] - 1, box[3] - 1]
    (draw.rectangle if shape == "rectangle" else draw.ellipse)(inside, fill=colour)
    return np.asarray(picture)


@pytest.mark.parametrize("kind", ["plain", "gradient", "noisy"])
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize("box", [BOX, (6, 10, 40, 36), (50, 40, 128, 128)])  # middle, corner, at the edge
def test_a_planted_product_is_found_on_plain_gradient_and_noisy_surroundings(kind, shape, box):
    if (kind, box[2]) == ("gradient", 128):
        box = (80, 80, 128, 128)  # more of the border would be more than uneven light allows
    for colour in ((170, 20, 30), (20, 30, 20)):
        found = salient_box(planted(kind, shape, box, colour))
        assert overlap(found, box) >= 0.7, found


def test_faint_products_and_other_formats_are_found():
    found = salient_box(planted("plain", "rectangle", BOX, (222, 224, 226)))  # white on white
    assert overlap(found, BOX) >= 0.7
    tall = planted("plain", "ellipse", (20, 30, 60, 90), (30, 60, 90), width=85, height=128)
    assert overlap(salient_box(tall), (20, 30, 60, 90)) >= 0.7
    small = planted("gradient", "rectangle", (8, 4, 24, 30), (0, 0, 0), width=32, height=32)
    assert overlap(salient_box(small), (8, 4, 24, 30)) >= 0.7


def test_a_product_of_several_pieces_is_one_region():
    picture = Image.fromarray(planted("plain", "ellipse", (20, 20, 50, 50), (10, 10, 10)))
    ImageDraw.Draw(picture).ellipse([80, 70, 109, 99], fill=(200, 0, 0))
    assert overlap(salient_box(np.asarray(picture)), (20, 20, 110, 100)) >= 0.7


def test_specks_do_not_widen_the_region():
    picture = planted("plain", "rectangle", BOX, (0, 0, 0)).copy()
    picture[4, 4] = picture[120, 126] = 0
    assert overlap(salient_box(picture), BOX) >= 0.7
    labelled = planted("plain", "rectangle", (4, 4, 34, 34), (0, 0, 0), 40, 40).copy()
    labelled[38:, 38:] = 0
    assert overlap(salient_box(labelled), (4, 4, 34, 34)) >= 0.85
    assert overlap(salient_box(labelled[::-1, ::-1]), (6, 6, 36, 36)) >= 0.85


def test_uneven_light_is_no_product():
    y, x = np.mgrid[0:128, 0:128] / 64 - 1
    light = (230 - 25 * x**2 - 30 * y**2 + 10 * x * y)[..., None].repeat(3, -1).astype(np.uint8)
    assert salient_box(light) == (0, 0, 128, 128)
    light[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 250  # a white shirt on grey
    assert overlap(salient_box(light), BOX) >= 0.7


def test_in_clutter_the_region_is_what_the_middle_is_made_of():
    """Tiles of any colour but bright red around a red product off the centre: the box follows it."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        tiles = rng.integers(0, 255, size=(32, 32, 3), dtype=np.uint8)
        tiles[..., 0] //= 2
        picture = np.kron(tiles, np.ones((4, 4, 1), dtype=np.uint8))
        assert not departures(picture[None])[2][0]
        nothing = salient_box(picture)
        picture[44:108, 52:108] = (250, 20, 40)
        found = salient_box(picture)
        assert overlap(found, (52, 44, 108, 108)) > overlap(nothing, (52, 44, 108, 108)) + 0.1
        assert found[0] < 56 and found[1] < 48 and found[2] > 104 and found[3] > 104


@pytest.mark.parametrize("kind", ["plain", "gradient", "clutter"])
@pytest.mark.parametrize("size", [(85, 128), (128, 90)])
def test_the_white_bars_that_square_a_picture_change_nothing(kind, size):
    """Both ways of reading a picture, as stored and as ``decode_image`` squares it, show the same region."""
    width, height = size
    if kind == "clutter":
        picture = np.random.default_rng(0).integers(0, 255, size=(height, width, 3), dtype=np.uint8)
    else:
        picture = planted(kind, "ellipse", (20, 30, 60, 80), (30, 60, 90), width, height)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    square = decode_image(stream.getvalue(), 128)
    dx, dy = (129 - width) // 2, (129 - height) // 2
    left, top, right, bottom = salient_box(picture)
    assert salient_box(square) == (left + dx, top + dy, right + dx, bottom + dy)


def test_a_product_centred_on_pure_white_is_not_taken_for_padding():
    picture = np.full((128, 128, 3), 255, dtype=np.uint8)
    picture[20:108, 40:88] = np.random.default_rng(0).integers(0, 200, size=(88, 48, 3))
    assert overlap(salient_box(picture), (40, 20, 88, 108)) >= 0.8


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("size", [(128, 128), (85, 128), (1, 1), (1, 40)])
def test_where_nothing_stands_out_the_region_is_the_whole_picture(level, size):
    width, height = size
    picture = np.full((height, width, 3), level, dtype=np.uint8)
    assert salient_box(picture) == (0, 0, width, height)


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0, 1, 30, 255]),
    block=st.integers(1, 20),
)
@example(width=2, height=54, seed=0, spread=255, block=1)  # one column of the small picture, without extent
@settings(max_examples=150, deadline=None)
def test_a_region_is_never_empty_inside_the_picture_and_the_same_again(width, height, seed, spread, block):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, spread + 1, size=(height // block + 1, width // block + 1, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((block, block, 1), dtype=np.uint8))[:height, :width]
    left, top, right, bottom = salient_box(picture)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    region = core_region(picture, 16)
    assert region.shape == (16, 16, 3) and region.dtype == np.uint8
    assert np.array_equal(region, core_region(picture.copy(), 16))


def test_crop_is_undistorted_on_white():
    picture = planted("plain", "rectangle", (10, 20, 50, 40), (200, 10, 10))  # twice as wide as high
    square = crop(picture, (10, 20, 50, 40), 32)
    red = (square == (200, 10, 10)).all(-1)
    assert red.any(1).sum() == 16 and red.any(0).sum() == 32
    assert (square[~red] == 255).all()


def test_departures_of_a_batch_are_those_of_each_picture():
    pictures = np.stack([planted(k, "ellipse", BOX, (9, 9, 200)) for k in ("plain", "gradient", "noisy")])
    together = departures(pictures)
    for row in range(3):
        for many, one in zip(together, departures(pictures[row : row + 1]), strict=True):
            np.testing.assert_allclose(many[row], one[0], rtol=1e-3, atol=0.05)
