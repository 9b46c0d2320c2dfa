"""Byte-level BPE trained on the catalogue, for when there is no checkpoint with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
IMAGE, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
# The last three are what MOON3.0's attribute chain is written with; they cost nothing until it is trained.
SPECIALS = (PAD, END, IMAGE, VISION_START, VISION_END, "<think>", "</think>", "<|emb|>")
VOCABULARY = 2048
LONGEST_TOKEN = 64  # characters; of a text no more is read than so many per token kept


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any string in any script encodes and decodes to itself (NFC).

    Args:
        texts: the catalogue's texts and the queries.
        vocabulary: most tokens to make, specials and the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIALS[2:]),
        clean_up_tokenization_spaces=False,
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Token ids that ``encoder.backbone.backbone.small_config`` asks for."""
    names = {"pad": PAD, "image": IMAGE, "vision_start": VISION_START, "vision_end": VISION_END}
    return {role: tokenizer.get_vocab()[token] for role, token in names.items()}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, ours or a published one."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for how_loaded in (
        "is_local",
        "local_files_only",
    ):  # would be saved, and make equal tokenizers differ on disk
        tokenizer.init_kwargs.pop(how_loaded, None)
    return tokenizer


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer; the padding token where a tokenizer names no end."""
    return int(tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> list[list[int]]:
    """Token ids of each text, cut to ``limit``; words that spell a special token stay words.

    Half of a surrogate pair, which JSON can carry and UTF-8 cannot, is read as a question mark.

    Returns:
        one list per text, empty for blank text.
    """
    # Cut before as well as after: a million letters without a space would take seconds to read.
    short = (text.strip()[: LONGEST_TOKEN * limit] for text in texts)
    stripped = [text.encode("utf-8", "replace").decode() for text in short]
    if not stripped:
        return []
    # Cut here and not by the tokenizer: its truncation would be saved with it, as a setting. Categories and
    # attributes come again and again: each distinct text is read once.
    distinct = list(dict.fromkeys(stripped))
    encoded = tokenizer(
        distinct, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
    )
    tokens = dict(zip(distinct, encoded["input_ids"], strict=True))
    return [list(tokens[text][:limit]) for text in stripped]
