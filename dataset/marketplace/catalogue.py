"""The simulated catalogue: the true properties of every item, its text and its picture.

Six facets (leaf category, colour, pattern, material, brand, style) have words; three traits (background hue,
elongation, pattern density) are only in the picture. Material, brand and style are only in the text. The circle of a
product is in neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataset.contracts import IMAGES, ITEMS, TIME, content_hash
from dataset.days import DAY_US
from dataset.marketplace.drawing import COLOURS, PATTERNS, SIDE_PX, Camera, Look, draw
from run.progress import track

START_US = 1_748_822_400_000_000  # 2025-06-02 00:00 UTC, a Monday: the first day of the log
DAYS = 30

TREE = {
    "home": ("mug", "vase", "lamp", "cushion", "clock"),
    "clothing": ("shirt", "dress", "trousers", "hat", "sock"),
    "accessories": ("bag", "umbrella", "watch", "shoe", "glasses"),
}
LEAVES = tuple(leaf for leaves in TREE.values() for leaf in leaves)
TOP_OF = {leaf: top for top, leaves in TREE.items() for leaf in leaves}
MATERIALS_OF = {
    "home": ("ceramic", "glass", "oak", "steel", "linen"),
    "clothing": ("cotton", "wool", "silk", "denim", "linen"),
    "accessories": ("leather", "canvas", "nylon", "steel", "suede"),
}
MATERIALS = tuple(dict.fromkeys(name for names in MATERIALS_OF.values() for name in names))
BRANDS = (
    "Alder", "Brisa", "Corvo", "Dunmore", "Elsing", "Fjordal",
    "Gravina", "Hollis", "Juno", "Kestrel", "Norvik", "Solene",
)  # fmt: skip
STYLES = ("classic", "modern", "vintage", "sporty", "minimal", "bold")

FACETS: dict[str, tuple[str, ...]] = {
    "leaf": LEAVES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "material": MATERIALS,
    "brand": BRANDS,
    "style": STYLES,
}
FACET_START = dict(zip(FACETS, np.cumsum([0, *map(len, FACETS.values())][:-1]).tolist(), strict=True))
WORDS = sum(map(len, FACETS.values()))  # number of all facet values
# Dense traits, in this order: the backdrop hue as a point on the colour circle, three scalars, and the circle of
# users that a product appeals to as a point on a sphere. The first four are only in the picture, the last nowhere.
TRAITS = (
    "background_x",
    "background_y",
    "elongation",
    "density",
    "price",
    "circle_x",
    "circle_y",
    "circle_z",
)
WIDTH = WORDS + len(TRAITS)  # numbers of an interest

NOISE = {
    "wrong_colour_word": 0.05,
    "wrong_pattern_word": 0.03,
    "attribute_missing": 0.08,
    "image_missing": 0.04,
    "title_missing": 0.03,
    "description_missing": 0.10,
}
ARRIVING = 0.25  # fraction of products that appear during the log


@dataclass(frozen=True)
class Catalogue:
    """True properties of N items; rows are ordered by (leaf, first_seen), which slate sampling relies on.

    Attributes:
        item_id: int64 (N), a random permutation, so that ids reveal neither order nor age.
        facet: int64 (N, 6), value indices of FACETS in its order; the true values.
        word: like ``facet``, with the text's errors in colour and pattern; used in title and attributes.
        listed: bool (N, 6), mask of the facets in the item's attributes.
        elongation, density, background: float64 (N), see ``drawing.Look``.
        trait: float32 (N, 8), TRAITS as tastes weight them.
        price: float32 (N), in the shop's own currency.
        spu: int64 (N).
        first_seen_us: int64 (N), microseconds since 1970 UTC.
        quality: float32 (N), appeal that is not visible in the content, in log-odds.
        popularity: float64 (N), relative rate at which the shop shows it.
    """

    item_id: np.ndarray
    facet: np.ndarray
    word: np.ndarray
    listed: np.ndarray
    elongation: np.ndarray
    density: np.ndarray
    background: np.ndarray
    trait: np.ndarray
    price: np.ndarray
    spu: np.ndarray
    first_seen_us: np.ndarray
    quality: np.ndarray
    popularity: np.ndarray

    def __len__(self) -> int:
        return len(self.item_id)

    def properties(self) -> np.ndarray:
        """What an interest weighs: one-hot facets, then traits, float32 (N, WIDTH)."""
        hot = np.zeros((len(self), WORDS), dtype=np.float32)
        np.put_along_axis(hot, self.facet + np.array(list(FACET_START.values())), 1, axis=1)
        return np.concatenate([hot, self.trait], axis=1)

    def look(self, row: int, background: float | None = None) -> Look:
        """What the picture of the item in this row shows; ``background`` replaces its own backdrop."""
        leaf, colour, pattern = (int(value) for value in self.facet[row, :3])
        return Look(
            shape=LEAVES[leaf],
            colour=FACETS["colour"][colour],
            pattern=PATTERNS[pattern],
            density=float(self.density[row]),
            elongation=float(self.elongation[row]),
            background=float(self.background[row]) if background is None else background,
        )


def _misread(rng: np.random.Generator, true: np.ndarray, choices: int, rate: float) -> np.ndarray:
    """Replace a fraction ``rate`` of the values by another of the ``choices``."""
    other = (true + rng.integers(1, choices, size=len(true))) % choices
    return np.where(rng.random(len(true)) < rate, other, true)


def make_catalogue(items: int, rng: np.random.Generator, circles: bool = False) -> Catalogue:
    """Generate at least ``items`` items: products of 1 to 4 variants that differ in colour, pattern and picture.

    Every leaf category has a product from the start; a quarter of the others appears during the log.

    Args:
        items: how many.
        rng: of everything.
        circles: whether products belong to circles; else the traits of the circle are 0.
    """
    variants = rng.choice([1, 2, 3, 4], p=[0.35, 0.3, 0.2, 0.15], size=items)
    products = max(int(np.searchsorted(np.cumsum(variants), items)) + 1, 2 * len(LEAVES))
    variants = np.resize(variants, products)
    product = np.repeat(np.arange(products), variants)
    n = len(product)

    leaf = np.arange(products) % len(LEAVES)
    tops = list(TREE)
    material_number = np.array([[MATERIALS.index(name) for name in MATERIALS_OF[top]] for top in tops])
    top = np.array([tops.index(TOP_OF[name]) for name in LEAVES])[leaf]
    material = material_number[top, rng.integers(0, material_number.shape[1], size=products)]
    brand = rng.integers(0, len(BRANDS), size=products)
    style = rng.integers(0, len(STYLES), size=products)
    elongation = rng.uniform(-1, 1, size=products)
    late = (rng.random(products) < ARRIVING) & (np.arange(products) >= 2 * len(LEAVES))
    born = np.where(late, rng.uniform(0, DAYS - 1, size=products), -rng.uniform(1, 180, size=products))

    colour_shift = np.concatenate([np.arange(count) for count in variants])  # variants differ in colour
    colour = (rng.integers(0, len(COLOURS), size=products)[product] + 3 * colour_shift) % len(COLOURS)
    pattern = rng.choice(len(PATTERNS), p=[0.28, 0.2, 0.18, 0.17, 0.17], size=n)
    density = rng.uniform(-1, 1, size=n)
    background = rng.random(n)
    log_price = (
        rng.normal(3.2, 0.25, size=len(LEAVES))[leaf] + rng.normal(0, 0.35, size=len(BRANDS))[brand]
    )[product] + rng.normal(0, 0.15, size=n)
    quality = rng.normal(0, 0.3, size=n)
    facet = np.stack(
        [leaf[product], colour, pattern, material[product], brand[product], style[product]], axis=1
    )
    word = facet.copy()
    word[:, 1] = _misread(rng, colour, len(COLOURS), NOISE["wrong_colour_word"])
    word[:, 2] = _misread(rng, pattern, len(PATTERNS), NOISE["wrong_pattern_word"])
    listed = rng.random((n, len(FACETS))) >= NOISE["attribute_missing"]
    listed[:, 0] = False  # the leaf is the category path
    first_seen_us = START_US + (born[product] * DAY_US).astype(np.int64)
    trait = np.stack(
        [
            np.cos(2 * np.pi * background),
            np.sin(2 * np.pi * background),
            elongation[product],
            density * (pattern != PATTERNS.index("plain")),
            (log_price - log_price.mean()) / log_price.std(),
            *np.zeros((3, n)),
        ],
        axis=1,
    )
    order = np.lexsort((first_seen_us, facet[:, 0]))
    item_id, popularity = 10_000 + rng.permutation(n), np.exp(rng.normal(0, 0.8, size=n) + quality)
    if circles:  # drawn last: the rest of the catalogue is the same without them
        point = rng.normal(size=(products, 3))
        trait[:, -3:] = (point / np.linalg.norm(point, axis=1, keepdims=True))[product]
    columns = {
        "item_id": item_id,
        "facet": facet,
        "word": word,
        "listed": listed,
        "elongation": elongation[product],
        "density": density,
        "background": background,
        "trait": trait.astype(np.float32),
        "price": np.round(np.exp(log_price), 2).astype(np.float32),
        "spu": 500 + product,
        "first_seen_us": first_seen_us,
        "quality": quality.astype(np.float32),
        "popularity": popularity,
    }
    return Catalogue(**{name: column[order] for name, column in columns.items()})


def _title(words: dict[str, str], mention: np.ndarray) -> str:
    """E.g. ``"Norvik classic red striped mug"``; colour and pattern are not always mentioned."""
    parts = [words["brand"], words["style"]]
    if mention[0] < 0.85:
        parts.append(words["colour"])
    if mention[1] < 0.85 and words["pattern"] != "plain":
        parts.append(words["pattern"])
    return " ".join([*parts, words["leaf"]])


_DESCRIPTIONS = (
    "A {style} {leaf} made of {material}.",
    "{style} {leaf} by {brand}, in {material}.",
    "{material} {leaf} for every day.",
)


def items_table(catalogue: Catalogue, image_ids: list[str | None], rng: np.random.Generator) -> pa.Table:
    """The items with their texts as an ITEMS table, ordered by item_id."""
    n = len(catalogue)
    mention = rng.random((n, 2))
    wording = rng.integers(0, len(_DESCRIPTIONS), size=n)
    no_title = rng.random(n) < NOISE["title_missing"]
    no_description = rng.random(n) < NOISE["description_missing"]
    titles: list[str | None] = []
    descriptions: list[str | None] = []
    categories, attributes = [], []
    for row, numbers in enumerate(catalogue.word.tolist()):
        words = {name: values[number] for (name, values), number in zip(FACETS.items(), numbers, strict=True)}
        titles.append(None if no_title[row] else _title(words, mention[row]))
        sentence = _DESCRIPTIONS[wording[row]].format(**words)
        descriptions.append(None if no_description[row] else sentence[0].upper() + sentence[1:])
        categories.append([TOP_OF[words["leaf"]], words["leaf"]])
        attributes.append(
            [
                (name, words[name])
                for name, listed in zip(FACETS, catalogue.listed[row], strict=True)
                if listed
            ]
        )
    columns = {
        "item_id": pa.array(catalogue.item_id, pa.int64()),
        "external_id": pa.array(map(str, catalogue.item_id.tolist())),
        "title": pa.array(titles, pa.string()),
        "description": pa.array(descriptions, pa.string()),
        "category": pa.array(categories, ITEMS.field("category").type),
        "attributes": pa.array(attributes, ITEMS.field("attributes").type),
        "price": pa.array(catalogue.price, pa.float32()),
        "spu": pa.array(catalogue.spu, pa.int64()),
        "image_id": pa.array(image_ids, pa.string()),
        "first_seen": pa.array(catalogue.first_seen_us, pa.int64()).cast(TIME),
    }
    return pa.table(columns, schema=ITEMS).take(pa.array(np.argsort(catalogue.item_id)))


def item_pictures(
    catalogue: Catalogue, seeds: np.random.SeedSequence, missing: np.ndarray
) -> list[bytes | None]:
    """Draw a picture of every item except the ``missing`` (bool, N), each from its own random stream."""
    pictures: list[bytes | None] = []
    for row, seed in enumerate(track(seeds.spawn(len(catalogue)), "draw items", unit="pictures")):
        pictures.append(None if missing[row] else draw(catalogue.look(row), np.random.default_rng(seed)))
    return pictures


def query_pictures(catalogue: Catalogue, rows: np.ndarray, seeds: np.random.SeedSequence) -> list[bytes]:
    """Query pictures of the items in ``rows``: another backdrop, rotated, smaller, noisier."""
    pictures = []
    for row, seed in zip(
        track(rows.tolist(), "draw queries", unit="pictures"), seeds.spawn(len(rows)), strict=True
    ):
        rng = np.random.default_rng(seed)
        across, down = rng.uniform(-0.12, 0.12, size=2)
        camera = Camera(rng.uniform(-0.35, 0.35), rng.uniform(0.7, 0.95), (across, down), rng.uniform(6, 16))
        pictures.append(draw(catalogue.look(row, background=rng.random()), rng, camera))
    return pictures


def images_table(pictures: list[bytes]) -> pa.Table:
    """The distinct pictures as an IMAGES table, ordered by content hash."""
    by_id = {content_hash(picture): picture for picture in pictures}
    ids = sorted(by_id)
    side = [SIDE_PX] * len(ids)
    columns = [ids, [by_id[key] for key in ids], side, side]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, IMAGES, strict=True)], schema=IMAGES
    )
