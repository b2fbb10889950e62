"""The OpenAI protocol's routes, which are the engine's own: judged before, and kept to the protocol after."""

from __future__ import annotations

from functools import partial

import orjson

from handler.errors import NotOffered
from handler.generation.openai_protocol import Document, Stream, Usage, as_protocol, bounded
from handler.generation.openai_requests import judge
from handler.generation.route import Route, Served, ask
from handler.protocols.openai_embeddings import openai_error
from handler.wire import Reply, error_reply

UNNAMED = "dummy"  # what huggingface_hub's InferenceClient(base_url=…) has for a model that it was not told


def read(path: str, document: Document, served: Served) -> Route:
    """A request to one of the paths. Raises NotOffered or BadRequest."""
    engine, model = served.engine, known(document, served)
    asked = judge(path, document, engine.fields[path], served.limits, engine.draws)
    options = asked.get("stream_options") or {}
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
    return Route(ask(path, asked, model), whole, Stream(tell).piece, streams, refuse, usage)


def known(document: Document, served: Served) -> str:
    """What the engine calls the model that is asked for. Raises NotOffered."""
    wanted = document.get("model")
    model = served.known(None if wanted == UNNAMED else wanted)
    if model is None:
        raise NotOffered(f"model: only {', '.join(served.names)} is served here")
    return model
