"""Small data of every kind that may be missing something, and the whole journey on them in this process."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from conftest import START
from PIL import Image

from dataset.adapters.canonical import event_table, image_table, under, user_table
from dataset.contracts import (
    EVENTS,
    ITEMS,
    JUDGEMENTS,
    QUARANTINE,
    QUERIES,
    TIME,
    USERS,
    Tables,
    content_hash,
)
from dataset.tables import write_dataset
from encoder.train import train_encoder
from feature_repo.create import create_store
from moon import stages
from moonstore.files import write_json
from run.folder import Run, choices

ITEM_COUNT, USER_COUNT, GROUPS = 60, 40, 4
COLOURS = ((200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 180, 20))
WORDS = ("red round mug", "green tall vase", "blue flat plate", "yellow deep bowl")


def group_of(item: int) -> int:
    """What an item is, as its picture, its words and its users tell."""
    return item % GROUPS


def picture(item: int) -> bytes:
    """A square in the colour of the item's group, each a little different."""
    shade = np.clip(np.array(COLOURS[group_of(item)]) + item % 13 - 6, 0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(np.tile(shade, (32, 32, 1))).save(content, "PNG")
    return content.getvalue()


def items_of(text: bool, pictures: bool, count: int = ITEM_COUNT) -> tuple[pa.Table, pa.Table]:
    """ITEMS and IMAGES; ids only, unless they have text or pictures."""
    ids = np.arange(1, count + 1)
    shown = [picture(int(item)) for item in ids] if pictures else []
    columns = {
        "item_id": pa.array(ids),
        "external_id": pa.array([f"sku-{item}" for item in ids]),
        "spu": pa.array((ids - 1) // 8 * 4 + ids % 4 + 1000),  # two variants of a product are of one group
        "first_seen": pa.array([START + timedelta(minutes=int(item)) for item in ids], TIME),
    }
    if text:
        columns["title"] = pa.array([f"{WORDS[group_of(int(item))]} {item}" for item in ids])
    if pictures:
        columns["image_id"] = pa.array([content_hash(one) for one in shown])
    return under(ITEMS, columns), image_table(shown)


def events_of(
    kinds: tuple[str, ...], users: int = USER_COUNT, each: int = 10, count: int = ITEM_COUNT
) -> pa.Table:
    """Every user acts on items of one group, with one exception in five, over some days; ratings say which is which.

    Impressions are slates of four, of which the item acted on is one.
    """
    rng, rows = np.random.default_rng(0), []
    ids = np.arange(1, count + 1)
    for place in range(each):
        for user in range(1, users + 1):
            liked = rng.random() < 0.8
            pool = ids[(ids % GROUPS == user % GROUPS) == liked]
            item = int(rng.choice(pool))
            moment = START + timedelta(days=1 + place, minutes=user)
            if "impression" in kinds:
                request = place * users + user
                for other in rng.choice(np.setdiff1d(ids, [item]), 3, replace=False).tolist():
                    rows.append((user, other, "impression", moment, request, None))
                rows.append((user, item, "impression", moment, request, None))
                rows.append((user, item, "click", moment + timedelta(seconds=30), request, None))
            elif "rating" in kinds:
                rows.append((user, item, "rating", moment, None, 5.0 if liked else 1.0))
            else:
                rows.append((user, item, kinds[place % len(kinds)], moment, None, None))
    user, item, kind, moment, request, value = (list(column) for column in zip(*rows, strict=True))
    return event_table(
        pa.array(kind), pa.array(user), pa.array(item), pa.array(moment, TIME),
        request=pa.array(request, pa.int64()), value=pa.array(value, pa.float32()),
    )  # fmt: skip


def tables_of(events: pa.Table | None, text: bool = True, pictures: bool = True) -> Tables:
    """A dataset of these events and of items that have, or have not, text and pictures."""
    items, images = items_of(text, pictures)
    events = EVENTS.empty_table() if events is None else events
    users = user_table(events) if len(events) else USERS.empty_table()
    empty = (QUERIES.empty_table(), JUDGEMENTS.empty_table(), QUARANTINE.empty_table())
    return Tables(items, images, users, events, *empty)


def travel(folder: Path, tables: Tables, split: str | None = None, budget: float = 0.3) -> Run:
    """The whole journey, as ``moon demo`` goes it, with a part of the encoder's training."""
    run = Run(folder, "made", "nano", 0, "embedded", split)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", choices(run))
    write_dataset(folder / "dataset", tables, {"name": "made", "source": "made"})
    stages.split(run)
    dataset, cut = stages.open_dataset(run), stages.open_split(run)
    create_store(folder / "store", dataset, cut)
    train_encoder(dataset, cut, run.size, folder / "encoder", budget=budget)
    for stage in (
        stages.embed,
        stages.materialize,
        stages.retrieval,
        stages.ranker,
        stages.daily,
        stages.evaluate,
        stages.publish,
    ):
        stage(run)
    return run
