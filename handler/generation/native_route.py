"""The native route: `{"prompt": …, "max_new_tokens": …}`, answered with `{"response": …}` or events of `text`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from handler.errors import InvalidRequest
from handler.generation.openai_protocol import (
    CHAT,
    COMPLETIONS,
    Document,
    Stream,
    Usage,
    event_of,
    message_of,
    said_in,
    text_of,
)
from handler.generation.openai_requests import DRAWN, PENALTY, TEMPERATURE, TOP_P
from handler.generation.route import Route, Served
from handler.request import MOST_PROBLEMS
from handler.rules import BOOLEAN, TEXT, Rule, check, integer, key, optional
from handler.wire import Reply

PASSED_ON = (*DRAWN, "stop", "presence_penalty", "frequency_penalty", "seed")


@dataclass(frozen=True)
class Sampling:
    """The native route's fields."""

    prompt: str | None = key(optional(TEXT), "what to continue or to answer", None)
    messages: list[Any] | None = key(
        optional(Rule("a list of at least one message", lambda v: isinstance(v, list) and bool(v))),
        "a conversation, in place of prompt",
        None,
    )
    max_new_tokens: int | None = key(optional(integer(1)), "the most tokens of the answer", None)
    max_tokens: int | None = key(optional(integer(1)), "another name of max_new_tokens", None)
    temperature: float | None = key(optional(TEMPERATURE), "0: always the likeliest token", None)
    top_p: float | None = key(optional(TOP_P), "of the probability that is drawn from", None)
    top_k: int | None = key(optional(integer(1)), "of the tokens that are drawn from", None)
    stop: Any = key(
        Rule(
            "a string, or a list of up to 4",
            lambda v: (
                v is None
                or isinstance(v, str)
                or (isinstance(v, list) and 0 < len(v) <= 4 and all(isinstance(one, str) for one in v))
            ),
        ),
        "what ends the answer",
        None,
    )
    presence_penalty: float | None = key(optional(PENALTY), "against what was said at all", None)
    frequency_penalty: float | None = key(optional(PENALTY), "against what was said often", None)
    seed: int | None = key(optional(integer(0)), "of what is drawn", None)
    stream: bool = key(BOOLEAN, "answer piece by piece", False)


def read(document: Document, served: Served) -> Route:
    """A request to its route. Raises InvalidRequest or BadRequest."""
    if problems := check(document, Sampling, quote=False, most=MOST_PROBLEMS):
        raise InvalidRequest("; ".join(map(str, problems)))
    asked = Sampling(**document)
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequest("prompt: expected either prompt or messages")
    if asked.max_new_tokens is not None and asked.max_tokens is not None:
        raise InvalidRequest("max_tokens: is another name of max_new_tokens; expected one of them")
    body: Document = {name: getattr(asked, name) for name in PASSED_ON if getattr(asked, name) is not None}
    body["stream"] = asked.stream
    path = CHAT if asked.messages is not None or served.engine.has_template else COMPLETIONS
    if path == CHAT:
        body["messages"] = asked.messages or [{"role": "user", "content": asked.prompt}]
    else:
        body["prompt"] = asked.prompt
    ask = served.ask(path, body, asked.max_new_tokens or asked.max_tokens)
    usage = Usage()

    def whole(status: int, body: bytes, content_type: str) -> Reply:
        return _answer(status, orjson.loads(body), usage)

    def tell(document: Document, event: bytes) -> bytes:
        usage.note(document)
        if "error" in document:
            return event_of({"error": document["error"]})
        text = said_in(document)
        return event_of({"text": text}) if text else b""

    return Route(ask, whole, Stream(tell).piece, asked.stream, usage=usage)


def _answer(status: int, document: Document, usage: Usage) -> Reply:
    """A whole answer of the OpenAI protocol as the native one's."""
    if status != 200:
        kind = "InvalidRequest" if status < 500 else "InternalError"
        shown = message_of(document)
        return Reply(orjson.dumps({"error": {"code": status, "type": kind, "message": shown}}), status=status)
    usage.note(document)
    [choice] = document["choices"]
    return Reply(
        orjson.dumps(
            {
                "response": text_of(choice),
                "input_token_count": usage.prompt_tokens,
                "output_token_count": usage.new_tokens,
                "finish_reason": usage.finish_reason,
            }
        )
    )
