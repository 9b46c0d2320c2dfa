"""The search of a run: its encoder, relevance head and retriever, brought together."""

from __future__ import annotations

from datetime import datetime

from dataset.tables import Dataset
from encoder.encode import Encoder, query_encoder
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
