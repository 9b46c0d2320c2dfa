"""A generation opened for serving: artifacts that belong together, as a recommender that has answered once."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.compute as pc

from dataset.split import Split
from dataset.tables import Dataset
from encoder.encode import Encoder
from feature_repo.online import OnlineReader, check_loaded
from feature_repo.services import CTR, RELEVANCE, RETRIEVAL
from feature_repo.shop_ids import shop_ids
from feature_repo.signature import open_signature
from ranker.relevance import Relevance
from ranker.score import Ranker
from retrieval.retriever import Retriever
from retrieval.search.open import open_search
from run.artifacts import open_artifact
from run.generations import open_parts, require_whole
from run.sizes import size
from serving.catalogue import Catalogue
from serving.recommend import Recommender
from serving.settings import Settings

EXAMPLE_USERS = 50


def open_recommender(settings: Settings, folder: Path, generation: int | None = None) -> Recommender:
    """Open a generation, refuse artifacts that do not belong together, and answer once to warm up.

    Its clock is fixed at the end of the log until ``now`` is set.

    Args:
        settings: name the run, whose dataset, split and store are read.
        folder: where the artifacts are: of a generation, or the run folder itself.
        generation: its number, if it is a generation.

    Raises:
        ArtifactError: an artifact is missing, damaged, or made from another parent than the one here.
        ValueError: the run was loaded into another online store than ``settings.profile``.
    """
    run = settings.run
    recorded = json.loads((run / "run.json").read_text())
    if recorded["profile"] != settings.profile:
        raise ValueError(
            f"{run} was loaded into the {recorded['profile']} store, asked to serve from "
            f"{settings.profile}. Run 'moon serve --profile {settings.profile}' to load it there."
        )
    data = {role: open_artifact(run / role, role) for role in ("dataset", "split")}
    artifacts = open_parts(folder)
    require_whole(artifacts, data)
    dataset, split = Dataset.open(data["dataset"]), Split.open(data["split"])
    last = split.end
    behaviours = size(recorded["size_name"]).history
    ids = shop_ids(run / "store")
    reader = OnlineReader(run / "store", behaviours)
    check_loaded(reader)
    signature = open_signature(reader.store, CTR)
    retriever = Retriever.open(artifacts, signature=open_signature(reader.store, RETRIEVAL))
    ranker = relevance = None
    if "ranker" in artifacts:
        ranker = Ranker.open(artifacts["ranker"], retriever.vectors, signature)
    longest = behaviours if ranker is None else max(behaviours, ranker.history)
    if "relevance" in artifacts:
        relevance = Relevance.open(artifacts["relevance"], open_signature(reader.store, RELEVANCE))
    moon = Recommender(
        retriever=retriever,
        reader=reader.reading(longest),
        ranker=ranker,
        encoder=Encoder.open(artifacts["encoder"]),
        finder=open_search(artifacts, dataset.items, retriever.index),
        relevance=relevance,
        catalogue=Catalogue(dataset.items, dataset.image_bytes, ids),
        artifacts={role: one.id for role, one in sorted(artifacts.items())},
        now=lambda: last,
        behaviours=behaviours,
        per_source=settings.per_source,
        explore=settings.explore,
        example_users=ids.names("user_id", _example_users(split)),
        generation=generation,
        ids=ids,
    )
    for user_id in moon.example_users[:1]:
        moon.recommend(user_id, 10)
    return moon


def _example_users(split: Split) -> list[int]:
    """The first users with test requests."""
    users = split.retrieval.filter(pc.equal(split.retrieval["part"], "test"))["user_id"].to_pylist()
    return list(dict.fromkeys(users))[:EXAMPLE_USERS]
