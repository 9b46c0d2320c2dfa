"""The artifact of kind ``taste``: items' properties, what users were shown, variances of tastes, queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from retrieval.asked import Queries
from retrieval.content import Content, Part
from retrieval.properties import LOOKS_SPACE, VECTORS_SPACE, Properties
from retrieval.properties_files import (
    open_properties,
    property_config,
    property_tensors,
    write_property_tables,
)
from retrieval.shown import Shown
from retrieval.taste import Taste
from run.artifacts import MADE_BY, Artifact, ArtifactError, open_artifact, write_artifact

TENSORS, QUERIES = "taste.safetensors", "queries.parquet"


@dataclass(frozen=True)
class Tastes:
    """What is known of tastes by who reads more or less of an item.

    Attributes:
        whole: with vectors, if these say more of tastes than looks do; else ``plain``.
        plain: without vectors.
        blind: without words and looks, too.
    """

    whole: Taste
    plain: Taste
    blind: Taste


def save_taste(tastes: Tastes, queries: Queries, out: Path, parents: Mapping[str, Artifact]) -> Artifact:
    """Write an artifact of kind ``taste``."""
    taste = tastes.whole
    items, shown = taste.properties, taste.shown
    tensors = property_tensors(items)
    gains = {}
    for kind, one in (("", taste), ("plain/", tastes.plain), ("blind/", tastes.blind)):
        tensors |= {f"{kind}lasting": one.lasting, f"{kind}fading": one.fading}
        if one.content is not None:
            gains[kind] = one.gain
            tensors |= _content_tensors(kind, one.content)
    tensors |= {f"shown/{field.name}": getattr(shown, field.name) for field in fields(Shown)}
    tensors |= {"query_id": queries.query_ids, "query/looks": queries.looks}
    config = {
        **property_config(items),
        "usual": taste.usual,
        "gains": gains,
        "noise": taste.noise,
    }
    with write_artifact(out, "taste", config, parents) as folder:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / TENSORS)
        write_property_tables(items, folder)
        pq.write_table(pa.table({"text": pa.array(queries.texts, pa.string())}), folder / QUERIES)
    return open_artifact(out, "taste")


def open_taste(artifact: Artifact) -> tuple[Tastes, Queries]:
    """Open an artifact of kind "taste": tastes, and the queries of the log.

    Raises:
        ArtifactError: it is of a release that did not tell tastes without content.
    """
    tensors, config = load_file(artifact.file(TENSORS)), artifact.config
    if missing := [name for name in ("blind/lasting", "blind/fading") if name not in tensors]:
        raise ArtifactError(
            f"{artifact.path}: expected {' and '.join(missing)}, found none: it was made by an earlier release. "
            f"Run '{MADE_BY['taste']}' to recreate it."
        )
    properties = open_properties(artifact, tensors)
    shown = Shown(**{field.name: tensors[f"shown/{field.name}"] for field in fields(Shown)})

    def taste(kind: str, items: Properties) -> Taste:
        variances = tensors[f"{kind}lasting"], tensors[f"{kind}fading"]
        gain = config.get("gains", {}).get(kind)  # earlier releases read every space as it is
        content = None if gain is None else _content(tensors, kind, len(items.fields))
        noise = config.get("noise", 1.0)
        return Taste(items, shown, *variances, config["usual"], content, gain or 0.0, noise)

    whole = taste("", properties)
    plain = taste("plain/", properties.without_vectors()) if VECTORS_SPACE in properties.spaces else whole
    texts = pq.read_table(artifact.file(QUERIES))["text"].to_pylist()
    return (
        Tastes(whole, plain, taste("blind/", properties.without_content())),
        Queries(tensors["query_id"], tuple(texts), tensors["query/looks"]),
    )


def _content_tensors(kind: str, content: Content) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for space, part in content.parts.items():
        name = f"{kind}content/{space}/"
        tensors |= {f"{name}{one}": getattr(part, one) for one in ("turn", "centre", "price")}
        tensors |= {f"{name}values/{number}": values for number, values in enumerate(part.values)}
    return tensors


def _content(tensors: Mapping[str, np.ndarray], kind: str, count: int) -> Content:
    """Of ``count`` fields."""
    parts = {}
    for space in (LOOKS_SPACE, VECTORS_SPACE):
        name = f"{kind}content/{space}/"
        if f"{name}turn" in tensors:
            values = tuple(tensors[f"{name}values/{number}"] for number in range(count))
            turn, centre, price = (tensors[f"{name}{one}"] for one in ("turn", "centre", "price"))
            parts[space] = Part(turn, centre, price, values)
    return Content(parts)
