"""Small folders of the published click layouts, with a planted taste: who likes what is in vectors and histories.

Every item is of a group, which its vector tells; every user likes a group, which the history tells. The chance of a
click is LIKED or OTHER, so the best possible AUC is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.auc import auc

GROUPS, WIDTH = 4, 8
LIKED, OTHER = 0.75, 0.1


@dataclass
class Sample:
    """One row of a click table, and how likely it was to be a click."""

    user: int
    item: int
    seen: list[int]  # the history, oldest first
    clicked: bool
    chance: float
    part: str


@dataclass
class World:
    """What a layout is written from; items are numbered from 1, users from 0."""

    group: np.ndarray  # of each item, and of item 0, which is padding
    vector: np.ndarray  # float32 (items + 1, WIDTH)
    history: list[list[int]]  # all behaviours of each user
    samples: list[Sample]

    def part(self, name: str) -> list[Sample]:
        return [one for one in self.samples if one.part == name]

    @property
    def best_auc(self) -> float:
        """Of the test, by the true chances."""
        tests = self.part("test")
        return auc(np.array([one.clicked for one in tests]), np.array([one.chance for one in tests]))


def world(users: int, items: int = 200, each: int = 20, behaviours: int = 8, seed: int = 0) -> World:
    """Every click becomes the user's next behaviour; of a user's samples the last fifths validate and test."""
    rng = np.random.default_rng(seed)
    group = np.append(0, rng.integers(0, GROUPS, items))
    centre = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:GROUPS]
    vector = (centre[group] + 0.1 * rng.normal(size=(items + 1, WIDTH))).astype(np.float32)
    every, samples, histories = np.arange(1, items + 1), [], []
    for user in range(users):
        liked = every[group[1:] == user % GROUPS]
        seen = [int(rng.choice(liked if rng.random() < 0.85 else every)) for _ in range(behaviours)]
        for place in range(each):
            item = int(rng.choice(every))
            chance = LIKED if group[item] == user % GROUPS else OTHER
            clicked = bool(rng.random() < chance)
            part = ("train", "train", "train", "valid", "test")[place * 5 // each]
            samples.append(Sample(user, item, list(seen), clicked, chance, part))
            seen += [item] if clicked else []
        histories.append(seen)
    return World(group, vector, histories, samples)


def write(folder: Path, name: str, columns: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def longctr(folder: Path, made: World) -> None:
    """As LongCTR publishes MicroVideo, and a column of the samples that says something of users."""
    for part in ("train", "valid", "test"):
        rows = made.part(part)
        write(
            folder,
            part,
            {
                "user_index": [one.user for one in rows],
                "item_index": [one.item for one in rows],
                "seq_len": [len(one.seen) for one in rows],
                "is_click": [float(one.clicked) for one in rows],
                "device_type": [str(len(one.seen) % 3) for one in rows],
                "gender": ["fm"[one.user % 2] for one in rows],
            },
        )
    users = np.arange(len(made.history))
    write(folder, "user_info", {"user_index": users, "full_item_seq": made.history})
    items = np.roll(np.arange(len(made.group)), -1)  # padding last
    write(
        folder,
        "item_info",
        {
            "item_index": items,
            "item_id": items % 7,
            "cate_id": items % 5,
            "image_emb_dim64": list(made.vector[items]),
        },
    )


def signed(number: int) -> int:
    """The ids of TAOBAO-MM are 64 bits with a sign."""
    return (number * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63


def taobao_mm(folder: Path, made: World, catalogue: int | None = None) -> None:
    """As TAOBAO-MM publishes it: candidates of a user share one history; only ``catalogue`` items have features."""
    for part in ("train", "test"):
        rows = [one for one in made.samples if one.part == part]
        write(
            folder,
            f"{part}_samples",
            {
                "label_0": pa.array(
                    [[1 - one.clicked, int(one.clicked)] for one in rows], pa.list_(pa.int8())
                ),
                "129_1": [signed(one.user + 1000) for one in rows],
                "205": [signed(one.item) for one in rows],
            },
        )
        seen = {one.user: one.seen for one in rows}
        columns = {"129_1": [signed(user + 1000) for user in seen]}
        columns |= {f"130_{n}": [signed(user % (n + 1)) for user in seen] for n in range(1, 6)}
        columns["150_2_180"] = pa.array(
            [[signed(i) for i in one] for one in seen.values()], pa.list_(pa.int64())
        )
        columns["151_2_180"] = pa.array(
            [[signed(int(made.group[i])) for i in one] for one in seen.values()], pa.list_(pa.int64())
        )
        write(folder, f"{part}_user_features", columns)
    items = np.arange(1, len(made.group))[:catalogue]
    write(
        folder,
        "item_features",
        {
            "205": [signed(int(item)) for item in items],
            "206": [signed(int(made.group[item])) for item in items],
            "213": [signed(int(item) % 5) for item in items],
            "214": [signed(int(item) % 3) for item in items],
        },
    )
    vectors = np.trunc(made.vector[items] / 2 * 127).astype(np.int8)
    write(
        folder,
        "scl_embedding_int8_p90",
        {
            "205": [signed(int(item)) for item in items],
            "205_c": pa.array(list(vectors), pa.list_(pa.int8())),
        },
    )


def unseen_clicks(made: World) -> list[tuple[int, str, None]]:
    """Clicks that TAOBAO-MM's layout shows in no later history: of the test, and most of training."""
    found = []
    for user in range(len(made.history)):
        rows = [one for one in made.samples if one.user == user and one.clicked]
        (whole,) = {tuple(one.seen) for one in made.part("test") if one.user == user}
        later = list(whole[max(len(one.seen) for one in made.part("train") if one.user == user) :])
        for one in rows:
            if one.part == "train" and one.item in later:
                later.remove(one.item)
            elif one.part != "valid":
                found.append((one.item, "click", None))
    return found


def microlens(folder: Path, made: World, window: int = 6, hidden: bool = True) -> None:
    """As the challenge publishes it: a user's rows have one history of a width, and the test has no labels."""
    first = {one.user: one.seen[-window:] for one in reversed(made.samples)}
    for part in ("train", "valid", "test"):
        rows = made.part(part)
        cut = [first[one.user] for one in rows]
        columns = {
            "user_id": [one.user + 1 for one in rows],
            "item_seq": pa.array([[0] * (window - len(one)) + one for one in cut], pa.list_(pa.int64())),
            "item_id": [one.item for one in rows],
            "likes_level": [int(made.group[one.item]) for one in rows],
            "views_level": [one.item % 3 for one in rows],
        }
        if part != "test" or not hidden:
            columns["label"] = [int(one.clicked) for one in rows]
        write(folder, part, columns)
    items = np.roll(np.arange(len(made.group)), -1)  # padding last
    write(
        folder,
        "item_info",
        {
            "item_id": items,
            "item_tags": pa.array(
                [[int(g) + 1, 9, 0, 0, 0] for g in made.group[items]], pa.list_(pa.int64())
            ),
            "item_emb_d128": list(made.vector[items]),
        },
    )
