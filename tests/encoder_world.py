"""A tiny shop for encoder tests: pictures are a colour and a shape, words say which, users like a colour."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from dataset.contracts import (
    EVENTS,
    IMAGES,
    ITEMS,
    JUDGEMENTS,
    QUARANTINE,
    QUERIES,
    USERS,
    Tables,
    content_hash,
)
from dataset.split import Split, split_dataset
from dataset.tables import Dataset, write_dataset
from run.sizes import size

START = datetime(2024, 1, 1, tzinfo=UTC)
COLOURS = {
    "red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (230, 210, 30),
    "black": (15, 15, 15), "pink": (240, 130, 190), "orange": (240, 130, 20), "purple": (120, 40, 160),
}  # fmt: skip
SHAPES = ("disc", "square", "triangle", "bar", "ring", "cross")
TINY = replace(
    size("nano"), item_width=32, hidden=32, layers=1, image_px=16, text_tokens=16, id_width=8, history=10
)


def png(colour: str, shape: str, px: int = 32, jitter: int = 0) -> bytes:
    """A picture of one shape in one colour on white."""
    picture = Image.new("RGB", (px, px), "white")
    draw, low, high = ImageDraw.Draw(picture), px // 6 + jitter, px - px // 6 + jitter
    middle, fill = (low + high) // 2, COLOURS[colour]
    if shape == "disc":
        draw.ellipse([low, low, high, high], fill=fill)
    elif shape == "square":
        draw.rectangle([low, low, high, high], fill=fill)
    elif shape == "triangle":
        draw.polygon([(low, high), (high, high), (middle, low)], fill=fill)
    elif shape == "bar":
        draw.rectangle([low, middle - px // 9, high, middle + px // 9], fill=fill)
    elif shape == "ring":
        draw.ellipse([low, low, high, high], outline=fill, width=px // 8)
    else:
        draw.rectangle([low, middle - px // 10, high, middle + px // 10], fill=fill)
        draw.rectangle([middle - px // 10, low, middle + px // 10, high], fill=fill)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def item_row(
    item_id: int, colour: str, shape: str, image: bytes | None, **changes: object
) -> dict[str, object]:
    """A row of ITEMS."""
    row = {
        "item_id": item_id, "external_id": str(item_id), "title": f"{colour} {shape}", "description": None,
        "category": ["shapes", shape], "attributes": [("colour", colour)], "price": 1.0, "spu": item_id,
        "image_id": None if image is None else content_hash(image), "first_seen": START,
    }  # fmt: skip
    return {**row, **changes}


def event(event_id: int, user: int, item: int, at: datetime, **changes: object) -> dict[str, object]:
    """A row of EVENTS: a purchase unless changed."""
    row = {
        "event_id": event_id, "user_id": user, "item_id": item, "type": "purchase", "event_time": at,
        "available_time": at + timedelta(seconds=1), "query_id": None, "position": None, "request_id": None,
        "value": None,
    }  # fmt: skip
    return {**row, **changes}


def shop(folder: Path, items: int = 48, seed: int = 0) -> tuple[Dataset, Split]:
    """A written dataset and split: ``items`` shapes, users who click one colour, queries by colour."""
    rng = np.random.default_rng(seed)
    colours, pictures, rows = list(COLOURS), {}, []
    for item_id in range(items):
        colour, shape = colours[item_id % 8], SHAPES[item_id // 8 % 6]
        image = png(colour, shape, jitter=int(rng.integers(-2, 3)))
        pictures[content_hash(image)] = image
        rows.append(item_row(item_id, colour, shape, None if item_id % 12 == 11 else image))
    events = [
        event(
            n, user, int(rng.integers(items // 8)) * 8 + user % 8, START + timedelta(hours=user, minutes=step)
        )
        for n, (user, step) in enumerate((u, s) for u in range(40) for s in range(4))
    ]
    events = [
        {**e, "query_id": e["item_id"] % 8 if e["event_id"] % 3 == 0 else None, "type": "click"}
        for e in events
    ]
    queries = [{"query_id": n, "text": colour, "image_id": None} for n, colour in enumerate(colours)]
    users = [
        {"user_id": u, "external_id": str(u), "age": None, "segment": None, "first_seen": START}
        for u in range(40)
    ]
    images = [{"image_id": k, "bytes": v, "width": 32, "height": 32} for k, v in pictures.items()]
    tables = Tables(
        items=pa.Table.from_pylist(rows, ITEMS),
        images=pa.Table.from_pylist(images, IMAGES),
        users=pa.Table.from_pylist(users, USERS),
        events=pa.Table.from_pylist(events, EVENTS),
        queries=pa.Table.from_pylist(queries, QUERIES),
        judgements=JUDGEMENTS.empty_table(),
        quarantine=QUARANTINE.empty_table(),
    )
    dataset = Dataset.open(write_dataset(folder / "dataset", tables, {"name": "shapes", "source": "test"}))
    return dataset, Split.open(split_dataset(dataset, folder / "split", "time"))
