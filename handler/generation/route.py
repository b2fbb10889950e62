"""What a route is: what a request asks the engine for, and how its answer is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from handler.errors import HandlerError, InvalidRequest
from handler.generation.application import Ask
from handler.generation.engine import Engine
from handler.generation.openai_protocol import Document, Usage, event_of, written
from handler.generation.openai_requests import DRAWN, Limits, judge
from handler.protocols.openai_embeddings import error_document
from handler.wire import Reply, error_reply

EVENT_STREAM = "text/event-stream; charset=utf-8"  # it always is, but clients go by the type
FAILED = event_of(error_document(500, "the engine failed"))


@dataclass(frozen=True)
class Served:
    """What routes have to know of the model."""

    name: str  # in URLs, and of `model`
    engine: Engine
    limits: Limits
    max_body_bytes: int
    also_called: tuple[str, ...] = ()
    version: str = "1.0"  # which some protocols say with the name

    @property
    def names(self) -> tuple[str, ...]:
        """What `model` may be: the model's own names, and its adapters'."""
        return (self.name, *self.also_called, *self.engine.adapters)

    def known(self, name: str | None) -> str | None:
        """What the engine calls one of the names; nothing is the model's own. None where it is none of them."""
        if name is not None and name not in self.names:
            return None
        return name if name in self.engine.adapters else self.name

    def ask(self, path: str, body: Document, new_tokens: int | None) -> Ask:
        """What a protocol of its own terms asks of one of the engine's paths. Raises BadRequest or InvalidRequest.

        Args:
            path: CHAT or COMPLETIONS.
            body: in OpenAI's terms.
            new_tokens: the most of an answer, where the request says so.
        """
        most = self.limits.new_tokens
        # vLLM refuses a number that is over all that the model reads, also one that was not asked for.
        limit = new_tokens or min(most, self.engine.context_tokens)
        if limit > most:
            raise InvalidRequest(f"max_new_tokens: {limit}; the limit is {most}")
        if not self.engine.draws and not body.keys() & set(DRAWN):
            # vLLM's own default is 1, where the model's configuration says nothing.
            body = {**body, "temperature": 0}
        asked = judge(path, {**body, "max_tokens": limit}, self.engine.fields[path], self.limits)
        return ask(path, asked, asked.get("model", self.name))


def ask(path: str, asked: Document, model: str) -> Ask:
    """A request that has been judged, as the engine gets it: a stream always with its usage. Raises BadRequest."""
    asked = {name: value for name, value in asked.items() if name != "stream_options"} | {"model": model}
    if asked.get("stream"):
        asked["stream_options"] = {"include_usage": True}
    return Ask("POST", f"/{path}", written(asked))


@dataclass(frozen=True)
class Route:
    """Where a request goes, and how its answer comes back."""

    ask: Ask
    whole: Callable[[int, bytes, str], Reply]  # status, body and content type of the application's answer
    piece: Callable[[bytes, bool], bytes]  # bytes of its stream, and whether they are the last
    streams: bool  # whether that is what was asked for
    refuse: Callable[[HandlerError], Reply] = error_reply  # in the shape of its protocol
    usage: Usage = field(default_factory=Usage)  # what has been seen of its answer
    failed: Callable[[], bytes] = lambda: FAILED  # the event of a stream that has begun and goes no further
