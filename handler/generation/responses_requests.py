"""What a request of OpenAI's Responses API may hold, and what a chat has to be asked for it.

Nothing is kept here, so a request has all of its conversation as `input`: messages, and items of answers before it
as they came. https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from handler.errors import BadRequest
from handler.generation.openai_protocol import CHAT, Document
from handler.generation.openai_requests import (
    HINTS,
    OBJECT,
    Judged,
    Limits,
    is_arguments,
    is_nothing,
    judge,
    meant,
)
from handler.request import MOST_PROBLEMS
from handler.rules import TEXT, Problem, Rule, check, integer, key, label, one_of, optional

NOT_KEPT = "nothing is kept here; send the whole conversation as input"
KEPT = frozenset(("background", "conversation", "previous_response_id", "prompt", "store"))
# Values that ask for nothing, and no engine hears of.
NOTHING: Mapping[str, tuple[object, ...]] = {
    "background": (False,),
    "include": ([],),
    "store": (False,),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
# What vLLM's and transformers' chats have beside the protocol, and say nothing more for it.
BESIDE = frozenset(
    (
        "chat_template_kwargs",
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "min_p",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "stop_token_ids",
        "top_k",
    )
)
SAME = frozenset(("parallel_tool_calls", "stream", "temperature", "top_p"))  # in a chat
# What an answer says of its request, and where that said nothing.
ECHOED: Document = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": None,
    "store": False,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
}
FORMATS = {  # type -> what it has beside
    "text": frozenset[str](),
    "json_object": frozenset[str](),
    "json_schema": frozenset(("name", "schema", "strict", "description")),
}
FUNCTION = frozenset(("name", "description", "parameters", "strict"))


def _are_parts(value: Any, *types: str) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") in types and isinstance(part.get("text"), str)
        for part in value
    )


def _is_format(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str) or kind not in FORMATS:
        return False
    named = isinstance(value.get("name"), str) and isinstance(value.get("schema"), dict)
    return value.keys() - {"type"} <= FORMATS[kind] and (kind != "json_schema" or named)


def _is_function(tool: Any) -> bool:
    return (
        isinstance(tool, dict)
        and tool.get("type") == "function"
        and isinstance(tool.get("name"), str)
        and {name for name in tool if tool[name]} <= FUNCTION | {"type"}
    )


CONTENT = Rule(  # what else there could be, vLLM would fetch from wherever the client says
    "a string, or a list of parts of text",
    lambda v: isinstance(v, str) or (bool(v) and _are_parts(v, "input_text", "output_text", "text")),
)
THOUGHT = optional(
    Rule("a list of parts of text", lambda v: _are_parts(v, "reasoning_text", "summary_text", "text"))
)
# Type of an item -> what it has beside its id and status.
ITEMS: Mapping[str, Mapping[str, Rule]] = {
    "message": {"role": one_of("user", "system", "developer", "assistant"), "content": CONTENT},
    "function_call": {
        "call_id": TEXT,
        "name": TEXT,
        "arguments": Rule("a JSON object, as a string", is_arguments),
    },
    "function_call_output": {"call_id": TEXT, "output": CONTENT},
    "reasoning": {"content": THOUGHT, "summary": THOUGHT},
}
OF_ANY = frozenset(("id", "status", "type"))


@dataclass(frozen=True)
class Asked(Judged):
    """What is judged here; the rest is judged as a chat's."""

    input: Any = key(
        Rule("a string, or a list of items", lambda v: isinstance(v, (str, list))), "what is said", None
    )
    instructions: str | None = key(TEXT, "a system message before it", None)
    max_output_tokens: int | None = key(integer(1), "the most tokens of the answer", None)
    metadata: dict[str, Any] | None = key(OBJECT, "given back as it is", None)
    reasoning: dict[str, Any] | None = key(
        Rule("an object with effort", lambda v: isinstance(v, dict)), "how long it is to think", None
    )
    text: dict[str, Any] | None = key(
        Rule(
            "an object, whose format is text, json_object, or json_schema with name and schema",
            lambda v: isinstance(v, dict) and _is_format(v.get("format", {"type": "text"})),
        ),
        "what the answer has to look like",
        None,
    )
    tools: list[Any] | None = key(
        Rule(
            "a list of functions, each with type and name",
            lambda v: isinstance(v, list) and all(map(_is_function, v)),
        ),
        "what the model may call",
        None,
    )
    tool_choice: Any = key(
        Rule(
            "auto, none, required, or an object with type function and name",
            lambda v: (
                v in ("auto", "none", "required")
                if isinstance(v, str)
                else _is_function(v) and v.keys() == {"type", "name"}
            ),
        ),
        "whether it has to",
        None,
    )


OWN = frozenset(Asked.__annotations__) | SAME | {"model", "stream_options"}


def read(document: Document, fields: frozenset[str], limits: Limits, draws: bool) -> tuple[Document, Document]:
    """The chat to ask for, and what its answer says of the request. Raises BadRequest.

    Args:
        document: the request's body.
        fields: those of a chat that the engine does something with.
        limits: what one request may ask for.
        draws: whether the engine draws where the request says nothing of it.
    """
    said = {
        name: value
        for name, value in document.items()
        if value is not None and (name not in HINTS or name == "metadata") and not is_nothing(name, value, NOTHING)
    }
    for name in said.keys() & {"reasoning", "text"}:
        if isinstance(said[name], dict):
            said[name] = {inner: value for inner, value in said[name].items() if value is not None}
    if problems := list(islice(_problems(said, fields, limits), MOST_PROBLEMS)):
        raise BadRequest("; ".join(map(str, problems)))
    return judge(CHAT, _chat(said), fields, limits, draws), {**ECHOED, **{n: said[n] for n in ECHOED if n in said}}


def _problems(said: Document, fields: frozenset[str], limits: Limits) -> Iterator[Problem]:
    known = OWN | (BESIDE & fields)
    for name in said:
        if name in KEPT:
            yield Problem(name, NOT_KEPT)
        elif name not in known:
            yield Problem(label(name), "this engine does not do this" + meant(name, known))
    wrong = check(
        {name: said[name] for name in said if name in known & Asked.__dataclass_fields__.keys()},
        Asked,
        quote=False,
    )
    yield from wrong
    if "input" not in said:
        yield Problem("input", "is missing")
    elif isinstance(said["input"], list):
        yield from _item_problems(said["input"])
    if not wrong:
        yield from _undone(said, fields)
        if said.get("max_output_tokens", 0) > limits.new_tokens:
            yield Problem("max_output_tokens", f"{said['max_output_tokens']}; the limit is {limits.new_tokens}")


def _undone(said: Document, fields: frozenset[str]) -> Iterator[Problem]:
    """What stands within another, and is not done."""
    text, reasoning = said.get("text", {}), said.get("reasoning", {})
    undone = {
        f"text.{label(name)}"
        for name in text
        if name != "format" and (name, text[name]) != ("verbosity", "medium")
    }
    undone |= {f"reasoning.{label(name)}" for name in reasoning if name != "effort"}
    if text.get("format", {}).get("type", "text") != "text" and "response_format" not in fields:
        undone.add("text.format")
    if "effort" in reasoning and "reasoning_effort" not in fields:
        undone.add("reasoning.effort")
    for name in sorted(undone):
        yield Problem(name, "this engine does not do this")


def _item_problems(items: list[Any]) -> Iterator[Problem]:
    if not items:
        yield Problem("input", "expected a string, or a list of at least one item")
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = _kind(item) if isinstance(item, dict) else None
        if not isinstance(kind, str) or kind not in ITEMS:
            yield Problem(where, f"expected an object, whose type is one of {', '.join(ITEMS)}")
            continue
        has = ITEMS[kind]
        if beside := next((name for name in item if item[name] and name not in has.keys() | OF_ANY), None):
            yield Problem(f"{where}.{label(beside)}", f"no {kind} has this" + meant(beside, frozenset(has)))
        for name, rule in has.items():
            if not rule.accepts(item.get(name)):
                yield Problem(f"{where}.{name}", f"expected {rule.expected}")


def _chat(said: Document) -> Document:
    """What a chat has to be asked."""
    asked = {name: value for name, value in said.items() if name in SAME | BESIDE}
    items = said["input"] if isinstance(said["input"], list) else [{"role": "user", "content": said["input"]}]
    before = [{"role": "system", "content": said["instructions"]}] if said.get("instructions") else []
    asked["messages"] = [*before, *messages(items)]
    if "max_output_tokens" in said:
        asked["max_tokens"] = said["max_output_tokens"]
    if "effort" in said.get("reasoning", {}):
        asked["reasoning_effort"] = said["reasoning"]["effort"]
    if given := said.get("text", {}).get("format"):
        schema = {name: given[name] for name in given if name != "type"}
        asked["response_format"] = {"type": given["type"], **({"json_schema": schema} if schema else {})}
    if "tools" in said:
        asked["tools"] = list(map(_nested, said["tools"]))
    if "tool_choice" in said:
        choice = said["tool_choice"]
        asked["tool_choice"] = choice if isinstance(choice, str) else _nested(choice)
    return asked


def _nested(tool: Document) -> Document:
    """A function as a chat has it."""
    function = {name: value for name, value in tool.items() if name in FUNCTION and value is not None}
    return {"type": "function", "function": function}


def messages(items: list[Document]) -> list[Document]:
    """Items as a chat's messages: what a model thinks, says and calls in one turn is one message."""
    made: list[Document] = []
    for item in items:
        kind = _kind(item)
        last = made[-1] if made and made[-1]["role"] == "assistant" else None
        if kind == "function_call_output":
            made.append({"role": "tool", "tool_call_id": item["call_id"], "content": _content(item["output"])})
        elif kind == "message" and item["role"] != "assistant":
            made.append({"role": item["role"], "content": _content(item["content"])})
        elif kind == "message":
            content = item["content"]
            said = content if isinstance(content, str) else _joined(content)
            if last and last.keys() <= {"role", "reasoning", "reasoning_content"}:
                last["content"] = said
            else:
                made.append({"role": "assistant", "content": said})
        elif kind == "reasoning":
            thought = _joined(item.get("content") or item.get("summary") or ())
            # vLLM reads the first, and most of the chat templates the second.
            made.append({"role": "assistant", "reasoning": thought, "reasoning_content": thought})
        else:
            call = {"id": item["call_id"], **_nested(item)}
            call["function"]["arguments"] = item["arguments"]
            if last:
                last.setdefault("tool_calls", []).append(call)
            else:
                made.append({"role": "assistant", "tool_calls": [call]})
    return made


def _kind(item: Document) -> Any:
    """A message may leave its type out."""
    return "message" if item.get("type") is None else item["type"]


def _content(content: Any) -> Any:
    """Text, or parts of it, as a chat has them."""
    return content if isinstance(content, str) else [{"type": "text", "text": part["text"]} for part in content]


def _joined(parts: Any) -> str:
    return "".join(part["text"] for part in parts)
