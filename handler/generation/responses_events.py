"""A chat's answer as OpenAI's Responses API has it: typed events as it comes, or all of it at once.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson

from handler.generation.openai_protocol import END, Document, Usage
from handler.protocols.openai_embeddings import error_document


@dataclass(frozen=True)
class Kind:
    """A kind of item."""

    prefix: str  # of its id
    event: str  # that tells of its text
    part: Document | None  # what its only part has beside the text, where it has parts
    beside: Document  # what it has


KINDS = {
    "reasoning": Kind("rs_", "response.reasoning_text", {"type": "reasoning_text"}, {"summary": []}),
    "message": Kind(
        "msg_", "response.output_text", {"type": "output_text", "annotations": []}, {"role": "assistant"}
    ),
    "function_call": Kind("fc_", "response.function_call_arguments", None, {}),
}


@dataclass
class Item:
    """What the model thinks, says, or calls."""

    type: str
    index: int  # of the answer's items
    about: Document  # of a call: its id and its function's name
    id: str
    status: str = "in_progress"
    said: list[str] = field(default_factory=list)

    def document(self) -> Document:
        """As far as it has come."""
        kind, text = KINDS[self.type], "".join(self.said)
        made = {"id": self.id, "type": self.type, "status": self.status, **kind.beside, **self.about}
        if kind.part is None:
            return {**made, "arguments": text}
        return {**made, "content": [] if self.status == "in_progress" else [{**kind.part, "text": text}]}


class Answer:
    """What has been said so far.

    Args:
        echoed: what it says of its request.
        model: the model's name.
    """

    def __init__(self, echoed: Document, model: str) -> None:
        self._about = {
            "id": _id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **echoed,
        }
        self._items: list[Item] = []
        self._place: int | None = None  # of a call among a message's calls, where the last item is one
        self._events = 0

    def begin(self) -> Iterator[Document]:
        """Its first events."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self.document("in_progress"))

    def take(self, message: Document) -> Iterator[Document]:
        """The events of some more of a chat's message, or of all of it."""
        thought = message.get("reasoning") or message.get("reasoning_content")
        for type_, text in (("reasoning", thought), ("message", message.get("content"))):
            if text:
                yield from self._say(type_, None, text, {})
        for place, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function") or {}
            about = {"call_id": call.get("id") or _id("call_"), "name": function.get("name") or ""}
            yield from self._say("function_call", call.get("index", place), function.get("arguments") or "", about)

    def end(self, reason: str | None, usage: Document) -> Iterator[Document]:
        """Its last events: of a chat's finish_reason and usage."""
        status = "incomplete" if reason == "length" else "completed"
        if not self._items:  # who asks for the text of an answer finds one
            yield from self._open("message", None, {})
        yield from self._close(status)
        yield self._event(f"response.{status}", response=self.document(status, usage))

    def fail(self, error: Document) -> Document:
        """The event of a failure, with `error` too, by which the openai package raises (openai/_streaming.py)."""
        about = {"code": "server_error", "message": error["message"], "param": None}
        return self._event("error", **about, error=error)

    def document(self, status: str, usage: Document | None = None) -> Document:
        """All of it."""
        return {
            **self._about,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [item.document() for item in self._items],
            "usage": usage and _usage(usage),
        }

    def _say(self, type_: str, place: int | None, text: str, about: Document) -> Iterator[Document]:
        if not self._items or (self._items[-1].type, self._place) != (type_, place):
            yield from self._close("completed")
            yield from self._open(type_, place, about)
        if text:
            item = self._items[-1]
            item.said.append(text)
            yield self._of_text(item, "delta", delta=text)

    def _open(self, type_: str, place: int | None, about: Document) -> Iterator[Document]:
        item = Item(type_, len(self._items), about, _id(KINDS[type_].prefix))
        self._items.append(item)
        self._place = place
        yield self._event("response.output_item.added", output_index=item.index, item=item.document())
        yield from self._of_part(item, "added")

    def _close(self, status: str) -> Iterator[Document]:
        if not self._items:
            return
        item = self._items[-1]
        item.status = status
        text = "".join(item.said)
        if KINDS[item.type].part is None:
            yield self._of_text(item, "done", arguments=text, name=item.about["name"])
        else:
            yield self._of_text(item, "done", text=text)
        yield from self._of_part(item, "done")
        yield self._event("response.output_item.done", output_index=item.index, item=item.document())

    def _of_text(self, item: Item, what: str, **more: object) -> Document:
        kind = KINDS[item.type]
        where: Document = {"item_id": item.id, "output_index": item.index}
        if kind.part is not None:
            where["content_index"] = 0
        if item.type == "message":
            where["logprobs"] = []
        return self._event(f"{kind.event}.{what}", **where, **more)

    def _of_part(self, item: Item, what: str) -> Iterator[Document]:
        if (part := KINDS[item.type].part) is not None:
            where = {"item_id": item.id, "output_index": item.index, "content_index": 0}
            yield self._event(f"response.content_part.{what}", **where, part={**part, "text": "".join(item.said)})

    def _event(self, name: str, /, **more: object) -> Document:
        self._events += 1
        return {"type": name, "sequence_number": self._events - 1, **more}


@dataclass
class Events:
    """A chat's stream, chunk by chunk, as that of a response."""

    answer: Answer
    usage: Usage
    begun: bool = False

    def tell(self, chunk: Document, event: bytes) -> bytes:
        """What is said for one chunk."""
        self.usage.note(chunk)
        return b"".join(map(_written, self._events(chunk)))

    def failed(self) -> bytes:
        """What is said where the engine has failed."""
        return _written(self.answer.fail(error_document(500, "the engine failed")["error"]))

    def _events(self, chunk: Document) -> Iterator[Document]:
        if "error" in chunk:
            yield self.answer.fail(chunk["error"])
            return
        if not self.begun:
            self.begun = True
            yield from self.answer.begin()
        for choice in chunk.get("choices") or ():
            yield from self.answer.take(choice.get("delta") or {})
        if usage := chunk.get("usage"):  # which comes last
            yield from self.answer.end(self.usage.finish_reason, usage)


def as_response(chat: Document, answer: Answer) -> Document:
    """A chat's whole answer as a response."""
    [choice] = chat["choices"]
    *_, last = (*answer.take(choice["message"]), *answer.end(choice["finish_reason"], chat["usage"]))
    response: Document = last["response"]
    return response


def _written(event: Document) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event) + END


def _id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex


def _usage(usage: Document) -> Document:
    """A chat's usage as a response's."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
    }
