"""Towers as small as can be, with random weights, written and read as real ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from encoder_world import COLOURS, SHAPES
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from encoder.towers.lite import Lite, LiteConfig
from encoder.towers.towers import Towers

SMALL = LiteConfig(stem=8, stages=((1, 3, 1, 1, 8), (2, 5, 2, 2, 12)), head=24, px=32)
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def towers_of(seed: int = 0, layers: int = 1) -> Towers:
    """A BERT of ``layers`` layers over the words of ``encoder_world``, and a network of three blocks."""
    words = [*MARKS, *COLOURS, *SHAPES, "shapes", "acme", "bolt", "core"]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Towers(
            BertModel(config), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named), Lite(SMALL)
        )


def tiny_towers(folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder of ``towers_of``."""
    towers_of(seed).save(folder)
    return folder
