"""Candidates of one request as the ranker scores them, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import cast

import numpy as np
import pyarrow as pa

from feature_repo.columns import nothing
from feature_repo.frame import Frame
from feature_repo.online import StoreUnavailable
from feature_repo.signature import Feature
from ranker.explain import Explained, explain
from retrieval.requests import Request, Requests
from retrieval.search.search import Judge
from retrieval.similarities import Similarities
from retrieval.sources import Matches, add_matches
from serving.answer import Stages
from serving.protocols import Reader, RelevanceHead, Scorer
from serving.visit import newest_of

log = logging.getLogger("moon.serving")


@dataclass(frozen=True)
class Ranked:
    """Candidates that the ranker scored.

    Attributes:
        ranker: that scored them.
        frame: what it read, one request.
        ids: of the candidates, in the order of the frame.
        scores: float32, one per candidate.
    """

    ranker: Scorer
    frame: Frame
    ids: np.ndarray
    scores: np.ndarray

    def parts(self, hits: np.ndarray) -> list[dict[str, float]]:
        """What each feature adds to the score of each hit, by name (``ranker.explain``)."""
        found = explain(cast(Explained, self.ranker), self.frame)  # only the real one is asked
        row = {item: place for place, item in enumerate(self.ids.tolist())}
        return [{name: float(part[row[item]]) for name, part in found.items()} for item in hits.tolist()]


def rank(
    ranker: Scorer,
    reader: Reader,
    alike: Similarities,
    request: Request,
    user: Frame,
    ids: np.ndarray,
    matches: Matches,
    stages: Stages,
    fallbacks: list[str],
) -> Ranked | None:
    """``ids`` as the ranker scores them; None when it does not, with the reason in ``fallbacks``.

    Args:
        ranker: scores them.
        reader: of the candidates' features.
        alike: what the ranker reads of the request's history and a candidate.
        request: as retrieval answered it.
        user: its frame, with all that is known of the user's behaviour.
        ids: int64, of the candidates.
        matches: what the sources say of them.
        stages, fallbacks: of the answer.
    """
    try:
        with stages.measure("features"):
            frame = reader.with_candidates(user, ids)
    except StoreUnavailable as error:
        log.warning("candidates are not ranked: %s", error)
        fallbacks.append("store_unavailable")
        return None
    with stages.measure("rank"):
        frame = replace(frame, history=newest_of(frame.history, ranker.history))
        own = [place for place, name in enumerate(matches.names) if name not in alike.names]
        frame = add_matches(frame, [matches.names[place] for place in own], matches.rows(ids)[:, own])
        offsets = np.array([0, len(ids)], dtype=np.int64)
        frame = add_matches(frame, alike.names, alike.of(Requests.of([request]), ids, offsets))
        try:
            query = None if request.query_vector is None else request.query_vector[None]
            scores = np.asarray(ranker.score(frame, query), dtype=np.float32)
            if scores.shape != ids.shape or not np.isfinite(scores).all():
                raise ValueError(f"{len(ids)} candidates, scores of shape {scores.shape} or not finite")
        except Exception:
            log.exception("the ranker failed, answering in retrieval order")
            fallbacks.append("ranker_error")
            return None
    return Ranked(ranker, frame, ids, scores)


def judging(
    relevance: RelevanceHead, reader: Reader, time: datetime, stages: Stages, fallbacks: list[str]
) -> Judge:
    """The relevance head as the judge of a search, which reads the items' features at a moment."""

    def judge(query: np.ndarray, ids: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        with stages.measure("relevance"):
            return relevance.score(
                query, vectors, described(reader, relevance.features, ids, time, fallbacks)
            )

    return judge


def described(
    reader: Reader, features: Sequence[Feature], ids: np.ndarray, time: datetime, fallbacks: list[str]
) -> Mapping[str, pa.Array]:
    """Features of items by name, null where the store has nothing, or does not answer (``fallbacks`` says so)."""
    if not features:
        return {}
    try:
        return reader.read_items(ids, time).columns
    except StoreUnavailable as error:
        log.warning("candidates are judged without their features: %s", error)
        fallbacks.append("store_unavailable")
        return nothing(features, len(ids))
