"""A planted world for the ranker: clicks follow the cosine of an item's vector and the user's taste."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from dataset.contracts import TIME
from feature_repo.frame import Frame, History
from feature_repo.side_information import SideInformation, ViewRows
from feature_repo.signature import Signature
from feature_repo.vectors import Vectors, VectorTable
from ranker.inputs import earlier
from ranker.inputs.frame_encoder import select_requests
from ranker.inputs.id_tables import is_table

WIDTH = 8
NOW_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000
COLOURS = ("red", "green", "blue")
SIGNATURE = Signature("ctr_v1", (*earlier.PROFILE, *earlier.CATALOGUE, *earlier.STATISTICS))
TOWERS = Signature("retrieval_v1", (*earlier.PROFILE, *earlier.CATALOGUE))


@dataclass
class Requests:
    """What ``feature_repo.frames.join.TrainingFrame`` offers, in memory."""

    frame: Frame
    signature: Signature = SIGNATURE
    windows: np.ndarray | None = None

    def __len__(self):
        return len(self.frame)

    def take(self, start, stop):
        return select_requests(self.frame, np.arange(start, stop))

    def select(self, rows):
        return select_requests(self.frame, np.asarray(rows, dtype=np.int64))


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=-1, keepdims=True)).astype(np.float32)


def make_vectors(items, seed=0, queries=4, width=WIDTH, vector_id="embedding-1"):
    draw = np.random.default_rng(seed)
    ids = np.arange(items, dtype=np.int64) * 7 + 1000
    return Vectors(
        ids,
        unit(draw.normal(size=(items, width))),
        VectorTable(np.arange(queries, dtype=np.int64), unit(draw.normal(size=(queries, width)))),
        vector_id,
    )


def catalogue(item_id):
    """Static item features, a function of the id alone."""
    item_id = np.asarray(item_id, dtype=np.int64)
    kind = item_id // 7 % 5
    return {
        "item_id": pa.array(item_id, pa.int64()),
        "category": pa.array([f"top{k % 2}/leaf{k}" for k in kind], pa.string()),
        "category_top": pa.array([f"top{k % 2}" for k in kind], pa.string()),
        "spu": pa.array(item_id // 2, pa.int64()),
        "price": pa.array((item_id % 50 + 1).astype(np.float32)),
        "attributes": pa.array(
            [[f"colour={COLOURS[i % 3]}", f"size={i % 4}"][: i % 3] for i in item_id.tolist()],
            pa.list_(pa.string()),
        ),
        "first_seen_us": pa.array(np.full(len(item_id), NOW_US - DAY_US)),
    }


def make_frame(user_id, history, candidates, labels=None, query_id=None, positions=None, matches=None):
    """A frame of R requests from lists of item ids per request."""
    counts = [len(c) for c in candidates]
    flat = np.array([i for c in candidates for i in c], dtype=np.int64)
    requests = pa.table(
        {
            "request_id": pa.array(range(len(counts)), pa.int64()),
            "user_id": pa.array(user_id, pa.int64()),
            "time": pa.array([NOW_US] * len(counts), TIME),
            "query_id": pa.array(query_id or [None] * len(counts), pa.int64()),
            "age_band": pa.array([u % 5 - 1 for u in user_id], pa.int64()),
            "segment": pa.array([f"s{u % 3}" for u in user_id], pa.string()),
            "user_events": pa.array([len(h) for h in history], pa.int64()),
        }
    )
    n = len(flat)
    columns = catalogue(flat)
    for name in ("shown_7d", "positive_7d", "shown_28d", "positive_28d", "shown_all", "positive_all"):
        columns[name] = pa.array(np.full(n, 3, np.int64))
    columns["rate_all"] = pa.array(np.full(n, 0.1, np.float32))
    if labels is not None:
        columns["label"] = pa.array(np.concatenate(labels).astype(np.float32))
    if positions is not None:
        columns["position"] = pa.array(np.concatenate(positions), pa.int64())
    for name, values in (matches or {}).items():
        columns[name] = pa.array(np.asarray(values, np.float32))
    lengths = np.array([len(h) for h in history])
    items = np.array([i for h in history for i in h], dtype=np.int64)
    ages = np.concatenate([np.arange(n, 0, -1) for n in lengths]) if len(lengths) else np.empty(0)
    return Frame(
        requests=requests,
        candidates=pa.table(columns),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        history=History(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items,
            np.ones(len(items), np.int64),
            (NOW_US - ages * 3_600_000_000).astype(np.int64),
        ),
    )


@dataclass
class World:
    vectors: Vectors
    frame: Frame
    probability: np.ndarray  # true click probability of each candidate
    taste: np.ndarray  # of each request's user


def make_world(
    requests=400,
    slate=10,
    items=300,
    old_items=None,
    seed=0,
    users=80,
    memory=50,
    sharpness=8.0,
    strength=9.0,
):
    """Requests of users with hidden tastes; ``old_items``: rows of the items shown and remembered."""
    draw = np.random.default_rng(seed)
    vectors = make_vectors(items)
    tastes = unit(np.random.default_rng(99).normal(size=(users, WIDTH)))
    user = draw.integers(0, users, requests)
    pool = np.arange(items) if old_items is None else np.asarray(old_items)
    cosine = tastes @ vectors.matrix.T
    weight = np.exp(sharpness * cosine)
    history, candidates, labels, probability = [], [], [], []
    for u in user:
        share = weight[u][pool] / weight[u][pool].sum()
        history.append(vectors.ids[draw.choice(pool, draw.integers(memory // 2, memory + 1), p=share)])
        shown = draw.choice(pool, slate, replace=False)
        p = 1 / (1 + np.exp(-(strength * cosine[u][shown] - 1)))
        candidates.append(vectors.ids[shown])
        labels.append(draw.random(slate) < p)
        probability.append(p)
    return World(
        vectors,
        make_frame(user.tolist(), history, candidates, labels),
        np.concatenate(probability),
        tastes[user],
    )


def auc(label, score):
    """Area under the ROC curve, ties count one half (the definition, over all pairs)."""
    label = np.asarray(label).astype(bool)
    better = score[label][:, None] - score[~label][None]
    return float(((better > 0) + 0.5 * (better == 0)).mean())


def with_random_tables(model):
    """The model with ids that matter: untrained they are nearly zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_table(name):
                parameter.uniform_(-1, 1)
    return model


def categories_of(items):
    """What the store knew of the category of items: from a year before on."""
    ids = make_vectors(items).ids
    known = pa.array(np.full(len(ids), NOW_US - 365 * DAY_US))
    rows = pa.record_batch(
        {"item_id": pa.array(ids), "time_us": known, "category": catalogue(ids)["category"]}
    )
    return SideInformation((), lambda: ViewRows(rows, 0))


def full_frame(requests, seed=0, items=24):
    """Requests with all that a frame can hold: searches, places, matches, categories, empty histories."""
    draw = np.random.default_rng(seed)
    ids = make_vectors(items).ids
    counts, memories = draw.integers(1, 7, requests), draw.integers(0, 9, requests)
    frame = make_frame(
        draw.integers(0, 8, requests).tolist(),
        [draw.choice(ids, m).tolist() for m in memories],
        [draw.choice(ids, n, replace=False).tolist() for n in counts],
        [draw.integers(0, 2, n) for n in counts],
        query_id=[None if r % 3 else r % 4 for r in range(requests)],
        positions=[np.arange(n) for n in counts],
        matches={
            "match_cooccurrence": draw.exponential(size=counts.sum()),
            "match_popular": draw.random(counts.sum()),
        },
    )
    return replace(frame, history=replace(frame.history, side=categories_of(items)))
