"""Stage 1: next-token prediction on questions about catalogue items (MOON Embedding §1.3).

The paper names four question kinds and gives neither templates, data volume nor schedule (not recovered); the
templates below and ``encoder.train.schedule`` are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from encoder.content import attribute_pairs, item_text
from encoder.examples.augment import augment
from encoder.examples.corpus import NO_IMAGE, Corpus
from encoder.model import EncoderModel, Sample
from encoder.tokenizer import end_id, tokenize

KINDS = ("description", "attribute", "title", "subject")


def question(row: Mapping[str, Any], kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Question and answer of one kind about one item, None when the item lacks the answer.

    Args:
        row: an item's fields as Python values.
        kind: description, attribute extraction, title generation, or the main subject of the picture.
        rng: picks the attribute asked for.
    """
    attributes = attribute_pairs(row)
    values = " ".join(value for _, value in attributes)
    if kind == "description" and (row["description"] or row["title"]):
        return "Describe the product.", row["description"] or item_text(row) or ""
    if kind == "attribute" and attributes:
        name, value = attributes[int(rng.integers(len(attributes)))]
        return f"{row['title'] or ''} What is the {name}?", value
    if kind == "title" and row["title"]:
        return f"{' '.join(row['category'] or [])} {values} Write a title.", row["title"]
    if kind == "subject" and row["category"]:
        return "What is the main product?", row["category"][-1]
    return None


def pretrain_loss(
    model: EncoderModel,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    batch: int,
    text_tokens: int,
    rng: np.random.Generator,
) -> Tensor:
    """Mean next-token loss over the answers of one random batch, reading causally.

    Args:
        model: its backbone is trained; the pooling head is not used here.
        corpus: where items come from.
        tokenizer: of the backbone.
        batch: questions to ask.
        text_tokens: most tokens of a question and of an answer.
        rng: the only source of chance.
    """
    rows, questions, answers = [], [], []
    for row in rng.integers(len(corpus.records), size=batch).tolist():
        asked = question(corpus.records[row], KINDS[int(rng.integers(len(KINDS)))], rng)
        if asked is not None:
            rows.append(row)
            questions.append(asked[0])
            answers.append(asked[1])
    if not rows:
        return model.head.weight.sum() * 0.0
    asked_tokens = tokenize(tokenizer, questions, text_tokens)
    answer_tokens = [[*ids, end_id(tokenizer)] for ids in tokenize(tokenizer, answers, text_tokens)]
    image = corpus.items.image[rows]
    shown = (
        iter(augment(corpus.pixels[image[image != NO_IMAGE]], rng)) if (image != NO_IMAGE).any() else iter(())
    )
    samples = [
        Sample([*asks, *tells], next(shown) if picture != NO_IMAGE else None)
        for asks, tells, picture in zip(asked_tokens, answer_tokens, image.tolist(), strict=True)
    ]
    ids, mask, pixels = model.collate(samples)
    hidden = model.backbone(ids, mask, pixels, bidirectional=False)
    end = mask.sum(1)
    start = end - torch.tensor([len(tells) for tells in answer_tokens], device=ids.device)
    place = torch.arange(ids.shape[1], device=ids.device)
    answered = (place >= start[:, None]) & (place < end[:, None])
    logits = model.backbone.logits(hidden[:, :-1][answered[:, 1:]])
    return F.cross_entropy(logits, ids[:, 1:][answered[:, 1:]])
