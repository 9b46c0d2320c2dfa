"""The attribute chain of an item, which MOON3.0 generates before it embeds (§4.1).

An example is ``<think>category: Dress; colour: Dark Blue; pattern: Stripe</think><|emb|>``: the item's values of a
few fields, always in the same order. The last hidden state of ``<|emb|>`` summarises them.
The paper shows "Category: ...; Color: ...; ..."; which fields, how many and their order are not recovered.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from encoder.content import attribute_pairs

THINK, END_THINK, EMB = "<think>", "</think>", "<|emb|>"
CATEGORY = "category"  # the field that holds the last name of an item's category path
PRESENT = 0.5  # a field of the chain is known for at least this fraction of the items
REPEATS = 8  # its values occur in at least this many items on average: rarer ones cannot be learned


def clean(words: str) -> str:
    """A name or value as it appears in a chain: NFC, with delimiters and whitespace replaced by single spaces.

    Replaced rather than escaped, so that a generated chain cannot have wrong escapes.

    >>> clean(" a;b:  <c> ")
    'a b c'
    """
    return re.sub(r"[\s;:<>]+", " ", unicodedata.normalize("NFC", words)).strip()


def item_fields(record: Mapping[str, Any]) -> dict[str, str]:
    """All fields of an item, cleaned: the last name of its category path, then its attributes.

    Args:
        record: a row of ``dataset.contracts.ITEMS`` as Python values.
    """
    path = record["category"] or []
    pairs = [*((CATEGORY, name) for name in path[-1:]), *attribute_pairs(record)]
    fields: dict[str, str] = {}
    for name, value in pairs:
        if clean(name) and clean(value):
            fields.setdefault(clean(name), clean(value))
    return fields


def chain_fields(records: Iterable[Mapping[str, Any]], most: int = 4) -> tuple[str, ...]:
    """Names of the few fields that together distinguish the items of a catalogue best.

    Greedy: the next field is the one that adds most bits to the joint entropy of the chosen ones, so that a coarser
    copy of a chosen field (colour after shade) is not chosen. Only fields known for at least ``PRESENT`` of the
    items, with values that occur ``REPEATS`` times on average, are considered.

    The result is ordered by increasing entropy: easy fields come first and help to predict the others.

    Args:
        records: items, rows of ``dataset.contracts.ITEMS`` as Python values.
        most: most fields to choose; fewer are chosen when no other field adds information.
    """
    items = [item_fields(record) for record in records]
    columns = {name: [item.get(name) for item in items] for name in sorted(set().union(*items))}
    left = {name: column for name, column in columns.items() if _learnable(column)}
    taken: list[str] = []
    known: list[tuple[str | None, ...]] = [() for _ in items]
    while left and len(taken) < most:
        joined = {name: _join(known, column) for name, column in left.items()}
        bits = {name: _entropy(rows) for name, rows in joined.items()}
        best = max(bits, key=lambda name: round(bits[name], 9))  # ties: the first by name
        if bits[best] - _entropy(known) < 1e-9:
            break
        taken.append(best)
        known = joined[best]
        del left[best]
    return tuple(sorted(taken, key=lambda name: (_entropy([(value,) for value in columns[name]]), name)))


def chain_values(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The true fields of an item's chain: those of ``names`` that it has, in their order."""
    fields = item_fields(record)
    return {name: fields[name] for name in names if name in fields}


def parse_chain(text: str) -> dict[str, str] | None:
    """Name and value of each field of a chain; None if it is malformed.

    Well-formed means: the three marks, at least one field, no name twice, every name and value cleaned.

    >>> parse_chain("<think>colour: Red; fit: Slim</think><|emb|>")
    {'colour': 'Red', 'fit': 'Slim'}
    >>> parse_chain("<think>colour Red</think><|emb|>") is None
    True
    """
    if not (text.startswith(THINK) and text.endswith(END_THINK + EMB)):
        return None
    fields: dict[str, str] = {}
    for part in text[len(THINK) : -len(END_THINK + EMB)].split("; "):
        name, colon, value = part.partition(": ")
        well_formed = colon and name and value and clean(name) == name and clean(value) == value
        if not well_formed or name in fields:
            return None
        fields[name] = value
    return fields


@dataclass(frozen=True)
class Marks:
    """Token ids of the chain's three marks."""

    think: int
    end_think: int
    emb: int


def chain_marks(tokenizer: PreTrainedTokenizerBase) -> Marks:
    """The marks of a tokenizer that has them: ours, or a checkpoint's after ``add_chain_marks``.

    Raises:
        KeyError: the tokenizer lacks one.
    """
    known = tokenizer.get_vocab()
    return Marks(known[THINK], known[END_THINK], known[EMB])


@torch.no_grad()
def add_chain_marks(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Add the missing marks to a checkpoint's tokenizer, and rows for them to its embedding matrices.

    A new row is the mean of the others, in the input and (if untied) the output matrix, so that a mark starts as an
    average token instead of noise. Published vocabularies are padded, so most matrices need not grow.
    With LoRA the embedding matrices must be trained too, or the marks stay average tokens.

    Args:
        tokenizer: changed in place.
        model: a transformers model; changed in place.
    """
    known = tokenizer.get_vocab()
    missing = [mark for mark in (THINK, END_THINK, EMB) if mark not in known]
    if not missing:
        return
    tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    matrices: list[nn.Module] = [model.get_input_embeddings(), model.get_output_embeddings()]
    means = [matrix.weight[: len(known)].mean(0) for matrix in matrices]  # type: ignore[index, operator]
    if len(tokenizer) > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = [tokenizer.get_vocab()[mark] for mark in missing]
    for matrix, mean in zip(
        (model.get_input_embeddings(), model.get_output_embeddings()), means, strict=True
    ):
        matrix.weight[rows] = mean


def chain_tokens(tokenizer: PreTrainedTokenizerBase, chains: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Token ids of chains, including the marks; values that spell a special token are tokenized as ordinary text.

    Args:
        tokenizer: with the marks.
        chains: fields of each chain, as ``chain_values`` returns them.
    """
    marks = chain_marks(tokenizer)
    if not chains:
        return []
    bodies = tokenizer(
        [chain_body(chain) for chain in chains], add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    return [[marks.think, *body, marks.end_think, marks.emb] for body in bodies]


def read_chain(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> dict[str, str] | None:
    """The fields of a generated chain; None if it is malformed.

    Args:
        tokenizer: the model's tokenizer.
        tokens: from ``<think>`` to ``<|emb|>``; a chain that was cut off is malformed.
    """
    # Decode without the marks: tokenizers differ in the spaces they put around special tokens.
    marks = chain_marks(tokenizer)
    if len(tokens) < 3 or (tokens[0], tokens[-2], tokens[-1]) != (marks.think, marks.end_think, marks.emb):
        return None
    body = tokenizer.decode(list(tokens[1:-2]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return parse_chain(f"{THINK}{body}{END_THINK}{EMB}")


def chain_body(fields: Mapping[str, str]) -> str:
    """The text between the marks of a chain."""
    return "; ".join(f"{name}: {value}" for name, value in fields.items())


def _learnable(column: Sequence[str | None]) -> bool:
    held = [value for value in column if value is not None]
    return len(held) >= PRESENT * len(column) and len(held) >= REPEATS * len(set(held))


def _join(
    known: Sequence[tuple[str | None, ...]], column: Sequence[str | None]
) -> list[tuple[str | None, ...]]:
    return [(*row, value) for row, value in zip(known, column, strict=True)]


def _entropy(rows: Sequence[tuple[str | None, ...]]) -> float:
    """Entropy in bits."""
    frequency = torch.tensor(list(Counter(rows).values()), dtype=torch.float64) / max(len(rows), 1)
    return float(-(frequency * frequency.log2()).sum())
