"""Discriminants keep what tells pictures apart whichever way they are taken, in numbers of their own."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from encoder_world import TINY
from PIL import Image, ImageDraw
from scipy.linalg import eigh, subspace_angles
from sklearn.linear_model import LinearRegression

from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.backbone.packing import Sample
from encoder.parts import discriminants as module
from encoder.parts.discriminants import COLOURS, COUNT, FEWEST, SHAPES, Discriminants, shapes
from encoder.parts.wide import thumbnails

SPECIAL = {"pad": 0, "image": 1, "vision_start": 2, "vision_end": 3}
PX, KINDS = 32, 3
TOLD = np.eye(KINDS, 5, dtype=np.float32)  # the vector of each kind's name
LENGTHS = (np.sqrt(0.005), np.sqrt(0.03125))  # of colours and of shapes, beside a vector of length 1


def picture(kind, hue, slender=0.0, fine=0.0, turn=0.0, x=0.0, y=0.0, seed=0):
    """A striped box, ellipse or wedge before a coloured wall, drawn at four times the size."""
    side = 4 * PX
    wall, ground = (tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, s, 0.9)) for s in (0.5, 0.1))
    image = Image.new("RGB", (side, side), wall)
    w, h = 0.3 * 1.35**-slender * side, 0.3 * 1.35**slender * side
    corners = {
        0: [(-w, -h), (w, -h), (w, h), (-w, h)],
        1: [(w * np.cos(a), h * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 24)],
        2: [(-w, h), (0, -h), (w, h)],
    }[kind]
    c, s, middle = np.cos(turn), np.sin(turn), side / 2
    points = [
        (middle + x * side + c * px - s * py, middle + y * side + s * px + c * py) for px, py in corners
    ]
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    row, column = np.mgrid[:side, :side] - middle
    period = side * 0.11 * 1.6**-fine
    stripe = ((row - y * side) * c - (column - x * side) * s) / period % 1 < 0.5
    body = np.where(stripe[..., None], ground, (40, 40, 60)).astype(np.uint8)
    image.paste(Image.fromarray(body), mask=mask)
    pixels = np.asarray(image.reduce(4), np.float32)
    pixels += np.random.default_rng(seed).normal(0, 3, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def shop():
    """A fitted module, and 300 pictures with what they show: kind, and hue, slender and fine at random."""
    rng = np.random.default_rng(1)
    kind, hue = rng.integers(0, KINDS, 300), rng.random(300)
    slender, fine = rng.uniform(-1, 1, (2, 300))
    looks = np.stack([picture(*one) for one in zip(kind, hue, slender, fine, strict=True)])
    fitted = Discriminants(PX, TOLD.shape[1])
    fitted.fit(looks[:200], TOLD[kind[:200]])
    return fitted, looks, kind, hue, slender, fine


def read(fitted, looks, kind):
    samples = [Sample([1], (one,)) for one in looks]
    return fitted(samples, torch.from_numpy(TOLD[np.asarray(kind)])).numpy()


def lengths(numbers):
    """Root mean squares of the colours and of the shapes of items."""
    parts = numbers[:, :COLOURS], numbers[:, COLOURS:]
    return tuple(np.sqrt(np.square(one).sum(axis=1).mean()) for one in parts)


def test_backdrop_shape_and_texture_are_linear_in_the_few_numbers(shop):
    fitted, looks, kind, hue, slender, fine = shop
    numbers = read(fitted, looks, kind)
    traits = np.stack([np.cos(2 * np.pi * hue), np.sin(2 * np.pi * hue), slender, fine], axis=1)
    told = LinearRegression().fit(numbers[:200], traits[:200]).predict(numbers[200:])
    rest = ((told - traits[200:]) ** 2).sum(axis=0) / ((traits[200:] - traits[200:].mean(axis=0)) ** 2).sum(
        axis=0
    )
    assert (1 - rest > (0.95, 0.95, 0.8, 0.6)).all(), 1 - rest
    assert lengths(numbers[:200]) == pytest.approx(LENGTHS, rel=1e-3)


@pytest.mark.parametrize("differs", ["slender", "fine"])
def test_pictures_that_differ_in_one_thing_only_are_told_apart_wherever_they_are_taken(shop, differs):
    fitted = shop[0]
    for kind in range(KINDS):

        def taken(value, seed, kind=kind):
            rng = np.random.default_rng(seed)
            move = dict(turn=rng.uniform(-0.1, 0.1), x=rng.uniform(-0.05, 0.05), y=rng.uniform(-0.05, 0.05))
            return picture(kind, rng.random(), **{differs: value}, **move, seed=seed)

        low, high = (
            read(fitted, [taken(value, seed) for seed in range(12)], [kind] * 12)[:, COLOURS:]
            for value in (-1, 1)
        )
        apart = np.linalg.norm(low.mean(axis=0) - high.mean(axis=0))
        within = np.sqrt((low.var(axis=0) + high.var(axis=0)).sum())
        assert apart > 1.5 * within, (kind, apart, within)


def test_what_words_say_of_shapes_is_taken_away(shop):
    fitted, looks, kind, *_ = shop
    blind = Discriminants(PX, TOLD.shape[1])
    blind.fit(looks[:200], np.ones((200, TOLD.shape[1]), np.float32))  # the same words of all
    numbers, raw = (read(one, looks, kind)[:, COLOURS:] for one in (fitted, blind))

    def of_kind(rows):
        means = np.stack([rows[kind == one].mean(axis=0) for one in range(KINDS)])[kind]
        return ((means - rows.mean(axis=0)) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()

    assert of_kind(numbers) < 0.03 < 0.3 < of_kind(raw)


def test_directions_are_fishers(shop):
    _, looks, *_ = shop
    seen, views = module._read(looks[:200], thumbnails, np.random.default_rng(3), mixed=False)
    found = module._strongest(seen, module._within(views), COLOURS)
    rest = (views - views.mean(axis=0)).reshape(-1, seen.shape[1])
    within = rest.T @ rest / len(rest)
    within += module.SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    _, vectors = eigh(np.cov(seen.T), within)  # the generalised eigenproblem, solved as one
    assert np.abs(subspace_angles(found, vectors[:, -COLOURS:])).max() < 1e-5


def test_shapes_are_sums_of_gradients_and_of_the_spectrum():
    pixels = np.random.default_rng(4).integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)
    found = shapes(torch.from_numpy(pixels)).numpy()
    for row, one in enumerate(pixels):
        grey = one / 255 - (one / 255).mean(axis=(0, 1))
        energy, level, expected = (grey**2).sum(), grey, []
        for _ in range(module.LEVELS):
            side = len(level)
            across, down = np.zeros_like(level), np.zeros_like(level)
            for i in range(side):
                for j in range(side):
                    if 0 < j < side - 1:
                        across[i, j] = level[i, j + 1] - level[i, j - 1]
                    if 0 < i < side - 1:
                        down[i, j] = level[i + 1, j] - level[i - 1, j]
            cell = side // module.CELLS
            for product in (across**2, down**2, across * down):
                for i in range(module.CELLS):
                    for j in range(module.CELLS):
                        part = (
                            product[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].sum()
                            / cell**2
                            / energy
                        )
                        expected.append(np.sign(part) * np.sqrt(abs(part)))
            level = level.reshape(side // 2, 2, side // 2, 2, 3).mean(axis=(1, 3))
        window = np.hanning(16)
        power = (np.abs(np.fft.fft2(grey * np.outer(window, window)[..., None], axes=(0, 1))) ** 2).sum(
            axis=2
        )
        edges, bands = np.geomspace(1.5 / 16, 0.5, module.RINGS + 1), {}
        for i, v in enumerate(np.fft.fftfreq(16)):
            for j, u in enumerate(np.fft.fftfreq(16)):
                ring = sum(np.hypot(u, v) >= edge for edge in edges) - 1
                wedge = round(np.arctan2(v, u) / np.pi * module.WEDGES) % module.WEDGES
                if 0 <= ring < module.RINGS:
                    bands[ring, wedge] = bands.get((ring, wedge), 0) + power[i, j]
        expected += [np.log(bands[key] / energy + module.FAINT) for key in sorted(bands)]
        np.testing.assert_allclose(found[row], expected, rtol=2e-3, atol=2e-3)


def test_a_sample_does_not_depend_on_the_others_and_reads_what_it_has(shop):
    fitted, looks, kind, *_ = shop
    samples = [Sample([1], (looks[0],)), Sample([], (looks[1],)), Sample([1]), Sample([1], (looks[1],))]
    told = torch.from_numpy(TOLD[kind[[0, 1, 2, 1]]])
    together = fitted(samples, told)
    alone = torch.cat([fitted([one], told[[row]]) for row, one in enumerate(samples)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not together[2].any() and together[0].all()
    assert not together[1].any()  # a picture alone is a search, and what is behind the product the searcher's
    assert together[3].all()
    # Smaller and larger pictures are read too; so is the first of two.
    large = looks[0].repeat(2, axis=0).repeat(2, axis=1)
    torch.testing.assert_close(shapes(torch.from_numpy(large[None])), shapes(torch.from_numpy(looks[:1])))
    twice = fitted([Sample([1], (looks[0], looks[5]))], told[:1])
    torch.testing.assert_close(twice, together[:1])


def test_where_items_have_no_words_pictures_are_read_alone(shop):
    _, looks, _, _, slender, _ = shop
    silent = Discriminants(PX, 5)
    silent.fit(looks, np.zeros((len(looks), 5), np.float32))
    numbers = silent([Sample([], (one,)) for one in looks], torch.zeros(len(looks), 5)).numpy()
    assert lengths(numbers) == pytest.approx(LENGTHS, rel=1e-3)
    assert LinearRegression().fit(numbers, slender).score(numbers, slender) > 0.2


def test_of_too_few_or_equal_pictures_nothing_is_learned():
    rng = np.random.default_rng(0)
    few, equal = Discriminants(PX, 5), Discriminants(PX, 5)
    few.fit(
        rng.integers(0, 256, (FEWEST - 1, PX, PX, 3), dtype=np.uint8), np.ones((FEWEST - 1, 5), np.float32)
    )
    assert not any(one.any() for one in few.state_dict().values())
    equal.fit(np.full((FEWEST, PX, PX, 3), 255, np.uint8), np.ones((FEWEST, 5), np.float32))
    noise = Sample([1], (rng.integers(0, 256, (PX, PX, 3), dtype=np.uint8),))
    assert torch.isfinite(equal([noise], torch.ones(1, 5))).all()


def test_they_are_the_last_numbers_of_a_vector_and_an_earlier_encoder_has_none():
    def built(parts, width):
        config = small_config(TINY.hidden, TINY.layers, TINY.image_px, 20, SPECIAL)
        return assemble(build_backbone(config, TINY.image_px, 0), parts, width, seed=0)

    with_them = Parts(wide=True, discriminants=True)
    model = built(with_them, 32)
    assert model.width == 32 + COUNT and model.head.out_features == 32
    model.discriminants.colour_directions[:] = 1
    words, both = model.vectors([Sample([5, 6]), Sample([5, 6], (np.zeros((16, 16, 3), np.uint8),))])
    assert len(both) == model.width and not words[-COUNT:].any() and both[-COUNT:-SHAPES].all()
    assert both[:-COUNT].norm().item() == pytest.approx(1, abs=1e-5)
    earlier = built(Parts(**{"wide": True}), 32)  # as its artifact records it
    assert earlier.discriminants is None and earlier.width == 32
