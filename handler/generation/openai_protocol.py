"""What the OpenAI protocol's paths are called, and what its answers say, whole or as events of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from handler.errors import MAX_MESSAGE, BadRequest, shortened
from handler.protocols.openai_embeddings import error_document

CHAT, COMPLETIONS, EMBEDDINGS = "v1/chat/completions", "v1/completions", "v1/embeddings"
RESPONSES = "v1/responses"  # no path of an engine's
END = b"\n\n"  # of an event
DONE = b"data: [DONE]\n\n"

Document: TypeAlias = dict[str, Any]


@dataclass
class Usage:
    """What an answer says of itself; filled while it passes."""

    prompt_tokens: int | None = None
    new_tokens: int | None = None
    finish_reason: str | None = None
    stopped: bool = False  # by a string of `stop`, where the engine tells
    begun: bool = False  # whether something that the model said has passed

    def note(self, document: Document) -> None:
        """Takes what a whole answer or an event says."""
        if usage := document.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.new_tokens = usage.get("completion_tokens")
        for choice in document.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.stopped = self.stopped or isinstance(choice.get("stop_reason"), str)
            self.begun = self.begun or _says_something(choice)


@dataclass
class Stream:
    """An engine's events, one by one, whatever pieces they come in."""

    tell: Callable[[Document, bytes], bytes]  # an event, read and as it came -> what is said for it
    end: Callable[[], bytes] = lambda: DONE  # its last line, which transformers' application leaves out
    unread: bytes = field(default=b"")  # the beginning of an event whose end has not come

    def piece(self, piece: bytes, last: bool) -> bytes:
        """What can be told now."""
        *events, self.unread = (self.unread + piece).split(END)
        told = [self._told(event) for event in events]
        return b"".join(told) + (self.end() if last else b"")

    def _told(self, event: bytes) -> bytes:
        data = event.strip().removeprefix(b"data: ")
        if not data.startswith(b"{"):
            return b""
        document = orjson.loads(data)
        if isinstance(document.get("error"), str):  # transformers' application, in the middle of a stream
            document = error_document(500, "the engine failed")
            event = event_of(document)
        return self.tell(document, event + END)


def refused(piece: bytes) -> tuple[int, bytes] | None:
    """Of a stream that begins with an error: its status, and its document.

    vLLM judges some of what was asked only when the stream is read (its AsyncLLM.generate is a generator).
    """
    event, ended, _ = piece.partition(END)
    if not ended or not event.startswith(b'data: {"error"'):
        return None
    data = event.removeprefix(b"data: ")
    try:
        error = orjson.loads(data)["error"]
    except orjson.JSONDecodeError:  # transformers' application puts its text there as it is
        error = None
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, int) and 400 <= status < 600:
        return status, data
    return 500, orjson.dumps(error_document(500, "the engine failed"))


def bounded(error: bytes) -> bytes:
    """An error's document with a message of bounded length: TorchServe resets the connection behind it."""
    document = orjson.loads(error)
    said = document.get("error")
    if isinstance(said, dict) and len(str(said.get("message"))) > MAX_MESSAGE:
        said["message"] = shortened(str(said["message"]))
        return orjson.dumps(document)
    return error


def message_of(document: Document) -> str:
    """What an error's document says, bounded, in ASCII."""
    error = document.get("error")
    said = error.get("message") if isinstance(error, dict) else None
    return shortened(str(said or "the engine refused the request")).encode("ascii", "replace").decode()


def written(document: Document) -> bytes:
    """A request as an engine reads it. Raises BadRequest: orjson reads deeper nesting than it writes."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError as err:
        raise BadRequest("the body is nested too deep, or has a number that is too large") from err


def event_of(document: Document) -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(document) + END


def as_protocol(document: Document, event: bytes, usage_wanted: bool) -> bytes:
    """An event as the protocol has it.

    Every choice says why it ended, null until it has, which transformers' application leaves out. Its usage is in
    an event of its own, if the client asked for it.
    """
    under_way = [choice for choice in document.get("choices") or () if "finish_reason" not in choice]
    for choice in under_way:
        choice["finish_reason"] = None
    if "usage" not in document:
        return event_of(document) if under_way else event
    usage = document.pop("usage")
    told = event_of(document) if document.get("choices") or "error" in document else b""
    if usage and usage_wanted:
        told += event_of({**document, "choices": [], "usage": usage})
    return told


def as_whole(chunks: Sequence[Document]) -> Document:
    """The events of a stream, of one choice and with its usage, as a whole answer."""
    if failed := [chunk["error"] for chunk in chunks if "error" in chunk]:
        raise RuntimeError(failed[0]["message"])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    answer = {name: chunks[-1][name] for name in ("id", "created", "model", "usage")}
    ended = {"index": 0, "finish_reason": choices[-1]["finish_reason"]}
    if "delta" not in choices[0]:
        text = "".join(choice["text"] for choice in choices)
        return {**answer, "object": "text_completion", "choices": [{**ended, "text": text}]}
    deltas = [choice["delta"] for choice in choices]
    message: Document = {"role": "assistant", "content": "".join(delta.get("content", "") for delta in deltas)}
    if thought := "".join(delta.get("reasoning_content", "") for delta in deltas):
        message["reasoning_content"] = thought
    if calls := [call for delta in deltas for call in delta.get("tool_calls", ())]:
        message["tool_calls"] = [{name: call[name] for name in ("id", "type", "function")} for call in calls]
    return {**answer, "object": "chat.completion", "choices": [{**ended, "message": message}]}


def _says_something(choice: Document) -> bool:
    """Text, a thought, a call of a tool: the first event of a chat has none, only its role."""
    said = choice.get("delta") or choice.get("message") or {"text": choice.get("text")}
    return any(value for name, value in said.items() if name != "role")


def said_in(event: Document) -> str:
    """The new text of an event of a stream."""
    return "".join(map(text_of, event.get("choices", ())))


def text_of(choice: Document) -> str:
    """The new text of a choice, or all of it."""
    said = choice.get("delta") or choice.get("message")
    return str((said.get("content") if said is not None else choice.get("text")) or "")
