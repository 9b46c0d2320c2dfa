"""Illustrations of an encoder: attention, nearest neighbours, and maps of the items.

Everything here is data for ``evaluation.science.encoders.report``; only attention over pictures is drawn here.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import build_backbone, small_config
from encoder.content import ATTRIBUTE, CATEGORY, DESCRIPTION, TITLE, Content
from encoder.encode import Encoder
from encoder.pictures.decode import decode_image
from encoder.tokenizer import load_tokenizer, special_ids
from evaluation.encoder_tasks import Truth
from evaluation.report import Tile
from evaluation.science.encoders.embedding_map import NEIGHBOURS, Map, embedding_map
from evaluation.science.encoders.exam import Exam
from evaluation.science.encoders.heat import ContentHeat, content_heat
from run.artifacts import Artifact
from run.sizes import recorded

HEATED, AVERAGED = 5, 100  # items shown with their attention, and items over which attention is averaged
QUERIES, FOUND = 3, 10  # queries of each kind, and tiles per row
HEAT, OPAQUE = (226, 84, 28), 180  # tint, and its strongest opacity of 255
HEAT_PX = 160
FIELDS = {TITLE: "title", CATEGORY: "category", ATTRIBUTE: "attributes", DESCRIPTION: "description"}


@dataclass(frozen=True)
class HeatSide:
    """The attention of one encoder for one item.

    Attributes:
        name: "before" or "after" training.
        picture: with its patches tinted, JPEG; None without one.
        fraction: fraction of attention on the picture.
        words: (word, fraction, strength of its tint in 0..1).
    """

    name: str
    picture: bytes | None
    fraction: float
    words: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Heated:
    """One item with its attention before and after training."""

    title: str
    sides: list[HeatSide]


@dataclass(frozen=True)
class Pictures:
    """Illustrations of trained encoders for the page.

    Attributes:
        heat_of: the encoder whose attention is shown; "" if all are dual.
        heat: attention on a few items, before and after training.
        fractions: part of an item -> "before" and "after" -> mean fraction of attention, over ``averaged`` items.
        averaged: number of items.
        maps: maps of the pool by two encoders; empty without a pool or a category.
        sheets: (query, encoder -> nearest candidates).
        shown: most tiles in a row.
    """

    heat_of: str
    heat: Sequence[Heated]
    fractions: Mapping[str, Mapping[str, float]]
    averaged: int
    maps: Sequence[Map]
    sheets: Sequence[tuple[Tile, Mapping[str, Sequence[Tile]]]]
    shown: int = FOUND


def take_pictures(exam: Exam, trained: Mapping[str, Artifact], shipped: str, baseline: str) -> Pictures:
    """All illustrations of a comparison.

    Args:
        exam: the benchmark's contents and ground truth.
        trained: encoder -> artifact.
        shipped, baseline: the encoders to be mapped; attention is shown for ``shipped``, or else the first encoder
            that is not dual.
    """
    candidates, asked = ask(exam)
    category = next((one for one in exam.facets.labels if one.name.startswith("category_")), None)
    rows: list[dict[str, list[Tile]]] = [{} for _ in asked]
    maps = []
    for name, artifact in trained.items():
        encoder = Encoder.open(artifact)
        candidate_ND = encoder.encode(candidates)
        query_QD = encoder.encode([question.content for question in asked])
        for row, tiles in zip(rows, find(query_QD, candidate_ND, candidates, asked), strict=True):
            row[name] = tiles
        if name in (shipped, baseline) and category is not None and len(exam.pool["item"]) > NEIGHBOURS:
            maps.append(embedding_map(name, candidate_ND, category))
    parts = {name: Parts(**one.config["parts"]) for name, one in trained.items()}
    single = [name for name, one in parts.items() if not (one.dual or one.towers)]
    heat_of = min(single, key=lambda name: name != shipped, default="")
    sides = {}
    if heat_of:
        sides = {"before": untrained(trained[heat_of]), "after": Encoder.open(trained[heat_of])}
    drawn = np.random.default_rng(1).permutation(len(candidates)).tolist()
    return Pictures(
        heat_of=heat_of,
        heat=heated(sides, [candidates[row] for row in drawn[:HEATED]]) if sides else (),
        fractions=attention_fractions(sides, [candidates[row] for row in drawn[:AVERAGED]]),
        averaged=min(AVERAGED, len(candidates)),
        maps=maps,
        sheets=[(question.tile, found) for question, found in zip(asked, rows, strict=True)],
    )


def untrained(artifact: Artifact) -> Encoder:
    """The encoder as it was before training: same recipe, seed and tokenizer, initial weights.

    Args:
        artifact: of kind ``encoder``, trained from random weights, not the dual baseline.
    """
    config = artifact.config
    size, parts = recorded(config["size"]), Parts(**config["parts"])
    tokenizer = load_tokenizer(artifact.path)
    shape = small_config(size.hidden, size.layers, size.image_px, len(tokenizer), special_ids(tokenizer))
    backbone = build_backbone(shape, size.image_px, config["seed"])
    model = assemble(backbone, parts, size.item_width, config["seed"])
    return Encoder(artifact, model, tokenizer, size.text_tokens, parts)


def heated(encoders: Mapping[str, Encoder], contents: Sequence[Content]) -> list[Heated]:
    """Attention over picture and words by each encoder; one colour scale for an item's patches, one for its words."""
    shown = []
    for content in contents:
        heats = {name: content_heat(encoder, content) for name, encoder in encoders.items()}
        hottest = max(heat.patches.max(initial=0) for heat in heats.values())
        loudest = max((fraction for heat in heats.values() for _, _, fraction in heat.words), default=1.0)
        sides = [
            HeatSide(
                name,
                heat_picture(content.image, heat.patches / hottest) if content.image else None,
                float(heat.patches.sum()),
                [(word, fraction, fraction / loudest) for word, _, fraction in heat.words],
            )
            for name, heat in heats.items()
        ]
        shown.append(Heated(content.text or "(no title)", sides))
    return shown


def heat_picture(image: bytes, strength: np.ndarray) -> bytes:
    """The picture in grey with its patches tinted, as JPEG: the square the encoder sees.

    Args:
        image: encoded picture.
        strength: float (G, G) in 0..1, opacity of the tint; interpolated between patches.
    """
    picture = Image.fromarray(decode_image(image, HEAT_PX)).convert("L").convert("RGB")
    opacity = Image.fromarray((OPAQUE * strength).astype(np.uint8)).resize(
        picture.size, Image.Resampling.BILINEAR
    )
    picture.paste(Image.new("RGB", picture.size, HEAT), mask=opacity)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()


def attention_fractions(
    encoders: Mapping[str, Encoder], contents: Sequence[Content]
) -> dict[str, dict[str, float]]:
    """Mean fraction of attention: part of an item -> encoder -> fraction, without parts that have none."""
    found: dict[str, dict[str, float]] = {}
    for name, encoder in encoders.items():
        total: Counter[str] = Counter()
        for content in contents:
            total.update(_by_part(content_heat(encoder, content)))
        for part, fraction in total.items():
            found.setdefault(part, {})[name] = fraction / len(contents)
    return {part: fractions for part, fractions in found.items() if any(fractions.values())}


def _by_part(heat: ContentHeat) -> dict[str, float]:
    parts = {
        "picture": float(heat.patches.sum()),
        "core region": heat.region,
        "picture markers": heat.markers,
    }
    for name in FIELDS.values():
        parts[name] = 0.0
    for _, kind, fraction in heat.words:
        parts[FIELDS[kind]] += fraction
    return parts


@dataclass(frozen=True)
class Question:
    """One query of the sheets.

    Attributes:
        tile: how it is shown on the page.
        content: what the encoder encodes.
        relevant: rows of the relevant candidates.
    """

    tile: Tile
    content: Content
    relevant: frozenset[int]


def ask(exam: Exam) -> tuple[list[Content], list[Question]]:
    """The candidates of the sheets and a few queries, the same for every encoder.

    Queries are pictures, then titles of held-out items, preferably with variants; relevant are the item and its
    variants. Where no item is held out, queries are held-out searches and candidates the judged items.
    """
    rng = np.random.default_rng(0)
    candidates = exam.pool["item"]
    if not candidates:
        drawn = rng.permutation(len(exam.queries))[: 2 * QUERIES].tolist()
        tiles = [(row, _tile(exam.queries[row], exam.kind[row].replace("_", " "))) for row in drawn]
        return exam.candidates, [
            Question(tile, exam.queries[row], _relevant(exam.found, row)) for row, tile in tiles
        ]
    alone = np.diff(exam.same_product.offsets) == 0
    drawn = sorted(rng.permutation(len(candidates)).tolist(), key=alone.__getitem__)
    asked = []
    for place, row in enumerate(drawn[: 2 * QUERIES]):
        view, caption = ("image", "by its picture") if place < QUERIES else ("title", "by its title")
        content = exam.pool[view][row]
        tile = Tile(candidates[row].text or "", content.image, caption)
        asked.append(Question(tile, content, _relevant(exam.same_product, row) | {row}))
    return candidates, asked


def _relevant(truth: Truth, row: int) -> frozenset[int]:
    return frozenset(truth.rows[truth.offsets[row] : truth.offsets[row + 1]].tolist())


def _tile(content: Content, caption: str, hit: bool = False) -> Tile:
    return Tile(content.text or "", content.image, caption, hit)


def find(
    query_QD: np.ndarray, candidate_ND: np.ndarray, candidates: Sequence[Content], asked: Sequence[Question]
) -> list[list[Tile]]:
    """The nearest candidates of each question, best first, with their cosine; relevant ones are hits."""
    rows = np.argsort(-(query_QD @ candidate_ND.T), axis=1, kind="stable")[:, :FOUND]
    return [
        [
            _tile(candidates[row], f"{query @ candidate_ND[row]:.2f}", row in question.relevant)
            for row in nearest.tolist()
        ]
        for question, query, nearest in zip(asked, query_QD, rows, strict=True)
    ]
