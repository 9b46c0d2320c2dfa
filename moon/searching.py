"""The search of a run: its relevance head, and the encoder, this head and the retriever brought together."""

from __future__ import annotations

from datetime import datetime

from dataset.split import Split
from dataset.tables import Dataset
from encoder.encode import Encoder, query_encoder
from feature_repo.services import RELEVANCE
from feature_repo.signature import open_signature
from feature_repo.store import open_store
from feature_repo.vectors import Vectors
from ranker.judgements import items_as_stored, judged_pairs, require_judgeable
from ranker.relevance import train_relevance
from retrieval.retriever import Retriever
from retrieval.search.build import build_search
from retrieval.search.judge import open_judge
from run.artifacts import Artifact
from run.folder import Run


def build(
    run: Run, dataset: Dataset, encoder: Artifact, retriever: Retriever, head: Artifact | None, end: datetime
) -> None:
    """Write ``picture_index`` and ``search``; ``head`` is the relevance head, ``end`` of the log."""
    judge = None if head is None else open_judge(head, run.folder / "store", end)
    build_search(
        run.folder, dataset, retriever, query_encoder(Encoder.open(encoder, dataset)), judge, run.seed
    )


def relevance_head(
    run: Run, dataset: Dataset, vectors: Vectors, embedding: Artifact, cut: Split
) -> Artifact | None:
    """Train the relevance head on the judged queries, by what its service names; None where there are none."""
    pairs = judged_pairs(dataset, vectors, "train", run.seed)
    if not len(pairs):
        return None
    store = open_store(run.folder / "store")
    signature = open_signature(store, RELEVANCE)
    require_judgeable(store, signature)
    return train_relevance(
        pairs,
        run.folder / "relevance",
        parents={"embedding": embedding},
        seed=run.seed,
        signature=signature,
        items=items_as_stored(store, signature, pairs.item_id, cut.end),
    )
