"""OpenAI's Responses API, by way of the engine's v1/chat/completions, so that one conversation has one answer.

Both engines have a v1/responses, and neither is reached. transformers 5.19's puts `instructions` in the place of a
system message, hands a thought on to a later turn, says `completed` of an answer that was cut off, and gives what
follows a call the index of the call (cli/serving/response.py). vLLM 0.32's reads the first part only of what an
assistant said (entrypoints/openai/responses/utils.py), breaks a stream off for what is wrong with its request, and
has tools of its own.
"""

from __future__ import annotations

from functools import partial

import orjson

from handler.generation import responses_requests
from handler.generation.openai_protocol import CHAT, Document, Stream, Usage, bounded, written
from handler.generation.openai_route import known
from handler.generation.responses_events import Answer, Events, as_response
from handler.generation.route import Route, Served, ask
from handler.protocols.openai_embeddings import openai_error
from handler.wire import Reply, error_reply


def read(document: Document, served: Served) -> Route:
    """A request to its route. Raises NotOffered or BadRequest."""
    engine, model = served.engine, known(document, served)
    asked, echoed = responses_requests.read(document, engine.fields[CHAT], served.limits, engine.draws)
    written({"response": echoed})  # or its answer could not be: it has a format one level deeper than a chat
    streams = bool(asked.get("stream"))
    usage, answer = Usage(), Answer(echoed, model)

    def whole(status: int, body: bytes, content_type: str) -> Reply:
        if status != 200:
            return Reply(body if status < 400 else bounded(body), content_type, status)
        chat = orjson.loads(body)
        usage.note(chat)
        return Reply(orjson.dumps(as_response(chat, answer)), content_type)

    events = Events(answer, usage)
    stream = Stream(events.tell, end=bytes)
    refuse = partial(error_reply, shape=openai_error)
    return Route(ask(CHAT, asked, model), whole, stream.piece, streams, refuse, usage, events.failed)
