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
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
"""As Gemma spells them; their numbers are the tokenizer's affair (Gemma's are 0, 2, 1)."""


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
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs = [f"{COMPARE} {answer}" for answer in ANSWERS] * len(descriptions)
    tokenizer.train_from_iterator([*(f"{DESCRIBE} {d}" for d in descriptions), *pairs], trainer)
    return tokenizer


def load_gemma(folder: str | Path) -> Tokenizer:
    """Gemma's own tokenizer from a local checkpoint folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def pack(tokenizer: Tokenizer, prompt: str, answer: str | None, length: int,
         ends: bool = True) -> Text:
    """<bos> prompt answer <eos>, padded to `length`; ValueError when it does not fit.

    With `answer=None` the sequence ends after the prompt, ready for decoding; without `ends` the
    answer does, and would go on.
    """
    head = [tokenizer.token_to_id(BOS), *_ids(tokenizer, prompt)]
    end = [tokenizer.token_to_id(EOS)] if ends else []
    tail = [] if answer is None else [*_ids(tokenizer, answer), *end]
    n = len(head) + len(tail)
    if n > length:
        raise ValueError(f"text of {n} tokens exceeds the limit of {length}: {prompt!r} {answer!r}")
    tokens = np.full(length, tokenizer.token_to_id(PAD), np.int32)
    tokens[:n] = head + tail
    at = np.arange(length)
    return Text(tokens, at < n, (at >= len(head)) & (at < n))


def stack(texts: Iterable[Text]) -> dict[str, np.ndarray]:
    """Texts of one length as arrays [N,L] by the names of their fields."""
    texts = list(texts)
    return {k: np.stack([getattr(t, k) for t in texts]) for k in ("tokens", "valid", "answer")}


def _ids(tokenizer: Tokenizer, words: str) -> list[int]:
    """Without the tokens that Gemma's own post-processing would add a second time."""
    return tokenizer.encode(words, add_special_tokens=False).ids


def unpack(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """Tokens up to the first <eos>, as text."""
    ids = []
    for token in map(int, tokens):
        if token == tokenizer.token_to_id(EOS):
            break
        ids.append(token)
    return tokenizer.decode(ids).strip()
