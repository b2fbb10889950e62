"""Texts of known length from a fixed seed, out of a tokenizer's own words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.settings import Words

JOINED = 0.15  # of the words are two grown together, so that there are pieces to find as in a real text


def vocabulary(tokenizer: Any) -> list[str]:
    """The tokenizer's whole words of three to ten small letters, sorted."""
    return sorted(
        word for word in tokenizer.get_vocab() if 3 <= len(word) <= 10 and word.isascii() and word.isalpha()
    )


def make(words: Sequence[str], count: int, length: Words, seed: int) -> list[str]:
    """So many texts; no two are the same, else the handler would compute them once."""
    draw = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(_word(draw, words) for _ in range(draw.randint(length.least, length.most)))] = None
    return list(texts)


def _word(draw: random.Random, words: Sequence[str]) -> str:
    return draw.choice(words) + (draw.choice(words) if draw.random() < JOINED else "")


def count_tokens(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[int]:
    """Tokens of each text as the model reads it: special ones included, cut to the limit, without padding."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens)
    return [len(ids) for ids in encoded["input_ids"]]


def groups(texts: Sequence[str], size: int) -> list[list[str]]:
    """The texts in requests of this size."""
    return [list(texts[start : start + size]) for start in range(0, len(texts), size)]
