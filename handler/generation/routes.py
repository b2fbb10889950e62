"""Which route a request has, by its path and, without one, by its keys.

    /predictions/NAME                               native; Hugging Face's where the body has `inputs`, KServe's
                                                    first protocol where it has `instances`
    /predictions/NAME/VERSION/generate-stream       the same, with `stream`
    /predictions/NAME/VERSION/v1/hub                Hugging Face's
    /predictions/NAME/VERSION/v2/generate           KServe's second protocol and Triton's, as is v2/generate_stream
    /predictions/NAME/VERSION/v1/chat/completions   OpenAI's, as are v1/completions, v1/embeddings and v1/models
    /predictions/NAME/VERSION/v1/responses          OpenAI's, asked of the engine as a chat

No other path of the engine's application can be reached.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import orjson

from handler.errors import BadRequest, HandlerError, InvalidRequest, NotOffered
from handler.generation import (
    generate_route,
    hugging_face_route,
    instances_route,
    native_route,
    openai_route,
    responses_route,
)
from handler.generation.openai_protocol import CHAT, RESPONSES, Document
from handler.generation.route import Route, Served
from handler.protocols import protocol
from handler.protocols.openai_embeddings import MODELS, models_document, openai_error
from handler.wire import GRPC, OPEN_INFERENCE_GRPC, Message, Reply, error_reply

STREAMED = "generate-stream"  # `stream` said by the path
HUB = "v1/hub"
GENERATE, GENERATE_STREAM = "v2/generate", "v2/generate_stream"


def find(message: Message, served: Served) -> Route | Reply:
    """A message's route, or its answer, where no engine is needed. Raises HandlerError."""
    path, fields = message.path.strip("/"), served.engine.fields
    if message.transport == OPEN_INFERENCE_GRPC:
        raise NotOffered("this model generates text, which is no tensor; ask over HTTP")
    if path == MODELS or path.startswith(f"{MODELS}/"):
        return Reply(orjson.dumps(models_document(path, served.names)))
    offered = (*fields, *([RESPONSES] if CHAT in fields else []), MODELS)
    if path not in OURS and path not in fields:
        raise NotOffered(f"there is no such path; expected {', '.join(offered)}, or none")
    if path in OURS and CHAT not in fields:
        raise NotOffered(f"this model generates no text; expected {', '.join(offered)}")
    document = _read(message, served)
    if path == STREAMED:
        document["stream"] = True
    if document.get("stream") and message.transport == GRPC:  # the frontend drops it then (GRPCJob.isOpen)
        raise InvalidRequest("stream: TorchServe's gRPC ends a stream after its first piece; ask over HTTP")
    return OURS[path](document, served) if path in OURS else openai_route.read(path, document, served)


def refusal(message: Message | None, error: HandlerError) -> Reply:
    """An error as the protocol has it that the request speaks."""
    path = message.path.strip("/") if message is not None else ""
    if path == HUB:
        return hugging_face_route.refuse(error)
    if path.startswith("v2/"):
        return generate_route.refuse(error)
    return error_reply(error, openai_error if path.startswith("v1/") else None)


def _read(message: Message, served: Served) -> Document:
    """The JSON object that is the body."""
    protocol.check(message, served.max_body_bytes)
    if message.fields:  # curl -d sends one, unless it is told a content type
        raise BadRequest("the body is a form; send JSON, as content-type: application/json")
    try:
        document = orjson.loads(message.body)
    except orjson.JSONDecodeError as err:
        raise BadRequest("the body is not valid JSON") from err
    if not isinstance(document, dict):
        raise BadRequest("the body is not a JSON object")
    return document


def _without_a_path(document: Document, served: Served) -> Route | Reply:
    of_keys = next((route for key, route in KEYS.items() if key in document), None)
    if of_keys is None:
        return native_route.read(document, served)
    read, refuse = of_keys
    try:
        return read(document, served)
    except HandlerError as error:
        return refuse(error)


# Keys that tell a protocol, and how it is read and refused.
KEYS: dict[str, tuple[Callable[[Document, Served], Route], Callable[[HandlerError], Reply]]] = {
    "instances": (instances_route.read, instances_route.refuse),
    "inputs": (hugging_face_route.read, hugging_face_route.refuse),
}
# Paths that ask an engine for something else than what they are called. All others are the engine's own.
OURS: dict[str, Callable[[Document, Served], Route | Reply]] = {
    "": _without_a_path,
    STREAMED: _without_a_path,
    HUB: hugging_face_route.read,
    GENERATE: partial(generate_route.read, streams=False),
    GENERATE_STREAM: partial(generate_route.read, streams=True),
    RESPONSES: responses_route.read,
}
