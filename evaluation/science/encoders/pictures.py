"""Pictures of an encoder: what its vectors attend to, what it finds nearest, and how it lays the items out.

Everything here is data for ``evaluation.science.encoders.report``; nothing is drawn but the heat over a picture.
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

HEATED, SHARED = 5, 100  # items shown with their heat, and items whose shares are averaged
QUERIES, FOUND = 3, 10  # of each kind, and tiles per row
HEAT, OPAQUE = (226, 84, 28), 180  # tint, and its strongest opacity of 255
HEAT_PX = 160
FIELDS = {TITLE: "title", CATEGORY: "category", ATTRIBUTE: "attributes", DESCRIPTION: "description"}


@dataclass(frozen=True)
class HeatSide:
    """The attention of one encoder for one item.

    Attributes:
        name: "before" or "after" training.
        picture: with its patches tinted, JPEG; None without one.
        share: of attention that goes to the picture.
        words: (word, share, strength of its tint in 0..1).
    """

    name: str
    picture: bytes | None
    share: float
    words: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Heated:
    """One item with its attention before and after training."""

    title: str
    sides: list[HeatSide]


@dataclass(frozen=True)
class Pictures:
    """What the page shows of trained encoders.

    Attributes:
        heat_of: the encoder whose attention is shown; "" where all are dual.
        heat: a few items, before and after its training.
        shares: part of an item -> "before" and "after" -> mean share of attention, over ``shared`` items.
        shared: how many.
        maps: the pool as two encoders lay it out; empty without a pool or a category.
        sheets: query, and encoder -> what it finds.
        shown: most tiles in a row.
    """

    heat_of: str
    heat: Sequence[Heated]
    shares: Mapping[str, Mapping[str, float]]
    shared: int
    maps: Sequence[Map]
    sheets: Sequence[tuple[Tile, Mapping[str, Sequence[Tile]]]]
    shown: int = FOUND


def take_pictures(exam: Exam, trained: Mapping[str, Artifact], shipped: str, baseline: str) -> Pictures:
    """All pictures of a comparison.

    Args:
        exam: what every encoder was asked.
        trained: encoder -> artifact.
        shipped, baseline: the encoders to be mapped; the attention of ``shipped`` is shown, or of the first
            encoder that has one.
    """
    candidates, asked = ask(exam)
    category = next((one for one in exam.questions if one.name.startswith("category_")), None)
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
    single = [name for name, one in trained.items() if not Parts(**one.config["parts"]).dual]
    heat_of = min(single, key=lambda name: name != shipped, default="")
    sides = {}
    if heat_of:
        sides = {"before": untrained(trained[heat_of]), "after": Encoder.open(trained[heat_of])}
    drawn = np.random.default_rng(1).permutation(len(candidates)).tolist()
    return Pictures(
        heat_of=heat_of,
        heat=heated(sides, [candidates[row] for row in drawn[:HEATED]]) if sides else (),
        shares=attention_shares(sides, [candidates[row] for row in drawn[:SHARED]]),
        shared=min(SHARED, len(candidates)),
        maps=maps,
        sheets=[(question.tile, found) for question, found in zip(asked, rows, strict=True)],
    )


def untrained(artifact: Artifact) -> Encoder:
    """The encoder as it was before its first step: its recipe and seed, its tokenizer, fresh weights.

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
    """Heat over picture and words by each encoder; the patches of an item share one scale, its words another."""
    shown = []
    for content in contents:
        heats = {name: content_heat(encoder, content) for name, encoder in encoders.items()}
        hottest = max(heat.patches.max(initial=0) for heat in heats.values())
        loudest = max((share for heat in heats.values() for _, _, share in heat.words), default=1.0)
        sides = [
            HeatSide(
                name,
                heat_picture(content.image, heat.patches / hottest) if content.image else None,
                float(heat.patches.sum()),
                [(word, share, share / loudest) for word, _, share in heat.words],
            )
            for name, heat in heats.items()
        ]
        shown.append(Heated(content.text or "(no title)", sides))
    return shown


def heat_picture(image: bytes, strength: np.ndarray) -> bytes:
    """The picture in grey with its patches tinted, as JPEG: the square the encoder sees.

    Args:
        image: encoded picture.
        strength: float (G, G) in 0..1, opacity of the tint; drawn smooth, though a patch is the finest there is.
    """
    picture = Image.fromarray(decode_image(image, HEAT_PX)).convert("L").convert("RGB")
    opacity = Image.fromarray((OPAQUE * strength).astype(np.uint8)).resize(
        picture.size, Image.Resampling.BILINEAR
    )
    picture.paste(Image.new("RGB", picture.size, HEAT), mask=opacity)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()


def attention_shares(
    encoders: Mapping[str, Encoder], contents: Sequence[Content]
) -> dict[str, dict[str, float]]:
    """Mean share of attention by what a token tells of: part -> encoder -> share; parts without any left out."""
    found: dict[str, dict[str, float]] = {}
    for name, encoder in encoders.items():
        total: Counter[str] = Counter()
        for content in contents:
            total.update(_by_part(content_heat(encoder, content)))
        for part, share in total.items():
            found.setdefault(part, {})[name] = share / len(contents)
    return {part: shares for part, shares in found.items() if any(shares.values())}


def _by_part(heat: ContentHeat) -> dict[str, float]:
    parts = {
        "picture": float(heat.patches.sum()),
        "core region": heat.region,
        "picture markers": heat.markers,
    }
    for name in FIELDS.values():
        parts[name] = 0.0
    for _, kind, share in heat.words:
        parts[FIELDS[kind]] += share
    return parts


@dataclass(frozen=True)
class Question:
    """One query of the sheets.

    Attributes:
        tile: how it is shown.
        content: what the encoder sees.
        relevant: rows of the candidates it should find.
    """

    tile: Tile
    content: Content
    relevant: frozenset[int]


def ask(exam: Exam) -> tuple[list[Content], list[Question]]:
    """The candidates of the sheets and a few queries, alike for every encoder.

    The pool of held-out items is asked for by picture, then by title; relevant are the item and its variants,
    items with variants come first. Where no item is held out the judged items are asked for by held-out searches.
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
