"""How likely a model held each token of its answer, in the OpenAI protocol's two shapes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from itertools import accumulate
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from handler.generation.openai_protocol import Document, Stream, event_of
from handler.generation.sampling import Told

UNREADABLE = "\ufffd"
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


def with_logprobs(answer: Document, told: Sequence[Told], tokenizer: Any) -> Document:
    """An answer of one choice, of v1/chat/completions or v1/completions, with how likely its tokens were.

    They are those that its usage counts: what ends the answer is among them, a string of `stop` too.
    """
    return _told(answer, told[: answer["usage"]["completion_tokens"]], tokenizer, 0)


def _told(answer: Document, told: Sequence[Told], tokenizer: Any, offset: int) -> Document:
    """An answer, or an event, of one choice; the characters before it are what a completion's count from."""
    [choice] = answer["choices"]
    logprobs = _of_completion(told, tokenizer, offset) if "text" in choice else _of_chat(told, tokenizer)
    return {**answer, "choices": [{**choice, "logprobs": logprobs}]}


def counted(queue: Any, streamer: Any) -> list[int]:
    """How many tokens had been taken when each piece of a stream was put into its queue; it grows with the stream.

    Args:
        queue: the stream's, an asyncio.Queue.
        streamer: puts them there, and counts (CBStreamer.total_tokens).
    """
    counts, put = [0] * queue.qsize(), queue.put_nowait

    def put_counted(item: Any) -> None:
        counts.append(streamer.total_tokens)
        put(item)

    queue.put_nowait = put_counted
    return counts


async def alongside(
    pieces: AsyncIterable[str], told: Sequence[Told], counts: Sequence[int], tokenizer: Any
) -> AsyncIterator[str]:
    """The events of a stream of one choice, each with how likely the tokens were that it has.

    What ends the answer is in the last.

    Args:
        pieces: the stream.
        told: of each token.
        counts: tokens up to each piece (`counted`).
        tokenizer: the model's.
    """
    number, given, offset = 0, 0, 0  # of the event; tokens that were told of before it, and their characters

    def tell(chunk: Document, event: bytes) -> bytes:
        nonlocal number, given, offset
        if "error" in chunk or "role" in chunk["choices"][0].get("delta", ()):
            return event
        until = chunk["usage"]["completion_tokens"] if "usage" in chunk else counts[number]
        some, given, number = told[given:until], max(given, until), number + 1
        if not some:
            return event
        told_event = event_of(_told(chunk, some, tokenizer, offset))
        if "text" in chunk["choices"][0]:
            offset += sum(len(_said(one.token, tokenizer)[0]) for one in some)
        return told_event

    events = Stream(tell)
    async for piece in pieces:
        yield events.piece(piece.encode(), last=False).decode()


def _of_chat(told: Sequence[Told], tokenizer: Any) -> Document:
    def entry(token: int, logprob: float) -> Document:
        text, content = _said(token, tokenizer)
        return {"token": text, "logprob": logprob, "bytes": list(content)}

    return {
        "content": [
            {**entry(one.token, one.logprob), "top_logprobs": [entry(*top) for top in one.tops]} for one in told
        ]
    }


def _of_completion(told: Sequence[Told], tokenizer: Any, offset: int) -> Document:
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
        "text_offset": [*accumulate((len(_said(one.token, tokenizer)[0]) for one in told), initial=offset)][:-1],
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
