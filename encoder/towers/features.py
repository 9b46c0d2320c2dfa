"""What frozen towers read of a dataset, kept beside it: every text and every picture is read once.

Shapes: U texts, N pictures, E features of a text, F of a picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dataset.contracts import DataError
from dataset.tables import Dataset
from encoder.content import Content, item_content, query_content
from encoder.examples.corpus import Corpus, corpus_of
from encoder.pictures.cache import Decoded, decoded
from encoder.pictures.decode import decode_images
from encoder.towers.model import Known, Source, TowerModel
from encoder.towers.towers import Towers
from run.artifacts import Artifact, ArtifactError, open_artifact, write_artifact
from run.progress import track

KIND, MADE_BY = "features", "moon encoder train"
AT_ONCE = 512  # texts or pictures between two marks of progress
DROPPED = 0.2  # probability with which training hides each number that a tower says of a picture


def features(dataset: Dataset, model: TowerModel) -> Known:
    """What the model's towers read of every item's and query's fields and of every picture.

    They are kept in ``<dataset>.features``, which may be deleted at any time. When the dataset changes, only what is
    new is read.

    Raises:
        DataError: no picture decodes.
    """
    towers = digest(model.towers)
    earlier = _find(dataset, towers)
    if earlier is not None and earlier.parents["dataset"] == dataset.artifact.id:
        return _open(earlier)
    before = None if earlier is None else _open(earlier)
    texts = list(dict.fromkeys(text for content in _contents(dataset) for _, text in content.fields))
    told = np.zeros((len(texts), model.towers.text_width), dtype=np.float32)
    new = []
    for row, text in enumerate(texts):
        if before is not None and text in before.text_row:
            told[row] = before.text_UE[before.text_row[text]]
        else:
            new.append(row)
    new.sort(key=lambda row: len(texts[row]))  # texts of one length together: less padding
    for rows in track(_parts(new), "read texts", unit=f"times {AT_ONCE}"):
        told[rows] = model.towers.read(model.towers.tokens([texts[row] for row in rows], model.text_tokens))
    image_ids, seen = _pictures(dataset, model, before)
    with write_artifact(_place(dataset), KIND, {"towers": towers}, {"dataset": dataset.artifact}) as folder:
        np.save(folder / "texts.npy", told)
        np.save(folder / "pictures.npy", seen)
        (folder / "texts.json").write_text(json.dumps(texts))
        (folder / "image_ids.json").write_text(json.dumps(image_ids))
    return _open(open_artifact(_place(dataset), KIND, MADE_BY))


def kept_features(dataset: Dataset, model: TowerModel) -> Known | None:
    """What ``features`` kept for this dataset and these towers; None if there is nothing."""
    found = _find(dataset, digest(model.towers))
    return None if found is None else _open(found)


def digest(towers: Towers) -> str:
    """Names the towers' weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(towers.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def tower_corpus(dataset: Dataset, model: TowerModel, item_ids: np.ndarray) -> Corpus:
    """The training data of a tower model, whose ``text_UE`` and ``source`` it sets and which it fits.

    Args:
        dataset: the dataset.
        model: to train.
        item_ids: int64, the items to read.

    Raises:
        DataError: a picture that an item or query names is missing, or none decodes.
    """
    known = features(dataset, model)

    def rows(contents: Sequence[Content]) -> list[tuple[list[int], list[int]]]:
        return [
            ([known.text_row[text] for _, text in one.fields], [kind for kind, _ in one.fields])
            for one in contents
        ]

    corpus = corpus_of(
        dataset, item_ids, rows, Decoded(list(known.image_row), known.picture_NF), change=hidden
    )
    told = [known.text_UE[text].mean(axis=0) for text in corpus.items.tokens if text]
    shown = corpus.items.image[corpus.items.has_image]
    model.fit(np.array(told, np.float32).reshape(-1, model.towers.text_width), known.picture_NF[shown])
    model.text_UE = torch.from_numpy(model.standard("told", known.text_UE)).to(model.device)
    # Both list the pictures that decode in the dataset's order.
    model.source = Source(list(known.text_row), lambda: decoded(dataset, model.px).pixels)
    return replace(corpus, pixels=model.standard("seen", known.picture_NF))


def hidden(rows_NF: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put the mean in the place of a random part of the numbers of each picture: how features are augmented."""
    return np.where(rng.random(rows_NF.shape, dtype=np.float32) < DROPPED, np.float32(0), rows_NF)


def _contents(dataset: Dataset) -> Iterable[Content]:
    items = dataset.items.select(["title", "description", "category", "attributes"]).to_pylist()
    yield from (item_content(row) for row in items)
    yield from (query_content(row) for row in dataset.queries.to_pylist())


def _pictures(dataset: Dataset, model: TowerModel, before: Known | None) -> tuple[list[str], np.ndarray]:
    """The ids of all pictures that decode, and what the model sees in them."""
    image_ids = dataset.images["image_id"].to_pylist()
    parts: dict[str, np.ndarray] = {}
    new = [one for one in image_ids if before is None or one not in before.image_row]
    for names in track(_parts(new), "read pictures", unit=f"times {AT_ONCE}"):
        chosen = dataset.images.filter(pc.is_in(dataset.images["image_id"], pa.array(names)))
        contents = dict(zip(chosen["image_id"].to_pylist(), chosen["bytes"].to_pylist(), strict=True))
        good, pixels = decode_images(contents, names, model.px)
        parts |= dict(zip(good, model.towers.see(list(pixels)), strict=True))
    if new and not parts and before is None:
        raise DataError(f"none of {len(new)} pictures decodes. Run 'moon dataset' again.")
    kept = [one for one in image_ids if one in parts or (before is not None and one in before.image_row)]
    out = np.zeros((len(kept), model.towers.vision_width), dtype=np.float32)
    for row, one in enumerate(kept):
        out[row] = parts[one] if before is None or one in parts else before.picture_NF[before.image_row[one]]
    return kept, out


def _parts(rows: Sequence) -> list:
    return [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]


def _place(dataset: Dataset) -> Path:
    return dataset.artifact.path.with_name(f"{dataset.artifact.path.name}.{KIND}")


def _find(dataset: Dataset, towers: str) -> Artifact | None:
    try:
        found = open_artifact(_place(dataset), KIND, MADE_BY)
    except ArtifactError:
        return None  # absent or damaged
    return found if found.config["towers"] == towers else None


def _open(artifact: Artifact) -> Known:
    texts = json.loads(artifact.file("texts.json").read_text())
    image_ids = json.loads(artifact.file("image_ids.json").read_text())
    return Known(
        {text: row for row, text in enumerate(texts)},
        np.load(artifact.file("texts.npy"), allow_pickle=False),
        {image_id: row for row, image_id in enumerate(image_ids)},
        np.asarray(np.load(artifact.file("pictures.npy"), mmap_mode="r", allow_pickle=False)),
    )
