"""Stage 1: next-token prediction on questions about catalogue items (MOON Embedding §1.3).

The paper names four kinds of questions, but gives neither templates, data volume nor schedule (not recovered); the
templates below and ``encoder.train.Schedule`` are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from encoder.backbone.packing import CHAIN, Sample
from encoder.content import attribute_pairs, item_content
from encoder.examples.views import augmented
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.tokenizer import end_id, tokenize

KINDS = ("description", "attribute", "title", "subject")


def question(row: Mapping[str, Any], kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Question and answer of one kind about one item; None when the item lacks the answer.

    Args:
        row: an item's fields as Python values.
        kind: description, attribute, title, or subject: the main product in the picture.
        rng: chooses the attribute to ask for.
    """
    attributes = attribute_pairs(row)
    values = " ".join(value for _, value in attributes)
    if kind == "description" and (row["description"] or row["title"]):
        return "Describe the product.", row["description"] or item_content(row).words
    if kind == "attribute" and attributes:
        name, value = attributes[int(rng.integers(len(attributes)))]
        return f"{row['title'] or ''} What is the {name}?", value
    if kind == "title" and row["title"]:
        return f"{' '.join(row['category'] or [])} {values} Write a title.", row["title"]
    if kind == "subject" and row["category"]:
        return "What is the main product?", row["category"][-1]
    return None


@dataclass(frozen=True)
class Pretrain:
    """The stage: questions and answers about catalogue items, with causal attention.

    Attributes:
        fraction: of the training budget; the paper's is not recovered.
        learning_rate_scale: factor on the peak learning rates.
        name: name of the stage.
    """

    fraction: float
    learning_rate_scale: float = 1.0
    name: str = "pretrain"

    def begin(self, learner: Learner) -> Asking:
        """Check that there are questions."""
        return Asking(learner)


class Asking(Objective):
    """Mean next-token loss over the answers of a batch of questions.

    Raises:
        NothingToLearn: no item has text for an answer.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        rng = np.random.default_rng(0)
        if not any(question(row, kind, rng) for row in learner.corpus.records for kind in KINDS):
            raise NothingToLearn(
                f"pretrain: expected items with a title, category, attributes or description, found none among "
                f"{len(learner.corpus.records)}. Use a recipe without questions."
            )

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """Loss of half a batch of questions: each needs logits over the vocabulary for every answer token."""
        model = self.learner.model
        rows, samples = questions(self.learner, max(self.learner.batch // 2, 1), rng)
        self.seen = self.learner.corpus.items.ids[rows]
        packed = model.pack(samples, causal=True)
        hidden_TH = model.backbone(packed).hidden_TH
        answered = (packed.part_T == CHAIN).nonzero()[:, 0]
        return F.cross_entropy(model.backbone.logits(hidden_TH[answered - 1]), packed.ids_T[answered])


def questions(learner: Learner, count: int, rng: np.random.Generator) -> tuple[list[int], list[Sample]]:
    """Questions with the picture of their item, each followed by its answer.

    Args:
        learner: its items are the subjects.
        count: questions to draw; those whose item lacks the answer are dropped, so that fewer may remain.
        rng: the only source of randomness.

    Returns:
        rows of the items, at least one, and a sample for each.
    """
    corpus, limit = learner.corpus, learner.size.text_tokens
    rows: list[int] = []
    asked: list[str] = []
    answers: list[str] = []
    while not rows:
        for row in rng.integers(len(corpus.records), size=count).tolist():
            pair = question(corpus.records[row], KINDS[int(rng.integers(len(KINDS)))], rng)
            if pair is not None:
                rows.append(row)
                asked.append(pair[0])
                answers.append(pair[1])
    samples = [
        Sample(
            tokens, corpus.pictures(int(corpus.items.image[row])), chain=[*answer, end_id(learner.tokenizer)]
        )
        for row, tokens, answer in zip(
            rows,
            tokenize(learner.tokenizer, asked, limit),
            tokenize(learner.tokenizer, answers, limit),
            strict=True,
        )
    ]
    return rows, augmented(samples, rng)
