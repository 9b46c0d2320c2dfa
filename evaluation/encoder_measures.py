"""Measure a run's encoder beside vectors that need no model: what it finds, and what its vectors remember."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from dataset.jagged import owners
from encoder.encode import Content, Encoder, item_content
from evaluation.content import tf_idf
from evaluation.encoder_quality import Pool, encoder_quality
from evaluation.facets import Facets, Tastes, reduced, remembered
from evaluation.metrics import Measurement
from evaluation.sheets import Evidence
from evaluation.truth import Judge
from retrieval.colours import colours
from retrieval.words import Vocabulary, item_text
from run.artifacts import open_artifact

PROBE_ITEMS = 4_000  # training items of the linear models


def encoder_measures(evidence: Evidence) -> Iterator[Measurement]:
    """Cross-modal and same-product recall on the split's pool, whose items the encoder was not trained on."""
    folder, dataset, split = evidence.folder, evidence.dataset, evidence.split
    chosen = dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(split.pool))).to_pylist()
    if len(chosen) < 2:
        return
    encoder = Encoder.open(open_artifact(folder / "encoder", "encoder"), dataset)
    pictures = [dataset.image_bytes(row["image_id"]) for row in chosen]
    contents = [item_content(row, picture) for row, picture in zip(chosen, pictures, strict=True)]
    spu = np.array([row["spu"] for row in chosen])
    moon = Pool(
        spu=spu,
        item=encoder.encode(contents),
        image=encoder.encode([Content(image=one.image) for one in contents]),
        text=encoder.encode([replace(one, image=None) for one in contents]),
    )
    texts = [item_text(row["title"], row["description"], row["attributes"]) for row in chosen]
    words = tf_idf(texts)
    dense = np.zeros((len(chosen), words.width), dtype=np.float32)
    dense[owners(words.offsets), words.column] = words.value
    colour = colours(pictures)
    pools = {
        "moon": moon,
        "tf_idf": Pool(spu=spu, item=dense, text=dense),
        "colour": Pool(spu=spu, item=colour, image=colour),
    }
    split_name = f"pool of {len(chosen)} unseen items"
    for name, pool in pools.items():
        for one in encoder_quality(pool, split=split_name, prefix=f"encoder/{name}"):
            if "/chance/" not in one.name:
                yield one
            elif name == "moon":
                yield Measurement(one.name.replace("moon/chance", "random"), one.value, one.n, one.split)


def facet_measures(evidence: Evidence) -> Iterator[Measurement]:
    """What the stored vectors of complete items say of their facets, on the pool; beside plain vectors as wide.

    ``tf_idf_svd``: the words; ``colour``: thumbnail and histogram; ``colour_tf_idf_svd``: both together; each reduced
    to the width of ours.
    """
    dataset, split = evidence.dataset, evidence.split
    items = dataset.items.sort_by("item_id")
    item_id = items["item_id"].to_numpy()
    in_pool = np.isin(item_id, split.pool)
    rest = np.random.default_rng(0).permutation(np.flatnonzero(~in_pool))[:PROBE_ITEMS]
    chosen = np.sort(np.concatenate([rest, np.flatnonzero(in_pool)]))
    asked = in_pool[chosen]
    if asked.sum() < 2 or len(rest) < 2:
        return
    rows = items.take(pa.array(chosen)).to_pylist()
    facets = Facets.of(
        *([row for row, yes in zip(rows, side, strict=True) if yes] for side in (~asked, asked))
    )
    moon, _ = evidence.vectors.gather(item_id[chosen])
    tastes = None if dataset.truth is None else Tastes.of(Judge.of(dataset))
    name = f"{asked.sum()} unseen items"
    for method, vectors in {"moon": moon, **_plain(evidence, rows, ~asked)}.items():
        prefix = f"encoder/{method}"
        for one in remembered(facets, vectors[~asked], vectors[asked], name, prefix):
            if "/chance/" not in one.name:
                yield one
            elif method == "moon":
                yield replace(one, name=one.name.replace("moon/chance", "commonest"))
        if tastes is not None:
            places = np.searchsorted(tastes.item_ids, item_id[chosen])
            likes = {where: liked[places] for where, liked in tastes.likes.items()}
            yield from Tastes(item_id[chosen], likes).linear(vectors, ~asked, asked, name, prefix)


def _plain(evidence: Evidence, rows: list[dict], learn: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors of items that need no model, by name; those of more than one number."""
    contents = [item_content(row) for row in rows]
    texts = [one.words for one in contents]
    words = Vocabulary.of([text for text, yes in zip(texts, learn, strict=True) if yes]).rows(texts)
    looks = colours([evidence.dataset.image_bytes(row["image_id"]) for row in rows])
    colour, width = sparse.csr_array(looks), evidence.vectors.width
    spaces = {
        "colour": colour,
        "tf_idf_svd": words,
        "colour_tf_idf_svd": sparse.hstack([words, colour]).tocsr(),
    }
    found = {}
    for name, space in spaces.items():
        if min(space[learn].shape) > 1 and space[learn].nnz:
            found[name] = reduced(space[learn], width)(space)
    return found
