"""What a request is for: the native route, or one of the OpenAI protocol's; and how its answer is written.

    /predictions/NAME                               native
    /predictions/NAME/VERSION/v1/chat/completions   OpenAI's, as are v1/completions and v1/models

No other path of the engine's application can be reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from handler.errors import BadRequest, HandlerError, InvalidRequest, NotOffered, TooLarge
from handler.generation.application import Ask
from handler.request import MOST_PROBLEMS
from handler.rules import BOOLEAN, TEXT, Rule, check, integer, key, number, optional
from handler.wire import Message, Reply, error_reply

CHAT, COMPLETIONS, MODELS = "v1/chat/completions", "v1/completions", "v1/models"
OPENAI = (CHAT, COMPLETIONS, MODELS)
DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"  # it always is, but clients go by the type

Document: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Served:
    """What routes have to know of the model."""

    name: str  # in URLs, and of `model`
    has_template: bool  # whether prompts are put into a chat template
    max_new_tokens: int  # the cap
    max_body_bytes: int


@dataclass(frozen=True)
class Route:
    """Where a request goes, and how its answer comes back."""

    ask: Ask
    whole: Callable[[int, bytes, str], Reply]  # status, body and content type of the application's answer
    piece: Callable[[bytes, bool], bytes]  # bytes of its stream, and whether they are the last


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
    temperature: float | None = key(optional(number(0, 2)), "0: always the likeliest token", None)
    top_p: float | None = key(optional(number(1e-6, 1)), "of the probability that is drawn from", None)
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
    presence_penalty: float | None = key(optional(number(-2, 2)), "against what was said at all", None)
    frequency_penalty: float | None = key(optional(number(-2, 2)), "against what was said often", None)
    seed: int | None = key(optional(integer(0)), "of what is drawn", None)
    stream: bool = key(BOOLEAN, "answer piece by piece", False)


PASSED_ON = ("temperature", "top_p", "top_k", "stop", "presence_penalty", "frequency_penalty", "seed")


def find(message: Message, served: Served) -> Route | Reply:
    """A message's route, or its answer, where no engine is needed. Raises HandlerError."""
    path = message.path.strip("/")
    if path == MODELS:
        model = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "torchserve"}
        return Reply(orjson.dumps({"object": "list", "data": [model]}))
    if path and path not in OPENAI:
        raise NotOffered(f"there is no such path; expected {', '.join(OPENAI)}, or none")
    if len(message.body) > served.max_body_bytes:
        raise TooLarge(f"the body has {len(message.body)} bytes; the limit is {served.max_body_bytes}")
    try:
        document = orjson.loads(message.body)
    except orjson.JSONDecodeError as err:
        raise BadRequest("the body is not valid JSON") from err
    if not isinstance(document, dict):
        raise BadRequest("the body is not a JSON object")
    return _openai(path, document, served) if path else _native(document, served)


def refusal(message: Message | None, error: HandlerError) -> Reply:
    """An error as the protocol has it that the request speaks."""
    if message is None or not message.path.strip("/").startswith("v1/"):
        return error_reply(error)
    text = str(error).encode("ascii", "replace").decode()
    return Reply(orjson.dumps(openai_error(error.status, text)), status=error.status)


def openai_error(status: int, message: str) -> dict[str, Any]:
    """An error's document in the OpenAI protocol."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _openai(path: str, document: dict[str, Any], served: Served) -> Route:
    wanted = document.get("model")
    if wanted is not None and wanted != served.name:
        raise NotOffered(f"model: only {served.name} is served here")
    body = orjson.dumps({**document, "model": served.name})
    return Route(Ask("POST", f"/{path}", body), lambda status, body, kind: Reply(body, kind, status), _ended)


def _ended(piece: bytes, last: bool) -> bytes:
    """The stream as it came; transformers' application leaves out its end."""
    return piece + DONE if last and DONE.strip() not in piece else piece


def _native(document: dict[str, Any], served: Served) -> Route:
    if problems := check(document, Sampling, quote=False, most=MOST_PROBLEMS):
        raise InvalidRequest("; ".join(map(str, problems)))
    asked = Sampling(**document)
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequest("prompt: expected either prompt or messages")
    if asked.max_new_tokens is not None and asked.max_tokens is not None:
        raise InvalidRequest("max_tokens: is another name of max_new_tokens; expected one of them")
    limit = asked.max_new_tokens or asked.max_tokens or served.max_new_tokens
    if limit > served.max_new_tokens:
        raise InvalidRequest(f"max_new_tokens: {limit}; the limit is {served.max_new_tokens}")
    body = {"model": served.name, "max_tokens": limit, "stream": asked.stream}
    body |= {name: getattr(asked, name) for name in PASSED_ON if getattr(asked, name) is not None}
    chat = asked.messages is not None or served.has_template
    if chat:
        body["messages"] = asked.messages or [{"role": "user", "content": asked.prompt}]
    else:
        body["prompt"] = asked.prompt
    path = CHAT if chat else COMPLETIONS
    return Route(Ask("POST", f"/{path}", orjson.dumps(body)), _answer, Translated().piece)


def _answer(status: int, body: bytes, content_type: str) -> Reply:
    """A whole answer of the OpenAI protocol as the native one's."""
    document = orjson.loads(body)
    if status != 200:
        error = document.get("error") or {}
        message = error.get("message") if isinstance(error, dict) else None
        kind = "InvalidRequest" if status < 500 else "InternalError"
        shown = str(message or "the engine refused the request").encode("ascii", "replace").decode()
        return Reply(orjson.dumps({"error": {"code": status, "type": kind, "message": shown}}), status=status)
    [choice], usage = document["choices"], document["usage"]
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    return Reply(
        orjson.dumps(
            {
                "response": text or "",
                "input_token_count": usage["prompt_tokens"],
                "output_token_count": usage["completion_tokens"],
                "finish_reason": choice["finish_reason"],
            }
        )
    )


@dataclass
class Translated:
    """A stream of the OpenAI protocol's chunks as one of new text."""

    unread: bytes = field(default=b"")  # the beginning of an event whose end has not come

    def piece(self, piece: bytes, last: bool) -> bytes:
        """What of it can be told now."""
        *events, self.unread = (self.unread + piece).split(b"\n\n")
        told = [self._event(event) for event in events]
        return b"".join(told) + (DONE if last else b"")

    def _event(self, event: bytes) -> bytes:
        data = event.strip().removeprefix(b"data: ")
        if not data or data == b"[DONE]":
            return b""
        document = orjson.loads(data)
        if "error" in document:
            return b"data: " + orjson.dumps({"error": document["error"]}) + b"\n\n"
        text = "".join(_text(choice) for choice in document.get("choices", ()))
        return b"data: " + orjson.dumps({"text": text}) + b"\n\n" if text else b""


def _text(choice: Document) -> str:
    delta = choice.get("delta")
    return str((delta.get("content") if delta is not None else choice.get("text")) or "")
