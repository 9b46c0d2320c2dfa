"""Byte-level BPE trained on the catalogue, used when training does not start from a checkpoint with a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
IMAGE, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
# The last three mark MOON3.0's attribute chain; recipes without chains never use them.
SPECIALS = (PAD, END, IMAGE, VISION_START, VISION_END, "<think>", "</think>", "<|emb|>")
VOCABULARY = 2048
LONGEST_TOKEN = 64  # characters; of a text at most this many per kept token are read


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any string in any script encodes and decodes to itself (NFC).

    Args:
        texts: the catalogue's texts and the queries.
        vocabulary: most tokens, including special tokens and the 256 bytes.
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
    ):  # saved, they would make equal tokenizers differ on disk
        tokenizer.init_kwargs.pop(how_loaded, None)
    return tokenizer


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends an answer; the padding token if the tokenizer has no end token."""
    return int(tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> list[list[int]]:
    """Token ids of each text, cut to ``limit``; text that spells a special token is tokenized as ordinary text.

    A lone surrogate, which JSON can carry and UTF-8 cannot, is read as a question mark.

    Returns:
        one list per text, empty for blank text.
    """
    # Cut before as well as after: a million letters without a space would take seconds to tokenize.
    short = (text.strip()[: LONGEST_TOKEN * limit] for text in texts)
    stripped = [text.encode("utf-8", "replace").decode() for text in short]
    if not stripped:
        return []
    # Cut here because the tokenizer's own truncation would be saved as one of its settings. Categories and attributes
    # repeat, so each distinct text is tokenized once.
    distinct = list(dict.fromkeys(stripped))
    encoded = tokenizer(
        distinct, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
    )
    tokens = dict(zip(distinct, encoded["input_ids"], strict=True))
    return [list(tokens[text][:limit]) for text in stripped]
