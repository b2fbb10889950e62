"""What a request is for: the native route, or one of the OpenAI protocol's; and how its answer is written.

    /predictions/NAME                               native
    /predictions/NAME/VERSION/generate-stream       native, with `stream`
    /predictions/NAME/VERSION/v1/chat/completions   OpenAI's, as are v1/completions, v1/embeddings and v1/models
    /predictions/NAME/VERSION/v1/responses          OpenAI's, asked of the engine as a chat

No other path of the engine's application can be reached.
"""

from __future__ import annotations

import orjson

from handler.errors import BadRequest, HandlerError, InvalidRequest, NotOffered
from handler.generation import native_route, openai_route, responses_route
from handler.generation.openai_protocol import CHAT, RESPONSES
from handler.generation.route import Route, Served
from handler.protocols import protocol
from handler.protocols.openai_embeddings import MODELS, models_document, openai_error
from handler.wire import GRPC, OPEN_INFERENCE_GRPC, Message, Reply, error_reply

STREAMED = "generate-stream"  # the native route, with `stream` said by the path


def find(message: Message, served: Served) -> Route | Reply:
    """A message's route, or its answer, where no engine is needed. Raises HandlerError."""
    path = message.path.strip("/")
    if message.transport == OPEN_INFERENCE_GRPC:
        raise NotOffered("this model generates text, which is no tensor; ask over HTTP")
    if path == MODELS or path.startswith(f"{MODELS}/"):
        return Reply(orjson.dumps(models_document(path, served.names)))
    offered = (*served.engine.fields, *([RESPONSES] if CHAT in served.engine.fields else []), MODELS)
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
    if path == RESPONSES:
        return responses_route.read(document, served)
    return openai_route.read(path, document, served) if path else native_route.read(document, served)


def refusal(message: Message | None, error: HandlerError) -> Reply:
    """An error as the protocol has it that the request speaks."""
    openai = message is not None and message.path.strip("/").startswith("v1/")
    return error_reply(error, openai_error if openai else None)
