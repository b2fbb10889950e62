"""What a request is for: the native route, or one of the OpenAI protocol's; and how its answer is written.

    /predictions/NAME                               native
    /predictions/NAME/VERSION/generate-stream       native, with `stream`
    /predictions/NAME/VERSION/v1/chat/completions   OpenAI's, as are v1/completions, v1/embeddings and v1/models

No other path of the engine's application can be reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from handler.errors import BadRequest, HandlerError, InvalidRequest, NotOffered, shortened
from handler.generation.application import Ask
from handler.generation.engine import Engine
from handler.generation.openai_protocol import (
    CHAT,
    COMPLETIONS,
    Document,
    Stream,
    Usage,
    as_protocol,
    bounded,
    event_of,
    text_of,
    written,
)
from handler.generation.openai_requests import DRAWN, Limits, judge
from handler.protocols import protocol
from handler.protocols.openai_embeddings import MODELS, models_document, openai_error
from handler.request import MOST_PROBLEMS
from handler.rules import BOOLEAN, TEXT, Rule, check, integer, key, number, optional
from handler.wire import GRPC, OPEN_INFERENCE_GRPC, Message, Reply, error_reply

EVENT_STREAM = "text/event-stream; charset=utf-8"  # it always is, but clients go by the type


@dataclass(frozen=True)
class Served:
    """What routes have to know of the model."""

    name: str  # in URLs, and of `model`
    engine: Engine
    limits: Limits
    max_body_bytes: int
    also_called: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What `model` may be: the model's own names, and its adapters'."""
        return (self.name, *self.also_called, *self.engine.adapters)


@dataclass(frozen=True)
class Route:
    """Where a request goes, and how its answer comes back."""

    ask: Ask
    whole: Callable[[int, bytes, str], Reply]  # status, body and content type of the application's answer
    piece: Callable[[bytes, bool], bytes]  # bytes of its stream, and whether they are the last
    streams: bool  # whether that is what was asked for
    refuse: Callable[[HandlerError], Reply] = error_reply  # in the shape of its protocol
    usage: Usage = field(default_factory=Usage)  # what has been seen of its answer


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


UNNAMED = "dummy"  # what huggingface_hub's InferenceClient(base_url=…) has for a model that it was not told
STREAMED = "generate-stream"  # the native route, with `stream` said by the path
PASSED_ON = (*DRAWN, "stop", "presence_penalty", "frequency_penalty", "seed")


def find(message: Message, served: Served) -> Route | Reply:
    """A message's route, or its answer, where no engine is needed. Raises HandlerError."""
    path = message.path.strip("/")
    if message.transport == OPEN_INFERENCE_GRPC:
        raise NotOffered("this model generates text, which is no tensor; ask over HTTP")
    if path == MODELS or path.startswith(f"{MODELS}/"):
        return Reply(orjson.dumps(models_document(path, served.names)))
    offered = (*served.engine.fields, MODELS)
    streamed = path == STREAMED
    if streamed:
        path = ""
    if path and path not in offered:
        raise NotOffered(f"there is no such path; expected {', '.join(offered)}, or none")
    if not path and CHAT not in served.engine.fields:
        raise NotOffered(f"this model generates no text; expected {', '.join(offered)}")
    protocol.check(message, served.max_body_bytes)
    if message.fields:  # curl -d sends one, unless it is told a content type
        raise BadRequest("the body is a form; send JSON, as content-type: application/json")
    try:
        document = orjson.loads(message.body)
    except orjson.JSONDecodeError as err:
        raise BadRequest("the body is not valid JSON") from err
    if not isinstance(document, dict):
        raise BadRequest("the body is not a JSON object")
    if streamed:
        document = {**document, "stream": True}
    if document.get("stream") and message.transport == GRPC:  # the frontend drops it then (GRPCJob.isOpen)
        raise InvalidRequest("stream: TorchServe's gRPC ends a stream after its first piece; ask over HTTP")
    return _openai(path, document, served) if path else _native(document, served)


def refusal(message: Message | None, error: HandlerError) -> Reply:
    """An error as the protocol has it that the request speaks."""
    openai = message is not None and message.path.strip("/").startswith("v1/")
    return error_reply(error, openai_error if openai else None)


def _openai(path: str, document: Document, served: Served) -> Route:
    wanted = document.get("model")
    if wanted not in (None, UNNAMED) and wanted not in served.names:
        raise NotOffered(f"model: only {', '.join(served.names)} is served here")
    engine = served.engine
    known = wanted if wanted in engine.adapters else served.name  # to the engine
    asked = {**judge(path, document, engine.fields[path], served.limits, engine.draws), "model": known}
    options = asked.get("stream_options") or {}
    if asked.get("stream"):
        asked["stream_options"] = {"include_usage": True}  # which is taken out again where nobody asked
    else:
        asked.pop("stream_options", None)
    usage = Usage()

    def whole(status: int, body: bytes, content_type: str) -> Reply:
        if status == 200:
            usage.note(orjson.loads(body))
        return Reply(body if status < 400 else bounded(body), content_type, status)

    def tell(document: Document, event: bytes) -> bytes:
        usage.note(document)
        return as_protocol(document, event, usage_wanted=options.get("include_usage", False))

    refuse = partial(error_reply, shape=openai_error)
    streams = bool(asked.get("stream"))
    return Route(Ask("POST", f"/{path}", written(asked)), whole, Stream(tell).piece, streams, refuse, usage)


def _native(document: Document, served: Served) -> Route:
    if problems := check(document, Sampling, quote=False, most=MOST_PROBLEMS):
        raise InvalidRequest("; ".join(map(str, problems)))
    asked = Sampling(**document)
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequest("prompt: expected either prompt or messages")
    if asked.max_new_tokens is not None and asked.max_tokens is not None:
        raise InvalidRequest("max_tokens: is another name of max_new_tokens; expected one of them")
    most = served.limits.new_tokens
    # vLLM refuses a number that is over all that the model reads, also one that was not asked for.
    limit = asked.max_new_tokens or asked.max_tokens or min(most, served.engine.context_tokens)
    if limit > most:
        raise InvalidRequest(f"max_new_tokens: {limit}; the limit is {most}")
    body: Document = {name: getattr(asked, name) for name in PASSED_ON if getattr(asked, name) is not None}
    if not served.engine.draws and not body.keys() & set(DRAWN):
        body["temperature"] = 0  # vLLM's own default is 1, where the model's configuration says nothing
    body |= {"max_tokens": limit, "stream": asked.stream}
    path = CHAT if asked.messages is not None or served.engine.has_template else COMPLETIONS
    if path == CHAT:
        body["messages"] = asked.messages or [{"role": "user", "content": asked.prompt}]
    else:
        body["prompt"] = asked.prompt
    body = {**judge(path, body, served.engine.fields[path], served.limits), "model": served.name}
    if asked.stream:
        body["stream_options"] = {"include_usage": True}
    usage = Usage()

    def whole(status: int, body: bytes, content_type: str) -> Reply:
        return _answer(status, orjson.loads(body), usage)

    def tell(document: Document, event: bytes) -> bytes:
        usage.note(document)
        if "error" in document:
            return event_of({"error": document["error"]})
        text = "".join(map(text_of, document.get("choices", ())))
        return event_of({"text": text}) if text else b""

    return Route(Ask("POST", f"/{path}", written(body)), whole, Stream(tell).piece, asked.stream, usage=usage)


def _answer(status: int, document: Document, usage: Usage) -> Reply:
    """A whole answer of the OpenAI protocol as the native one's."""
    if status != 200:
        error = document.get("error") or {}
        message = error.get("message") if isinstance(error, dict) else None
        kind = "InvalidRequest" if status < 500 else "InternalError"
        shown = str(message or "the engine refused the request")
        shown = shortened(shown).encode("ascii", "replace").decode()
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
