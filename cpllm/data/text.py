"""Prompts (the paper's, word for word) and tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DESCRIBE = (
    "Based on the provided video frames, create a three-sentence summary. First, describe the "
    "visual content of the video in detail. Second, identify the style of the video. Third, "
    "assess the technical quality."
)
"""Sec. 4.1: prompt of the annotation, and of fine-tuning on its answers."""

COMPARE = "Which image has better perceptual quality: the first or the second?"
"""Figure 2's question, for pairs."""

ANSWERS = ("First.", "Second.")
PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Text:
    """One padded example: `tokens` int32[L], `valid` and `answer` bool[L]."""

    tokens: np.ndarray
    valid: np.ndarray
    answer: np.ndarray


def train_tokenizer(descriptions: list[str], vocab: int) -> Tokenizer:
    """Byte-pair encoding with `vocab` entries, trained on all that the decoder will read."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs = [f"{COMPARE} {answer}" for answer in ANSWERS] * len(descriptions)
    tokenizer.train_from_iterator([*(f"{DESCRIBE} {d}" for d in descriptions), *pairs], trainer)
    return tokenizer


def load_gemma(folder: str | Path) -> Tokenizer:
    """Gemma's own tokenizer from a local checkpoint folder; its pad, eos and bos are 0, 1, 2."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def pack(tokenizer: Tokenizer, prompt: str, answer: str | None, length: int) -> Text:
    """<bos> prompt answer <eos>, padded to `length`; ValueError when it does not fit.

    With `answer=None` the sequence ends after the prompt, ready for decoding.
    """
    head = [BOS, *tokenizer.encode(prompt).ids]
    tail = [] if answer is None else [*tokenizer.encode(answer).ids, EOS]
    n = len(head) + len(tail)
    if n > length:
        raise ValueError(f"text of {n} tokens exceeds the limit of {length}: {prompt!r} {answer!r}")
    tokens = np.full(length, PAD, np.int32)
    tokens[:n] = head + tail
    at = np.arange(length)
    return Text(tokens, at < n, (at >= len(head)) & (at < n))


def unpack(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """Tokens up to the first <eos>, as text."""
    ids = []
    for token in map(int, tokens):
        if token == EOS:
            break
        ids.append(token)
    return tokenizer.decode(ids).strip()
