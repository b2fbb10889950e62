"""The OpenAI protocol: what a request may hold, judged before an engine sees it; and what an answer says.

Both engines take less than the protocol has, and pass over in silence what they do not know; nothing is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from handler.errors import BadRequest
from handler.protocols.openai_embeddings import error_document
from handler.request import MOST_PROBLEMS
from handler.rules import BOOLEAN, Problem, Rule, check, integer, key, label, nearest, number

CHAT, COMPLETIONS, EMBEDDINGS, MODELS = "v1/chat/completions", "v1/completions", "v1/embeddings", "v1/models"
END = b"\n\n"  # of an event
DONE = b"data: [DONE]\n\n"
NEEDED = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
# Said about a request, and not to the model: taken, and not handed on.
HINTS = frozenset(
    ("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user")
)
# Values that ask for nothing, of fields that an engine may not do.
NOTHING: Mapping[str, object] = {
    "n": 1,
    "best_of": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "store": False,
    "logprobs": False,
    "echo": False,
}
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """What both engines take as it comes, and would fail on or change in silence."""

    max_tokens: int | None = key(integer(1), "the most tokens of the answer", None)
    max_completion_tokens: int | None = key(integer(1), "its newer name", None)
    temperature: float | None = key(number(0, 2), "0: always the likeliest", None)
    top_p: float | None = key(number(1e-6, 1), "of the probability that is drawn from", None)
    top_k: int | None = key(integer(1), "of the tokens that are drawn from", None)
    n: int | None = key(integer(1, 128), "answers", None)
    stream: bool = key(BOOLEAN, "piece by piece", False)
    stream_options: dict[str, Any] | None = key(
        Rule(
            "an object with include_usage",
            lambda v: (
                isinstance(v, dict) and v.keys() <= {"include_usage"} and all(type(x) is bool for x in v.values())
            ),
        ),
        "whether the stream ends with its usage",
        None,
    )


JUDGED = frozenset(Judged.__dataclass_fields__)


def judge(path: str, document: Document, fields: frozenset[str]) -> Document:
    """The request as an engine gets it: without hints and without what asks for nothing. Raises BadRequest.

    Args:
        path: of the route.
        document: the request's body.
        fields: those that the engine does something with.
    """
    said = {name: value for name, value in document.items() if value is not None and name not in HINTS}
    said = {name: value for name, value in said.items() if name in fields or not _is_nothing(name, value)}
    problems = [
        Problem(label(name), "this engine does not do this" + _meant(name, fields))
        for name in said
        if name not in fields
    ][:MOST_PROBLEMS]
    problems += check({name: said[name] for name in said if name in JUDGED}, Judged, quote=False)
    needed = NEEDED[path]
    if said.get(needed) is None:
        problems.append(Problem(needed, "is missing"))
    elif path == CHAT:
        problems += list(_message_problems(said["messages"]))
    if problems:
        raise BadRequest("; ".join(map(str, problems[:MOST_PROBLEMS])))
    return said


def _is_nothing(name: str, value: object) -> bool:
    return name in NOTHING and value == NOTHING[name]


def _meant(name: str, fields: frozenset[str]) -> str:
    close = nearest(name, fields) if len(name) <= 80 else None
    return f"; did you mean {close}?" if close else ""


def _message_problems(messages: Any) -> Iterator[Problem]:
    if not isinstance(messages, list) or not messages:
        yield Problem("messages", "expected a list of at least one message")
        return
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            yield Problem(where, "expected an object with role and content")
        elif message.get("role") not in ROLES:
            yield Problem(f"{where}.role", f"expected one of {', '.join(ROLES)}")
        elif not _is_content(message.get("content")) and not message.get("tool_calls"):
            yield Problem(f"{where}.content", "expected a string, or a list of parts of text")


def _is_content(content: Any) -> bool:
    """Text: what else there could be, vLLM would fetch from wherever the client says."""
    return isinstance(content, str) or (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        )
    )


@dataclass
class Usage:
    """What an answer says of itself; filled while it passes."""

    prompt_tokens: int | None = None
    new_tokens: int | None = None
    finish_reason: str | None = None
    begun: bool = False  # whether something that the model said has passed

    def note(self, document: Document) -> None:
        """Takes what a whole answer or an event says."""
        if usage := document.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.new_tokens = usage.get("completion_tokens")
        for choice in document.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.begun = self.begun or _says_something(choice)


@dataclass
class Stream:
    """An engine's events, one by one, whatever pieces they come in."""

    tell: Callable[[Document, bytes], bytes]  # an event, read and as it came -> what is said for it
    unread: bytes = field(default=b"")  # the beginning of an event whose end has not come

    def piece(self, piece: bytes, last: bool) -> bytes:
        """What can be told now. transformers' application leaves out the protocol's last line."""
        *events, self.unread = (self.unread + piece).split(END)
        told = [self._told(event) for event in events]
        return b"".join(told) + (DONE if last else b"")

    def _told(self, event: bytes) -> bytes:
        data = event.strip().removeprefix(b"data: ")
        if not data.startswith(b"{"):
            return b""
        document = orjson.loads(data)
        if isinstance(document.get("error"), str):  # transformers' application, in the middle of a stream
            document = error_document(500, "the engine failed")
            event = event_of(document)
        return self.tell(document, event + END)


def event_of(document: Document) -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(document) + END


def with_usage(document: Document, event: bytes, wanted: bool) -> bytes:
    """An event with its usage where the protocol has it: in an event of its own, if the client asked for it."""
    if "usage" not in document:
        return event
    usage = document.pop("usage")
    told = event_of(document) if document.get("choices") or "error" in document else b""
    if usage and wanted:
        told += event_of({**document, "choices": [], "usage": usage})
    return told


def _says_something(choice: Document) -> bool:
    """Text, a thought, a call of a tool: the first event of a chat has none, only its role."""
    said = choice.get("delta") or choice.get("message") or {"text": choice.get("text")}
    return any(value for name, value in said.items() if name != "role")


def text_of(choice: Document) -> str:
    """The new text of a choice, or all of it."""
    said = choice.get("delta") or choice.get("message")
    return str((said.get("content") if said is not None else choice.get("text")) or "")
