"""What a request is for: the native route, or one of the OpenAI protocol's; and how its answer is written.

    /predictions/NAME                               native, or Hugging Face's where the body has `inputs`
    /predictions/NAME/VERSION/generate-stream       the same, with `stream`
    /predictions/NAME/VERSION/v1/hub                Hugging Face's
    /predictions/NAME/VERSION/v1/chat/completions   OpenAI's, as are v1/completions, v1/embeddings and v1/models

No other path of the engine's application can be reached.
"""

from __future__ import annotations

import orjson

from handler.errors import BadRequest, HandlerError, InvalidRequest, NotOffered
from handler.generation import hugging_face_route, native_route, openai_route
from handler.generation.openai_protocol import CHAT, Document
from handler.generation.route import Route, Served
from handler.protocols import protocol
from handler.protocols.openai_embeddings import MODELS, models_document, openai_error
from handler.wire import GRPC, OPEN_INFERENCE_GRPC, Message, Reply, error_reply

STREAMED = "generate-stream"  # `stream` said by the path
HUB = "v1/hub"
OURS = ("", STREAMED, HUB)  # and no path of the engine's


def find(message: Message, served: Served) -> Route | Reply:
    """A message's route, or its answer, where no engine is needed. Raises HandlerError."""
    path = message.path.strip("/")
    if message.transport == OPEN_INFERENCE_GRPC:
        raise NotOffered("this model generates text, which is no tensor; ask over HTTP")
    if path == MODELS or path.startswith(f"{MODELS}/"):
        return Reply(orjson.dumps(models_document(path, served.names)))
    offered = (*served.engine.fields, MODELS)
    ours = path in OURS
    if not ours and path not in offered:
        raise NotOffered(f"there is no such path; expected {', '.join(offered)}, or none")
    if ours and CHAT not in served.engine.fields:
        raise NotOffered(f"this model generates no text; expected {', '.join(offered)}")
    document = _read(message, served)
    if path == STREAMED:
        document["stream"] = True
    if document.get("stream") and message.transport == GRPC:  # the frontend drops it then (GRPCJob.isOpen)
        raise InvalidRequest("stream: TorchServe's gRPC ends a stream after its first piece; ask over HTTP")
    if not ours:
        return openai_route.read(path, document, served)
    if path != HUB and "inputs" not in document:
        return native_route.read(document, served)
    try:
        return hugging_face_route.read(document, served)
    except HandlerError as error:
        return hugging_face_route.refuse(error)


def refusal(message: Message | None, error: HandlerError) -> Reply:
    """An error as the protocol has it that the request speaks."""
    path = message.path.strip("/") if message is not None else ""
    if path == HUB:
        return hugging_face_route.refuse(error)
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
