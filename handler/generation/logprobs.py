"""How likely a model held each token of its answer, in the OpenAI protocol's two shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from handler.generation.openai_protocol import Document
from handler.generation.sampling import Told

UNREADABLE = "\ufffd"
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


def with_logprobs(answer: Document, told: Sequence[Told], tokenizer: Any) -> Document:
    """An answer of one choice, of v1/chat/completions or v1/completions, with how likely its tokens were.

    They are those that its usage counts: what ends the answer is among them, a string of `stop` too.
    """
    [choice] = answer["choices"]
    told = told[: answer["usage"]["completion_tokens"]]
    shape = _of_completion if "text" in choice else _of_chat
    return {**answer, "choices": [{**choice, "logprobs": shape(told, tokenizer)}]}


def _of_chat(told: Sequence[Told], tokenizer: Any) -> Document:
    def entry(token: int, logprob: float) -> Document:
        text, content = _said(token, tokenizer)
        return {"token": text, "logprob": logprob, "bytes": list(content)}

    return {
        "content": [
            {**entry(one.token, one.logprob), "top_logprobs": [entry(*top) for top in one.tops]} for one in told
        ]
    }


def _of_completion(told: Sequence[Told], tokenizer: Any) -> Document:
    def name(token: int) -> str:
        text, content = _said(token, tokenizer)
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content) if UNREADABLE in text else text

    return {
        "tokens": [name(one.token) for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [
            # The token itself is among them, however unlikely it was.
            {name(token): logprob for token, logprob in (*one.tops, (one.token, one.logprob))}
            for one in told
        ],
        "text_offset": [0, *accumulate(len(_said(one.token, tokenizer)[0]) for one in told)][: len(told)],
    }


def _said(token: int, tokenizer: Any) -> tuple[str, bytes]:
    """A token's text and its bytes, which may be a part of a character's: tokenizers of bytes have their ways."""
    text: str = tokenizer.decode([token])
    if UNREADABLE not in text:
        return text, text.encode("utf-8", "replace")
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):  # SentencePiece's
        return text, bytes.fromhex(found[1])
    return text, bytes(BYTES[letter] for letter in piece if letter in BYTES)  # GPT-2's
